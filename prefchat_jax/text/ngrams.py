"""N-grams of texts as hashed ids, with no Python per token.

Words (1-grams and 2-grams) and character n-grams are hashed with 32-bit integer
arithmetic over one buffer of bytes, so that every platform gives the same ids.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from prefchat_jax.text.hashing import PRIME, byte_table, finish, is_byte, token_hashes

_SEPARATOR = "\0"
_WORD_SALT = np.uint32(0x27D4EB2F)
_PAIR_SALT = np.uint32(0x165667B1)
_LETTERS = b"abcdefghijklmnopqrstuvwxyz0123456789_'"
_IS_WORD = byte_table(_LETTERS, range(128, 256))  # Non-ASCII characters, whole.
_IS_MARK = byte_table(set(range(33, 128)).difference(_LETTERS))


def ngram_keys(texts: Sequence[str], lengths: Sequence[int], bits: int) -> np.ndarray:
    """All n-grams as keys `text number << bits | id`, ascending, one per occurrence.

    Args:
      texts: `n` texts.
      lengths: of the character n-grams, in bytes.
      bits: ids are in `[0, 2**bits)`; those of words are in the upper half.

    Returns:
      `[k]` of `key_type`.
    """
    if not texts:
        return np.zeros(0, key_type(0, bits))
    buffer = _byte_buffer(texts)
    ends = np.flatnonzero(buffer == 0)
    numbers = np.arange(len(texts) + 1, dtype=key_type(len(texts), bits)) << bits
    text_of_byte = np.repeat(numbers[:-1], np.diff(ends, prepend=-1))
    shift, upper = np.uint32(33 - bits), np.uint32(1 << (bits - 1))
    parts = []
    for length, hashes in _char_ngrams(buffer, lengths):
        hashes >>= shift
        keys = text_of_byte | hashes
        # Windows that would leave their text count for none.
        outside = np.ravel(ends[:, None] - np.arange(length))
        keys[np.maximum(outside, 0)] = numbers[-1]
        parts.append(keys)
    starts, words, pairs = _word_ngrams(buffer)
    texts_of_words = text_of_byte[starts]
    parts.append(texts_of_words | (words >> shift) | upper)
    keys = texts_of_words[1:] | (pairs >> shift) | upper
    keys[texts_of_words[1:] != texts_of_words[:-1]] = numbers[-1]
    parts.append(keys)
    keys = np.concatenate(parts)
    keys.sort()
    return keys[: np.searchsorted(keys, numbers[-1])]


def key_type(num_texts: int, bits: int) -> type[np.unsignedinteger]:
    """The least unsigned integer that holds the keys of so many texts, and one more."""
    return np.uint32 if num_texts.bit_length() + bits <= 32 else np.uint64


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


def _char_ngrams(
    buffer: np.ndarray, lengths: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Rolling polynomial hashes, for each length, of the windows at every byte."""
    size, longest = len(buffer), max(lengths, default=0)
    codes = np.ones(size + longest, np.uint32)
    codes[:size] += buffer
    rolling = codes[:size] * PRIME
    for length in range(2, longest + 1):
        rolling *= PRIME
        rolling += codes[length - 1 : length - 1 + size]
        if length in lengths:
            yield length, finish(rolling)


def _word_ngrams(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where words and punctuation marks begin, their hashes, and those of pairs.

    A pair is two that follow each other, also where they are of two texts.
    """
    is_word, is_start = is_byte(buffer, _IS_WORD), is_byte(buffer, _IS_MARK)
    is_last = is_start.copy()
    # The buffer begins and ends with a byte that is in no word.
    is_start[1:] |= is_word[1:] > is_word[:-1]
    is_last[:-1] |= is_word[:-1] > is_word[1:]
    starts, last = np.flatnonzero(is_start), np.flatnonzero(is_last)
    words = finish(token_hashes(buffer, starts, last) ^ _WORD_SALT)
    return starts, words, finish((words[:-1] * PRIME + words[1:]) ^ _PAIR_SALT)
