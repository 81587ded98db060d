"""LMPO: SimPO with a running, length-aware margin, and so with a state.

losses, state = lmpo(..., state, beta=..., ...)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses.links import target_logistic
from prefchat_jax.numerics import as_float, masked_loss, masked_mean

_SMALLEST_STD = 1e-8  # One pair has no deviation: its z is 0.


class LmpoState(NamedTuple):
    """Running statistics of the raw margin.

    Attributes:
      mean: scalar.
      std: scalar.
      count: scalar, batches so far.
    """

    mean: jax.Array
    std: jax.Array
    count: jax.Array


def init_lmpo() -> LmpoState:
    """The state before the first batch."""
    return LmpoState(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))


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
      power: their k, 5.
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
      power: the authors' k, 5.

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
    raw = as_float(raw_margins)
    if where is not None:
        raw = jnp.where(where, raw, 0.0)
    mean = masked_mean(raw, where)
    count = jnp.sum(jnp.ones_like(raw), where=where)
    squares = jnp.sum(jnp.square(raw - mean), where=where)
    std = jnp.sqrt(squares / jnp.maximum(count - 1, 1))  # Unbiased, as theirs.
    old_share = jnp.where(count > 0, decay, 1.0)  # An empty batch changes nothing.
    state = LmpoState(
        (old_share * state.mean + (1.0 - old_share) * mean).astype(state.mean.dtype),
        (old_share * state.std + (1.0 - old_share) * std).astype(state.std.dtype),
        state.count + (count > 0),
    )
    share = 1.0 - jnp.power(decay, state.count) if bias_correction else 1.0
    share = jnp.where(state.count > 0, share, 1.0)
    mean, std = state.mean / share, jnp.maximum(state.std / share, _SMALLEST_STD)
    return masked_loss(lambda raw: (raw - mean) / std, where, raw), state
