"""Encoders: a bag of hashed features to one vector."""

import jax
import jax.numpy as jnp
from flax import nnx

from prefchat_jax.models.precision import Linear
from prefchat_jax.numerics import random_words


class BagEncoder(nnx.Module):
    """An embedding bag, a residual MLP, and a final norm.

    Args:
      vocabulary: number of embeddings.
      width: size of the vectors.
      hidden: hidden units of the residual MLP.
      feature_dropout: share of the features of a bag that a training step
        ignores. The strongest regulariser of a sparse bag.
      rngs: random streams of the initial parameters.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        hidden: int,
        feature_dropout: float,
        rngs: nnx.Rngs,
    ):
        self.feature_dropout = feature_dropout
        # Small rows: what a rare feature adds is then mostly learned.
        table = 0.1 * jax.random.normal(rngs.params(), (vocabulary, width))
        self.table = nnx.Param(table)
        self.up_norm = nnx.RMSNorm(width, use_scale=False, rngs=rngs)
        self.up = Linear(width, hidden, rngs=rngs)
        self.down = Linear(hidden, width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(
        self, ids: jax.Array, weights: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Encodes bags `[batch, features]` to `[batch, width]`; drops with a key."""
        return self.norm(self.vectors(ids, weights, key=key))

    def vectors(
        self, ids: jax.Array, weights: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """The same before the final norm."""
        if key is not None and self.feature_dropout > 0:
            ids, weights = sample_features(key, ids, weights, self.feature_dropout)
        x = bag_sums(self.table[...], ids, weights)
        return x + self.down(nnx.silu(self.up(self.up_norm(x))))


def bag_sums(table: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sums `[batch, width]` of rows; those are cast to the weights' dtype."""
    rows = table[ids].astype(weights.dtype)
    return jnp.einsum("bf,bfw->bw", weights, rows, preferred_element_type=table.dtype)


def sample_features(
    key: jax.Array, ids: jax.Array, weights: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
    """Inverted dropout that gathers only what it keeps.

    One random set of columns, shifted at random for each row, is kept: with a
    high rate this costs a fraction of masking, which gathers every feature.
    """
    rows, length = ids.shape
    kept = max(1, round(length * (1 - rate)))
    # One word a row, and one for all: more of JAX's own would cost as much as the rest.
    seeds = jax.random.bits(key, (rows + 1,), jnp.uint32)
    columns = jax.lax.top_k(random_words(seeds[0], length), kept)[1]
    shifts = jax.lax.mulhi(seeds[1:], jnp.uint32(length)).astype(jnp.int32)
    places = (columns[None, :] + shifts[:, None]) % length
    take = lambda x: jnp.take_along_axis(x, places, axis=-1)
    return take(ids), take(weights) * (length / kept)
