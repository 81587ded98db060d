"""The bucket classifier as pure functions of plain-dict parameters."""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax
from flax import nnx

from prefchat_jax.models.encoders import BagEncoder
from prefchat_jax.models.heads import GROWING_AXES, Axes, RoutedHead
from prefchat_jax.models.precision import lowered

# A nested dict of arrays. `Any`, because JAX types its trees loosely.
Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketModel(abc.ABC):
    """A kind of bucket classifier, by its shape. Hashable: a static argument of jit.

    Training, warm starts and evaluation know a model by this alone;
    `training/kinds.py` lists the kinds.

    Attributes:
      num_buckets: number of logits.
      branch_widths: hidden units of each adapter branch of the head.
      growing_axes: which axes a warm start may change, by pattern of a path.
    """

    num_buckets: int
    branch_widths: tuple[int, ...]
    growing_axes: ClassVar[Axes] = GROWING_AXES

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Params:
        """Draws initial parameters as a plain nested dict of arrays."""

    @abc.abstractmethod
    def logits(
        self,
        params: Params,
        ids: jax.Array,
        weights: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits `[batch, num_buckets]`; takes what `bucket_logits` takes."""

    @abc.abstractmethod
    def mixture(self, params: Params, ids: jax.Array, weights: jax.Array) -> jax.Array:
        """Weights `[batch, n]` of the `n` branches; see `branch_mixture`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(BucketModel):
    """The package's own kind: an embedding bag under a routed head."""

    vocabulary: int
    width: int = 64
    hidden: int = 128
    feature_dropout: float = 0.8

    def init(self, key: jax.Array) -> Params:
        """See `BucketModel`."""
        model = BucketClassifier(self, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.split(model)[1])

    def logits(
        self,
        params: Params,
        ids: jax.Array,
        weights: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """See `BucketModel`; a key turns feature dropout on."""
        return classifier(self, params)(ids, weights, key=key)

    def mixture(self, params: Params, ids: jax.Array, weights: jax.Array) -> jax.Array:
        """See `BucketModel`, and `RoutedHead.mixture`."""
        model = classifier(self, params)
        return model.head.mixture(model.encoder(ids, weights))


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
def init_params(config: BucketModel, key: jax.Array) -> Params:
    """Draws initial parameters as a plain nested dict of arrays."""
    return config.init(key)


def bucket_logits(
    config: BucketModel,
    params: Params,
    ids: jax.Array,
    weights: jax.Array,
    *,
    key: jax.Array | None = None,
    dtype: str | None = None,
) -> jax.Array:
    """Logits `[batch, num_buckets]` of feature bags `[batch, features]`.

    Args:
      config: the shape of the model.
      params: its parameters, from `init_params` or a checkpoint.
      ids: integer feature ids.
      weights: feature weights; 0 for padding.
      key: a random key turns dropout on (training).
      dtype: what the model computes in; None is as the parameters are. Logits have
        the dtype of `weights`.
    """
    low, inputs = lowered(dtype, params, weights)
    return config.logits(low, ids, inputs, key=key).astype(weights.dtype)


def branch_mixture(
    config: BucketModel, params: Params, ids: jax.Array, weights: jax.Array
) -> jax.Array:
    """What each of `n` branches is multiplied by, `[batch, n]`, scales included."""
    return config.mixture(params, ids, weights)


def abstract_params(config: BucketModel) -> Params:
    """Shapes and dtypes of the parameters, without memory."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def classifier(config: ModelConfig, params: Params) -> BucketClassifier:
    """The module of a model with these parameters."""
    return nnx.merge(_graphdef(config), params)


@functools.cache
def _graphdef(config: ModelConfig) -> nnx.GraphDef:
    model = nnx.eval_shape(lambda: BucketClassifier(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)[0]
