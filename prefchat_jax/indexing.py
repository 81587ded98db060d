"""Indexing: answered questions into the store of a run, and out of it."""

import contextlib
import os
import pathlib
from collections.abc import Sequence

from prefchat_jax.chat.answers import as_answers
from prefchat_jax.chat.catalogue import save_segment, saved_view, segment_path
from prefchat_jax.chat.sqlite_store import SqliteStore
from prefchat_jax.chat.store import NO_BUCKET
from prefchat_jax.datasets.records import read_records
from prefchat_jax.errors import UserError
from prefchat_jax.inference import Inference
from prefchat_jax.text.dialogue import Example
from prefchat_jax.training.run_directory import RunDirectory

_BLOCK = 20_000  # Rows that are featurised, and stored, at once.


def index(
    weights: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    *,
    examples: Sequence[Example] = (),
    database: str | os.PathLike | None = None,
) -> tuple[int, int]:
    """Adds the rows of JSONL files to a store, and builds it if there is none.

    A row joins the bucket of its label; a row without a label that the run
    knows is found by its text alone.

    Args:
      weights: run directory.
      paths: JSONL files, plain or .gz; none if there are only examples.
      examples: more rows, from elsewhere.
      database: the store; the run's own if None.

    Returns:
      The number of rows that were added, and of the entries that are stored.

    Raises:
      UserError: a file cannot be read, or no row has a reply.
    """
    run, inference, path = _opened(weights, database)
    number = {}
    if run.config()["labels_given"]:  # Clusters have numbers of their own.
        buckets = run.read_json("labels.json")
        number = {str(bucket["label"]): i for i, bucket in enumerate(buckets)}
    read = read_records(paths).examples if paths else []
    rows = [
        (example, number.get(str(example.label), NO_BUCKET))
        for example in (*read, *examples)
        if example.response
    ]
    if not rows:
        where = ", ".join(map(str, paths)) or "The rows"
        raise UserError(f"{where}: no row has a reply to store.")
    if not path.exists():
        build_store(path, inference, rows)
    else:
        with open_store(path, inference) as store:
            add_examples(store, inference, rows)
        finish_store(path, inference)
    with open_store(path, inference) as store:
        total = len(store)
    return len(rows), total


def delete(
    weights: str | os.PathLike,
    *,
    ids: Sequence[int] = (),
    responses: Sequence[str] = (),
    database: str | os.PathLike | None = None,
) -> tuple[int, int]:
    """Removes entries from a store, or all that give some responses.

    Returns:
      The number of entries that were removed, and of those that are left.

    Raises:
      UserError: an entry or a response is not stored; then nothing is removed.
    """
    _, inference, path = _opened(weights, database)
    with open_store(path, inference) as store:
        known = {entry.id for entry in store.get(ids)}
        for entry_id in ids:
            if entry_id not in known:
                raise UserError(f"{path}: there is no entry {entry_id}.")
        for response in responses:
            same = store.find_response(response)
            if not same:
                raise UserError(f"{path}: no entry gives the reply {response!r}.")
            known |= {entry.id for entry in same}
        removed, total = store.delete(known), len(store)
    finish_store(path, inference)
    return removed, total


def check(
    weights: str | os.PathLike, *, database: str | os.PathLike | None = None
) -> None:
    """Reads a whole store; raises `UserError` where it is damaged."""
    _, inference, path = _opened(weights, database)
    with open_store(path, inference) as store:
        store.check()


def stats(
    weights: str | os.PathLike, *, database: str | os.PathLike | None = None
) -> dict[str, int]:
    """Stored entries, distinct responses, and bytes of the database and its index.

    `index_bytes` is 0 where the index is missing or is of another state of the
    store, so that a chat takes longer to start.
    """
    _, inference, path = _opened(weights, database)
    with open_store(path, inference) as store:
        found = store.stats()
        view = saved_view(store, inference.featurizer.config.bits)
        behind = view is None or view.version != store.version()
    size = 0 if behind else segment_path(path).stat().st_size
    return found | {"index_bytes": size}


def build_store(
    path: pathlib.Path, inference: Inference, rows: Sequence[tuple[Example, int]]
) -> None:
    """Writes a new store with these rows, all or nothing."""
    with SqliteStore.build(path, fingerprint=inference.fingerprint) as store:
        add_examples(store, inference, rows)
    finish_store(path, inference)


def add_examples(
    store: SqliteStore, inference: Inference, rows: Sequence[tuple[Example, int]]
) -> None:
    """Adds answered examples with their buckets."""
    for start in range(0, len(rows), _BLOCK):
        examples, buckets = zip(*rows[start : start + _BLOCK], strict=True)
        contexts = [example.context for example in examples]
        responses = [example.response for example in examples]
        store.add(as_answers(inference, contexts, responses, buckets))


def is_store_of(path: pathlib.Path, inference: Inference) -> bool:
    """Whether a store is there already and belongs to this checkpoint."""
    try:
        with open_store(path, inference):
            pass
    except UserError:
        return False
    return True


def finish_store(path: pathlib.Path, inference: Inference) -> None:
    """Makes the next search and the next start fast."""
    with open_store(path, inference) as store:
        store.optimize()
        save_segment(store, inference.featurizer.config.bits)


def open_store(
    path: pathlib.Path, inference: Inference
) -> contextlib.closing[SqliteStore]:
    """The store of this checkpoint, closed by `with`; `UserError` if it is not."""
    bits = inference.featurizer.config.bits
    store = SqliteStore.open(path, fingerprint=inference.fingerprint, bits=bits)
    return contextlib.closing(store)


def _opened(
    weights: str | os.PathLike, database: str | os.PathLike | None
) -> tuple[RunDirectory, Inference, pathlib.Path]:
    run = RunDirectory.open(weights)
    path = pathlib.Path(database) if database else run.store
    return run, Inference.load(run), path
