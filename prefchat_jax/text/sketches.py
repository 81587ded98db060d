"""Sketches: sets of hashed word pairs, MinHash, and how alike two texts are.

The likeness of two texts is the Jaccard index of their sets of neighbouring words:
what they share over what either has. Texts that are alike fall into the same band
of MinHash values with a known probability (Broder, 1997,
https://doi.org/10.1109/SEQUEN.1997.666900; Leskovec, Rajaraman & Ullman, Mining of
Massive Datasets, chapter 3), so that few pairs need a look.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.text.hashing import mix, word_hashes

TURN = b"\x1e"  # Between the turns of one text.

_PLACE = np.uint64(0xD1B54A32D192ED03)
_BEFORE = np.uint64(0xAEF17502108EF2D9)
_NOTHING = np.uint32(0xFFFFFFFF)
_MISSED = 0.01  # Share of the pairs exactly at the threshold that no band finds.


class Sketches(NamedTuple):
    """One set of word pairs a text, laid end to end.

    Attributes:
      values: uint32 `[total]` hashes; those of a text are distinct and ascending.
      edges: int64 `[texts + 1]` where those of each text begin and end.
    """

    values: np.ndarray
    edges: np.ndarray

    @classmethod
    def of_counts(cls, values: np.ndarray, counts: np.ndarray) -> "Sketches":
        """Sketches from how many values belong to each text."""
        return cls(values, np.append(0, np.cumsum(counts, dtype=np.int64)))

    @property
    def counts(self) -> np.ndarray:
        """int64 `[texts]` how many values belong to each text."""
        return np.diff(self.edges)


class Banding(NamedTuple):
    """How MinHash values are gathered: `bands` bands of `rows` values."""

    bands: int
    rows: int

    @classmethod
    def at(cls, threshold: float) -> "Banding":
        """Bands that find 99 % of the pairs at the threshold, more above it.

        The number of rows is even, so that one half may come from a context and
        the other from its reply.

        Args:
          threshold: a Jaccard index in (0, 1].
        """
        if threshold >= 1:
            return cls(1, 2)
        rows = 2 * round(math.log(0.4) / math.log(threshold) / 2)
        rows = min(max(rows, 2), 6)
        bands = math.log(_MISSED) / math.log1p(-(threshold**rows))
        return cls(math.ceil(bands), rows)


def sketch(buffer: np.ndarray, starts: np.ndarray) -> Sketches:
    """The word pairs of every text, by their place in a dialogue.

    A word makes a pair with the word before it, the first one with the beginning
    of its turn. The same pair in another turn, counted from the last, is another
    one, so that two moments of one dialogue are not alike.

    Args:
      buffer: uint8 lower-case UTF-8; a text ends with a zero byte, and its turns
        are parted by `TURN`.
      starts: `[texts]` where each text begins.
    """
    where, words = word_hashes(buffer)
    text = owners(where, starts)
    turns = np.append(np.flatnonzero(buffer == TURN[0]), len(buffer))
    turn = owners(where, np.append(-1, turns))
    last = np.searchsorted(turns, np.append(starts[1:], len(buffer)) - 1)
    place = (last[text] - turn).astype(np.uint64)
    before = np.append(np.zeros(1, np.uint64), words[:-1])
    before[1:][(text[1:] != text[:-1]) | (turn[1:] != turn[:-1])] = 0
    pairs = mix(before * _BEFORE ^ words ^ place * _PLACE) >> np.uint64(32)
    keys = np.sort((text.astype(np.uint64) << np.uint64(32)) | pairs)
    distinct = np.ones(len(keys), bool)
    distinct[1:] = keys[1:] != keys[:-1]
    keys = keys[distinct]
    counts = np.bincount(
        (keys >> np.uint64(32)).astype(np.int64), minlength=len(starts)
    )
    return Sketches.of_counts(keys.astype(np.uint32), counts)


def owners(places: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """int64: for each place the number of the last start at or before it.

    Both ascend; faster than searching for each place, as starts are fewer.
    """
    counts = np.diff(np.searchsorted(places, starts), append=len(places))
    return np.repeat(np.arange(len(starts)), counts)


def minhash(sketches: Sketches, size: int) -> np.ndarray:
    """MinHash values, uint32 `[size, texts]`; a text without words has the largest."""
    out = np.full((size, len(sketches.edges) - 1), _NOTHING)
    some = sketches.counts > 0
    starts = sketches.edges[:-1][some]
    if not len(starts):
        return out
    rng = np.random.default_rng(0x5EED)
    factors = rng.integers(0, 2**31, size, np.uint32) * np.uint32(2) + np.uint32(1)
    shifts = rng.integers(0, 2**32, size, np.uint32)
    hashed = np.empty_like(sketches.values)
    for row, factor, shift in zip(out, factors, shifts, strict=True):
        np.multiply(sketches.values, factor, out=hashed)
        np.add(hashed, shift, out=hashed)
        row[some] = np.minimum.reduceat(hashed, starts)
    return out


def band_keys(values: Sequence[np.ndarray], banding: Banding) -> np.ndarray:
    """uint64 `[texts, bands]`: equal where all values of a band are equal.

    Args:
      values: MinHash values `[bands * part, texts]` of the parts of a text, each
        giving `part` values to every band.
      banding: bands, and the values of all parts in one.
    """
    bands = banding.bands
    keys = np.zeros((values[0].shape[1], bands), np.uint64)
    for part in values:
        for row in part.reshape(-1, bands, part.shape[1]):
            keys = mix(keys ^ row.T.astype(np.uint64))
    return keys


def jaccard(sketches: Sketches, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Jaccard indices, float64 `[pairs]`; two texts without words are alike.

    Args:
      sketches: of all texts.
      left: `[pairs]` text numbers.
      right: `[pairs]` text numbers.
    """
    pair = np.arange(len(left))
    keys = np.concatenate([_members(sketches, texts, pair) for texts in (left, right)])
    keys.sort()
    twice = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(32)
    common = np.bincount(twice.astype(np.int64), minlength=len(left))
    sizes = [sketches.edges[t + 1] - sketches.edges[t] for t in (left, right)]
    either = sizes[0] + sizes[1] - common
    return np.where(either > 0, common / np.maximum(either, 1), 1.0)


def _members(sketches: Sketches, texts: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """The values of some texts, each under the number of its pair."""
    starts = sketches.edges[texts]
    counts = sketches.edges[texts + 1] - starts
    first = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    values = sketches.values[first + np.arange(counts.sum())]
    return (np.repeat(pair, counts).astype(np.uint64) << np.uint64(32)) | values
