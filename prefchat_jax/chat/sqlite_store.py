"""The store in one SQLite file: text, features, vectors, and a log of changes."""

import contextlib
import hashlib
import os
import pathlib
import re
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from prefchat_jax.chat.store import NO_BUCKET, Answers, Changes, Entry
from prefchat_jax.errors import UserError

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE responses (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    key BLOB NOT NULL UNIQUE,
    features BLOB NOT NULL,
    vector BLOB NOT NULL
);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    question TEXT NOT NULL,
    response_id INTEGER NOT NULL REFERENCES responses (id),
    bucket INTEGER NOT NULL,
    count INTEGER NOT NULL,
    key BLOB NOT NULL UNIQUE,
    features BLOB NOT NULL,
    version INTEGER NOT NULL
);
CREATE INDEX entries_by_version ON entries (version);
CREATE INDEX entries_by_response ON entries (response_id);
CREATE TABLE removed (id INTEGER NOT NULL, version INTEGER NOT NULL);
CREATE INDEX removed_by_version ON removed (version);
CREATE TABLE common_words (word TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIRTUAL TABLE questions_text USING fts5 (
    question, content='entries', content_rowid='id', tokenize='unicode61'
);
CREATE VIRTUAL TABLE responses_text USING fts5 (
    text, content='responses', content_rowid='id', tokenize='unicode61'
);
CREATE VIRTUAL TABLE questions_words USING fts5vocab ('questions_text', 'row');
CREATE VIRTUAL TABLE responses_words USING fts5vocab ('responses_text', 'row');
CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
    INSERT INTO questions_text (rowid, question) VALUES (new.id, new.question);
END;
CREATE TRIGGER entry_removed AFTER DELETE ON entries BEGIN
    INSERT INTO questions_text (questions_text, rowid, question)
    VALUES ('delete', old.id, old.question);
END;
CREATE TRIGGER entry_changed AFTER UPDATE OF question ON entries BEGIN
    INSERT INTO questions_text (questions_text, rowid, question)
    VALUES ('delete', old.id, old.question);
    INSERT INTO questions_text (rowid, question) VALUES (new.id, new.question);
END;
CREATE TRIGGER response_added AFTER INSERT ON responses BEGIN
    INSERT INTO responses_text (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER response_removed AFTER DELETE ON responses BEGIN
    INSERT INTO responses_text (responses_text, rowid, text)
    VALUES ('delete', old.id, old.text);
END;
"""
_COMMON = 0.05  # Share of the texts from which on a search skips a word,
_LONG = 2_000  # if that many texts hold it.
_BUSY_SECONDS = 30.0
_BATCH = 500  # Values of one IN (...).


class SqliteStore:
    """A `ResponseStore` in one SQLite file. Errors of the file are `UserError`.

    It is written ahead (WAL), so that readers in any thread or process go on
    while one writes; what a call has returned survives a crash. A store belongs
    to the checkpoint whose fingerprint it carries: bucket numbers, features and
    vectors mean nothing under another one.
    """

    def __init__(self, path: pathlib.Path, *, read_only: bool = False):
        self.path = path
        self.read_only = read_only
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        # Also a store that nobody closed lets go of its file.
        self._close = weakref.finalize(self, _close_all, self._connections)

    @classmethod
    def create(cls, path: pathlib.Path, *, fingerprint: str) -> "SqliteStore":
        """Makes an empty store at a path that holds none."""
        store = cls(path)
        meta = {
            "schema": str(SCHEMA_VERSION),
            "fingerprint": fingerprint,
            "version": "0",
            "state": "",
            "segment_version": "",
            "segment_state": "",
        }
        with _one_line(path):
            db = store._connection()
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(_SCHEMA)
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            db.commit()
        return store

    @classmethod
    def open(
        cls, path: pathlib.Path, *, fingerprint: str, read_only: bool = False
    ) -> "SqliteStore":
        """Opens a store and checks its schema and its checkpoint.

        Raises:
          UserError: there is none, it is damaged, or it is of another checkpoint.
        """
        if not path.exists():
            raise UserError(
                f"{path} does not exist: build it with `prefchat index --weights RUN "
                "--data corpus.jsonl`."
            )
        store = cls(path, read_only=read_only)
        with _one_line(path):
            schema = int(store._meta("schema"))
            written = store._meta("fingerprint")
        if schema > SCHEMA_VERSION:
            raise UserError(f"{path} has a newer schema: upgrade prefchat-jax.")
        if schema < SCHEMA_VERSION:
            raise UserError(
                f"{path} has the schema of an older version: run `prefchat index "
                "--migrate` with its run."
            )
        if written != fingerprint:
            raise UserError(
                f"{path} belongs to another checkpoint: delete it and run `prefchat "
                "index` with this run."
            )
        return store

    def close(self) -> None:
        """Closes the file in all threads."""
        self._close()

    def __len__(self) -> int:
        return self.stats()["entries"]

    def version(self) -> int:
        """A number that grows with every change."""
        with _one_line(self.path):
            return int(self._meta("version"))

    def state(self) -> str:
        """A digest of all that was ever done to the store, in order."""
        with _one_line(self.path):
            return self._meta("state")

    def noted_segment(self) -> tuple[str, str]:
        """Version and state of the saved segment that belongs to this store."""
        with _one_line(self.path):
            return self._meta("segment_version"), self._meta("segment_state")

    def note_segment(self, version: int, state: str) -> None:
        """Remembers which saved segment belongs to this store."""
        values = [("segment_version", str(version)), ("segment_state", state)]
        with _one_line(self.path), self._lock:
            self._connection().executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", values
            )

    def add(self, answers: Answers) -> np.ndarray:
        """Adds answers; a stored pair counts once more and keeps its bucket.

        Returns:
          int64 `[n]` ids, once they are safe on disk.
        """
        with self._writing(*map(str, answers.questions), *answers.responses) as writer:
            db, version = writer
            ids = [_add(db, version, answers, row) for row in range(len(answers[0]))]
        return np.array(ids, np.int64)

    def delete(self, ids: Iterable[int]) -> int:
        """Removes entries, and the responses that no entry gives any more."""
        wanted = [int(i) for i in ids]
        with self._writing("delete", *map(str, wanted)) as (db, version):
            removed = 0
            for entry_id in wanted:
                found = db.execute(
                    "DELETE FROM entries WHERE id = ? RETURNING response_id",
                    (entry_id,),
                ).fetchall()
                for (response_id,) in found:
                    removed += 1
                    db.execute("INSERT INTO removed VALUES (?, ?)", (entry_id, version))
                    _drop_unused(db, response_id)
        return removed

    def update(self, entry_id: int, answers: Answers) -> None:
        """Replaces one entry, which keeps its id.

        Raises:
          UserError: there is no such entry, or another one says the same.
        """
        texts = answers.questions[0], answers.responses[0]
        with self._writing("update", str(entry_id), *texts) as (db, version):
            old = db.execute(
                "SELECT response_id FROM entries WHERE id = ?", (int(entry_id),)
            ).fetchone()
            if old is None:
                raise UserError(f"{self.path}: there is no entry {entry_id}.")
            key = _key(*texts)
            same = db.execute(
                "SELECT id FROM entries WHERE key = ? AND id != ?", (key, int(entry_id))
            ).fetchone()
            if same:
                raise UserError(f"{self.path}: entry {same[0]} says the same already.")
            db.execute(
                "UPDATE entries SET question = ?, response_id = ?, bucket = ?, "
                "key = ?, features = ?, version = ? WHERE id = ?",
                (
                    texts[0],
                    _response_id(db, answers, 0),
                    int(answers.buckets[0]),
                    key,
                    answers.question_features[0],
                    version,
                    int(entry_id),
                ),
            )
            _drop_unused(db, old[0])

    def search_text(self, text: str, limit: int) -> dict[int, float]:
        """BM25 of questions and responses by entry id, best first.

        Words that a large share of the texts hold, as `optimize` found them, are
        skipped if others are left.
        """
        words = list(dict.fromkeys(re.findall(r"\w+", text.lower())))
        if not words or limit == 0:
            return {}
        with _one_line(self.path):
            db = self._connection()
            marks = ", ".join("?" * len(words))
            common = {
                word
                for (word,) in db.execute(
                    f"SELECT word FROM common_words WHERE word IN ({marks})", words
                )
            }
            kept = [word for word in words if word not in common] or words
            query = " OR ".join(f'"{word}"' for word in kept)
            # SQLite's own scores are negative, the best one being the smallest.
            rows = db.execute(
                "SELECT id, sum(score) AS total FROM ("
                "SELECT rowid AS id, -bm25(questions_text) AS score FROM questions_text"
                " WHERE questions_text MATCH ?1 "
                "UNION ALL "
                "SELECT entries.id, -bm25(responses_text) FROM responses_text "
                "JOIN entries ON entries.response_id = responses_text.rowid "
                "WHERE responses_text MATCH ?1"
                ") GROUP BY id ORDER BY total DESC, id LIMIT ?2",
                (query, limit),
            ).fetchall()
        return dict(rows)

    def search_vector(self, vector: np.ndarray, limit: int) -> dict[int, float]:
        """Inner products with all response vectors, in one matrix product."""
        with _one_line(self.path):
            rows = (
                self._connection()
                .execute(
                    "SELECT entries.id, vector FROM entries "
                    "JOIN responses ON responses.id = response_id ORDER BY entries.id"
                )
                .fetchall()
            )
        if not rows or not len(vector):
            return {}
        ids, blobs = zip(*rows, strict=True)
        vectors = np.frombuffer(b"".join(blobs), "<f2").reshape(len(ids), -1)
        products = vectors.astype(np.float32) @ vector
        best = np.argsort(-products, kind="stable")[:limit]
        return {ids[i]: float(products[i]) for i in best}

    def get(self, ids: Sequence[int]) -> list[Entry]:
        """Entries by id, in this order; those that are gone are left out."""
        wanted = [int(i) for i in ids]
        found: dict[int, Entry] = {}
        with _one_line(self.path):
            for rows in self._in_batches(
                "SELECT entries.id, question, text, bucket, count FROM entries "
                "JOIN responses ON responses.id = response_id WHERE entries.id IN",
                wanted,
            ):
                found |= {row[0]: Entry(*row) for row in rows}
        return [found[i] for i in wanted if i in found]

    def find_response(self, response: str) -> list[Entry]:
        """All entries that give this response."""
        with _one_line(self.path):
            rows = self._connection().execute(
                "SELECT entries.id, question, text, bucket, count FROM entries "
                "JOIN responses ON responses.id = response_id WHERE responses.key = ?",
                (_key(response),),
            )
            return [Entry(*row) for row in rows]

    def changes(self, after: int) -> Changes:
        """What happened after a version, as one snapshot of the file."""
        with _one_line(self.path):
            db = self._connection()
            db.execute("BEGIN")  # All the queries below see the same state.
            try:
                return self._changes(db, after)
            finally:
                db.rollback()

    def stats(self) -> dict[str, int]:
        """Entries, responses, and bytes on disk."""
        with _one_line(self.path):
            db = self._connection()
            (entries,) = db.execute("SELECT count(*) FROM entries").fetchone()
            (responses,) = db.execute("SELECT count(*) FROM responses").fetchone()
        return {
            "entries": entries,
            "responses": responses,
            "bytes": self.path.stat().st_size,
        }

    def optimize(self) -> None:
        """Merges the text indexes, and learns which words are common."""
        with _one_line(self.path), self._lock:
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                _learn_common_words(db)
                db.commit()
            except BaseException:
                db.rollback()
                raise
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def check(self) -> None:
        """Reads the whole file; raises `UserError` where it is damaged."""
        with _one_line(self.path):
            db = self._connection()
            problems = [row[0] for row in db.execute("PRAGMA integrity_check")]
            if problems == ["ok"] and not self.read_only:
                for table in ("questions", "responses"):
                    db.execute(
                        f"INSERT INTO {table}_text ({table}_text, rank) "
                        "VALUES ('integrity-check', 1)"
                    )
                db.commit()
        if problems != ["ok"]:
            raise UserError(
                f"{self.path} is damaged ({problems[0]}): delete it and run `prefchat "
                "index`."
            )

    def _changes(self, db: sqlite3.Connection, after: int) -> Changes:
        rows = db.execute(
            "SELECT id, question, response_id, bucket, count, features FROM entries "
            "WHERE version > ? ORDER BY id",
            (after,),
        ).fetchall()
        removed = db.execute("SELECT id FROM removed WHERE version > ?", (after,))
        gone = np.array(removed.fetchall(), np.int64).reshape(-1)
        columns = list(zip(*rows, strict=True)) if rows else [()] * 6
        ids, questions, response_ids, buckets, counts, features = columns
        responses = {}
        for found in self._in_batches(
            "SELECT id, text, features, vector FROM responses WHERE id IN",
            sorted(set(response_ids)),
        ):
            responses |= {row[0]: row[1:] for row in found}
        return Changes(
            int(self._meta("version")),
            np.array(ids, np.int64),
            list(questions),
            np.array(response_ids, np.int64),
            np.array(buckets, np.int32),
            np.array(counts, np.int32),
            list(features),
            responses,
            gone,
        )

    def _in_batches(self, query: str, values: Sequence[int]) -> Iterator[list[tuple]]:
        for start in range(0, len(values), _BATCH):
            batch = values[start : start + _BATCH]
            marks = ", ".join("?" * len(batch))
            yield self._connection().execute(f"{query} ({marks})", batch).fetchall()

    def _meta(self, key: str) -> str:
        row = self._connection().execute("SELECT value FROM meta WHERE key = ?", (key,))
        (value,) = row.fetchone()
        return value

    @contextlib.contextmanager
    def _writing(self, *parts: str) -> Iterator[tuple[sqlite3.Connection, int]]:
        """One transaction, with the version that it makes; all or nothing."""
        if self.read_only:
            raise UserError(f"{self.path} is open for reading only.")
        with _one_line(self.path), self._lock:
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                version = int(self._meta("version")) + 1
                state = _key(self._meta("state"), *parts).hex()
                values = [("version", str(version)), ("state", state)]
                db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)
                yield db, version
                db.commit()
            except BaseException:
                db.rollback()
                raise

    def _connection(self) -> sqlite3.Connection:
        """The connection of this thread."""
        db = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = _connect(self.path, read_only=self.read_only)
            self._connections.append(db)
        return db


def _connect(path: pathlib.Path, *, read_only: bool) -> sqlite3.Connection:
    mode = "ro" if read_only else "rwc"
    if read_only and not os.access(path.parent, os.W_OK):
        mode += "&immutable=1"  # Nobody writes, and no lock can be taken.
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,  # Transactions begin where the code says so.
        check_same_thread=False,  # A finaliser may run in any thread.
    )
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _close_all(connections: list[sqlite3.Connection]) -> None:
    for db in connections:
        db.close()


@contextlib.contextmanager
def _one_line(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(
            f"{path}: {error}. Nothing was changed; if the file is damaged, delete it "
            "and run `prefchat index`."
        ) from error


def _learn_common_words(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM common_words")
    for table, rows in (("questions", "entries"), ("responses", "responses")):
        db.execute(f"INSERT INTO {table}_text ({table}_text) VALUES ('optimize')")
        db.execute(
            f"INSERT OR IGNORE INTO common_words SELECT term FROM {table}_words "
            f"WHERE doc > max(?, ? * (SELECT count(*) FROM {rows}))",
            (_LONG, _COMMON),
        )


def _add(db: sqlite3.Connection, version: int, answers: Answers, row: int) -> int:
    """Adds one answer, or counts it; an entry gains the bucket it did not have."""
    key = _key(answers.questions[row], answers.responses[row])
    (entry_id,) = db.execute(
        "INSERT INTO entries (question, response_id, bucket, count, key, features, "
        "version) VALUES (?, ?, ?, 1, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
        "count = count + 1, version = excluded.version, "
        f"bucket = iif(bucket = {NO_BUCKET}, excluded.bucket, bucket) RETURNING id",
        (
            answers.questions[row],
            _response_id(db, answers, row),
            int(answers.buckets[row]),
            key,
            answers.question_features[row],
            version,
        ),
    ).fetchone()
    return entry_id


def _response_id(db: sqlite3.Connection, answers: Answers, row: int) -> int:
    """The stored response of a row; it is stored if it is new."""
    key = _key(answers.responses[row])
    found = db.execute("SELECT id FROM responses WHERE key = ?", (key,)).fetchone()
    if found:
        return found[0]
    vector = np.asarray(answers.response_vectors[row], "<f2").tobytes()
    features = answers.response_features[row]
    (response_id,) = db.execute(
        "INSERT INTO responses (text, key, features, vector) VALUES (?, ?, ?, ?) "
        "RETURNING id",
        (answers.responses[row], key, features, vector),
    ).fetchone()
    return response_id


def _drop_unused(db: sqlite3.Connection, response_id: int) -> None:
    db.execute(
        "DELETE FROM responses WHERE id = ?1 AND NOT EXISTS "
        "(SELECT 1 FROM entries WHERE response_id = ?1)",
        (response_id,),
    )


def _key(*texts: str) -> bytes:
    """A digest of texts; 16 bytes hold 2^64 of them apart."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()
