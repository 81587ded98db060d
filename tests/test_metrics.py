import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, roc_auc_score

from prefchat_jax.evaluation.metrics import (
    auroc,
    bootstrap_interval,
    expected_calibration_error,
    macro_f1,
    outcome,
    paired_bootstrap,
    reliability_bins,
    softmax,
)
from prefchat_jax.evaluation.ranks import rank_metrics, rank_rows


def test_macro_f1_by_hand():
    predicted, labels = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    # F1 of class 0: 2*1/(2+1); of class 1: 2*1/(1+3); class 2 is no label.
    assert macro_f1(predicted, labels) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_macro_f1_is_that_of_sklearn(rng):
    predicted, labels = rng.integers(0, 7, 200), rng.integers(0, 7, 200)
    expected = f1_score(labels, predicted, average="macro")
    assert macro_f1(predicted, labels) == pytest.approx(expected)


def test_outcome_counts_refusals_apart_from_wrong_answers():
    found = outcome(["a", "", "b", "b"], ["a", "a", "b", "a"], np.array([True, False]))
    assert (found.right, found.wrong, found.refused) == (0.5, 0.25, 0.5)


def test_auroc_is_that_of_sklearn_also_with_ties(rng):
    inside, outside = rng.integers(2, 9, 150) / 8, rng.integers(0, 7, 60) / 8
    truth = np.repeat([1, 0], [150, 60])
    expected = roc_auc_score(truth, np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected)
    assert auroc(np.ones(3), np.zeros(2)) == 1.0
    assert auroc(np.ones(3), np.ones(2)) == 0.5
    assert np.isnan(auroc(np.ones(3), np.zeros(0)))


def test_bins_are_those_of_sklearn(rng):
    # Borders themselves, too: there the two must agree on the side.
    confidence = np.concatenate([rng.random(500), np.arange(16) / 15])
    right = rng.random(516) < confidence**2
    accuracy, promised = calibration_curve(right, confidence, n_bins=15)
    bins = reliability_bins(confidence, right)
    held = bins.counts > 0
    np.testing.assert_allclose(bins.accuracy[held], accuracy)
    np.testing.assert_allclose(bins.confidence[held], promised)
    assert bins.counts.sum() == 516
    assert bins.error == expected_calibration_error(confidence, right)


def test_calibration_error_by_hand():
    # Bin (0.8, 0.9]: 2 of 4 right at 0.85; bin (0.1, 0.2]: 1 of 1 right at 0.2.
    confidence = np.array([0.85, 0.85, 0.85, 0.85, 0.2])
    right = np.array([True, True, False, False, True])
    expected = (4 * 0.35 + 1 * 0.8) / 5
    found = expected_calibration_error(confidence, right, bins=10)
    assert found == pytest.approx(expected)
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0)))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        expected_calibration_error(np.array([1.2]), np.array([True]))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        expected_calibration_error(np.array([np.nan]), np.array([True]))


def test_softmax_stands_large_logits():
    probs = softmax(np.array([[1e4, 0.0], [0.0, np.log(3)]], np.float32), 1.0)
    np.testing.assert_allclose(probs, [[1, 0], [0.25, 0.75]], atol=1e-7)


def test_the_bootstrap_interval_is_the_normal_one(rng):
    values = rng.random(4000) < 0.3
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert low == pytest.approx(values.mean() - half, abs=0.0015)
    assert high == pytest.approx(values.mean() + half, abs=0.0015)
    assert (low, high) == bootstrap_interval(values)
    assert (low, high) != bootstrap_interval(values, seed=1)
    assert np.isnan(bootstrap_interval(np.zeros(0))).all()


def test_the_paired_interval_holds_the_difference(rng):
    ours, theirs = rng.random(500) < 0.8, rng.random(500) < 0.6
    low, high = paired_bootstrap(ours, theirs)
    assert low < ours.mean() - theirs.mean() < high and low > 0.1
    assert paired_bootstrap(ours, ours) == (0.0, 0.0)


def test_ranks_by_hand():
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 5.0], [0.0, 0.0, 0.0]])
    rows = rank_rows(scores, np.array([0, 1, 2]))
    # The second row is second or third; the third one anywhere.
    np.testing.assert_allclose(rows.recall_at_1, [1, 0, 1 / 3])
    np.testing.assert_allclose(rows.recall_at_5, [1, 1, 1])
    shared = [1, (1 / 2 + 1 / 3) / 2, (1 + 1 / 2 + 1 / 3) / 3]
    np.testing.assert_allclose(rows.mrr, shared)


def test_ranks_are_the_mean_over_random_orders_of_ties(rng):
    scores = rng.integers(0, 6, (40, 30)).astype(np.float64)
    right = rng.integers(0, 30, 40)
    totals = np.zeros((4, 40))
    for _ in range(4000):
        noisy = scores + rng.random(scores.shape) * 0.5  # Less than a step.
        own = np.take_along_axis(noisy, right[:, None], axis=1)
        rank = 1 + np.sum(noisy > own, axis=1)
        totals += [rank <= 1, rank <= 5, rank <= 10, 1 / rank]
    for found, expected in zip(rank_rows(scores, right), totals / 4000, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.04)
    means = [values.mean() for values in rank_rows(scores, right)]
    assert rank_metrics(scores, right) == pytest.approx(means)


def test_ranks_of_scores_that_say_nothing_are_those_of_a_guess():
    found = rank_metrics(np.full((3, 100), -np.inf), np.arange(3))
    assert found[:3] == pytest.approx((0.01, 0.05, 0.1))
    assert found.mrr == pytest.approx(np.mean(1 / np.arange(1, 101)))
    with pytest.raises(ValueError, match="NaN"):
        rank_metrics(np.full((1, 2), np.nan), np.array([0]))
    assert np.isnan(rank_metrics(np.zeros((0, 5)), np.zeros(0, int))).all()
