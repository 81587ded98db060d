"""Length matching, and the figures of preference pairs."""

import json

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.stats import spearmanr

from prefchat_jax.datasets.lengths import CALIPER, log_ratio, matched
from prefchat_jax.evaluation.metrics import bootstrap_interval
from prefchat_jax.evaluation.preferences import (
    measure_preferences,
    rank_correlation,
)


@pytest.fixture
def lengths(rng):
    """300 pairs; the chosen reply is longer in most."""
    rejected = rng.integers(1, 120, 300)
    return np.maximum(1, rejected + rng.integers(-30, 50, 300)), rejected


def test_longer_is_right_in_half_of_the_matched_pairs(lengths):
    chosen, rejected = lengths
    kept = matched(chosen, rejected)
    assert np.sum((chosen > rejected)[kept]) == np.sum((chosen < rejected)[kept]) > 60
    assert kept[chosen == rejected].all() and np.any(chosen == rejected)
    assert np.mean(chosen > rejected) > 0.55


@pytest.mark.parametrize("caliper", [0.0, 0.02, CALIPER, 0.3, 5.0])
def test_as_many_pairs_are_matched_as_can_be(lengths, caliper):
    ratios = log_ratio(*lengths)
    ups, downs = ratios[ratios > 0], -ratios[ratios < 0]
    near = np.abs(ups[:, None] - downs[None, :]) <= caliper
    partners = np.sum(maximum_bipartite_matching(csr_array(near)) >= 0)
    kept = matched(*lengths, caliper=caliper)
    assert kept.sum() == 2 * partners + np.sum(ratios == 0)


def test_partners_differ_by_about_the_same_ratio(lengths):
    ratios = log_ratio(*lengths)
    kept = ratios[matched(*lengths)]
    # Matched in order, the nth longer and the nth shorter pair are partners.
    up, down = np.sort(kept[kept > 0]), np.sort(-kept[kept < 0])
    assert np.abs(up - down).max() <= CALIPER + 1e-12
    assert abs(np.mean(ratios)) > 3 * abs(np.mean(kept))


def test_matching_follows_neither_the_order_nor_a_seed(lengths, rng):
    order = rng.permutation(300)
    chosen, rejected = lengths
    kept = matched(chosen, rejected)
    np.testing.assert_array_equal(kept, matched(chosen, rejected))
    moved = matched(chosen[order], rejected[order])
    pairs = lambda c, r: sorted(log_ratio(c, r).round(9))
    assert pairs(chosen[kept], rejected[kept]) == pairs(
        chosen[order][moved], rejected[order][moved]
    )


def test_an_empty_reply_has_no_ratio():
    with pytest.raises(ValueError, match="above 0"):
        matched(np.array([0, 3]), np.array([2, 3]))
    assert matched(np.array([]), np.array([])).shape == (0,)


def test_figures_by_hand():
    chosen, rejected = ["aaaa", "aa", "a", "bbb"], ["aa", "aaaa", "aaa", "ccc"]
    found = measure_preferences(np.array([1.0, -2.0, 0.0, 0.5]), chosen, rejected)
    assert found["pairs"] == 4 and found["accuracy"] == 2.5 / 4
    assert found["longer"] == 1.5 / 4 and found["shorter"] == 2.5 / 4
    # Longer by two, shorter by two, and the pair of equal length.
    assert found["matched_pairs"] == 3 and found["matched_accuracy"] == 2 / 3
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


def test_figures_are_those_of_plain_loops(rng):
    words = lambda: ["x" * n for n in rng.integers(1, 40, 200)]
    margins, chosen, rejected = rng.normal(size=200).round(1), words(), words()
    found = measure_preferences(margins, chosen, rejected)
    right = [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins]
    assert found["accuracy"] == pytest.approx(sum(right) / 200)
    interval = bootstrap_interval(np.array(right), draws=2000)
    assert (found["accuracy_low"], found["accuracy_high"]) == interval
    differences = [len(c) - len(r) for c, r in zip(chosen, rejected, strict=True)]
    expected = spearmanr(margins, differences).statistic
    assert found["length_correlation"] == pytest.approx(expected)
    longer = measure_preferences(np.array(differences), chosen, rejected)
    assert longer["accuracy"] == longer["longer"] == 1 - longer["shorter"]
    assert longer["matched_accuracy"] == 0.5
    assert longer["length_correlation"] == pytest.approx(1.0)


def test_a_constant_correlates_with_nothing():
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4)))
    assert np.isnan(rank_correlation(np.ones(0), np.ones(0)))


def test_what_cannot_be_measured_is_an_error_or_nan():
    with pytest.raises(ValueError, match="as many"):
        measure_preferences(np.ones(2), ["a"], ["b"])
    with pytest.raises(ValueError, match="NaN"):
        measure_preferences(np.array([np.nan]), ["a"], ["b"])
    nothing = measure_preferences(np.ones(0), [], [])
    assert nothing["pairs"] == 0 and np.isnan(nothing["accuracy"])


@pytest.mark.parametrize(
    "name, longer", [("hh_helpful_train", 0.59), ("hh_harmless_train", 0.44)]
)
def test_length_rules_of_real_pairs(shared, name, longer):
    """The shares that the notes on the data state."""
    lines = (shared / "data/prefs" / f"{name}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [[row[key] for row in rows] for key in ("chosen", "rejected")]
    found = measure_preferences(np.zeros(len(rows)), *texts)
    assert found["longer"] == pytest.approx(longer, abs=0.008)
    assert found["matched_pairs"] > 0.75 * len(rows)
    assert found["accuracy"] == found["matched_accuracy"] == 0.5
