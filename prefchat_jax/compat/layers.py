"""What all blocks of the reference's network are made of, for NumPy and for JAX.

Arrays of either kind name the functions that fit them (`__array_namespace__`), so
that chat computes the very equations that training differentiates, without JAX.
"""

from typing import Any

import numpy as np

from prefchat_jax import inference

# An array of NumPy or of JAX, and a nested dict of them.
Array = Any
Params = Any

_EPSILON = 1e-5
_FEW_COLUMNS = 48


def namespace(x: Array) -> Any:
    """`numpy` or `jax.numpy`, as the array is."""
    return x.__array_namespace__()


def linear(params: Params, x: Array) -> Array:
    """`x kernel`, and the bias where the layer has one."""
    y = product(x, params["kernel"])
    return y + along(params["bias"], y) if "bias" in params else y


def product(x: Array, kernel: Array) -> Array:
    """`x kernel`; in JAX by `numerics.product`, with fast gradients of few columns."""
    if isinstance(kernel, np.ndarray):
        return x @ kernel
    from prefchat_jax import numerics

    few = kernel.shape[-1] <= _FEW_COLUMNS
    return numerics.product(x, numerics.few_columns(kernel) if few else kernel)


def layer_norm(params: Params, x: Array) -> Array:
    """Zero mean and unit variance along the last axis, scaled; a bias is rare."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    y = centred / namespace(x).sqrt(variance + _EPSILON)
    y = y * along(params["scale"], y)
    return y + along(params["bias"], y) if "bias" in params else y


def scaled_residual(params: Params, x: Array, y: Array) -> Array:
    """`x` and what a block adds, scaled by channel."""
    return x + along(params["layer_scale"], y) * y


def along(values: Array, x: Array) -> Array:
    """Values `[channels]` with the rank of `x`, along its last axis."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


def softmax(x: Array) -> Array:
    """Shares along the last axis."""
    e = namespace(x).exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    """By tanh, which cannot overflow."""
    return 0.5 + 0.5 * namespace(x).tanh(0.5 * x)


def softplus(x: Array) -> Array:
    """`log(1 + e^x)`."""
    xp = namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


def silu(x: Array) -> Array:
    """`x sigmoid(x)`."""
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    """`x Phi(x)`; NumPy has no error function, and takes inference's."""
    if isinstance(x, np.ndarray):
        return inference.gelu(x)
    import jax

    return jax.nn.gelu(x, approximate=False)


def mish(x: Array) -> Array:
    """`x tanh(softplus(x))`, with one exponential; beyond 20 it is `x`."""
    xp = namespace(x)
    e = xp.exp(xp.minimum(x, 20.0))
    n = e * (e + 2)
    return x * (n / (n + 2))


def kth_largest(x: Array, k: int) -> Array:
    """The `k`-th largest along the last axis."""
    if isinstance(x, np.ndarray):
        return np.partition(x, -k, axis=-1)[..., -k]
    from prefchat_jax import numerics

    return numerics.kth_largest(x, k)


def relu(x: Array) -> Array:
    """`max(x, 0)`."""
    return namespace(x).maximum(x, 0)
