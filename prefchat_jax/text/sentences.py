"""Sentences: where one ends, in text that holds code, numbers and URLs."""

import re

_ABBREVIATIONS = frozenset(
    "e.g i.e etc vs cf approx no fig eq al dr mr mrs ms prof st inc ltd".split()  # noqa: SIM905
)
# A stop, perhaps closing quotes, then white space. Decimals, version numbers and
# URLs have no white space after their stops.
_STOP = re.compile(r"[.!?]+[\"')\]]*(?=\s)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def split_sentences(text: str) -> list[str]:
    """Splits text into sentences; code, decimals, URLs and abbreviations survive."""
    code = [match.span() for match in _CODE.finditer(text)]
    sentences, start = [], 0
    for stop in _STOP.finditer(text):
        before = text[start : stop.start()].rsplit(maxsplit=1)
        word = before[-1].lower().strip("(\"'") if before else ""
        inside_code = any(a < stop.start() < b for a, b in code)
        is_number = re.fullmatch(r"\d{1,2}", word) is not None  # "1. First ..."
        short_of_word = word in _ABBREVIATIONS and stop.group().startswith(".")
        if inside_code or short_of_word or (is_number and len(before) == 1):
            continue
        sentences.append(text[start : stop.end()].strip())
        start = stop.end()
    return [*sentences, rest] if (rest := text[start:].strip()) else sentences
