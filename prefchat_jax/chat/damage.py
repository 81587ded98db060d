"""Damage: what to say of a SQLite file that cannot be used, and advice that works."""

import contextlib
import pathlib
import sqlite3
from collections.abc import Callable, Iterator

from prefchat_jax.errors import UserError
from prefchat_jax.training.run_directory import RunDirectory

# SQLITE_ERROR: a table is missing, or its index has lost its header.
_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def rebuild(path: pathlib.Path) -> str:
    """How to come by a store of a run again.

    Only the run's own is safe to delete: another may be any file of the user.
    """
    if _is_own(path):
        return (
            "delete it and repeat the `prefchat finetune` command of the run with "
            "--resume; answers that chat.add or `prefchat index` added are lost"
        )
    return (
        "check --llm_db, or build another with `prefchat index --weights RUN --llm_db "
        "NEW.db --data CORPUS`"
    )


def unusable(path: pathlib.Path, reason: str) -> str:
    """A line about a file that is no store, or no more."""
    kind = "is damaged" if _is_own(path) else "is not a database of replies"
    return f"{path} {kind} ({reason}): {rebuild(path)}."


@contextlib.contextmanager
def one_line(
    path: pathlib.Path, damaged: Callable[[pathlib.Path, str], str] = unusable
) -> Iterator[None]:
    """Turns errors of a database into `UserError`.

    Args:
      path: the file.
      damaged: what to say of it where it is damaged, or of another kind.
    """
    try:
        yield
    except sqlite3.Error as error:
        line = f"{path}: {error}. Nothing was changed."
        if _is_damage(error):
            line = damaged(path, str(error))
        raise UserError(line) from error


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # Not from SQLite: see `schema.read_meta`.
        return type(error) is sqlite3.DatabaseError
    return code & 0xFF in _CODES


def _is_own(path: pathlib.Path) -> bool:
    run = RunDirectory(path.parent)
    return path == run.store and (run.path / "config.json").exists()
