"""Duplicates: rows that say what an earlier row says, exactly or nearly.

Rows are compared by columns on disk (`fingerprints`). The keys are cut by their
value into partitions that fit into memory; equal keys share a partition, so each is
worked on alone, by any process, and the result does not depend on how many there
are. No set of all keys is ever held.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.building.parts import Column
from prefchat_jax.building.processes import Processes
from prefchat_jax.text.sketches import Sketches, jaccard

# Rows of a bucket, the first ones, that each row is compared with; held-out ones.
_REACH, _HELD_OUT_REACH = 16, 256
_VALUES = 2**20  # Values of sketches that are compared at once.
_BYTES_OF_KEY = 96  # Memory that sorting needs for a row.
_READ = 2**20  # Rows read at once.


class Partition(NamedTuple):
    """The keys whose value, modulo `count`, is `number`."""

    number: int
    count: int


class Pairs(NamedTuple):
    """Rows that say the same: `left[i]` comes before `right[i]`."""

    left: np.ndarray
    right: np.ndarray


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What rows are compared by, and which of them.

    Attributes:
      state: uint8 `[rows]`, 0 for rows that take part.
      before: rows below this number are the earlier ones of every pair, and the
        others are not compared among themselves; None compares all.
      same: near-duplicates must have the same entry here, if it is given.
    """

    state: Column
    before: int | None = None
    same: Column | None = None


def partitions(rows: int, memory: int, processes: int) -> list[Partition]:
    """Cuts keys so that all processes together stay within the memory."""
    count = -(-rows * _BYTES_OF_KEY * processes // memory)  # None without rows.
    return [Partition(number, count) for number in range(count)]


def exact_pairs(keys: Column, comparison: Comparison, partition: Partition) -> Pairs:
    """Pairs each row with the first one that has its key.

    Args:
      keys: uint64 `[rows, 2]`.
      comparison: which rows take part.
      partition: which keys.
    """
    column = keys.open()
    rows = _members(column[:, 0], comparison, partition)
    low, high = column[rows, 0], column[rows, 1]
    order = np.lexsort((high, low))  # Stable: equal keys stay in the order of rows.
    rows, low, high = rows[order], low[order], high[order]
    first = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))[: len(low)]
    firsts = rows[np.flatnonzero(first)][np.cumsum(first) - 1]
    is_pair = ~first & _crosses(firsts, rows, comparison.before)
    return Pairs(firsts[is_pair], rows[is_pair])


def near_pairs(
    bands: Column,
    sides: Sequence[tuple[Column, Column]],
    threshold: float,
    comparison: Comparison,
    band: int,
    partition: Partition,
) -> Pairs:
    """Pairs that share a band, and are as alike as the threshold on every side.

    Args:
      bands: uint64 `[rows, bands]`.
      sides: values and edges of the sketches of each side.
      threshold: least Jaccard index.
      comparison: which rows take part.
      band: which band is looked at.
      partition: which keys of the band.
    """
    column = bands.open()
    rows = _members(column[:, band], comparison, partition)
    keys = column[rows, band]
    order = np.argsort(keys, kind="stable")
    rows, keys = rows[order], keys[order]
    first = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    start = np.flatnonzero(first)[np.cumsum(first) - 1]
    place = np.arange(len(rows)) - start
    found = [Pairs(rows[:0], rows[:0])]
    sketches = [Sketches(values.open(), edges.open()) for values, edges in sides]
    reach = _REACH if comparison.before is None else _HELD_OUT_REACH
    later = np.arange(len(rows))
    for step in range(min(reach, int(place.max(initial=0)))):
        later = later[place[later] > step]
        pairs = Pairs(rows[start[later] + step], rows[later])
        found.append(_alike(sketches, threshold, comparison, pairs))
    return Pairs(*(np.concatenate(side) for side in zip(*found, strict=True)))


def keep_first(pairs: Pairs) -> Pairs:
    """The rows to drop, as `right`, and for each the kept row that it repeats.

    Goes through the rows in order: a row is dropped if it pairs with an earlier one
    that is kept, so a chain of small differences does not drop its far end.
    """
    order = np.lexsort((pairs.left, pairs.right))
    firsts: dict[int, int] = {}
    for left, right in zip(
        pairs.left[order].tolist(), pairs.right[order].tolist(), strict=True
    ):
        if right not in firsts and left not in firsts:
            firsts[right] = left
    dropped = np.array(list(firsts), np.int64)
    return Pairs(np.array(list(firsts.values()), np.int64), dropped)


def find_exact(
    keys: Column, comparison: Comparison, memory: int, processes: Processes
) -> Pairs:
    """`exact_pairs` over all keys."""
    cuts = partitions(keys.shape[0], memory, processes.count)
    calls = [(keys, comparison, partition) for partition in cuts]
    return _joined(processes.each(exact_pairs, calls))


def find_near(
    bands: Column,
    sides: Sequence[tuple[Column, Column]],
    threshold: float,
    comparison: Comparison,
    memory: int,
    processes: Processes,
) -> Pairs:
    """`near_pairs` over all bands, first come, first kept."""
    cuts = partitions(bands.shape[0], memory, processes.count)
    calls = [
        (bands, sides, threshold, comparison, band, partition)
        for band in (range(bands.shape[1]) if cuts else ())
        for partition in cuts
    ]
    return keep_first(_joined(processes.each(near_pairs, calls)))


def contradictions(
    keys: Column, order: Column, comparison: Comparison, partition: Partition
) -> int:
    """How many comparisons of two replies were judged both ways.

    Args:
      keys: uint64 `[pairs, 2]` of what was compared.
      order: bool `[pairs]` which of the two was chosen.
      comparison: which pairs take part.
      partition: which keys.
    """
    column = keys.open()
    rows = _members(column[:, 0], comparison, partition)
    low, high, chosen = column[rows, 0], column[rows, 1], order.open()[rows]
    by_key = np.lexsort((chosen, high, low))
    low, high, chosen = low[by_key], high[by_key], chosen[by_key]
    same = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    return int(np.sum(same & (chosen[1:] != chosen[:-1])))


def _members(keys: np.ndarray, comparison: Comparison, cut: Partition) -> np.ndarray:
    """Rows that take part and whose key is in the partition, ascending."""
    state, found = comparison.state.open(), [np.zeros(0, np.int64)]
    for start in range(0, len(keys), _READ):
        block = slice(start, start + _READ)
        takes_part = state[block] == 0
        if cut.count > 1:
            takes_part &= keys[block] % np.uint64(cut.count) == cut.number
        found.append(start + np.flatnonzero(takes_part))
    return np.concatenate(found)


def _crosses(left: np.ndarray, right: np.ndarray, before: int | None) -> np.ndarray:
    if before is None:
        return np.ones(len(left), bool)
    return (left < before) & (right >= before)


def _alike(
    sketches: Sequence[Sketches], threshold: float, comparison: Comparison, pairs: Pairs
) -> Pairs:
    """Those pairs that may be compared and are alike on every side."""
    keep = _crosses(pairs.left, pairs.right, comparison.before)
    if comparison.same:
        same = comparison.same.open()
        keep &= same[pairs.left] == same[pairs.right]
    for side in sketches:
        pairs = Pairs(pairs.left[keep], pairs.right[keep])
        keep = np.zeros(len(pairs.left), bool)
        for block in _blocks(side, pairs):
            likeness = jaccard(side, pairs.left[block], pairs.right[block])
            keep[block] = likeness >= threshold
    return Pairs(pairs.left[keep], pairs.right[keep])


def _blocks(side: Sketches, pairs: Pairs) -> Iterator[slice]:
    """Cuts pairs so that the values of a block fit into memory."""
    sizes = sum(side.edges[rows + 1] - side.edges[rows] for rows in pairs)
    block_of_pair = np.cumsum(sizes) // _VALUES
    edges = np.flatnonzero(np.diff(block_of_pair, prepend=-1))
    for start, end in itertools.pairwise([*edges.tolist(), len(pairs.left)]):
        yield slice(start, end)


def _joined(results: Iterator[tuple[int, Pairs]]) -> Pairs:
    """The pairs of all results, in the order of the calls."""
    found = [pairs for _, pairs in sorted(results, key=lambda item: item[0])]
    found.append(Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64)))
    return Pairs(*(np.concatenate(side) for side in zip(*found, strict=True)))
