"""Bags without padding: as bytes to store, and as one array to score."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.text.features import Bags


class PackedBags(NamedTuple):
    """Many bags, one after the other.

    Attributes:
      offsets: int64 `[n + 1]` where each bag begins.
      ids: unsigned `[total]` feature ids.
      weights: float16 `[total]`.
    """

    offsets: np.ndarray
    ids: np.ndarray
    weights: np.ndarray

    @classmethod
    def decode(cls, blobs: Sequence[bytes], bits: int) -> "PackedBags":
        """Reads what `encode` wrote."""
        pairs = np.frombuffer(b"".join(blobs), _pair_type(bits))
        lengths = np.fromiter(map(len, blobs), np.int64, len(blobs))
        offsets = np.append(0, np.cumsum(lengths // pairs.itemsize))
        return cls(offsets, pairs["id"].copy(), pairs["weight"].copy())

    def products(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Inner products of some bags with a dense query.

        Args:
          rows: integer `[k]` which bags.
          query: float32 `[2**bits]`.

        Returns:
          float32 `[k]`.
        """
        places, owners = self._places(rows)
        values = query[self.ids[places]] * self.weights[places]
        return np.bincount(owners, values, len(rows)).astype(np.float32)

    def take(self, rows: np.ndarray) -> "PackedBags":
        """Some of the bags, in this order."""
        places, owners = self._places(rows)
        lengths = np.bincount(owners, minlength=len(rows))
        offsets = np.append(0, np.cumsum(lengths))
        return PackedBags(offsets, self.ids[places], self.weights[places])

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the features of some bags are, and whose they are."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        owners = np.repeat(np.arange(len(rows)), lengths)
        ends = np.cumsum(lengths)
        places = np.arange(len(owners)) + np.repeat(starts - ends + lengths, lengths)
        return places, owners


def encode(bags: Bags, bits: int) -> list[bytes]:
    """Each bag as bytes: pairs of an id and a half-precision weight.

    Args:
      bags: padded bags.
      bits: log2 of the number of feature ids; up to 16 an id takes two bytes.
    """
    pairs = np.zeros(bags.ids.shape, _pair_type(bits))
    pairs["id"], pairs["weight"] = bags.ids, bags.weights
    lengths = np.count_nonzero(bags.weights > 0, axis=1)
    # The heaviest features come first, so that the padding is at the end.
    return [row[:length].tobytes() for row, length in zip(pairs, lengths, strict=True)]


def dense(ids: np.ndarray, weights: np.ndarray, bits: int) -> np.ndarray:
    """One bag `[features]` as float32 `[2**bits]`."""
    return np.bincount(ids, weights, 2**bits).astype(np.float32)


def _pair_type(bits: int) -> np.dtype:
    return np.dtype([("id", "<u2" if bits <= 16 else "<u4"), ("weight", "<f2")])
