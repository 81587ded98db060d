import contextlib
import math
import sqlite3
import threading

import pytest

from prefchat_jax.chat import memory as module
from prefchat_jax.chat.memory import Memory, recall, session_start
from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Turn

pytestmark = pytest.mark.usefixtures("no_connection_left")

HOSTILE = [
    "'; DROP TABLE turns; --",
    '"',
    "ann OR user_key:*",
    "ann%",
    "*",
    "u\0x",
    "日本",
    "Ann",
    "ann ",
    "NEAR(a b)",
    "a' OR '1'='1",
]


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def memory(tmp_path, clock):
    with Memory(tmp_path / "m.db", "ann", half_life=100.0, clock=clock) as made:
        yield made


def test_turns_come_back_in_order_also_after_a_restart(memory, clock, tmp_path):
    for i in range(5):
        clock.now += 1
        memory.remember("user" if i % 2 == 0 else "assistant", f"turn {i}")
    with Memory(tmp_path / "m.db", "ann", clock=clock) as again:
        assert [one.content for one in again.turns()] == [f"turn {i}" for i in range(5)]
        assert [one.content for one in again.recent(2)] == ["turn 3", "turn 4"]
        assert [one.content for one in again.recent(within=1.5)] == ["turn 3", "turn 4"]
        assert again.recent(0) == [] and len(again) == 5
    assert memory.turns()[1].turn == Turn("assistant", "turn 1")


def test_search_is_bm25_times_recency(memory, clock, tmp_path):
    texts = ["red card lost", "card", "blue card card", "the weather is fine"]
    for text in texts:
        memory.remember("user", text)
        clock.now += 50.0
    found = memory.search("card", 10)
    plain = sqlite3.connect(":memory:")
    plain.execute("CREATE VIRTUAL TABLE t USING fts5 (content)")
    plain.executemany("INSERT INTO t (content) VALUES (?)", [(t,) for t in texts])
    scores = dict(
        plain.execute("SELECT content, -bm25(t) FROM t WHERE t MATCH '\"card\"'")
    )
    plain.close()
    ages = {text: 200.0 - 50.0 * i for i, text in enumerate(texts)}
    expected = {text: s * 0.5 ** (ages[text] / 100.0) for text, s in scores.items()}
    assert [one.content for one in found] == sorted(
        expected, key=lambda t: -expected[t]
    )
    # The index of a user has a column more, whose length BM25 counts in.
    for one in found:
        assert one.score == pytest.approx(expected[one.content], rel=0.3)


def test_a_half_life_halves(memory, clock):
    memory.remember("user", "card")
    (fresh,) = memory.search("card")
    clock.now += 100.0
    (later,) = memory.search("card")
    assert later.score == pytest.approx(fresh.score / 2)
    clock.now -= 1000.0  # A clock that was set back makes no turn count more.
    assert memory.search("card")[0].score == pytest.approx(fresh.score)
    clock.now += 1e9
    assert memory.search("card")  # Old, but found.


@pytest.mark.parametrize("name", HOSTILE)
def test_no_user_sees_the_turns_of_another(name, memory, tmp_path):
    for text in ("ann keeps a secret card", '"quoted" OR NOT AND (', "user_key"):
        memory.remember("user", text)
    with Memory(tmp_path / "m.db", name) as other:
        assert other.turns() == other.recent() == []
        for text in ("secret", "card", *HOSTILE, memory._key, "ann", "user_key"):
            assert other.search(text, 100) == []
        assert other.forget([1, 2, 3]) == other.forget() == 0
        other.remember("user", "my own card")
        assert [one.content for one in other.search("card secret")] == ["my own card"]
    assert len(memory) == 3
    assert [one.content for one in memory.search("card")] == ["ann keeps a secret card"]


@pytest.mark.parametrize(
    "text", [*HOSTILE, "", " ", "\ud800 card", "content : x", "card^2", "x" * 100_000]
)
def test_any_text_can_be_remembered_and_searched(text, memory):
    memory.remember("user", text)
    memory.search(text)
    memory.search(f"card {text} " * 200)
    assert len(memory) == 1


def test_forgotten_turns_leave_the_file(memory, tmp_path):
    kept = memory.remember("user", "a parrot")
    gone = memory.remember("user", "xylophone")
    assert memory.forget([gone, 999, 2**70, -1]) == 1
    assert memory.search("xylophone") == []
    assert [one.id for one in memory.turns()] == [kept]
    for path in tmp_path.iterdir():
        assert b"xylophone" not in path.read_bytes(), path
    assert memory.forget() == 1 and len(memory) == 0


def test_forgetting_while_another_session_reads_says_where_the_text_is(
    memory, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_CLEAR_SECONDS", 0.1)
    memory.remember("user", "xylophone")
    with contextlib.closing(sqlite3.connect(tmp_path / "m.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM turns").fetchall()
        memory.remember("user", "xylophone")
        with pytest.raises(UserError, match=r"text in m\.db-wal: close other sessions"):
            memory.forget()
        assert len(memory) == 0
    assert memory.forget() == 0
    for path in tmp_path.iterdir():
        assert b"xylophone" not in path.read_bytes(), path


def test_a_session_starts_with_the_last_hour(memory, clock):
    memory.remember("user", "yesterday")
    clock.now += 86_400
    memory.remember("user", "just now")
    assert session_start(memory) == [Turn("user", "just now")]


def test_an_older_turn_joins_where_the_message_leans_and_names_it(memory, clock):
    memory.remember("user", "my gold card is lost")
    memory.remember("assistant", "we block the gold card")
    clock.now += 86_400
    now = [Turn("user", "hello")]
    older = [*now, Turn("user", "my gold card is lost")]
    assert recall(memory, "and the gold one?", now) == older
    assert recall(memory, "I want a gold card", now) == now
    assert recall(memory, "and the silver one?", now) == now
    assert recall(memory, "and then?", now) == now
    assert recall(memory, "and the gold one?", older) == older


def test_threads_share_a_memory(memory):
    def work():
        for i in range(20):
            memory.remember("user", f"card {i}")
            memory.search("card")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(memory) == 80


def test_sessions_that_make_a_memory_at_once_wait_for_one_another(tmp_path):
    failed, start = [], threading.Barrier(6)

    def work(user):
        for i in range(25):
            start.wait()
            try:
                with Memory(tmp_path / f"{i}.db", user) as memory:
                    memory.remember("user", "card")
            except UserError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=work, args=(f"u{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with contextlib.closing(sqlite3.connect(tmp_path / "24.db")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("SELECT count(*) FROM turns").fetchone() == (6,)


def test_the_file_is_for_its_owner_alone(memory, tmp_path):
    assert {p.stat().st_mode & 0o077 for p in tmp_path.iterdir()} == {0}


def test_what_is_wrong_is_one_line(tmp_path):
    for name in ("", "  ", "\ud800"):
        with pytest.raises(UserError, match="user"):
            Memory(tmp_path / "m.db", name)
    for half_life in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="half_life"):
            Memory(tmp_path / "m.db", "ann", half_life=half_life)
    with pytest.raises(UserError, match="no.m.db"):
        Memory(tmp_path / "no" / "m.db", "ann")
    with pytest.raises(UserError):
        Memory(tmp_path, "ann")
    (tmp_path / "text").write_text("hello, this is no database " * 100)
    with pytest.raises(UserError, match="text"):
        Memory(tmp_path / "text", "ann")
    other = sqlite3.connect(tmp_path / "o.db")
    other.execute("CREATE TABLE entries (id INTEGER)")
    other.commit()
    other.close()
    with pytest.raises(UserError, match="not a memory"):
        Memory(tmp_path / "o.db", "ann")
    with Memory(tmp_path / "m.db", "ann") as memory, pytest.raises(ValueError):
        memory.remember("robot", "x")
