"""DPO and its relatives: log-ratios to a reference policy.

Each takes the log-probs of a chosen and a rejected response under the policy and
under a frozen reference, `[...]` each, and returns `[...]` losses. `logps` are
sums over the tokens of a response; `mean_logps` are divided by its length.
A loss is a link over `reward_margins`: for K rejected responses, give margins
`[..., K]` to a group instead (`losses.groups`). All take `where`, `[...]` true
where a pair counts: elsewhere the loss is 0, and nothing reaches a gradient.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses import links
from prefchat_jax.losses.noise import smoothed, unbiased
from prefchat_jax.numerics import as_float, masked_loss


def reward_margins(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
) -> jax.Array:
    """How far the implicit reward of the chosen response leads.

    `beta * ((chosen - ref_chosen) - (rejected - ref_rejected))`, the argument of
    DPO's sigmoid (https://arxiv.org/abs/2305.18290).

    Args:
      chosen_logps: `[...]` under the policy; `[..., 1]` for K rejected ones.
      rejected_logps: `[...]` under the policy.
      ref_chosen_logps: `[...]` under the reference policy.
      ref_rejected_logps: `[...]` under the reference policy.
      beta: strength of the KL penalty to the reference policy.

    Returns:
      `[...]` margins, in reward units.
    """
    chosen = as_float(chosen_logps) - as_float(ref_chosen_logps)
    rejected = as_float(rejected_logps) - as_float(ref_rejected_logps)
    return jnp.asarray(beta) * (chosen - rejected)


def dpo(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """DPO: `-log sigmoid(margin)`.

    Rafailov et al., "Direct Preference Optimization: Your Language Model is
    Secretly a Reward Model" (https://arxiv.org/abs/2305.18290), equation 7; the
    authors' beta is 0.1. References of 0 make it reference-free.

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    return masked_loss(links.logistic, where, reward_margins(*logps, beta=beta))


def cdpo(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Conservative DPO: `(1 - e) * dpo + e * swapped dpo`.

    Mitchell, "A note on DPO with noisy preferences & relationship to IPO" (2023,
    https://ericmitchell.ai/cdpo.pdf), equation 3. `label_smoothing` is the rate
    of wrong labels, in [0, 0.5).

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    link = _noisy(smoothed, label_smoothing)
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    return masked_loss(link, where, reward_margins(*logps, beta=beta))


def rdpo(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Robust DPO: `((1 - e) * dpo - e * swapped dpo) / (1 - 2e)`.

    Chowdhury et al., "Provably Robust DPO: Aligning Language Models with Noisy
    Feedback" (https://arxiv.org/abs/2403.00409); the authors' `label_smoothing`,
    the rate of wrong labels in [0, 0.5), is 0.1. Not bounded below.

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    link = _noisy(unbiased, label_smoothing)
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    return masked_loss(link, where, reward_margins(*logps, beta=beta))


def hinge(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The hinge loss of SLiC and RSO: `max(0, 1 - margin)`.

    Zhao et al., "SLiC-HF: Sequence Likelihood Calibration with Human Feedback"
    (https://arxiv.org/abs/2305.10425); Liu et al., "Statistical Rejection
    Sampling Improves Preference Optimization" (https://arxiv.org/abs/2309.06657).

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    link = partial(links.relu_margin, gamma=1.0)
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    return masked_loss(link, where, reward_margins(*logps, beta=beta))


def ipo(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    ref_chosen_mean_logps: ArrayLike,
    ref_rejected_mean_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """IPO: `(log-ratio margin - 1 / (2 beta))**2`, of length-averaged log-probs.

    Azar et al., "A General Theoretical Paradigm to Understand Learning from
    Human Preferences" (https://arxiv.org/abs/2310.12036), equation 17, where
    beta is called tau, 0.1. TRL reports that the authors confirmed the averages.

    `[...]` length-averaged log-probs and `where` in, `[...]` losses out.
    """
    logps = chosen_mean_logps, rejected_mean_logps
    logps += ref_chosen_mean_logps, ref_rejected_mean_logps
    link = partial(links.squared, target=0.5 / jnp.asarray(beta))
    return masked_loss(link, where, reward_margins(*logps, beta=1.0))


def normalized_dpo(
    chosen_mean_logps: ArrayLike,
    rejected_mean_logps: ArrayLike,
    ref_chosen_mean_logps: ArrayLike,
    ref_rejected_mean_logps: ArrayLike,
    *,
    beta: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Length-normalised DPO, of Tulu 3: `dpo` of length-averaged log-probs.

    Lambert et al., "Tulu 3: Pushing Frontiers in Open Language Model
    Post-Training" (https://arxiv.org/abs/2411.15124); the authors' beta is 5.

    `[...]` length-averaged log-probs and `where` in, `[...]` losses out.
    """
    logps = chosen_mean_logps, rejected_mean_logps
    logps += ref_chosen_mean_logps, ref_rejected_mean_logps
    return dpo(*logps, beta=beta, where=where)


def exo(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    label_smoothing: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """EXO for pairs: KL from the policy's preference to the smoothed label's.

    The link is `exo_pair` (Ji et al., https://arxiv.org/abs/2402.00856);
    `label_smoothing` must be above 0, TRL suggests 1e-3.

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    link = partial(links.exo_pair, label_smoothing=label_smoothing)
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    return masked_loss(link, where, reward_margins(*logps, beta=beta))


def discopop(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: ArrayLike,
    tau: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """DiscoPOP, a loss that a language model found.

    The link is `log_ratio_modulated` (Lu et al., https://arxiv.org/abs/2406.08414);
    the authors' tau is 0.05.

    `[...]` summed log-probs and `where` in, `[...]` losses out.
    """
    link = partial(links.log_ratio_modulated, tau=tau)
    logps = chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps
    return masked_loss(link, where, reward_margins(*logps, beta=beta))


def _noisy(noise: Callable[..., jax.Array], label_smoothing: ArrayLike) -> links.Link:
    """The logistic link under a noise model: turned margins are swapped labels."""
    return lambda margins: noise(
        links.logistic(margins),
        links.logistic(-margins),
        label_smoothing=label_smoothing,
    )
