"""Log-probabilities of sequences: from a language model to preference losses.

Logits, or hidden states and an unembedding, give one log-probability a token;
tokens give one a sequence, summed or averaged. `where` is true on the tokens of
the response. Prompts and padding may hold anything there, NaN included: it
reaches neither a value nor a gradient.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from prefchat_jax.numerics import as_float, hide, masked_mean


def token_logps(
    logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Log-probabilities of target tokens: `logits[target] - logsumexp(logits)`.

    Args:
      logits: `[..., T, V]` logits; position `t` predicts `targets[t]`.
      targets: `[..., T]` integer tokens; any integer where `where` is false.
      where: `[..., T]` true where a token counts.

    Returns:
      `[..., T]` log-probabilities; 0 where `where` is false.
    """
    logits, targets = as_float(logits), jnp.asarray(targets)
    targets = hide(targets, where)
    logits = hide(logits, where, axis=-1)
    hit = jnp.take_along_axis(logits, jnp.expand_dims(targets, -1), axis=-1)
    # As exact as a log-softmax, and [..., V] log-probabilities are never stored.
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - peak), axis=-1, keepdims=True))
    logps = jnp.squeeze(hit - peak - log_sum, -1)
    return hide(logps, where)


def chunked_token_logps(
    hidden: ArrayLike,
    unembedding: ArrayLike,
    targets: ArrayLike,
    *,
    chunk_size: int,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`token_logps` of `hidden @ unembedding`, never with all logits in memory.

    A loop over chunks of tokens makes `[chunk_size, V]` logits at a time, and
    makes them again for the gradient: one matrix product more for a peak of
    memory that does not grow with the number of tokens. 16-bit factors multiply
    into float32, and the gradient of the unembedding sums in float32.

    Args:
      hidden: `[..., T, H]` last hidden states; position `t` predicts `targets[t]`.
      unembedding: `[H, V]` matrix that turns them into logits.
      targets: `[..., T]` integer tokens; any integer where `where` is false.
      chunk_size: tokens in a chunk, over all sequences.
      where: `[..., T]` true where a token counts.

    Returns:
      `[..., T]` log-probabilities; 0 where `where` is false.

    Raises:
      ValueError: `chunk_size` is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    hidden, unembedding = jnp.asarray(hidden), jnp.asarray(unembedding)
    targets = jnp.asarray(targets)
    where = jnp.broadcast_to(True if where is None else where, targets.shape)
    dtype = jnp.result_type(hidden, unembedding, jnp.float32)
    # Cast back in the loop: so the loop sums its gradient in `dtype`.
    master = unembedding.astype(dtype)

    @jax.checkpoint
    def one_token(token: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        state, target, counts = token
        matrix = master.astype(unembedding.dtype)
        logits = jnp.matmul(state, matrix, preferred_element_type=dtype)
        return token_logps(logits, target, where=counts)

    tokens = (
        hide(hidden, where, axis=-1).reshape(-1, hidden.shape[-1]),
        targets.reshape(-1),
        where.reshape(-1),
    )
    logps = jax.lax.map(one_token, tokens, batch_size=chunk_size)
    return logps.reshape(targets.shape)


def sequence_logps(logps: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Log-probabilities of sequences: sums over their tokens.

    Args:
      logps: `[..., T]` log-probabilities of tokens.
      where: `[..., T]` true where a token counts.

    Returns:
      `[...]` sums; 0 where no token counts.
    """
    return jnp.sum(as_float(logps), axis=-1, where=where)


def mean_sequence_logps(
    logps: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Length-normalised log-probabilities of sequences: means over their tokens.

    Args:
      logps: `[..., T]` log-probabilities of tokens.
      where: `[..., T]` true where a token counts.

    Returns:
      `[...]` means; 0 where no token counts: as a mean log-prob that would be a
      probability of 1, so leave such responses out.
    """
    where = True if where is None else where
    return masked_mean(as_float(logps), where, axis=-1)


def log_collision(logits: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Log-probability that two draws agree: `log sum_v pi(v)^2`.

    What WPO subtracts from the log-probability of a token, so that a token drawn
    from the policy itself has a weight near 1: Zhou et al., "WPO: Enhancing RLHF
    with Weighted Preference Optimization" (https://arxiv.org/abs/2406.11827).

    Args:
      logits: `[..., T, V]` logits.
      where: `[..., T]` true where a token counts.

    Returns:
      `[..., T]` values in `[-log V, 0]`; 0 where `where` is false.
    """
    logits = hide(as_float(logits), where, axis=-1)
    collisions = jax.nn.logsumexp(2 * jax.nn.log_softmax(logits), axis=-1)
    return hide(collisions, where)
