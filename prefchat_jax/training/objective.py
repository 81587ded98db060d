"""The training objective: cross-entropy plus a weighted preference loss."""

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from prefchat_jax import losses
from prefchat_jax.errors import UserError


class NamedLink(NamedTuple):
    """A row of the table of preference objectives.

    `make` builds the link from `--pref_margin`. An objective whose `beta` or
    `margin` is None does not have it; otherwise it is the default.
    """

    make: Callable[[float], losses.Link]
    beta: float | None
    margin: float | None
    equation: str
    paper: str


@functools.cache  # One object for one margin, so that equal runs compile once.
def _relu_margin(margin: float) -> losses.Link:
    return functools.partial(losses.relu_margin, gamma=margin)


LINKS = {
    "sigmoid": NamedLink(
        make=lambda _: losses.logistic,
        beta=2.0,
        margin=None,
        equation="-log sigmoid(beta d)",
        paper="DPO, https://arxiv.org/abs/2305.18290",
    ),
    "repo_relu": NamedLink(
        make=_relu_margin,
        beta=None,
        margin=0.2,
        equation="max(0, margin - d)",
        paper="RePO, https://arxiv.org/abs/2503.07426",
    ),
}

GROUPS: dict[str, losses.Group] = {
    "pairwise_mean": losses.pairwise_mean,
    "epo": losses.expected_win,
}


_USERS_BETA = 2.0  # Scale of the margins of a user's own link.

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


def resolve_link(
    name: str, *, beta: float | None = None, margin: float | None = None
) -> tuple[losses.Link, float]:
    """Finds a preference objective by name, or a user's `module:function`.

    Returns:
      The link, and the beta that its margins are scaled by.

    Raises:
      UserError: no such objective, module, or function, or it is no link.
    """
    if name in LINKS:
        row = LINKS[name]
        return row.make(margin or row.margin or 0.0), beta or row.beta or 1.0
    return _users_link(name), beta or _USERS_BETA


def _users_link(name: str) -> losses.Link:
    module_name, found, function_name = name.partition(":")
    if not found:
        raise UserError(
            f"--pref_objective {name}: use {', '.join(LINKS)}, or module:function "
            "for your own function of margins [..., K]."
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # As `python -m` does; the command does not.
    try:
        link = getattr(importlib.import_module(module_name), function_name)
        shape = jax.eval_shape(link, jax.ShapeDtypeStruct((2, 3), jnp.float32)).shape
    except Exception as error:  # Whatever a user's module raises.
        raise UserError(
            f"--pref_objective {name}: {type(error).__name__}: {error}. It must be a "
            "function of margins that can be imported from here."
        ) from error
    if shape != (2, 3):
        raise UserError(
            f"--pref_objective {name} maps margins (2, 3) to {shape}: it must give one "
            "loss for each margin, without a mean."
        )
    return link


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
