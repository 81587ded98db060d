"""A head on vectors that a frozen encoder made once, before training."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from prefchat_jax.models.classifier import BucketModel, ModelConfig, Params, classifier
from prefchat_jax.models.heads import RoutedHead

_BATCH = 1024  # Rows that are encoded together.


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenEncoder(BucketModel):
    """The final norm and the head of a `ModelConfig`: all that trains of it.

    Its parameters are those of the whole model, or what of them trains; the rest is
    not read. Vectors stand in the place of the weights, and there are no ids.

    Attributes:
      width: size of the vectors.
    """

    width: int

    def init(self, key: jax.Array) -> Params:
        """See `BucketModel`."""
        return nnx.to_pure_dict(nnx.split(_Head(self, rngs=nnx.Rngs(key)))[1])

    def logits(
        self,
        params: Params,
        ids: jax.Array,
        weights: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """See `BucketModel`; nothing is dropped.

        Args:
          params: its parameters.
          ids: `[batch, 0]`, not read.
          weights: `[batch, width]` vectors, from `frozen_vectors`.
          key: not read.
        """
        return self._head(params)(weights)

    def mixture(self, params: Params, ids: jax.Array, weights: jax.Array) -> jax.Array:
        """See `BucketModel`; takes what `logits` takes."""
        head = self._head(params)
        return head.head.mixture(head.encoder.norm(weights))

    def _head(self, params: Params) -> "_Head":
        return nnx.merge(_graphdef(self), trained_params(params))


class _Head(nnx.Module):
    """Named as in `BucketClassifier`, so that its parameters are."""

    def __init__(self, config: FrozenEncoder, *, rngs: nnx.Rngs):
        self.encoder = nnx.Dict(norm=nnx.RMSNorm(config.width, rngs=rngs))
        self.head = RoutedHead(
            config.width, config.branch_widths, config.num_buckets, rngs=rngs
        )

    def __call__(self, vectors: jax.Array) -> jax.Array:
        return self.head(self.encoder.norm(vectors))


def freeze(model: ModelConfig) -> FrozenEncoder:
    """What of a model trains on the vectors of its encoder."""
    return FrozenEncoder(
        num_buckets=model.num_buckets,
        branch_widths=model.branch_widths,
        width=model.width,
    )


def trained_params(params: Params) -> Params:
    """What a `FrozenEncoder` reads of the parameters of the whole model."""
    return {
        "encoder": {"norm": params["encoder"]["norm"]},
        "head": params["head"],
    }


def frozen_vectors(
    model: ModelConfig, params: Params, ids: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Vectors `[n, width]` of bags, before the final norm and without dropout."""
    parts = [
        _vectors(model, params, ids[i : i + _BATCH], weights[i : i + _BATCH])
        for i in range(0, len(ids), _BATCH)
    ]
    return np.concatenate([np.zeros((0, model.width), np.float32), *parts])


@functools.partial(jax.jit, static_argnames="model")
def _vectors(model, params, ids, weights):
    return classifier(model, params).encoder.vectors(ids, weights)


@functools.cache
def _graphdef(config: FrozenEncoder) -> nnx.GraphDef:
    head = nnx.eval_shape(lambda: _Head(config, rngs=nnx.Rngs(0)))
    return nnx.split(head)[0]
