"""N-grams of texts as hashed ids, with no Python per token.

Words (1-grams and 2-grams) and character n-grams are hashed with 32-bit integer
arithmetic over one buffer of bytes, so that every platform gives the same ids.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np

from prefchat_jax.text.hashing import PRIME, finish, token_hashes

_SEPARATOR = "\0"
_WORD_SALT = np.uint32(0x27D4EB2F)
_PAIR_SALT = np.uint32(0x165667B1)


def hash_ngrams(
    texts: Sequence[str], lengths: Sequence[int], bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """All n-grams as (text number, id) pairs, int `[k]` each, one per occurrence.

    Args:
      texts: `n` texts.
      lengths: of the character n-grams, in bytes.
      bits: ids are in `[0, 2**bits)`; those of words are in the upper half.
    """
    buffer = _byte_buffer(texts)
    ends = buffer == 0
    text_of_byte = np.cumsum(ends, dtype=np.int32) - ends
    shift = np.uint32(33 - bits)
    upper = 2 ** (bits - 1)
    pairs = [
        (numbers, (hashes >> shift).astype(np.int64) + offset)
        for offset, family in (
            (0, _char_ngrams(buffer, ends, text_of_byte, lengths)),
            (upper, _word_ngrams(buffer, text_of_byte)),
        )
        for numbers, hashes in family
    ]
    numbers, ids = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return numbers, ids


def _byte_buffer(texts: Sequence[str]) -> np.ndarray:
    """Lower-cased UTF-8 bytes of all texts, each ended by a zero byte.

    Spaces around each text let character n-grams see where it begins and ends.
    """
    between = f" {_SEPARATOR} "
    joined = between.join(texts)
    if joined.count(_SEPARATOR) != len(texts) - 1:
        joined = between.join(text.replace(_SEPARATOR, " ") for text in texts)
    if not joined.isascii():
        joined = unicodedata.normalize("NFC", joined)
    joined = f" {joined.lower()} {_SEPARATOR}"
    return np.frombuffer(joined.encode("utf-8", "replace"), np.uint8)


def _char_ngrams(buffer, ends, text_of_byte, lengths):
    """Rolling polynomial hashes of every byte window that stays in its text."""
    codes = buffer.astype(np.uint32) + np.uint32(1)
    rolling, crosses = codes * PRIME, ends
    for length in range(2, max(lengths, default=0) + 1):
        rolling = rolling[:-1] * PRIME + codes[length - 1 :]
        crosses = crosses[:-1] | ends[length - 1 :]
        if length in lengths:
            inside = np.flatnonzero(~crosses)
            yield text_of_byte[inside], finish(rolling[inside])


def _word_ngrams(buffer, text_of_byte):
    """Hashes of words, punctuation marks, and neighbouring pairs of them."""
    is_word = _IS_WORD[buffer]
    is_mark = ~is_word & (buffer > 32)
    is_start = is_mark | (is_word & ~np.concatenate(([False], is_word[:-1])))
    starts = np.flatnonzero(is_start)
    if not len(starts):
        return
    words = finish(token_hashes(buffer, starts, is_word | is_mark) ^ _WORD_SALT)
    texts = text_of_byte[starts]
    yield texts, words
    same = texts[1:] == texts[:-1]
    pairs = finish((words[:-1] * PRIME + words[1:]) ^ _PAIR_SALT)
    yield texts[1:][same], pairs[same]


def _word_bytes() -> np.ndarray:
    table = np.zeros(256, bool)
    table[list(b"abcdefghijklmnopqrstuvwxyz0123456789_'")] = True
    table[128:] = True  # Every byte of a non-ASCII character.
    return table


_IS_WORD = _word_bytes()
