"""Inputs: files and folders to pieces of lines that processes can share."""

import collections
import gzip
import hashlib
import io
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prefchat_jax.errors import UserError

LONGEST_LINE = 2**24
PIECE = 2**23  # Bytes of one piece; fixed, so that a build can be taken up again.

_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")


class Piece(NamedTuple):
    """Lines of one file that begin in a range of its bytes.

    Attributes:
      number: place of the file among all, and of the piece in the file.
      is_holdout: whether its rows are only compared with.
      path: the file.
      source: what its rows are called, if they do not say.
      start: first byte.
      end: byte after the last, or None for a file that is read from its start.
      stamp: size and time of the file, to see whether it has changed.
    """

    number: tuple[int, int]
    is_holdout: bool
    path: str
    source: str
    start: int
    end: int | None
    stamp: tuple[int, int]

    @property
    def name(self) -> str:
        """A file name that sorts as the pieces do."""
        return f"{self.number[0]:05d}-{self.number[1]:06d}"


def find_inputs(
    paths: Sequence[str | os.PathLike],
    *,
    outputs: Sequence[pathlib.Path],
    skip_missing: bool | None = None,
) -> tuple[list[str], list[str]]:
    """The files that paths name, each once, and the paths that were left out.

    Args:
      paths: files, and folders that are searched for JSONL files, in order.
      outputs: files that a folder may hold but that are no inputs.
      skip_missing: whether a path may be missing; None for paths that must exist.

    Raises:
      UserError: a path is missing, is an output or no file, or a folder has no
        JSONL file.
    """
    written = {path.resolve() for path in outputs}
    files: dict[pathlib.Path, str] = {}
    left_out = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.name.endswith(_SUFFIXES))
            inside = [p for p in found if p.is_file() and p.resolve() not in written]
            left_out += [str(p) for p in found if p not in inside]
            if not inside:
                raise UserError(f"{path}: the folder holds no .jsonl or .jsonl.gz.")
        elif path.is_file():
            if path.resolve() in written:
                raise UserError(f"{path} is read, and the output: name another.")
            inside = [path]
        elif path.exists():
            raise UserError(f"{path} is no regular file: save it first.")
        elif skip_missing:
            left_out.append(str(path))
            continue
        else:
            hint = "" if skip_missing is None else ", or give --skip_missing_inputs"
            raise UserError(f"{path}: no such file. Check the path{hint}.")
        for file in inside:
            files.setdefault(file.resolve(), str(file))
    if not files:
        raise UserError("None of the inputs exists: there is nothing to build from.")
    return list(files.values()), left_out


def source_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths, without suffix, that tell them apart.

    No folder of this machine gets into the corpus unless it has to.
    """
    parts = [pathlib.PurePath(path).parts for path in paths]
    names: list[str] = [""] * len(paths)
    for length in range(1, 1 + max(map(len, parts), default=0)):
        stems = [_stem(own[-length:]) for own in parts]
        counts = collections.Counter(stems)
        for number, stem in enumerate(stems):
            if not names[number] and counts[stem] == 1:
                names[number] = stem
    return [name or path for name, path in zip(names, paths, strict=True)]


def pieces_of(
    number: int, path: str, source: str, *, whole: bool, is_holdout: bool
) -> list[Piece]:
    """Cuts a file into pieces; a `.gz` file, or a `whole` one, is one piece."""
    stat = os.stat(path)
    stamp = stat.st_size, stat.st_mtime_ns
    if whole or path.endswith(".gz"):
        return [Piece((number, 0), is_holdout, path, source, 0, None, stamp)]
    starts = range(0, max(stat.st_size, 1), PIECE)
    return [
        Piece((number, i), is_holdout, path, source, start, start + PIECE, stamp)
        for i, start in enumerate(starts)
    ]


def read_lines(piece: Piece) -> Iterator[bytes | None]:
    """The lines of a piece, stripped; None for one that is too long to be a row.

    Raises:
      UserError: the file cannot be read.
    """
    opener = gzip.open if piece.path.endswith(".gz") else open
    place, end = piece.start, float("inf") if piece.end is None else piece.end
    try:
        with opener(piece.path, "rb") as file:
            if place:  # A line that began before belongs to the piece before.
                file.seek(place - 1)
                place += _skip_line(file, end - place) - 1
            while place < end and (line := file.readline(LONGEST_LINE)):
                place += len(line)
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    place += _skip_line(file, end - place)
                    yield None
                else:
                    yield line.strip().removeprefix(b"\xef\xbb\xbf")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{piece.path} is a damaged gzip file: {error}. Mend it or leave it out."
        ) from error
    except OSError as error:
        raise UserError(f"{piece.path}: {error.strerror}. Check the file.") from error


def new_digest() -> hashlib.blake2b:
    """The digest that `b2sum -l 256` prints; faster than SHA-256 on most machines."""
    return hashlib.blake2b(digest_size=32)


def digest_of(path: str) -> str:
    """The digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, new_digest).hexdigest()


def _stem(parts: Sequence[str]) -> str:
    name = "/".join(parts)
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    return name


def _skip_line(file: io.BufferedReader | gzip.GzipFile, enough: float) -> int:
    """Reads to the end of a line, or as much as is enough; returns the bytes read."""
    read = 0
    while read <= enough and (part := file.readline(LONGEST_LINE)):
        read += len(part)
        if part.endswith(b"\n"):
            break
    return read
