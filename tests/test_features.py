import dataclasses
import hashlib
import itertools

import jax
import numpy as np
import oracles
import pytest

from prefchat_jax.text import tfidf
from prefchat_jax.text.bags import Bags, cosine
from prefchat_jax.text.dialogue import Turn, as_context, weighted_turns
from prefchat_jax.text.features import FeatureConfig, Featurizer
from prefchat_jax.text.packed import trim

TEXTS = [
    "How do I reset my password?",
    "it's   3.14, or http://a.b/c?d=e!",
    "Wo ist der Schlüssel — 日本語",
    "a",
    "the the the cat",
]


@pytest.fixture
def featurizer():
    contexts = [(Turn("user", text),) for text in TEXTS]
    return Featurizer.fit(contexts, FeatureConfig(bits=12, max_features=256))


def _as_dict(bags, row):
    used = bags.weights[row] > 0
    return dict(zip(bags.ids[row, used], bags.weights[row, used], strict=True))


@pytest.mark.parametrize("text", TEXTS)
def test_features_equal_a_slow_hash_of_every_ngram(featurizer, text):
    expected = oracles.hash_bags(text, featurizer.idf, featurizer.config)
    got = _as_dict(featurizer.texts([text]), 0)
    assert set(got) == set(expected)
    np.testing.assert_allclose(
        [got[i] for i in sorted(got)],
        [expected[i] for i in sorted(expected)],
        rtol=1e-5,
    )


def test_ids_are_the_same_everywhere_for_ever(featurizer):
    ids = featurizer.texts(TEXTS[:1]).ids
    digest = hashlib.sha256(np.sort(ids[ids > 0]).astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "9455dd9b7610c322"


def test_a_text_has_the_same_bag_in_any_batch(featurizer):
    alone = featurizer.texts(TEXTS[1:2])
    together = featurizer.texts(TEXTS * 300)
    np.testing.assert_array_equal(alone.ids[0], together.ids[1])
    np.testing.assert_array_equal(alone.weights[0], together.weights[-4])


def test_rows_have_unit_norm_and_empty_texts_are_zero(featurizer):
    bags = featurizer.texts([*TEXTS, "", "   "])
    norms = np.linalg.norm(bags.weights, axis=1)
    np.testing.assert_allclose(norms[:5], 1.0, rtol=1e-5)
    assert (norms[5] == 0) and featurizer.texts([]).ids.shape == (0, 256)


def test_separators_inside_a_text_do_not_shift_the_others(featurizer):
    bags = featurizer.texts(["a\0b", TEXTS[0]])
    np.testing.assert_array_equal(bags.ids[1], featurizer.texts(TEXTS[:1]).ids[0])


def test_truncation_keeps_the_heaviest(featurizer):
    small = dataclasses.replace(
        featurizer, config=FeatureConfig(bits=12, max_features=5)
    )
    full = _as_dict(featurizer.texts(TEXTS[:1]), 0)
    kept = _as_dict(small.texts(TEXTS[:1]), 0)
    assert (
        sorted(kept.values(), reverse=True) == sorted(full.values(), reverse=True)[:5]
    )


def test_rare_features_have_no_embedding(featurizer):
    """Only what two of the texts hold gets a row; rows count from one."""
    seen = [set(_as_dict(featurizer.texts([text]), 0)) for text in TEXTS]
    shared = {i for i in range(2**12) if sum(i in ids for ids in seen) >= 2}
    assert set(np.flatnonzero(featurizer.rows)) == shared
    assert sorted(featurizer.rows[list(shared)]) == list(range(1, len(shared) + 1))
    assert featurizer.num_rows > len(shared) and featurizer.num_rows % 256 == 0
    bags = featurizer.texts(TEXTS)
    embedded = featurizer.embedded(bags)
    kept = embedded.ids > 0
    np.testing.assert_array_equal(embedded.weights[kept], bags.weights[kept])
    assert (embedded.weights[~kept] == 0).all()


def test_trimming_keeps_what_most_rows_need(rng):
    weights = np.zeros((100, 64), np.float32)
    weights[:, 3:20] = rng.random((100, 17)) + 0.1
    weights[0] = 1.0
    ids = rng.integers(0, 9, (100, 64)).astype(np.int32)
    bags = Bags(ids, weights)
    small = trim((Bags(*(x[i : i + 30] for x in bags)) for i in range(0, 100, 30)), 64)
    assert small.ids.shape == (100, 32)
    np.testing.assert_array_equal(small.weights[1:, :17], weights[1:, 3:20])
    np.testing.assert_array_equal(small.ids[1:, :17], ids[1:, 3:20])


def test_training_rows_are_those_of_all_contexts_and_need_no_copy(featurizer):
    """A block of contexts at a time, and padded for JAX as it uses them on a CPU."""
    texts = [f"{text} {number}" for number in range(200) for text in TEXTS]
    contexts = [as_context(text) for text in texts]
    trained, whole = (
        featurizer.trained(contexts),
        featurizer.embedded(featurizer.texts(texts)),
    )
    assert len(texts) > 512 and trained.ids.shape[0] == len(texts)
    for row in range(0, len(texts), 97):
        used = whole.weights[row] > 0
        kept = trained.weights[row] > 0
        count = min(used.sum(), trained.ids.shape[1])
        assert kept.sum() == count
        for part, all_of_it in zip(trained, whole, strict=True):
            np.testing.assert_array_equal(part[row][kept], all_of_it[row][used][:count])
    device = jax.devices("cpu")[0]
    for part in trained:
        pointer = jax.device_put(part, device).unsafe_buffer_pointer()
        assert pointer == part.ctypes.data


def test_a_typo_stays_close_and_another_topic_far(featurizer):
    bags = featurizer.texts(["reset my pasword", "reset my password", "a cat sleeps"])
    similar = cosine(bags, bags, 12)
    np.testing.assert_allclose(np.diag(similar), 1.0, rtol=1e-5)
    assert similar[0, 1] > 0.5 > 0.2 > similar[0, 2]


def test_cosine_equals_dense_products(featurizer):
    bags = featurizer.texts(TEXTS)
    dense = np.zeros((len(TEXTS), 2**12))
    for row in range(len(TEXTS)):
        np.add.at(dense[row], bags.ids[row], bags.weights[row])
    np.testing.assert_allclose(cosine(bags, bags, 12), dense @ dense.T, atol=1e-5)
    empty = Bags(bags.ids[:0], bags.weights[:0])
    assert cosine(empty, bags, 12).shape == (0, len(TEXTS))


def test_earlier_turns_count_less_the_older_they_are(featurizer):
    history = [("user", "zebra"), ("assistant", "giraffe"), ("user", "zebra")]
    weights = featurizer.config.turns
    pairs = weighted_turns(as_context("lion", history), weights)
    assert [text for text, _ in pairs] == ["zebra", "giraffe", "zebra", "lion"]
    values = [weight for _, weight in pairs]
    assert values[3] == 1.0 > values[2] > values[0] > 0
    likeness = lambda context: cosine(
        featurizer.texts(["zebra"]), featurizer([context]), 12
    )[0, 0]
    assert likeness(as_context("lion", history)) > likeness(as_context("lion")) + 0.1


def test_history_is_read_in_three_forms_and_no_other():
    turns = as_context("b", [("user", "a"), {"role": "assistant", "content": "x"}])
    assert turns == [Turn("user", "a"), Turn("assistant", "x"), Turn("user", "b")]
    for bad in (["text"], [{"role": "user"}], [("robot", "x")]):
        with pytest.raises(ValueError, match="role"):
            as_context("b", bad)


def test_the_rows_of_a_dialogue_equal_each_row_alone(rng):
    """Turns that rows share are hashed once, and nothing else changes: bit for bit."""
    words = ["alpha", "beta", "gamma", "delta", "straße", "x\0y", "", "ΣΑΣ"]
    text = lambda: " ".join(rng.choice(words, int(rng.integers(0, 40))))
    turns = [Turn(("user", "assistant")[i % 2], text()) for i in range(40)]
    contexts = [
        turns[first : first + 1 + i % 11] for i in range(60) for first in (0, i % 29)
    ]
    contexts.append([])
    config = FeatureConfig(bits=12, max_features=24)
    featurizer = Featurizer.fit([c for c in contexts if c], config)
    together = featurizer(contexts)
    for row, context in enumerate(contexts):
        np.testing.assert_array_equal(together.ids[row], featurizer([context]).ids[0])
        weights = featurizer([context]).weights[0]
        np.testing.assert_array_equal(together.weights[row], weights)


def test_equal_weights_are_ordered_by_id_where_a_text_is_cut():
    config = FeatureConfig(bits=12, max_features=7, char_ngrams=())
    flat = Featurizer(config, np.ones(2**12, np.float32), np.zeros(2**12, np.int32))
    bag = flat.texts(["one two three four five six seven eight nine"])
    everything = dataclasses.replace(config, max_features=99)
    full = dataclasses.replace(flat, config=everything)
    ids = full.texts(["one two three four five six seven eight nine"]).ids[0]
    np.testing.assert_array_equal(bag.ids[0], np.sort(ids[ids > 0])[:7])


def test_scorer_rows_are_what_questions_and_distinct_replies_hold_twice():
    contexts = [(Turn("user", text),) for text in ("red fox", "blue fox")]
    replies = ["red hen", "red hen", "grey owl"]
    config = FeatureConfig(bits=14, char_ngrams=())
    featurizer = Featurizer.fit(contexts, config, replies)
    plain = Featurizer.fit(contexts, config)
    assert plain.scorer_rows is None and plain.num_scorer_rows == 0
    for name in ("idf", "rows"):
        np.testing.assert_array_equal(getattr(featurizer, name), getattr(plain, name))
    known = lambda word: featurizer.scorer_embedded(featurizer.texts([word])).ids.max()
    assert known("fox") and known("red")
    assert not known("hen") and not known("owl") and not known("blue")
    assert featurizer.scorer_rows.max() == 2 and featurizer.num_scorer_rows == 256
    later = plain.with_scorer(contexts, replies)
    np.testing.assert_array_equal(later.scorer_rows, featurizer.scorer_rows)


def test_the_heaviest_features_come_first_then_the_first(rng):
    """As a stable sort of all texts by text and falling weight has them."""
    bits, width = tfidf.MAX_BITS, 30
    keys = np.unique(rng.integers(tfidf.MAX_TEXTS << bits, size=9_000, dtype=np.uint64))
    keys[-1] = (tfidf.MAX_TEXTS << bits) - 1
    keys = keys[(keys >> bits) != 7]  # A text without features.
    weights = rng.choice([0.0, 0.25, 1.0, 3.4e38], len(keys)).astype(np.float32)
    ids = np.zeros((tfidf.MAX_TEXTS, width), np.int32)
    laid = np.zeros(ids.shape, np.float32)
    tfidf.heaviest_first(keys, weights, bits, ids, laid)
    texts = (keys >> bits).astype(int)
    order = np.lexsort((-weights, texts))
    for text in range(tfidf.MAX_TEXTS):
        row = order[texts[order] == text][:width]
        expected = np.zeros((2, width))
        expected[:, : len(row)] = keys[row] & (2**bits - 1), weights[row]
        np.testing.assert_array_equal([ids[text], laid[text]], expected)


def test_values_of_equal_keys_are_summed_in_order():
    keys = np.array([9, 2, 9, 2, 5], np.uint32)
    found, sums = tfidf.sum_by_key(keys, np.array([1e16, 1.0, 1.0, 2.0, 4.0]))
    np.testing.assert_array_equal(found, [2, 5, 9])
    np.testing.assert_array_equal(sums, [3.0, 4.0, 1e16 + 1.0])


def test_packed_bags_hold_every_feature_of_any_context(featurizer, rng):
    """Also where there are several blocks, empty texts and dialogues."""
    texts = [*TEXTS, "", "\ud800 half", "e\u0301", "İI ﬀ", "\0\0"] * 60
    contexts = [(Turn("user", text),) for text in texts]
    contexts += [contexts[i] + contexts[i + 1] for i in range(20)] + [()]
    packed, bags = featurizer.packed(contexts), featurizer(contexts)
    assert len(packed.offsets) == len(contexts) + 1
    for row, (first, last) in enumerate(itertools.pairwise(packed.offsets)):
        ids, weights = packed.ids[first:last], packed.weights[first:last]
        assert (np.diff(ids.astype(int)) > 0).all()
        assert dict(zip(ids, weights, strict=True)) == _as_dict(bags, row)
    assert featurizer.packed([]).offsets.tolist() == [0]


@pytest.mark.parametrize(
    "text", ["", "\0", "'", "日本", "a" * 300, "ß\u0301 ΣΑΣ İ ﬀ", "\ud83d!"]
)
def test_hostile_texts_have_the_features_of_a_slow_hash(text):
    flat = FeatureConfig(bits=24, char_ngrams=(2, 4, 7), max_features=900)
    featurizer = Featurizer(flat, np.ones(2**24, np.float32), np.zeros(2**24, np.int32))
    got = _as_dict(featurizer.texts(["x", text, "y"]), 1)
    expected = oracles.hash_bags(text, featurizer.idf, flat)
    assert got.keys() == expected.keys()
    np.testing.assert_allclose(
        [got[i] for i in expected], list(expected.values()), 1e-5
    )


@pytest.mark.parametrize("bits", [0, tfidf.MAX_BITS + 1])
def test_ids_that_no_sort_holds_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits {bits}: must be in"):
        FeatureConfig(bits=bits)
