"""f-DPO: other divergences to the reference policy than DPO's reverse KL.

Wang et al., "Beyond Reverse KL: Generalizing Direct Preference Optimization with
Diverse Divergence Constraints" (https://arxiv.org/abs/2309.16240). A divergence
maps a log-ratio `logps - ref_logps`, `[...]`, to a score; the loss is

    logistic(beta * (score(chosen) - score(rejected))),

and with the log-ratio itself as the score it is DPO.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float


def forward_kl_scores(log_ratios: ArrayLike) -> jax.Array:
    """Forward KL: `-exp(-log_ratio)`."""
    return -jnp.exp(-as_float(log_ratios))


def js_scores(log_ratios: ArrayLike) -> jax.Array:
    """Jensen-Shannon: `log 2 + log sigmoid(log_ratio)`."""
    return jnp.log(2.0) + jax.nn.log_sigmoid(as_float(log_ratios))


def alpha_scores(log_ratios: ArrayLike, *, alpha: ArrayLike) -> jax.Array:
    """Alpha divergence: `(1 - exp(-alpha * log_ratio)) / alpha`, alpha in (0, 1).

    Towards alpha 0 it is reverse KL, at 1 forward KL. TRL's coefficient is
    1 - alpha.
    """
    alpha = jnp.asarray(alpha)
    return -jnp.expm1(-alpha * as_float(log_ratios)) / alpha
