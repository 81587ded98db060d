"""`prefchat index`: adds, removes, finds and checks what a run has stored."""

import contextlib
import json
import re
import sqlite3

import pytest
from rich.console import Console

from prefchat_jax import Chat
from prefchat_jax.chat.catalogue import segment_path
from prefchat_jax.cli.main import main

pytestmark = pytest.mark.usefixtures("no_connection_left")


def _index(own_run, capsys, *flags):
    code = main(["index", "--weights", str(own_run), *map(str, flags)])
    said = capsys.readouterr()
    return code, (said.out + said.err).strip()


def test_index_deletes_by_id_and_by_reply(own_run, capsys):
    with Chat.load(own_run) as chat:
        first = chat.store.get([1])[0]
        same = len(chat.store.find_response(first.response))
    before = segment_path(own_run / "responses.db").read_bytes()
    code, said = _index(own_run, capsys, "--delete", 1, 2)
    assert (code, said) == (0, "2 entries removed, 26 answers stored")
    assert segment_path(own_run / "responses.db").read_bytes() != before
    with Chat.load(own_run) as chat:
        assert [entry.id for entry in chat.store.get([1, 2, 3])] == [3]
        left = len(chat.store.find_response(first.response))
        assert same - 2 <= left < same
    code, said = _index(own_run, capsys, "--delete_response", first.response)
    assert said == f"{left} entries removed, {26 - left} answers stored"


def test_index_checks_and_counts(own_run, capsys):
    code, said = _index(own_run, capsys, "--check", "--stats")
    lines = dict(line.split(": ") for line in said.splitlines()[1:])
    database = own_run / "responses.db"
    assert code == 0 and said.splitlines()[0] == "the database is intact"
    assert (lines["entries"], lines["responses"]) == ("28", "4")
    assert lines["index bytes"] == f"{segment_path(database).stat().st_size:,}"
    segment_path(database).unlink()
    assert "index bytes: 0" in _index(own_run, capsys, "--stats")[1]
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("DELETE FROM responses WHERE id = 1")
        db.commit()
    code, said = _index(own_run, capsys, "--check")
    assert code == 2 and "damaged" in said and "\n" not in said


def test_index_on_a_damaged_text_index_says_so(own_run, corpus_path, capsys):
    database = own_run / "responses.db"
    where = "SELECT rootpage FROM sqlite_schema WHERE name = 'questions_text_data'"
    with contextlib.closing(sqlite3.connect(database)) as db:
        (page,) = db.execute(where).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    for flags in (["--data", corpus_path], ["--check"], ["--search", "parcel"]):
        code, said = _index(own_run, capsys, *flags)
        assert code == 2 and re.search(r"is damaged \(.*\): delete it and", said)


def test_index_deletes_then_adds(own_run, tmp_path, capsys):
    path = tmp_path / "more.jsonl"
    path.write_text('{"user": "got umbrellas", "assistant": "Yes."}\n')
    code, said = _index(own_run, capsys, "--delete", 1, "--data", path)
    assert (code, said.splitlines()[1]) == (0, _added(1, 0, 28))


def test_index_lists_what_words_find(own_run, capsys, monkeypatch):
    with Chat.load(own_run) as chat:
        found = chat.store.search_text("parcel please", 20)
        entries = chat.store.get(list(found))
        chat.add("[b] vase", "two\nlines " + "and more " * 30)
    code, said = _index(own_run, capsys, "--search", "parcel please")
    assert (code, said.splitlines()) == (
        0,
        [f"{e.id}\t{e.question}\t{e.response}" for e in entries],
    )
    (line,) = _index(own_run, capsys, "--search", "VASE")[1].splitlines()
    number, question, reply = line.split("\t")
    assert (question, reply[:13]) == ("[b] vase", "two lines and")
    assert _index(own_run, capsys, "--search", "zebra") == (0, "nothing found")
    terminal = lambda: Console(width=60, force_terminal=True, color_system=None)
    monkeypatch.setattr("prefchat_jax.cli.index.output", terminal)
    said = _index(own_run, capsys, "--search", "vase")[1]
    assert "┃ reply" in said and re.search(rf"│ {number} +│ \[b\] vase │ two", said)
    code, said = _index(own_run, capsys, "--delete", number, "--search", "vase")
    assert code == 0 and said.splitlines()[1] == "nothing found"


def _added(new, again, total):
    return f"{new} rows added, {again} were there already, {total} answers stored"


def _bucket(own_run, question):
    with contextlib.closing(sqlite3.connect(own_run / "responses.db")) as db:
        asked = "SELECT bucket, count FROM entries WHERE question = ?"
        return db.execute(asked, (question,)).fetchone()


def test_index_says_what_was_there_already(own_run, tmp_path, capsys):
    path = tmp_path / "more.jsonl"
    path.write_text('{"user": "got umbrellas", "assistant": "Yes."}\n' * 2)
    assert _index(own_run, capsys, "--data", path)[1] == _added(1, 1, 29)
    assert _index(own_run, capsys, "--data", path)[1] == _added(0, 2, 29)


def test_index_with_unknown_labels_keeps_the_buckets_of_replies(
    own_run, tmp_path, capsys
):
    with Chat.load(own_run) as chat:
        first = chat.store.get([1])[0]
    path = tmp_path / "more.jsonl"
    rows = [(first.question, first.response), ("vase", first.response), ("cup", "No.")]
    path.write_text(
        "".join(
            json.dumps({"user": user, "assistant": reply, "label": 7}) + "\n"
            for user, reply in rows
        )
    )
    code, said = _index(own_run, capsys, "--data", path)
    known = "hours, login, parcel, refund"
    note = f"note: label '7' is not in the run (3 rows); known: {known}"
    assert (code, said.splitlines()) == (0, [note, _added(2, 1, 30)])
    assert _bucket(own_run, first.question) == (first.bucket, 2)
    assert _bucket(own_run, "vase") == (first.bucket, 1)
    assert _bucket(own_run, "cup") == (-1, 1)


def test_index_says_which_rows_hold_nothing(own_run, tmp_path, capsys):
    path = tmp_path / "more.jsonl"
    path.write_text('{"user": "got umbrellas", "assistant": "Yes."}\n{"id": 1}\n')
    notes = _index(own_run, capsys, "--data", path)[1].splitlines()[:-1]
    assert len(notes) == 1 and "1 row left out: " in notes[0]
    assert "more.jsonl:2" in notes[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--delete", "x"], "--delete"),
        (["--delete", "0"], "count from 1"),
        (["--delete"], "--delete needs ids: --search WORDS lists them"),
        (["--delete", "--stats"], "--delete needs ids"),
        (["--delete", "1", "999"], "no entry 999"),
        (["--delete", "99999999999999999999"], "no entry 99999999999999999999"),
        (["--delete", "999"], "--search WORDS lists"),
        (["--delete_response", "nobody says this"], "nobody says this"),
        (["--delete_response", "nobody says this"], "--search WORDS lists"),
        (["--search", "?!"], "--search '?!': give a word"),
        (["--search", ""], "--search '': give a word"),
        (["--check", "--llm_db", "nowhere.db"], "does not exist"),
        (["--stats", "--llm_db", "nowhere.db"], "does not exist"),
        (["--check", "maybe"], "maybe"),
        ([], "--data is missing"),
        ([], "--search, --delete, --delete_response, --check and --stats"),
        (["--delete", "1", "--data_manifest", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_values_of_index_are_one_line(own_run, capsys, flags, message):
    before = (own_run / "responses.db").read_bytes()
    code, said = _index(own_run, capsys, *flags)
    assert code == 2 and message in said and "\n" not in said
    assert (own_run / "responses.db").read_bytes() == before
