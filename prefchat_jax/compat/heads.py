"""The reference's heads: large, xlarge and xxlarge are one, base has more parts."""

import jax
import jax.numpy as jnp

from prefchat_jax.compat.layers import layer_norm, linear
from prefchat_jax.models.classifier import Params
from prefchat_jax.models.heads import ACTIVATIONS

_DROPOUT = 0.1
_ACTIVATIONS = (*ACTIVATIONS, jax.nn.relu)


def head_logits(
    params: Params, x: jax.Array, *, key: jax.Array | None = None
) -> jax.Array:
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
    without_router = len(outputs) - len(params.get("routers", {}))
    for stage, scale in enumerate(params["scales"]):
        if stage < without_router:
            mixed = outputs[stage]
        else:
            shares = jax.nn.softmax(
                linear(params["routers"][stage - without_router], x)
            )
            mixed = sum(
                (shares[..., j, None] * outputs[j] for j in range(stage + 1)), 0.0
            )
        logits = logits + scale * mixed
    if "domains" in params:
        logits = logits + _reference_base(params, x, key)
    return logits


def _reference_base(params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """Domain experts, a calibration and a reasoning gate, each with its scale."""
    h = layer_norm(params["pre_norm"], x)
    domains = params["domains"]
    experts = linear(
        domains["experts"], _dropped(jax.nn.silu(h), key, len(_ACTIVATIONS))
    )
    shares = jax.nn.softmax(linear(domains["router"], h))
    experts = experts.reshape(*shares.shape, -1)
    by_domain = jnp.einsum("...k,...kc->...c", shares, experts)
    calibration = jnp.tanh(linear(params["calibration"], h))
    reasoning = params["reasoning"]
    thought = jnp.tanh(
        linear(reasoning["up"], jax.nn.silu(linear(reasoning["down"], x)))
    )
    return (
        domains["scale"] * by_domain
        + params["calibration"]["scale"] * calibration
        + reasoning["scale"] * thought
    )


def _dropped(x: jax.Array, key: jax.Array | None, number: int) -> jax.Array:
    if key is None:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - _DROPOUT, x.shape)
    return jnp.where(kept, x / (1 - _DROPOUT), 0)
