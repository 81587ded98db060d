"""Sketches against sets of Python strings."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefchat_jax.text.hashing import byte_buffer, word_hashes
from prefchat_jax.text.sketches import (
    TURN,
    Banding,
    band_keys,
    jaccard,
    minhash,
    sketch,
)

TURN_TEXT = TURN.decode()
WORDS = st.text("abcdé0 .,?'\n你好", max_size=40)
DIALOGUES = st.lists(WORDS, min_size=1, max_size=4).map(TURN_TEXT.join)


def _pairs(text):
    """(place, word before, word) for each word, from the definition."""
    turns = text.lower().split(TURN_TEXT)
    pairs = set()
    for place, turn in enumerate(reversed(turns)):
        before = None
        for word in re.findall(r"[\u4e00-\u9fff]|[a-z0-9é]+", turn):
            pairs.add((place, before, word))
            before = word
    return pairs


def _index(left, right):
    return len(left & right) / len(left | right) if left | right else 1.0


@settings(max_examples=200, deadline=None)
@given(st.lists(DIALOGUES, min_size=1, max_size=6))
def test_likeness_is_the_jaccard_index_of_word_pairs(texts):
    sketches = sketch(*byte_buffer(texts))
    sets = [_pairs(text) for text in texts]
    assert sketches.counts.tolist() == [len(pairs) for pairs in sets]
    left, right = np.divmod(np.arange(len(texts) ** 2), len(texts))
    wanted = [_index(sets[i], sets[j]) for i, j in zip(left, right, strict=True)]
    np.testing.assert_allclose(jaccard(sketches, left, right), wanted)


def test_words_of_many_scripts_and_marks():
    texts = ["Naïve café", "naïve « café »", "naïve – “café” …", "日本語", "ไทย", ""]
    starts, _ = word_hashes(byte_buffer(texts)[0])
    assert len(starts) == 2 + 2 + 2 + 3 + 3
    likeness = jaccard(sketch(*byte_buffer(texts)), np.zeros(2, int), np.array([1, 2]))
    assert likeness.tolist() == [1, 1]


def test_a_text_with_a_zero_byte_stays_one_text():
    buffer, starts = byte_buffer(["a\0b", "c"])
    assert len(starts) == 2 and bytes(buffer[starts[1] :]) == b"c\0"


def test_minhash_agrees_as_often_as_texts_are_alike(rng):
    words = [f"w{i}" for i in range(400)]
    first = list(rng.permutation(words))
    second = first[:300] + list(rng.permutation([f"v{i}" for i in range(100)]))
    sketches = sketch(*byte_buffer([" ".join(first), " ".join(second)]))
    values = minhash(sketches, 4000)
    wanted = jaccard(sketches, np.array([0]), np.array([1]))[0]
    assert np.mean(values[:, 0] == values[:, 1]) == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_pairs_at_the_threshold(threshold):
    bands, rows = Banding.at(threshold)
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert rows % 2 == 0  # One half from the context, one from the reply.


def test_a_band_is_equal_where_all_its_values_are(rng):
    banding = Banding(3, 4)
    values = [rng.integers(0, 2, (6, 50)).astype(np.uint32) for _ in range(2)]
    keys = band_keys(values, banding)
    for band in range(3):
        members = np.concatenate([part[band::3] for part in values]).T
        for i in range(50):
            same = np.all(members == members[i], axis=1)
            np.testing.assert_array_equal(keys[:, band] == keys[i, band], same)
