"""Writing rows: what one transaction of a store does to its tables."""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.store import NO_BUCKET, Answers
from prefchat_jax.errors import UserError

_BATCH = 500  # Values of one IN (...).


class Keys(NamedTuple):
    """Digests by which equal texts are found; 16 bytes hold 2^64 of them apart.

    Attributes:
      responses: of each response.
      pairs: of each question with its response.
    """

    responses: list[bytes]
    pairs: list[bytes]

    @classmethod
    def of(cls, answers: Answers) -> "Keys":
        """The keys of answers.

        Raises:
          UserError: a text is no Unicode.
        """
        responses = [cls.of_response(text) for text in answers.responses]
        pairs = [
            _digest(key + _utf8(question))
            for question, key in zip(answers.questions, responses, strict=True)
        ]
        return cls(responses, pairs)

    @staticmethod
    def of_response(text: str) -> bytes:
        """The key of one response."""
        return _digest(_utf8(text))


def insert(
    db: sqlite3.Connection, version: int, answers: Answers, keys: Keys
) -> np.ndarray:
    """Adds answers, or counts those that are stored; returns int64 `[n]` ids.

    A stored pair that has no bucket gains one.
    """
    responses = _insert_responses(db, answers, keys)
    rows = _merged(answers, keys)
    db.executemany(
        "INSERT INTO entries (question, response_id, bucket, count, key, features, "
        "version) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
        "count = count + excluded.count, version = excluded.version, "
        f"bucket = iif(bucket = {NO_BUCKET}, excluded.bucket, bucket)",
        (
            (
                answers.questions[row],
                responses[keys.responses[row]],
                bucket,
                count,
                key,
                answers.question_features[row],
                version,
            )
            for key, (row, count, bucket) in rows.items()
        ),
    )
    ids = _ids(db, "entries", list(rows))
    return np.array([ids[key] for key in keys.pairs], np.int64)


def delete_entries(db: sqlite3.Connection, version: int, ids: Sequence[int]) -> int:
    """Removes entries and unused responses; returns how many entries there were."""
    given = "RETURNING id, response_id"
    found = list(in_batches(db, "DELETE FROM entries WHERE id", ids, given))
    gone = [(entry, version) for entry, _ in found]
    db.executemany("INSERT INTO removed VALUES (?, ?)", gone)
    _drop_unused(db, {response for _, response in found})
    return len(found)


def replace_entry(
    db: sqlite3.Connection, version: int, entry_id: int, answers: Answers, keys: Keys
) -> str | None:
    """Replaces an entry by the only row of `answers`; returns what forbids it."""
    (key,) = keys.pairs
    wanted = (entry_id,)
    old = db.execute("SELECT response_id FROM entries WHERE id = ?", wanted).fetchone()
    if old is None:
        return f"there is no entry {entry_id}"
    same = db.execute(
        "SELECT id FROM entries WHERE key = ? AND id != ?", (key, entry_id)
    ).fetchone()
    if same:
        return f"entry {same[0]} says the same already"
    responses = _insert_responses(db, answers, keys)
    values = (
        answers.questions[0],
        responses[keys.responses[0]],
        int(answers.buckets[0]),
        key,
        answers.question_features[0],
        version,
    )
    db.execute(
        "UPDATE entries SET question = ?, response_id = ?, bucket = ?, key = ?, "
        "features = ?, version = ? WHERE id = ?",
        (*values, entry_id),
    )
    _drop_unused(db, {old[0]})
    return None


def in_batches(
    db: sqlite3.Connection, query: str, values: Sequence, ending: str = ""
) -> Iterator[tuple]:
    """The rows of `query IN (values) ending`, for any number of values."""
    for start in range(0, len(values), _BATCH):
        batch = values[start : start + _BATCH]
        marks = ", ".join("?" * len(batch))
        yield from db.execute(f"{query} IN ({marks}) {ending}", batch)


def _insert_responses(
    db: sqlite3.Connection, answers: Answers, keys: Keys
) -> dict[bytes, int]:
    """Stores the responses that are new; returns the ids of all by key."""
    vectors = np.asarray(answers.response_vectors, "<f2")
    data, width = vectors.tobytes(), vectors.itemsize * vectors.shape[1]
    distinct = {key: row for row, key in enumerate(keys.responses)}
    db.executemany(
        "INSERT OR IGNORE INTO responses (text, key, features, vector) "
        "VALUES (?, ?, ?, ?)",
        (
            (
                answers.responses[row],
                key,
                answers.response_features[row],
                data[row * width : (row + 1) * width],
            )
            for key, row in distinct.items()
        ),
    )
    return _ids(db, "responses", list(distinct))


def _merged(answers: Answers, keys: Keys) -> dict[bytes, tuple[int, int, int]]:
    """For each distinct pair its first row, how often it comes, and its bucket."""
    found: dict[bytes, tuple[int, int, int]] = {}
    buckets = np.asarray(answers.buckets).tolist()
    for row, (key, bucket) in enumerate(zip(keys.pairs, buckets, strict=True)):
        first, count, known = found.get(key, (row, 0, bucket))
        found[key] = first, count + 1, bucket if known == NO_BUCKET else known
    return found


def _ids(db: sqlite3.Connection, table: str, keys: list[bytes]) -> dict[bytes, int]:
    return dict(in_batches(db, f"SELECT key, id FROM {table} WHERE key", keys))


def _drop_unused(db: sqlite3.Connection, response_ids: Iterable[int]) -> None:
    db.executemany(
        "DELETE FROM responses WHERE id = ?1 AND NOT EXISTS "
        "(SELECT 1 FROM entries WHERE response_id = ?1)",
        ((response,) for response in response_ids),
    )


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{text[:40]!r} holds half a character (a lone surrogate): correct it."
        ) from error
