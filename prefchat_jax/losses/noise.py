"""Noise: what to do about preferences that may be labelled wrongly.

A noise model takes two losses of every example: the loss as it is labelled, and
the swapped one, as if the label were the other way round. On margins that is
`group(margins, link)` and `group(-margins, link)`, so each of these goes with
any base loss.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses.buckets import bucket_logps
from prefchat_jax.numerics import as_float, masked_loss


def confidence_weights(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    floor: ArrayLike,
    ceiling: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The model's probability of the gold bucket, clipped: `clip(pi(gold))`.

    An example that the model finds unlikely, perhaps a wrong label, counts
    less. No gradient flows through the weights.

    Args:
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      floor: smallest weight.
      ceiling: largest weight.
      where: `[...]` true where an example counts.

    Returns:
      `[...]` weights in `[floor, ceiling]`; 0 where `where` is false.
    """
    logps = bucket_logps(
        jax.lax.stop_gradient(logits), jnp.expand_dims(labels, -1), where=where
    )
    clip = lambda logps: jnp.clip(jnp.exp(logps), floor, ceiling)
    return masked_loss(clip, where, jnp.squeeze(logps, -1))


def wpo_weights(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    chosen_mean_collisions: ArrayLike,
    rejected_mean_collisions: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """WPO's weight of a pair: how likely the policy is to have written it.

    `min(1, exp(chosen + rejected))`, where each side is the mean over tokens of
    `log pi(token) - log sum_v pi(v)**2`. No gradient flows through the weights.
    Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization"
    (https://arxiv.org/abs/2406.11827); the authors' code clamps at 1.

    Args:
      chosen_mean_logps: `[...]` length-averaged log-probs.
      rejected_mean_logps: `[...]` length-averaged log-probs.
      chosen_mean_collisions: `[...]` length-averaged `log sum_v pi(v)**2`.
      rejected_mean_collisions: `[...]` the same of the rejected response.
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` weights in [0, 1]; 0 where `where` is false.
    """
    chosen = as_float(chosen_mean_logps) - as_float(chosen_mean_collisions)
    rejected = as_float(rejected_mean_logps) - as_float(rejected_mean_collisions)
    weigh = lambda excess: jnp.exp(jnp.minimum(excess, 0.0))
    return jax.lax.stop_gradient(masked_loss(weigh, where, chosen + rejected))


def smoothed(
    losses: ArrayLike,
    swapped_losses: ArrayLike,
    *,
    label_smoothing: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Label smoothing: `(1 - e) * loss + e * swapped`, the noise model of cDPO.

    Mitchell, "A note on DPO with noisy preferences & relationship to IPO" (2023,
    https://ericmitchell.ai/cdpo.pdf), equation 3.

    Args:
      losses: `[...]` losses as labelled.
      swapped_losses: `[...]` losses of the swapped label.
      label_smoothing: `[...]` rate of wrong labels, in [0, 0.5).
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses.
    """
    rate = jnp.asarray(label_smoothing)
    mix = lambda own, swapped: (1.0 - rate) * own + rate * swapped
    return masked_loss(mix, where, as_float(losses), as_float(swapped_losses))


def unbiased(
    losses: ArrayLike,
    swapped_losses: ArrayLike,
    *,
    label_smoothing: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The noise model of robust DPO: unbiased if that share of labels is flipped.

    `((1 - e) * loss - e * swapped) / (1 - 2e)`. Not bounded below. Chowdhury et
    al., "Provably Robust DPO: Aligning Language Models with Noisy Feedback"
    (https://arxiv.org/abs/2403.00409).

    Args:
      losses: `[...]` losses as labelled.
      swapped_losses: `[...]` losses of the swapped label.
      label_smoothing: `[...]` rate of wrong labels, in [0, 0.5); authors: 0.1.
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses.
    """
    rate = jnp.asarray(label_smoothing)
    undo = lambda own, swapped: ((1.0 - rate) * own - rate * swapped) / (1 - 2 * rate)
    return masked_loss(undo, where, as_float(losses), as_float(swapped_losses))
