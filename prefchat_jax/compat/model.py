"""The reference's network as a kind of bucket classifier that trains."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from prefchat_jax.compat import champion
from prefchat_jax.compat.features import FeatureMode
from prefchat_jax.compat.tensors import HEADS, HeadName, HeadShape, empty_params
from prefchat_jax.errors import UserError
from prefchat_jax.models.classifier import BucketModel, Params
from prefchat_jax.models.heads import GROWING_AXES, Axes
from prefchat_jax.training.parameters import flatten, nest


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChampionConfig(BucketModel):
    """The reference's ten blocks under one of its heads.

    With one to three branches the head grows as this package's own does. The norm
    over its logits is over all buckets: with other buckets than before, the logits
    of those that stay change, too.

    Attributes:
      feature_mode: what its featurizer makes of a context.
      head: which head it is, by its branches.
    """

    feature_mode: FeatureMode
    head: HeadName = "large"
    kind: Literal["champion"] = "champion"
    growing_axes: ClassVar[Axes] = {
        **GROWING_AXES,
        r"head\.norm\.scale": ("buckets",),
        r"head\.domains\.experts\.kernel": ("same", "same", "buckets"),
        r"head\.(calibration|reasoning\.up)\.kernel": ("same", "buckets"),
        r"head\.(calibration|reasoning\.up)\.bias": ("buckets",),
    }

    def __post_init__(self):
        if not 1 <= len(self.branch_widths) <= len(HEADS):
            raise UserError(
                f"An imported head has 1 to {len(HEADS)} branches, and not "
                f"{len(self.branch_widths)}: leave --model_size out to keep its shape."
            )
        object.__setattr__(self, "head", HEADS[len(self.branch_widths) - 1])

    def init(self, key: jax.Array) -> Params:
        """See `BucketModel`. A warm start keeps of it what the source lacks."""
        shape = HeadShape(self.head, self.branch_widths, self.num_buckets)
        empty = flatten(empty_params(shape))
        # One draw for all: a hundred would take seconds to compile.
        ends = np.cumsum([leaf.size for leaf in empty.values()]).tolist()
        drawn = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
        initial: dict[str, Any] = {
            path: _initial(path, part.reshape(leaf.shape))
            for (path, leaf), part in zip(empty.items(), drawn, strict=True)
        }
        return nest(initial)

    def logits(
        self,
        params: Params,
        ids: jax.Array,
        weights: jax.Array,
        *,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """See `BucketModel`; a key turns the head's dropout on.

        Args:
          params: from `compat.tensors.to_params`, or `init`.
          ids: not read: the weights are all 128 features in order.
          weights: `[batch, 128]`.
          key: a random key.
        """
        return champion.logits(params, weights, key=key)

    def mixture(self, params: Params, ids: jax.Array, weights: jax.Array) -> jax.Array:
        """See `BucketModel`."""
        return champion.mixture(params, weights)


def _initial(path: str, normal: jax.Array) -> jax.Array:
    """New branches and buckets say nothing at first, as in `models/heads.py`."""
    if path.endswith("scale") or path == "head.scales":
        return jnp.ones_like(normal)
    says_nothing = path.startswith(("head.branches", "head.routers"))
    if not path.endswith("kernel") or (says_nothing and ".up." not in path):
        return jnp.zeros_like(normal)
    spread = 0.01 if path == "head.base.kernel" else 1 / math.sqrt(len(normal))
    return spread * normal
