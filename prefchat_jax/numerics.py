"""Dtypes, masks and log-space functions that every loss shares."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def as_float(values: ArrayLike) -> jax.Array:
    """Converts to float32, or keeps float64: losses never compute in 16 bits."""
    values = jnp.asarray(values)
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)


def hide(
    values: jax.Array, where: ArrayLike | None, *, axis: int | tuple[int, ...] = ()
) -> jax.Array:
    """Zeroes what does not count, so that a NaN there reaches no gradient.

    Args:
      values: any array.
      where: true where values count; None is everywhere.
      axis: axes of `values` that `where` lacks.
    """
    if where is None:
        return values
    where = jnp.expand_dims(jnp.asarray(where, bool), axis)
    return jnp.where(where, values, jnp.zeros_like(values))


def masked_loss(
    loss: Callable[..., jax.Array], where: ArrayLike | None, *values: jax.Array
) -> jax.Array:
    """Takes `loss` of `values` where `where` is true, and 0 elsewhere.

    What does not count is hidden before the loss and dropped after it: a NaN
    there reaches neither the losses nor a gradient.
    """
    return hide(loss(*(hide(value, where) for value in values)), where)


def masked_mean(
    values: jax.Array, where: ArrayLike | None = None, *, axis: int | None = None
) -> jax.Array:
    """Means `values` where `where` is true; nothing to mean gives 0, not NaN."""
    if where is None:
        return jnp.mean(values, axis=axis)
    where = jnp.asarray(where, bool)
    total = jnp.sum(values, axis=axis, where=where)
    count = jnp.sum(jnp.ones_like(values), axis=axis, where=where)
    return total / jnp.maximum(count, 1)


def bounded_expm1(x: jax.Array) -> jax.Array:
    """`exp(x) - 1`, which goes on as a straight line where `exp` would overflow.

    A loss that is 0 out there keeps a gradient of 0, and not 0 times infinity.
    """
    limit = 700.0 if x.dtype == jnp.float64 else 60.0
    inside = jnp.expm1(jnp.minimum(x, limit))
    return jnp.where(x <= limit, inside, inside + jnp.exp(limit) * (x - limit))


@jax.custom_jvp
def log1mexp(x: jax.Array) -> jax.Array:
    """`log(1 - exp(x))` for `x <= 0`, exact at both ends, with its exact gradient.

    An x above 0 is a rounding error and counts as 0. Mächler, "Accurately
    Computing log(1 - exp(-|a|))" (2012), switches at -log 2.
    """
    x = jnp.minimum(x, 0.0)
    near_zero = x > -jnp.log(2.0)
    return jnp.where(near_zero, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


@log1mexp.defjvp
def _log1mexp_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    # Differentiated, either branch is NaN where the other one is taken.
    return log1mexp(x), -dx / jnp.expm1(-x)
