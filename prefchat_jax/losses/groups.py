"""Groups: many negatives for one chosen response, reduced to one loss.

A group is `group(margins, link, *, where=None)` over the last axis of margins
`[..., K]`. For one negative all groups are the link. For the logistic link

    expected_win <= pairwise_mean <= hardest <= softmax,

and they differ in which negatives they listen to: `softmax` and `hardest` to
those that are ahead, `expected_win` to those that are level, `pairwise_mean` to
all that are not beaten. With the ReLU link of RePO, `expected_win` takes
`exp(-max(0, gamma - margin))` as the probability of a win.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.losses.links import Link
from prefchat_jax.numerics import as_float, hide, masked_loss, masked_mean


class Group(Protocol):
    """Reduces the margins against K negatives to one loss."""

    def __call__(
        self, margins: jax.Array, link: Link, *, where: ArrayLike | None = None
    ) -> jax.Array:
        """Maps `[..., K]` margins to `[...]` losses.

        Args:
          margins: `[..., K]` margins, scaled by beta.
          link: the loss of one margin.
          where: `[..., K]` true where a negative counts.

        Returns:
          `[...]` losses; 0 where no negative counts.
        """
        ...


def pairwise_mean(
    margins: ArrayLike, link: Link, *, where: ArrayLike | None = None
) -> jax.Array:
    """The mean loss over all pairs: `mean_k link(margin_k)`. See `Group`."""
    return masked_mean(link(hide(as_float(margins), where)), where, axis=-1)


def expected_win(
    margins: ArrayLike, link: Link, *, where: ArrayLike | None = None
) -> jax.Array:
    """Minus the log of the expected win: `-log mean_k exp(-link(margin_k))`.

    With the logistic link, `exp(-link)` is the probability that the chosen
    response wins. The estimator redescends: a negative that is far ahead gets
    little weight, which guards against false negatives. It is the `epo`
    estimator of the system that this package succeeds; the equation of the EPO
    paper (Li & Song, EMNLP 2025) was not available to compare. See `Group`.
    """
    costs = link(hide(as_float(margins), where))
    count = _count(costs, where)
    loss = jnp.log(jnp.maximum(count, 1)) - _logsumexp(-costs, where)
    return jnp.where(count > 0, loss, 0.0)


def softmax(
    margins: ArrayLike, link: Link, *, where: ArrayLike | None = None
) -> jax.Array:
    """The link of the soft minimum of the margins: `link(-log sum_k exp(-m_k))`.

    With the logistic link it is S-DPO, which is InfoNCE, cross-entropy over the
    chosen response and its negatives, and the first choice of a Plackett-Luce
    ranking. Chen et al., "On Softmax Direct Preference Optimization for
    Recommendation" (https://arxiv.org/abs/2406.09215). See `Group`.
    """
    margins = hide(as_float(margins), where)
    return _link_of(link, -_logsumexp(-margins, where), margins, where)


def softmax_mean(
    margins: ArrayLike, link: Link, *, where: ArrayLike | None = None
) -> jax.Array:
    """`softmax` over the mean of the negatives: `link(-log mean_k exp(-m_k))`.

    Equal margins cost as much as one of them, whatever K is. See `Group`.
    """
    margins = hide(as_float(margins), where)
    count = jnp.maximum(_count(margins, where), 1)
    soft_min = jnp.log(count) - _logsumexp(-margins, where)
    return _link_of(link, soft_min, margins, where)


def hardest(
    margins: ArrayLike, link: Link, *, where: ArrayLike | None = None
) -> jax.Array:
    """The link of the smallest margin: `link(min_k m_k)`. See `Group`."""
    margins = hide(as_float(margins), where)
    if where is not None:
        margins = jnp.where(jnp.asarray(where, bool), margins, jnp.inf)
    return _link_of(link, jnp.min(margins, axis=-1), margins, where)


def mean_reward(
    margins: ArrayLike, link: Link, *, where: ArrayLike | None = None
) -> jax.Array:
    """The link of the mean margin: `link(mean_k m_k)`. See `Group`."""
    margins = hide(as_float(margins), where)
    return _link_of(link, masked_mean(margins, where, axis=-1), margins, where)


def plackett_luce(scores: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """The negative log-likelihood of a whole ranking.

    `sum_k (logsumexp_{j >= k} s_j - s_k)`: each response in turn is chosen from
    those that are left. With K = 2 it is the logistic link of `s_1 - s_2`.
    Rafailov et al. (https://arxiv.org/abs/2305.18290), appendix A.3.

    Args:
      scores: `[..., K]` rewards, scaled by beta, the best response first.
      where: `[..., K]` true where a response counts.

    Returns:
      `[...]` losses; 0 where no response counts.
    """
    scores = hide(as_float(scores), where)
    where = None if where is None else jnp.asarray(where, bool)
    if where is not None:  # Not minus infinity: its differences would be NaN.
        scores = jnp.where(where, scores, jnp.finfo(scores.dtype).min / 2)
    remaining = jax.lax.cumlogsumexp(scores, axis=scores.ndim - 1, reverse=True)
    return jnp.sum(remaining - scores, axis=-1, where=where)


def _count(margins: jax.Array, where: ArrayLike | None) -> jax.Array:
    where = None if where is None else jnp.asarray(where, bool)
    return jnp.sum(jnp.ones_like(margins), axis=-1, where=where)


def _logsumexp(values: jax.Array, where: ArrayLike | None) -> jax.Array:
    """Over what counts; over all (hidden) values where nothing does."""
    if where is None:
        return jax.nn.logsumexp(values, axis=-1)
    usable = jnp.broadcast_to(jnp.asarray(where, bool), values.shape)
    usable |= ~jnp.any(usable, axis=-1, keepdims=True)
    return jax.nn.logsumexp(values, axis=-1, where=usable)


def _link_of(
    link: Link, margin: jax.Array, margins: jax.Array, where: ArrayLike | None
) -> jax.Array:
    """The link of the one margin that stands for the group; 0 for an empty one."""
    some = None if where is None else _count(margins, where) > 0
    return masked_loss(link, some, margin)
