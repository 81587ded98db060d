"""Memory: what users said in earlier sessions, in one SQLite file.

Every question to it names a user, by the column and in the text index, so that
nobody finds the turns of another.
"""

import hashlib
import math
import os
import pathlib
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from prefchat_jax.chat.damage import one_line
from prefchat_jax.chat.follow_up import content_words, leans
from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import ROLES, Turn

SESSION_SECONDS = 3600.0  # Turns of the last hour still belong to a conversation.
_SESSION_TURNS = 8  # As many as a context reads.
_APPLICATION, _VERSION = 0x70726D65, 1  # "prme", in the header of the file.
_WORDS = 64  # Of a search.
_BUSY_SECONDS = 30.0
_RETRY_SECONDS = 0.01
_CLEAR_SECONDS = 3.0  # To wait for readers of what is forgotten.
_SCHEMA = (
    """CREATE TABLE turns (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user TEXT NOT NULL,
    user_key TEXT NOT NULL,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    at REAL NOT NULL
)""",
    "CREATE INDEX turns_by_user ON turns (user, id)",
    """CREATE VIRTUAL TABLE turns_text USING fts5 (
    user_key, content, content='turns', content_rowid='id', tokenize='unicode61'
)""",
    """CREATE TRIGGER turn_added AFTER INSERT ON turns BEGIN
    INSERT INTO turns_text (rowid, user_key, content)
    VALUES (new.id, new.user_key, new.content);
END""",
    """CREATE TRIGGER turn_removed AFTER DELETE ON turns BEGIN
    INSERT INTO turns_text (turns_text, rowid, user_key, content)
    VALUES ('delete', old.id, old.user_key, old.content);
END""",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)


class Remembered(NamedTuple):
    """A turn that was said.

    Attributes:
      id: of the turn; later turns have larger ones.
      role: one of `text.dialogue.ROLES`.
      content: what was said.
      at: when, in seconds since 1970.
      score: BM25 times recency, of a search; else 0.
    """

    id: int
    role: str
    content: str
    at: float
    score: float = 0.0

    @property
    def turn(self) -> Turn:
        """Role and content."""
        return Turn(self.role, self.content)


class Memory:
    """The turns of one user. Threads may share one; processes may share the file.

    Args:
      path: of the file; it is made where there is none, for its owner alone.
      user: whose turns; any text, taken as it is.
      half_life: seconds after which a turn counts half in a search.
      clock: seconds since 1970.

    Raises:
      UserError: here and in the methods, what is wrong with the file or the user.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        user: str,
        *,
        half_life: float = 7 * 86_400.0,
        clock: Callable[[], float] = time.time,
    ):
        if not user.strip():
            raise UserError("memory: a user needs a name, which --user gives.")
        if not (half_life > 0 and math.isfinite(half_life)):
            raise UserError(f"memory: half_life {half_life:g}: must be above 0.")
        self.path = pathlib.Path(path)
        self.user = _storable(user, strict=True)
        digest = hashlib.blake2b(self.user.encode(), digest_size=16)
        self._key = f"u{digest.hexdigest()}"  # One word to the text index.
        self._half_life = half_life
        self._clock = clock
        self._lock = threading.Lock()
        with one_line(self.path, _no_memory):
            self._db = _opened(self.path)

    def remember(self, role: str, content: str) -> int:
        """Adds a turn.

        Returns:
          Its id, once it is safe on disk.

        Raises:
          ValueError: there is no such role.
        """
        if role not in ROLES:
            raise ValueError(f"Unknown role {role!r}: use one of {', '.join(ROLES)}.")
        row = self.user, self._key, role, _storable(content), self._clock()
        with self._ask() as db:
            (turn_id,) = db.execute(
                "INSERT INTO turns (user, user_key, role, content, at) "
                "VALUES (?, ?, ?, ?, ?) RETURNING id",
                row,
            ).fetchone()
        return turn_id

    def recent(
        self, limit: int = _SESSION_TURNS, *, within: float = math.inf
    ) -> list[Remembered]:
        """The last turns, oldest first; of the last `within` seconds only."""
        return self._select(
            "SELECT id, role, content, at FROM turns WHERE user = ? AND at >= ? "
            "ORDER BY id DESC LIMIT ?",
            (self.user, self._clock() - within, max(limit, 0)),
        )[::-1]

    def turns(self) -> list[Remembered]:
        """All turns, oldest first."""
        return self._select(
            "SELECT id, role, content, at FROM turns WHERE user = ? ORDER BY id",
            (self.user,),
        )

    def search(self, text: str, limit: int = 5) -> list[Remembered]:
        """Turns with words of a text, best first: BM25 times recency.

        A turn counts `0.5**(age / half_life)` of its BM25 score.
        """
        text = _storable(text)
        words = (content_words(text) or re.findall(r"\w+", text.lower()))[:_WORDS]
        if not words or limit <= 0:
            return []
        content = " OR ".join(f'"{word}"' for word in words)
        # The name weighs nothing; SQLite's own scores are negative.
        found = self._select(
            "SELECT turns.id, role, turns.content, at, -bm25(turns_text, 0, 1) "
            "FROM turns_text JOIN turns ON turns.id = turns_text.rowid "
            "WHERE turns_text MATCH ? AND turns.user = ?",
            (f"user_key : {self._key} AND content : ({content})", self.user),
        )
        now = self._clock()
        # Powers of two are compared by their exponents, which do not underflow.
        half_lives = [max(now - one.at, 0.0) / self._half_life for one in found]
        exponents = [
            math.log2(max(one.score, 1e-300)) - age
            for one, age in zip(found, half_lives, strict=True)
        ]
        order = sorted(range(len(found)), key=lambda i: (-exponents[i], -found[i].id))
        return [found[i]._replace(score=2.0 ** exponents[i]) for i in order[:limit]]

    def forget(self, ids: Iterable[int] | None = None) -> int:
        """Removes turns of the user, by id or all, and their text from the file.

        Returns:
          How many there were.

        Raises:
          UserError: also where they are forgotten, but another session keeps their
            text in the file.
        """
        removed = 0
        with self._ask() as db:
            if ids is None:
                removed = db.execute(
                    "DELETE FROM turns WHERE user = ?", (self.user,)
                ).rowcount
            for turn_id in (i for i in ids or () if 0 < i < 2**63):
                removed += db.execute(
                    "DELETE FROM turns WHERE user = ? AND id = ?",
                    (self.user, turn_id),
                ).rowcount
            db.execute("INSERT INTO turns_text (turns_text) VALUES ('optimize')")
        # What was written ahead still holds the text.
        with self._ask() as db, _waiting(db, _CLEAR_SECONDS):
            (busy, *_) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise UserError(
                f"{self.path}: forgotten, but another session reads the file and keeps "
                f"the text in {self.path.name}-wal: close other sessions, then forget "
                "again."
            )
        return removed

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._ask() as db:
            (count,) = db.execute(
                "SELECT count(*) FROM turns WHERE user = ?", (self.user,)
            ).fetchone()
        return count

    def _select(self, query: str, values: tuple) -> list[Remembered]:
        with self._ask() as db:
            return [Remembered(*row) for row in db.execute(query, values)]

    @contextmanager
    def _ask(self) -> Iterator[sqlite3.Connection]:
        with self._lock, one_line(self.path, _no_memory), self._db:
            yield self._db


def session_start(memory: Memory) -> list[Turn]:
    """The history that a new session goes on from: turns of the last hour."""
    return [one.turn for one in memory.recent(within=SESSION_SECONDS)]


def recall(memory: Memory, message: str, history: Sequence[Turn]) -> list[Turn]:
    """The history, and last an older turn of the user that a message seems to mean.

    Only a message that leans on what came before is looked up, by its own words.
    What it means counts most, however much was said since.
    """
    history = list(history)
    if not (leans(message) and content_words(message)):
        return history
    for found in memory.search(message, limit=4):
        if found.role == "user" and found.turn not in history:
            return [*history, found.turn]
    return history


def _storable(text: str, *, strict: bool = False) -> str:
    """Text that UTF-8 can hold; lone surrogates are replaced, or refused."""
    try:
        text.encode()
    except UnicodeEncodeError:
        if strict:
            raise UserError(f"memory: the user {text!r} is not valid text.") from None
        return text.encode("utf-8", "replace").decode()
    return text


def _opened(path: pathlib.Path) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Check --memory_db.") from error
    db = sqlite3.connect(path, timeout=_BUSY_SECONDS, check_same_thread=False)
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def _waiting(db: sqlite3.Connection, seconds: float) -> Iterator[None]:
    """Waits so long for others, instead of `_BUSY_SECONDS`."""
    db.execute(f"PRAGMA busy_timeout = {int(1e3 * seconds)}")
    try:
        yield
    finally:
        db.execute(f"PRAGMA busy_timeout = {int(1e3 * _BUSY_SECONDS)}")


def _prepare(db: sqlite3.Connection, path: pathlib.Path) -> None:
    """Makes the tables in a new file; refuses a file of another kind."""
    if not _tables(db):
        _create(db)
    # All of it came at once: where there are tables, there is what names them.
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise UserError(_no_memory(path, "it holds other tables"))
    if version > _VERSION:
        raise UserError(f"{path} has a newer schema: upgrade prefchat-jax.")
    _write_ahead(db)
    db.execute("PRAGMA secure_delete = ON").fetchall()  # Forgotten is overwritten.


def _create(db: sqlite3.Connection) -> None:
    with db:
        db.execute("BEGIN IMMEDIATE")
        if not _tables(db):  # Else another process was faster.
            for statement in _SCHEMA:
                db.execute(statement)


def _tables(db: sqlite3.Connection) -> int:
    return db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]


def _write_ahead(db: sqlite3.Connection) -> None:
    """Readers go on while one writes. SQLite does not wait for others here."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > end:
                raise
        time.sleep(_RETRY_SECONDS)


def _no_memory(path: pathlib.Path, reason: str) -> str:
    return f"{path} is not a memory that can be read ({reason}): check --memory_db."
