"""Preference margins of a categorical policy: a softmax over buckets."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float


def bucket_margins(
    logits: ArrayLike, labels: ArrayLike, negatives: ArrayLike, *, beta: ArrayLike
) -> jax.Array:
    """Margins of the gold bucket over negative buckets.

    The margin is `beta * (log pi(gold) - log pi(negative))`; the normaliser of
    the softmax cancels, so raw logits give it exactly.

    Args:
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      negatives: `[..., K]` integer buckets to lead over.
      beta: reward scale.

    Returns:
      `[..., K]` margins.
    """
    logits = as_float(logits)
    gold = jnp.take_along_axis(logits, jnp.expand_dims(labels, -1), axis=-1)
    negative = jnp.take_along_axis(logits, jnp.asarray(negatives), axis=-1)
    return jnp.asarray(beta) * (gold - negative)
