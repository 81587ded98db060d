"""Mixed precision: matrix products of 16 bits in a model that is otherwise float32.

As of Micikevicius et al. (https://arxiv.org/abs/1710.03740), without their scaling of
the loss: bfloat16 has the range of float32.
"""

from typing import Any

import jax
from flax import nnx

from prefchat_jax.numerics import product


class Linear(nnx.Linear):
    """Flax's, by `product`: it computes in the dtype that its kernel has."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps vectors `[batch, in]` to `[batch, out]`."""
        y = product(inputs, self.kernel[...])
        return y if self.bias is None else y + self.bias[...][None]


def lowered(dtype: str | None, params: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
    """Parameters and inputs such that a model computes its products in `dtype`.

    Kernels are cast, and their gradients back. A table stays, of which a step reads
    few rows: encoders cast those to the dtype of the inputs. All else, norms among it,
    stays as it is.

    Args:
      dtype: the name of a type of float; None changes nothing.
      params: a nested dict of arrays.
      inputs: weights of features, or vectors.
    """
    if dtype is None:
        return params, inputs
    cast = lambda path, x: x.astype(dtype) if path[-1].key == "kernel" else x
    return jax.tree.map_with_path(cast, params), inputs.astype(dtype)
