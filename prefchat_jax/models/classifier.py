"""The bucket classifier as pure functions of plain-dict parameters."""

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx

from prefchat_jax.models.encoders import BagEncoder
from prefchat_jax.models.heads import RoutedHead

# A nested dict of arrays. `Any`, because JAX types its trees loosely.
Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a bucket classifier. Hashable: a static argument of jit."""

    num_buckets: int
    vocabulary: int
    branch_widths: tuple[int, ...]
    width: int = 64
    hidden: int = 128
    feature_dropout: float = 0.7


class BucketClassifier(nnx.Module):
    """An encoder and a head."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder = BagEncoder(
            config.vocabulary,
            config.width,
            hidden=config.hidden,
            feature_dropout=config.feature_dropout,
            rngs=rngs,
        )
        self.head = RoutedHead(
            config.width, config.branch_widths, config.num_buckets, rngs=rngs
        )

    def __call__(
        self, ids: jax.Array, weights: jax.Array, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Maps bags `[batch, features]` to logits `[batch, num_buckets]`."""
        return self.head(self.encoder(ids, weights, key=key))


@functools.partial(jax.jit, static_argnames="config")
def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Draws initial parameters as a plain nested dict of arrays."""
    model = BucketClassifier(config, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.split(model)[1])


def bucket_logits(
    config: ModelConfig,
    params: Params,
    ids: jax.Array,
    weights: jax.Array,
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """Logits `[batch, num_buckets]` of feature bags `[batch, features]`.

    Args:
      config: the shape of the model.
      params: its parameters, from `init_params` or a checkpoint.
      ids: integer feature ids.
      weights: feature weights; 0 for padding.
      key: a random key turns feature dropout on (training).
    """
    return nnx.merge(_graphdef(config), params)(ids, weights, key=key)


def branch_mixture(
    config: ModelConfig, params: Params, ids: jax.Array, weights: jax.Array
) -> jax.Array:
    """What each branch is multiplied by, `[batch, n]`; see `RoutedHead.mixture`."""
    model = nnx.merge(_graphdef(config), params)
    return model.head.mixture(model.encoder(ids, weights))


def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of the parameters, without memory."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


@functools.cache
def _graphdef(config: ModelConfig) -> nnx.GraphDef:
    model = nnx.eval_shape(lambda: BucketClassifier(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)[0]
