"""The reference's network: ten blocks, a head, and a norm over the logits.

Pure functions of plain-dict parameters, as `compat/tensors.py` maps them; a kernel
is `[in, out]`. The reference feeds one vector per message, a sequence of one step.
Then the three blocks that mix steps collapse: attention returns its values, and the
state-space recurrence, which starts from zero, returns `u (D + dt (B . C))`, with a
single tap left of each convolution. `logits` takes that path by itself.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from prefchat_jax.compat.heads import head_logits
from prefchat_jax.compat.layers import along, layer_norm, linear, scaled_residual
from prefchat_jax.models.classifier import Params

WIDTH = 256
STATE = 16  # Numbers that each channel of the state-space block remembers.
NUM_EXPERTS = 4  # And as many chunks of the width, each read by every expert.

_HEAD_WIDTH = 32  # Of every attention.
_KEPT_LARGEST = 32
_KEPT_SALIENT = round(0.8 * WIDTH)

# The part of a block that mixes the steps of a sequence.
_Mixer = Callable[..., jax.Array]


class Mixers(NamedTuple):
    """How the steps `[batch, time, ...]` of a sequence are mixed.

    Attributes:
      attend: `(query, key, value)`, each `[batch, time, heads, width]`.
      scan: `(params, u, dt, b, c)` to `[batch, time, channels]`; see `scan_states`.
      causal: a depth-wise convolution over the past.
      centred: a depth-wise convolution over both sides.
    """

    attend: _Mixer
    scan: _Mixer
    causal: _Mixer
    centred: _Mixer


def logits(
    params: Params,
    x: jax.Array,
    *,
    key: jax.Array | None = None,
    mixers: Mixers | None = None,
) -> jax.Array:
    """Logits `[batch, time, buckets]` of features `[batch, time, 128]`.

    Args:
      params: from `compat.tensors.to_params`.
      x: features.
      key: a random key turns the head's dropout on (training).
      mixers: `GENERAL` or `ONE_STEP`; what the length of `x` allows if None.
    """
    *_, encoded = blocks(params["encoder"], x, mixers)
    found = head_logits(params["head"], encoded, key=key)
    return layer_norm(params["head"]["norm"], found)


def blocks(
    params: Params, x: jax.Array, mixers: Mixers | None = None
) -> Iterator[jax.Array]:
    """The output `[batch, time, 256]` of each of the ten blocks in turn."""
    if mixers is None:
        mixers = ONE_STEP if x.shape[-2] == 1 else GENERAL
    yield (x := linear(params["input"], x))
    yield (x := layer_norm(params["input_norm"], x))
    yield (x := jax.nn.silu(x))
    yield (x := low_rank_attention(params["attention"], x, mixers))
    yield (x := state_space(params["state_space"], x, mixers))
    yield (x := keep_largest(params["largest"], x))
    yield (x := keep_salient(params["salient"], x))
    yield (x := reversible(params["reversible"], x))
    yield (x := expert_attention(params["experts"], x, mixers))
    yield layer_norm(params["plain"]["norm"], x) @ params["plain"]["kernel"]


def low_rank_attention(params: Params, x: jax.Array, mixers: Mixers) -> jax.Array:
    """Eight heads over all steps, whose projections go through fewer units."""
    u = layer_norm(params["norm"], x)
    query = linear(params["query_up"], linear(params["query_down"], u))
    shared = linear(params["shared"], u)
    key, value = linear(params["key"], shared), linear(params["value"], shared)
    mixed = mixers.attend(_heads(query), _heads(key), _heads(value))
    return scaled_residual(params, x, linear(params["out"], mixed.reshape(x.shape)))


def state_space(params: Params, x: jax.Array, mixers: Mixers) -> jax.Array:
    """A selective state space between two depth-wise convolutions."""
    inner = linear(params["in"], layer_norm(params["norm"], x))
    a, gate = jnp.split(inner, 2, axis=-1)
    before = params["before"]
    c = mixers.causal(before["kernel"], a) + along(before["bias"], a)
    u = c * jax.nn.sigmoid(gate)
    step, enters, leaves = jnp.split(
        linear(params["select"], u), [1, 1 + STATE], axis=-1
    )
    dt = jax.nn.softplus(linear(params["step"], step))
    y = (
        mixers.scan(params["decay"], u, dt, enters, leaves)
        + along(params["skip"], u) * u
    )
    y = mixers.centred(params["after"]["kernel"], linear(params["out"], y))
    return scaled_residual(params, x, y)


def keep_largest(params: Params, x: jax.Array) -> jax.Array:
    """Adds the 32 normed numbers of largest size."""
    u = layer_norm(params["norm"], x)
    kept = _largest(jnp.abs(u), _KEPT_LARGEST)
    return scaled_residual(params, x, jnp.where(kept, u, 0))


def keep_salient(params: Params, x: jax.Array) -> jax.Array:
    """Adds the 205 normed numbers that a small network finds most salient.

    Which are kept has no gradient, so the small network never trains.
    """
    u = layer_norm(params["norm"], x)
    # The reference ranks a sigmoid of these, which has the same order.
    salience = linear(params["up"], jax.nn.silu(linear(params["down"], u)))
    kept = _largest(salience, _KEPT_SALIENT)
    return scaled_residual(params, x, jnp.where(kept, u, 0))


def reversible(params: Params, x: jax.Array) -> jax.Array:
    """Each half is moved by a linear map of the other."""
    first, second = jnp.split(x, 2, axis=-1)
    f, g = params["f"], params["g"]
    first = first + layer_norm(f["norm"], second) @ f["kernel"]
    second = second + layer_norm(g["norm"], first) @ g["kernel"]
    return jnp.concatenate([first, second], axis=-1)


def expert_attention(params: Params, x: jax.Array, mixers: Mixers) -> jax.Array:
    """Every chunk of the width goes through all experts, mixed by a gate."""
    u = layer_norm(params["norm"], x)
    gate = jax.nn.softmax(linear(params["router"], u))
    chunks = u.reshape(*u.shape[:-1], NUM_EXPERTS, -1)
    mixed = jnp.zeros_like(chunks)
    for number, expert in params["experts"].items():
        query, key, value = map(
            _heads, jnp.split(linear(expert["qkv"], chunks), 3, axis=-1)
        )
        # [batch, time, chunk, heads, width]: the heads of all chunks at once.
        flat = lambda part: part.reshape(*u.shape[:-1], -1, _HEAD_WIDTH)
        attended = mixers.attend(flat(query), flat(key), flat(value))
        out = linear(expert["out"], attended.reshape(chunks.shape))
        mixed = mixed + gate[..., number, None, None] * out
    return x + linear(params["out"], mixed.reshape(x.shape))


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

ONE_STEP = Mixers(
    lambda query, key, value: value,
    lambda decay, u, dt, b, c: dt * u * jnp.sum(b * c, axis=-1, keepdims=True),
    lambda kernel, x: along(kernel[-1], x) * x,
    lambda kernel, x: along(kernel[len(kernel) // 2], x) * x,
)


def _heads(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], -1, _HEAD_WIDTH)


def _largest(x: jax.Array, count: int) -> jax.Array:
    """Where the `count` largest of the last axis are."""
    return x >= jnp.sort(x, axis=-1)[..., -count, None]
