"""Groups: many negatives for one chosen response, reduced to one loss.

A group is `group(margins, link, *, where=None)` over the last axis of margins
`[..., K]`. For the logistic link and equal margins all groups agree.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses.links import Link
from prefchat_jax.numerics import masked_mean


class Group(Protocol):
    """Reduces the margins against K negatives to one loss."""

    def __call__(
        self, margins: jax.Array, link: Link, *, where: ArrayLike | None = None
    ) -> jax.Array:
        """Maps `[..., K]` margins to `[...]` losses."""
        ...


def pairwise_mean(
    margins: ArrayLike, link: Link, *, where: ArrayLike | None = None
) -> jax.Array:
    """The mean loss over all pairs: `mean_k link(margin_k)`.

    Args:
      margins: `[..., K]` margins, scaled by beta.
      link: the loss of one margin.
      where: `[..., K]` true where a negative counts.

    Returns:
      `[...]` losses; 0 where no negative counts.
    """
    return masked_mean(link(_hide(margins, where)), where, axis=-1)


def expected_win(
    margins: ArrayLike, link: Link, *, where: ArrayLike | None = None
) -> jax.Array:
    """Minus the log of the expected win: `-log mean_k exp(-link(margin_k))`.

    With the logistic link, `exp(-link)` is the probability that the chosen
    response wins. The estimator redescends: a negative that is far ahead gets
    little weight, which guards against false negatives. It is the `epo`
    estimator of the system that this package succeeds; the equation of the EPO
    paper (Li & Song, EMNLP 2025) was not available to compare.

    Args:
      margins: `[..., K]` margins, scaled by beta.
      link: the loss of one margin.
      where: `[..., K]` true where a negative counts.

    Returns:
      `[...]` losses; 0 where no negative counts.
    """
    costs = link(_hide(margins, where))
    if where is None:
        return jnp.log(costs.shape[-1]) - jax.nn.logsumexp(-costs, axis=-1)
    where = jnp.broadcast_to(where, costs.shape)
    count = jnp.sum(where, axis=-1)
    # An empty group is computed over all of its (hidden) margins, then dropped.
    usable = where | (count == 0)[..., None]
    log_sum = jax.nn.logsumexp(-costs, axis=-1, where=usable)
    return jnp.where(count > 0, jnp.log(jnp.maximum(count, 1)) - log_sum, 0.0)


def _hide(margins: ArrayLike, where: ArrayLike | None) -> jax.Array:
    """Zeroes what does not count before the link: a NaN there has no gradient."""
    margins = jnp.asarray(margins)
    return margins if where is None else jnp.where(where, margins, 0.0)
