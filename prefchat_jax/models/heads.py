"""Heads: a linear base plus adapter branches that routers mix in stages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from prefchat_jax.models.precision import Linear
from prefchat_jax.numerics import few_columns, product


def mish(x: jax.Array) -> jax.Array:
    """`x tanh(softplus(x))`, Misra (https://arxiv.org/abs/1908.08681).

    With one exponential, a fifth of the time; beyond 20 it is `x` to the last bit.
    """
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2)
    return x * (n / (n + 2))


ACTIVATIONS: tuple[Callable[[jax.Array], jax.Array], ...] = (
    jax.nn.silu,
    lambda x: jax.nn.gelu(x, approximate=False),
    mish,
)


# What the axes of an array are to a larger head: as long, longer, or one place for
# each bucket. By a pattern of the array's path; all others stay as they are.
Axis = Literal["same", "wider", "buckets"]
Axes = Mapping[str, tuple[Axis, ...]]
GROWING_AXES: Axes = {
    r"head\.base\.kernel": ("same", "buckets"),
    r"head\.base\.bias": ("buckets",),
    r"head\.branches\.\d\.up\.kernel": ("same", "wider"),
    r"head\.branches\.\d\.down\.kernel": ("wider", "buckets"),
    r"head\.scales": ("wider",),
}


class Branch(nnx.Module):
    """A wide adapter that starts at zero: only `down` moves at first."""

    def __init__(
        self,
        width: int,
        expansion: int,
        num_buckets: int,
        activation: Callable[[jax.Array], jax.Array],
        *,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.up = Linear(width, expansion, use_bias=False, rngs=rngs)
        self.down = Linear(
            expansion,
            num_buckets,
            use_bias=False,
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps vectors `[batch, width]` to logits `[batch, num_buckets]`."""
        return product(self.activation(self.up(x)), few_columns(self.down.kernel[...]))


class RoutedHead(nnx.Module):
    """Bucket logits from a base layer and `n` branches, mixed in `n` stages.

    `logits = base(x) + sum_i scale_i * sum_{j<=i} softmax(router_i(x))_j branch_j(x)`

    Stage `i` mixes the first `i` branches, so stage 1 needs no router. Scales
    start at one and down-projections at zero: the head starts as its base, the
    first step moves every down-projection, and from then on all parts learn.

    Args:
      width: size of the input vectors.
      widths: hidden units of each branch; empty for the base head.
      num_buckets: number of logits.
      rngs: random streams of the initial parameters.

    Raises:
      ValueError: more branches than there are activations.
    """

    def __init__(
        self, width: int, widths: Sequence[int], num_buckets: int, *, rngs: nnx.Rngs
    ):
        if len(widths) > len(ACTIVATIONS):
            raise ValueError(
                f"A head has at most {len(ACTIVATIONS)} branches, got {len(widths)}."
            )
        small = nnx.initializers.normal(0.01)
        self.base = Linear(width, num_buckets, kernel_init=small, rngs=rngs)
        self.branches = nnx.List(
            [
                Branch(width, expansion, num_buckets, activation, rngs=rngs)
                for expansion, activation in zip(widths, ACTIVATIONS, strict=False)
            ]
        )
        self.routers = nnx.List(
            [
                Linear(width, stage, kernel_init=nnx.initializers.zeros, rngs=rngs)
                for stage in range(2, len(widths) + 1)
            ]
        )
        # A base head has no scales: orbax cannot save an array of size zero.
        self.scales = nnx.Param(jnp.ones(len(widths))) if widths else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps vectors `[batch, width]` to logits `[batch, num_buckets]`."""
        logits = self.base(x)
        if not self.branches:
            return logits
        outputs = jnp.stack([branch(x) for branch in self.branches], axis=-2)
        return logits + jnp.einsum("bj,bjc->bc", self.mixture(x), outputs)

    def mixture(self, x: jax.Array) -> jax.Array:
        """The total weight of every branch, `[batch, n]`, scales included."""
        assert self.scales is not None, "A base head mixes nothing."
        first = jnp.zeros((*x.shape[:-1], len(self.branches))).at[..., 0].set(1.0)
        total = self.scales[0] * first
        for stage, router in enumerate(self.routers, start=2):
            shares = jax.nn.softmax(router(x))
            total = total.at[..., :stage].add(self.scales[stage - 1] * shares)
        return total
