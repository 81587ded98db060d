"""The training objective: cross-entropy plus a weighted preference loss."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax import losses
from prefchat_jax.training.preference import Preference, preference_losses
from prefchat_jax.training.targets import PreferenceState, Targets


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["label_smoothing", "gce_q", "adjustment", "weight", "preference"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What one example costs, a pytree of its hyper-parameters.

    Attributes:
      label_smoothing: mass that cross-entropy spreads over all buckets.
      gce_q: makes generalised cross-entropy of it, which smooths no labels; None
        leaves it cross-entropy.
      adjustment: `[C]` what its logits get for the sizes of the classes, or None.
      weight: weight of the preference loss; None leaves it out.
      preference: the preference loss.
    """

    label_smoothing: ArrayLike = 0.0
    gce_q: ArrayLike | None = None
    adjustment: ArrayLike | None = None
    weight: ArrayLike | None = None
    preference: Preference = Preference()


def example_losses(
    objective: Objective,
    key: jax.Array,
    logits: jax.Array,
    targets: Targets,
    state: PreferenceState,
    *,
    ramp: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array], PreferenceState]:
    """The loss of each example, and its parts.

    Args:
      objective: what an example costs.
      key: a random key for the uniform negatives.
      logits: `[batch, C]` bucket logits.
      targets: what the rows should be classified as.
      state: what the batches before left.
      ramp: scalar in [0, 1], the warm-up of the preference weight.

    Returns:
      `[batch]` losses, `[batch]` metrics by name, and the new state.
    """
    labels = targets.labels
    ce = _cross_entropy(objective, logits, labels)
    metrics = {
        "loss/ce": ce,
        "accuracy": _is_right(logits, labels),
    }
    if objective.weight is None:
        return ce, metrics, state
    judged, pref_metrics = preference_losses(
        objective.preference, key, logits, targets, state
    )
    total = judged.trust * ce + objective.weight * ramp * judged.values
    metrics |= {"loss/pref": judged.values} | pref_metrics
    return total, metrics, judged.state


def _is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`[batch]` 1 where `argmax` is the label; that itself takes 10 times as long."""
    labels = labels[:, None]
    gold = jnp.take_along_axis(logits, labels, axis=-1)
    is_before = jnp.arange(logits.shape[-1])[None] < labels
    is_ahead = (logits > gold) | is_before & (logits == gold)
    return 1.0 - jnp.any(is_ahead, axis=-1)


def _cross_entropy(
    objective: Objective, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """`[batch]` losses of classification, of adjusted logits where there are such."""
    if objective.adjustment is not None:
        logits = logits + jnp.expand_dims(objective.adjustment, 0)
    if objective.gce_q is not None:
        return losses.generalized_cross_entropy(logits, labels, q=objective.gce_q)
    gold = losses.bucket_logps(logits, labels[:, None])[:, 0]
    every = jnp.mean(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    smoothing = jnp.asarray(objective.label_smoothing)
    return -((1.0 - smoothing) * gold + smoothing * every)
