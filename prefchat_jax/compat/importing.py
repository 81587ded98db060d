"""Import: a state dict of the reference as a run directory.

The run answers, trains on and exports as one that was trained here. What the
reference learned is taken over; search, calibration and styles are this package's.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import prefchat_jax
from prefchat_jax.compat.database import read_examples
from prefchat_jax.compat.features import FeatureMode
from prefchat_jax.compat.metadata import read_metadata
from prefchat_jax.compat.pth import read_state
from prefchat_jax.compat.tensors import HeadShape, to_params
from prefchat_jax.datasets.records import corpus_paths, read_records
from prefchat_jax.errors import UserError
from prefchat_jax.files import folder_aside
from prefchat_jax.indexing import index
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.features import HASH_VERSION, FeatureConfig, Featurizer
from prefchat_jax.training.parameters import flatten
from prefchat_jax.training.run_directory import FORMAT, RunDirectory

_ASSUMED: FeatureMode = "context_v2"  # The mode of a checkpoint that names none.
_POOLED = 16  # Replies of a bucket that chat pools, or all that the metadata have.


class Imported(NamedTuple):
    """What an import made.

    Attributes:
      run: the run directory.
      head: of the checkpoint.
      parameters: how many numbers it has.
      feature_mode: how its features are made.
      replies: stored entries; without any there is no store.
      notes: what the user should know, a line each.
    """

    run: RunDirectory
    head: HeadShape
    parameters: int
    feature_mode: FeatureMode
    replies: int
    notes: list[str]


def import_run(
    path: str | os.PathLike,
    output: str | os.PathLike,
    *,
    meta: str | os.PathLike | None = None,
    feature_mode: FeatureMode | None = None,
    from_db: str | os.PathLike | None = None,
    data: str | os.PathLike | None = None,
) -> Imported:
    """Writes the run directory of a checkpoint, all or nothing.

    Args:
      path: a file of `torch.save(model.state_dict(), path)`.
      output: the run directory to write.
      meta: the reference's metadata: labels, replies, the mode of the features.
      feature_mode: instead of what the metadata say.
      from_db: the reference's database of replies.
      data: JSONL rows with a reply.

    Raises:
      UserError: a file cannot be read or does not fit, or `output` holds a run.
    """
    run = RunDirectory(pathlib.Path(output).absolute())
    if run.has_checkpoint():
        raise UserError(f"--output {output} already holds a run: choose another.")
    RunDirectory.create(output)
    head, params = to_params(read_state(path), os.fspath(path))
    described = read_metadata(meta, head.num_buckets, any_mode=bool(feature_mode))
    mode, notes = feature_mode or described.feature_mode, []
    if mode is None:
        mode = _ASSUMED
        notes.append(
            f"nothing says how its features are made: {mode} is assumed; `prefchat "
            "import_torch --feature_mode legacy` takes the other mode"
        )
    rows = [*described.replies, *_stored(from_db, data, notes)]
    featurizer = _featurizer(rows)
    replies = 0
    with folder_aside(run.path) as folder:
        made = RunDirectory(folder)
        config = _write_model(made, head, mode, params)
        made.write_features(featurizer)
        made.write_json("labels.json", described.buckets)
        pooled = Counter(row.label for row in set(described.replies)).values()
        config["finetune"] = {"max_candidates_per_bucket": max([_POOLED, *pooled])}
        made.write_json("config.json", config | _origin(path, meta, featurizer))
        if rows:
            stored = index(folder, [], examples=rows)
            replies = stored.total
            notes += stored.notes
    size = sum(array.size for array in flatten(params).values())
    return Imported(run, head, size, mode, replies, notes)


def _stored(
    from_db: str | os.PathLike | None, data: str | os.PathLike | None, notes: list[str]
) -> list[Example]:
    """The answered rows of the files."""
    rows: dict[str, list[Example]] = {}
    if from_db:
        rows[f"--from_db {os.fspath(from_db)}"] = read_examples(from_db)
    if data:
        records = read_records(corpus_paths(os.fspath(data), None))
        notes += filter(None, [records.notice()])
        rows[f"--data {os.fspath(data)}"] = records.examples
    answered = {
        flag: [row for row in found if row.response] for flag, found in rows.items()
    }
    for flag, found in answered.items():
        if not found:
            raise UserError(f"{flag} has no row with a reply.")
    return [row for found in answered.values() for row in found]


def _featurizer(rows: Sequence[Example]) -> Featurizer:
    """Weights of the words that are stored; every word counts as known.

    What the checkpoint was trained on nobody knows, and its 128 features leave no
    word out.
    """
    texts = [text for row in rows for text in (row.question, row.response) if text]
    contexts = [(Turn("user", text),) for text in dict.fromkeys(texts)]
    fitted = Featurizer.fit(contexts, FeatureConfig())
    return dataclasses.replace(fitted, rows=np.ones_like(fitted.rows))


def _write_model(
    run: RunDirectory, head: HeadShape, mode: FeatureMode, params: dict[Any, Any]
) -> dict[str, Any]:
    """Writes the parameters, and returns what config.json says of the model."""
    from prefchat_jax.compat.model import ChampionConfig
    from prefchat_jax.training.checkpoints import Checkpoints

    model = ChampionConfig(
        num_buckets=head.num_buckets, branch_widths=head.widths, feature_mode=mode
    )
    with Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save_final(0, params)
    return {"model": dataclasses.asdict(model), "best_epoch": 0, "last_epoch": 0}


def _origin(
    path: str | os.PathLike, meta: str | os.PathLike | None, featurizer: Featurizer
) -> dict[str, Any]:
    """The rest of config.json."""
    digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    return {
        "format": FORMAT,
        "version": prefchat_jax.__version__,
        "hash_version": HASH_VERSION,
        "imported": {
            "weights": os.fspath(path),
            "meta": None if meta is None else os.fspath(meta),
        },
        "scorer": None,
        "features": dataclasses.asdict(featurizer.config),
        "labels_given": True,
        "data_fingerprint": digest,
    }
