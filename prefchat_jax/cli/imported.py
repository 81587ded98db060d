"""`--weights X.pth`: a checkpoint of the PyTorch reference, imported on the fly."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import TextIO

from prefchat_jax.errors import UserError
from prefchat_jax.training.config import FinetuneConfig, is_checkpoint
from prefchat_jax.training.run_directory import RunDirectory


@contextlib.contextmanager
def imported_chat(weights: str, *, meta: str | None, has_store: bool) -> Iterator[str]:
    """A run of a checkpoint, which lasts as long as the block: its directory.

    Args:
      weights: the checkpoint.
      meta: its metadata.
      has_store: whether there are replies beside those of the metadata.

    Raises:
      UserError: the checkpoint cannot be imported, or there is nothing to reply.
    """
    from prefchat_jax.compat.importing import import_run

    with tempfile.TemporaryDirectory(prefix="prefchat-") as folder:
        run = pathlib.Path(folder) / "run"
        made = import_run(weights, run, meta=meta)
        if not made.replies and not has_store:
            raise UserError(
                f"--weights {weights}: there is nothing to reply: give --meta "
                "with buckets, or store replies with `prefchat import_torch "
                f"{weights} --output RUN --from_db FILE`."
            )
        _tell(made.notes, sys.stderr)  # A program may read the replies.
        yield str(run)


@contextlib.contextmanager
def imported_start(config: FinetuneConfig) -> Iterator[FinetuneConfig]:
    """The flags with a run as --weights: a checkpoint becomes one in --output.

    It stays there, for --resume; without a training beside it, it goes.

    Raises:
      UserError: the checkpoint cannot be imported, or --meta would replace a file.
    """
    if config.weights is None or not is_checkpoint(config.weights):
        yield config
        return
    if config.meta and os.path.exists(config.meta) and not config.resume:
        raise UserError(
            f"--meta {config.meta} is there already, and finetune writes it: the "
            f"metadata of {config.weights} is --weights_meta."
        )
    from prefchat_jax.compat.importing import import_run

    run = RunDirectory(pathlib.Path(config.output).absolute())
    imported = run.path / "imported"
    if not imported.exists():
        made = import_run(config.weights, imported, meta=config.weights_meta)
        _tell(made.notes, sys.stdout)
    try:
        yield dataclasses.replace(config, weights=str(imported), weights_meta=None)
    finally:
        if not (run.path / "config.json").exists():
            shutil.rmtree(imported, ignore_errors=True)
            with contextlib.suppress(OSError):
                run.path.rmdir()


def _tell(notes: list[str], target: TextIO) -> None:
    for note in notes:
        print(f"note: {note}", file=target, flush=True)  # noqa: T201
