"""Export: the best parameters of a run as one file that other programs read."""

import os
import pathlib
from typing import Any, Literal

import msgspec
import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.files import check_outputs, write_aside
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.snapshot import load_snapshot, write_npz

ExportFormat = Literal["safetensors", "npz"]

EXPORT_FORMAT = 1  # Raise it when a reader of the last one would go wrong.


def export(
    weights: str | os.PathLike,
    output: str | os.PathLike,
    format: ExportFormat,
) -> tuple[int, int]:
    """Writes the parameters, the featurizer's arrays and what describes them.

    Tensors are named by their dotted path: `classifier.head.base.kernel`,
    `scorer.table` in a run with a response scorer, `featurizer.idf`,
    `featurizer.rows`. The metadata are the JSON object of `describe`: text under
    the name `metadata`, as the only metadata entry of a safetensors file (whose
    own order of several entries changes) or as an array of an npz file.

    Args:
      weights: run directory.
      output: file to write, whole or not at all.
      format: what to write.

    Returns:
      The number of tensors, and of numbers in them.

    Raises:
      UserError: the run cannot be read, the file cannot be written or would lie
        among the run's own, or safetensors is not installed.
    """
    run, path = RunDirectory.open(weights), pathlib.Path(output)
    check_outputs({"output": output}, run=run.path)
    save = _load_safetensors() if format == "safetensors" else None
    tensors, metadata = describe(run)
    if save is None:
        write_npz(path, tensors, metadata)
    else:
        text = msgspec.json.encode(metadata).decode()
        with write_aside(path) as aside:
            save(tensors, aside, metadata={"metadata": text})
    return len(tensors), sum(array.size for array in tensors.values())


def describe(run: RunDirectory) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors by dotted path; format, step, checkpoint hash, settings, labels."""
    config, featurizer = run.config(), run.featurizer()
    snapshot = load_snapshot(run)
    arrays = {
        f"featurizer.{name}": value
        for name, value in vars(featurizer).items()
        if isinstance(value, np.ndarray)
    }
    # Some readers take the bytes as they lie: rows first, in one piece.
    tensors = {
        name: np.ascontiguousarray(array).reshape(array.shape)
        for name, array in (snapshot.tensors | arrays).items()
    }
    return tensors, {
        "format": EXPORT_FORMAT,
        "version": config["version"],
        "step": snapshot.step,
        "checkpoint": snapshot.checkpoint,
        "fingerprint": snapshot.fingerprint,
        "model": config["model"],
        "scorer": config.get("scorer"),
        "features": config["features"],
        "hash_version": config["hash_version"],
        "labels": run.buckets(),
    }


def _load_safetensors() -> Any:
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError(
            "--format safetensors needs the package safetensors: install "
            "prefchat-jax[export], or use --format npz."
        ) from error
    return save_file
