"""Kinds of bucket classifiers, by the name that a run's config.json gives them.

A kind is three things, each imported where it is needed: no other module asks which
kind a run is of. `compat/` adds the one of imported checkpoints. No JAX.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from prefchat_jax.errors import UserError


class Kind(NamedTuple):
    """Where the parts of a kind are, as `module:name`.

    Attributes:
      model: a `models.classifier.BucketModel`: how it trains and scores in JAX.
      classify: its logits in NumPy, of parameters and the bags that it reads.
      featurizer: a `text.features.Featurizer`, which makes these bags.
    """

    model: str
    classify: str
    featurizer: str


KINDS = {
    "bags": Kind(
        "prefchat_jax.models.classifier:ModelConfig",
        "prefchat_jax.inference:classify",
        "prefchat_jax.text.features:Featurizer",
    ),
    "champion": Kind(
        "prefchat_jax.compat.model:ChampionConfig",
        "prefchat_jax.compat.champion:classify",
        "prefchat_jax.compat.featurizer:ReferenceFeaturizer",
    ),
}


def load_part(
    shape: Mapping[str, Any], part: Literal["model", "classify", "featurizer"]
) -> Any:
    """Imports one part of a kind.

    Args:
      shape: what config.json says of the model; without a kind it is our own.
      part: which one.

    Raises:
      UserError: there is no such kind.
    """
    name = shape.get("kind", "bags")
    if name not in KINDS:
        raise UserError(
            f"The run's model is of the kind {name!r}, which this prefchat-jax does "
            "not know: upgrade prefchat-jax to read it."
        )
    module, _, attribute = getattr(KINDS[name], part).partition(":")
    return getattr(importlib.import_module(module), attribute)
