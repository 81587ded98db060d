"""The run directory: the one artefact that ties training to chat.

```
config.json        settings, shapes, versions, the data's fingerprint
labels.json        the buckets, in the order of the logits
features.npz       document frequencies and embedding rows of the features
checkpoints/       orbax steps, the best and the last one
inference.npz      cache of the best one for NumPy; may be deleted
responses.db       stored replies (SQLite), bound to the best step
responses.index    what chat derives from them, mapped into memory; may be deleted
report.md          what a stranger should know of the run
report.html        curves and figures of it, from `prefchat report`
warm_start.json    what of the run of --weights was taken over, if there was one
imported/          that run, if --weights was a checkpoint of PyTorch
feedback.jsonl     preference pairs of users, from `prefchat serve`
metrics.jsonl      one line for every chunk of training steps and every epoch
tensorboard/       the same for TensorBoard, with --report_to
```
"""

import contextlib
import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from prefchat_jax.datasets.records import corpus_paths
from prefchat_jax.errors import UserError
from prefchat_jax.files import check_outputs, write_aside
from prefchat_jax.text.features import HASH_VERSION, Featurizer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.kinds import load_part

FORMAT = 2  # Raise it when an older package could not read what is written.


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Reads and writes the small files of a run. Raises `UserError`."""

    path: pathlib.Path

    @classmethod
    def create(cls, path: str | os.PathLike) -> "RunDirectory":
        """Names a new run directory; refuses one that holds a run.

        Nothing is made before `write_json` writes the first file.
        """
        run = cls(pathlib.Path(path).absolute())
        if run.path.exists() and not run.path.is_dir():
            raise UserError(f"--output {path} is a file: name a folder for the run.")
        if run.has_checkpoint():
            raise UserError(
                f"{path} already holds a run: choose another --output, or add "
                "--resume to go on with it."
            )
        return run

    @classmethod
    def open(cls, path: str | os.PathLike) -> "RunDirectory":
        """Opens an existing run and checks that this version can read it."""
        run = cls(pathlib.Path(path).absolute())
        if not (run.path / "config.json").exists():
            raise UserError(
                f"{path} is not a run directory (no config.json): give the "
                "--output of `prefchat finetune`, or of `prefchat import_torch` for a "
                "file of PyTorch."
            )
        written = run.config()
        if not isinstance(written, dict) or "format" not in written:
            raise UserError(f"{path} is not a run directory of prefchat-jax.")
        if written["format"] > FORMAT:
            raise UserError(
                f"{path} was written by prefchat-jax {written.get('version')}, which "
                "is newer than this one: upgrade prefchat-jax to read it."
            )
        if written["hash_version"] != HASH_VERSION:
            raise UserError(
                f"{path} uses text features of another version: train it again."
            )
        return run

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other trainings out of the directory, and makes it.

        The lock is on the directory, so that it leaves no file, and it goes with the
        process. Where there are no such locks, as on Windows, nobody is kept out.

        Raises:
          UserError: another process, or another thread, trains it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                folder = os.open(self.path, os.O_RDONLY)
                opened.callback(os.close, folder)
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"--output {self.path}: another finetune writes this run: "
                        "wait for it, or choose another --output."
                    ) from None
            yield

    def has_checkpoint(self) -> bool:
        """Whether an epoch was ever saved: only then is there something to lose."""
        return self.last_step() is not None

    def last_step(self) -> int | None:
        """The newest step that was saved, whether or not the run is finished."""
        names = [path.name for path in self.checkpoints.glob("*")]
        return max((int(name) for name in names if name.isdigit()), default=None)

    @property
    def checkpoints(self) -> pathlib.Path:
        """Where orbax keeps its steps."""
        return self.path / "checkpoints"

    @property
    def profile(self) -> pathlib.Path:
        """Traces of training."""
        return self.path / "profile"

    @property
    def store(self) -> pathlib.Path:
        """The database of stored replies."""
        return self.path / "responses.db"

    @property
    def feedback(self) -> pathlib.Path:
        """The preference pairs of users, if the run was ever served."""
        return self.path / "feedback.jsonl"

    @property
    def metrics(self) -> pathlib.Path:
        """The log of training."""
        return self.path / "metrics.jsonl"

    def config(self) -> dict[str, Any]:
        """Everything in config.json."""
        return self.read_json("config.json")

    def read_json(self, name: str) -> Any:
        """Decodes one JSON file of the run."""
        return read_json(self.path / name)

    def buckets(self) -> list[dict[str, Any]]:
        """The `label` and the `name` of each bucket, in the order of the logits."""
        found = self.read_json("labels.json")
        shaped = isinstance(found, list) and all(
            isinstance(bucket, dict) and {"label", "name"} <= bucket.keys()
            for bucket in found
        )
        count = self.config()["model"]["num_buckets"]
        if not shaped or len(found) != count:
            raise UserError(
                f"{self.path / 'labels.json'} is damaged: it does not name {count} "
                "buckets. Train again."
            )
        return found

    def bucket_names(self) -> list[str]:
        """A readable name for each bucket."""
        return [str(bucket["name"]) for bucket in self.buckets()]

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file of the run, and makes its directory."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Writes one text file of the run."""
        with write_aside(self.path / name) as aside:
            aside.write_text(text, encoding="utf-8")

    def write_features(self, featurizer: Featurizer) -> None:
        """Stores the document frequencies."""
        with write_aside(self.path / "features.npz") as aside, aside.open("wb") as file:
            arrays = {"idf": featurizer.idf, "rows": featurizer.rows}
            if featurizer.scorer_rows is not None:
                arrays["scorer_rows"] = featurizer.scorer_rows
            np.savez_compressed(file, **arrays)

    def featurizer(self) -> Featurizer:
        """Rebuilds the featurizer that the run was trained with."""
        config = self.config()
        make = load_part(config["model"], "featurizer")
        path = self.path / "features.npz"
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return make.restore(config["features"], arrays, config["model"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}): train again.") from error


def start_run(config: FinetuneConfig) -> RunDirectory:
    """The directory that a training is to write; it is not made yet.

    Raises:
      UserError: it holds a run, or, to resume, none; another process trains it; or
        there is no data, or --meta cannot be written.
    """
    start = RunDirectory.open if config.resume else RunDirectory.create
    run = start(config.output)
    read = list(filter(None, [config.preferences]))
    if not read or config.data or config.data_manifest:
        read += corpus_paths(config.data, config.data_manifest)
    manifest = [config.data_manifest] if config.data_manifest else []
    check_outputs(
        {"meta": config.meta},
        reads=[*read, *manifest, *([config.val] if config.val else [])],
        run=run.path,
    )
    if run.path.is_dir():
        with run.alone():
            pass
    return run


def read_json(path: str | os.PathLike) -> Any:
    """Decodes a JSON file; raises `UserError` if it is missing or damaged."""
    try:
        return msgspec.json.decode(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Check the path.") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is damaged: {error}. Train again.") from error


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, all or nothing."""
    encoded = msgspec.json.format(msgspec.json.encode(value), indent=2)
    with write_aside(path) as aside:
        aside.write_bytes(encoded + b"\n")
