"""Clean-up of stored text: fillers, and sentences that say nothing new.

Nothing is ever rewritten: sentences are dropped or kept as they stand, and a
text from which nothing is dropped is returned unchanged.
"""

import re

from prefchat_jax.text.sentences import Span, sentence_spans

# "Yes" and "No" are answers, not fillers.
_FILLER = re.compile(
    r"(?:ok|okay|sure|got it|understood|right|well|alright|all right)[\s,.!]*",
    re.IGNORECASE,
)
_NEGATIONS = re.compile(r"(?:no|not|never|none|nor|without|cannot|\w+n['’]t)")
_SAME = 0.8  # Share of common words above which two sentences say the same.
_NEAR = 48  # Earlier sentences that a sentence is compared with.
_LONG = 5  # Words of a sentence that nobody says twice on purpose.

Said = tuple[list[str], list[str]]  # The bare words of a sentence, and the firm ones.


def clean(text: str) -> str:
    """Drops fillers at the front, and sentences that repeat an earlier one.

    A sentence repeats another if its words are all found there in the same
    order, few words of the other are missing, and the negations and the numbers
    are equal. One of fewer than five words must follow at once: "Turn left. Go
    on. Turn left." stays. Text of several lines or with a block of code was laid
    out by hand, and stays as it is. `clean(clean(text)) == clean(text)`.
    """
    if "```" in text or "\n" in text:
        return text
    while (shorter := _clean_once(text)) != text:
        text = shorter
    return text


def _clean_once(text: str) -> str:
    spans = sentence_spans(text)
    if len(spans) < 2:
        return text
    kept: list[Span] = []
    said: list[Said] = []
    for a, b in spans:
        sentence = text[a:b]
        if not kept and _FILLER.fullmatch(sentence):
            continue
        words = _bare(sentence.split())
        this = words, _firm(words)
        near = said[-_NEAR:] if len(words) >= _LONG else said[-1:]
        if any(_repeats(this, other) for other in near):
            continue
        kept.append((a, b))
        said.append(this)
    if not kept or len(kept) == len(spans):
        return text
    return _joined(text, spans, kept)


def _joined(text: str, spans: list[Span], kept: list[Span]) -> str:
    """The kept sentences, each after the white space that stood in front of it."""
    ends = dict(zip(spans[1:], (b for _, b in spans), strict=False))
    first, *others = kept
    parts = [text[first[0] : first[1]]]
    parts += [text[ends[span] : span[1]] for span in others]
    return "".join(parts)


def _repeats(this: Said, other: Said) -> bool:
    """Whether a sentence of these words says nothing that the other does not."""
    (words, firm), (others, others_firm) = this, other
    if not _SAME * len(others) < len(words) <= len(others) or firm != others_firm:
        return False
    rest = iter(others)
    return all(word in rest for word in words)


def _firm(words: list[str]) -> list[str]:
    """The words of which none may be missing: numbers and negations."""
    return [
        w for w in words if any(map(str.isdigit, w)) or _NEGATIONS.fullmatch(w.lower())
    ]


def _bare(words: list[str]) -> list[str]:
    """Words without the punctuation around them; C, C++ and `c` are three."""
    bare = [word.strip(".,;:!?\"'()“”…。！？") for word in words]
    return [bare[0].lower(), *bare[1:]]
