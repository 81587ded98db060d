"""Labels: the buckets of a corpus, given by its rows or found by clustering."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefchat_jax.datasets.clusters import spherical_kmeans
from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.features import FeatureConfig, Featurizer

Label = str | int


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The buckets, in the order of the logits.

    Attributes:
      labels: as the rows write them; k-means buckets are 0, 1, ...
      given: whether the rows carried labels.
    """

    labels: tuple[Label, ...]
    given: bool

    def numbers(self, examples: Sequence[Example]) -> np.ndarray:
        """Bucket numbers `[n]` of labelled examples.

        Raises:
          UserError: an example has no label, or one that is not a bucket.
        """
        number = {str(label): i for i, label in enumerate(self.labels)}
        for example in examples:
            if str(example.label) not in number:
                what = "no label" if example.label is None else repr(example.label)
                raise UserError(
                    f"{example.where}: label {what} is not one of the "
                    f"{len(self.labels)} buckets of this run: correct it, train "
                    'with it, or write "out_of_scope".'
                )
        return np.array([number[str(e.label)] for e in examples], np.int32)


class Labelled(NamedTuple):
    """Rows that have a bucket, the buckets, and what a reader should know."""

    examples: list[Example]
    numbers: np.ndarray
    buckets: Buckets
    notices: list[str]


def assign_buckets(
    examples: Sequence[Example], *, num_buckets: int, seed: int, features: FeatureConfig
) -> Labelled:
    """Takes the rows' labels, or clusters their responses where none has one.

    Raises:
      UserError: fewer than two buckets.
    """
    labelled = [example for example in examples if example.label is not None]
    if not labelled:
        return _clustered(examples, num_buckets, seed, features)
    notices = []
    if len(labelled) < len(examples):
        missing = next(e.where for e in examples if e.label is None)
        left = len(examples) - len(labelled)
        notices.append(
            f"{left} row{'s' * (left != 1)} left out, without a label, while others "
            f"have one (first: {missing})"
        )
    distinct = {str(e.label): e.label for e in labelled if e.label is not None}
    labels = tuple(sorted(distinct.values(), key=_natural_order))
    if len(labels) < 2:
        some = "The only row has" if len(labelled) == 1 else "All rows have"
        raise UserError(
            f"{some} the label {labels[0]!r}: a classifier "
            "needs two. Check the label field, or delete it to cluster the replies."
        )
    buckets = Buckets(labels, given=True)
    return Labelled(labelled, buckets.numbers(labelled), buckets, notices)


def _clustered(
    examples: Sequence[Example], num_buckets: int, seed: int, config: FeatureConfig
) -> Labelled:
    responses = [(Turn("assistant", example.response),) for example in examples]
    distinct = len({example.response for example in examples})
    if distinct < 2:
        raise UserError(
            "All replies say the same: clustering needs two different ones."
        )
    notices = []
    if distinct < num_buckets:
        notices.append(f"{distinct} buckets, not {num_buckets}: one for each reply")
    bags = Featurizer.fit(responses, config)(responses)
    numbers = spherical_kmeans(
        bags, min(num_buckets, distinct), bits=config.bits, seed=seed
    )
    if numbers.max() == 0:
        raise UserError(
            "All replies say the same: clustering needs two different ones."
        )
    buckets = Buckets(tuple(range(numbers.max() + 1)), given=False)
    return Labelled(list(examples), numbers, buckets, notices)


def _natural_order(label: Label) -> tuple[bool, int, str]:
    """Integers by value and before strings, so that label i is often logit i."""
    is_text = isinstance(label, str)
    return is_text, 0 if is_text else label, str(label)
