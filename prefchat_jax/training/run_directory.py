"""The run directory: the one artefact that ties training to chat.

```
config.json        settings, shapes, versions, the data's fingerprint
labels.json        the buckets, in the order of the logits
features.npz       document frequencies and embedding rows of the features
checkpoints/       orbax steps, the best and the last one
inference.npz      cache of the best one for NumPy; may be deleted
responses.db       stored replies (SQLite), bound to the best step
responses.index    what chat derives from them, mapped into memory; may be deleted
warm_start.json    what of the run of --weights was taken over, if there was one
metrics.jsonl      one line for every chunk of training steps and every epoch
```
"""

import dataclasses
import os
import pathlib
import zipfile
from typing import Any

import msgspec
import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside
from prefchat_jax.text.dialogue import TurnWeights
from prefchat_jax.text.features import HASH_VERSION, FeatureConfig, Featurizer

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
                "--output of `prefchat finetune`."
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
    def store(self) -> pathlib.Path:
        """The database of stored replies."""
        return self.path / "responses.db"

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

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON file of the run, and makes its directory."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / name, value)

    def write_features(self, featurizer: Featurizer) -> None:
        """Stores the document frequencies."""
        with write_aside(self.path / "features.npz") as aside, aside.open("wb") as file:
            arrays = {"idf": featurizer.idf, "rows": featurizer.rows}
            if featurizer.scorer_rows is not None:
                arrays["scorer_rows"] = featurizer.scorer_rows
            np.savez_compressed(file, **arrays)

    def featurizer(self) -> Featurizer:
        """Rebuilds the featurizer that the run was trained with."""
        config = dict(self.config()["features"])
        config["turns"] = TurnWeights(**config["turns"])
        config["char_ngrams"] = tuple(config["char_ngrams"])
        path = self.path / "features.npz"
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return Featurizer(
                    FeatureConfig(**config),
                    arrays["idf"],
                    arrays["rows"],
                    # A run of an older version has none, nor a scorer.
                    arrays.get("scorer_rows"),
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}): train again.") from error


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
