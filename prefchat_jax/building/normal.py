"""Normal form: Unicode NFC and tidy white space; nothing else is rewritten."""

import re
import unicodedata

# Spaces of every width; line breaks and control characters are no blanks.
_BLANK = r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_INNER = re.compile(rf"(?<=\S){_BLANK}+(?=\S)")
_TRAILING = re.compile(rf"(?<!{_BLANK}){_BLANK}+$", re.MULTILINE)
_GAP = re.compile(r"\n{3,}")


def normalize(text: str) -> str:
    """NFC, one blank between words, line ends `\\n`, no more than one empty line.

    The indentation of a line stays: it may be code.
    """
    if text.isascii():
        if not _is_untidy(text):
            return text
    else:
        text = unicodedata.normalize("NFC", text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _TRAILING.sub("", _INNER.sub(" ", text))
    return _GAP.sub("\n\n", text).strip()


def _is_untidy(text: str) -> bool:
    """Whether ASCII text may hold something to tidy; cheap, and seldom true."""
    return (
        "  " in text
        or "\n" in text
        or "\t" in text
        or "\r" in text
        or text[:1].isspace()
        or text[-1:].isspace()
    )
