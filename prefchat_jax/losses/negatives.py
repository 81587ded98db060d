"""Negatives: which wrong buckets a gold bucket is compared with.

Mining is most of what a preference loss costs, so nothing here sorts. The largest
logits are found by a few passes over `[C, ...]`, buckets first, where a maximum over
buckets is one of whole vectors; and a row draws from one random word.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, xlog1py, xlogy
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float, ordered_bits, random_words

_BLOCK = 8  # Buckets that stand for one while the largest of many are found.
_FEW = 16  # Up to so many largest are found by passes, more by a sort.


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


@partial(jax.jit, static_argnames=("num_negatives", "approximate"))
def mine_negatives(
    key: jax.Array,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    num_negatives: int,
    hard_ratio: ArrayLike,
    approximate: bool = False,
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
      approximate: take the largest logit of each block of 8 buckets for the largest,
        where `mines_in_blocks`: faster, and misses a hard bucket that shares its
        block with a harder one. `log_inclusion` is then approximate, too.

    Returns:
      The negatives, and how probable each was.

    Raises:
      ValueError: `num_negatives` is not in `[1, C - 1]`.
    """
    logits = jax.lax.stop_gradient(as_float(logits))
    num_buckets = logits.shape[-1]
    if not 1 <= num_negatives < num_buckets:
        raise ValueError(
            f"num_negatives must be in [1, {num_buckets - 1}] for {num_buckets} "
            f"buckets, got {num_negatives}."
        )
    labels = jnp.asarray(labels, jnp.int32)
    hard = _hardest(logits, labels, num_negatives, approximate)
    hard_odds = _binomial(num_negatives, hard_ratio)
    num_hard, draws = _draw(key, labels.shape, hard_odds, num_buckets - 1)
    drawn = _fill(labels, hard, num_hard, draws, num_buckets)
    # Where each stands among the hard ones; K if it is none of them.
    is_hard = drawn[:, None] == hard[None, :]
    rank = jnp.where(is_hard.any(1), jnp.argmax(is_hard, axis=1), num_negatives)
    log_inclusion = jnp.log(_inclusion(hard_odds, num_buckets - 1))
    return Negatives(
        jnp.moveaxis(drawn, 0, -1),
        jnp.moveaxis(log_inclusion.astype(logits.dtype)[rank], 0, -1),
    )


def mines_in_blocks(num_buckets: int, num_negatives: int) -> bool:
    """Whether buckets are so many that `approximate` makes a difference."""
    return num_negatives <= _FEW and num_buckets >= 2 * _BLOCK * num_negatives


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


# --- the hard ones


def _hardest(
    logits: jax.Array, labels: jax.Array, number: int, approximate: bool
) -> jax.Array:
    """`[number, ...]` wrong buckets with the largest logits, the largest first."""
    num_buckets = logits.shape[-1]
    keys = _keys(logits, jax.nn.one_hot(labels, num_buckets, dtype=bool))
    if number > _FEW:
        return jnp.moveaxis(jax.lax.top_k(keys, number)[1], -1, 0)
    if not mines_in_blocks(num_buckets, number):
        return _largest(jnp.moveaxis(keys, -1, 0), number)
    num_blocks = -(-num_buckets // _BLOCK)
    padding = [(0, 0)] * labels.ndim + [(0, _BLOCK * num_blocks - num_buckets)]
    keys = jnp.pad(keys, padding, constant_values=jnp.iinfo(keys.dtype).min)
    keys = keys.reshape(*labels.shape, _BLOCK, num_blocks)
    if approximate:  # The lowest bits of a key tell its row.
        rows = jax.lax.broadcasted_iota(keys.dtype, keys.shape, keys.ndim - 2)
        maxima = jnp.moveaxis((keys & -_BLOCK | rows).max(-2), -1, 0)
        blocks = _largest(maxima, number)
        rows = jnp.take_along_axis(maxima, blocks, axis=0) & _BLOCK - 1
        return rows.astype(jnp.int32) * num_blocks + blocks
    # All of the largest lie in as many blocks, those with the largest maxima.
    blocks = _largest(jnp.moveaxis(keys.max(-2), -1, 0), number)
    rows = jax.lax.broadcasted_iota(jnp.int32, (_BLOCK, *blocks.shape), 0)
    rivals = (rows * num_blocks + blocks[None]).reshape(-1, *labels.shape)
    logits = jnp.moveaxis(logits, -1, 0)
    values = jnp.take_along_axis(logits, rivals, axis=0, mode="clip")
    is_no_rival = (rivals == labels[None]) | (rivals >= num_buckets)
    found = _largest(_keys(values, is_no_rival), number)
    return jnp.take_along_axis(rivals, found, axis=0)


def _keys(logits: jax.Array, is_gold: jax.Array) -> jax.Array:
    """Integers in the order of the logits, the least one for gold: faster maxima."""
    bits = ordered_bits(logits)
    return jnp.where(is_gold, jnp.iinfo(bits.dtype).min, bits)


def _largest(keys: jax.Array, number: int) -> jax.Array:
    """`[number, ...]` places along axis 0 of the largest keys, the largest first."""
    keys = jax.lax.optimization_barrier(keys)  # Else each pass lays them out anew.
    places = jax.lax.broadcasted_iota(jnp.int32, keys.shape, 0)

    def step(keys, _):
        is_largest = keys == keys.max(0, keepdims=True)
        place = jnp.where(is_largest, places, len(keys)).min(0)
        taken = jnp.where(places == place[None], jnp.iinfo(keys.dtype).min, keys)
        return taken, place

    return jax.lax.scan(step, keys, length=number, unroll=True)[1]


# --- the uniform ones


def _draw(
    key: jax.Array, shape: tuple[int, ...], hard_odds: jax.Array, candidates: int
) -> tuple[jax.Array, jax.Array]:
    """How many places are hard, `[...]`, and what each place would draw, `[K, ...]`.

    Place j draws one of the `candidates - j` that are left when its turn comes.
    """
    places = len(hard_odds) - 1
    words = random_words(jax.random.bits(key, shape, jnp.uint32), places + 1)
    uniform = (words[0] >> 8).astype(jnp.float32) * 2.0**-24
    bounds = jnp.cumsum(hard_odds)[:-1]
    bounds = bounds.reshape(places, *len(shape) * (1,))
    num_hard = jnp.sum(uniform[None] >= bounds, axis=0, dtype=jnp.int32)
    left = candidates - jax.lax.broadcasted_iota(jnp.uint32, words[1:].shape, 0)
    return num_hard, jax.lax.mulhi(words[1:], left).astype(jnp.int32)


def _fill(
    labels: jax.Array,
    hard: jax.Array,
    num_hard: jax.Array,
    draws: jax.Array,
    num_buckets: int,
) -> jax.Array:
    """`[K, ...]` buckets: the first places are hard, the others draw what is left."""
    places = len(hard)
    slots = jax.lax.broadcasted_iota(jnp.int32, (places + 1, *labels.shape), 0)
    # What is taken, in order; beyond it, more than any bucket.
    taken = jnp.where(slots == 0, labels[None], num_buckets + slots)

    def step(taken, place):
        number, hard, draw = place
        # The draw counts free buckets: it passes each one that is taken before it.
        free = draw + jnp.sum(taken - slots <= draw[None], axis=0, dtype=jnp.int32)
        bucket = jnp.where(number < num_hard, hard, free)
        before = taken < bucket[None]
        slot = jnp.sum(before, axis=0, dtype=jnp.int32)
        shifted = jnp.concatenate([taken[:1], taken[:-1]])
        after = jnp.where(slots == slot[None], bucket[None], shifted)
        return jnp.where(before, taken, after), bucket

    steps = jnp.arange(places), hard, draws
    return jax.lax.scan(step, taken, steps, unroll=places <= _FEW)[1]


# --- how probable each was


def _binomial(places: int, hard_ratio: ArrayLike) -> jax.Array:
    """`[places + 1]` probabilities that so many places are hard."""
    ratio = as_float(hard_ratio)
    hard = jnp.arange(places + 1, dtype=ratio.dtype)
    log_ways = gammaln(places + 1.0) - gammaln(hard + 1) - gammaln(places - hard + 1)
    log_chance = log_ways + xlogy(hard, ratio) + xlog1py(places - hard, -ratio)
    return jax.nn.softmax(log_chance)  # They sum to 1 but for rounding.


def _inclusion(hard_odds: jax.Array, candidates: int) -> jax.Array:
    """`[places + 1]` probabilities that the wrong bucket of each rank is drawn.

    With h of the places hard, the first h ranks are drawn for sure and each other
    one with probability `(places - h) / (candidates - h)`.
    """
    places = len(hard_odds) - 1
    hard = jnp.arange(places + 1, dtype=hard_odds.dtype)
    share = (places - hard) / jnp.maximum(candidates - hard, 1)
    is_sure = hard[None, :] > hard[:, None]  # Of each rank, for each h.
    return jnp.where(is_sure, 1.0, share[None, :]) @ hard_odds
