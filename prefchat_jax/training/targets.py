"""What a batch should be classified as, and what is remembered between batches."""

from typing import NamedTuple

import jax

from prefchat_jax import losses


class Targets(NamedTuple):
    """What the rows of a batch should be classified as.

    Attributes:
      labels: `[batch]` gold buckets.
      ref_logits: `[batch, C]` logits of the reference policy; None is uniform.
      sources: `[batch]` who labelled each row; None is all the same.
      where: `[batch]` true where a row counts; None is all.
      rejected: `[batch, K]` what was rejected in favour of the label; None mines
        negatives.
    """

    labels: jax.Array
    ref_logits: jax.Array | None = None
    sources: jax.Array | None = None
    where: jax.Array | None = None
    rejected: jax.Array | None = None


class PreferenceState(NamedTuple):
    """What preference losses remember from batch to batch.

    Attributes:
      lmpo: running statistics of LMPO's margins.
      reliability: `[sources]` how far RE-PO trusts each source.
    """

    lmpo: losses.LmpoState
    reliability: jax.Array
