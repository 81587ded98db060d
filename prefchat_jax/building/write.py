"""Write: the kept lines of all parts, in order; files are renamed when whole."""

import concurrent.futures
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from prefchat_jax.building.expand import row_id
from prefchat_jax.building.inputs import new_digest
from prefchat_jax.building.parts import Part, WorkFolder
from prefchat_jax.building.table import KEPT, Table


class Written(NamedTuple):
    """A file of the build."""

    path: str
    rows: int
    bytes: int
    blake2b: str


def write_lines(
    table: Table,
    kind: str,
    path: pathlib.Path,
    folder: WorkFolder,
    *,
    with_ids: bool = False,
) -> Written:
    """Writes the kept lines of a table, in the work folder, and renames the file.

    Args:
      table: the rows or the pairs.
      kind: `rows` or `pairs`.
      path: the file.
      folder: on the same disk; what a killed build leaves goes with it.
      with_ids: whether rows get the `id` by which their variants name them.
    """
    digest, rows, size = new_digest(), 0, 0
    state = table.state.open()
    aside = folder.path / f"{kind}.written"
    with (
        aside.open("wb") as file,
        concurrent.futures.ThreadPoolExecutor(1) as hasher,  # While others are read.
    ):
        hashed = hasher.submit(digest.update, b"")
        for part, first in zip(table.parts, table.edges[:-1].tolist(), strict=True):
            keep = state[first : first + getattr(part, kind)] == KEPT
            if not keep.any():
                continue
            data = _with_ids(part, keep) if with_ids else _runs(part, kind, keep)
            hashed.result()  # One part at a time: memory stays bounded.
            hashed = hasher.submit(digest.update, data)
            file.write(data)
            rows, size = rows + int(keep.sum()), size + len(data)
    os.replace(aside, path)
    return Written(str(path), rows, size, digest.hexdigest())


def _runs(part: Part, kind: str, keep: np.ndarray) -> bytes:
    """The kept lines of a part: each run of neighbours is copied at once."""
    data = memoryview(pathlib.Path(f"{part.stem}.{kind}").read_bytes())
    ends = np.cumsum(part.columns()[f"{kind}_size"], dtype=np.int64)
    edges = np.append(0, ends)[np.flatnonzero(np.diff(keep, prepend=0, append=0))]
    return b"".join(
        data[start:end]
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    )


def _with_ids(part: Part, keep: np.ndarray) -> bytes:
    """The same with an `id` as the first field of each row."""
    keys = part.columns()["pair_key"][keep, 0].tolist()
    return b"".join(_named(keys, itertools.compress(part.lines("rows"), keep.tolist())))


def _named(keys: list[int], lines: Iterator[bytes]) -> Iterator[bytes]:
    for key, line in zip(keys, lines, strict=True):
        yield b'{"id":"%b",%b' % (row_id(key).encode(), line[1:])
