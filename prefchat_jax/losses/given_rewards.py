"""RPO: reward-aware preference optimization, a distance to given rewards.

The policy's implicit rewards should differ as the given rewards do, not merely
in the same order. Sun et al., "Reward-aware Preference Optimization: A Unified
Mathematical Framework for Model Alignment" (https://arxiv.org/abs/2502.00203);
Adler et al., "Nemotron-4 340B Technical Report" (https://arxiv.org/abs/2406.11704).
A distance compares scores `[..., K]` with targets `[..., K]`; a pair is K = 2.
The constants for K > 2 are ours: they make K = 2 the loss for pairs.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float, hide, masked_loss


class Distance(Protocol):
    """Compares the scores of K responses with their targets, up to a constant."""

    def __call__(
        self,
        scores: jax.Array,
        targets: jax.Array,
        *,
        where: jax.Array | None = None,
    ) -> jax.Array:
        """Maps `[..., K]` scores and targets to `[...]` losses."""
        ...


def rpo(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    chosen_rewards: ArrayLike,
    rejected_rewards: ArrayLike,
    *,
    distance: Distance,
    beta: ArrayLike,
    eta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """RPO for pairs: a distance from the implicit to the given reward margin.

    Args:
      chosen_logps: `[...]` summed log-probs under the policy.
      rejected_logps: `[...]` the same of the rejected response.
      ref_chosen_logps: `[...]` under the reference policy.
      ref_rejected_logps: `[...]` under the reference policy.
      chosen_rewards: `[...]` given rewards; 1 where there are only labels.
      rejected_rewards: `[...]` given rewards; 0 where there are only labels.
      distance: `rpo_sq`, `rpo_bwd_kl` or `rpo_fwd_kl`.
      beta: scale of the implicit rewards; authors: 0.2.
      eta: scale of the given rewards; authors: 1.
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses.
    """
    ratio = lambda logps, ref: as_float(logps) - as_float(ref)
    chosen = ratio(chosen_logps, ref_chosen_logps)
    rejected = ratio(rejected_logps, ref_rejected_logps)
    rewards = as_float(chosen_rewards) - as_float(rejected_rewards)
    return masked_loss(
        lambda margins, rewards: rpo_margin(
            beta * margins, distance=distance, target=eta * rewards
        ),
        where,
        chosen - rejected,
        rewards,
    )


def rpo_margin(
    margins: ArrayLike, *, distance: Distance, target: ArrayLike
) -> jax.Array:
    """The link of RPO: the distance from a margin to a target margin.

    Args:
      margins: `[...]` reward margins, scaled by beta.
      distance: `rpo_sq`, `rpo_bwd_kl` or `rpo_fwd_kl`.
      target: `[...]` given reward margins, scaled by eta.

    Returns:
      `[...]` losses.
    """
    margins = as_float(margins)
    target = jnp.asarray(target, margins.dtype)
    margins, target = jnp.broadcast_arrays(margins, target)
    pair = lambda margin: jnp.stack([margin, jnp.zeros_like(margin)], axis=-1)
    return distance(pair(margins), pair(target))


def rpo_responses(
    logps: ArrayLike,
    ref_logps: ArrayLike,
    rewards: ArrayLike,
    *,
    distance: Distance,
    beta: ArrayLike,
    eta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """RPO for K responses to one prompt.

    Args:
      logps: `[..., K]` summed log-probs under the policy.
      ref_logps: `[..., K]` under the reference policy.
      rewards: `[..., K]` given rewards.
      distance: `rpo_sq`, `rpo_bwd_kl` or `rpo_fwd_kl`.
      beta: scale of the implicit rewards; authors: 0.2.
      eta: scale of the given rewards; authors: 1.
      where: `[..., K]` true where a response counts.

    Returns:
      `[...]` losses; 0 where fewer than two responses count.
    """
    scores = jnp.asarray(beta) * (as_float(logps) - as_float(ref_logps))
    targets = jnp.asarray(eta) * as_float(rewards)
    if where is not None:
        where = jnp.broadcast_to(jnp.asarray(where, bool), scores.shape)
    return distance(hide(scores, where), hide(targets, where), where=where)


def rpo_sq(
    scores: jax.Array, targets: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Squared distance: mean square of the leave-one-out-centred differences.

    For a pair, `(margin - target)**2`; at target 1/2 it is `beta**2` times IPO on
    sums. For K responses its gradient is that of REINFORCE leave-one-out with a
    KL-shaped reward.
    """
    difference = scores - targets
    count = jnp.sum(jnp.ones_like(scores), axis=-1, where=where, keepdims=True)
    total = jnp.sum(difference, axis=-1, where=where, keepdims=True)
    others = (total - difference) / jnp.maximum(count - 1, 1)
    centred = jnp.where(count > 1, difference - others, 0.0)
    square = jnp.sum(jnp.square(centred), axis=-1, where=where)
    return square / jnp.maximum(jnp.squeeze(count, -1), 1)


def rpo_bwd_kl(
    scores: jax.Array, targets: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Backward KL, as its authors call it: `KL(softmax(targets) || softmax(scores))`.

    For a pair it is DPO as the target grows without bound, and cDPO minus the
    entropy of its label at target `logit(1 - label_smoothing)`.
    """
    return _kl(targets, scores, where)


def rpo_fwd_kl(
    scores: jax.Array, targets: jax.Array, *, where: jax.Array | None = None
) -> jax.Array:
    """Forward KL, as its authors call it: `KL(softmax(scores) || softmax(targets))`."""
    return _kl(scores, targets, where)


def _kl(left: jax.Array, right: jax.Array, where: jax.Array | None) -> jax.Array:
    """KL(softmax(left) || softmax(right)) over the last axis."""
    if where is not None:
        low = jnp.finfo(left.dtype).min / 2  # exp is 0, differences are finite.
        left, right = jnp.where(where, left, low), jnp.where(where, right, low)
    left, right = jax.nn.log_softmax(left), jax.nn.log_softmax(right)
    return jnp.sum(jnp.exp(left) * (left - right), axis=-1, where=where)
