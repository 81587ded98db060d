"""Losses of a categorical policy: a softmax over response buckets.

A bucket is a response of one token, so every loss on log-probs has its form
here. Margins `[..., K]` over negative buckets come from `bucket_margins` (DPO,
IPO, hinge and RPO with a reference's logits; SimPO and RePO without) or from
`bucket_log_odds` (ORPO); a group over a link makes them a loss.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float, hide, masked_loss


def bucket_margins(
    logits: ArrayLike,
    labels: ArrayLike,
    negatives: ArrayLike,
    *,
    beta: ArrayLike,
    ref_logits: ArrayLike | None = None,
) -> jax.Array:
    """Margins of the gold bucket over negative buckets.

    `beta * (r(gold) - r(negative))` with `r = log pi`, or `log pi - log pi_ref`
    if there is a reference policy; without one it may be said to be uniform. The
    normaliser of a softmax cancels, so raw logits give the margins exactly.

    Args:
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      negatives: `[..., K]` integer buckets to lead over.
      beta: reward scale.
      ref_logits: `[..., C]` bucket logits of a frozen reference policy.

    Returns:
      `[..., K]` margins.
    """
    rewards = as_float(logits)
    if ref_logits is not None:
        rewards = rewards - jax.lax.stop_gradient(as_float(ref_logits))
    gold = jnp.take_along_axis(rewards, jnp.expand_dims(labels, -1), axis=-1)
    negative = jnp.take_along_axis(rewards, jnp.asarray(negatives), axis=-1)
    return jnp.asarray(beta) * (gold - negative)


def bucket_logps(
    logits: ArrayLike, buckets: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Log-probs of given buckets, `z_b - logsumexp(z)`.

    The log-probs of all buckets are never laid out; what else of a step takes the same
    logits shares the normaliser.

    Args:
      logits: `[..., C]` bucket logits.
      buckets: `[..., K]` integer buckets.
      where: `[...]` true where an example counts.

    Returns:
      `[..., K]` log-probs; where `where` is false, those of equal logits.
    """
    logits = hide(as_float(logits), where, axis=-1)
    own = jnp.take_along_axis(logits, jnp.asarray(buckets), axis=-1)
    return own - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def bucket_log_odds(
    logits: ArrayLike, buckets: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Exact log-odds `z_b - logsumexp(z_others)` of given buckets.

    No `log(1 - p)` is taken, so value and gradient are exact for any finite
    logits. ORPO on buckets is cross-entropy + beta * a group over the logistic
    link of the gold bucket's log-odds minus the negatives'.

    Args:
      logits: `[..., C]` bucket logits.
      buckets: `[..., K]` integer buckets.
      where: `[...]` true where an example counts.

    Returns:
      `[..., K]` log-odds; where `where` is false, those of equal logits.
    """
    logits, buckets = hide(as_float(logits), where, axis=-1), jnp.asarray(buckets)
    own = jnp.take_along_axis(logits, buckets, axis=-1)
    others = ~jax.nn.one_hot(buckets, logits.shape[-1], dtype=bool)
    every = jnp.broadcast_to(jnp.expand_dims(logits, -2), others.shape)
    return own - jax.nn.logsumexp(every, axis=-1, where=others)


def generalized_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    q: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Generalised cross-entropy, robust to wrong labels: `(1 - pi(gold)**q) / q`.

    Between cross-entropy (`q -> 0`) and the mean absolute error (`q = 1`). Zhang &
    Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks
    with Noisy Labels" (https://arxiv.org/abs/1805.07836), equation 6.

    Args:
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      q: in (0, 1]; authors: 0.7.
      where: `[...]` true where an example counts.

    Returns:
      `[...]` losses in [0, 1/q].
    """
    q = jnp.asarray(q)
    loss = lambda logps: -jnp.expm1(q * logps) / q
    return masked_loss(loss, where, _gold_logps(logits, labels, where))


def symmetric_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    log_zero: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Symmetric cross-entropy, robust to wrong labels: `alpha * CE + beta * RCE`.

    The reverse cross-entropy of a hard label is `-log_zero * (1 - pi(gold))`. Wang
    et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels"
    (https://arxiv.org/abs/1908.06112).

    Args:
      logits: `[..., C]` bucket logits.
      labels: `[...]` integer gold buckets.
      alpha: weight of cross-entropy; authors: 0.1.
      beta: weight of reverse cross-entropy; authors: 1.
      log_zero: what stands for log 0, negative; authors: -4.
      where: `[...]` true where an example counts.

    Returns:
      `[...]` losses.
    """

    def loss(logps):
        reverse = jnp.asarray(log_zero) * jnp.expm1(logps)
        return -jnp.asarray(alpha) * logps + jnp.asarray(beta) * reverse

    return masked_loss(loss, where, _gold_logps(logits, labels, where))


def logit_adjustment(counts: ArrayLike, *, tau: ArrayLike) -> jax.Array:
    """What training on unequal classes adds to the logits: `tau * log(prior)`.

    Cross-entropy of `logits + adjustment` learns logits that are fair to every class:
    plain ones predict. Menon et al., "Long-tail learning via logit adjustment"
    (https://arxiv.org/abs/2007.07314), equation 10.

    Args:
      counts: `[..., C]` training rows of each bucket; one without any counts as if it
        had one.
      tau: at least 0; the theory, and the authors': 1.

    Returns:
      `[..., C]` finite adjustments.
    """
    counts = jnp.maximum(as_float(counts), 1.0)
    total = jnp.sum(counts, axis=-1, keepdims=True)
    return jnp.asarray(tau) * (jnp.log(counts) - jnp.log(total))


def _gold_logps(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> jax.Array:
    logps = bucket_logps(logits, jnp.expand_dims(labels, -1), where=where)
    return jnp.squeeze(logps, -1)
