"""Named arrays in one file that is mapped into memory, not read.

A header in JSON, then the arrays as they lie in memory. Processes that open the
same file share its pages, and only what is touched is loaded.
"""

import math
import mmap
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

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
            # One map for all: the file may be replaced at any time.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if mapped[: len(_MAGIC)] != _MAGIC:
            return None
        begin = len(_MAGIC) + 8
        length = int.from_bytes(mapped[len(_MAGIC) : begin], "little")
        header = msgspec.json.decode(mapped[begin : begin + length], type=_Header)
        data = -(-(begin + length) // _ALIGN) * _ALIGN
        views = {
            name: _view(mapped, place, data) for name, place in header.arrays.items()
        }
    except (OSError, ValueError, TypeError, OverflowError, msgspec.MsgspecError):
        return None
    return views, header.meta


def _view(mapped: mmap.mmap, place: _Place, data: int) -> np.ndarray:
    count = math.prod(place.shape)
    if place.start < 0 or count < 0:
        raise ValueError("An array begins before the file.")
    if count == 0:  # There may be nothing behind the header.
        return np.zeros(place.shape, place.dtype)
    flat = np.frombuffer(mapped, place.dtype, count, data + place.start)
    return flat.reshape(place.shape)
