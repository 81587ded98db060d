"""Noise models of a batch: how far each label is to be trusted.

Each takes the preference's settings, the losses `[batch]` as labelled and swapped,
logits `[batch, C]`, targets and the state.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prefchat_jax import losses
from prefchat_jax.training.targets import PreferenceState


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


Noise = Callable[..., Judged]


def as_labelled(preference, own, swapped, logits, targets, state):
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
    would learn the wrong labels by heart, and vouch for them. For the same reason
    no source is trusted beyond half of the rate of wrong labels that is expected:
    after many epochs a model is sure of all that it was taught.
    """
    del logits
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
        high=1.0 - preference.noise_rate / 2,
        where=targets.where,
    )
    values = losses.reliability_nll(own, swapped, reliability=reliability)
    return Judged(values, posterior, state._replace(reliability=new))
