"""Write: the kept lines of all parts, in order; files are renamed when whole."""

import hashlib
import itertools
import pathlib
from typing import NamedTuple

from prefchat_jax.building.expand import row_id
from prefchat_jax.building.table import KEPT, Table
from prefchat_jax.files import write_aside


class Written(NamedTuple):
    """A file of the build."""

    path: str
    rows: int
    bytes: int
    sha256: str


def write_lines(
    table: Table, kind: str, path: pathlib.Path, *, with_ids: bool = False
) -> Written:
    """Writes the kept lines of a table.

    Args:
      table: the rows or the pairs.
      kind: `rows` or `pairs`.
      path: the file.
      with_ids: whether rows get the `id` by which their variants name them.
    """
    digest, rows, size = hashlib.sha256(), 0, 0
    state = table.state.open()
    with write_aside(path) as aside, aside.open("wb") as file:
        for part, first in zip(table.parts, table.edges[:-1].tolist(), strict=True):
            count = getattr(part, kind)
            keep = state[first : first + count] == KEPT
            if not keep.any():
                continue
            lines = list(itertools.compress(part.lines(kind), keep.tolist()))
            if with_ids:
                keys = part.columns()["pair_key"][keep, 0].tolist()
                lines = [
                    b'{"id":"%b",%b' % (row_id(key).encode(), line[1:])
                    for key, line in zip(keys, lines, strict=True)
                ]
            data = b"".join(lines)
            file.write(data)
            digest.update(data)
            rows, size = rows + len(lines), size + len(data)
    return Written(str(path), rows, size, digest.hexdigest())
