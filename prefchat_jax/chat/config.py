"""How a chat searches and when it abstains. No JAX."""

import dataclasses
from typing import Literal

from prefchat_jax.errors import UserError

PoolMode = Literal["all", "topk"]
StyleMode = Literal["auto", "balanced", "creative", "concise", "analyst"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """What stays the same over a chat.

    Attributes:
      pool_mode: `all` pools the candidates of every bucket, `topk` only those
        of the `top_labels` buckets.
      top_labels: buckets whose probability counts in the score.
      db_top_k: candidates that the text search adds.
      max_candidates_per_bucket: stored entries that a bucket pools, the most
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
