"""f-DPO: other divergences to the reference policy than DPO's reverse KL.

Wang et al., "Beyond Reverse KL: Generalizing Direct Preference Optimization with
Diverse Divergence Constraints" (https://arxiv.org/abs/2309.16240). A divergence
maps a log-ratio `logps - ref_logps` to a score, whose difference is the margin.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses.links import logistic
from prefchat_jax.numerics import as_float, bounded_expm1, masked_loss


def f_dpo(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    scores: Callable[[jax.Array], jax.Array],
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """f-DPO: `-log sigmoid(beta * (score(chosen) - score(rejected)))`.

    See https://arxiv.org/abs/2309.16240. With the log-ratio as its own score it
    is DPO.

    Args:
      chosen_logps: `[...]` summed log-probs under the policy.
      rejected_logps: `[...]` the same of the rejected response.
      ref_chosen_logps: `[...]` under the reference policy.
      ref_rejected_logps: `[...]` under the reference policy.
      scores: of log-ratios: `forward_kl_scores`, `js_scores`, `alpha_scores` with
        its alpha, or your own.
      beta: reward scale.
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses.
    """

    def loss(chosen, rejected):
        return logistic(jnp.asarray(beta) * (scores(chosen) - scores(rejected)))

    chosen = as_float(chosen_logps) - as_float(ref_chosen_logps)
    rejected = as_float(rejected_logps) - as_float(ref_rejected_logps)
    return masked_loss(loss, where, chosen, rejected)


def forward_kl_scores(log_ratios: ArrayLike) -> jax.Array:
    """Forward KL: `1 - exp(-log_ratio)`; `[...]` to `[...]`.

    Goes on as a straight line where `exp` would overflow.
    """
    return -bounded_expm1(-as_float(log_ratios))


def js_scores(log_ratios: ArrayLike) -> jax.Array:
    """Jensen-Shannon: `log 2 + log sigmoid(log_ratio)`; `[...]` to `[...]`."""
    return jnp.log(2.0) + jax.nn.log_sigmoid(as_float(log_ratios))


def alpha_scores(log_ratios: ArrayLike, *, alpha: ArrayLike) -> jax.Array:
    """Alpha divergence: `(1 - exp(-alpha * log_ratio)) / alpha`; `[...]` to `[...]`.

    Alpha is above 0: towards 0 it is reverse KL, at 1 forward KL. TRL's
    coefficient is 1 - alpha. Goes on as a straight line where `exp` would overflow.
    """
    alpha = jnp.asarray(alpha)
    return -bounded_expm1(-alpha * as_float(log_ratios)) / alpha
