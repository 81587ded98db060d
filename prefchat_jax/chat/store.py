"""The store: answered questions in SQLite, with full text and feature vectors."""

import contextlib
import pathlib
import re
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.text.features import Bags

NO_BUCKET = -1

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    question TEXT NOT NULL,
    response TEXT NOT NULL,
    bucket INTEGER NOT NULL,
    count INTEGER NOT NULL,
    question_vector BLOB NOT NULL,
    response_vector BLOB NOT NULL,
    UNIQUE (question, response)
);
CREATE INDEX entries_by_bucket ON entries (bucket, count DESC, id);
CREATE VIRTUAL TABLE entries_text USING fts5 (
    question, response, content='entries', content_rowid='id',
    tokenize='porter unicode61'
);
CREATE TRIGGER entries_added AFTER INSERT ON entries BEGIN
    INSERT INTO entries_text (rowid, question, response)
    VALUES (new.id, new.question, new.response);
END;
"""
_COLUMNS = "id, question, response, bucket, count, question_vector, response_vector"

# A match in the response tells more than one in the question: few questions
# are asked twice in the same words.
_QUESTION_WEIGHT, _RESPONSE_WEIGHT = 1.0, 2.0


class Entries(NamedTuple):
    """Stored entries as columns; `n` of them.

    Attributes:
      ids: int64 `[n]` row ids.
      questions: what was asked.
      responses: what was answered.
      buckets: int32 `[n]`, `NO_BUCKET` for an entry that was never trained on.
      counts: int64 `[n]` how often the pair occurred.
      question_bags: features of the questions with their context.
      response_bags: features of the responses.
    """

    ids: np.ndarray
    questions: list[str]
    responses: list[str]
    buckets: np.ndarray
    counts: np.ndarray
    question_bags: Bags
    response_bags: Bags

    @classmethod
    def concatenate(cls, parts: Sequence["Entries"]) -> "Entries":
        """Joins entries; the first part decides nothing but the order."""
        bags = lambda name: Bags(
            *(
                np.concatenate(columns)
                for columns in zip(*(getattr(p, name) for p in parts), strict=True)
            )
        )
        return cls(
            np.concatenate([p.ids for p in parts]),
            [q for p in parts for q in p.questions],
            [r for p in parts for r in p.responses],
            np.concatenate([p.buckets for p in parts]),
            np.concatenate([p.counts for p in parts]),
            bags("question_bags"),
            bags("response_bags"),
        )

    def select(self, where: np.ndarray) -> "Entries":
        """The entries where a mask is true, or at given places."""
        places = np.arange(len(self.ids))[where]
        take = lambda bags: Bags(bags.ids[places], bags.weights[places])
        return Entries(
            self.ids[places],
            [self.questions[i] for i in places],
            [self.responses[i] for i in places],
            self.buckets[places],
            self.counts[places],
            take(self.question_bags),
            take(self.response_bags),
        )


class ResponseStore:
    """One SQLite file of entries. All errors of the file are `UserError`.

    A store belongs to the checkpoint whose fingerprint it carries: bucket
    numbers and feature ids mean nothing under another one.
    """

    def __init__(
        self, connection: sqlite3.Connection, path: pathlib.Path, max_features: int
    ):
        self._db = connection
        # Also a store that nobody closed lets go of its file.
        self._close = weakref.finalize(self, connection.close)
        self._path = path
        self._max_features = max_features

    @classmethod
    def create(
        cls, path: pathlib.Path, *, fingerprint: str, max_features: int
    ) -> "ResponseStore":
        """Makes an empty store at a path that holds none."""
        store = cls(_connect(path), path, max_features)
        with store._guarded() as db:
            db.executescript(_SCHEMA)
            meta = {"schema": str(_SCHEMA_VERSION), "fingerprint": fingerprint}
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        return store

    @classmethod
    def open(
        cls, path: pathlib.Path, *, fingerprint: str, max_features: int
    ) -> "ResponseStore":
        """Opens a store and checks its schema and its checkpoint."""
        if not path.exists():
            raise UserError(
                f"{path} does not exist: build it with `prefchat index --weights RUN "
                "--data corpus.jsonl`."
            )
        store = cls(_connect(path), path, max_features)
        with store._guarded() as db:
            meta = dict(db.execute("SELECT key, value FROM meta"))
        if int(meta["schema"]) > _SCHEMA_VERSION:
            raise UserError(f"{path} has a newer schema: upgrade prefchat-jax.")
        if meta["fingerprint"] != fingerprint:
            raise UserError(
                f"{path} belongs to another checkpoint: delete it and run `prefchat "
                "index` with this run."
            )
        return store

    def close(self) -> None:
        """Closes the file."""
        self._close()

    def __len__(self) -> int:
        with self._guarded() as db:
            (count,) = db.execute("SELECT count(*) FROM entries").fetchone()
        return count

    def add(
        self,
        questions: Sequence[str],
        responses: Sequence[str],
        buckets: Iterable[int],
        question_bags: Bags,
        response_bags: Bags,
    ) -> None:
        """Adds answered questions; a pair that is stored already counts once more."""
        rows = zip(
            questions,
            responses,
            map(int, buckets),
            map(_encode, *question_bags),
            map(_encode, *response_bags),
            strict=True,
        )
        with self._guarded() as db:
            db.executemany(
                "INSERT INTO entries (question, response, bucket, count, "
                "question_vector, response_vector) VALUES (?, ?, ?, 1, ?, ?) "
                "ON CONFLICT (question, response) DO UPDATE SET count = count + 1",
                rows,
            )

    def pool(self, per_bucket: int) -> Entries:
        """The most frequent entries of every bucket, and of those without one."""
        with self._guarded() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM (SELECT *, row_number() OVER (PARTITION BY "
                "bucket ORDER BY count DESC, id) AS place FROM entries) "
                "WHERE place <= ? ORDER BY id",
                (per_bucket,),
            ).fetchall()
        return self._entries(rows)

    def search(self, text: str, limit: int) -> dict[int, float]:
        """The entries with the highest BM25 scores for the words of `text`.

        Returns:
          Scores by id, best first; positive, larger is better (SQLite's own
          are negative).
        """
        words = list(dict.fromkeys(re.findall(r"\w+", text.lower())))
        if not words or limit == 0:
            return {}
        with self._guarded() as db:
            query = " OR ".join(f'"{word}"' for word in words)
            rows = db.execute(
                "SELECT rowid, bm25(entries_text, ?, ?) AS score FROM entries_text "
                "WHERE entries_text MATCH ? ORDER BY score, rowid LIMIT ?",
                (_QUESTION_WEIGHT, _RESPONSE_WEIGHT, query, limit),
            ).fetchall()
        return {row: -score for row, score in rows}

    def get(self, ids: Sequence[int]) -> Entries:
        """The entries with these ids, in their order."""
        marks = ", ".join("?" * len(ids))
        with self._guarded() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM entries WHERE id IN ({marks})",
                [int(i) for i in ids],
            ).fetchall()
        by_id = {row[0]: row for row in rows}
        return self._entries([by_id[int(i)] for i in ids])

    def _entries(self, rows: list[tuple]) -> Entries:
        columns = list(zip(*rows, strict=True)) if rows else [()] * 7
        ids, questions, responses, buckets, counts, question, response = columns
        return Entries(
            np.array(ids, np.int64),
            list(questions),
            list(responses),
            np.array(buckets, np.int32),
            np.array(counts, np.int64),
            _decode(question, self._max_features),
            _decode(response, self._max_features),
        )

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        """A transaction that turns errors of the file into one line."""
        with _one_line(self._path), self._db:
            yield self._db


def _connect(path: pathlib.Path) -> sqlite3.Connection:
    with _one_line(path):
        # SQLite serialises calls itself; a finaliser may run in any thread.
        return sqlite3.connect(path, check_same_thread=False)


@contextlib.contextmanager
def _one_line(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(
            f"{path}: {error}. Nothing was changed; if the file is damaged, delete it "
            "and run `prefchat index`."
        ) from error


def _encode(ids: np.ndarray, weights: np.ndarray) -> bytes:
    """A vector as a BLOB: its ids as uint32, then its weights as float16."""
    used = weights > 0
    return ids[used].astype("<u4").tobytes() + weights[used].astype("<f2").tobytes()


def _decode(blobs: Sequence[bytes], max_features: int) -> Bags:
    shape = (len(blobs), max_features)
    bags = Bags(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
    for row, blob in enumerate(blobs):
        count = len(blob) // 6
        bags.ids[row, :count] = np.frombuffer(blob, "<u4", count)
        bags.weights[row, :count] = np.frombuffer(blob, "<f2", count, 4 * count)
    return bags
