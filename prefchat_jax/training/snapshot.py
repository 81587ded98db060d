"""Snapshots: the best parameters of a run as NumPy arrays. JAX only on a miss.

Reading an orbax step takes JAX and seconds. A snapshot lies beside the step as
`inference.npz` and loads in milliseconds. The step stays the source of truth: the
snapshot carries its number and a hash of its bytes and of the features', and counts
only while both still match, so it can be deleted, or left out of a copy, at any time.
"""

import contextlib
import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import msgspec
import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside
from prefchat_jax.training.parameters import fingerprint, flatten, nest
from prefchat_jax.training.run_directory import RunDirectory

CACHE = "inference.npz"
SNAPSHOT_FORMAT = 1  # Raise it when what is written means something else.

_METADATA = "metadata"
_CHECKPOINTABLES = ("best", "scorer")  # Not `last`: it is large and not served.


class Snapshot(NamedTuple):
    """What inference needs of one orbax step.

    Attributes:
      step: the number of the step.
      checkpoint: hash of the files that hold the parameters and the features.
      fingerprint: what binds a store to them; kept, since it takes as long to
        compute as all else.
      tensors: arrays by dotted path, `classifier.` or `scorer.` in front.
    """

    step: int
    checkpoint: str
    fingerprint: str
    tensors: dict[str, np.ndarray]

    @property
    def metadata(self) -> dict[str, Any]:
        """All but the tensors, and the format of the cache, as JSON values."""
        identity = _identity(self.step, self.checkpoint)
        return identity | {"fingerprint": self.fingerprint}

    @property
    def classifier(self) -> dict[Any, Any]:
        """The parameters of the bucket classifier as a tree."""
        return self._tree("classifier.")

    @property
    def scorer(self) -> dict[Any, Any] | None:
        """The parameters of the response scorer as a tree; None for a run without."""
        return self._tree("scorer.") or None

    def _tree(self, prefix: str) -> dict[Any, Any]:
        return nest(
            {
                name.removeprefix(prefix): array
                for name, array in self.tensors.items()
                if name.startswith(prefix)
            }
        )


def load_snapshot(run: RunDirectory) -> Snapshot:
    """The parameters of a run: from the cache where it is fresh, else from orbax.

    What was read from orbax is cached where the run directory can be written.

    Raises:
      UserError: the run is not finished, or its step is missing or damaged.
    """
    step = run.config().get("last_epoch")
    if step is None:
        raise UserError(
            f"{run.path} is not finished: go on with `prefchat finetune --resume`."
        )
    checkpoint = hash_files(run, step)
    cached = _read(run.path / CACHE, step, checkpoint)
    if cached is not None:
        return cached
    trees = _from_orbax(run)
    bound = fingerprint(trees["classifier"], run.featurizer(), trees.get("scorer"))
    snapshot = Snapshot(step, checkpoint, bound, flatten(trees))
    with contextlib.suppress(OSError):  # A run directory may be read-only.
        write_npz(run.path / CACHE, snapshot.tensors, snapshot.metadata)
    return snapshot


def hash_files(run: RunDirectory, step: int) -> str:
    """Hashes, names included, the files of the served parameters and the features."""
    folders = [run.checkpoints / str(step) / name for name in _CHECKPOINTABLES]
    files = [file for folder in folders for file in sorted(folder.rglob("*"))]
    digest = hashlib.blake2b(digest_size=16)
    for path in (run.path / "features.npz", *files):
        if path.is_file():
            content = path.read_bytes()
            name = path.relative_to(run.path).as_posix()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def write_npz(
    path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, Any]
) -> None:
    """Writes arrays and their metadata, all or nothing; same arrays, same bytes."""
    text = np.array(msgspec.json.encode(metadata).decode())
    arrays: dict[str, Any] = {_METADATA: text, **tensors}
    with write_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(
    path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the metadata of `write_npz`; raises what NumPy raises."""
    with open(path, "rb") as file, np.load(file) as arrays:
        tensors = {name: arrays[name] for name in arrays.files}
    return tensors, msgspec.json.decode(str(tensors.pop(_METADATA)))


def _identity(step: int, checkpoint: str) -> dict[str, Any]:
    return {"format": SNAPSHOT_FORMAT, "step": step, "checkpoint": checkpoint}


def _read(path: pathlib.Path, step: int, checkpoint: str) -> Snapshot | None:
    """The cache, or None where it is missing, stale or damaged."""
    try:
        tensors, metadata = read_npz(path)
        bound = metadata.pop("fingerprint")
    except Exception:  # zipfile and NumPy raise many types; all mean: make it anew.
        return None
    if metadata != _identity(step, checkpoint):
        return None
    return Snapshot(step, checkpoint, bound, tensors)


def _from_orbax(run: RunDirectory) -> dict[str, Any]:
    from prefchat_jax.training import checkpoints

    trees = {"classifier": checkpoints.load_model(run)[1]}
    scorer = checkpoints.load_scorer(run)
    return trees if scorer is None else trees | {"scorer": scorer[1]}
