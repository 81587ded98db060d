"""Ranks: how high the right candidate stands, ties shared."""

from typing import Any, NamedTuple

import numpy as np


class Ranks(NamedTuple):
    """Recall of the right candidate among the first 1, 5 and 10, and 1 / rank.

    Floats if they are means over rows, arrays `[n]` if they are by row.
    """

    recall_at_1: Any
    recall_at_5: Any
    recall_at_10: Any
    mrr: Any


def rank_rows(scores: np.ndarray, right: np.ndarray) -> Ranks:
    """Ranks the right candidate of each row.

    Candidates of equal score are in random order, and each figure is its
    expectation: with `a` candidates above the right one and `t` at its score,
    itself included, its rank is `a + 1 ... a + t`, each as probable. So a system
    that scores all alike has the recall of a guess, neither 0 nor 1.

    Args:
      scores: `[n, candidates]`; infinities order as usual.
      right: integer `[n]` place of the right candidate.

    Returns:
      Float arrays `[n]`.

    Raises:
      ValueError: a score is NaN, which has no order.
    """
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise ValueError("Scores must not be NaN.")
    own = np.take_along_axis(scores, np.asarray(right)[:, None], axis=1)
    above = np.sum(scores > own, axis=1)
    tied = np.sum(scores == own, axis=1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, scores.shape[1] + 1))])
    recall = lambda k: np.clip(k - above, 0, tied) / tied
    return Ranks(
        recall(1),
        recall(5),
        recall(10),
        (harmonic[above + tied] - harmonic[above]) / tied,
    )


def rank_metrics(scores: np.ndarray, right: np.ndarray) -> Ranks:
    """Means of `rank_rows` over the rows, as floats; NaN without rows."""
    rows = rank_rows(scores, right)
    if not len(right):
        return Ranks(*[float("nan")] * len(rows))
    return Ranks(*(float(np.mean(values)) for values in rows))
