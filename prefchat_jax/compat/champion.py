"""The reference's network: ten blocks, a head, and a norm over the logits.

Pure functions of plain-dict parameters, as `compat/tensors.py` maps them, for arrays
of NumPy and of JAX; a kernel is `[in, out]`. The reference feeds one vector per
message, a sequence of one step. Then the three blocks that mix steps collapse:
attention returns its values, and the state-space recurrence, which starts from zero,
returns `u (D + dt (B . C))`, with a single tap left of each convolution. `logits`
takes that path by itself; `compat/sequence.py` has the general one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from prefchat_jax.compat.heads import branch_mixture, head_logits
from prefchat_jax.compat.layers import (
    Array,
    Params,
    along,
    kth_largest,
    layer_norm,
    linear,
    namespace,
    product,
    scaled_residual,
    sigmoid,
    silu,
    softmax,
    softplus,
)
from prefchat_jax.text.bags import Bags

STATE = 16  # Numbers that each channel of the state-space block remembers.
NUM_EXPERTS = 4  # And as many chunks of the width, each read by every expert.

_HEAD_WIDTH = 32  # Of every attention.
_KEPT_LARGEST = 32
_KEPT_SALIENT = 205  # Of 256.

# The part of a block that mixes the steps of a sequence.
_Mixer = Callable[..., Array]


class Mixers(NamedTuple):
    """How the steps `[batch, time, ...]` of a sequence are mixed.

    Attributes:
      attend: `(query, key, value)`, each `[batch, time, heads, width]`.
      scan: `(decay, u, dt, b, c)` to `[batch, time, channels]`; see
        `compat.sequence.scan_states`.
      causal: a depth-wise convolution over the past.
      centred: a depth-wise convolution over both sides.
    """

    attend: _Mixer
    scan: _Mixer
    causal: _Mixer
    centred: _Mixer


def logits(
    params: Params,
    x: Array,
    *,
    key: Array | None = None,
    mixers: Mixers | None = None,
) -> Array:
    """Logits `[batch, buckets]` of features `[batch, 128]`, one step each.

    Args:
      params: from `compat.tensors.to_params`.
      x: features; `[batch, time, 128]`, of sequences, give `[batch, time, buckets]`.
      key: a random key turns the head's dropout on (training).
      mixers: `compat.sequence.GENERAL` for sequences; None for one step each.

    Raises:
      ValueError: there is more than one step, and no mixers for it.
    """
    *_, encoded = blocks(params["encoder"], x, mixers)
    found = head_logits(params["head"], encoded, key=key)
    return layer_norm(params["head"]["norm"], found)


def mixture(params: Params, x: Array) -> Array:
    """What each branch of the head is multiplied by, `[batch, n]`; see `logits`."""
    *_, encoded = blocks(params["encoder"], x)
    return branch_mixture(params["head"], encoded)


def classify(params: Params, bags: Bags) -> Array:
    """Logits `[n, buckets]` in NumPy, of all 128 features of each of `n` bags."""
    return logits(params, bags.weights)


def blocks(params: Params, x: Array, mixers: Mixers | None = None) -> Iterator[Array]:
    """The output `[batch, 256]` of each of the ten blocks in turn; see `logits`."""
    if mixers is None:
        if x.ndim > 2 and x.shape[-2] > 1:
            raise ValueError("Sequences need the mixers of compat.sequence.")
        mixers = ONE_STEP
    yield (x := linear(params["input"], x))
    yield (x := layer_norm(params["input_norm"], x))
    yield (x := silu(x))
    yield (x := low_rank_attention(params["attention"], x, mixers))
    yield (x := state_space(params["state_space"], x, mixers))
    yield (x := keep_largest(params["largest"], x))
    yield (x := keep_salient(params["salient"], x))
    yield (x := reversible(params["reversible"], x))
    yield (x := expert_attention(params["experts"], x, mixers))
    yield product(layer_norm(params["plain"]["norm"], x), params["plain"]["kernel"])


def low_rank_attention(params: Params, x: Array, mixers: Mixers) -> Array:
    """Eight heads over all steps, whose projections go through fewer units."""
    u = layer_norm(params["norm"], x)
    query = linear(params["query_up"], linear(params["query_down"], u))
    shared = linear(params["shared"], u)
    key, value = linear(params["key"], shared), linear(params["value"], shared)
    mixed = mixers.attend(_heads(query), _heads(key), _heads(value))
    return scaled_residual(params, x, linear(params["out"], mixed.reshape(x.shape)))


def state_space(params: Params, x: Array, mixers: Mixers) -> Array:
    """A selective state space between two depth-wise convolutions."""
    inner = linear(params["in"], layer_norm(params["norm"], x))
    a, gate = namespace(x).split(inner, 2, axis=-1)
    before = params["before"]
    c = mixers.causal(before["kernel"], a) + along(before["bias"], a)
    u = c * sigmoid(gate)
    step, enters, leaves = namespace(x).split(
        linear(params["select"], u), [1, 1 + STATE], axis=-1
    )
    dt = softplus(linear(params["step"], step))
    y = (
        mixers.scan(params["decay"], u, dt, enters, leaves)
        + along(params["skip"], u) * u
    )
    y = mixers.centred(params["after"]["kernel"], linear(params["out"], y))
    return scaled_residual(params, x, y)


def keep_largest(params: Params, x: Array) -> Array:
    """Adds the 32 normed numbers of largest size."""
    u = layer_norm(params["norm"], x)
    kept = _largest(abs(u), _KEPT_LARGEST)
    return scaled_residual(params, x, u * kept)


def keep_salient(params: Params, x: Array) -> Array:
    """Adds the 205 normed numbers that a small network finds most salient.

    Which are kept has no gradient, so the small network never trains.
    """
    u = layer_norm(params["norm"], x)
    # The reference ranks a sigmoid of these, which has the same order.
    salience = linear(params["up"], silu(linear(params["down"], u)))
    kept = _largest(salience, _KEPT_SALIENT)
    return scaled_residual(params, x, u * kept)


def reversible(params: Params, x: Array) -> Array:
    """Each half is moved by a linear map of the other."""
    first, second = namespace(x).split(x, 2, axis=-1)
    f, g = params["f"], params["g"]
    first = first + product(layer_norm(f["norm"], second), f["kernel"])
    second = second + product(layer_norm(g["norm"], first), g["kernel"])
    return namespace(x).concatenate([first, second], axis=-1)


def expert_attention(params: Params, x: Array, mixers: Mixers) -> Array:
    """Every chunk of the width goes through all experts, mixed by a gate."""
    u = layer_norm(params["norm"], x)
    gate = softmax(linear(params["router"], u))
    chunks = u.reshape(*u.shape[:-1], NUM_EXPERTS, -1)
    mixed = namespace(x).zeros_like(chunks)
    for number, expert in params["experts"].items():
        # Three products: attention over one step needs the last alone.
        kernels = namespace(x).split(expert["qkv"]["kernel"], 3, axis=-1)
        query, key, value = (_heads(product(chunks, kernel)) for kernel in kernels)
        # [batch, time, chunk, heads, width]: the heads of all chunks at once.
        flat = lambda part: part.reshape(*u.shape[:-1], -1, _HEAD_WIDTH)
        attended = mixers.attend(flat(query), flat(key), flat(value))
        out = linear(expert["out"], attended.reshape(chunks.shape))
        mixed = mixed + gate[..., number, None, None] * out
    return x + linear(params["out"], mixed.reshape(x.shape))


ONE_STEP = Mixers(
    lambda query, key, value: value,
    lambda decay, u, dt, b, c: dt * u * (b * c).sum(axis=-1, keepdims=True),
    lambda kernel, x: along(kernel[-1], x) * x,
    lambda kernel, x: along(kernel[len(kernel) // 2], x) * x,
)


def _heads(x: Array) -> Array:
    return x.reshape(*x.shape[:-1], -1, _HEAD_WIDTH)


def _largest(x: Array, count: int) -> Array:
    """Where the `count` largest of the last axis are."""
    return x >= kth_largest(x, count)[..., None]
