"""Copying: a store for a run with the same features and another response scorer."""

import contextlib
import hashlib
import pathlib
import sqlite3

from prefchat_jax.chat.connections import connect, new_database, possible_mode
from prefchat_jax.chat.damage import one_line
from prefchat_jax.chat.schema import read_meta
from prefchat_jax.chat.sqlite_store import SqliteStore
from prefchat_jax.inference import Inference

_BLOCK = 4_096  # Responses that are encoded at once.


def copy_store(
    source: pathlib.Path, path: pathlib.Path, *, fingerprint: str, inference: Inference
) -> None:
    """Copies a store, all or nothing; only the vectors of the responses change.

    Entries keep their ids, counts, buckets and features, and so does what was added
    or deleted since training.

    Args:
      source: the store to copy.
      path: of the copy.
      fingerprint: of the checkpoint that `source` belongs to.
      inference: the run that `path` is for; it has the featurizer and the
        classifier of the other one.

    Raises:
      UserError: there is no such store, or it is damaged or of another checkpoint.
    """
    check_store(source, fingerprint=fingerprint, inference=inference)
    with (
        one_line(path),
        new_database(path) as aside,
        contextlib.closing(connect(aside, "rwc")) as new,
    ):
        with contextlib.closing(connect(source, possible_mode(source))) as old:
            old.backup(new)
        new.execute("BEGIN")
        _encode_responses(new, inference)
        _bind(new, inference.fingerprint)
        new.commit()
        new.execute("PRAGMA journal_mode = WAL")


def check_store(
    source: pathlib.Path, *, fingerprint: str, inference: Inference
) -> None:
    """Raises `UserError` where `copy_store` would find no store to copy."""
    bits = inference.featurizer.config.bits
    SqliteStore.open(source, fingerprint=fingerprint, bits=bits).close()


def _encode_responses(db: sqlite3.Connection, inference: Inference) -> None:
    texts = db.execute("SELECT id, text FROM responses ORDER BY id").fetchall()
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        bags = inference.featurizer.texts(text for _, text in block)
        vectors = inference.encode_responses(bags)
        blobs = [vector.tobytes() for vector in vectors.astype("<f2")]
        ids = (number for number, _ in block)
        db.executemany(
            "UPDATE responses SET vector = ? WHERE id = ?",
            zip(blobs, ids, strict=True),
        )


def _bind(db: sqlite3.Connection, fingerprint: str) -> None:
    """Makes the copy that of another checkpoint, with a history of its own."""
    state = f"{read_meta(db, 'state')}\0{fingerprint}".encode()
    values = {
        "fingerprint": fingerprint,
        "state": hashlib.blake2b(state, digest_size=16).hexdigest(),
        "segment_version": "",
        "segment_state": "",
    }
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())
