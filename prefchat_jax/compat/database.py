"""The reference's database of replies as examples that a store takes.

Its vectors are left: a store has those of its own run. No JAX.
"""

import contextlib
import os
import pathlib
import re
import sqlite3
from collections.abc import Iterator

from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Example, Turn

_ROWS = (
    "SELECT id, user_text, context_text, response_text, count "
    "FROM llm_entries ORDER BY id"
)
_MOST = 32  # Times that one row counts: chat only asks which reply is usual.
_SPOKEN = re.compile(r"(user|assistant|system|tool)\s*:\s*(.*)", re.IGNORECASE)


def read_examples(path: str | os.PathLike) -> list[Example]:
    """Reads the answered questions of `llm_entries`, each as often as it counts.

    The file is opened for reading alone.

    Raises:
      UserError: there is no such file, or it is no database of the reference.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file. Check the path.")
    uri = f"{pathlib.Path(path).absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
            return [example for row in db.execute(_ROWS) for example in _read(row)]
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): a database of the reference has the "
            "table llm_entries with user_text, context_text, response_text and count."
        ) from error


def as_often(row: Example, count: int) -> list[Example]:
    """The row as often as it counts, within bounds."""
    return [row] * min(max(count, 1), _MOST)


def _read(row: tuple) -> Iterator[Example]:
    number, user, context, response, count = row
    texts = [text or "" for text in (user, context, response)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"row {number} holds something else than text")
    user, context, response = (text.strip() for text in texts)
    if user and response:
        turns = (*_earlier(context, user), Turn("user", user))
        yield from as_often(Example(turns, response), int(count or 1))


def _earlier(context: str, user: str) -> list[Turn]:
    """The turns before the question, which is the last of `Role: text` lines."""
    turns: list[Turn] = []
    for line in context.splitlines():
        spoken = _SPOKEN.match(line)
        if spoken:
            turns.append(Turn(spoken[1].lower(), spoken[2].strip()))
        elif turns:  # A message of several lines.
            last = turns.pop()
            turns.append(Turn(last.role, f"{last.content}\n{line}".strip()))
    if turns and turns[-1] == Turn("user", user):
        turns.pop()
    return [turn for turn in turns if turn.content]
