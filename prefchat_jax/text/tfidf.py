"""From the keys of a block of texts to weights, and to padded rows: arrays only.

A key is `text number << bits | feature id`; ascending keys are sorted by text, then by
id, and the upper half of a text's ids are its words.
"""

import numpy as np

# A weight and an id share 64 bits with the number of a text of a block.
MAX_BITS = 24
MAX_TEXTS = 512
_SIGNLESS = np.uint32(0x7FFFFFFF)


def distinct(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ones of ascending keys, and where each begins, and the end."""
    starts = np.flatnonzero(_is_new(keys))
    return keys[starts], np.append(starts, len(keys))


def sublinear(counts: np.ndarray) -> np.ndarray:
    """Term frequencies `1 + log(count)`, float64; most counts are 1."""
    frequencies = np.ones(len(counts))
    several = np.flatnonzero(counts > 1)
    frequencies[several] += np.log(counts[several])
    return frequencies


def sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different keys, ascending, and the sums of their values, in order of place.

    A sort of integers that hold a key and a place is several times faster than one
    that returns places.
    """
    place_bits = len(keys).bit_length()
    placed = keys.astype(np.uint64) << np.uint64(place_bits)
    placed |= np.arange(len(keys), dtype=np.uint64)
    placed.sort()
    keys = placed >> np.uint64(place_bits)
    places = (placed & np.uint64((1 << place_bits) - 1)).astype(np.int64)
    is_new = _is_new(keys)
    return keys[is_new], np.bincount(np.cumsum(is_new) - 1, values[places])


def weigh(
    keys: np.ndarray,
    frequencies: np.ndarray,
    idf: np.ndarray,
    bits: int,
    word_share: float,
) -> np.ndarray:
    """Weights, float64 `[k]`: frequency by idf, each half of a text of its own norm.

    Args:
      keys: different and ascending.
      frequencies: `[k]` term frequencies.
      idf: `[2**bits]`.
      bits: of an id.
      word_share: the part of words in the squared norm of a text.
    """
    half = (keys >> (bits - 1)).astype(np.int64)
    weights = frequencies * idf[ids_of(keys, bits)]
    norms = np.sqrt(np.bincount(half, weights * weights))
    shares = np.sqrt([1 - word_share, word_share])[np.arange(len(norms)) & 1]
    scales = np.divide(shares, norms, out=np.zeros_like(norms), where=norms > 0)
    return weights * scales[half]


def ids_of(keys: np.ndarray, bits: int) -> np.ndarray:
    """The ids of keys, in their type."""
    return keys & keys.dtype.type((1 << bits) - 1)


def bounds(keys: np.ndarray, num_texts: int, bits: int) -> np.ndarray:
    """Where the keys of each text begin, and the end: `[num_texts + 1]`."""
    first = np.arange(num_texts + 1, dtype=keys.dtype) << bits
    return np.searchsorted(keys, first)


def heaviest_first(
    keys: np.ndarray, weights: np.ndarray, bits: int, ids: np.ndarray, laid: np.ndarray
) -> None:
    """Lays texts out as rows, heaviest features first, then by id.

    One sort of integers orders all: the bits of floats that are not negative are in
    the order of the floats.

    Args:
      keys: different and ascending, of at most `MAX_TEXTS` texts.
      weights: float32 `[k]`, none negative.
      bits: of an id, at most `MAX_BITS`.
      ids: int32 `[texts, width]`, zeros to write to; lighter features are cut.
      laid: float32 `[texts, width]`, the same for weights.
    """
    lengths = np.diff(bounds(keys, len(ids), bits))
    order = np.repeat(np.arange(len(ids), dtype=np.uint64) << np.uint64(31), lengths)
    order |= _SIGNLESS - weights.view(np.uint32)
    order <<= np.uint64(bits)
    order |= ids_of(keys, bits)
    order.sort()
    width = ids.shape[1]
    if lengths.max(initial=0) > width:
        starts = np.cumsum(lengths) - lengths
        order = order[np.arange(len(order)) - np.repeat(starts, lengths) < width]
    used = np.arange(width) < lengths[:, None]
    ids[used] = ids_of(order, bits)
    order >>= np.uint64(bits)
    laid[used] = (_SIGNLESS - (order.astype(np.uint32) & _SIGNLESS)).view(np.float32)


def _is_new(keys: np.ndarray) -> np.ndarray:
    """Whether each of ascending keys differs from the one before it."""
    is_new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    return is_new
