"""Metrics: pure functions of arrays, in NumPy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_DRAWN_AT_ONCE = 4_000_000  # Row numbers that a bootstrap holds in memory.


class Outcome(NamedTuple):
    """How a system answered questions, each a share in [0, 1].

    Attributes:
      right: in-scope questions that got their own answer.
      macro_f1: of the answers over in-scope questions.
      wrong: in-scope questions that got another answer.
      refused: out-of-scope questions that were refused; NaN without any.
    """

    right: float
    macro_f1: float
    wrong: float
    refused: float


def outcome(
    answers: Sequence[str], right_answers: Sequence[str], refused_outside: np.ndarray
) -> Outcome:
    """Scores answers; an empty one is a refusal.

    Args:
      answers: answers to `n` in-scope questions.
      right_answers: what they should have been.
      refused_outside: bool `[m]` whether each out-of-scope question was refused.
    """
    given, wanted = np.array(answers), np.array(right_answers)
    return Outcome(
        right=float(np.mean(given == wanted)),
        macro_f1=macro_f1(given, wanted),
        wrong=float(np.mean((given != wanted) & (given != ""))),
        refused=float(np.mean(refused_outside)),
    )


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 over the classes that occur in `labels`.

    Args:
      predicted: `[n]` predicted classes; one that is no label predicts none.
      labels: `[n]` right classes.
    """
    scores = []
    for label in np.unique(labels):
        hits = np.sum((predicted == label) & (labels == label))
        total = np.sum(predicted == label) + np.sum(labels == label)
        scores.append(2 * hits / total)
    return float(np.mean(scores)) if scores else float("nan")


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities `[..., C]` of logits that are divided by `temperature`."""
    scaled = np.asarray(logits, np.float64) / temperature
    odds = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def auroc(scores_in: np.ndarray, scores_out: np.ndarray) -> float:
    """Area under the ROC curve of telling two groups apart by a score.

    The probability that a score of the first group is above one of the second,
    a tie counting as one half (the Mann-Whitney statistic): 1 is perfect, 0.5
    is chance.

    Args:
      scores_in: `[n]` scores of the rows that should have the higher ones.
      scores_out: `[m]` scores of the others.

    Returns:
      The area; NaN if a group is empty.
    """
    if not len(scores_in) or not len(scores_out):
        return float("nan")
    others = np.sort(scores_out)
    below = np.searchsorted(others, scores_in, "left")
    not_above = np.searchsorted(others, scores_in, "right")
    return float(np.mean(below + not_above) / (2 * len(others)))


class Bins(NamedTuple):
    """Rows by confidence: what each bin promised, and what it kept.

    Attributes:
      edges: `[bins + 1]` borders of equal width, from 0 to 1.
      counts: integer `[bins]` rows.
      confidence: `[bins]` mean confidence; NaN where a bin is empty.
      accuracy: `[bins]` share that is right; NaN where a bin is empty.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: `sum(counts |accuracy - confidence|) / n`."""
        held = self.counts > 0
        if not held.any():
            return float("nan")
        gaps = np.abs(self.accuracy - self.confidence)[held]
        return float(np.average(gaps, weights=self.counts[held]))


def reliability_bins(
    confidence: np.ndarray, is_right: np.ndarray, bins: int = 15
) -> Bins:
    """Sorts rows into bins `(low, high]` of their confidence; 0 is in the first.

    Args:
      confidence: `[n]` in [0, 1].
      is_right: bool `[n]`.
      bins: how many, of equal width.

    Raises:
      ValueError: a confidence is no probability.
    """
    confidence = np.asarray(confidence, np.float64)
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError("Confidence must be in [0, 1].")
    edges = np.linspace(0, 1, bins + 1)
    places = np.searchsorted(edges[1:-1], confidence)
    counts = np.bincount(places, minlength=bins)
    divisor = np.where(counts, counts, np.nan)
    total = lambda values: np.bincount(places, values, minlength=bins)
    return Bins(
        edges,
        counts,
        total(confidence) / divisor,
        total(np.asarray(is_right, np.float64)) / divisor,
    )


def expected_calibration_error(
    confidence: np.ndarray, is_right: np.ndarray, bins: int = 15
) -> float:
    """Mean gap of confidence and accuracy over bins of equal width, by rows.

    ECE of Guo et al., https://arxiv.org/abs/1706.04599; NaN without rows.
    Arguments and errors are those of `reliability_bins`.
    """
    return reliability_bins(confidence, is_right, bins).error


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, draws: int = 10_000
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `[n]` rows that are drawn anew.

    Rows count as independent: replies of one dialogue make it a little narrow.

    Args:
      values: `[n]` scores by row; NaN, NaN without rows.
      seed: of the resampling.
      draws: number of resamples.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWN_AT_ONCE // len(values))
    means = [
        values[
            rng.integers(len(values), size=(min(at_once, draws - i), len(values)))
        ].mean(axis=1)
        for i in range(0, draws, at_once)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, *, seed: int = 0, draws: int = 10_000
) -> tuple[float, float]:
    """95 % interval of `mean(ours - theirs)` over resampled rows.

    Args:
      ours: `[n]` scores by row, such as 0/1 correctness (seeds averaged).
      theirs: `[n]` scores of the other system on the same rows.
      seed: of the resampling.
      draws: number of resamples.
    """
    differences = np.asarray(ours, np.float64) - theirs
    return bootstrap_interval(differences, seed=seed, draws=draws)


def crossed_bootstrap(
    values: np.ndarray, *, seed: int = 0, draws: int = 2_000
) -> tuple[float, float]:
    """95 % percentile interval of the mean over seeds and rows, both drawn anew.

    It tells what another run on other rows could have found: with the rows alone
    the luck of a seed would be left out, with the seeds alone that of the rows.

    Args:
      values: `[seeds, n]` scores of each row under each seed, or paired differences
        of such scores.
      seed: of the resampling.
      draws: number of resamples.

    Returns:
      The interval; NaN, NaN without values.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    shares = [
        rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
        for count in values.shape
    ]
    means = np.einsum("ds,sn,dn->d", shares[0], values, shares[1], optimize=True)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean of `[n]` runs, and its 95 % interval by Student's t.

    It is of what another seed would come to, on the same rows. Of one run there is
    no interval: its ends are NaN, and of none all three are.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    from scipy.special import stdtrit  # Later: it takes as long as NumPy to import.

    error = float(values.std(ddof=1)) / len(values) ** 0.5
    half = float(stdtrit(len(values) - 1, 0.975)) * error
    return mean, mean - half, mean + half
