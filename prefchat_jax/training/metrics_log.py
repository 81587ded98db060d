"""The log of training: metrics.jsonl, and TensorBoard beside it where asked. No JAX.

A line is of a chunk of training steps, or, with `"summary": true`, of an epoch.
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside
from prefchat_jax.training.config import ReportTo
from prefchat_jax.training.run_directory import RunDirectory

Metrics = dict[str, float]


class MetricsLog(contextlib.AbstractContextManager):
    """Appends to metrics.jsonl, which starts with the epochs that are kept."""

    def __init__(
        self, run: RunDirectory, kept: Sequence[Metrics], report_to: ReportTo = "none"
    ):
        """Args: the run, its epochs that stay, and where figures go besides."""
        rows = [{"summary": True} | row for row in kept]
        with write_aside(run.metrics) as aside:
            aside.write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in rows))
        self._path = run.metrics
        self._board = _Board(run, rows) if report_to == "tensorboard" else None

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()

    def write(self, row: dict[str, Any]) -> None:
        """Adds one line."""
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")
        if self._board:
            self._board.write(row)


def read_epochs(run: RunDirectory) -> list[Metrics]:
    """The epochs that metrics.jsonl tells of, in their order.

    Raises:
      UserError: there is no such file.
    """
    try:
        lines = run.metrics.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{run.metrics}: {error.strerror}. Train again.") from error
    epochs = []
    for line in lines:
        # A process that was killed may have left half a line at the end.
        with contextlib.suppress(msgspec.DecodeError):
            row = msgspec.json.decode(line)
            if isinstance(row, dict) and row.pop("summary", False):
                epochs.append(row)
    return epochs


class _Board:
    """The same figures as scalars of TensorBoard.

    Chunks are `steps/NAME` by step, epochs `epochs/NAME` by epoch, so that training
    and validation stand on one axis.
    """

    def __init__(self, run: RunDirectory, kept: Sequence[dict[str, Any]]):
        # Not its SummaryWriter: that writes some time later, in a thread.
        from tensorboardX.event_file_writer import EventsWriter

        folder = run.path / "tensorboard"
        folder.mkdir(exist_ok=True)
        # A run that goes on would show its epochs twice: they are written anew.
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = EventsWriter(str(folder / "events"))
        for row in kept:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        at, step = ("epochs", "epoch") if row.get("summary") else ("steps", "step")
        made: Any = event_pb2  # Its classes are made as it is imported.
        event = made.Event(wall_time=time.time(), step=row[step])
        for name, value in row.items():
            if name not in ("summary", "epoch", "step"):
                event.summary.MergeFrom(scalar(f"{at}/{name}", value))
        self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
