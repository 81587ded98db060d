"""Negatives: which wrong buckets a gold bucket is compared with."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def mine_negatives(
    key: jax.Array,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    num_negatives: int,
    hard_ratio: ArrayLike,
) -> jax.Array:
    """Draws distinct wrong buckets, some hard and the others uniform.

    Each of the `num_negatives` places is hard with probability `hard_ratio`.
    The hard places hold the wrong buckets with the largest logits, and the rest
    is drawn uniformly, without replacement, from the wrong buckets that remain.
    No gradient flows through the choice.

    Args:
      key: a random key.
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      num_negatives: negatives for each example, at most `C - 1`.
      hard_ratio: probability of a hard place, in [0, 1].

    Returns:
      `[..., num_negatives]` integer buckets: no gold, none twice, the hard
      ones first.

    Raises:
      ValueError: `num_negatives` is not in `[1, C - 1]`.
    """
    logits = jax.lax.stop_gradient(jnp.asarray(logits))
    num_buckets = logits.shape[-1]
    if not 1 <= num_negatives < num_buckets:
        raise ValueError(
            f"num_negatives must be in [1, {num_buckets - 1}] for {num_buckets} "
            f"buckets, got {num_negatives}."
        )
    batch_shape = logits.shape[:-1]
    is_gold = jax.nn.one_hot(labels, num_buckets, dtype=bool)
    place_key, uniform_key = jax.random.split(key)
    is_hard_place = jax.random.bernoulli(
        place_key, hard_ratio, (*batch_shape, num_negatives)
    )
    num_hard = jnp.sum(is_hard_place, axis=-1, keepdims=True)
    _, hard = jax.lax.top_k(jnp.where(is_gold, -jnp.inf, logits), num_negatives)
    # Hard buckets get a priority above 1 in order of hardness, the others a
    # uniform one below 1: the largest priorities are the draw.
    place = jax.lax.broadcasted_iota(jnp.int32, hard.shape, hard.ndim - 1)
    bonus = jnp.where(place < num_hard, 1.0 + num_negatives - place, 0.0)
    hardness = jnp.put_along_axis(
        jnp.zeros(logits.shape), hard, bonus, axis=-1, inplace=False
    )
    priority = hardness + jax.random.uniform(uniform_key, logits.shape)
    return jax.lax.top_k(jnp.where(is_gold, -1.0, priority), num_negatives)[1]
