"""What all blocks of the reference's network are made of."""

import jax
import jax.numpy as jnp

from prefchat_jax.models.classifier import Params

_EPSILON = 1e-5


def linear(params: Params, x: jax.Array) -> jax.Array:
    """`x kernel`, and the bias where the layer has one."""
    y = x @ params["kernel"]
    return y + along(params["bias"], y) if "bias" in params else y


def layer_norm(params: Params, x: jax.Array) -> jax.Array:
    """Zero mean and unit variance along the last axis, scaled; a bias is rare."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + _EPSILON)
    y = y * along(params["scale"], y)
    return y + along(params["bias"], y) if "bias" in params else y


def scaled_residual(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """`x` and what a block adds, scaled by channel."""
    return x + along(params["layer_scale"], y) * y


def along(values: jax.Array, x: jax.Array) -> jax.Array:
    """Values `[channels]` with the rank of `x`, along its last axis."""
    return jnp.expand_dims(values, tuple(range(x.ndim - 1)))
