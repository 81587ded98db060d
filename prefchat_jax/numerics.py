"""Dtypes and masked reductions that every loss shares."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def as_float(values: ArrayLike) -> jax.Array:
    """Converts to float32, or keeps float64: losses never compute in 16 bits."""
    values = jnp.asarray(values)
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)


def masked_mean(
    values: jax.Array, where: ArrayLike | None = None, *, axis: int | None = None
) -> jax.Array:
    """Means `values` where `where` is true; nothing to mean gives 0, not NaN."""
    if where is None:
        return jnp.mean(values, axis=axis)
    total = jnp.sum(values, axis=axis, where=where)
    count = jnp.sum(jnp.broadcast_to(where, values.shape), axis=axis)
    return total / jnp.maximum(count, 1)
