import dataclasses
import json

import numpy as np
import pytest
from conftest import quick
from scipy.optimize import minimize, minimize_scalar
from sklearn.linear_model import LogisticRegression

from prefchat_jax import Chat
from prefchat_jax.calibration import (
    ASSUMED,
    answer_threshold,
    calibrate,
    cautious_threshold,
    fit_platt,
    fit_temperature,
    measure_chat,
    scope_threshold,
)
from prefchat_jax.evaluation.metrics import expected_calibration_error, softmax
from prefchat_jax.finetune import finetune


def _drawn(rng, rows, temperature, classes=6):
    """Logits whose labels are drawn at a temperature."""
    logits = 3 * rng.normal(size=(rows, classes))
    cumulative = softmax(logits, temperature).cumsum(axis=1)
    labels = (rng.random((rows, 1)) > cumulative).sum(axis=1)
    return logits, labels.clip(max=classes - 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature, rng):
    logits, labels = _drawn(rng, 6000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.1)


def test_the_temperature_minimizes_its_objective(rng):
    logits, labels = _drawn(rng, 80, 2.0)

    def objective(b):
        own = softmax(b * logits)[np.arange(80), labels]
        return -np.log(own).sum() + 3.0 * (b - np.log(b))

    expected = minimize_scalar(objective, bounds=(0.01, 10), method="bounded").x
    found = fit_temperature(logits, labels, prior_rows=3.0)
    assert 1 / found == pytest.approx(expected, rel=1e-4)


def test_few_rows_leave_the_temperature_near_1(rng):
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == pytest.approx(1)
    sure, labels = 5 * np.eye(3), np.arange(3)  # Right throughout: T would be 0.
    assert 0.9 < fit_temperature(sure, labels) < 1
    assert 1 < fit_temperature(sure, np.roll(labels, 1)) < 3  # And here infinite.
    many = np.tile(sure, (1000, 1))
    assert 1 / 20 < fit_temperature(many, np.tile(labels, 1000)) < 1
    assert fit_temperature(np.zeros((9, 1)), np.zeros(9, int)) == pytest.approx(1)


def test_scaling_mends_the_calibration_error(rng):
    logits, labels = _drawn(rng, 3000, 3.0)
    right = logits.argmax(axis=1) == labels
    ece = lambda t: expected_calibration_error(softmax(logits, t).max(axis=1), right)
    assert ece(fit_temperature(logits, labels)) < 0.04 < 0.2 < ece(1.0)


def test_platt_is_logistic_regression(rng):
    relevance = rng.random(4000)
    right = rng.random(4000) < 1 / (1 + np.exp(3 - 7 * relevance))
    found = fit_platt(relevance, right, prior_rows=1e-6)
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(relevance[:, None], right)
    assert found.slope == pytest.approx(expected.coef_[0, 0], rel=1e-3)
    assert found.offset == pytest.approx(expected.intercept_[0], rel=1e-3)
    weak = fit_platt(relevance, right)
    assert weak == pytest.approx(found, rel=0.02)  # Many rows outweigh the prior.


@pytest.mark.parametrize("rows", [0, 1, 3, 40])
def test_platt_maximizes_the_posterior(rows, rng):
    relevance, right = rng.random(rows), rng.random(rows) < 0.6
    x = np.append(relevance, [(-1 + 2.2) / 8, (1 + 2.2) / 8])
    y = np.append(right, 1 / (1 + np.exp([1.0, -1.0])))
    weights = np.append(np.ones(rows), [2.0, 2.0])

    def loss(point):
        z = point[0] * x + point[1]
        return weights @ (np.logaddexp(0, z) - y * z)

    start, bounds = [1.0, 0.0], [(0, None), (None, None)]
    best = minimize(loss, start, bounds=bounds, options={"ftol": 1e-15}).x
    np.testing.assert_allclose(fit_platt(relevance, right), best, atol=1e-3)


def test_platt_of_rows_that_say_little(rng):
    assert fit_platt(np.zeros(0), np.zeros(0, bool)) == pytest.approx(ASSUMED)
    relevance = rng.random(300)
    for right in (True, False):
        found = fit_platt(relevance, np.full(300, right))
        assert 0 <= found.slope < 20 and abs(found.offset) < 20
        probability = found.probability(relevance)
        assert np.all((probability > 0.5) == right)
        assert probability.min() > 0 and probability.max() < 1
    # Where relevance misleads, it says nothing, and never the opposite.
    found = fit_platt(relevance, relevance < 0.5)
    assert found.slope == 0
    assert found.probability(0.3) == pytest.approx(np.mean(relevance < 0.5), abs=0.02)
    assert fit_platt(np.full(50, 0.5), relevance[:50] < 0.5).slope >= 0


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


def test_the_threshold_cannot_part_rows_of_one_confidence(rng):
    for _ in range(50):
        confidence = rng.integers(1, 6, 30) / 6
        right = rng.random(30) < confidence
        gain = lambda t, c=confidence, r=right: np.where(r, 1, -1)[c >= t].sum()
        best = max(map(gain, np.linspace(0, 1.01, 400)))
        assert gain(answer_threshold(confidence, right)) == best


def test_few_rows_draw_the_threshold_to_one_half():
    sure, right = np.full(2, 0.9), np.ones(2, bool)
    assert cautious_threshold(sure, right) == pytest.approx((2 * 0.45 + 20 * 0.5) / 22)
    many = cautious_threshold(np.full(2000, 0.9), np.ones(2000, bool))
    assert many == pytest.approx(0.45, abs=0.001)
    assert cautious_threshold(np.zeros(0), np.zeros(0, bool)) == 0.5


def test_the_scope_threshold_refuses_one_row_in_twenty_at_least(rng):
    sure = 1 - 0.3 * rng.random(1000)
    right = np.ones(1000, bool)
    threshold = scope_threshold(sure, right)
    assert np.sum(sure < threshold) == 50
    # Where half of the sure answers are wrong it is the gain that counts.
    wrong = right & (sure > 0.9)
    assert scope_threshold(sure, wrong) == cautious_threshold(sure, wrong) > threshold


def test_calibrate_composes_them(rng):
    logits, labels = _drawn(rng, 500, 2.0)
    relevance = rng.random(400)
    right = rng.random(400) < relevance
    found = calibrate(logits=logits, labels=labels, relevance=relevance, is_right=right)
    assert found["temperature"] == fit_temperature(logits, labels)
    platt = fit_platt(relevance, right)
    assert found["confidence"] == {"slope": platt.slope, "offset": platt.offset}
    assert found["min_confidence"] == 0.5  # More often right than wrong.
    probs = softmax(logits, found["temperature"])
    assert found["min_probability"] == scope_threshold(
        probs.max(axis=1), probs.argmax(axis=1) == labels
    )


def test_calibrate_without_rows_says_nothing():
    empty, none = np.zeros((0, 4)), np.zeros(0, int)
    assert calibrate() == {}
    assert calibrate(logits=empty, labels=none) == {}
    assert calibrate(relevance=none, is_right=none) == {}
    # No reply can be right where each row has its own: then nothing is known.
    found = calibrate(relevance=np.array([0.2, 0.9]), is_right=np.zeros(2, bool))
    assert found["confidence"] == ASSUMED._asdict()


def test_replies_that_are_not_stored_judge_nothing(run, corpus_path, tmp_path):
    """Where each row has its own reply, the others are not wrong: chat answers."""
    rows = [json.loads(line) for line in corpus_path.read_text().splitlines()]
    path = tmp_path / "own.jsonl"
    path.write_text(
        "".join(
            json.dumps(row | {"assistant": f"{row['assistant']} Case {i}."}) + "\n"
            for i, row in enumerate(rows)
        )
    )
    own = finetune(quick(path, tmp_path / "own")).run
    assert own.config()["confidence"] == ASSUMED._asdict()
    assert not Chat.load(own.path).reply("where is my parcel").abstained
    assert run.run.config()["confidence"] != ASSUMED._asdict()


def test_a_message_without_candidates_is_left_out(run, examples, monkeypatch):
    ask = Chat.reply_batch

    def reply_batch(*args, **kwargs):
        first, *rest = ask(*args, **kwargs)
        return [dataclasses.replace(first, candidates=[]), *rest]

    monkeypatch.setattr(Chat, "reply_batch", reply_batch)
    with Chat.load(run.run.path) as chat:
        assert measure_chat(chat, examples)["confidence"] != ASSUMED._asdict()
        alone = measure_chat(chat, examples[:1])
    assert "weights" in alone and "confidence" not in alone


def test_a_run_is_calibrated(run):
    config = run.run.config()
    assert 1 / 20 < config["temperature"] < 20
    assert 0 <= config["min_probability"] <= 1
    assert config["confidence"]["slope"] >= 0
    assert 0 <= config["min_confidence"] <= 1
