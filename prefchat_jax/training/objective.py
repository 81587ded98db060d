"""The training objective: cross-entropy plus a weighted preference loss."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax
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
        "accuracy": (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32),
    }
    if objective.weight is None:
        return ce, metrics, state
    judged, pref_metrics = preference_losses(
        objective.preference, key, logits, targets, state
    )
    total = judged.trust * ce + objective.weight * ramp * judged.values
    metrics |= {"loss/pref": judged.values} | pref_metrics
    return total, metrics, judged.state


def _cross_entropy(
    objective: Objective, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """`[batch]` losses of classification, of adjusted logits where there are such."""
    if objective.adjustment is not None:
        logits = logits + jnp.expand_dims(objective.adjustment, 0)
    if objective.gce_q is not None:
        return losses.generalized_cross_entropy(logits, labels, q=objective.gce_q)
    smooth = jax.nn.one_hot(labels, logits.shape[-1])
    smooth = optax.smooth_labels(smooth, objective.label_smoothing)
    return optax.softmax_cross_entropy(logits, smooth)
