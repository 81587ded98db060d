"""The reference's network over sequences of several steps: what mixes the steps.

Its own system never has more than one; checkpoints are checked with more. JAX.
"""

import jax
import jax.numpy as jnp

from prefchat_jax.compat.champion import Mixers


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention over all steps, `[batch, time, heads, width]` to the same."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


def scan_states(
    decay: jax.Array, u: jax.Array, dt: jax.Array, b: jax.Array, c: jax.Array
) -> jax.Array:
    """`S_t = exp(dt_t A) S_{t-1} + dt_t u_t B_t`, read by `y_t = S_t . C_t`.

    Args:
      decay: `A`, `[channels, states]`, as it is: the reference negates nothing.
      u: inputs, `[batch, time, channels]`.
      dt: step sizes of the same shape.
      b: how an input enters each state, `[batch, time, states]`.
      c: how each state is read, of the same shape.
    """

    def step(state, now):
        u, dt, b, c = now
        state = state * jnp.exp(dt[..., None] * decay[None])
        state = state + (dt * u)[..., None] * b[..., None, :]
        return state, jnp.einsum("bcn,bn->bc", state, c)

    start = jnp.zeros((u.shape[0], *decay.shape), u.dtype)
    time_first = [jnp.moveaxis(part, 1, 0) for part in (u, dt, b, c)]
    return jnp.moveaxis(jax.lax.scan(step, start, time_first)[1], 0, 1)


def convolve(kernel: jax.Array, x: jax.Array, *, past: int) -> jax.Array:
    """A depth-wise convolution `[taps, channels]` whose window starts `past` before."""
    padded = jnp.pad(x, ((0, 0), (past, len(kernel) - 1 - past), (0, 0)))
    windows = jnp.stack([padded[:, j : j + x.shape[1]] for j in range(len(kernel))])
    return jnp.einsum("kc,kbtc->btc", kernel, windows)


GENERAL = Mixers(
    attend,
    scan_states,
    lambda kernel, x: convolve(kernel, x, past=len(kernel) - 1),
    lambda kernel, x: convolve(kernel, x, past=len(kernel) // 2),
)
