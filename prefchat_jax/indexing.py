"""Indexing: answered questions into the store of a run."""

import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from prefchat_jax.chat.store import NO_BUCKET, ResponseStore
from prefchat_jax.datasets.records import read_records
from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside
from prefchat_jax.models.classifier import Params
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.features import Bags, Featurizer
from prefchat_jax.training.checkpoints import fingerprint, load_model
from prefchat_jax.training.run_directory import RunDirectory


def index(
    weights: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    *,
    database: str | os.PathLike | None = None,
) -> tuple[int, int]:
    """Adds the rows of JSONL files to a store, and builds it if there is none.

    A row joins the bucket of its label; a row without a label that the run
    knows is found by its text alone.

    Args:
      weights: run directory.
      paths: JSONL files, plain or .gz.
      database: the store; the run's own if None.

    Returns:
      The number of rows that were added, and of the entries that are stored.

    Raises:
      UserError: a file cannot be read, or no row has a reply.
    """
    run = RunDirectory.open(weights)
    _, params = load_model(run)
    featurizer = run.featurizer()
    number = {}
    if run.config()["labels_given"]:  # Clusters have numbers of their own.
        buckets = run.read_json("labels.json")
        number = {str(bucket["label"]): i for i, bucket in enumerate(buckets)}
    rows = [
        (example, number.get(str(example.label), NO_BUCKET))
        for example in read_records(paths).examples
        if example.response
    ]
    if not rows:
        raise UserError(f"{', '.join(map(str, paths))}: no row has a reply to store.")
    path = pathlib.Path(database) if database else run.store
    if not path.exists():
        build_store(path, featurizer, params, rows)
        return len(rows), _size(path, featurizer, params)
    store = ResponseStore.open(path, **_identity(featurizer, params))
    add_examples(store, featurizer, rows)
    store.close()
    return len(rows), _size(path, featurizer, params)


def build_store(
    path: pathlib.Path,
    featurizer: Featurizer,
    params: Params,
    rows: Iterable[tuple[Example, int]],
) -> None:
    """Writes a new store with these rows, all or nothing."""
    with write_aside(path) as aside:
        store = ResponseStore.create(aside, **_identity(featurizer, params))
        add_examples(store, featurizer, list(rows))
        store.close()


def add_examples(
    store: ResponseStore, featurizer: Featurizer, rows: Sequence[tuple[Example, int]]
) -> None:
    """Adds answered examples with their buckets."""
    examples = [example for example, _ in rows]
    responses = [example.response for example in examples]
    # Replies repeat: each distinct one is featurised once.
    distinct = {text: i for i, text in enumerate(dict.fromkeys(responses))}
    bags = featurizer([(Turn("assistant", text),) for text in distinct])
    places = np.array([distinct[text] for text in responses], np.int64)
    store.add(
        [example.question for example in examples],
        responses,
        [bucket for _, bucket in rows],
        featurizer([example.context for example in examples]),
        Bags(bags.ids[places], bags.weights[places]),
    )


def is_store_of(path: pathlib.Path, featurizer: Featurizer, params: Params) -> bool:
    """Whether a store is there already and belongs to this checkpoint."""
    try:
        ResponseStore.open(path, **_identity(featurizer, params)).close()
    except UserError:
        return False
    return True


def _identity(featurizer: Featurizer, params: Params) -> dict:
    return {
        "fingerprint": fingerprint(params, featurizer),
        "max_features": featurizer.config.max_features,
    }


def _size(path: pathlib.Path, featurizer: Featurizer, params: Params) -> int:
    store = ResponseStore.open(path, **_identity(featurizer, params))
    try:
        return len(store)
    finally:
        store.close()
