"""Named arrays in one file that is mapped into memory, not read.

A header in JSON, then the arrays as they lie in memory. Processes that open the
same file share its pages, and only what is touched is loaded.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from prefchat_jax.files import write_aside

_MAGIC = b"prefchat arrays 1\n"
_ALIGN = 64


class _Place(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    start: int


class _Header(msgspec.Struct):
    meta: dict[str, str]
    arrays: dict[str, _Place]


def write_arrays(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, str]
) -> None:
    """Writes arrays and a few strings, all or nothing."""
    places, end = {}, 0
    for name, array in arrays.items():
        start = -(-end // _ALIGN) * _ALIGN
        places[name] = _Place(array.dtype.str, array.shape, start)
        end = start + array.nbytes
    header = msgspec.json.encode(_Header(dict(meta), places))
    begin = _MAGIC + len(header).to_bytes(8, "little") + header
    data = -(-len(begin) // _ALIGN) * _ALIGN
    with write_aside(path) as aside, aside.open("wb") as file:
        file.write(begin)
        for name, array in arrays.items():
            file.seek(data + places[name].start)
            file.write(np.ascontiguousarray(array).data)
        file.truncate(max(file.tell(), data + end))


def open_arrays(
    path: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, str]] | None:
    """Maps the arrays of a file, and reads its strings; None if it is damaged."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            length = int.from_bytes(file.read(8), "little")
            header = msgspec.json.decode(file.read(length), type=_Header)
        data = -(-(len(_MAGIC) + 8 + length) // _ALIGN) * _ALIGN
        return {
            name: _map(path, place, data) for name, place in header.arrays.items()
        }, header.meta
    except (OSError, ValueError, msgspec.DecodeError):
        return None


def _map(path: pathlib.Path, place: _Place, data: int) -> Any:
    if 0 in place.shape:  # Nothing can be mapped.
        return np.zeros(place.shape, place.dtype)
    start = data + place.start
    # A plain view: the checks of `memmap` cost more than small look-ups.
    return np.asarray(np.memmap(path, place.dtype, "r", start, place.shape))
