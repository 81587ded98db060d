"""Dtypes, bits, masks and log-space functions that losses and models share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def as_float(values: ArrayLike) -> jax.Array:
    """Converts to float32, or keeps float64: losses never compute in 16 bits."""
    values = jnp.asarray(values)
    return values if values.dtype == jnp.float64 else values.astype(jnp.float32)


def ordered_bits(values: jax.Array) -> jax.Array:
    """Signed integers in the order of the floats: they compare faster."""
    info = jnp.iinfo(f"int{8 * values.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(values, info.dtype)
    return jnp.where(bits < 0, bits ^ info.max, bits)


def random_words(seeds: jax.Array, number: int) -> jax.Array:
    """`[number, ...]` random words of each seed: SplitMix, of 32 bits.

    Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators" (OOPSLA
    2014), with the constants of Wellons' `lowbias32`
    (https://github.com/skeeto/hash-prospector). One word of JAX's own generator costs
    as much as ten of these.
    """
    numbers = jax.lax.broadcasted_iota(jnp.uint32, (number, *seeds.shape), 0)
    words = seeds[None] + (numbers + 1) * jnp.uint32(0x9E3779B9)
    words = (words ^ (words >> 16)) * jnp.uint32(0x7FEB352D)
    words = (words ^ (words >> 15)) * jnp.uint32(0x846CA68B)
    return words ^ (words >> 16)


def kth_largest(values: jax.Array, k: int) -> jax.Array:
    """The `k`-th largest along the last axis, without a sort.

    Bit by bit, the largest integer that at least `k` values reach: 32 passes over
    whole vectors, where sorting 128 rows of 256 takes 20 times as long on a CPU.
    """
    bits = ordered_bits(jnp.moveaxis(values, -1, 0))
    bits = jax.lax.optimization_barrier(bits)  # Else each pass lays them out anew.
    reached = lambda least: jnp.sum(bits >= least[None], 0, dtype=jnp.int32) >= k
    info = jnp.iinfo(bits.dtype)

    def step(number, found):
        least = found + (jnp.ones((), bits.dtype) << (info.bits - 2 - number))
        return jnp.where(reached(least), least, found)

    zeros = jnp.zeros_like(bits[0])
    found = jnp.where(reached(zeros), zeros, info.min)
    found = jax.lax.fori_loop(0, info.bits - 1, step, found)
    # The same mapping leads back.
    found = jnp.where(found < 0, found ^ info.max, found)
    return jax.lax.bitcast_convert_type(found, values.dtype)


def few_columns(kernel: jax.Array) -> jax.Array:
    """The kernel `[in, few]` as it is; its gradient is computed as `[few, in]`.

    On a CPU the other way takes XLA 2 to 14 times as long: 0.83 ms for 128 rows,
    3072 inputs and 10 columns, and this 0.06.
    """
    return jax.lax.optimization_barrier(kernel.T).T


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x kernel`, of `[..., in]` and `[in, out]`, in the dtype that the kernel has.

    A kernel of 16 bits is multiplied as such, forward and backward, and its sums are
    float32: processors and accelerators have instructions for just that, where XLA's
    CPU computes a product that gives 16 bits in float32.
    """
    return x @ kernel if kernel.dtype.itemsize > 2 else _low_product(x, kernel)


@jax.custom_vjp
def _low_product(x, kernel):
    low = x.astype(kernel.dtype)
    return jnp.matmul(low, kernel, preferred_element_type=jnp.float32)


def _low_product_fwd(x, kernel):
    low = x.astype(kernel.dtype)
    # An empty array tells the backward pass the dtype of `x`.
    return _low_product(low, kernel), (low, kernel, jnp.zeros(0, x.dtype))


def _low_product_bwd(saved, gradient):
    low, kernel, like = saved
    gradient = gradient.astype(kernel.dtype)
    # Laid out before the product, of which XLA's CPU else makes one of float32.
    laid = jax.lax.optimization_barrier
    of_x = jnp.matmul(gradient, laid(kernel.T), preferred_element_type=jnp.float32)
    flat = low.reshape(-1, low.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    of_kernel = jnp.matmul(laid(flat[0].T), flat[1], preferred_element_type=jnp.float32)
    return of_x.astype(like.dtype), of_kernel.astype(kernel.dtype)


_low_product.defvjp(_low_product_fwd, _low_product_bwd)


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
