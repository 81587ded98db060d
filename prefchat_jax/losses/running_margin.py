"""LMPO: SimPO with a running, length-aware margin, and so with a state.

losses, state = lmpo(..., state, beta=..., ...)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses.links import target_logistic
from prefchat_jax.numerics import as_float, hide, masked_loss, masked_mean

_SMALLEST_STD = 1e-8  # Below it the margins are equal but for rounding: z is 0.


class LmpoState(NamedTuple):
    """Running statistics of the raw margin.

    Attributes:
      mean: scalar.
      std: scalar.
      count: scalar, batches that gave a mean.
      std_count: scalar, batches of two pairs or more, which gave a deviation.
    """

    mean: jax.Array
    std: jax.Array
    count: jax.Array
    std_count: jax.Array


def init_lmpo() -> LmpoState:
    """The state before the first batch."""
    none = jnp.zeros((), jnp.int32)
    return LmpoState(jnp.zeros(()), jnp.zeros(()), none, none)


def lmpo(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    state: LmpoState,
    *,
    beta: ArrayLike,
    gamma: ArrayLike,
    margin_weight: ArrayLike,
    power: ArrayLike,
    decay: ArrayLike,
    bias_correction: bool = True,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, LmpoState]:
    """LMPO: `-log sigmoid(beta * (chosen - rejected) - margin_weight * z - gamma)`.

    z is the standardised `lmpo_margin`; no gradient flows through it. Li et al.,
    "Length-Controlled Margin-Based Preference Optimization without Reference
    Model" (https://arxiv.org/abs/2502.14643); the equation is that of the
    authors' code. It couples the batch: z takes its mean and deviation.

    Args:
      chosen_mean_logps: `[...]` length-averaged log-probs.
      rejected_mean_logps: `[...]` length-averaged log-probs.
      chosen_lengths: `[...]` tokens.
      rejected_lengths: `[...]` tokens.
      state: from `init_lmpo`, or of the batch before.
      beta: reward scale; authors: 2.5.
      gamma: target margin in reward units, their `log h`; authors: 1.
      margin_weight: their lambda, 0.2.
      power: their k, 5; an odd integer.
      decay: of the running statistics; authors: 0.9.
      bias_correction: the statistics start at 0, and without a correction z is
        ten times too large in the first batch; False does as the authors' code.
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses, and the new state.
    """
    chosen, rejected = as_float(chosen_mean_logps), as_float(rejected_mean_logps)
    offset, state = lmpo_offset(
        lmpo_margin(chosen, rejected, chosen_lengths, rejected_lengths, power=power),
        state,
        decay=decay,
        bias_correction=bias_correction,
        where=where,
    )

    def loss(chosen, rejected, offset):
        margins = jnp.asarray(beta) * (chosen - rejected) - margin_weight * offset
        return target_logistic(margins, gamma=gamma)

    return masked_loss(loss, where, chosen, rejected, offset), state


def lmpo_margin(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    *,
    power: ArrayLike,
) -> jax.Array:
    """LMPO's raw margin: `(1 - p) (1 - (p - q)**power) / 2`.

    p and q are the probabilities of the chosen and the rejected response, scaled
    to their mean length. No gradient flows through it.

    Args:
      chosen_mean_logps: `[...]` length-averaged log-probs.
      rejected_mean_logps: `[...]` length-averaged log-probs.
      chosen_lengths: `[...]` tokens.
      rejected_lengths: `[...]` tokens.
      power: the authors' k, 5; an odd integer.

    Returns:
      `[...]` raw margins in [0, 1].
    """
    length, other = as_float(chosen_lengths), as_float(rejected_lengths)
    mean_length = (length + other) / 2
    p = jnp.exp(as_float(chosen_mean_logps) * mean_length / length)
    q = jnp.exp(as_float(rejected_mean_logps) * mean_length / other)
    margin = (1.0 - p) * (1.0 - jnp.power(p - q, jnp.asarray(power))) / 2
    return jax.lax.stop_gradient(margin)


def lmpo_offset(
    raw_margins: ArrayLike,
    state: LmpoState,
    *,
    decay: ArrayLike,
    bias_correction: bool = True,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, LmpoState]:
    """Standardises raw margins by running statistics, updated before use.

    Args:
      raw_margins: `[...]` from `lmpo_margin`.
      state: from `init_lmpo`, or of the batch before.
      decay: of the running statistics.
      bias_correction: whether the start at 0 is corrected for.
      where: `[...]` true where a margin counts.

    Returns:
      `[...]` z-scores, 0 where `where` is false, and the new state.
    """
    where = None if where is None else jnp.asarray(where, bool)
    raw = hide(as_float(raw_margins), where)
    mean = masked_mean(raw, where)
    count = jnp.sum(jnp.ones_like(raw), where=where)
    squares = jnp.sum(jnp.square(raw - mean), where=where)
    std = jnp.sqrt(squares / jnp.maximum(count - 1, 1))  # Unbiased, as theirs.
    some, several = count > 0, count > 1
    state = LmpoState(
        _run(state.mean, mean, decay, some),
        _run(state.std, std, decay, several),
        state.count + some.astype(jnp.int32),
        state.std_count + several.astype(jnp.int32),
    )
    mean, std = state.mean, state.std
    if bias_correction:
        mean = _corrected(mean, state.count, decay)
        std = _corrected(std, state.std_count, decay)
    mean, std = mean.astype(raw.dtype), std.astype(raw.dtype)
    usable = std > _SMALLEST_STD
    standardise = lambda raw: jnp.where(
        usable, (raw - mean) / jnp.where(usable, std, 1.0), 0.0
    )
    return masked_loss(standardise, where, raw), state


def _run(
    old: jax.Array, new: jax.Array, decay: ArrayLike, is_new: jax.Array
) -> jax.Array:
    """One step of a running mean; what is not new changes nothing."""
    share = jnp.where(is_new, 1.0 - jnp.asarray(decay), 0.0)
    return (old + share * (new - old)).astype(old.dtype)


def _corrected(value: jax.Array, count: jax.Array, decay: ArrayLike) -> jax.Array:
    """A running mean that started at 0, as if it had started at its first value."""
    return value / (1.0 - jnp.power(decay, jnp.maximum(count, 1)))
