"""Losses without a reference policy: ORPO, SimPO, RePO, CPO, AlphaPO.

Each takes the log-probs of a chosen and a rejected response under the policy,
`[...]` each, and returns `[...]` losses. `logps` are sums over the tokens of a
response; `mean_logps` are divided by its length, and that matters: ORPO, SimPO
and RePO on sums are other losses. All take `where`, `[...]` true where a pair
counts: elsewhere the loss is 0, and nothing reaches a gradient.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses import links
from prefchat_jax.numerics import as_float, bounded_expm1, hide, log1mexp, masked_loss


def log_odds(mean_logps: ArrayLike) -> jax.Array:
    """`log(p / (1 - p))` of `p = exp(mean_logps)`, exact up to p = 1.

    For buckets, `bucket_log_odds` is exact where the log-probs no longer are.

    Args:
      mean_logps: `[...]` length-averaged log-probs; above 0 they count as 0.

    Returns:
      `[...]` log-odds; infinite at p = 1.
    """
    logps = as_float(mean_logps)
    return logps - log1mexp(logps)


def odds_ratio(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """ORPO's preference term: `-log sigmoid(log_odds(chosen) - log_odds(rejected))`.

    The gradient is exact up to a chosen response of probability 1, where that of
    the log-odds is infinite. If both have probability 1, their odds count as
    equal: the loss is log 2 and has no gradient. If only the rejected one has, the
    loss is infinite: leave out empty responses, whose mean log-prob is 0.

    Args:
      chosen_mean_logps: `[...]` length-averaged log-probs.
      rejected_mean_logps: `[...]` length-averaged log-probs.
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses.
    """
    chosen, rejected = as_float(chosen_mean_logps), as_float(rejected_mean_logps)
    return masked_loss(_odds_ratio, where, chosen, rejected)


def orpo(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    *,
    beta: ArrayLike,
    chosen_nll: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """ORPO: negative log-likelihood of the chosen response + beta * `odds_ratio`.

    Hong et al., "ORPO: Monolithic Preference Optimization without Reference
    Model" (https://arxiv.org/abs/2403.07691), where beta is called lambda; the
    authors' values are 0.1 and 0.05.

    Args:
      chosen_mean_logps: `[...]` length-averaged log-probs.
      rejected_mean_logps: `[...]` length-averaged log-probs.
      beta: weight of the preference term.
      chosen_nll: `[...]` another likelihood term, such as one that includes the
        prompt; `-chosen_mean_logps` unless given.
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses.
    """
    nll = -as_float(chosen_mean_logps) if chosen_nll is None else as_float(chosen_nll)
    preference = odds_ratio(chosen_mean_logps, rejected_mean_logps, where=where)
    return hide(nll, where) + jnp.asarray(beta) * preference


def simpo(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    *,
    beta: ArrayLike,
    gamma: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """SimPO: `-log sigmoid(beta * (chosen - rejected) - gamma)`.

    Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free
    Reward" (https://arxiv.org/abs/2405.14734). `gamma` is in reward units; the
    authors' code asks for `gamma / beta`. Their beta is 2 and that ratio 0.25,
    for later models 10 and 0.3 to 0.5.

    `[...]` length-averaged log-probs and `where` in, `[...]` losses out.
    """
    link = partial(links.target_logistic, gamma=gamma)
    margins = _margins(chosen_mean_logps, rejected_mean_logps, beta=beta)
    return masked_loss(link, where, margins)


def repo_relu(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    *,
    gamma: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """RePO: `max(0, gamma - (chosen - rejected))`.

    Wu et al., "RePO: ReLU-based Preference Optimization"
    (https://arxiv.org/abs/2503.07426); the authors' gamma is 0.4 to 0.6. It is
    the limit of SimPO / beta for a large beta at a fixed gamma / beta. Pairs
    past gamma have no gradient: watch the share that has one.

    `[...]` length-averaged log-probs and `where` in, `[...]` losses out.
    """
    link = partial(links.relu_margin, gamma=gamma)
    margins = _margins(chosen_mean_logps, rejected_mean_logps, beta=1.0)
    return masked_loss(link, where, margins)


def cpo(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """CPO's preference term: `-log sigmoid(beta * (chosen - rejected))`.

    Xu et al., "Contrastive Preference Optimization: Pushing the Boundaries of
    LLM Performance in Machine Translation" (https://arxiv.org/abs/2401.08417);
    the authors' beta is 0.1, and they add the likelihood of the chosen response.

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    margins = _margins(chosen_logps, rejected_logps, beta=beta)
    return masked_loss(links.logistic, where, margins)


def alphapo(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    gamma: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """AlphaPO: SimPO with the reward `(1 - p**-alpha) / alpha` for `log p`.

    Gupta et al., "AlphaPO: Reward Shape Matters for LLM Alignment"
    (https://arxiv.org/abs/2501.03884); the authors' alpha is 0.25. It must not
    be 0, where the reward is SimPO's.

    `[...]` length-averaged log-probs and `where` in, `[...]` losses out.
    """
    alpha = jnp.asarray(alpha)

    def loss(chosen, rejected):
        reward = lambda logps: -bounded_expm1(-alpha * logps) / alpha
        margins = _margins(reward(chosen), reward(rejected), beta=beta)
        return links.target_logistic(margins, gamma=gamma)

    chosen, rejected = as_float(chosen_mean_logps), as_float(rejected_mean_logps)
    return masked_loss(loss, where, chosen, rejected)


def _margins(chosen: ArrayLike, rejected: ArrayLike, *, beta: ArrayLike) -> jax.Array:
    return jnp.asarray(beta) * (as_float(chosen) - as_float(rejected))


@jax.custom_jvp
def _odds_ratio(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    tie = (chosen >= 0) & (rejected >= 0)
    margins = log_odds(chosen) - log_odds(rejected)
    return links.logistic(jnp.where(tie, 0.0, margins))


@_odds_ratio.defjvp
def _odds_ratio_jvp(primals, tangents):
    """Multiplies the slope of the sigmoid and that of the log-odds in log space.

    Apart, one is 0 and the other infinite at p = 1. With `p` the chosen and `q`
    the rejected probability, the slopes are `-q / D` and `q (1 - p) / (D (1 - q))`
    where `D = p (1 - q) + q (1 - p)`.
    """
    (chosen, rejected), (d_chosen, d_rejected) = primals, tangents
    tie = (chosen >= 0) & (rejected >= 0)
    # Any other point will do where the slope is set to 0.
    p, q = (jnp.where(tie, -1.0, jnp.minimum(x, 0.0)) for x in (chosen, rejected))
    log_d = jnp.logaddexp(p + log1mexp(q), q + log1mexp(p))
    slope_chosen = -jnp.exp(q - log_d)
    slope_rejected = jnp.exp(q + log1mexp(p) - log1mexp(q) - log_d)
    slope = slope_chosen * d_chosen + slope_rejected * d_rejected
    return _odds_ratio(chosen, rejected), jnp.where(tie, 0.0, slope)
