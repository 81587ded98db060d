"""Clean-up of stored text: fillers, and sentences that repeat.

Nothing is ever rewritten: sentences are dropped or kept as they stand, and a
text from which nothing is dropped is returned unchanged.
"""

import re

from prefchat_jax.text.sentences import split_sentences

_FILLER = re.compile(
    r"(?:ok|okay|sure|got it|understood|right|yes|well|alright)[\s,.!]*", re.IGNORECASE
)
_SAME = 0.8  # Share of common words above which two sentences say the same.


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
