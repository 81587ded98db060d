"""Migration: a store of the first schema, written anew.

That schema kept the response with each entry, in the table, and features as all
ids followed by all weights. Ids, counts, buckets, features and the order of the
entries stay; vectors of a response scorer were not known and stay empty.
"""

import contextlib
import pathlib
import sqlite3
from collections.abc import Sequence

import numpy as np

from prefchat_jax.chat.connections import connect, new_database, one_line
from prefchat_jax.chat.schema import (
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


def migrate(path: pathlib.Path, bits: int) -> None:
    """Brings a store of schema 1 up to date, all or nothing.

    Args:
      path: the store; nobody else can write it meanwhile.
      bits: log2 of the number of feature ids.

    Raises:
      UserError: the file is damaged.
    """
    with one_line(path):
        inode = path.stat().st_ino
        with contextlib.closing(connect(path, "rw")) as old:
            old.execute("BEGIN EXCLUSIVE")
            if path.stat().st_ino != inode or read_schema(old) != 1:
                return  # Another process was faster.
            with new_database(path) as aside:
                _copy(old, aside, bits)


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
