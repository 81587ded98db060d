"""The reference's heads: large, xlarge and xxlarge are one, base has more parts."""

from prefchat_jax.compat.layers import (
    Array,
    Params,
    gelu,
    layer_norm,
    linear,
    mish,
    namespace,
    relu,
    silu,
    softmax,
)

_DROPOUT = 0.1
_ACTIVATIONS = (silu, gelu, mish, relu)  # Of the branches, in order.


def head_logits(params: Params, x: Array, *, key: Array | None = None) -> Array:
    """Logits `[..., buckets]` of vectors `[..., 256]`, before the norm over them.

    `base(x) + sum_i scale_i * sum_{j<=i} share_ij branch_j(x)`, where the shares of
    stage `i` are a softmax of its router. `models.heads.RoutedHead` computes the
    same: its first stage has one branch and no router. The routers of the
    reference's base head count one branch more than they mix, so that its shares
    sum to less than one, and it adds the parts of `_reference_base`.

    Args:
      params: the head's part of `compat.tensors.to_params`.
      x: vectors.
      key: a random key turns dropout on (training).
    """
    logits = linear(params["base"], x)
    outputs = [
        linear(branch["down"], _dropped(act(linear(branch["up"], x)), key, number))
        for number, (branch, act) in enumerate(
            zip(params["branches"].values(), _ACTIVATIONS, strict=False)
        )
    ]
    xp, weights = namespace(x), branch_mixture(params, x)
    logits = logits + xp.einsum("...n,...nc->...c", weights, xp.stack(outputs, axis=-2))
    if "domains" in params:
        logits = logits + _reference_base(params, x, key)
    return logits


def branch_mixture(params: Params, x: Array) -> Array:
    """The total weight `[..., n]` of each branch, scales included."""
    xp, count = namespace(x), len(params["branches"])
    without_router = count - len(params.get("routers", {}))
    total = xp.zeros_like(x[..., :count])
    for stage in range(count):
        if stage < without_router:
            first, shares = stage, xp.ones_like(x[..., :1])
        else:
            router = params["routers"][stage - without_router]
            first, shares = 0, softmax(linear(router, x))[..., : stage + 1]
        rest = count - first - shares.shape[-1]
        around = [(0, 0)] * (x.ndim - 1) + [(first, rest)]
        total = total + params["scales"][stage] * xp.pad(shares, around)
    return total


def _reference_base(params: Params, x: Array, key: Array | None) -> Array:
    """Domain experts, a calibration and a reasoning gate, each with its scale."""
    xp = namespace(x)
    h = layer_norm(params["pre_norm"], x)
    domains = params["domains"]
    dropped = _dropped(silu(h), key, len(_ACTIVATIONS))
    experts = xp.einsum("...i,ikc->...kc", dropped, domains["experts"]["kernel"])
    shares = softmax(linear(domains["router"], h))
    by_domain = xp.einsum("...k,...kc->...c", shares, experts)
    calibration = xp.tanh(linear(params["calibration"], h))
    reasoning = params["reasoning"]
    thought = xp.tanh(linear(reasoning["up"], silu(linear(reasoning["down"], x))))
    return (
        domains["scale"] * by_domain
        + params["calibration"]["scale"] * calibration
        + reasoning["scale"] * thought
    )


def _dropped(x: Array, key: Array | None, number: int) -> Array:
    if key is None:
        return x
    import jax
    import jax.numpy as jnp

    from prefchat_jax.numerics import random_words

    seeds = jax.random.bits(jax.random.fold_in(key, number), x.shape[:-1], jnp.uint32)
    words = jnp.moveaxis(random_words(seeds, x.shape[-1]), 0, -1)
    return jnp.where(words >= round(_DROPOUT * 2**32), x / (1 - _DROPOUT), 0)
