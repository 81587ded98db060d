"""Calibration of chat on validation rows: how far to trust the classifier."""

from collections.abc import Sequence

import numpy as np

from prefchat_jax.chat.config import Calibration, RelevanceWeights
from prefchat_jax.chat.session import Chat
from prefchat_jax.evaluation import answer_threshold
from prefchat_jax.text.dialogue import Example

_BUCKET_WEIGHTS = (1.0, 0.5, 0.25, 0.1, 2.0, 4.0)  # Ties go to the first.
_MEASURED = 200  # Validation rows that are asked.
_PRIOR, _PRIOR_ROWS = 0.25, 20  # Confidence threshold before any row is asked.


def measure_chat(chat: Chat, val_rows: Sequence[Example]) -> dict[str, float]:
    """Measures on validation rows how chat should rank and when it should abstain.

    The bucket's weight is the one that ranks most right replies first (a
    classifier with few rows deserves less trust than one with many); from the
    threshold on, replies are more often right than wrong.

    Returns:
      What changes in config.json: nothing without validation rows that have
      replies.
    """
    rows = [row for row in val_rows if row.response]
    if not rows:
        return {}
    rows = rows[:: -(-len(rows) // _MEASURED)]  # Evenly: files are often sorted.
    measured = []
    for weight in _BUCKET_WEIGHTS:
        weights = RelevanceWeights(bucket=weight)
        chat.calibration = Calibration(weights=weights)
        is_right, confidence = _ask(chat, rows)
        measured.append((is_right.mean(), weight, is_right, confidence))
    _, weight, is_right, confidence = max(measured, key=lambda found: found[0])
    # Few rows measure a threshold badly: it is drawn to a cautious one.
    measured_sum = len(rows) * answer_threshold(confidence, is_right)
    threshold = (measured_sum + _PRIOR_ROWS * _PRIOR) / (len(rows) + _PRIOR_ROWS)
    return {"weights": {"bucket": weight}, "min_confidence": threshold}


def _ask(chat: Chat, rows: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Whether each reply is right, and how confident it is."""
    replies = chat.reply_batch(
        [row.question for row in rows],
        histories=[row.context[:-1] for row in rows],
        style="balanced",
        creativity=0.0,
    )
    right = [
        bool(reply.candidates) and reply.candidates[0].response == row.response
        for reply, row in zip(replies, rows, strict=True)
    ]
    return np.array(right), np.array([reply.confidence for reply in replies])
