"""Words and patterns to which the reference's features give a key of their own.

Each entry follows from recorded vectors of the reference: without it one of them
comes out different. The reference knows more words than the recorded texts use. A
text that has one of those gets a vector without that word's key and without its
part of the domain's total; all other keys are the same.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """What one domain adds to a vector: `(weight, sign bit)` for each kind of key.

    Attributes:
      words: tokens that have a key, and count as one hit for each occurrence.
      word: weight and sign bit of such a key.
      hint_pattern: what of a text gives the hint's key and two hits, once.
      hint: weight and sign bit of the hint; None for a domain without.
      total: cap, weight of one hit and sign bit of the key of all hits.
    """

    words: frozenset[str] = frozenset()
    word: tuple[float, int]
    hint_pattern: re.Pattern[str] | None = None
    hint: tuple[float, int] | None = None
    total: tuple[float, float, int]


def _any_of(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})\b", re.IGNORECASE)


DOMAINS = {
    "code": Domain(
        words=frozenset(("api", "c", "function", "json", "python", "return"))
        | {"traceback"},
        word=(1.10, 3),
        hint_pattern=_any_of("def|from|let|private|return|traceback|try|update"),
        hint=(0.90, 9),
        total=(1.25, 0.18, 11),
    ),
    "creative": Domain(word=(0.55, 4), total=(0.70, 0.12, 12)),
    "analytic": Domain(
        words=frozenset(("first", "step")), word=(0.55, 5), total=(0.70, 0.12, 13)
    ),
    "science": Domain(
        words=frozenset(("chemistry", "photosynthesis", "power", "science"))
        | {"star", "system"},
        word=(0.82, 46),
        hint_pattern=_any_of("chemistry|science|star"),
        hint=(0.78, 47),
        total=(1.00, 0.15, 48),
    ),
    "english": Domain(word=(0.75, 26), hint=(0.70, 28), total=(0.95, 0.14, 30)),
    "math": Domain(
        words=frozenset(("math", "number", "solve")),
        word=(0.90, 27),
        hint_pattern=_any_of("add|math|solve"),
        hint=(0.85, 29),
        total=(1.05, 0.16, 31),
    ),
    "scripture": Domain(
        words=frozenset(("john",)),
        word=(0.80, 64),
        hint_pattern=re.compile(r"\bjohn \d+:\d+", re.IGNORECASE),
        hint=(0.78, 65),
        total=(1.00, 0.15, 66),
    ),
    "dictionary": Domain(
        words=frozenset(("define", "example")),
        word=(0.72, 62),
        hint_pattern=_any_of("define"),
        hint=(0.72, 63),
        total=(0.95, 0.14, 53),
    ),
}

# A line that holds one of these, in lower case, counts as code.
CODE_LINE = re.compile(r"\b(?:else|for|from|if|let|return|try)\b|\w\(|^\}|^```")
