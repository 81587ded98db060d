"""The tables of a store, and the numbers that bind it to a checkpoint."""

import pathlib
import sqlite3

from prefchat_jax.errors import UserError

SCHEMA_VERSION = 2

_TABLES = """
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
CREATE TABLE removed (id INTEGER NOT NULL, version INTEGER NOT NULL);
CREATE TABLE common_words (word TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIRTUAL TABLE questions_text USING fts5 (
    question, content='entries', content_rowid='id', tokenize='unicode61'
);
CREATE VIRTUAL TABLE responses_text USING fts5 (
    text, content='responses', content_rowid='id', tokenize='unicode61'
);
CREATE VIRTUAL TABLE questions_words USING fts5vocab ('questions_text', 'row');
CREATE VIRTUAL TABLE responses_words USING fts5vocab ('responses_text', 'row');
"""
_INDEXES = """
CREATE INDEX entries_by_version ON entries (version);
CREATE INDEX entries_by_response ON entries (response_id);
CREATE INDEX removed_by_version ON removed (version);
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
_PAGE = 16_384  # Bytes: of 4,096 an answer of a thousand letters leaves a fifth empty.
# Words that FTS5 sorts in memory: what it writes in parts it must merge, and the
# parts leave holes in the file.
_SORTED, _USUAL = 1 << 26, 1 << 20  # Bytes, while all is indexed and later on.
_COMMON = 0.05  # Share of the texts from which on a search skips a word,
_LONG = 2_000  # if that many texts hold it.


def create_tables(db: sqlite3.Connection, fingerprint: str) -> None:
    """Makes the tables, which `index_tables` then indexes.

    Rows that come between the two are found by their keys alone, which is what
    makes a bulk build fast.
    """
    meta = {
        "schema": str(SCHEMA_VERSION),
        "fingerprint": fingerprint,
        "version": "0",
        "state": fingerprint,
        "segment_version": "",
        "segment_state": "",
    }
    db.execute(f"PRAGMA page_size = {_PAGE}")
    db.executescript(_TABLES)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # See `migration.is_old`.
    db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())


def index_tables(db: sqlite3.Connection) -> None:
    """Makes the other indexes, and the triggers that keep the text indexes."""
    for table in ("questions_text", "responses_text"):
        tell = f"INSERT INTO {table} ({table}, rank) VALUES ('hashsize', ?)"
        db.execute(tell, (_SORTED,))
        db.execute(f"INSERT INTO {table} ({table}) VALUES ('rebuild')")
        db.execute(tell, (_USUAL,))
    db.executescript(_INDEXES)


def read_meta(db: sqlite3.Connection, key: str) -> str:
    """A value of the table `meta`; sqlite3.DatabaseError where there is none."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None:
        raise sqlite3.DatabaseError(f"it does not say its {key}")
    return row[0]


def read_schema(db: sqlite3.Connection) -> int:
    """The number of the schema; sqlite3.DatabaseError where there is none."""
    written = read_meta(db, "schema")
    if not written.isdecimal():
        raise sqlite3.DatabaseError(f"its schema {written!r} is no number")
    return int(written)


def check_binding(db: sqlite3.Connection, path: pathlib.Path, fingerprint: str) -> None:
    """Raises `UserError` for a newer schema or another checkpoint."""
    if read_schema(db) > SCHEMA_VERSION:
        raise UserError(f"{path} has a newer schema: upgrade prefchat-jax.")
    if read_meta(db, "fingerprint") != fingerprint:
        raise UserError(
            f"{path} belongs to another checkpoint: check --weights and --llm_db, or "
            "repeat the `prefchat finetune` command of the run with --resume, which "
            "writes its database anew, without the answers that were added."
        )


def optimize_texts(db: sqlite3.Connection) -> None:
    """Merges the text indexes, and learns which words are common."""
    db.execute("DELETE FROM common_words")
    for table, rows in (("questions", "entries"), ("responses", "responses")):
        db.execute(f"INSERT INTO {table}_text ({table}_text) VALUES ('optimize')")
        db.execute(
            f"INSERT OR IGNORE INTO common_words SELECT term FROM {table}_words "
            f"WHERE doc > max(?, ? * (SELECT count(*) FROM {rows}))",
            (_LONG, _COMMON),
        )


def problem(db: sqlite3.Connection, *, texts: bool) -> str | None:
    """What is wrong with a file, read in full; None if nothing is.

    Args:
      db: the file.
      texts: also compare the text indexes with the texts; needs to write.
    """
    (found,) = db.execute("PRAGMA integrity_check (1)").fetchone()
    if found != "ok":
        return found
    if db.execute("PRAGMA foreign_key_check").fetchone():
        return "an entry has no response"
    for table in ("questions", "responses") if texts else ():
        db.execute(
            f"INSERT INTO {table}_text ({table}_text, rank) "
            "VALUES ('integrity-check', 1)"
        )
    return None
