"""Noise: weights that trust some examples less than others."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float


def confidence_weights(
    logits: ArrayLike, labels: ArrayLike, *, floor: ArrayLike, ceiling: ArrayLike
) -> jax.Array:
    """The model's probability of the gold bucket, clipped: `clip(pi(gold))`.

    An example that the model finds unlikely, perhaps a wrong label, counts
    less. No gradient flows through the weights.

    Args:
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      floor: smallest weight.
      ceiling: largest weight.

    Returns:
      `[...]` weights in `[floor, ceiling]`.
    """
    probs = jax.nn.softmax(jax.lax.stop_gradient(as_float(logits)))
    gold = jnp.take_along_axis(probs, jnp.expand_dims(labels, -1), axis=-1)
    return jnp.clip(jnp.squeeze(gold, -1), floor, ceiling)
