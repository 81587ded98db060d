"""Preferences: how often a score prefers the reply that a person preferred.

Length alone is right in more or fewer than half of most collections of pairs, so
the two rules that know nothing else stand beside every accuracy, and the accuracy
on pairs among which length tells nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefchat_jax.chat.session import Chat
from prefchat_jax.datasets.lengths import matched
from prefchat_jax.datasets.preferences import PreferencePair
from prefchat_jax.evaluation.metrics import bootstrap_interval

Measured = dict[str, dict[str, float]]  # Figures of each score, by its name.

_DRAWS = 2000


def chat_margins(chat: Chat, pairs: Sequence[PreferencePair]) -> dict[str, np.ndarray]:
    """By how much a chat prefers the chosen replies, after the same conversation.

    Args:
      chat: of a run with a response scorer.
      pairs: `n` of them.

    Returns:
      `[n]` by score: of the response `scorer` alone, and of the whole `ranking` of
      replies that need not be stored (`Chat.score_responses`).

    Raises:
      ValueError: the run has no response scorer.
    """
    messages = [pair.context[-1].content for pair in pairs]
    histories = [pair.context[:-1] for pair in pairs]
    chosen, rejected = (
        chat.scorer_scores(messages, texts, histories=histories)
        for texts in ([p.chosen for p in pairs], [p.rejected for p in pairs])
    )
    # Each pair on its own: the words of other pairs would count as well known.
    relevance = [
        chat.score_responses([message], pair[1:3], histories=[history])[0]
        for message, history, pair in zip(messages, histories, pairs, strict=True)
    ]
    ranked = np.array(relevance, np.float64).reshape(-1, 2)
    return {
        "scorer": np.float64(chosen) - rejected,
        "ranking": ranked[:, 0] - ranked[:, 1],
    }


def by_origin(
    margins: dict[str, np.ndarray], pairs: Sequence[PreferencePair]
) -> dict[str, Any]:
    """What `measure_preferences` says of all pairs, and of those of each origin.

    The rules `longer` and `shorter` stand beside the scores as if they were some.

    Args:
      margins: `[n]` by name of the score.
      pairs: `n` of them.

    Returns:
      Figures of each score under `all`, and, where the pairs have several, by name
      under `source` and `annotator`.
    """
    longer = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    margins = margins | {"longer": longer, "shorter": -longer}
    found: dict[str, Any] = {"all": _measured(margins, pairs, range(len(pairs)))}
    for key in ("source", "annotator"):
        groups: dict[str, list[int]] = {}
        for i, pair in enumerate(pairs):
            groups.setdefault(getattr(pair, key), []).append(i)
        if len(groups) > 1:
            found[key] = {
                name: _measured(margins, pairs, groups[name]) for name in sorted(groups)
            }
    return found


def _measured(
    margins: dict[str, np.ndarray],
    pairs: Sequence[PreferencePair],
    places: Sequence[int],
) -> Measured:
    chosen = [pairs[i].chosen for i in places]
    rejected = [pairs[i].rejected for i in places]
    return {
        name: measure_preferences(values[list(places)], chosen, rejected)
        for name, values in margins.items()
    }


def measure_preferences(
    margins: np.ndarray, chosen: Sequence[str], rejected: Sequence[str]
) -> dict[str, float]:
    """Accuracy on preference pairs, beside what length alone would have.

    Args:
      margins: `[n]` score of the chosen minus that of the rejected reply, to the
        same context; 0 counts as half right.
      chosen: `n` preferred replies.
      rejected: the `n` others.

    Returns:
      `pairs`; `accuracy` with its 95 % interval `accuracy_low`, `accuracy_high`;
      accuracy of the rules `longer` and `shorter` (in characters);
      `matched_pairs` (see `datasets.lengths`) with `matched_accuracy` and its
      interval, likewise; and `length_correlation`, the rank correlation of the
      margins with the differences in length (Spearman). NaN is what no pair tells.

    Raises:
      ValueError: the three have different lengths, a margin is NaN, or a reply is
        empty.
    """
    margins = np.asarray(margins, np.float64)
    if not len(margins) == len(chosen) == len(rejected):
        raise ValueError("Margins and replies must be as many.")
    if np.isnan(margins).any():
        raise ValueError("Margins must not be NaN.")
    lengths = [np.array([*map(len, texts)], np.int64) for texts in (chosen, rejected)]
    longer, kept = lengths[0] - lengths[1], matched(*lengths)
    return {
        "pairs": len(margins),
        **_accuracy("accuracy", wins(margins)),
        "longer": _mean(wins(longer)),
        "shorter": _mean(wins(-longer)),
        "matched_pairs": int(kept.sum()),
        **_accuracy("matched_accuracy", wins(margins[kept])),
        "length_correlation": rank_correlation(margins, longer),
    }


def wins(margins: np.ndarray) -> np.ndarray:
    """1 where a margin `[n]` is above 0, 0 where it is below, and 0.5 between."""
    return (np.sign(margins) + 1.0) / 2


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation of `[n]` and `[n]`; equal values share a rank.

    NaN if either is constant.
    """
    ranks = [_ranks(values) for values in (left, right)]
    centred = [values - _mean(values) for values in ranks]
    scale = np.sqrt(np.sum(centred[0] ** 2) * np.sum(centred[1] ** 2))
    return float(centred[0] @ centred[1] / scale) if scale else float("nan")


def _accuracy(name: str, right: np.ndarray) -> dict[str, float]:
    low, high = bootstrap_interval(right, draws=_DRAWS)
    return {name: _mean(right), f"{name}_low": low, f"{name}_high": high}


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Mean rank `[n]` of each value among all."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts) + (last + 1.0))[places] / 2
