"""Losses that move each response's own reward, not only the margin of a pair.

Rewards are `beta * (logps - ref_logps)`. Where a loss on a margin is content if
the chosen response falls less than the rejected one, these say which way each
should go. `[...]` log-probs in, `[...]` losses out; `where` is true where a pair
counts: elsewhere the loss is 0, and nothing reaches a gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses.links import logistic
from prefchat_jax.numerics import as_float, masked_loss


def nca(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """NCA for pairs: the chosen reward rises, and both are held down.

    `-log sigmoid(a) - (log sigmoid(-a) + log sigmoid(-b)) / 2` for rewards a and
    b. Chen et al., "Noise Contrastive Alignment of Language Models with Explicit
    Rewards" (https://arxiv.org/abs/2402.05369).

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    loss = lambda a, b: logistic(a) + 0.5 * logistic(-a) + 0.5 * logistic(-b)
    return _on_rewards(loss, *logps, beta=beta, where=where)


def bco(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    shift: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """BCO: a classifier of chosen against rejected, whose logit is the reward.

    `-log sigmoid(a - shift) - log sigmoid(shift - b)` for rewards a and b. Jung et
    al., "Binary Classifier Optimization for Large Language Model Alignment"
    (https://arxiv.org/abs/2404.04656): `shift` is the mean of all rewards, kept
    by the caller; 0 leaves it out.

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    loss = lambda a, b: logistic(a - shift) + logistic(shift - b)
    return _on_rewards(loss, *logps, beta=beta, where=where)


def sppo(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """SPPO with hard labels: log-ratios go to `+1 / (2 beta)` and `-1 / (2 beta)`.

    The sum of both squared distances. Wu et al., "Self-Play Preference
    Optimization for Language Model Alignment" (https://arxiv.org/abs/2405.00675).

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    half = 0.5 / jnp.asarray(beta)
    loss = lambda a, b: jnp.square(a - half) + jnp.square(b + half)
    return _on_rewards(loss, *logps, beta=1.0, where=where)


def apo_zero(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """APO-zero: the chosen reward up, the rejected down: `1 - sigmoid(a) + sigmoid(b)`.

    For a model that is worse than the chosen responses. D'Oosterlinck et al.,
    "Anchored Preference Optimization and Contrastive Revisions"
    (https://arxiv.org/abs/2408.06266).

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    loss = lambda a, b: jax.nn.sigmoid(-a) + jax.nn.sigmoid(b)
    return _on_rewards(loss, *logps, beta=beta, where=where)


def apo_down(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """APO-down: both rewards down, the rejected one more.

    `sigmoid(a) + 1 - sigmoid(a - b)`, for a model that is better than the chosen
    responses (https://arxiv.org/abs/2408.06266).

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    loss = lambda a, b: jax.nn.sigmoid(a) + jax.nn.sigmoid(b - a)
    return _on_rewards(loss, *logps, beta=beta, where=where)


def kto(
    logps: ArrayLike,
    ref_logps: ArrayLike,
    is_desirable: ArrayLike,
    kl: ArrayLike,
    *,
    beta: ArrayLike,
    desirable_weight: ArrayLike,
    undesirable_weight: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """KTO: responses that are good or bad by themselves, without pairs.

    `w * sigmoid(beta * (kl - log-ratio))` for a desirable response, with the sign
    turned for another. Ethayarajh et al., "KTO: Model Alignment as Prospect
    Theoretic Optimization" (https://arxiv.org/abs/2402.01306).

    Args:
      logps: `[...]` summed log-probs under the policy.
      ref_logps: `[...]` under the reference policy.
      is_desirable: `[...]` booleans.
      kl: `[...]` or scalar estimate of KL(policy || reference), at least 0: the
        batch mean of the log-ratios of mismatched responses, by the caller. No
        gradient flows through it.
      beta: reward scale; authors: 0.1.
      desirable_weight: weight of desirable responses.
      undesirable_weight: weight of the others.
      where: `[...]` true where a response counts.

    Returns:
      `[...]` losses.
    """
    desirable = jnp.asarray(is_desirable)
    kl = jax.lax.stop_gradient(as_float(kl))

    def loss(ratio):
        lead = jnp.asarray(beta) * (ratio - kl)
        gain = jax.nn.sigmoid(jnp.where(desirable, -lead, lead))
        return jnp.where(desirable, desirable_weight, undesirable_weight) * gain

    return masked_loss(loss, where, as_float(logps) - as_float(ref_logps))


def _on_rewards(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None,
) -> jax.Array:
    chosen = jnp.asarray(beta) * (as_float(chosen_logps) - as_float(ref_chosen_logps))
    rejected = as_float(rejected_logps) - as_float(ref_rejected_logps)
    return masked_loss(loss, where, chosen, jnp.asarray(beta) * rejected)
