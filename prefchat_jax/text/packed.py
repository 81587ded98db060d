"""Bags without padding: to store, to score, and on the way to training rows."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.text.bags import Bags

_HEAVIEST = 64  # Features of a text that is only compared with others.
_ALIGNMENT = 64  # Bytes: what XLA asks of an array.


class PackedBags(NamedTuple):
    """Many bags, one after the other.

    Attributes:
      offsets: int64 `[n + 1]` where each bag begins.
      ids: unsigned `[total]` feature ids.
      weights: float16 or float32 `[total]`.
    """

    offsets: np.ndarray
    ids: np.ndarray
    weights: np.ndarray

    @classmethod
    def pack(cls, bags: Bags) -> "PackedBags":
        """What weighs something of padded bags, in their order."""
        used = bags.weights > 0
        offsets = np.append(0, np.cumsum(np.count_nonzero(used, axis=1)))
        return cls(offsets, bags.ids[used], bags.weights[used])

    @classmethod
    def decode(cls, blobs: Sequence[bytes], bits: int) -> "PackedBags":
        """Reads what `encode` wrote."""
        pairs = np.frombuffer(b"".join(blobs), pair_type(bits))
        lengths = np.fromiter(map(len, blobs), np.int64, len(blobs))
        offsets = np.append(0, np.cumsum(lengths // pairs.itemsize))
        return cls(offsets, pairs["id"].copy(), pairs["weight"].copy())

    @classmethod
    def concatenate(cls, parts: Sequence["PackedBags"]) -> "PackedBags":
        """The bags of all parts, in order."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            np.append(0, np.cumsum(lengths)),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    def products(self, query: np.ndarray) -> np.ndarray:
        """Inner products, float32 `[n]`, of all bags with a dense `[2**bits]`."""
        values = query.take(self.ids)
        values *= self.weights
        sums = np.zeros(len(self.offsets) - 1, np.float32)
        full = np.flatnonzero(self.offsets[1:] > self.offsets[:-1])
        if len(full):  # An empty bag between two others would take from the second.
            sums[full] = np.add.reduceat(values, self.offsets[full])
        return sums

    def mean(self, size: int) -> np.ndarray:
        """The sum of all bags over its length, float32 `[size]`."""
        total = np.bincount(self.ids, self.weights, size).astype(np.float32)
        return total / max(float(np.linalg.norm(total)), 1e-12)

    def dense(self, row: int, bits: int) -> np.ndarray:
        """One bag as float32 `[2**bits]`."""
        span = slice(*self.offsets[row : row + 2])
        out = np.zeros(2**bits, np.float32)
        out[self.ids[span]] = self.weights[span]
        return out

    def lay_out(self, ids: np.ndarray, weights: np.ndarray) -> None:
        """Writes the bags as rows of zeros `[n, width]`, each cut to the width."""
        starts, lengths = self.offsets[:-1], np.diff(self.offsets)
        width = ids.shape[1]
        used = np.arange(width) < lengths[:, None]
        kept = np.arange(len(self.ids)) - np.repeat(starts, lengths) < width
        ids[used], weights[used] = self.ids[kept], self.weights[kept]

    def take(self, rows: np.ndarray) -> "PackedBags":
        """Some of the bags, in this order, with float32 weights."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = np.append(0, np.cumsum(lengths))
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        weights = self.weights.take(places).astype(np.float32)
        return PackedBags(offsets, self.ids.take(places), weights)


def trim(blocks: Iterable[Bags], most: int, quantile: float = 0.98) -> Bags:
    """Padded bags without what weighs nothing, cut where few rows go on.

    The longest few rows lose their lightest features; training then gathers no more
    columns than the given share of the rows uses, rounded up to 16 so that similar
    corpora compile once. Blocks are packed as they come: padded to full length, those
    of a large corpus would take more memory than all that training needs.

    Args:
      blocks: the bags, some rows at a time, heaviest features first.
      most: columns at most.
      quantile: the share of the rows that lose nothing.
    """
    parts = [PackedBags.pack(block) for block in blocks]
    lengths = np.concatenate([np.zeros(0, int), *(np.diff(p.offsets) for p in parts)])
    needed = int(np.quantile(lengths, quantile)) if len(lengths) else 1
    width = min(-(-max(needed, 1) // 16) * 16, most)
    shape = len(lengths), width
    bags = Bags(_aligned_zeros(shape, np.int32), _aligned_zeros(shape, np.float32))
    start = 0
    for part in parts:
        rows = slice(start, start := start + len(part.offsets) - 1)
        part.lay_out(bags.ids[rows], bags.weights[rows])
    return bags


def _aligned_zeros(shape: tuple[int, int], dtype: type) -> np.ndarray:
    """Zeros that JAX uses on a CPU as they are: it copies what XLA's loads cannot."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def sketch(bags: Bags) -> Bags:
    """The heaviest features of each bag, to unit norm: enough to compare texts.

    With all of them, up to 192, one in a thousand more of BANKING77's questions gets
    the right reply, for twice the room.
    """
    ids, weights = bags.ids[:, :_HEAVIEST], bags.weights[:, :_HEAVIEST]
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    return Bags(ids, weights / np.maximum(norms, np.float32(1e-12)))


def encode(bags: Bags, bits: int) -> list[bytes]:
    """Each bag as bytes: pairs of an id and a half-precision weight.

    Args:
      bags: padded bags.
      bits: log2 of the number of feature ids; up to 16 an id takes two bytes.
    """
    pairs = np.zeros(bags.ids.shape, pair_type(bits))
    pairs["id"], pairs["weight"] = bags.ids, bags.weights
    lengths = np.count_nonzero(bags.weights > 0, axis=1)
    # The heaviest features come first, so that the padding is at the end. Slices of
    # bytes take a third of the time of slices of arrays.
    data = pairs.tobytes()
    starts = np.arange(len(pairs)) * pairs[:1].nbytes
    ends = starts + lengths * pairs.itemsize
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    return [data[start:end] for start, end in spans]


def dense(ids: np.ndarray, weights: np.ndarray, bits: int) -> np.ndarray:
    """One bag `[features]` as float32 `[2**bits]`."""
    used = weights > 0  # Padding has id 0, which may also be a feature.
    out = np.zeros(2**bits, np.float32)
    out[ids[used]] = weights[used]
    return out


def pair_type(bits: int) -> np.dtype:
    """How one feature of a stored bag is written."""
    return np.dtype([("id", "<u2" if bits <= 16 else "<u4"), ("weight", "<f2")])
