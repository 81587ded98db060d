"""Lengths: the preference pairs in which the longer reply is right half the time.

Who judges replies tends to prefer long ones, and a model that has learned no
more than that looks as if it had learned preferences (Singhal et al., "A Long Way
to Go", 2023, https://arxiv.org/abs/2310.03716). Among matched pairs length tells
nothing.
"""

import numpy as np

CALIPER = 0.05  # Of the log ratio: 5 % of a length.


def log_ratio(chosen_lengths: np.ndarray, rejected_lengths: np.ndarray) -> np.ndarray:
    """`log(chosen / rejected)` `[n]`: above 0 where the longer reply is right.

    Args:
      chosen_lengths: `[n]` characters, or words, of the preferred replies.
      rejected_lengths: `[n]` of the others.

    Raises:
      ValueError: a length is not above 0.
    """
    chosen = np.asarray(chosen_lengths, np.float64)
    rejected = np.asarray(rejected_lengths, np.float64)
    if not (np.all(chosen > 0) and np.all(rejected > 0)):
        raise ValueError("Lengths must be above 0.")
    return np.log(chosen) - np.log(rejected)


def matched(
    chosen_lengths: np.ndarray,
    rejected_lengths: np.ndarray,
    *,
    caliper: float = CALIPER,
) -> np.ndarray:
    """The length-matched pairs: bool `[n]`.

    Each pair whose chosen reply is longer by a ratio stays together with one whose
    rejected reply is longer by about the same; what finds no such partner goes, and
    pairs of equal length stay. So whatever a rule says of pairs by how much longer
    which reply is, it is right in half of them, but for what `caliper` leaves.

    Going up both lists, sorted, and taking the first partner within reach makes as
    many matches as there can be.

    Args:
      chosen_lengths: `[n]` characters, or words, of the preferred replies.
      rejected_lengths: `[n]` of the others.
      caliper: by how much the log ratios of partners may differ.

    Raises:
      ValueError: a length is not above 0.
    """
    ratios = log_ratio(chosen_lengths, rejected_lengths)
    order = np.argsort(np.abs(ratios), kind="stable")
    longer, shorter = order[ratios[order] > 0], order[ratios[order] < 0]
    kept = ratios == 0
    i = j = 0
    while i < len(longer) and j < len(shorter):
        gap = ratios[longer[i]] + ratios[shorter[j]]
        if abs(gap) <= caliper:
            kept[longer[i]] = kept[shorter[j]] = True
        i += gap <= caliper
        j += gap >= -caliper
    return kept


def length_slope(ratios: np.ndarray) -> float:
    """How much length alone tells: the slope of its log-odds of being preferred.

    `P(chosen is right) = sigmoid(slope * log_ratio)`, at its most likely value with
    a standard normal prior, by Newton's method. It is what the bias product of Clark
    et al., "Don't Take the Easy Way Out" (https://arxiv.org/abs/1909.03683), needs
    to know of length.

    Args:
      ratios: `[n]` of `log_ratio`.
    """
    slope = 0.0
    for _ in range(100):
        wrong = 0.5 - 0.5 * np.tanh(0.5 * slope * ratios)
        gradient = slope - ratios @ wrong
        step = gradient / (1 + (wrong * (1 - wrong)) @ ratios**2)
        slope -= float(np.clip(step, -1, 1))
        if abs(step) < 1e-10:
            break
    return slope
