"""AOT: alignment of the whole distribution of rewards, by optimal transport.

Melnyk et al., "Distributional Preference Alignment of LLMs via Optimal
Transport" (https://arxiv.org/abs/2406.05882). In one dimension transport is
sorting: these couple the batch, over the last axis, and a loss belongs to a rank
and not to a pair.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses.links import logistic
from prefchat_jax.losses.noise import smoothed
from prefchat_jax.numerics import as_float, masked_loss


def aot(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Paired AOT: the policy's sorted margins against the reference's.

    Args:
      chosen_logps: `[..., B]` summed log-probs under the policy.
      rejected_logps: `[..., B]` the same of the rejected response.
      ref_chosen_logps: `[..., B]` under the reference policy.
      ref_rejected_logps: `[..., B]` under the reference policy.
      beta: reward scale.
      label_smoothing: rate of wrong labels, in [0, 0.5).
      where: `[..., B]` true where a pair counts.

    Returns:
      `[..., B]` losses by rank; the last ones are 0 where pairs do not count.
    """
    policy = as_float(chosen_logps) - as_float(rejected_logps)
    reference = as_float(ref_chosen_logps) - as_float(ref_rejected_logps)
    return _ranked(policy, reference, beta, label_smoothing, where)


def aot_unpaired(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Unpaired AOT: sorted log-ratios of chosen against those of rejected responses.

    Chosen and rejected need not answer the same prompts. Arguments as of `aot`.
    """
    chosen = as_float(chosen_logps) - as_float(ref_chosen_logps)
    rejected = as_float(rejected_logps) - as_float(ref_rejected_logps)
    return _ranked(chosen, rejected, beta, label_smoothing, where)


def _ranked(
    upper: jax.Array,
    lower: jax.Array,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
    where: ArrayLike | None,
) -> jax.Array:
    def loss(upper, lower):
        margins = jnp.asarray(beta) * (upper - lower)
        losses, swapped = logistic(margins), logistic(-margins)
        return smoothed(losses, swapped, label_smoothing=label_smoothing)

    if where is None:
        return loss(jnp.sort(upper), jnp.sort(lower))
    # What does not count sorts behind the rest, and drops out by its rank.
    where = jnp.broadcast_to(where, upper.shape)
    upper, lower = (jnp.sort(jnp.where(where, x, jnp.inf)) for x in (upper, lower))
    return masked_loss(loss, -jnp.sort(-where.astype(jnp.int32)) > 0, upper, lower)
