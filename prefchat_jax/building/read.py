"""Read: every piece of every input to parts, unless an earlier build has read it."""

import concurrent.futures
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from prefchat_jax.building.describe import ScanSettings
from prefchat_jax.building.inputs import Piece, digest_of, pieces_of, source_names
from prefchat_jax.building.parts import Part, WorkFolder
from prefchat_jax.building.processes import Processes
from prefchat_jax.building.scan import scan_piece
from prefchat_jax.building.tally import Tally
from prefchat_jax.errors import UserError


class Progress(Protocol):
    """Hears how far a build is."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""

    def step(self, name: str, total: int | None = None) -> None:
        """A step begins; `total` bytes, if it has a size."""

    def advance(self, done: int, rows: int) -> None:
        """Bytes and rows are through."""


class Silent:
    """Shows nothing."""

    def notice(self, text: str) -> None:
        """Nothing."""

    def step(self, name: str, total: int | None = None) -> None:
        """Nothing."""

    def advance(self, done: int, rows: int) -> None:
        """Nothing."""


class InputFile(NamedTuple):
    """An input, as the report has it."""

    path: str
    bytes: int
    lines: int
    blake2b: str


class Corpora(NamedTuple):
    """All that was read.

    Attributes:
      parts: in the order of the inputs; those of held-out files come first.
      places: file of each part, and the lines of the file before its piece.
      holdout_rows: how many rows the held-out files have.
      files: the inputs, and the held-out files.
      tally: counts of the inputs.
    """

    parts: list[Part]
    places: list[tuple[str, int]]
    holdout_rows: int
    files: list[InputFile]
    holdout_files: list[InputFile]
    tally: Tally


def read(
    inputs: Sequence[str],
    holdout: Sequence[str],
    folder: WorkFolder,
    settings: ScanSettings,
    processes: Processes,
    progress: Progress,
) -> Corpora:
    """Scans the inputs and the held-out files.

    Raises:
      UserError: a file cannot be read.
    """
    whole = settings.max_rows is not None
    paths = [*holdout, *inputs]
    pieces = [
        piece
        for number, (path, source) in enumerate(
            zip(paths, source_names(paths), strict=True)
        )
        for piece in pieces_of(
            number,
            path,
            source,
            whole=whole and number >= len(holdout),
            is_holdout=number < len(holdout),
        )
    ]
    with concurrent.futures.ThreadPoolExecutor(1) as hasher:  # While others scan.
        digests = [hasher.submit(digest_of, path) for path in paths]
        try:
            parts = _scan(pieces, folder, settings, processes, progress)
        except BaseException:
            hasher.shutdown(wait=False, cancel_futures=True)
            raise
    lines, files, tally = [0] * len(paths), [], Tally()
    places: list[tuple[str, int]] = []
    for piece, of_piece in zip(pieces, parts, strict=True):
        number = piece.number[0]
        for part in of_piece:
            places.append((piece.path, lines[number]))
            if number >= len(holdout):
                tally.add(_tally(part), piece.path, lines[number])
        lines[number] += sum(part.figures["lines"] for part in of_piece)
    for number, path in enumerate(paths):
        size = pathlib.Path(path).stat().st_size
        digest = digests[number].result()
        files.append(InputFile(path, size, lines[number], digest))
    split = sum(piece.is_holdout for piece in pieces)
    held = [part for of_piece in parts[:split] for part in of_piece]
    if holdout and not sum(part.rows for part in held):
        raise UserError(f"{', '.join(holdout)}: no row to hold out. Check the file.")
    return Corpora(
        [part for of_piece in parts for part in of_piece],
        places,
        sum(part.rows for part in held),
        files[len(holdout) :],
        files[: len(holdout)],
        tally,
    )


def _scan(
    pieces: Sequence[Piece],
    folder: WorkFolder,
    settings: ScanSettings,
    processes: Processes,
    progress: Progress,
) -> list[list[Part]]:
    """The parts of each piece."""
    sizes = [
        min(piece.end or piece.stamp[0], piece.stamp[0]) - piece.start
        for piece in pieces
    ]
    progress.step("reading", sum(sizes))
    found = [folder.finished(piece) for piece in pieces]
    todo = [number for number, parts in enumerate(found) if parts is None]
    if found and len(todo) < len(pieces):
        done = len(pieces) - len(todo)
        progress.notice(
            f"goes on where it was stopped: {done} of {len(pieces)} pieces are read"
        )
    for number, parts in enumerate(found):
        if parts is not None:
            progress.advance(sizes[number], sum(part.rows for part in parts))
    calls = [(pieces[number], str(folder.path), settings) for number in todo]
    for call, parts in processes.each(scan_piece, calls):
        number = todo[call]
        folder.finish(pieces[number], parts)
        found[number] = parts
        progress.advance(sizes[number], sum(part.rows for part in parts))
    return [parts or [] for parts in found]


def _tally(part: Part) -> Tally:
    return Tally(**part.figures)
