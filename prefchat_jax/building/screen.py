"""A screen before the filters: which rows of a block need a closer look.

Most rows are plain. For those NumPy proves on the bytes of a whole block that no
filter but `refusal` can object, and that normalisation changes nothing; only the
others go through them one by one.
"""

import numpy as np

from prefchat_jax.building.filters import WINDOW, Limits
from prefchat_jax.building.fingerprints import TEXTS
from prefchat_jax.text.hashing import byte_table, is_byte
from prefchat_jax.text.sketches import TURN, owners

_SPACE = ord(" ")
_SLOTS = 512  # For the first two letters of a word.
_LIKE_LENGTHS = 3  # Characters by which a question and its echo may differ.
# Four bytes of each phrase that the filters look for: rare ones, since a row that
# has them gets a closer look. (`[deleted]` has a sign.)
_PROBES = np.frombuffer(b"n aiuageg dautofipsuts rsubsvasc", "<u4")


def untidy(buffer: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Texts that may not be in normal form, or hold a sign that a filter looks for.

    Args:
      buffer: uint8 lower-case bytes; each text ends with a zero byte.
      starts: `[texts]` where each text begins.

    Returns:
      bool `[texts]`. False is a proof, True is a suspicion.
    """
    is_space = buffer == _SPACE
    blanks = is_space[1:] & (is_space | (buffer == 0))[:-1]
    signs = np.flatnonzero(is_byte(buffer, _IS_SIGN))
    return _texts_at(np.append(signs, np.flatnonzero(blanks)), starts)


def objectionable(buffer: np.ndarray, starts: np.ndarray, limits: Limits) -> np.ndarray:
    """Rows to which a filter may object, if their texts are not `untidy`.

    Args:
      buffer: bytes of history, question, reply, verdict, history, ...
      starts: `[TEXTS * n]` where each begins.
      limits: thresholds of the filters.

    Returns:
      bool `[n]`. False is a proof, True is a suspicion.
    """
    found = np.append(_runs(buffer, limits.max_char_run + 1), _phrases(buffer))
    lengths = np.diff(starts, append=len(buffer)) - 1
    asked, replied = lengths[1::TEXTS], lengths[2::TEXTS]
    return (
        _texts_at(found, starts).reshape(-1, TEXTS).any(axis=1)
        | (asked < limits.min_user_chars)
        | (asked > limits.max_user_chars)
        | (replied < limits.min_assistant_chars)
        | (replied > limits.max_assistant_chars)
        | (np.abs(asked - replied) <= _LIKE_LENGTHS)
        | _few_words(buffer, starts, limits)
    )


def _texts_at(places: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """bool `[texts]`: those in which one of the places lies."""
    marked = np.zeros(len(starts), bool)
    marked[np.searchsorted(starts, places, "right") - 1] = True
    return marked


def _runs(buffer: np.ndarray, length: int) -> np.ndarray:
    """Where a byte begins to stand `length` times in a row."""
    equal, covered = buffer[1:] == buffer[:-1], 1
    while covered < length - 1 and len(equal):
        shift = min(covered, length - 1 - covered)
        equal = equal[shift:] & equal[:-shift]
        covered += shift
    return np.flatnonzero(equal)


def _phrases(buffer: np.ndarray) -> np.ndarray:
    """Where a probe begins: whole words of four bytes, from each of four offsets."""
    data, places = buffer.tobytes(), []
    for offset in range(4):
        shifted = data[offset : offset + (len(data) - offset) // 4 * 4]
        words = np.frombuffer(shifted, "<u4")
        hit = words == _PROBES[0]
        for probe in _PROBES[1:]:
            hit |= words == probe
        places.append(4 * np.flatnonzero(hit) + offset)
    return np.concatenate(places)


def _few_words(buffer: np.ndarray, starts: np.ndarray, limits: Limits) -> np.ndarray:
    """Replies of few words, of many, or whose words begin in too few ways.

    Words that differ in their first two letters differ, so the number of those
    beginnings, some of which share a slot, is at most that of distinct words.
    """
    gaps = np.flatnonzero((buffer == _SPACE) | (buffer == 0))
    begins = np.append(0, gaps[:-1] + 1)[: len(buffer)]
    text = owners(begins, starts)
    second = buffer[np.minimum(begins + 1, len(buffer) - 1)]
    letters = (buffer[begins].astype(np.intp) << 4 ^ second) & (_SLOTS - 1)
    seen = np.zeros((len(starts), _SLOTS), bool)
    seen.reshape(-1)[text * _SLOTS + letters] = True
    words = np.bincount(text, minlength=len(starts))[2::TEXTS]
    beginnings = np.count_nonzero(seen[2::TEXTS], axis=1)
    return (
        (words < limits.min_assistant_words)
        | (words > WINDOW)
        | (beginnings <= (1 - limits.max_repeat_ratio) * words)
    )


# Line breaks too: they may need tidying.
_IS_SIGN = byte_table({*range(1, 32)} - {TURN[0]}, range(127, 256), b"<&[")
