"""Links: what one margin costs. A margin is how far the chosen reward leads.

Margins are already scaled by beta, so that every link is a plain function of
margins and any group can be taken over it.
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


def relu_margin(margins: ArrayLike, *, gamma: ArrayLike) -> jax.Array:
    """The ReLU link of RePO: `max(0, gamma - margin)`; has no temperature.

    Pairs that lead by more than `gamma` have no gradient. Wu et al., "RePO:
    ReLU-based Preference Optimization" (https://arxiv.org/abs/2503.07426).

    Args:
      margins: `[...]` reward margins, with beta 1.
      gamma: the target margin, in reward units.

    Returns:
      `[...]` losses.
    """
    return jax.nn.relu(jnp.asarray(gamma) - as_float(margins))
