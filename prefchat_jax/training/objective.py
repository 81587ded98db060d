"""The training objective: cross-entropy plus a weighted preference loss."""

import dataclasses
import functools
import importlib
import os
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from prefchat_jax import losses
from prefchat_jax.errors import UserError


class NamedLink(NamedTuple):
    """A row of the table of preference objectives."""

    equation: str
    paper: str
    hyper_parameters: str


LINKS = {
    "sigmoid": NamedLink(
        "-log sigmoid(beta d)",
        "DPO, https://arxiv.org/abs/2305.18290",
        "--pref_beta",
    ),
    "repo_relu": NamedLink(
        "max(0, margin - d)",
        "RePO, https://arxiv.org/abs/2503.07426",
        "--pref_margin",
    ),
}

GROUPS: dict[str, losses.Group] = {
    "pairwise_mean": losses.pairwise_mean,
    "epo": losses.expected_win,
}


GROUP_EQUATIONS = {
    "pairwise_mean": "mean_k l_k",
    "epo": "-log mean_k exp(-l_k), the expected win",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What one example costs. Hashable: a static argument of jit.

    Attributes:
      label_smoothing: mass that cross-entropy spreads over all buckets.
      weight: weight of the preference loss; 0 leaves it out.
      link: the loss of one margin.
      group: reduces the margins of one example to one loss.
      beta: reward scale of the margins.
      num_negatives: negatives of one example.
      hard_ratio: share of hard negatives, the rest is uniform.
      confidence: whether examples are weighted by `confidence_weights`.
    """

    label_smoothing: float = 0.0
    weight: float = 0.0
    link: losses.Link = losses.logistic
    group: losses.Group = losses.pairwise_mean
    beta: float = 1.0
    num_negatives: int = 1
    hard_ratio: float = 1.0
    confidence: bool = False


def resolve_link(name: str, margin: float) -> losses.Link:
    """Finds a preference objective by name, or a user's `module:function`.

    Raises:
      UserError: no such objective, module, or function.
    """
    if name == "sigmoid":
        return losses.logistic
    if name == "repo_relu":
        return _relu_margin(margin)
    module_name, found, function_name = name.partition(":")
    if not found:
        raise UserError(
            f"--pref_objective {name}: use {', '.join(LINKS)}, or module:function "
            "for your own function of margins [..., K]."
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # As `python -m` does; the command does not.
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--pref_objective {name}: {error}. It must be importable from here."
        ) from error


@functools.cache  # One object for one margin, so that equal runs compile once.
def _relu_margin(margin: float) -> losses.Link:
    return functools.partial(losses.relu_margin, gamma=margin)


def example_losses(
    objective: Objective,
    key: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    *,
    ramp: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of each example, and its parts.

    Args:
      objective: what an example costs.
      key: a random key for the uniform negatives.
      logits: `[batch, C]` bucket logits.
      labels: `[batch]` gold buckets.
      ramp: scalar in [0, 1], the warm-up of the preference weight.

    Returns:
      `[batch]` losses, and `[batch]` metrics by name.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, objective.label_smoothing)
    ce = optax.softmax_cross_entropy(logits, targets)
    metrics = {
        "loss/ce": ce,
        "accuracy": (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32),
    }
    if objective.weight == 0:
        return ce, metrics
    pref, pref_metrics = preference_losses(objective, key, logits, labels)
    total = ce + objective.weight * ramp * pref
    return total, metrics | {"loss/pref": pref} | pref_metrics


def preference_losses(
    objective: Objective, key: jax.Array, logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted preference loss `[batch]` over mined negatives, and metrics."""
    negatives = losses.mine_negatives(
        key,
        logits,
        labels,
        num_negatives=min(objective.num_negatives, logits.shape[-1] - 1),
        hard_ratio=objective.hard_ratio,
    )
    margins = losses.bucket_margins(logits, labels, negatives, beta=objective.beta)
    values = objective.group(margins, objective.link)
    if objective.confidence:
        values *= losses.confidence_weights(logits, labels, floor=0.2, ceiling=1.0)
    rewards = objective.beta * jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(rewards, labels[..., None], axis=-1)[..., 0]
    rejected = jnp.take_along_axis(rewards, negatives, axis=-1).mean(-1)
    return values, losses.preference_metrics(chosen, rejected)
