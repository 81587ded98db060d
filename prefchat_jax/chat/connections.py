"""Connections to one SQLite file, lent to one thread at a time."""

import contextlib
import os
import pathlib
import sqlite3
import threading
from collections.abc import Iterator

from prefchat_jax.chat.damage import one_line
from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside

_BUSY_SECONDS = 60.0  # A bulk write in another process takes seconds at most.
_KEPT = 8  # Connections that nobody uses; more are closed.


class Connections:
    """Opens a file as often as threads use it at once.

    It stays the same file: where another one has taken its path, ids and versions
    would mean something else, and what is written to the old one would be lost.

    Attributes:
      path: the file.
      mode: `rwc`, `rw`, `ro`, or `ro&immutable=1` for a file beside which no lock
        can be kept.
    """

    def __init__(self, path: pathlib.Path, mode: str):
        self.path = path
        self.mode = mode
        self._file = _identity(path)  # None where it is yet to be made.
        self._free: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def lend(self) -> Iterator[sqlite3.Connection]:
        """A connection, outside of any transaction; errors become `UserError`."""
        with one_line(self.path):
            db = self._take()
            try:
                yield db
            finally:
                self._give_back(db)

    def close(self) -> None:
        """Closes the file, in all threads once they are done."""
        with self._lock:
            self._closed = True
            for db in self._free:
                db.close()
            self._free.clear()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise UserError(f"{self.path} was closed.")
            self._check_file()
            if self._free:
                return self._free.pop()
        db = connect(self.path, self.mode)
        try:
            self._check_file()
        except UserError:
            db.close()
            raise
        return db

    def _check_file(self) -> None:
        present = _identity(self.path)
        self._file = self._file or present
        if present != self._file:
            raise UserError(
                f"{self.path} was replaced or removed since it was opened: open the "
                "chat again."
            )

    def _give_back(self, db: sqlite3.Connection) -> None:
        try:
            if db.in_transaction:
                db.rollback()
        except sqlite3.Error:  # Nobody else would close what was lent.
            db.close()
            raise
        with self._lock:
            if not self._closed and len(self._free) < _KEPT:
                self._free.append(db)
                return
        db.close()


def connect(path: pathlib.Path, mode: str) -> sqlite3.Connection:
    """One connection, which commits where the code says so."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        db.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error:
        db.close()
        raise
    return db


def possible_mode(path: pathlib.Path) -> str:
    """How a file can be opened here: for writing if possible.

    A file written ahead needs a file of locks beside it. Where none is and none
    can be made, nobody here writes, and the file is read without locks; what a
    writer elsewhere changes is then unseen until it is opened again.
    """
    modes = ["rw", "ro"] if os.access(path, os.W_OK) else ["ro"]
    if not _size(_beside(path, "-wal")):  # Else it would miss what only that holds.
        modes.append("ro&immutable=1")
    for mode in modes:
        try:
            with contextlib.closing(connect(path, mode)) as db:
                db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return mode
        except sqlite3.OperationalError:
            if mode == modes[-1]:
                raise
    raise AssertionError("There is a mode.")


@contextlib.contextmanager
def new_database(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path, without a file, of a database that replaces `path` when done."""
    with write_aside(path) as aside:
        aside.unlink()  # SQLite makes the file itself.
        try:
            yield aside
            # A log that a dead process left would be read into the new file.
            _remove_logs(path)
        finally:
            _remove_logs(aside)


def _remove_logs(path: pathlib.Path) -> None:
    for end in ("-wal", "-shm", "-journal"):
        _beside(path, end).unlink(missing_ok=True)


def _beside(path: pathlib.Path, end: str) -> pathlib.Path:
    return path.with_name(path.name + end)


def _identity(path: pathlib.Path) -> tuple[int, int] | None:
    """Device and inode; None where there is no file. Takes two microseconds."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
