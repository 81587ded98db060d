"""Calibration: what probabilities a run's scores mean, and when it abstains.

Pure functions of arrays, and `measure_chat`, which asks a chat for the arrays.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from prefchat_jax.chat.config import Calibration
from prefchat_jax.chat.ranking import RELEVANCE
from prefchat_jax.chat.session import Chat
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.asking import ask
from prefchat_jax.evaluation.metrics import reliability_bins, softmax
from prefchat_jax.text.dialogue import Example
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.tuning import choices, tune_weights

_MEASURED = 1000  # Validation rows that are asked,
_TRIED = 300  # and, once all is measured, asked again.
_PRIOR, _PRIOR_ROWS = 0.5, 20  # Threshold before any row is asked: a coin's toss.
_STORED = 0.5  # Share of the rows whose reply is stored, to judge replies by them.
_EVEN = 0.5  # From here on a reply is more often right than wrong.
_SACRIFICED = 0.05  # Share of in-scope rows that may be taken as out of scope.
_LARGEST = 20.0  # Bound of the temperature, and of its inverse.


class Platt(NamedTuple):
    """The probability that a reply is right: `sigmoid(slope * x + offset)`."""

    slope: float
    offset: float

    def probability(self, relevance: np.ndarray | float) -> np.ndarray:
        """Probabilities of relevance `[...]`."""
        return _sigmoid(self.slope * np.asarray(relevance, np.float64) + self.offset)


class Refused(NamedTuple):
    """What share of the rows that were asked a chat refuses."""

    share: float
    rows: int


# What is assumed before any row is seen. Few replies have all the evidence: one
# that has over a quarter of it is more likely right than wrong.
ASSUMED = Platt(8.0, -2.2)
ASSUMED_REPLIES = {"confidence": ASSUMED._asdict(), "min_confidence": _EVEN}


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, *, prior_rows: float = 10.0
) -> float:
    """The temperature whose `softmax(logits / T)` is most likely on given rows.

    Temperature scaling of Guo et al., https://arxiv.org/abs/1706.04599, solved
    for the inverse `b = 1 / T`, in which `sum(cross_entropy) + prior_rows *
    (b - log b)` is convex: the derivative rises, and its root is found by
    bisection. The second term draws few rows to 1, and keeps `T` above 0 where
    every row is right.

    Args:
      logits: `[n, C]` of rows that were not trained on; `n` may be 0.
      labels: integer `[n]`.
      prior_rows: strength of the draw to 1.

    Returns:
      `T` in [1/20, 20].
    """
    logits = np.asarray(logits, np.float64)
    own = logits[np.arange(len(labels)), labels].sum()

    def slope(inverse: float) -> float:
        expected = np.sum(softmax(logits * inverse) * logits) if len(logits) else 0.0
        return expected - own + prior_rows * (1 - 1 / inverse)

    low, high = -np.log(_LARGEST), np.log(_LARGEST)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def fit_platt(
    relevance: np.ndarray,
    is_right: np.ndarray,
    *,
    prior: Platt = ASSUMED,
    prior_rows: float = 4.0,
) -> Platt:
    """Logistic calibration of a reply's relevance; more is never less probable.

    Maximum likelihood (Platt 1999, "Probabilistic outputs for support vector
    machines") by Newton's method. `prior_rows` rows that the prior says are
    right with log-odds -1 and 1 join the data: few rows, or rows that are all
    right, stay near the prior and never reach infinity. If the likelihood falls
    with relevance, the slope is 0.

    Args:
      relevance: `[n]`; `n` may be 0.
      is_right: bool `[n]`.
      prior: with a slope above 0.
      prior_rows: how many rows it weighs, above 0.
    """
    odds = np.array([-1.0, 1.0])
    x = np.append(relevance, (odds - prior.offset) / prior.slope).astype(np.float64)
    y = np.append(is_right, _sigmoid(odds))
    weights = np.append(np.ones(len(x) - 2), [prior_rows / 2] * 2)
    design = np.stack([x, np.ones_like(x)], axis=1)

    def loss(point: np.ndarray) -> float:
        z = design @ point
        return float(weights @ (np.logaddexp(0, z) - y * z))

    point = np.array(prior, np.float64)
    for _ in range(100):
        p = _sigmoid(design @ point)
        gradient = design.T @ (weights * (p - y))
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        length = 1.0
        while loss(point - length * step) > loss(point) and length > 1e-9:
            length /= 2
        point = point - length * step
        if np.abs(length * step).max() < 1e-10:
            break
    if point[0] > 0:
        return Platt(float(point[0]), float(point[1]))
    share = (weights @ y) / weights.sum()  # The optimum on the border is constant.
    return Platt(0.0, float(np.log(share) - np.log1p(-share)))


def answer_threshold(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """The confidence from which on an answer is more often right than wrong.

    A right answer gains one, a wrong one loses one, and a refusal costs
    nothing: the threshold has the largest sum over validation rows. It never
    abstains (0) if there are no right answers to measure it on.

    Args:
      confidence: `[n]` of the answers to validation rows.
      is_right: bool `[n]`; out-of-scope rows are never right.
    """
    if not np.any(is_right):
        return 0.0
    order = np.argsort(-confidence, kind="stable")
    gain = np.cumsum(np.where(is_right[order], 1, -1))
    # Rows of one confidence are answered together, or refused together.
    cuts = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    gain = gain[cuts]
    if gain.max() < 0:
        return 1.0  # Refusing everything is better.
    # The last maximum lets most answers through; halfway to the next row, since
    # the threshold lies somewhere between the two.
    last = cuts[len(gain) - 1 - int(np.argmax(gain[::-1]))]
    below = confidence[order[last + 1]] if last + 1 < len(order) else 0.0
    return float((confidence[order[last]] + below) / 2)


def cautious_threshold(probability: np.ndarray, is_right: np.ndarray) -> float:
    """`answer_threshold` of probabilities, drawn to one half where rows are few."""
    found = len(is_right) * answer_threshold(probability, is_right)
    return float((found + _PRIOR_ROWS * _PRIOR) / (len(is_right) + _PRIOR_ROWS))


def scope_threshold(probability: np.ndarray, is_right: np.ndarray) -> float:
    """The highest probability of a bucket below which a message is out of scope.

    The larger one of `cautious_threshold` and what refuses one validation row in
    twenty: those rows are all in scope, so that they alone would set it too low
    for messages that are not.

    Args:
      probability: `[n]` of the most probable bucket; `n` above 0.
      is_right: bool `[n]`.
    """
    least = float(np.quantile(probability, _SACRIFICED))
    return max(cautious_threshold(probability, is_right), least)


def calibrate(
    *,
    logits: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    relevance: np.ndarray | None = None,
    is_right: np.ndarray | None = None,
) -> dict[str, Any]:
    """What config.json says of probabilities, from arrays of validation rows.

    Args:
      logits: `[n, C]` of the classifier.
      labels: integer `[n]`.
      relevance: `[m]` of the best reply to each row that has one.
      is_right: bool `[m]`.

    Returns:
      Of the classifier, if it has rows: `temperature`; `min_probability`, below
      which a bucket counts as out of scope; and `bins`, the rows, the mean
      confidence and the accuracy of each bin that has rows. Of the replies, if
      there are: `confidence` (`slope`, `offset`), and `min_confidence`, which is
      compared with the probability that they give.
    """
    found: dict[str, Any] = {}
    if logits is not None and labels is not None and len(logits):
        temperature = fit_temperature(logits, labels)
        probs = softmax(logits, temperature)
        best, right = probs.max(axis=1), probs.argmax(axis=1) == labels
        found["temperature"] = temperature
        found["min_probability"] = scope_threshold(best, right)
        found["bins"] = _held_bins(best, right)
    if relevance is not None and is_right is not None and len(relevance):
        # Without a right reply, as where each row has its own, nothing is known.
        platt = fit_platt(relevance, is_right) if np.any(is_right) else ASSUMED
        found["confidence"] = platt._asdict()
        found["min_confidence"] = _EVEN
    return found


def _held_bins(confidence: np.ndarray, is_right: np.ndarray) -> list[list[float]]:
    """What `prefchat report` draws; the rows themselves are not kept."""
    bins = reliability_bins(confidence, is_right)
    held = np.flatnonzero(bins.counts)
    columns = (bins.counts, bins.confidence, bins.accuracy)
    return [list(row) for row in zip(*(c[held].tolist() for c in columns), strict=True)]


def measure_chat(
    chat: Chat,
    val_rows: Sequence[Example],
    *,
    logits: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """Measures on validation rows how chat should rank and when it should abstain.

    Args:
      chat: is left with the weights and the temperature that were found.
      val_rows: rows that were not trained on.
      logits: `[n, C]` of those among them that have a bucket.
      labels: integer `[n]`, their buckets.

    Returns:
      What changes in config.json: what `calibrate` finds, and the `weights` of
      the terms of relevance.
    """
    found = calibrate(logits=logits, labels=labels)
    rows = [row for row in val_rows if row.response]
    if not rows or not len(chat):
        return found
    temperature = found.get("temperature", chat.calibration.temperature)
    chat.calibration = Calibration(temperature=temperature)
    weights = tune_weights(choices(chat, rows))
    chat.calibration = Calibration(temperature=temperature, weights=weights)
    found["weights"] = dataclasses.asdict(weights)
    rows = rows[:: -(-len(rows) // _MEASURED)]  # Evenly: files are often sorted.
    judged = [row for row in rows if chat.store.find_response(row.response)]
    if len(judged) < _STORED * len(rows):
        # In dialogues nearly every row has a reply of its own: that another one is
        # given does not make it wrong, and every reply would be refused.
        return found | ASSUMED_REPLIES
    relevance, is_right = _ask(chat, judged)
    return found | calibrate(relevance=relevance, is_right=is_right)


def measure_refused(chat: Chat, val_rows: Sequence[Example]) -> Refused | None:
    """How much a calibrated chat would refuse; None without an answered row.

    Args:
      chat: with the calibration that it is to have.
      val_rows: rows that were not trained on.
    """
    rows = [row for row in val_rows if row.response]
    if not rows or not len(chat):
        return None
    rows = rows[:: -(-len(rows) // _TRIED)]
    refused = [reply.abstained for reply in ask(chat, rows)]
    return Refused(float(np.mean(refused)), len(rows))


def tune_run(weights: str | os.PathLike, rows: Sequence[Example]) -> dict[str, Any]:
    """Fits ranking weights and confidence of a run to rows; keeps them in the run.

    Args:
      weights: run directory.
      rows: answered rows that the run never saw, such as those of its users.

    Returns:
      What changed in config.json.

    Raises:
      UserError: the run cannot be read, stores nothing, or no row has a reply.
    """
    run = RunDirectory.open(weights)
    if not any(row.response for row in rows):
        raise UserError("--tune_ranking needs rows with a reply: there are none.")
    with Chat.load(weights) as chat:
        if not len(chat):
            raise UserError(
                f"--tune_ranking: {weights} stores no answers to rank: add some with "
                "`prefchat index`."
            )
        found = measure_chat(chat, rows)
    run.write_json("config.json", run.config() | found)
    return found


def _ask(chat: Chat, rows: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """How relevant the best reply to each row is, and whether it is right.

    Rows for which the chat has no candidate at all are left out.
    """
    asked = zip(ask(chat, rows), rows, strict=True)
    best = [(r.candidates[0], row.response) for r, row in asked if r.candidates]
    relevance = [sum(found.terms[name] for name in RELEVANCE) for found, _ in best]
    right = [found.response == response for found, response in best]
    return np.array(relevance), np.array(right, bool)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
