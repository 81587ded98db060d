"""The store: what it keeps, what survives, and many readers beside writers."""

import collections
import contextlib
import math
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from prefchat_jax.chat.sqlite_store import SqliteStore
from prefchat_jax.chat.store import NO_BUCKET, Answers
from prefchat_jax.errors import UserError
from prefchat_jax.text.packed import PackedBags

pytestmark = pytest.mark.usefixtures("no_connection_left")

BITS = 6


def answers(pairs, buckets=None, seed=0):
    """Rows whose features and vectors follow from their texts."""
    questions, responses = zip(*pairs, strict=True) if pairs else ((), ())
    buckets = [NO_BUCKET] * len(pairs) if buckets is None else buckets
    vectors = np.array([vector(text) for text in responses]).reshape(len(pairs), 8)
    return Answers(
        questions,
        responses,
        np.array(buckets, np.int32),
        [blob(text) for text in questions],
        [blob(text) for text in responses],
        vectors.astype(np.float16),
    )


def blob(text):
    pairs = np.zeros(3, [("id", "<u2"), ("weight", "<f2")])
    pairs["id"] = [len(text) % 64, ord(text[0]) % 64, ord(text[-1]) % 64]
    pairs["weight"] = 0.5
    return pairs.tobytes()


def vector(text):
    found = np.random.default_rng(list(text.encode())).standard_normal(8)
    return found / np.linalg.norm(found)


PAIRS = [
    ("where is my parcel", "Track it."),
    ("track parcel", "Track it."),
    ("money back", "Press Refund."),
    ("open hours", "Nine to five."),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.db"


@pytest.fixture
def store(path):
    store = SqliteStore.create(path, fingerprint="f")
    with contextlib.closing(store):
        store.add(answers(PAIRS, [0, 0, 1, NO_BUCKET]))
        yield store


def reopened(path, **kinds):
    return contextlib.closing(SqliteStore.open(path, fingerprint="f", **kinds))


def rows(store):
    """Everything that is stored, as plain values."""
    changes = store.changes(0)
    return {
        entry: (question, *changes.responses[response], bucket, count, features)
        for entry, question, response, bucket, count, features in zip(
            *(column for column in changes[1:7]), strict=True
        )
    }


# --- what is kept


def test_what_is_added_comes_back_in_order(store):
    found = store.get([3, 1, 99, 2**63, -(2**64), 0])
    assert [(e.id, e.question, e.response, e.bucket, e.count) for e in found] == [
        (3, "money back", "Press Refund.", 1, 1),
        (1, "where is my parcel", "Track it.", 0, 1),
    ]
    changes = store.changes(0)
    assert changes.ids.tolist() == [1, 2, 3, 4] and changes.version == store.version()
    assert changes.response_ids[0] == changes.response_ids[1]
    text, features, stored = changes.responses[changes.response_ids[0]]
    assert (text, features) == ("Track it.", blob("Track it."))
    expected = vector("Track it.").astype(np.float16)
    np.testing.assert_array_equal(np.frombuffer(stored, "<f2"), expected)
    assert changes.question_features == [blob(question) for question, _ in PAIRS]
    assert store.stats() | {"bytes": 0} == {"entries": 4, "responses": 3, "bytes": 0}


def test_a_pair_that_comes_again_counts_and_gains_a_bucket(store):
    again = answers([PAIRS[3], PAIRS[0], PAIRS[3], PAIRS[0]], [NO_BUCKET, 5, 2, 6])
    assert store.add(again).tolist() == [4, 1, 4, 1]
    found = {entry.id: entry for entry in store.get([1, 4])}
    assert (found[4].count, found[4].bucket) == (3, 2)
    assert (found[1].count, found[1].bucket) == (3, 0)
    assert len(store) == 4
    assert store.add(answers([])).tolist() == []


def test_bulk_and_single_adds_store_the_same(store, tmp_path, rng):
    many = [
        (f"question {rng.integers(90)}", f"answer {rng.integers(9)}")
        for _ in range(500)
    ]
    buckets = rng.integers(-1, 5, len(many))
    with SqliteStore.build(tmp_path / "b.db", fingerprint="f") as built:
        ids = [built.add(answers(many[:200], buckets[:200]))]
        ids.append(built.add(answers(many[200:], buckets[200:])))
    single = SqliteStore.create(tmp_path / "c.db", fingerprint="f")
    with contextlib.closing(single), reopened(tmp_path / "b.db") as bulk:
        one = [
            single.add(answers([pair], [b]))
            for pair, b in zip(many, buckets, strict=True)
        ]
        ids, one = np.concatenate(ids), np.concatenate(one)
        same = lambda found: np.unique(found, return_inverse=True)[1]  # Ids may skip.
        np.testing.assert_array_equal(same(ids), same(one))
        assert list(rows(bulk).values()) == list(rows(single).values())
        counts = collections.Counter(many)
        assert {
            (e.question, e.response): e.count for e in bulk.get(range(1500))
        } == counts
        bulk.check()
        found = [store.search_text("question 7", 9) for store in (bulk, single)]
        assert list(found[0].values()) == pytest.approx(list(found[1].values()))
    with contextlib.closing(sqlite3.connect(tmp_path / "b.db")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_bulk_build_leaves_no_holes_and_nothing_to_optimise(tmp_path, rng):
    path = tmp_path / "b.db"
    word = lambda: f"w{int(rng.pareto(0.3)) % 50_000}"
    texts = [" ".join(word() for _ in range(300)) for _ in range(600)]
    with SqliteStore.build(path, fingerprint="f") as built:
        built.add(answers([(f"often {i}", text) for i, text in enumerate(texts)]))
    before = path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA freelist_count").fetchone() == (0,)
        usual = "SELECT v FROM {}_text_config WHERE k = 'hashsize'"
        for table in ("questions", "responses"):  # Of a chat that adds an answer.
            assert db.execute(usual.format(table)).fetchone() == (1 << 20,)
            (parts,) = db.execute(
                f"SELECT count(DISTINCT segid) FROM {table}_text_idx"
            ).fetchone()
            assert parts == 1
    with reopened(path) as store:
        store.optimize()
        store.check()
    assert len(path.read_bytes()) == len(before)


def test_deleted_entries_are_gone_and_take_unused_responses_along(store):
    before = store.version()
    assert store.delete([2, 3, 3, 77, 2**80, -1]) == 2
    assert store.get([1, 2, 3]) == store.get([1])
    assert store.stats()["responses"] == 2  # "Track it." is still given by 1.
    changes = store.changes(before)
    assert changes.removed.tolist() == [2, 3] and not len(changes.ids)
    assert not store.find_response("Press Refund.")
    assert store.add(answers([PAIRS[2]])).tolist() == [5]  # No id comes twice.
    assert store.delete([]) == 0
    store.check()


def test_deleting_more_than_one_statement_can_name(tmp_path):
    store = SqliteStore.create(tmp_path / "s.db", fingerprint="f")
    with contextlib.closing(store):
        ids = store.add(answers([(f"q{i}", f"a{i % 9}") for i in range(1234)]))
        assert store.delete(ids[:-1]) == 1233
        assert store.stats()["responses"] == 1


def test_an_update_keeps_the_id_and_the_count(store):
    store.add(answers([PAIRS[2]]))
    before = store.version()
    store.update(3, answers([("money gone", "Nine to five.")], [7]))
    assert store.get([3]) == [(3, "money gone", "Nine to five.", 7, 2)]
    assert store.changes(before).ids.tolist() == [3]
    assert not store.find_response("Press Refund.")
    assert set(store.search_text("gone", 9)) == {3}
    store.update(3, answers([("money gone", "Nine to five.")], [8]))
    with pytest.raises(UserError, match="entry 1 says the same"):
        store.update(3, answers([PAIRS[0]]))
    with pytest.raises(UserError, match="no entry 99"):
        store.update(99, answers([PAIRS[0]]))
    with pytest.raises(UserError, match=f"no entry {2**63}"):
        store.update(2**63, answers([("new", "text")]))
    store.check()


def test_a_failed_write_changes_nothing(store):
    before, version = rows(store), store.version()
    with pytest.raises(UserError, match="lone surrogate"):
        store.add(answers([("fine", "fine")])._replace(questions=["\ud800"]))
    _sql(
        store.path,
        "CREATE TRIGGER full BEFORE INSERT ON entries WHEN new.question = 'q' "
        "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    )
    with pytest.raises(UserError, match="the disk is full"):
        store.add(answers([("fine", "fine"), ("q", "a")]))
    with pytest.raises(UserError, match="the disk is full"):
        store.delete([1])
        store.add(answers([("q", "a")]))
    version, before = version + 1, {k: v for k, v in before.items() if k != 1}
    assert (rows(store), store.version()) == (before, version)


# --- search


def _fts_bm25(texts, query):
    """The formula of SQLite's bm25(): k1 1.2, b 0.75, its own idf."""
    tokens = [re.findall(r"\w+", text.lower()) for text in texts]
    mean = sum(map(len, tokens)) / len(tokens)
    scores = np.zeros(len(texts))
    for word in set(re.findall(r"\w+", query.lower())):
        df = sum(word in words for words in tokens)
        idf = max(math.log((len(texts) - df + 0.5) / (df + 0.5)), 1e-6)
        for row, words in enumerate(tokens):
            tf = words.count(word)
            scores[row] += (
                idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(words) / mean))
            )
    return scores


def test_text_search_sums_the_scores_of_question_and_response(tmp_path, rng):
    vocabulary = [f"w{i}" for i in range(60)]
    text = lambda: " ".join(rng.choice(vocabulary, rng.integers(2, 9)))
    replies = [text() for _ in range(12)]
    pairs = list({(text(), replies[rng.integers(12)]): None for _ in range(300)})
    distinct = list(dict.fromkeys(reply for _, reply in pairs))
    store = SqliteStore.create(tmp_path / "s.db", fingerprint="f")
    with contextlib.closing(store):
        ids = store.add(answers(pairs)).tolist()
        for query in ("w1 w2 w3", "w59", "w7 nowhere"):
            of_reply = dict(zip(distinct, _fts_bm25(distinct, query), strict=True))
            expected = _fts_bm25([q for q, _ in pairs], query)
            expected += [of_reply[reply] for _, reply in pairs]
            found = store.search_text(query, 1000)
            assert set(found) == {
                i for i, s in zip(ids, expected, strict=True) if s > 0
            }
            for entry, score in zip(ids, expected, strict=True):
                assert found.get(entry, 0) == pytest.approx(score, abs=1e-6)
            assert list(found.values()) == sorted(found.values(), reverse=True)
            assert list(store.search_text(query, 5)) == list(found)[:5]


@pytest.mark.parametrize(
    "text",
    ["", '"', "a OR b AND (", "NEAR/3", "日本", "'; DROP TABLE", "-*:^", "a_b", "\0"],
)
def test_text_search_survives_any_text(store, text):
    store.search_text(text, 5)
    assert store.search_text("parcel", 0) == {}


def test_text_search_survives_a_long_message(store):
    assert store.search_text("parcel " + " ".join(f"w{i}" for i in range(40_000)), 5)


def test_vector_search_is_brute_force_over_entries(store, rng):
    store.add(answers([(f"q{i}", f"a{i % 30}") for i in range(200)]))
    query = rng.standard_normal(8).astype(np.float32)
    entries = store.get(range(300))
    products = {e.id: float(vector(e.response) @ query) for e in entries}
    best = sorted(products, key=lambda entry: -products[entry])
    found = store.search_vector(query, 20)
    assert len(found) == 20
    for entry, product in found.items():
        assert product == pytest.approx(products[entry], abs=5e-3)
    assert min(products[e] for e in found) >= products[best[19]] - 5e-3
    assert store.search_vector(query[:3], 5) == {} == store.search_vector(query, 0)


# --- the file


def test_a_store_of_another_checkpoint_is_refused(store, path):
    with pytest.raises(UserError, match="another checkpoint"):
        SqliteStore.open(path, fingerprint="g")


def test_a_newer_schema_is_refused(store, path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE meta SET value = '3' WHERE key = 'schema'")
        db.commit()
    with pytest.raises(UserError, match="upgrade prefchat-jax"):
        SqliteStore.open(path, fingerprint="f")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"SQLite format 3\0" + b"x" * 5000),
        lambda path: path.write_text("hello"),
        lambda path: _sql(path, "DELETE FROM meta WHERE key = 'schema'"),
        lambda path: _sql(path, "UPDATE meta SET value = 'x' WHERE key = 'schema'"),
        lambda path: _sql(path, "DROP TABLE meta"),
    ],
)
def test_a_file_that_is_no_store_is_one_line(store, path, damage):
    store.close()
    damage(path)
    with pytest.raises(UserError, match=r"s\.db") as raised:
        SqliteStore.open(path, fingerprint="f")
    assert "\n" not in str(raised.value)


def _sql(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def test_a_check_finds_damage(store, path):
    store.check()
    _sql(path, "DROP TRIGGER entry_removed", "DELETE FROM entries WHERE id = 3")
    with pytest.raises(UserError, match=r"damaged|malformed"):
        store.check()
    _sql(path, "INSERT INTO questions_text (questions_text) VALUES ('rebuild')")
    store.check()
    _sql(path, "DELETE FROM responses WHERE text = 'Track it.'")
    with pytest.raises(UserError, match="no response"):
        store.check()


def test_a_failed_build_leaves_the_old_file_and_nothing_else(store, path, tmp_path):
    store.close()
    before = path.read_bytes()
    with pytest.raises(RuntimeError), SqliteStore.build(path, fingerprint="g") as built:
        built.add(answers(PAIRS))
        raise RuntimeError
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_log_that_a_dead_process_left_is_not_read_into_a_new_file(path, tmp_path):
    code = (
        "import os, pathlib, sys; sys.path.insert(0, sys.argv[2]); "
        "from test_store import *; "
        "store = SqliteStore.create(pathlib.Path(sys.argv[1]), fingerprint='f'); "
        "store.add(answers(PAIRS)); os._exit(0)"
    )
    tests = os.path.dirname(__file__)
    subprocess.run([sys.executable, "-c", code, path, tests], check=True)
    assert path.with_name("s.db-wal").stat().st_size > 0
    with SqliteStore.build(path, fingerprint="f") as built:
        built.add(answers([("new", "file")]))
    with reopened(path) as store:
        store.check()
        assert [entry.question for entry in store.get(range(9))] == ["new"]


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_a_file_that_takes_the_place_of_an_open_one_is_not_read(
    store, path, tmp_path, pooled, removed
):
    other = SqliteStore.create(tmp_path / "o.db", fingerprint="f")
    with contextlib.closing(other):
        other.add(answers([("other", "text")]))
    opened = SqliteStore.open(path, fingerprint="f")
    with contextlib.closing(opened):
        if pooled:
            assert len(opened.get([1])) == 1
        path.unlink() if removed else other.path.replace(path)
        for use in (
            lambda: opened.get([1]),
            lambda: opened.search_text("parcel", 3),
            lambda: opened.add(answers(PAIRS)),
        ):
            with pytest.raises(UserError, match=r"s\.db was replaced or removed"):
                use()


def test_a_read_only_store_reads_and_does_not_write(store, path):
    with contextlib.closing(SqliteStore(path, "ro")) as reader:
        assert len(reader) == 4 and reader.search_text("parcel", 3)
        reader.check()
        for write in (
            lambda: reader.add(answers(PAIRS)),
            lambda: reader.delete([1]),
            lambda: reader.optimize(),
        ):
            with pytest.raises(UserError, match="for reading only"):
                write()
        store.delete([1])
        assert len(reader) == 3


def test_a_directory_without_permission_to_write(store, path):
    store.close()
    code = (
        "import os, sys, urllib.parse; sys.path.insert(0, sys.argv[2]); "
        "from test_store import *; import pathlib; os.setuid(65534); "
        "store = SqliteStore.open(pathlib.Path(sys.argv[1]), fingerprint='f'); "
        "print(len(store), store.read_only, len(store.search_text('parcel', 9)))"
    )
    if os.getuid() != 0:
        code = code.replace("os.setuid(65534); ", "")
    # Others may pass through the folders of pytest to this one, and read it.
    opened = [
        p
        for p in path.parents
        if "pytest" in str(p) and os.stat(p).st_uid == os.getuid()
    ]
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in opened}
    try:
        for folder in opened:
            folder.chmod(0o755)
        path.chmod(0o444)
        path.parent.chmod(0o555)
        command = [sys.executable, "-c", code, path, os.path.dirname(__file__)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["4", "True", "2"], done.stderr
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)


# --- threads and processes


def test_connections_of_finished_threads_do_not_pile_up(store):
    opened = lambda: sum(
        os.readlink(f"/proc/self/fd/{fd}").endswith("s.db")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    )
    for _ in range(5):
        threads = [threading.Thread(target=store.get, args=([1],)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # SQLite itself opens a few again that it could not close while others read.
    assert opened() <= 20 < 5 * 20
    store.close()
    assert opened() <= 1  # Of those again, rarely one.
    with pytest.raises(UserError, match="closed"):
        store.get([1])


def test_a_connection_that_cannot_roll_back_is_closed(store):
    def forbid(action, what, *_):
        rolls_back = (action, what) == (sqlite3.SQLITE_TRANSACTION, "ROLLBACK")
        return sqlite3.SQLITE_DENY if rolls_back else sqlite3.SQLITE_OK

    with (
        pytest.raises(UserError, match="not authorized"),
        store._connections.lend() as db,
    ):
        db.set_authorizer(forbid)
        db.execute("BEGIN IMMEDIATE")
    assert store.delete([1]) == 1  # What it had locked is free.


CHILD = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_store import *
store = SqliteStore.open(pathlib.Path(sys.argv[1]), fingerprint="f")
for i in range(10**9):
    ids = store.add(answers([(f"q{i}", f"a{i % 50}"), (f"r{i}", f"b{i}")]))
    print(*ids, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(store, path):
    command = [sys.executable, "-c", CHILD, path, os.path.dirname(__file__)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(30)]
        time.sleep(0.2)
        child.send_signal(signal.SIGKILL)
        said += child.stdout.readlines()
    ids = [int(i) for line in said if line.endswith("\n") for i in line.split()]
    assert len(ids) >= 60
    assert [entry.id for entry in store.get(ids)] == ids
    store.check()
    found = PackedBags.decode(store.changes(0).question_features, BITS)
    assert len(found.offsets) == len(store) + 1


def test_writers_in_threads_and_processes_wait_for_one_another(store, path):
    command = [sys.executable, "-c", CHILD.replace("10**9", "60")]
    command += [str(path), os.path.dirname(__file__)]
    children = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    failed = []

    def write(number):
        try:
            for i in range(40):
                ids = store.add(answers([(f"t{number} {i}", f"a{i % 50}")]))
                assert store.get(ids)[0].question == f"t{number} {i}"
                store.delete(ids)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        with child:
            assert not child.communicate()[1]
    assert not failed
    store.check()
    # Both processes added the same rows.
    assert len(store) == 4 + 120
    assert sorted(e.count for e in store.get(range(2000)))[4:] == [2] * 120


# --- the first schema

FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    question TEXT NOT NULL,
    response TEXT NOT NULL,
    bucket INTEGER NOT NULL,
    count INTEGER NOT NULL,
    question_vector BLOB NOT NULL,
    response_vector BLOB NOT NULL,
    UNIQUE (question, response)
);
CREATE INDEX entries_by_bucket ON entries (bucket, count DESC, id);
CREATE VIRTUAL TABLE entries_text USING fts5 (
    question, response, content='entries', content_rowid='id',
    tokenize='porter unicode61'
);
CREATE TRIGGER entries_added AFTER INSERT ON entries BEGIN
    INSERT INTO entries_text (rowid, question, response)
    VALUES (new.id, new.question, new.response);
END;
INSERT INTO meta VALUES ('schema', '1'), ('fingerprint', 'f');
"""


def _first_features(text):
    """All ids, then all weights."""
    pairs = np.frombuffer(blob(text), [("id", "<u2"), ("weight", "<f2")])
    return pairs["id"].astype("<u4").tobytes() + pairs["weight"].tobytes()


@pytest.fixture
def first(path, rng):
    entries = [
        (
            3 * i + 2,
            f"question {i}",
            f"answer {i % 37}",
            int(rng.integers(-1, 9)),
            int(rng.integers(1, 5)),
        )
        for i in range(5_200)
    ]
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(FIRST)
        db.executemany(
            "INSERT INTO entries (id, question, response, bucket, count, "
            "question_vector, response_vector) VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((*e, _first_features(e[1]), _first_features(e[2])) for e in entries),
        )
        db.commit()
    return entries


def test_a_store_of_the_first_schema_is_migrated_whole(first, path, tmp_path):
    with reopened(path, bits=16) as store:
        assert [tuple(entry) for entry in store.get(range(40_000))] == first
        changes = store.changes(0)
        assert changes.question_features == [blob(entry[1]) for entry in first]
        for text, features, stored in changes.responses.values():
            assert (features, stored) == (blob(text), b"")
        assert store.stats()["responses"] == 37
        assert list(store.search_text("question 77", 1)) == [3 * 77 + 2]
        store.check()
        assert store.add(answers([("new", "one")]))[0] > first[-1][0]
    with reopened(path) as store:  # Once is enough.
        assert len(store) == len(first) + 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_first_schema_that_cannot_be_written_is_one_line(first, path):
    before = path.read_bytes()
    with pytest.raises(UserError, match="older version"):
        SqliteStore.open(path, fingerprint="f")
    with pytest.raises(UserError, match="another checkpoint"):
        SqliteStore.open(path, fingerprint="g", bits=16)
    assert path.read_bytes() == before


def test_processes_that_migrate_at_once_lose_nothing(first, path):
    failed = []

    def open_and_add(number):
        try:
            with reopened(path, bits=16) as store:
                store.add(answers([(f"new {number}", "one")]))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=open_and_add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with reopened(path) as store:
        assert len(store) == len(first) + 4
