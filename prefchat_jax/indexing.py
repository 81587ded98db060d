"""Indexing: answered questions into the store of a run, and out of it."""

import collections
import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from prefchat_jax.chat.answers import as_answers
from prefchat_jax.chat.catalogue import save_segment, saved_view, segment_path
from prefchat_jax.chat.sqlite_store import SqliteStore
from prefchat_jax.chat.store import NO_BUCKET, Entry
from prefchat_jax.datasets.records import read_records
from prefchat_jax.errors import UserError
from prefchat_jax.inference import Inference
from prefchat_jax.text.dialogue import Example
from prefchat_jax.training.run_directory import RunDirectory

_BLOCK = 20_000  # Rows that are featurised, and stored, at once.
_SHOWN = 8  # Labels that a note names.
_FIND = "--search WORDS lists entries with their ids"


class Indexed(NamedTuple):
    """What `index` did.

    Attributes:
      new: rows that became entries.
      again: rows whose question and reply were stored, or came before in the files.
      total: entries that are stored.
      notes: what the user should know, a line each.
    """

    new: int
    again: int
    total: int
    notes: list[str]


def index(
    weights: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    *,
    examples: Sequence[Example] = (),
    database: str | os.PathLike | None = None,
) -> Indexed:
    """Adds the rows of JSONL files to a store, and builds it if there is none.

    A row joins the bucket of its label. A row without a label that the run knows
    joins the bucket that its reply is in; where that has none, the row is found by
    its text alone. No stored answer loses its bucket.

    Args:
      weights: run directory.
      paths: JSONL files, plain or .gz; none if there are only examples.
      examples: more rows, from elsewhere.
      database: the store; the run's own if None.

    Raises:
      UserError: a file cannot be read, or no row has a reply.
    """
    run, inference, path = _opened(weights, database)
    records = read_records(paths) if paths else None
    read = records.examples if records else ()
    examples = [example for example in (*read, *examples) if example.response]
    if not examples:
        where = ", ".join(map(str, paths)) or "The rows"
        raise UserError(f"{where}: no row has a reply to store.")
    # A label None is none, also where a bucket is called "None".
    labels = _labels(run)
    numbers = {None: NO_BUCKET} | {
        one.label: labels.get(str(one.label), NO_BUCKET)
        for one in examples
        if one.label is not None
    }
    rows = [(one, numbers[one.label]) for one in examples]
    before = 0
    if path.exists():
        with open_store(path, inference) as store:
            before = len(store)
            add_examples(store, inference, _joined(rows, store.find_response))
        finish_store(path, inference)
    else:
        build_store(path, inference, _joined(rows, lambda _: []))
    with open_store(path, inference) as store:
        total = len(store)
    new = total - before
    notes = [records.notice() if records else "", _unknown(examples, labels)]
    return Indexed(new, len(rows) - new, total, list(filter(None, notes)))


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
                raise UserError(f"{path}: there is no entry {entry_id}; {_FIND}.")
        for response in responses:
            same = store.find_response(response)
            if not same:
                raise UserError(
                    f"{path}: no entry gives the reply {response!r}; {_FIND}."
                )
            known |= {entry.id for entry in same}
        removed, total = store.delete(known), len(store)
    finish_store(path, inference)
    return removed, total


def search(
    weights: str | os.PathLike,
    text: str,
    *,
    limit: int = 20,
    database: str | os.PathLike | None = None,
) -> list[Entry]:
    """Entries whose question or reply has words of a text, best first."""
    _, inference, path = _opened(weights, database)
    with open_store(path, inference) as store:
        return store.get(list(store.search_text(text, limit)))


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
    with open_store(path, inference) as store:
        save_segment(store, inference.featurizer.config.bits)


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


def _labels(run: RunDirectory) -> dict[str, int]:
    """Bucket numbers by label; none for clusters, which have numbers of their own."""
    if not run.config()["labels_given"]:
        return {}
    buckets = run.buckets()
    return {str(bucket["label"]): i for i, bucket in enumerate(buckets)}


def _joined(
    rows: Sequence[tuple[Example, int]], stored: Callable[[str], list[Entry]]
) -> list[tuple[Example, int]]:
    """Rows with the bucket of their label, or else of their reply.

    Args:
      rows: examples with the number of their label, or `NO_BUCKET`.
      stored: the entries that give a reply.
    """
    known: dict[str, int] = {}
    for example, bucket in rows:
        if bucket != NO_BUCKET:
            known.setdefault(example.response, bucket)
    for example, _ in rows:
        if example.response not in known:
            buckets = (entry.bucket for entry in stored(example.response))
            given = (bucket for bucket in buckets if bucket != NO_BUCKET)
            known[example.response] = next(given, NO_BUCKET)
    return [
        (example, known[example.response] if bucket == NO_BUCKET else bucket)
        for example, bucket in rows
    ]


def _unknown(examples: Sequence[Example], labels: Mapping[str, int]) -> str | None:
    """One line about the labels that are no bucket, if there are any."""
    given = (str(example.label) for example in examples if example.label is not None)
    counts = collections.Counter(label for label in given if label not in labels)
    if not counts:
        return None
    rows = f"({counts.total()} rows)"
    if not labels:
        return f"the run found its buckets itself: labels are not read {rows}"
    several, most = len(counts) > 1, [repr(name) for name, _ in counts.most_common()]
    return (
        f"label{'s' if several else ''} {_few(most)} {'are' if several else 'is'} "
        f"not in the run {rows}; known: {_few(list(labels))}"
    )


def _few(names: Sequence[str]) -> str:
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def _opened(
    weights: str | os.PathLike, database: str | os.PathLike | None
) -> tuple[RunDirectory, Inference, pathlib.Path]:
    run = RunDirectory.open(weights)
    path = pathlib.Path(database) if database else run.store
    return run, Inference.load(run), path
