"""Hashes of words in one byte buffer, so that no Python runs for a word."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

PRIME = np.uint32(0x9E3779B1)
MIX = np.uint32(0x85EBCA6B)


def byte_buffer(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lower-case UTF-8 of all texts, each ended by a zero byte, and their starts.

    Returns:
      uint8 `[bytes]` and int64 `[texts]`.
    """
    joined = "\0".join(texts)
    if joined.count("\0") != len(texts) - 1:
        joined = "\0".join(text.replace("\0", "\x01") for text in texts)
    data = f"{joined}\0".lower().encode("utf-8", "replace") if texts else b""
    buffer = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(buffer == 0)
    return buffer, np.append(0, ends[:-1] + 1)[: len(texts)]


def finish(hashes: np.ndarray) -> np.ndarray:
    """Spreads the entropy of 32-bit hashes to their high bits."""
    hashes = hashes ^ (hashes >> np.uint32(15))
    hashes *= MIX
    hashes ^= hashes >> np.uint32(13)
    hashes *= PRIME
    hashes ^= hashes >> np.uint32(16)
    return hashes


def token_hashes(
    buffer: np.ndarray, starts: np.ndarray, last: np.ndarray
) -> np.ndarray:
    """One uint32 hash for each token, whatever surrounds it.

    Args:
      buffer: uint8 bytes.
      starts: `[tokens]` the first byte of each token, ascending.
      last: `[tokens]` its last byte.
    """
    if not len(starts):
        return np.zeros(0, np.uint32)
    begin = starts[0]
    lengths = np.diff(starts, append=len(buffer))
    codes = np.arange(begin, len(buffer), dtype=np.uint32)
    codes -= np.repeat(starts.astype(np.uint32), lengths)  # The place in a token.
    codes *= MIX
    codes += (buffer[begin:].astype(np.uint32) + np.uint32(1)) * PRIME
    sums = np.zeros(len(codes) + 1, np.uint32)
    np.cumsum(finish(codes), dtype=np.uint32, out=sums[1:])
    return sums[last + 1 - begin] - sums[starts - begin]


def word_hashes(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of lower-case UTF-8 begin, and their uint64 hashes.

    Letters and digits make words; in scripts that set no spaces between words,
    such as Chinese, each character is one. Marks are no words. A hash is made of
    the first and the last sixteen bytes of a word, and of its length.
    """
    is_word, highest = is_byte(buffer, _IS_WORD), buffer.max(initial=0)
    if highest >= _MARK_LEADS[0][0]:
        _clear_marks(buffer, is_word)
    bounded = np.zeros(len(buffer) + 2, bool)
    bounded[1:-1] = is_word
    edges = np.flatnonzero(bounded[1:] != bounded[:-1])
    starts, ends = edges[::2], edges[1::2]
    if highest >= _ALONE_FROM:
        starts, ends = _part_alone(buffer, is_word, starts, ends)
    padded = np.zeros(len(buffer) + 16, np.uint8)
    padded[8:-8] = buffer
    eights = np.ndarray(len(buffer) + 9, "<u8", padded, strides=(1,))
    lengths = ends - starts
    first = eights[starts + 8] & _LOW_BYTES[np.minimum(lengths, 8)]
    last = eights[ends] & _HIGH_BYTES[np.minimum(lengths, 8)]
    hashes = first * _ODD ^ last ^ lengths.astype(np.uint64) << np.uint64(56)
    long = np.flatnonzero(lengths > 16)
    inner = eights[starts[long] + 16] * _ODD ^ eights[ends[long] - 8]
    hashes[long] ^= mix(inner)
    return starts, mix(hashes)


def _clear_marks(buffer: np.ndarray, is_word: np.ndarray) -> None:
    """Takes the bytes of marks out of the words."""
    for lead, length in _MARK_LEADS:
        marks = np.flatnonzero(buffer == lead)
        for after in range(1, length):
            is_word[marks + after] = False


def _part_alone(
    buffer: np.ndarray, is_word: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Parts words at the characters that are words by themselves."""
    leads = np.flatnonzero(is_byte(buffer, _IS_ALONE))
    cuts = np.append(leads, leads + 3 + (buffer[leads] >= 0xF0))
    cuts = cuts[is_word[cuts] & is_word[cuts - 1] & (cuts > 0)]
    return _merged(starts, cuts), _merged(ends, cuts)


def _merged(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """All places of two ascending lists, each once.

    `np.union1d` hashes since NumPy 2.3, which takes 60 times as long for a million.
    """
    if not len(right):
        return left
    both = np.sort(np.concatenate([left, right]))
    return both[np.append(True, both[1:] != both[:-1])]


def mix(keys: np.ndarray) -> np.ndarray:
    """Spreads 64-bit keys (the finisher of SplitMix64, Steele et al., 2014)."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def is_byte(buffer: np.ndarray, table: bytes) -> np.ndarray:
    """bool `[bytes]`: the entry of each byte in a table of 256 zeros and ones."""
    return np.frombuffer(buffer.tobytes().translate(table), bool).copy()


def byte_table(*values: Iterable[int]) -> bytes:
    """A table for `is_byte` with ones at the values."""
    table = bytearray(256)
    for value in itertools.chain(*values):
        table[value] = 1
    return bytes(table)


_ODD = np.uint64(0x9E3779B97F4A7C15)
# Masks of the first, and of the last, 0 to 8 bytes of a word in little-endian order.
_LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_HIGH_BYTES = ~_LOW_BYTES[::-1]
# Bytes that begin a character of three or four bytes, which is a word by itself.
_IS_ALONE = byte_table(range(0xE0, 0xE2), range(0xE3, 0xF5))
_ALONE_FROM = 0xE0
# U+0080 to U+00BF and U+2000 to U+2FFF are marks: no word byte leads them, and
# their other bytes must not count either.
_MARK_LEADS = ((0xC2, 2), (0xE2, 3))
_IS_WORD = byte_table(
    b"abcdefghijklmnopqrstuvwxyz0123456789_",
    range(0x80, 0xC2),
    range(0xC3, 0xE2),
    range(0xE3, 0xF5),
)
