"""Search beside a brute force of its parts, and a soak."""

import contextlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from test_store import BITS, answers, blob, vector

from prefchat_jax import Chat, ChatSettings
from prefchat_jax.chat.catalogue import Catalogue
from prefchat_jax.chat.search import RESPONSE_WORDS, Query, search
from prefchat_jax.chat.sqlite_store import SqliteStore
from prefchat_jax.text.words import WordIndex, WordQuery

pytestmark = pytest.mark.usefixtures("no_connection_left")

ALL = ChatSettings(db_top_k=1000, max_candidates_per_bucket=1000)


@pytest.fixture
def store(tmp_path, rng):
    words = [f"w{i}" for i in range(30)]
    pairs = [
        (" ".join(rng.choice(words, 4)), " ".join(rng.choice(words[:9], 2)))
        for _ in range(120)
    ]
    pairs = list(dict.fromkeys(pairs))
    store = SqliteStore.create(tmp_path / "s.db", fingerprint="f")
    with contextlib.closing(store):
        store.add(answers(pairs, rng.integers(-1, 4, len(pairs))))
        yield store


def _query(text, buckets=(0.5, 0.0, 0.3, 0.0)):
    features = np.zeros(2**BITS, np.float32)
    features[: len(text)] = 0.25
    recent = np.roll(features, 5)[None]
    words = WordQuery.of([(text, 1.0)])
    near = vector("w1 w2").astype(np.float32)
    return Query(words, features, near, np.array(buckets, np.float32), 1.0, recent)


def _bag(text):
    pairs = np.frombuffer(blob(text), [("id", "<u2"), ("weight", "<f2")])
    dense = np.zeros(2**BITS)
    np.add.at(dense, pairs["id"], pairs["weight"])
    return dense


def _by_id(pool):
    columns = zip(*(np.asarray(column).tolist() for column in pool[:8]), strict=True)
    return {row[0]: row[1:] for row in columns}


def test_every_number_of_a_pool_is_that_of_a_loop(store):
    query = _query("w1 w2 w17")
    pool = search(Catalogue(store, BITS).view(), query, ALL)
    changes = store.changes(0)
    texts = {key: text for key, (text, _, _) in changes.responses.items()}
    # A response of two buckets counts once for each.
    pairs = zip(changes.response_ids.tolist(), changes.buckets.tolist(), strict=True)
    order = sorted(set(pairs))
    asked = WordIndex.build(changes.questions).scores(query.words)
    replied = WordIndex.build([texts[key] for key, _ in order]).scores(query.words)
    assert len(pool.ids) == len(set(pool.ids.tolist()))
    for i, entry in enumerate(pool.ids):
        row = int(np.flatnonzero(changes.ids == entry)[0])
        response = changes.response_ids[row]
        text = texts[response]
        assert pool.response_ids[i] == response
        assert pool.buckets[i] == changes.buckets[row]
        words = (
            asked[row]
            + RESPONSE_WORDS * replied[order.index((response, pool.buckets[i]))]
        )
        assert pool.words[i] == pytest.approx(words, abs=1e-4)
        question = _bag(changes.questions[row]) @ query.features
        assert pool.question[i] == pytest.approx(question, abs=1e-3)
        assert pool.response[i] == pytest.approx(_bag(text) @ query.features, abs=1e-3)
        assert pool.scorer[i] == pytest.approx(vector(text) @ query.vector, abs=8e-3)
        assert pool.repeat[i] == pytest.approx(_bag(text) @ query.recent[0], abs=1e-3)


def test_small_limits_keep_the_best(store):
    query = _query("w1 w2 w17")
    view = Catalogue(store, BITS).view()
    everything = _by_id(search(view, query, ALL))
    few = ChatSettings(db_top_k=10, max_candidates_per_bucket=2)
    pool = _by_id(search(view, query, few))
    assert 0 < len(pool) < len(everything)
    segment = view.parts[0].segment
    asked = segment.question_words.scores(query.words)
    best = segment.ids[np.argsort(-asked, kind="stable")[:10]]
    assert set(best.tolist()) <= set(pool)
    nearest = max(everything.values(), key=lambda row: row[5])
    assert nearest[5] == max(row[5] for row in pool.values())
    for entry, row in pool.items():
        assert row == pytest.approx(everything[entry], abs=1e-5)


def test_topk_searches_the_likely_buckets_alone(store):
    settings = ChatSettings(db_top_k=1000, pool_mode="topk")
    pool = search(Catalogue(store, BITS).view(), _query("w1 w2"), settings)
    assert set(pool.buckets.tolist()) == {-1, 0, 2}


def test_parts_are_searched_as_one(store):
    """After many small writes, what is found is what one segment would find."""
    catalogue = Catalogue(store, BITS)
    rng = np.random.default_rng(4)
    catalogue.view()
    for i in range(25):
        pair = " ".join(rng.choice([f"w{k}" for k in range(30)], 4)), f"w{i % 9} w3"
        (added,) = store.add(answers([pair], [int(rng.integers(-1, 4))]))
        if i % 4 == 0:
            store.delete([added - 3, 2 * i + 1])
        catalogue.view()
    assert len(catalogue.view().parts) > 1
    query = _query("w1 w2 w3 w17")
    parts = _by_id(search(catalogue.view(), query, ALL))
    whole = _by_id(search(Catalogue(store, BITS).view(), query, ALL))
    assert set(whole) <= set(parts) <= set(store.changes(0).ids.tolist())
    for entry, row in whole.items():
        others = [i for i in range(7) if i != 2]  # What is gone still counts as rare.
        assert [parts[entry][i] for i in others] == pytest.approx(
            [row[i] for i in others], abs=1e-4
        )
        assert parts[entry][2] == pytest.approx(row[2], rel=0.35, abs=0.35)


def test_an_empty_view_has_no_candidates(tmp_path):
    store = SqliteStore.create(tmp_path / "s.db", fingerprint="f")
    with contextlib.closing(store):
        pool = search(Catalogue(store, BITS).view(), _query("w1"), ALL)
    assert not len(pool.ids) and len(pool.response_bags.offsets) == 1


def test_a_response_whose_entries_are_all_gone_takes_nobodys_place(store):
    """Dead entries would fill the lists of the best."""
    query = _query("w1 w2 w17")
    catalogue = Catalogue(store, BITS)
    first = search(catalogue.view(), query, ALL)
    gone = first.ids[np.argsort(-first.words)][:80]
    few = ChatSettings(db_top_k=8, max_candidates_per_bucket=1)
    store.delete(gone.tolist())
    found = search(catalogue.view(), query, few)
    assert not set(found.ids.tolist()) & set(gone.tolist())
    left = _by_id(search(Catalogue(store, BITS).view(), query, ALL))
    assert len(found.ids) >= min(8, len(left))


# --- a chat while others write

WRITER = """
import random, sys, time
from prefchat_jax.chat.answers import as_answers
from prefchat_jax.indexing import open_store
from prefchat_jax.inference import Inference
from prefchat_jax.text.dialogue import as_context
from prefchat_jax.training.run_directory import RunDirectory
run = RunDirectory.open(sys.argv[1])
inference = Inference.load(run)
end, number, mine = time.monotonic() + float(sys.argv[2]), 0, []
with open_store(run.store, inference) as store:
    while time.monotonic() < end:
        number += 1
        count = random.Random(number).randint(1, 4)
        words = [f"parcel {number} {k}" for k in range(count)]
        contexts = [as_context(word) for word in words]
        replies = [f"Stored reply {number % 7} about the parcel." for word in words]
        buckets = [-1] * len(words)
        mine += store.add(as_answers(inference, contexts, replies, buckets)).tolist()
        while len(mine) > 40:
            store.delete([mine.pop(0), mine.pop(0)])
        if number % 50 == 0:
            store.optimize()
print(number)
"""


def _soak(own_run, seconds, threads=8):
    """Replies in threads while another process adds and deletes."""
    known = re.compile(r"Stored reply [0-6] about the parcel\.")
    replies, failed = [0] * threads, []
    with Chat.load(own_run, settings=ChatSettings(min_confidence=0.0)) as chat:
        trained = {entry.response for entry in chat.store.get(range(1, 29))}
        command = [sys.executable, "-c", WRITER, str(own_run), str(seconds)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        def ask(number):
            try:
                while writer.poll() is None:
                    reply = chat.reply(f"where is my parcel {replies[number]}")
                    replies[number] += 1
                    for found in reply.candidates:
                        assert found.response in trained or known.fullmatch(
                            found.response
                        )
                        assert np.isfinite(found.score)
                    assert reply.candidates and not reply.abstained
            except BaseException as error:
                failed.append(error)

        asking = [threading.Thread(target=ask, args=(n,)) for n in range(threads)]
        for thread in asking:
            thread.start()
        with writer:
            written = int(writer.communicate()[0])
        for thread in asking:
            thread.join()
        assert not failed, failed[0]
        chat.store.check()
        assert len(chat) == len(chat.store)
        before = {entry.id for entry in chat.store.get(range(1, 9999))}
    with Chat.load(own_run, settings=ChatSettings(min_confidence=0.0)) as chat:
        assert {entry.id for entry in chat.store.get(range(1, 9999))} == before
        assert chat.reply("where is my parcel 3").bucket == "parcel"
    assert written > 5 and min(replies) > 0
    return written, sum(replies)


def test_replies_while_another_process_writes(own_run):
    _soak(own_run, 2)


@pytest.mark.slow
def test_a_minute_of_replies_while_another_process_writes(own_run):
    _soak(own_run, 60)
