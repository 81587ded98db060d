"""The featurizer of an imported run: the reference's 128 numbers for its network.

Everything else that reads features (search, the response scorer) has this package's
own, since the reference's are signed, and few. No JAX.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prefchat_jax.compat.features import NUM_FEATURES, FeatureMode, featurise
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.dialogue import Context
from prefchat_jax.text.features import Featurizer


@dataclasses.dataclass(frozen=True)
class ReferenceFeaturizer(Featurizer):
    """Bags for search, and bags of 128 features for an imported classifier.

    Attributes:
      mode: how the reference makes features of a context.
    """

    mode: FeatureMode = "context_v2"

    @classmethod
    def restore(
        cls,
        settings: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        model: Mapping[str, Any],
    ) -> "ReferenceFeaturizer":
        """See `Featurizer.restore`; the model says the mode."""
        own = Featurizer.restore(settings, arrays, model)
        return cls(
            own.config, own.idf, own.rows, own.scorer_rows, model["feature_mode"]
        )

    def classified(self, bags: Bags, contexts: Sequence[Context] = ()) -> Bags:
        """The 128 features of each context, as a bag of all ids in order.

        Raises:
          ValueError: the contexts of the bags are not given.
        """
        if len(contexts) != len(bags.ids):
            raise ValueError("An imported classifier needs the contexts of the bags.")
        return self.trained(contexts)

    def trained(self, contexts: Sequence[Context]) -> Bags:
        """The same: none of the 128 is left out."""
        turns = self.config.turns.max_turns + 1
        texts = [context_text(context[-turns:]) for context in contexts]
        ids = np.arange(NUM_FEATURES, dtype=np.int32)
        return Bags(
            np.broadcast_to(ids, (len(texts), NUM_FEATURES)),
            featurise(texts, self.mode),
        )

    def with_scorer(
        self, contexts: Sequence[Context], responses: Iterable[str]
    ) -> "ReferenceFeaturizer":
        """Fitted anew: no parameter of the network depends on the bags' ids."""
        fitted = Featurizer.fit(contexts, self.config, responses)
        return dataclasses.replace(
            self, idf=fitted.idf, rows=fitted.rows, scorer_rows=fitted.scorer_rows
        )


def context_text(context: Context) -> str:
    """Turns as the reference writes them: a line each, such as `User: hello`."""
    return "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in context)
