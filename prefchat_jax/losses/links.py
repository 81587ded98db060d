"""Links: what one margin costs. A margin is how far the chosen reward leads.

Margins are already scaled by beta, so that every link is a plain function of
margins and any group can be taken over it. Groups and the functions of pairs hide
what does not count before they call a link.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float

Link = Callable[[jax.Array], jax.Array]


def logistic(margins: ArrayLike) -> jax.Array:
    """The logistic link of DPO: `-log sigmoid(margin)`.

    Rafailov et al., "Direct Preference Optimization: Your Language Model is
    Secretly a Reward Model" (https://arxiv.org/abs/2305.18290), equation 7.

    Args:
      margins: `[...]` reward margins, scaled by beta.

    Returns:
      `[...]` losses; exact, with exact gradients, for any finite margin.
    """
    return -jax.nn.log_sigmoid(as_float(margins))


def target_logistic(margins: ArrayLike, *, gamma: ArrayLike) -> jax.Array:
    """The logistic link with a target margin: `-log sigmoid(margin - gamma)`.

    The link of SimPO and LMPO: Meng et al., "SimPO: Simple Preference
    Optimization with a Reference-Free Reward" (https://arxiv.org/abs/2405.14734).

    Args:
      margins: `[...]` reward margins, scaled by beta.
      gamma: the target margin, in reward units.

    Returns:
      `[...]` losses.
    """
    return logistic(as_float(margins) - gamma)


def relu_margin(margins: ArrayLike, *, gamma: ArrayLike) -> jax.Array:
    """The ReLU link of RePO: `max(0, gamma - margin)`; has no temperature.

    Pairs that lead by more than `gamma` have no gradient. Wu et al., "RePO:
    ReLU-based Preference Optimization" (https://arxiv.org/abs/2503.07426). With
    `gamma` 1 it is the hinge link.

    Args:
      margins: `[...]` reward margins; RePO has beta 1.
      gamma: the target margin, in reward units.

    Returns:
      `[...]` losses.
    """
    return jax.nn.relu(jnp.asarray(gamma) - as_float(margins))


def squared(margins: ArrayLike, *, target: ArrayLike) -> jax.Array:
    """The squared link of IPO: `(margin - target)**2`.

    Azar et al., "A General Theoretical Paradigm to Understand Learning from
    Human Preferences" (https://arxiv.org/abs/2310.12036), equation 17, whose
    target is `1 / (2 * tau)` for margins with beta 1.

    Args:
      margins: `[...]` reward margins.
      target: `[...]` the margin that costs nothing, in reward units.

    Returns:
      `[...]` losses.
    """
    return jnp.square(as_float(margins) - target)


def exo_pair(margins: ArrayLike, *, label_smoothing: ArrayLike) -> jax.Array:
    """The link of EXO: the KL divergence from the model's preference to the label's.

    `KL(p || q)` with `p = sigmoid(margin)` that the chosen response wins, and
    `q = 1 - label_smoothing`. Ji et al., "Towards Efficient Exact Optimization
    of Language Model Alignment" (https://arxiv.org/abs/2402.00856), equation 16.

    Args:
      margins: `[...]` reward margins, scaled by beta.
      label_smoothing: above 0 (at 0 the divergence is infinite); TRL: 1e-3.

    Returns:
      `[...]` losses.
    """
    margins, smoothing = as_float(margins), jnp.asarray(label_smoothing)
    win, lose = jax.nn.log_sigmoid(margins), jax.nn.log_sigmoid(-margins)
    win_cost = jnp.exp(win) * (win - jnp.log1p(-smoothing))
    return win_cost + jnp.exp(lose) * (lose - jnp.log(smoothing))


def log_ratio_modulated(margins: ArrayLike, *, tau: ArrayLike) -> jax.Array:
    """The link of DiscoPOP: logistic for small margins, exponential for large.

    `(1 - s) * -log sigmoid(m) + s * exp(-m)` with `s = sigmoid(m / tau)`. Lu et
    al., "Discovering Preference Optimization Algorithms with and for Large
    Language Models" (https://arxiv.org/abs/2406.08414).

    Args:
      margins: `[...]` reward margins, scaled by beta.
      tau: temperature of the switch, below 1; authors: 0.05.

    Returns:
      `[...]` losses. The exponential part is computed in log space: the product
      of a weight of 0 and an infinite loss is 0, not NaN.
    """
    margins = as_float(margins)
    switch = margins / tau
    exponential = jnp.exp(jax.nn.log_sigmoid(switch) - margins)
    return jax.nn.sigmoid(-switch) * logistic(margins) + exponential


def preference_gce(margins: ArrayLike, *, q: ArrayLike) -> jax.Array:
    """Generalised cross-entropy of a preference: `(1 - sigmoid(margin)**q) / q`.

    Between the logistic link (`q -> 0`) and a bounded one (`q = 1`), which a
    wrong label cannot dominate. Zhang & Sabuncu, "Generalized Cross Entropy Loss
    for Training Deep Neural Networks with Noisy Labels"
    (https://arxiv.org/abs/1805.07836), equation 6, of the Bradley-Terry
    probability.

    Args:
      margins: `[...]` reward margins, scaled by beta.
      q: in (0, 1]; authors: 0.7.

    Returns:
      `[...]` losses in [0, 1/q].
    """
    return -jnp.expm1(jnp.asarray(q) * jax.nn.log_sigmoid(as_float(margins))) / q
