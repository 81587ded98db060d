"""Clean-up of stored text: sentences, fillers, and clauses that repeat.

Nothing is ever rewritten: sentences are dropped or kept as they stand, and a
text from which nothing is dropped is returned unchanged.
"""

import re

_ABBREVIATIONS = frozenset(
    [
        "e.g",
        "i.e",
        "etc",
        "vs",
        "cf",
        "approx",
        "no",
        "fig",
        "eq",
        "al",
        "dr",
        "mr",
        "mrs",
        "ms",
        "prof",
        "st",
        "inc",
        "ltd",
    ]
)
# A stop, perhaps closing quotes, then white space. Decimals, version numbers and
# URLs have no white space after their stops.
_STOP = re.compile(r"[.!?]+[\"')\]]*(?=\s)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_FILLER = re.compile(
    r"(?:ok|okay|sure|got it|understood|right|yes|well|alright)[\s,.!]*", re.IGNORECASE
)
_SAME = 0.8  # Share of common words above which two sentences say the same.


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


def clean(text: str) -> str:
    """Drops fillers and sentences that repeat an earlier one."""
    if "```" in text or "\n" in text:
        return text  # Laid out by hand.
    sentences = split_sentences(text)
    kept: list[str] = []
    for sentence in sentences:
        if _FILLER.fullmatch(sentence) or any(_repeats(sentence, k) for k in kept):
            continue
        kept.append(sentence)
    return " ".join(kept) if kept and len(kept) < len(sentences) else text


def _repeats(sentence: str, earlier: str) -> bool:
    """Whether two sentences have nearly the same words, and the same numbers."""
    words, others = _words(sentence), _words(earlier)
    numbers = lambda tokens: {token for token in tokens if any(map(str.isdigit, token))}
    if not words or numbers(words) != numbers(others):
        return False
    return len(words & others) / len(words | others) > _SAME


def _words(sentence: str) -> set[str]:
    return set(re.findall(r"[\w.\-]*\w", sentence.lower()))
