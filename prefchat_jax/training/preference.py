"""The preference loss of a batch: what a named objective is made of.

Negatives, margins, a group over a link, and a noise model compose; `catalogue.py`
describes what the tables here name. Margins and noise models take the state of the
batches before, and return the new one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prefchat_jax import losses
from prefchat_jax.training.catalogue import hyper_parameters
from prefchat_jax.training.user_link import load_link


class Targets(NamedTuple):
    """What the rows of a batch should be classified as.

    Attributes:
      labels: `[batch]` gold buckets.
      ref_logits: `[batch, C]` logits of the reference policy; None is uniform.
      sources: `[batch]` who labelled each row; None is all the same.
      where: `[batch]` true where a row counts; None is all.
    """

    labels: jax.Array
    ref_logits: jax.Array | None = None
    sources: jax.Array | None = None
    where: jax.Array | None = None


class PreferenceState(NamedTuple):
    """What preference losses remember from batch to batch.

    Attributes:
      lmpo: running statistics of LMPO's margins.
      reliability: `[sources]` how far RE-PO trusts each source.
    """

    lmpo: losses.LmpoState
    reliability: jax.Array


class Judged(NamedTuple):
    """What a noise model makes of a batch.

    Attributes:
      values: `[batch]` preference losses.
      trust: `[batch]` weights of the cross-entropy.
      state: what is remembered.
    """

    values: jax.Array
    trust: jax.Array | float
    state: PreferenceState


Margins = Callable[..., tuple[jax.Array, PreferenceState]]
Noise = Callable[..., Judged]


def reward_margins(preference, logits, targets, negatives, state):
    """Implicit rewards, `beta log pi / pi_ref`."""
    margins = losses.bucket_margins(
        logits,
        targets.labels,
        negatives,
        beta=preference.beta,
        ref_logits=targets.ref_logits,
    )
    return margins, state


def odds_margins(preference, logits, targets, negatives, state):
    """ORPO: log-odds."""
    del preference
    gold = losses.bucket_log_odds(logits, targets.labels[:, None])
    return gold - losses.bucket_log_odds(logits, negatives), state


def running_margins(preference, logits, targets, negatives, state):
    """LMPO: rewards less a running score; a bucket is a response of one token."""
    margins, _ = reward_margins(preference, logits, targets, negatives, state)
    logps = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logps, targets.labels[:, None], axis=-1)
    rejected = jnp.take_along_axis(logps, negatives, axis=-1)
    raw = losses.lmpo_margin(chosen, rejected, 1, 1, power=5)
    where = None if targets.where is None else targets.where[:, None]
    offset, lmpo = losses.lmpo_offset(raw, state.lmpo, decay=0.9, where=where)
    return margins - 0.2 * offset, state._replace(lmpo=lmpo)


def trust(preference, own, swapped, logits, targets, state):
    """No noise: the losses as labelled."""
    del preference, swapped, logits, targets
    return Judged(own, 1.0, state)


def confidence(preference, own, swapped, logits, targets, state):
    """Weighted by the probability of the gold bucket."""
    del preference, swapped
    weights = losses.confidence_weights(logits, targets.labels, floor=0.2, ceiling=1.0)
    return Judged(weights * own, 1.0, state)


def smoothing(preference, own, swapped, logits, targets, state):
    """Label smoothing of the preference."""
    del logits, targets
    rate = preference.noise_rate
    values = losses.smoothed(own, swapped, label_smoothing=rate)
    return Judged(values, 1.0, state)


def robust(preference, own, swapped, logits, targets, state):
    """Unbiased under flips at the given rate."""
    del logits, targets
    rate = preference.noise_rate
    values = losses.unbiased(own, swapped, label_smoothing=rate)
    return Judged(values, 1.0, state)


def re_po(preference, own, swapped, logits, targets, state):
    """RE-PO: the reliability of each source is learned on the way.

    The posterior that a label is right weights the cross-entropy, too: else that
    would learn the wrong labels by heart, and vouch for them.
    """
    del preference, logits
    sources = targets.sources
    if sources is None:
        sources = jnp.zeros(own.shape, jnp.int32)
    reliability = state.reliability[sources]
    posterior = losses.reliability_posterior(own, swapped, reliability=reliability)
    new = losses.reliability_update(
        state.reliability,
        posterior,
        sources,
        rate=0.1,
        low=0.5,
        high=0.999,  # At 1 a source would never be doubted again.
        where=targets.where,
    )
    values = losses.reliability_nll(own, swapped, reliability=reliability)
    return Judged(values, posterior, state._replace(reliability=new))


GROUPS: dict[str, losses.Group] = {
    "pairwise_mean": losses.pairwise_mean,
    "epo": losses.expected_win,
    "softmax": losses.softmax,
    "softmax_mean": losses.softmax_mean,
    "hardest": losses.hardest,
    "mean_reward": losses.mean_reward,
}

NOISE: dict[str, Noise] = {
    "none": trust,
    "confidence": confidence,
    "smoothing": smoothing,
    "robust": robust,
    "re_po": re_po,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """A preference loss. Hashable: a static argument of jit.

    Attributes:
      margins: how far the gold bucket leads.
      link: the loss of one margin.
      group: reduces the margins of one example to one loss.
      noise: what to do about wrong labels.
      noise_rate: the rate of wrong labels that `noise` takes or starts from.
      beta: reward scale of the margins.
      num_negatives: negatives of one example.
      hard_ratio: share of hard negatives, the rest is uniform.
      slack: negatives that lead by more than this do not count.
      correct_sampling: whether margins make up for the draw of the negatives.
      num_sources: sources whose reliability is learned.
    """

    margins: Margins = reward_margins
    link: losses.Link = losses.logistic
    group: losses.Group = losses.pairwise_mean
    noise: Noise = trust
    noise_rate: float = 0.1
    beta: float = 1.0
    num_negatives: int = 1
    hard_ratio: float = 1.0
    slack: float = math.inf
    correct_sampling: bool = False
    num_sources: int = 1


def make_preference(
    objective: str,
    *,
    group: str = "pairwise_mean",
    noise: str = "none",
    beta: float | None = None,
    margin: float | None = None,
    **settings: Any,
) -> Preference:
    """Composes the preference loss that the names of the catalogue stand for.

    Args:
      objective: a name of the catalogue, or a user's `module:function`.
      group: a name of the catalogue.
      noise: a name of the catalogue.
      beta: reward scale, or the objective's default.
      margin: target margin, or the objective's default.
      **settings: other attributes of `Preference`.

    Raises:
      UserError: no such objective, it has no such hyper-parameter, or a user's
        function cannot be used.
    """
    beta, margin = hyper_parameters(objective, beta=beta, margin=margin)
    link = _link(objective, beta, margin)
    return Preference(
        margins={"orpo": odds_margins, "lmpo": running_margins}.get(
            objective, reward_margins
        ),
        link=load_link(objective) if link is None else link,
        group=GROUPS[group],
        noise=NOISE[noise],
        beta=1.0 if objective == "ipo" else beta,  # There it sets the target.
        **settings,
    )


@functools.cache  # One object for one setting, so that equal runs compile once.
def _link(objective: str, beta: float, margin: float) -> losses.Link | None:
    fix = functools.partial
    return {
        "sigmoid": losses.logistic,
        "dpo": losses.logistic,
        "orpo": losses.logistic,
        "ipo": fix(losses.squared, target=0.5 / beta),
        "hinge": fix(losses.relu_margin, gamma=1.0),
        "repo_relu": fix(losses.relu_margin, gamma=margin),
        "simpo": fix(losses.target_logistic, gamma=margin),
        "lmpo": fix(losses.target_logistic, gamma=margin),
        "rpo": fix(losses.rpo_margin, distance=losses.rpo_bwd_kl, target=margin),
        "rpo_fwd_kl": fix(losses.rpo_margin, distance=losses.rpo_fwd_kl, target=margin),
        "rpo_sq": fix(losses.rpo_margin, distance=losses.rpo_sq, target=margin),
        "exo": fix(losses.exo_pair, label_smoothing=1e-3),
        "discopop": fix(losses.log_ratio_modulated, tau=0.05),
    }.get(objective)


def init_preference_state(preference: Preference) -> PreferenceState:
    """The state before the first batch."""
    reliability = jnp.full(preference.num_sources, 1.0 - preference.noise_rate)
    return PreferenceState(losses.init_lmpo(), reliability)


def preference_losses(
    preference: Preference,
    key: jax.Array,
    logits: jax.Array,
    targets: Targets,
    state: PreferenceState,
) -> tuple[Judged, dict[str, jax.Array]]:
    """The preference loss of each example over mined negatives.

    Args:
      preference: what to compute.
      key: a random key for the uniform negatives.
      logits: `[batch, C]` bucket logits.
      targets: what the rows should be classified as.
      state: what the batches before left.

    Returns:
      The losses with what the noise model thinks, and `[batch]` metrics by name.
    """
    labels = targets.labels
    negatives = losses.mine_negatives(
        key,
        logits,
        labels,
        num_negatives=min(preference.num_negatives, logits.shape[-1] - 1),
        hard_ratio=preference.hard_ratio,
    )
    rejected = negatives.buckets
    margins, state = preference.margins(preference, logits, targets, rejected, state)
    correction = negatives.log_inclusion if preference.correct_sampling else 0.0
    where = None
    if preference.slack < math.inf:
        where = losses.plausible_negatives(
            logits, labels, rejected, slack=preference.slack
        )
    own, swapped = (
        preference.group(lead + correction, preference.link, where=where)
        for lead in (margins, -margins)
    )
    judged = preference.noise(preference, own, swapped, logits, targets, state)
    rewards = preference.beta * jax.nn.log_softmax(logits)
    if targets.ref_logits is not None:
        rewards -= preference.beta * jax.nn.log_softmax(targets.ref_logits)
    metrics = losses.preference_metrics(
        jnp.take_along_axis(rewards, labels[:, None], axis=-1)[:, 0],
        jnp.take_along_axis(rewards, rejected, axis=-1).mean(-1),
    )
    # RePO and the hinge leave pairs without a gradient: watch that some have one.
    metrics["loss/pref_active"] = (judged.values > 0).astype(jnp.float32)
    if targets.sources is not None:
        metrics["reliability"] = judged.state.reliability[targets.sources]
    return judged, metrics
