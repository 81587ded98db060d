"""Ranking and tuning, held to formulas written out for one candidate at a time."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from prefchat_jax.chat.config import RelevanceWeights
from prefchat_jax.chat.ranking import (
    RELEVANCE,
    best_by_response,
    diversify,
    draw,
    evidence,
    fuse_buckets,
    taste,
    total,
    weigh,
)
from prefchat_jax.chat.search import Pool, Query
from prefchat_jax.chat.store import NO_BUCKET
from prefchat_jax.chat.styles import STYLES, StyleWeights, get_style
from prefchat_jax.text.features import FeatureConfig, Featurizer
from prefchat_jax.text.packed import PackedBags, encode
from prefchat_jax.text.words import WordQuery
from prefchat_jax.tuning import Choice, tune_weights

BITS = 12


@pytest.fixture
def featurizer():
    rows = np.arange(2**BITS, dtype=np.int32)
    return Featurizer(FeatureConfig(bits=BITS), np.ones(2**BITS, np.float32), rows)


@pytest.fixture
def make_pool(rng, featurizer):
    def make(responses, **columns):
        count = len(responses)
        bags = PackedBags.decode(encode(featurizer.texts(responses), BITS), BITS)
        draws = lambda: rng.random(count).astype(np.float32)
        pool = Pool(
            ids=np.arange(count),
            response_ids=np.arange(count),
            buckets=np.arange(count, dtype=np.int32) % 3,
            words=10 * draws(),
            question=draws(),
            response=draws(),
            scorer=2 * draws() - 1,
            repeat=draws(),
            signals=np.stack([draws() for _ in STYLES], axis=1),
            response_bags=bags.take(np.arange(count)),
        )
        return pool._replace(**columns)

    return make


def _query(buckets, known=1.0):
    empty = np.zeros(0, np.float32)
    return Query(WordQuery.of([]), empty, empty, np.float32(buckets), known, empty)


def test_only_the_top_buckets_keep_their_probability():
    probs = np.array([0.5, 0.1, 0.3, 0.1], np.float32)
    np.testing.assert_allclose(fuse_buckets(probs, 2), [0.5, 0, 0.3, 0])
    np.testing.assert_allclose(fuse_buckets(probs, 9), probs)


def test_relevance_is_a_weighted_mean_of_numbers_in_0_1(make_pool):
    pool = make_pool([f"reply number {i}" for i in range(9)])
    found = evidence(pool, _query([0.6, 0.3, 0.0], known=0.5), stored=100)
    weights = RelevanceWeights(words=1, question=2, response=3, scorer=4, bucket=5)
    relevance = total(weigh(found, weights))
    for i in range(9):
        words = float(pool.words[i])
        expected = (
            1 * words / (words + 1.25 * math.log(102))
            + 2 * pool.question[i]
            + 3 * pool.response[i]
            + 4 * 0.5 * max(float(pool.scorer[i]), 0)
            + 5 * 0.5 * [0.6, 0.3, 0.0][i % 3]
        ) / 15
        assert relevance[i] == pytest.approx(expected, rel=1e-5)
    assert relevance.min() >= 0 and relevance.max() <= 1


def test_the_models_say_nothing_of_a_message_that_they_do_not_know(make_pool):
    pool = make_pool(["a", "b", "c"])
    found = evidence(pool, _query([0.9, 0.1, 0.0], known=0.0), stored=3)
    assert not found["scorer"].any() and not found["bucket"].any()
    assert found["question"].any()
    weights = RelevanceWeights(words=1, question=2, response=3, scorer=4, bucket=5)
    text = {name: found[name] for name in ("words", "question", "response")}
    expected = (text["words"] + 2 * text["question"] + 3 * text["response"]) / 6
    np.testing.assert_allclose(total(weigh(found, weights, 0.0)), expected, rtol=1e-5)


def test_an_entry_without_a_bucket_wins_where_its_text_does(make_pool):
    same = np.full(2, 0.8, np.float32)
    pool = make_pool(["a", "b"], words=same, response=same, scorer=same)
    pool = pool._replace(
        buckets=np.array([0, NO_BUCKET], np.int32),
        question=np.array([0.2, 0.9], np.float32),
    )
    bucket = evidence(pool, _query([0.7]), stored=2)["bucket"]
    np.testing.assert_allclose(bucket, [0.7, 0.7])
    pool = pool._replace(question=np.array([0.9, 0.2], np.float32))
    assert evidence(pool, _query([0.7]), stored=2)["bucket"][1] < 0.7


def test_style_novelty_and_repetition_are_shares_of_relevance(make_pool):
    pool = make_pool(["see the shelf", "see the shelves", "a zebra", "the shelf"])
    relevance = np.array([0.5, 0.4, 0.3, 0.0], np.float32)
    signal = np.array([1.0, 0.5, 0.0, 1.0], np.float32)
    weights = StyleWeights(style=0.2, novelty=0.6, repeat=0.3)
    terms = taste(pool, relevance, signal, weights, creativity=0.5, bits=BITS)
    np.testing.assert_allclose(terms["style"], 0.2 * relevance * signal, rtol=1e-6)
    np.testing.assert_allclose(
        terms["repeat"], -0.3 * relevance * pool.repeat, rtol=1e-6
    )
    novelty = terms["novelty"][:3] / (0.5 * 0.6 * relevance[:3])
    assert np.argmax(novelty) == 2 and novelty.min() >= 0 and novelty.max() <= 1
    assert all(term[3] == 0 for term in terms.values())  # Nothing lifts what is off.
    plain = taste(pool, relevance, signal, weights, creativity=0.0, bits=BITS)
    assert not plain["novelty"].any()


@pytest.mark.parametrize("style", STYLES)
def test_creativity_ranks_a_fixed_pool_differently(make_pool, style):
    replies = ["see the shelf", "see the shelves", "look at the shelf", "a zebra"]
    pool = make_pool(replies, repeat=np.zeros(4, np.float32))
    relevance = np.array([0.5, 0.5, 0.5, 0.46], np.float32)
    weights = get_style(style).weights

    def first(creativity):
        signal = np.zeros(4, np.float32)
        terms = taste(
            pool, relevance, signal, weights, creativity=creativity, bits=BITS
        )
        return replies[int(np.argmax(relevance + total(terms)))]

    assert first(0.0) != "a zebra"
    assert weights.novelty < 0.3 or first(1.0) == "a zebra"


def test_a_response_counts_once_with_its_best_entry():
    order = best_by_response(np.array([0.2, 0.9, 0.5, 0.1]), np.array([7, 3, 7, 1]))
    assert order.tolist() == [1, 2, 3]


def test_the_list_says_different_things(make_pool):
    replies = ["open the app", "open the app now", "call us", "write a letter"]
    pool = make_pool(replies)
    scores = np.array([1.0, 0.95, 0.8, 0.5], np.float32)
    order = np.arange(4)
    shown = lambda weight, limit=3: diversify(
        order, scores, pool.response_bags, limit=limit, weight=weight, bits=16
    ).tolist()
    assert shown(0.0) == [0, 1, 2] and shown(0.5) == [0, 2, 1]
    assert shown(0.5, limit=9) == [0, 2, 3, 1] or shown(0.5, limit=9)[0] == 0
    assert sorted(shown(1.0, limit=9)) == [0, 1, 2, 3]


def test_diversity_is_maximal_marginal_relevance(make_pool, rng):
    """Against the definition, one candidate at a time."""
    words = [
        "open",
        "close",
        "app",
        "shop",
        "call",
        "write",
        "letter",
        "refund",
        "parcel",
        "today",
    ]
    replies = [" ".join(rng.choice(words, 4)) for _ in range(12)]
    pool = make_pool(replies)
    scores = rng.random(12).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    bags = pool.response_bags
    gram = np.stack([bags.products(bags.dense(i, 16)) for i in range(12)])
    chosen = []
    while len(chosen) < 6:
        rest = [i for i in order if i not in chosen]
        near = lambda i: min(max((gram[i, j] for j in chosen), default=0.0), 1.0)
        chosen.append(max(rest, key=lambda i: scores[i] * (1 - 0.4 * near(i))))
    found = diversify(order, scores, bags, limit=6, weight=0.4, bits=16)
    assert found.tolist() == chosen


def test_draws_are_seeded_scale_free_and_greedy_at_zero():
    scores = np.array([1.0, 0.9, 0.8, 0.7, 0.1])
    pick = lambda s, t: [draw(s, temperature=t, seed=k) for k in range(400)]
    assert set(pick(scores, 0.0)) == {0}
    assert pick(scores, 0.1) == pick(scores / 100, 0.1)
    shares = np.bincount(pick(scores, 0.1), minlength=5) / 400
    expected = scores[:4] ** 10 / (scores[:4] ** 10).sum()
    np.testing.assert_allclose(shares[:4], expected, atol=0.07)
    assert shares[4] == 0  # Only four can be drawn.
    assert {draw(scores, temperature=t, seed=1) for t in (1e-5, 1e-310, 5e-324)} == {0}
    assert set(pick(scores, 1e300)) == {0, 1, 2, 3}


# --- tuning


def _lists(rng, truth, count, candidates=8):
    """Lists whose right response is drawn from the softmax of the true weights."""
    made = []
    for _ in range(count):
        terms = rng.random((candidates, len(RELEVANCE))).astype(np.float32)
        shares = np.exp(terms @ truth)
        right = rng.choice(candidates, p=shares / shares.sum())
        made.append(Choice(terms, np.arange(candidates), int(right)))
    return made


def test_tuning_recovers_the_weights_that_made_the_choices(rng):
    truth = np.array([2.0, 8.0, 0.2, 16.0, 6.0])
    found = tune_weights(_lists(rng, truth, 3000))
    shares = np.array(dataclasses.astuple(found)) / sum(dataclasses.astuple(found))
    np.testing.assert_allclose(shares, truth / truth.sum(), atol=0.04)
    assert sum(dataclasses.astuple(found)) == pytest.approx(2.5, abs=1e-3)


def test_tuning_maximises_the_posterior_of_a_conditional_logit(rng):
    """Against scipy without our gradient, on the formula written out."""
    lists = _lists(rng, np.array([5.0, 1.0, 3.0, 8.0, 2.0]), 40)
    start = RelevanceWeights()
    first = np.array(dataclasses.astuple(start))
    origin = np.log(20 * first / first.sum())

    def loss(logs):
        value = 0.5 * np.sum(((logs - origin) / 0.5) ** 2)
        for choice in lists:
            logits = choice.terms @ np.exp(logs)
            value += np.log(np.sum(np.exp(logits))) - logits[choice.right]
        return value

    best = np.exp(minimize(loss, origin, method="Nelder-Mead", tol=1e-10).x)
    expected = best * first.sum() / best.sum()
    found = dataclasses.astuple(tune_weights(lists, start))
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_few_rows_change_little_and_none_nothing(rng):
    start = RelevanceWeights()
    assert tune_weights([], start) == start
    lists = _lists(rng, np.array([0.1, 0.1, 0.1, 30.0, 0.1]), 300)
    shift = lambda count: np.abs(
        np.log(dataclasses.astuple(tune_weights(lists[:count], start)))
        - np.log(dataclasses.astuple(start))
    ).max()
    assert shift(1) < 0.7 < 1.0 < shift(300)


def test_a_response_is_chosen_by_its_best_entry():
    """Many poor entries of the right response are no evidence for it."""
    terms = np.zeros((6, len(RELEVANCE)), np.float32)
    terms[0, 0] = 1.0  # The wrong response has one entry with all the words;
    terms[1:, 1] = 0.1  # the right one has five that hardly resemble the question.
    lists = [Choice(terms, np.array([1, 0, 0, 0, 0, 0]), 0)] * 50
    found = tune_weights(lists)
    assert found.words < 0.1 < 1 < found.question
