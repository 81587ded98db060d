"""Table: all rows of all parts by number, their columns, and what became of each."""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from prefchat_jax.building.parts import Column, Part

# What became of a row. HELD_OUT rows match a row of a held-out file, a HOLDOUT.
KEPT, DUPLICATE, NEAR_DUPLICATE, HELD_OUT, NOT_DRAWN, HOLDOUT = range(6)
REASONS = {
    DUPLICATE: "duplicate",
    NEAR_DUPLICATE: "near_duplicate",
    HELD_OUT: "held_out",
    NOT_DRAWN: "not_drawn",
}

_BLOCK = 2**20
# Columns of numbers that each part gives for itself, and the table of its names.
_NAMED = {"source": "sources", "preference_source": "sources", "label": "labels"}


class Table:
    """The rows (or the preference pairs) of all parts.

    Args:
      folder: where the columns go.
      parts: in the order of the rows.
      kind: `rows` or `pairs`.
      names: of the columns.
      state: of the first rows, from an earlier table; the others are kept.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        parts: Sequence[Part],
        kind: str,
        names: Sequence[str],
        state: np.ndarray | None = None,
    ):
        self.parts = parts
        counts = [getattr(part, kind) for part in parts]
        self.edges = np.append(0, np.cumsum(counts, dtype=np.int64))
        self.names: dict[str, list[str]] = {"sources": [], "labels": []}
        self._numbers: dict[str, dict[str, int]] = {"sources": {}, "labels": {}}
        self.columns = {
            name: self._gather(folder / f"{kind}.{name}", name) for name in names
        }
        path = folder / f"{kind}.state"
        known = b"" if state is None else np.asarray(state).tobytes()
        path.write_bytes(known.ljust(len(self), b"\0"))
        self.state = Column(str(path), "|u1", (len(self),))

    def __len__(self) -> int:
        return int(self.edges[-1])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name].open()

    def mark(self, rows: np.ndarray | slice, state: int) -> None:
        """Says what became of rows."""
        if len(self):
            states = np.memmap(self.state.path, np.uint8, "r+")
            states[rows] = state
            states.flush()

    def count(self, state: int = KEPT, start: int = 0) -> int:
        """How many rows from `start` on are in a state."""
        return sum(
            int(np.sum(self.state.open()[block] == state))
            for block in self.blocks(start)
        )

    def count_by(
        self, name: str, state: int = KEPT, stop: int | None = None
    ) -> dict[str, int]:
        """How many rows before `stop` in a state have each name of a column."""
        names = self.names[_NAMED[name]]
        counts = np.zeros(len(names) + 1, np.int64)
        for block in self.blocks(0, stop):
            numbers = self[name][block][self.state.open()[block] == state]
            counts += np.bincount(numbers + np.int64(1), minlength=len(counts))
        pairs = zip(names, counts[1:].tolist(), strict=True)
        return {name: count for name, count in pairs if count}

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """Row numbers in pieces that fit into memory."""
        end = len(self) if stop is None else stop
        for begin in range(start, end, _BLOCK):
            yield slice(begin, min(begin + _BLOCK, end))

    def line(self, row: int) -> bytes:
        """What a row of examples says."""
        part = int(np.searchsorted(self.edges, row, "right")) - 1
        return self.parts[part].lines("rows")[row - int(self.edges[part])]

    def _gather(self, path: pathlib.Path, name: str) -> Column:
        """Lays one column of all parts end to end in a file."""
        length, like = 0, np.empty(0, np.uint8)
        is_edges = name.endswith("_edges")
        with path.open("wb") as file:
            for array in self._arrays(name.replace("_edges", "_counts")):
                if is_edges:
                    first = int(like[-1]) if len(like) else 0
                    array = first + np.cumsum(array, dtype=np.int64)
                    if not length:
                        array = np.append(0, array)
                file.write(np.ascontiguousarray(array).data)
                length += len(array)
                like = array if len(array) or not length else like
        return Column(str(path), like.dtype.str, (length, *like.shape[1:]))

    def _arrays(self, name: str) -> Iterator[np.ndarray]:
        for part in self.parts:
            columns = part.columns()
            if name not in columns:
                continue
            array = columns[name]
            if name in _NAMED:
                array = self._renumbered(array, part, _NAMED[name])
            yield array

    def _renumbered(self, array: np.ndarray, part: Part, table: str) -> np.ndarray:
        """The part's own numbers of sources or labels as those of all parts."""
        numbers, names = self._numbers[table], self.names[table]
        for name in part.figures[table]:
            if name not in numbers:
                numbers[name] = len(names)
                names.append(name)
        own = [numbers[name] for name in part.figures[table]]
        return np.array([-1, *own], np.int32)[array.astype(np.int64) + 1]
