"""How a chat searches, what it trusts, and when it abstains."""

import dataclasses
import math
from typing import Any, Literal

from prefchat_jax.errors import UserError

PoolMode = Literal["all", "topk"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """What stays the same over a chat.

    Attributes:
      pool_mode: `all` also considers what words and vectors find in other buckets
        than the `top_labels` ones; `topk` drops that, but for what has no bucket.
      top_labels: buckets that pool their responses, and whose probability counts
        in the score.
      db_top_k: entries that words find by their question, with half as many
        responses by words and again by vectors, in what a chat holds in memory.
      max_candidates_per_bucket: responses that each such bucket pools, the most
        frequent first; None takes what the run was trained with.
      min_confidence: below it the chat abstains; None takes the threshold that
        the run measured on its validation rows.
    """

    pool_mode: PoolMode = "all"
    top_labels: int = 4
    db_top_k: int = 160
    max_candidates_per_bucket: int | None = None
    min_confidence: float | None = None

    def __post_init__(self):
        if self.pool_mode not in ("all", "topk"):
            raise UserError(f"pool_mode {self.pool_mode!r}: use all or topk.")
        for name, low in (
            ("top_labels", 1),
            ("db_top_k", 0),
            ("max_candidates_per_bucket", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"{name} {value}: must be at least {low}.")
        threshold = self.min_confidence
        if threshold is not None and not 0 <= threshold <= 1:
            raise UserError(f"min_confidence {threshold:g}: must be in [0, 1].")


@dataclasses.dataclass(frozen=True)
class RelevanceWeights:
    """How much each term of relevance counts beside the others.

    A run fits them on its validation rows; `prefchat evaluate --tune_ranking` on
    rows of your own.
    """

    words: float = 0.4
    question: float = 0.2
    response: float = 0.4
    scorer: float = 0.5
    bucket: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a run measured on its validation rows.

    Attributes:
      weights: of the terms of relevance.
      temperature: the bucket logits are divided by it.
      slope: with `offset` maps relevance to the probability that a reply is right.
      offset: see `slope`.
      min_confidence: below it the chat abstains.
    """

    weights: RelevanceWeights = RelevanceWeights()
    temperature: float = 1.0
    slope: float = 8.0
    offset: float = -2.2
    min_confidence: float = 0.0

    @classmethod
    def read(cls, config: dict[str, Any]) -> "Calibration":
        """What config.json says; defaults where it is silent, as in older runs."""
        weights = RelevanceWeights(**config.get("weights", {}))
        plain = {k: config[k] for k in ("temperature", "min_confidence") if k in config}
        return cls(weights=weights, **plain, **config.get("confidence", {}))

    def confidence(self, relevance: float) -> float:
        """The probability that a reply of this relevance is right."""
        return 1 / (1 + math.exp(-(self.slope * relevance + self.offset)))
