"""Migration: a store of the first schema, written anew.

That schema kept the response with each entry, in the table, and features as all
ids followed by all weights. Ids, counts, buckets, features and the order of the
entries stay; vectors of a response scorer were not known and stay empty.
"""

import contextlib
import os
import pathlib
import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np

from prefchat_jax.chat.connections import connect, new_database
from prefchat_jax.chat.damage import one_line
from prefchat_jax.chat.schema import (
    check_binding,
    create_tables,
    index_tables,
    optimize_texts,
    read_meta,
    read_schema,
)
from prefchat_jax.chat.store import Answers
from prefchat_jax.chat.writing import Keys, insert
from prefchat_jax.text.packed import pair_type

_BLOCK = 5_000  # Entries that are in memory at once.
_VERSION = 1  # Of the store once it is migrated.


_MAGIC = b"SQLite format 3\0"
_USER_VERSION = slice(60, 64)  # Of the header of a SQLite file.


def is_old(path: pathlib.Path) -> bool:
    """Whether a file may be a store of schema 1, which wrote no user version.

    It is read without SQLite: a connection that was opened before the file is
    replaced would take the log of the new file for its own.
    """
    with path.open("rb") as file:
        header = file.read(_USER_VERSION.stop)
    return header.startswith(_MAGIC) and not any(header[_USER_VERSION])


def migrate(path: pathlib.Path, *, fingerprint: str, bits: int) -> None:
    """Brings a store of schema 1 that can be written up to date, all or nothing.

    Args:
      path: the store; other processes that would migrate it wait.
      fingerprint: of its checkpoint.
      bits: log2 of the number of feature ids.

    Raises:
      UserError: the file is damaged, or of another checkpoint.
    """
    can_write = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    if not can_write or not is_old(path):
        return
    with _alone(path), one_line(path):
        if not is_old(path):
            return  # Another process was faster.
        with contextlib.closing(connect(path, "rw")) as old:
            old.execute("BEGIN EXCLUSIVE")
            check_binding(old, path, fingerprint)
            if read_schema(old) == 1:
                with new_database(path) as aside:
                    _copy(old, aside, bits)


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock that one thread of one process can have."""
    lock = path.with_name(f"{path.name}-migrating")
    with lock.open("wb") as file:
        with contextlib.suppress(ImportError):  # Windows has no fcntl.
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    lock.unlink(missing_ok=True)  # Who waited for it finds a migrated store.


def _copy(old: sqlite3.Connection, aside: pathlib.Path, bits: int) -> None:
    with contextlib.closing(connect(aside, "rwc")) as new:
        create_tables(new, read_meta(old, "fingerprint"))
        new.execute("BEGIN")
        rows = old.execute(
            "SELECT id, bucket, count, question, response, question_vector, "
            "response_vector FROM entries ORDER BY id"
        )
        while block := rows.fetchmany(_BLOCK):
            _copy_block(new, block, bits)
        new.execute("UPDATE meta SET value = ? WHERE key = 'version'", (str(_VERSION),))
        new.commit()
        index_tables(new)
        optimize_texts(new)
        new.execute("PRAGMA journal_mode = WAL")


def _copy_block(new: sqlite3.Connection, rows: Sequence[tuple], bits: int) -> None:
    ids, buckets, counts, questions, responses, asked, replied = zip(*rows, strict=True)
    answers = Answers(
        questions,
        responses,
        np.array(buckets, np.int32),
        [_recoded(blob, bits) for blob in asked],
        [_recoded(blob, bits) for blob in replied],
        np.zeros((len(rows), 0), np.float16),
    )
    inserted = insert(new, _VERSION, answers, Keys.of(answers)).tolist()
    # Ids moved where entries had been deleted; ascending, none is in the way.
    moved = zip(ids, counts, inserted, strict=True)
    new.executemany(
        "UPDATE entries SET id = ?1, count = ?2 WHERE id = ?3",
        reversed(list(moved)),
    )


def _recoded(blob: bytes, bits: int) -> bytes:
    """Pairs of an id and a weight, from all ids and then all weights."""
    count = len(blob) // 6
    pairs = np.zeros(count, pair_type(bits))
    pairs["id"] = np.frombuffer(blob, "<u4", count)
    pairs["weight"] = np.frombuffer(blob, "<f2", count, 4 * count)
    return pairs.tobytes()
