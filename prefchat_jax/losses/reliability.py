"""RE-PO: learns how reliable each annotator is while it learns the preferences.

Cao et al., "RE-PO: Robust Enhanced Policy Optimization as a General Framework
for LLM Alignment" (https://arxiv.org/abs/2509.24159). A base loss gives the
probability that its label is right (equation 2),

    p = sigmoid(swapped_loss - loss),

and each annotator has a reliability, the probability that a label of theirs is
right. Expectation-maximisation turns to and fro: `reliability_posterior` (E-step,
equation 4), a step on `reliability_loss` (M-step, equation 5), then
`reliability_update` (equations 6 and 7). `reliability_nll` is the same in closed
form: its gradient is that of the M-step with a fresh posterior.

Not to be confused with RePO (`repo_relu`) or RPO (`rpo`).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float, masked_loss


def reliability_posterior(
    losses: ArrayLike,
    swapped_losses: ArrayLike,
    *,
    reliability: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """E-step: the probability that each label is right.

    `sigmoid(logit p + logit reliability)`, equation 4 in log space. No gradient
    flows through it.

    Args:
      losses: `[...]` base losses as labelled.
      swapped_losses: `[...]` base losses of the swapped label.
      reliability: `[...]` of each label's annotator, in [0, 1].
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` weights in [0, 1]; 0 where `where` is false.
    """
    logits = as_float(swapped_losses) - as_float(losses)
    weigh = lambda logits: jax.nn.sigmoid(logits + _logit(reliability))
    return jax.lax.stop_gradient(masked_loss(weigh, where, logits))


def reliability_loss(
    losses: ArrayLike,
    swapped_losses: ArrayLike,
    *,
    posterior: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """M-step: `-(w * log p + (1 - w) * log(1 - p))`, w the posterior (equation 5).

    Args:
      losses: `[...]` base losses as labelled.
      swapped_losses: `[...]` base losses of the swapped label.
      posterior: `[...]` from `reliability_posterior`; no gradient flows through.
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses.
    """
    weight = jax.lax.stop_gradient(jnp.asarray(posterior))

    def loss(logits):
        right, wrong = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -(weight * right + (1.0 - weight) * wrong)

    return masked_loss(loss, where, as_float(swapped_losses) - as_float(losses))


def reliability_nll(
    losses: ArrayLike,
    swapped_losses: ArrayLike,
    *,
    reliability: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The label's negative log-likelihood: `-log(r * p + (1 - r) * (1 - p))`.

    Bounded by `-log min(r, 1 - r)`: a label that the model is sure is wrong has
    no gradient left. With reliability 1 it is `-log p`.

    Args:
      losses: `[...]` base losses as labelled.
      swapped_losses: `[...]` base losses of the swapped label.
      reliability: `[...]` of each label's annotator, in [0, 1].
      where: `[...]` true where a pair counts.

    Returns:
      `[...]` losses.
    """
    reliability = jnp.asarray(reliability)

    def loss(logits):
        right = jnp.log(reliability) + jax.nn.log_sigmoid(logits)
        wrong = jnp.log1p(-reliability) + jax.nn.log_sigmoid(-logits)
        return -jnp.logaddexp(right, wrong)

    return masked_loss(loss, where, as_float(swapped_losses) - as_float(losses))


def reliability_update(
    reliability: ArrayLike,
    posterior: ArrayLike,
    annotators: ArrayLike,
    *,
    rate: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    prior_right: ArrayLike = 0.0,  # No prior is no information, not a choice.
    prior_wrong: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The annotators' new reliabilities: a running mean of their posteriors.

    `(1 - rate) * old + rate * mean(posterior)` for each annotator with labels in
    the batch; the others stay. Rate 1 on all labels is equation 6, the authors'
    0.1 on batches is equation 7. With an over-confident model the reliabilities
    drift to 1: clamp them, or give a Beta prior as counts of labels (ours). It
    couples the batch; it is not elementwise.

    Args:
      reliability: `[A]` old reliabilities; authors start at 0.9.
      posterior: `[...]` from `reliability_posterior`.
      annotators: `[...]` integers in [0, A), who gave each label.
      rate: of the running mean, in (0, 1].
      low: smallest reliability; authors: 0.5.
      high: largest reliability.
      prior_right: labels of each annotator that were right before any was seen.
      prior_wrong: such labels that were wrong.
      where: `[...]` true where a label counts.

    Returns:
      `[A]` new reliabilities.
    """
    old = as_float(reliability)
    posterior = as_float(posterior)
    counts = jnp.ones_like(posterior)
    if where is not None:
        posterior = jnp.where(where, posterior, 0.0)
        counts = jnp.where(where, counts, 0.0)
    count = jnp.zeros_like(old).at[annotators].add(counts)
    right = jnp.zeros_like(old).at[annotators].add(posterior)
    total = count + prior_right + prior_wrong
    mean = (right + prior_right) / jnp.where(total > 0, total, 1.0)
    new = jnp.clip((1.0 - rate) * old + rate * mean, low, high)
    return jax.lax.stop_gradient(jnp.where(count > 0, new, old))


def bucket_reliability_posterior(
    log_odds: ArrayLike, *, reliability: ArrayLike, num_buckets: int
) -> jax.Array:
    """E-step for bucket labels with C classes: the probability that one is right.

    A wrong label is any of the C - 1 other buckets, equally likely:
    `r * p / (r * p + (1 - r) * (1 - p) / (C - 1))`. Derived here from RE-PO's
    two-class form; not in the paper.

    Args:
      log_odds: `[...]` of the label's bucket, from `bucket_log_odds`.
      reliability: `[...]` of each label's source, in [0, 1].
      num_buckets: C.

    Returns:
      `[...]` weights in [0, 1].
    """
    logits = as_float(log_odds) + jnp.log(num_buckets - 1.0)
    return jax.lax.stop_gradient(jax.nn.sigmoid(logits + _logit(reliability)))


def _logit(probability: ArrayLike) -> jax.Array:
    probability = jnp.asarray(probability)
    return jnp.log(probability) - jnp.log1p(-probability)
