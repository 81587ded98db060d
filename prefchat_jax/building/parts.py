"""Parts: what was read of each piece, on disk, so that a killed build goes on.

A part is a file of lines, a file of columns (one entry a line), and figures. The
figures of all parts of a piece are written last and at once: where they exist, the
piece is done.
"""

import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np

from prefchat_jax import __version__
from prefchat_jax.building.inputs import Piece
from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside

_LOCK = "lock"
FORMAT = 1  # Raise it when parts of an older version must not be taken up.

Columns = dict[str, np.ndarray]


class Part(NamedTuple):
    """One part on disk.

    Attributes:
      stem: path of its files without their endings.
      rows: how many examples it holds.
      pairs: how many preference pairs it holds.
      figures: what was counted while it was read.
    """

    stem: str
    rows: int
    pairs: int
    figures: dict[str, Any]

    def columns(self) -> Mapping[str, np.ndarray]:
        """The columns, read when they are asked for."""
        return np.load(f"{self.stem}.npz")

    def lines(self, kind: str) -> list[bytes]:
        """The lines of `rows` or `pairs`, with their ends."""
        return pathlib.Path(f"{self.stem}.{kind}").read_bytes().splitlines(True)


class Column(NamedTuple):
    """A column of all parts, in one file that processes can map."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    def open(self) -> np.ndarray:
        """The column, read-only; its pages come from disk as they are used."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", shape=self.shape)


class WorkFolder:
    """The folder beside the output that lives as long as a build.

    Args:
      output: the corpus to write.
      settings: what the parts depend on, as JSON; parts of others are deleted.
    """

    def __init__(self, output: str, settings: Any):
        self.path = pathlib.Path(f"{output}.build")
        wanted = msgspec.json.encode([FORMAT, __version__, settings])
        file = self.path / "settings.json"
        if self.path.exists() and not file.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not of a build: move it away.")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        if file.exists() and file.read_bytes() != wanted:
            for old in self.path.iterdir():
                if old.name != _LOCK:
                    old.unlink()
        with write_aside(file) as aside:
            aside.write_bytes(wanted)

    def __enter__(self) -> "WorkFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def finished(self, piece: Piece) -> list[Part] | None:
        """The parts of a piece that an earlier build has read, if it is unchanged."""
        try:
            stamp, parts = msgspec.json.decode(self._record(piece).read_bytes())
        except (OSError, msgspec.DecodeError, ValueError):
            return None
        found = [Part(str(self.path / part[0]), *part[1:]) for part in parts]
        whole = all(os.path.exists(f"{part.stem}.npz") for part in found)
        return found if whole and stamp == _stamp(piece) else None

    def finish(self, piece: Piece, parts: Sequence[Part]) -> None:
        """Says that a piece is done."""
        named = [part._replace(stem=pathlib.Path(part.stem).name) for part in parts]
        with write_aside(self._record(piece)) as aside:
            aside.write_bytes(msgspec.json.encode([_stamp(piece), named]))

    def remove(self) -> None:
        """The build is done: nothing will be taken up."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _locked(self) -> IO[bytes]:
        """A file that is locked until the process ends."""
        file = (self.path / _LOCK).open("wb")
        try:
            import fcntl
        except ImportError:  # Not on this system: then two builds are not told apart.
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise UserError(
                f"{self.path}: another build writes to this output. Wait for it, or "
                "name another."
            ) from error
        return file

    def _record(self, piece: Piece) -> pathlib.Path:
        return self.path / f"{piece.name}.json"


def _stamp(piece: Piece) -> list:
    """What must not have changed for the parts of a piece to be taken up."""
    return [*piece[1:-1], *piece.stamp]


class PartWriter:
    """Writes one part, block by block.

    Args:
      stem: path of its files without their endings.
    """

    def __init__(self, stem: str):
        self.stem = stem
        self._files = {kind: open(f"{stem}.{kind}", "wb") for kind in ("rows", "pairs")}  # noqa: SIM115
        self._blocks: list[Columns] = []
        self._counts = dict.fromkeys(self._files, 0)

    def add(self, kind: str, lines: Sequence[bytes], columns: Columns) -> None:
        """Appends lines of `rows` or `pairs`, and their columns."""
        if not lines:
            return
        self._files[kind].write(b"".join(lines))
        self._counts[kind] += len(lines)
        sizes = np.fromiter(map(len, lines), np.uint32, len(lines))
        self._blocks.append({f"{kind}_size": sizes, **columns})

    @property
    def size(self) -> int:
        """Bytes of lines so far."""
        return sum(file.tell() for file in self._files.values())

    def close(self, figures: dict[str, Any]) -> Part:
        """Writes the columns; the part is complete."""
        for file in self._files.values():
            file.close()
        names = {name for block in self._blocks for name in block}
        columns: dict[str, Any] = {
            name: np.concatenate([b[name] for b in self._blocks if name in b])
            for name in sorted(names)
        }
        np.savez(f"{self.stem}.npz", **columns)
        return Part(self.stem, self._counts["rows"], self._counts["pairs"], figures)
