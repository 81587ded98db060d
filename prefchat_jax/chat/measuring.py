"""Measuring: how well texts suit the built-in styles, many at a time.

A store has each of its responses measured when it is indexed. A regular expression
that tries a list of words at each letter would take longer for long responses than
all else, so it is only asked where tables say that one of the words may begin.
"""

import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from prefchat_jax.text.hashing import byte_table, is_byte

_MANY = 4  # Of what is counted: a text with so many suits a style fully.
_BLOCK = 1024  # Texts that are joined: inside the cache.
_READ = 4  # Letters that the tables know of each word.
_STEPS = (
    *("first", "second", "third", "then", "next", "finally", "because", "therefore"),
    *("since", "so that", "instead", "step"),
)
_IMAGES = (
    *("imagine", "like", "picture", "think of", "story", "as if", "perhaps", "try"),
    *("for example", "such as", r"wonder\w*", r"play\w*", r"explore\w*"),
)
_MARKS = "!?:;"
# What an `s`, a `k` and an `i` also match where case does not count.
_FOLDED = "\u017f\u212a\u0130\u0131"
# Letters beyond ASCII count as marks here: a word is then tried, and not found.
_IN_WORDS = byte_table(b"abcdefghijklmnopqrstuvwxyz0123456789_")


def orderliness(texts: Sequence[str]) -> np.ndarray:
    """Words that order, and numbers of a list: float32 `[n]`, in [0, 1]."""
    return _share(_STEP_CUES.count(texts))


def colour(texts: Sequence[str]) -> np.ndarray:
    """Words of a story or an image, and lively marks: float32 `[n]`, in [0, 1]."""
    marks = (sum(map(text.count, _MARKS)) for text in texts)
    return _share(_IMAGE_CUES.count(texts) + np.fromiter(marks, np.int64, len(texts)))


def brevity(texts: Sequence[str]) -> np.ndarray:
    """1 for no word, 1/2 for twenty: float32 `[n]`."""
    words = np.fromiter((len(text.split()) for text in texts), np.int64, len(texts))
    return (1 / (1 + words / 20)).astype(np.float32)


def _share(counts: np.ndarray) -> np.ndarray:
    return (np.minimum(counts, _MANY) / _MANY).astype(np.float32)


class _Cues:
    """A pattern, and which letters a match can begin with.

    Each way to begin has a bit, and the table of each of its first letters the bits
    of those ways that have this letter there: a word may begin where the four have a
    bit in common (Shift-And: Baeza-Yates & Gonnet, "A New Approach to Text
    Searching", 1992).
    """

    def __init__(self, pattern: str, begins: Iterable[str]):
        # The mark before a match is part of it, so that one place is tried once.
        self._pattern = re.compile(rf"\W(?:{pattern})", re.IGNORECASE)
        self._tables = np.zeros((_READ, 256), np.uint64)
        for number, begin in enumerate(begins):
            for table, letter in itertools.zip_longest(self._tables, begin[:_READ]):
                letters = slice(None) if letter is None else ord(letter)
                table[letters] |= np.uint64(1 << number)

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """How often the pattern matches in each text, int64 `[n]`."""
        counts = np.zeros(len(texts), np.int64)
        for first in range(0, len(texts), _BLOCK):
            block = texts[first : first + _BLOCK]
            joined = "\n".join(["", *block, ""])
            before = np.cumsum([0, *(len(text) + 1 for text in block[:-1])])
            owners = np.searchsorted(before, self._places(joined), side="right") - 1
            counts[first : first + len(block)] = np.bincount(
                owners, minlength=len(block)
            )
        return counts

    def _places(self, text: str) -> list[int]:
        """Where the matches begin that do not overlap."""
        if any(letter in text for letter in _FOLDED):
            return [match.start() for match in self._pattern.finditer(text)]
        places, end = [], 0
        for place in self._likely(text):
            if place >= end and (match := self._pattern.match(text, place)):
                places.append(place)
                end = match.end()
        return places

    def _likely(self, text: str) -> list[int]:
        """Marks behind which a match can begin, and a few more."""
        # One byte a character: one that Latin-1 has not becomes a question mark.
        data = text.encode("latin-1", "replace").lower() + bytes(_READ)
        letters = np.frombuffer(data, np.uint8)
        marks = np.flatnonzero(~is_byte(letters[:-_READ], _IN_WORDS))
        may = self._tables[0][letters[marks + 1]]
        for place in range(1, _READ):
            may &= self._tables[place][letters[marks + 1 + place]]
        return marks[may > 0].tolist()


_STEP_CUES = _Cues(
    rf"(?:{'|'.join(_STEPS)})\b|(?<=\s)\d(?=[.)])",
    # A digit of another script is a question mark there.
    [*_STEPS, *map("".join, itertools.product("0123456789?", ".)"))],
)
_IMAGE_CUES = _Cues(rf"(?:{'|'.join(_IMAGES)})\b", _IMAGES)
