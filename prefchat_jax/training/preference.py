"""The preference loss of a batch: what a named objective is made of.

Negatives, margins, a group over a link, and a noise model compose; `catalogue.py`
describes what the tables here name.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from prefchat_jax import losses
from prefchat_jax.training.catalogue import hyper_parameters
from prefchat_jax.training.margins import (
    Margins,
    odds_margins,
    policy_margins,
    running_margins,
)
from prefchat_jax.training.noise import (
    Judged,
    Noise,
    as_labelled,
    confidence,
    re_po,
    robust,
    smoothing,
)
from prefchat_jax.training.targets import PreferenceState, Targets
from prefchat_jax.training.user_link import load_link

GROUPS: dict[str, losses.Group] = {
    "pairwise_mean": losses.pairwise_mean,
    "epo": losses.expected_win,
    "softmax": losses.softmax,
    "softmax_mean": losses.softmax_mean,
    "hardest": losses.hardest,
    "mean_reward": losses.mean_reward,
}

NOISE: dict[str, Noise] = {
    "none": as_labelled,
    "confidence": confidence,
    "smoothing": smoothing,
    "robust": robust,
    "re_po": re_po,
}

# Made once: a pytree with another one would have another structure, and compile again.
_RPO_BWD_KL = partial(losses.rpo_margin, distance=losses.rpo_bwd_kl)
_RPO_FWD_KL = partial(losses.rpo_margin, distance=losses.rpo_fwd_kl)
_RPO_SQ = partial(losses.rpo_margin, distance=losses.rpo_sq)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["link", "noise_rate", "beta", "hard_ratio", "slack"],
    meta_fields=[
        "margins",
        "group",
        "noise",
        "num_negatives",
        "correct_sampling",
        "approximate_negatives",
        "num_sources",
    ],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """A preference loss, a pytree of its hyper-parameters.

    Attributes:
      margins: how far the gold bucket leads.
      link: the loss of one margin; its arguments are hyper-parameters, too.
      group: reduces the margins of one example to one loss.
      noise: what to do about wrong labels.
      noise_rate: the rate of wrong labels that `noise` takes or starts from.
      beta: reward scale of the margins.
      num_negatives: negatives of one example.
      hard_ratio: share of hard negatives, the rest is uniform.
      slack: negatives that lead by more than this do not count; None counts all.
      correct_sampling: whether margins make up for the draw of the negatives.
      approximate_negatives: whether a few of the hard negatives may be missed.
      num_sources: sources whose reliability is learned.
    """

    margins: Margins = policy_margins
    link: Partial = Partial(losses.logistic)
    group: losses.Group = losses.pairwise_mean
    noise: Noise = as_labelled
    noise_rate: ArrayLike = 0.1
    beta: ArrayLike = 1.0
    num_negatives: int = 1
    hard_ratio: ArrayLike = 1.0
    slack: ArrayLike | None = None
    correct_sampling: bool = False
    approximate_negatives: bool = False
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
    parts: dict[str, Any] = {"beta": beta}
    parts |= {"group": GROUPS[group], "noise": NOISE[noise]}
    named = _named(objective, beta, margin)
    parts |= {"link": Partial(load_link(objective))} if named is None else named
    return Preference(**parts, **settings)


def _named(objective: str, beta: float, margin: float) -> dict[str, Any] | None:
    """What differs from `Preference` for each name of the catalogue."""
    target = Partial(losses.target_logistic, gamma=margin)
    rpo = lambda link: {"link": Partial(link, target=margin)}
    return {
        "sigmoid": {},
        "dpo": {},
        "repo_relu": {"link": Partial(losses.relu_margin, gamma=margin)},
        # IPO's beta is its target; its margins are not scaled.
        "ipo": {"link": Partial(losses.squared, target=0.5 / beta), "beta": 1.0},
        "hinge": {"link": Partial(losses.relu_margin, gamma=1.0)},
        "orpo": {"margins": odds_margins},
        "simpo": {"link": target},
        "lmpo": {"link": target, "margins": running_margins},
        "rpo": rpo(_RPO_BWD_KL),
        "rpo_fwd_kl": rpo(_RPO_FWD_KL),
        "rpo_sq": rpo(_RPO_SQ),
        "exo": {"link": Partial(losses.exo_pair, label_smoothing=1e-3)},
        "discopop": {"link": Partial(losses.log_ratio_modulated, tau=0.05)},
    }.get(objective)


def init_preference_state(preference: Preference) -> PreferenceState:
    """The state before the first batch."""
    # With its type: a weak one would become strong in step 1, and compile again.
    reliability = jnp.full(
        preference.num_sources, 1.0 - preference.noise_rate, jnp.float32
    )
    return PreferenceState(losses.init_lmpo(), reliability)


def preference_losses(
    preference: Preference,
    key: jax.Array,
    logits: jax.Array,
    targets: Targets,
    state: PreferenceState,
) -> tuple[Judged, dict[str, jax.Array]]:
    """The preference loss of each example over what was rejected, given or mined.

    Args:
      preference: what to compute.
      key: a random key for the uniform negatives.
      logits: `[batch, C]` bucket logits.
      targets: what the rows should be classified as.
      state: what the batches before left.

    Returns:
      The losses with what the noise model thinks, and `[batch]` metrics by name.
    """
    labels, rejected = targets.labels, targets.rejected
    correction = 0.0
    if rejected is None:
        negatives = losses.mine_negatives(
            key,
            logits,
            labels,
            num_negatives=min(preference.num_negatives, logits.shape[-1] - 1),
            hard_ratio=preference.hard_ratio,
            approximate=preference.approximate_negatives,
        )
        rejected = negatives.buckets
        if preference.correct_sampling:
            correction = negatives.log_inclusion
    margins, state = preference.margins(preference, logits, targets, rejected, state)
    where = None
    if preference.slack is not None:
        where = losses.plausible_negatives(
            logits, labels, rejected, slack=preference.slack
        )
    own, swapped = (
        preference.group(lead + correction, preference.link, where=where)
        for lead in (margins, -margins)
    )
    judged = preference.noise(preference, own, swapped, logits, targets, state)
    metrics = losses.preference_metrics(
        _rewards(preference, logits, targets, labels[:, None])[:, 0],
        _rewards(preference, logits, targets, rejected).mean(-1),
    )
    # RePO and the hinge leave pairs without a gradient: watch that some have one.
    metrics["loss/pref_active"] = (own > 0).astype(jnp.float32)
    return judged, metrics


def _rewards(
    preference: Preference, logits: jax.Array, targets: Targets, buckets: jax.Array
) -> jax.Array:
    """`beta log pi / pi_ref` of buckets `[batch, K]`, without a reference of `pi`."""
    logps = losses.bucket_logps(logits, buckets)
    if targets.ref_logits is not None:
        logps -= losses.bucket_logps(targets.ref_logits, buckets)
    return jnp.asarray(preference.beta) * logps
