"""The word index and packed bags beside plain loops, bm25s and dense matrices."""

import collections
import math
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import prefchat_jax
from prefchat_jax.datasets.records import read_records
from prefchat_jax.text import words as module
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.packed import PackedBags, encode
from prefchat_jax.text.words import WordIndex, WordQuery, telling, top

K1, B = 1.5, 0.75
WORDS = ["pay", "card", "fee", "late", "bank", "I'm", "über", "日本", "x2", "the"]
SMALL = st.sampled_from(WORDS)
TEXTS = st.lists(st.lists(SMALL, max_size=8).map(" ".join), max_size=12)


def _split(text):
    """Words, one for each character of Japanese; no mark is in the texts but '."""
    return re.findall(r"[日本]|[^\W日本]+", text.lower())


def _bm25(texts, query, counted=None):
    """Scores by the formula, text by text; `counted` are all texts of an idf."""
    tokens = [_split(text) for text in texts]
    everything = [_split(text) for text in (counted or texts)]
    mean = max(sum(map(len, tokens)) / max(len(tokens), 1), 1)
    scores = np.zeros(len(texts))
    for word in set(_split(query)):
        df = sum(word in set(other) for other in everything)
        idf = math.log(1 + (len(everything) - df + 0.5) / (df + 0.5))
        for row, words in enumerate(tokens):
            tf = collections.Counter(words)[word]
            drag = K1 * (1 - B + B * len(words) / mean)
            scores[row] += idf * tf * (K1 + 1) / (tf + drag)
    return scores


@given(TEXTS, st.lists(SMALL, max_size=6).map(" ".join))
@settings(max_examples=100, deadline=None)
def test_scores_are_bm25(texts, query):
    found = WordIndex.build(texts).scores(WordQuery.of([(query, 1.0)]))
    np.testing.assert_allclose(found, _bm25(texts, query), rtol=1e-5, atol=1e-6)


def test_scores_equal_those_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    path = pathlib.Path(prefchat_jax.__file__).parent / "data" / "helpdesk.jsonl"
    texts = [row.context[-1].content for row in read_records([path]).examples]
    tokens = [re.findall(r"[a-z0-9_]+", text.lower()) for text in texts]
    peer = bm25s.BM25(method="lucene", k1=K1, b=B)
    peer.index(tokens, show_progress=False)
    ours = WordIndex.build([" ".join(words) for words in tokens])
    for words in tokens[::30]:
        expected = peer.get_scores(list(set(words)))
        # That library leaves out the factor k1 + 1, which changes no order.
        found = ours.scores(WordQuery.of([(" ".join(words), 1.0)]))
        np.testing.assert_allclose(found, (K1 + 1) * expected, rtol=1e-4, atol=1e-4)


@given(TEXTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_indexes_beside_one_another_share_their_rarity(left, right):
    query = "pay late fee"
    found = WordIndex.build(left).scores(
        WordQuery.of([(query, 1.0)]), among=[WordIndex.build(right)]
    )
    expected = _bm25(left, query, left + right)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_texts_are_indexed_alike_in_blocks_of_any_size(monkeypatch):
    texts = [f"pay {i % 3} fee {'late ' * (i % 4)}\u65e5\u672c {i}" for i in range(50)]
    whole = WordIndex.build(texts)
    monkeypatch.setattr(module, "_BLOCK", 7)
    for one, other in zip(whole, WordIndex.build(texts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_given_mean_length_is_the_usual_one():
    usual = WordIndex.build(["fee", "pay the late fee"])
    alone = WordIndex.build(["pay the late fee"], usual.mean_length)
    query = WordQuery.of([("fee", 1.0)])
    gain = lambda index: index.sums(query)[-1]
    assert gain(alone) == gain(usual) < gain(WordIndex.build(["pay the late fee"]))


def test_weights_scale_words_and_the_heaviest_counts():
    index = WordIndex.build(["pay fee", "bank", "card"])
    score = lambda *turns: index.scores(WordQuery.of(turns))[0]
    assert score(("fee", 0.5)) == pytest.approx(0.5 * score(("fee", 1.0)))
    assert score(("fee", 0.5), ("fee", 1.0)) == score(("fee", 1.0))


def test_common_words_are_skipped_unless_they_are_the_rarest(monkeypatch):
    monkeypatch.setattr(module, "_LONG", 10)
    texts = [f"the a of x{i}" for i in range(50)]
    index = WordIndex.build(texts)
    kept = lambda text: len(telling(WordQuery.of([(text, 1.0)]), [index]).words)
    assert kept("the a of x7 x8") == 2 and kept("the a of") == 2
    assert kept("the a of x7") == 2 and kept("nowhere") == 0
    assert np.flatnonzero(
        index.scores(WordQuery.of([("x7 x8 the", 1.0)]))
    ).tolist() == [
        7,
        8,
    ]


def test_an_endless_query_counts_its_rarest_words():
    index = WordIndex.build([f"w{i} w{i % 7}" for i in range(300)])
    text = " ".join(f"w{i}" for i in range(300))
    assert len(telling(WordQuery.of([(text, 1.0)]), [index]).words) == 64


@given(
    hnp.arrays(
        np.float32,
        st.integers(0, 400),
        elements=st.sampled_from([0, -1, 0.25, 0.5, 1, 2, 3]),
    ),
    st.integers(0, 420),
)
@settings(max_examples=300, deadline=None)
def test_top_is_a_stable_sort(scores, limit):
    expected = np.argsort(-scores, kind="stable")[:limit]
    expected = expected[scores[expected] > 0]
    np.testing.assert_array_equal(top(scores, limit), expected)


@pytest.mark.parametrize("size", [1, 100, 4_097, 100_000])
def test_top_of_many_scores(size, rng):
    for scores in (rng.random(size), np.sort(rng.random(size)), np.ones(size)):
        for limit in (1, 7, 160, size):
            scores = scores.astype(np.float32)
            expected = np.argsort(-scores, kind="stable")[:limit]
            np.testing.assert_array_equal(top(scores, limit), expected)


# --- bags


@given(
    st.lists(st.lists(st.integers(0, 63), unique=True, max_size=6), max_size=9),
    st.sampled_from([6, 17]),
)
@settings(max_examples=40, deadline=None)
def test_packed_bags_are_dense_rows(rows, bits):
    rng = np.random.default_rng(len(rows))
    ids = np.zeros((len(rows), 8), np.int32)
    weights = np.zeros((len(rows), 8), np.float32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        weights[i, : len(row)] = np.float16(rng.random(len(row)) + 0.01)
    dense = np.zeros((len(rows), 2**bits), np.float32)
    for i in range(len(rows)):
        np.add.at(dense[i], ids[i], weights[i])
    blobs = encode(Bags(ids, weights), bits)
    assert sum(map(len, blobs)) == (4 if bits <= 16 else 6) * sum(map(len, rows))
    bags = PackedBags.decode(blobs, bits)
    query = rng.random(2**bits).astype(np.float32)
    np.testing.assert_allclose(bags.products(query), dense @ query, atol=1e-5)
    for i in range(len(rows)):
        np.testing.assert_array_equal(bags.dense(i, bits), dense[i])
    order = rng.permutation(len(rows))[: len(rows) // 2 + 1]
    taken = bags.take(order)
    np.testing.assert_allclose(taken.products(query), dense[order] @ query, atol=1e-5)
    both = PackedBags.concatenate([taken, bags.take(np.arange(len(rows)))])
    expected = np.concatenate([dense[order], dense]) @ query
    np.testing.assert_allclose(both.products(query), expected, atol=1e-5)
    total = dense.sum(axis=0)
    expected = total / max(np.linalg.norm(total), 1e-12)
    np.testing.assert_allclose(bags.mean(2**bits), expected, atol=1e-5)
