"""`prefchat index --from_db`: the replies that the reference stored."""

import contextlib
import shutil
import sqlite3

import pytest

from prefchat_jax import Chat
from prefchat_jax.cli.main import main
from prefchat_jax.compat.database import read_examples
from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Turn

pytestmark = pytest.mark.usefixtures("no_connection_left")

SCHEMA = (
    "CREATE TABLE llm_entries (id INTEGER PRIMARY KEY, user_text TEXT, "
    "context_text TEXT, response_text TEXT, count INTEGER, ctx_vec TEXT, resp_vec TEXT)"
)


def _database(path, *rows, schema=SCHEMA):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(schema)
        db.executemany(
            "INSERT INTO llm_entries (user_text, context_text, response_text, count) "
            "VALUES (?, ?, ?, ?)",
            rows,
        )
    return path


def test_rows_become_dialogues(tmp_path):
    context = "User: hello\nAssistant: Hi.\nHow are you?\nUser: where is it"
    path = _database(
        tmp_path / "llm #1?.db",
        ("where is it", context, "In the shop.", 2),
        ("lost card", "", "Call us.", None),
        ("not in the context", "User: earlier", "Yes.", -1),
        ("no reply", "", " ", 1),
        (None, "", "No question.", 1),
        ("usual", "", "Often.", 10**9),
    )
    found = read_examples(path)
    where, again, lost, other, *usual = found
    assert where == again and where.response == "In the shop."
    assert where.context == (
        Turn("user", "hello"),
        Turn("assistant", "Hi.\nHow are you?"),
        Turn("user", "where is it"),
    )
    assert lost.context == (Turn("user", "lost card"),)
    assert [turn.content for turn in other.context] == ["earlier", "not in the context"]
    assert 1 < len(usual) < 100


def test_chat_gives_what_was_stored(run, tmp_path, capsys):
    own = shutil.copytree(run.run.path, tmp_path / "run")
    path = _database(
        tmp_path / "llm.db",
        ("do you sell umbrellas", "", "Umbrellas are on the second floor.", 3),
    )
    before = path.read_bytes()
    assert main(["index", "--weights", str(own), "--from_db", str(path)]) == 0
    assert "29 answers stored" in capsys.readouterr().out
    assert path.read_bytes() == before
    with Chat.load(own) as chat:
        reply = chat.reply("do you sell umbrellas", style="balanced")
    assert reply.text == "Umbrellas are on the second floor."


def test_a_file_that_is_no_such_database(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_examples(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
    path = tmp_path / "text.db"
    path.write_text("not a database" * 100)
    with pytest.raises(UserError, match="text.db cannot be read .*not a database"):
        read_examples(path)
    schema = "CREATE TABLE other (id INTEGER)"
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db")) as db, db:
        db.execute(schema)
    with pytest.raises(UserError, match="no such table: llm_entries"):
        read_examples(tmp_path / "other.db")
    for row in (("a", "", b"\xff", 1), ("a", "", "b", "many")):
        odd = _database(tmp_path / f"{row[2]!r}.db", row)
        with pytest.raises(UserError, match="cannot be read"):
            read_examples(odd)


def test_a_database_without_replies_changes_nothing(run, tmp_path, capsys):
    own = shutil.copytree(run.run.path, tmp_path / "run")
    before = (own / "responses.db").read_bytes()
    path = _database(tmp_path / "empty.db")
    assert main(["index", "--weights", str(own), "--from_db", str(path)]) == 2
    assert "empty.db has no row with a reply" in capsys.readouterr().err
    assert (own / "responses.db").read_bytes() == before
