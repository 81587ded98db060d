import numpy as np
import pytest

from prefchat_jax.evaluation import (
    answer_threshold,
    evaluate_run,
    macro_f1,
    outcome,
    paired_bootstrap,
    rank_metrics,
)


def test_macro_f1_by_hand():
    predicted, labels = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    # F1 of class 0: 2*1/(2+1); of class 1: 2*1/(1+3); class 2 is no label.
    assert macro_f1(predicted, labels) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_outcome_counts_refusals_apart_from_wrong_answers():
    found = outcome(["a", "", "b", "b"], ["a", "a", "b", "a"], np.array([True, False]))
    assert (found.right, found.wrong, found.refused) == (0.5, 0.25, 0.5)


def test_the_threshold_has_the_largest_gain():
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    right = np.array([True, True, False, True, False, False])
    gains = [
        np.sum(np.where(right, 1, -1)[confidence >= t])
        for t in np.linspace(0.35, 0.95, 61)
    ]
    threshold = answer_threshold(confidence, right)
    best = np.sum(np.where(right, 1, -1)[confidence >= threshold])
    assert best == max(gains) and threshold == pytest.approx(0.55)
    assert answer_threshold(confidence, np.zeros(6, bool)) == 0.0
    assert answer_threshold(confidence, np.ones(6, bool)) == pytest.approx(0.2)
    # Where answers are mostly wrong, refusing everything is best.
    assert answer_threshold(confidence[:3], np.array([False, False, True])) == 1.0


def test_the_bootstrap_interval_holds_the_difference(rng):
    ours, theirs = rng.random(500) < 0.8, rng.random(500) < 0.6
    low, high = paired_bootstrap(ours, theirs)
    assert low < ours.mean() - theirs.mean() < high and low > 0.1
    assert paired_bootstrap(ours, ours) == (0.0, 0.0)


def test_ranks_by_hand():
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 5.0]])
    ranks = rank_metrics(scores, np.array([0, 1]))
    # The second row ties for second place, which counts as third.
    assert ranks.recall_at_1 == 0.5 and ranks.mrr == pytest.approx((1 + 1 / 3) / 2)


def test_a_run_is_scored_on_rows_it_never_saw(run, corpus_path, tmp_path):
    figures = evaluate_run(run.run.path, [corpus_path])
    assert figures["in_scope_rows"] == 36 and figures["accuracy"] > 0.9
    total = figures["right"] + figures["wrong"] + figures["abstained"]
    assert total == pytest.approx(1.0)
    assert figures["p50_ms"] <= figures["p99_ms"]
