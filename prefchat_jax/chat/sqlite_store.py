"""The store in one SQLite file: text, features, vectors, and a log of changes."""

import contextlib
import hashlib
import pathlib
import re
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from prefchat_jax.chat import migration
from prefchat_jax.chat.connections import (
    Connections,
    connect,
    new_database,
    possible_mode,
)
from prefchat_jax.chat.damage import one_line, rebuild
from prefchat_jax.chat.schema import (
    SCHEMA_VERSION,
    check_binding,
    create_tables,
    index_tables,
    optimize_texts,
    problem,
    read_meta,
    read_schema,
)
from prefchat_jax.chat.store import Answers, Changes, Entry
from prefchat_jax.chat.writing import (
    Keys,
    delete_entries,
    in_batches,
    insert,
    replace_entry,
)
from prefchat_jax.errors import UserError

_WORDS = 64  # Words of a text that are searched for.


class SqliteStore:
    """A `ResponseStore` in one SQLite file. Errors of the file are `UserError`.

    It is written ahead (WAL), so that readers in any thread or process go on
    while one writes; what a call has returned survives a crash. A store belongs
    to the checkpoint whose fingerprint it carries: bucket numbers, features and
    vectors mean nothing under another one.

    Attributes:
      path: the file.
      read_only: whether writing is refused.
    """

    def __init__(self, path: pathlib.Path, mode: str = "rw"):
        self.path = path
        self.read_only = mode.startswith("ro")
        self._connections = Connections(path, mode)
        # Also a store that nobody closed lets go of its file.
        weakref.finalize(self, self._connections.close)

    @classmethod
    def create(cls, path: pathlib.Path, *, fingerprint: str) -> "SqliteStore":
        """Makes an empty store."""
        with cls.build(path, fingerprint=fingerprint):
            pass
        return cls(path)

    @classmethod
    @contextlib.contextmanager
    def build(cls, path: pathlib.Path, *, fingerprint: str) -> "Iterator[SqliteStore]":
        """Yields a store for many `add`s; when done, it replaces the file at `path`.

        All but the keys is indexed at the end, which is what makes it fast: the
        store that is yielded cannot be searched.
        """
        with one_line(path), new_database(path) as aside:
            store = cls(aside, "rwc")
            with contextlib.closing(store):
                with store._connections.lend() as db:  # Lent again to each `add`.
                    db.execute("PRAGMA journal_mode = OFF")
                    db.execute("PRAGMA synchronous = OFF")
                    create_tables(db, fingerprint)
                yield store
                with store._connections.lend() as db:
                    index_tables(db)
                    optimize_texts(db)
                    db.execute("PRAGMA synchronous = FULL")
                    db.execute("PRAGMA journal_mode = WAL")

    @classmethod
    def open(
        cls,
        path: pathlib.Path,
        *,
        fingerprint: str,
        bits: int | None = None,
    ) -> "SqliteStore":
        """Opens a store and checks its schema and its checkpoint.

        A store of an older version is brought up to date in place. Where nothing
        can be written, the store is open for reading only.

        Args:
          path: the file.
          fingerprint: of the checkpoint.
          bits: log2 of the number of feature ids; without it, a store of an older
            version is an error.

        Raises:
          UserError: there is none, it is damaged, or it is of another checkpoint.
        """
        if not path.exists():
            raise UserError(
                f"{path} does not exist: build it with `prefchat index --weights RUN "
                "--data corpus.jsonl`."
            )
        with one_line(path):
            if bits is not None:
                migration.migrate(path, fingerprint=fingerprint, bits=bits)
            mode = possible_mode(path)
            store = cls(path, mode)  # From now on it must be this file.
            with contextlib.closing(connect(path, mode)) as db:
                check_binding(db, path, fingerprint)
                outdated = read_schema(db) < SCHEMA_VERSION
            if outdated:
                raise UserError(
                    f"{path} was written by an older version: open it once where it "
                    "can be written, with `prefchat index --weights RUN --stats`."
                )
        return store

    def close(self) -> None:
        """Closes the file in all threads."""
        self._connections.close()

    def __len__(self) -> int:
        return self.stats()["entries"]

    def version(self) -> int:
        """A number that grows with every change."""
        with self._connections.lend() as db:
            return int(read_meta(db, "version"))

    def noted_segment(self) -> tuple[str, str]:
        """Version and state of the saved segment that belongs to this store."""
        with self._snapshot() as db:
            return read_meta(db, "segment_version"), read_meta(db, "segment_state")

    def note_segment(self, version: int, state: str) -> None:
        """Remembers which saved segment belongs to this store."""
        values = [("segment_version", str(version)), ("segment_state", state)]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)

    def add(self, answers: Answers) -> np.ndarray:
        """Adds answers; a stored pair counts once more and keeps its bucket.

        Returns:
          int64 `[n]` ids, once they are safe on disk.
        """
        keys = Keys.of(answers)
        if not keys.pairs:
            return np.zeros(0, np.int64)
        buckets = np.asarray(answers.buckets, "<i4").tobytes()
        features = *answers.question_features, *answers.response_features
        with self._change(b"add", *keys.pairs, buckets, *features) as (db, version):
            return insert(db, version, answers, keys)

    def delete(self, ids: Iterable[int]) -> int:
        """Removes entries, and the responses that no entry gives any more."""
        wanted = sorted({int(i) for i in ids if _may_be(i)})
        if not wanted:
            return 0
        digits = np.array(wanted, "<i8").tobytes()
        with self._change(b"delete", digits) as (db, version):
            return delete_entries(db, version, wanted)

    def update(self, entry_id: int, answers: Answers) -> None:
        """Replaces one entry, which keeps its id and its count.

        Raises:
          UserError: there is no such entry, or another one says the same.
        """
        if not _may_be(entry_id):
            raise UserError(f"{self.path}: there is no entry {entry_id}.")
        keys = Keys.of(answers)
        row = str((int(entry_id), int(answers.buckets[0]))).encode()
        features = answers.question_features[0], answers.response_features[0]
        with self._change(b"update", row, *keys.pairs, *features) as (db, version):
            what = replace_entry(db, version, int(entry_id), answers, keys)
            if what is not None:
                raise UserError(f"{self.path}: {what}.")

    def search_text(self, text: str, limit: int) -> dict[int, float]:
        """BM25 of questions and responses by entry id, best first.

        Words that a large share of the texts hold, as `optimize` found them, are
        skipped if others are left.
        """
        words = list(dict.fromkeys(re.findall(r"\w+", text.lower())))
        if not words or limit <= 0:
            return {}
        with self._snapshot() as db:
            marked = in_batches(db, "SELECT word FROM common_words WHERE word", words)
            common = {word for (word,) in marked}
            kept = [word for word in words if word not in common] or words
            query = " OR ".join(f'"{word}"' for word in kept[:_WORDS])
            # SQLite's own scores are negative, the best one being the smallest.
            rows = db.execute(_SEARCH, (query, limit)).fetchall()
        return dict(rows)

    def search_vector(self, vector: np.ndarray, limit: int) -> dict[int, float]:
        """Inner products with all response vectors, in one matrix product."""
        with self._snapshot() as db:
            rows = db.execute("SELECT id, vector FROM responses ORDER BY id").fetchall()
            if not rows or not len(vector) or limit <= 0:
                return {}
            ids, blobs = zip(*rows, strict=True)
            vectors = np.frombuffer(b"".join(blobs), "<f2").reshape(len(ids), -1)
            if vectors.shape[1] != len(vector):
                return {}
            products = vectors.astype(np.float32) @ vector
            # Each response has an entry: more than `limit` are never needed.
            best = np.argsort(-products, kind="stable")[:limit].tolist()
            given = in_batches(
                db,
                "SELECT id, response_id FROM entries WHERE response_id",
                [ids[i] for i in best],
            )
        score = {ids[i]: float(products[i]) for i in best}
        scored = [(entry, score[response]) for entry, response in given]
        scored.sort(key=lambda pair: (-pair[1], pair[0]))
        return dict(scored[:limit])

    def get(self, ids: Sequence[int] | np.ndarray) -> list[Entry]:
        """Entries by id, in this order; those that are gone are left out."""
        wanted = [int(i) for i in ids if _may_be(i)]
        with self._snapshot() as db:
            rows = in_batches(db, f"{_ENTRIES} WHERE entries.id", wanted)
            found = {row[0]: Entry(*row) for row in rows}
        return [found[i] for i in wanted if i in found]

    def find_response(self, response: str) -> list[Entry]:
        """All entries that give this response, by id."""
        key = Keys.of_response(response)
        query = f"{_ENTRIES} WHERE responses.key = ? ORDER BY entries.id"
        with self._connections.lend() as db:
            return [Entry(*row) for row in db.execute(query, (key,))]

    def changes(self, after: int) -> Changes:
        """What happened after a version, as one snapshot of the file."""
        with self._snapshot() as db:
            return _changes(db, after)

    def snapshot(self) -> tuple[Changes, str]:
        """All entries, and a digest of all that was ever done to them, in order."""
        with self._snapshot() as db:
            return _changes(db, 0), read_meta(db, "state")

    def stats(self) -> dict[str, int]:
        """Entries, distinct responses, bytes on disk."""
        with self._snapshot() as db:
            (entries,) = db.execute("SELECT count(*) FROM entries").fetchone()
            (responses,) = db.execute("SELECT count(*) FROM responses").fetchone()
        size = self.path.stat().st_size
        return {"entries": entries, "responses": responses, "bytes": size}

    def optimize(self) -> None:
        """Merges the text indexes, and learns which words are common."""
        with self._transaction() as db:
            optimize_texts(db)
        with self._connections.lend() as db:
            db.execute("PRAGMA wal_checkpoint (PASSIVE)")

    def check(self) -> None:
        """Reads the whole file; raises `UserError` where it is damaged."""
        with self._connections.lend() as db:
            found = problem(db, texts=not self.read_only)
        if found is not None:
            raise UserError(f"{self.path} is damaged ({found}): {rebuild(self.path)}.")

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """A transaction whose queries all see the same state."""
        with self._connections.lend() as db:
            db.execute("BEGIN")
            yield db  # Giving the connection back ends it.

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes; all or nothing."""
        if self.read_only:
            raise UserError(f"{self.path} is open for reading only.")
        with self._connections.lend() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db  # Giving the connection back ends it, where this raises.
            db.commit()

    @contextlib.contextmanager
    def _change(self, *parts: bytes) -> Iterator[tuple[sqlite3.Connection, int]]:
        """A transaction with the version that it makes; `parts` say what it does."""
        with self._transaction() as db:
            version = int(read_meta(db, "version")) + 1
            digest = hashlib.blake2b(read_meta(db, "state").encode(), digest_size=16)
            for part in parts:
                digest.update(len(part).to_bytes(8, "little") + part)
            values = [("version", str(version)), ("state", digest.hexdigest())]
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)
            yield db, version


_ENTRIES = (
    "SELECT entries.id, question, text, bucket, count FROM entries "
    "JOIN responses ON responses.id = response_id"
)
_SEARCH = (
    "SELECT id, sum(score) AS total FROM ("
    "SELECT rowid AS id, -bm25(questions_text) AS score FROM questions_text "
    "WHERE questions_text MATCH ?1 UNION ALL "
    "SELECT entries.id, found.score FROM ("
    "SELECT rowid AS id, -bm25(responses_text) AS score FROM responses_text "
    "WHERE responses_text MATCH ?1) AS found "
    "JOIN entries ON entries.response_id = found.id"
    ") GROUP BY id ORDER BY total DESC, id LIMIT ?2"
)


def _may_be(entry_id: int) -> bool:
    """Whether an entry can have this id; SQLite refuses to look for larger ones."""
    return 0 < entry_id < 2**63


def _changes(db: sqlite3.Connection, after: int) -> Changes:
    rows = db.execute(
        "SELECT id, question, response_id, bucket, count, features FROM entries "
        "WHERE version > ? ORDER BY id",
        (after,),
    ).fetchall()
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    ids, questions, response_ids, buckets, counts, features = columns
    given = "(SELECT response_id FROM entries WHERE version > ?)"
    responses = db.execute(
        f"SELECT id, text, features, vector FROM responses WHERE id IN {given}",
        (after,),
    )
    removed = db.execute("SELECT id FROM removed WHERE version > ?", (after,))
    return Changes(
        int(read_meta(db, "version")),
        np.array(ids, np.int64),
        list(questions),
        np.array(response_ids, np.int64),
        np.array(buckets, np.int32),
        np.array(counts, np.int32),
        list(features),
        {row[0]: row[1:] for row in responses},
        np.array(removed.fetchall(), np.int64).reshape(-1),
    )
