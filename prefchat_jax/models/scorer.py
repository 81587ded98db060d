"""The response scorer: two towers over one embedding table.

`score(context, response) = exp(log_scale) * (cosine(context, response) + value)`. The
value of a response, whatever was asked, is a sum over its features; a scorer that was
not tuned on preferences has none. The table is shared and random: before any training
the cosine of two bags approximates the overlap of their features (a random
projection), and training goes on from there.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from prefchat_jax.models.classifier import Params
from prefchat_jax.models.encoders import bag_sums, sample_features
from prefchat_jax.models.precision import Linear, lowered
from prefchat_jax.numerics import product

TowerName = Literal["context", "response"]

_FIRST_SCALE = 20.0  # Cosines lie in [-1, 1]: unscaled they separate little.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """The shape of a scorer. Hashable: a static argument of jit.

    Attributes:
      vocabulary: number of embeddings.
      width: of the towers.
      hidden: hidden units of the towers.
      feature_dropout: share of the features that a training step ignores.
      valued: whether responses have a value of their own.
    """

    vocabulary: int
    width: int = 64
    hidden: int = 128
    feature_dropout: float = 0.5
    valued: bool = False


class Tower(nnx.Module):
    """A residual MLP that starts as the identity, between two norms."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.up = Linear(width, hidden, rngs=rngs)
        self.down = Linear(hidden, width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, width]` sums of embeddings to unit vectors."""
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        x = x + self.down(nnx.silu(self.up(x)))
        return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


class ResponseScorer(nnx.Module):
    """A table of embeddings, and one tower for each side."""

    def __init__(self, config: ScorerConfig, *, rngs: nnx.Rngs):
        self.feature_dropout = config.feature_dropout
        # Rows of unit length on average: features of two texts that differ are
        # all but orthogonal, those that are the same are one.
        shape = (config.vocabulary, config.width)
        table = jax.random.normal(rngs.params(), shape) / math.sqrt(config.width)
        self.table = nnx.Param(table)
        self.context = Tower(config.width, config.hidden, rngs=rngs)
        self.response = Tower(config.width, config.hidden, rngs=rngs)
        self.log_scale = nnx.Param(jnp.log(_FIRST_SCALE))
        self.worth = nnx.Param(jnp.zeros(config.vocabulary)) if config.valued else None

    def __call__(
        self,
        tower: TowerName,
        ids: jax.Array,
        weights: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes bags `[batch, features]` to vectors; drops with a key."""
        if key is not None and self.feature_dropout > 0:
            ids, weights = sample_features(key, ids, weights, self.feature_dropout)
        x = bag_sums(self.table[...], ids, weights)
        x = (self.context if tower == "context" else self.response)(x)
        if self.worth is None:
            return x
        if tower == "context":
            last = jnp.ones(len(x))
        else:
            last = jnp.sum(weights * self.worth[...][ids], axis=-1)
        # One product of two vectors then has the cosine and the value.
        return jnp.concatenate([x, last[:, None]], axis=-1)


@functools.partial(jax.jit, static_argnames="config")
def init_scorer(config: ScorerConfig, key: jax.Array) -> Params:
    """Draws initial parameters as a plain nested dict of arrays."""
    model = ResponseScorer(config, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.split(model)[1])


def with_values(config: ScorerConfig, params: Params) -> tuple[ScorerConfig, Params]:
    """The scorer with a value for responses, which is 0: it scores as before."""
    if config.valued:
        return config, params
    valued = dataclasses.replace(config, valued=True)
    return valued, params | {"worth": jnp.zeros(config.vocabulary)}


def encode(
    config: ScorerConfig,
    params: Params,
    tower: TowerName,
    ids: jax.Array,
    weights: jax.Array,
    *,
    key: jax.Array | None = None,
    dtype: str | None = None,
) -> jax.Array:
    """Vectors `[batch, d]` of feature bags `[batch, features]`.

    The first `width` numbers are a unit vector, and all there are. With values there
    is one more: 1 for a context, the value for a response.

    Args:
      config: the shape of the scorer.
      params: its parameters, from `init_scorer` or a checkpoint.
      tower: whether the bags are contexts or responses.
      ids: embedding rows of the scorer, `Featurizer.scorer_embedded`.
      weights: feature weights; 0 for padding.
      key: a random key turns feature dropout on (training).
      dtype: what products compute in; None is as the parameters are. Vectors have
        the dtype of the parameters.
    """
    params, weights = lowered(dtype, params, weights)
    return nnx.merge(_graphdef(config), params)(tower, ids, weights, key=key)


def pair_scores(
    params: Params,
    contexts: jax.Array,
    responses: jax.Array,
    *,
    dtype: str | None = None,
) -> jax.Array:
    """Scores `[n, m]` of all pairs of encoded contexts and responses, `[.., d]`."""
    right = responses.T if dtype is None else responses.T.astype(dtype)
    return jnp.exp(params["log_scale"]) * product(contexts, right)


def abstract_scorer(config: ScorerConfig) -> Params:
    """Shapes and dtypes of the parameters, without memory."""
    return jax.eval_shape(lambda: init_scorer(config, jax.random.key(0)))


@functools.cache
def _graphdef(config: ScorerConfig) -> nnx.GraphDef:
    model = nnx.eval_shape(lambda: ResponseScorer(config, rngs=nnx.Rngs(0)))
    return nnx.split(model)[0]
