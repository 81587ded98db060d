"""Negatives: which wrong buckets a gold bucket is compared with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, xlog1py, xlogy
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float


class Negatives(NamedTuple):
    """Distinct wrong buckets.

    Attributes:
      buckets: `[..., K]` integer buckets: no gold, none twice, hard ones first.
      log_inclusion: `[..., K]` log of the probability that each was drawn. Added
        to margins it makes the sum in a `softmax` group an unbiased estimate of
        the sum over all wrong buckets, if not all places are hard.
    """

    buckets: jax.Array
    log_inclusion: jax.Array


def mine_negatives(
    key: jax.Array,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    num_negatives: int,
    hard_ratio: ArrayLike,
) -> Negatives:
    """Draws distinct wrong buckets, some hard and the others uniform.

    Each of the `num_negatives` places is hard with probability `hard_ratio`.
    The hard places hold the wrong buckets with the largest logits, and the rest
    is drawn uniformly, without replacement, from the wrong buckets that remain.
    No gradient flows through the choice.

    Args:
      key: a random key.
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      num_negatives: K, negatives for each example, at most `C - 1`.
      hard_ratio: probability of a hard place, in [0, 1].

    Returns:
      The negatives, and how probable each was.

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
    _, drawn = jax.lax.top_k(jnp.where(is_gold, -1.0, priority), num_negatives)
    chances = _inclusion(num_negatives, num_buckets - 1, hard_ratio)
    # Where each stands among the hard ones; K if it is none of them.
    is_hard = drawn[..., :, None] == hard[..., None, :]
    rank = jnp.where(is_hard.any(-1), jnp.argmax(is_hard, axis=-1), num_negatives)
    log_inclusion = jnp.log(chances).astype(as_float(logits).dtype)
    return Negatives(drawn, log_inclusion[rank])


def plausible_negatives(
    logits: ArrayLike, labels: ArrayLike, negatives: ArrayLike, *, slack: ArrayLike
) -> jax.Array:
    """Guards against false negatives: which ones are not suspiciously far ahead.

    A negative whose logit exceeds the gold one's by more than `slack` may be the
    right answer to a wrong label. Use the result as the `where` of a group.

    Args:
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      negatives: `[..., K]` integer buckets.
      slack: the largest lead of a negative, in logits.

    Returns:
      `[..., K]` booleans.
    """
    logits = jax.lax.stop_gradient(jnp.asarray(logits))
    gold = jnp.take_along_axis(logits, jnp.expand_dims(labels, -1), axis=-1)
    return jnp.take_along_axis(logits, jnp.asarray(negatives), axis=-1) - gold <= slack


def _inclusion(places: int, candidates: int, hard_ratio: ArrayLike) -> jax.Array:
    """`[places + 1]` probabilities that the wrong bucket of each rank is drawn.

    With h of the places hard, a binomial number, the first h ranks are drawn for
    sure and each other one with probability `(places - h) / (candidates - h)`.
    """
    ratio = as_float(hard_ratio)
    hard = jnp.arange(places + 1, dtype=ratio.dtype)
    log_ways = gammaln(places + 1.0) - gammaln(hard + 1) - gammaln(places - hard + 1)
    log_chance = log_ways + xlogy(hard, ratio) + xlog1py(places - hard, -ratio)
    chance = jax.nn.softmax(log_chance)  # They sum to 1 but for rounding.
    share = (places - hard) / jnp.maximum(candidates - hard, 1)
    is_sure = hard[None, :] > hard[:, None]  # Of each rank, for each h.
    return jnp.where(is_sure, 1.0, share[None, :]) @ chance
