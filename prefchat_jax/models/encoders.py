"""Encoders: a bag of hashed features to one vector."""

import jax
import jax.numpy as jnp
from flax import nnx


class BagEncoder(nnx.Module):
    """An embedding bag, a residual MLP, and a final norm.

    Args:
      vocabulary: number of feature ids.
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
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(
            hidden, width, kernel_init=nnx.initializers.zeros, rngs=rngs
        )
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(
        self, ids: jax.Array, weights: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Encodes bags `[batch, features]` to `[batch, width]`; drops with a key."""
        if key is not None and self.feature_dropout > 0:
            weights = _drop(key, weights, self.feature_dropout)
        x = jnp.einsum("bf,bfw->bw", weights, self.table[...][ids])
        x = x + self.down(nnx.silu(self.up(self.up_norm(x))))
        return self.norm(x)


def _drop(key: jax.Array, weights: jax.Array, rate: float) -> jax.Array:
    """Inverted dropout from one random byte an entry: 1/256 is fine enough."""
    threshold = round(256 * (1 - rate))
    kept = jax.random.bits(key, weights.shape, jnp.uint8) < threshold
    return jnp.where(kept, weights * (256 / threshold), 0.0)
