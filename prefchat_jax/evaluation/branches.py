"""Branches: what each adapter branch of a trained head does, row by row.

A branch is switched off by its last layer, the down-projection, at 0: the routers
weigh it as before and nothing comes. (The scale at 0 would switch off a stage, which
is a mix of several branches.) That is what the branch does beside the others that
were trained with it, not what a head would learn without it.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from prefchat_jax.evaluation.metrics import paired_bootstrap
from prefchat_jax.models.classifier import BucketModel, Params
from prefchat_jax.training.steps import Rows, branch_weights, predict, score

_DRAWS = 2000


class Ablation(NamedTuple):
    """The rows with some branches switched off.

    Attributes:
      loss: mean cross-entropy.
      accuracy: share of the rows whose most probable bucket is right.
      change: accuracy minus that of the whole head, with the lower and the upper
        end of its paired 95 % interval.
      moved: share of the rows whose most probable bucket is another one.
    """

    loss: float
    accuracy: float
    change: tuple[float, float, float]
    moved: float


@dataclasses.dataclass(frozen=True)
class BranchFigures:
    """What the `n` branches of a head do to `m` rows.

    Attributes:
      loss: mean cross-entropy of the whole head.
      accuracy: of the whole head.
      scales: `[n]` of the stages; stage `i` mixes the first `i` branches.
      weights: `[m, n]` what each branch is multiplied by, over all stages.
      without: the head without one branch, by branch.
      base: the head without any.
    """

    loss: float
    accuracy: float
    scales: np.ndarray
    weights: np.ndarray
    without: list[Ablation]
    base: Ablation


class ClassWeights(NamedTuple):
    """The mean weight `[n]` of each branch over the `rows` rows of a bucket."""

    bucket: int
    rows: int
    weights: np.ndarray


def measure_branches(model: BucketModel, params: Params, rows: Rows) -> BranchFigures:
    """Switches each branch off in turn, and then all of them.

    Args:
      model: the shape, with one branch or more.
      params: the parameters of a checkpoint.
      rows: `m` rows, at least one, that were not trained on.
    """
    labels = np.asarray(rows.labels)
    whole = predict(model, params, rows.ids, rows.weights)
    numbers = range(len(model.branch_widths))

    def ablated(branches: Iterable[int]) -> Ablation:
        off = without_branches(params, branches)
        logits = predict(model, off, rows.ids, rows.weights)
        right, before = (z.argmax(axis=1) == labels for z in (logits, whole))
        found = score(logits, labels)
        interval = paired_bootstrap(right, before.astype(float), draws=_DRAWS)
        change = float(np.mean(right) - np.mean(before))
        moved = np.mean(logits.argmax(axis=1) != whole.argmax(axis=1))
        return Ablation(
            found["loss"], found["accuracy"], (change, *interval), float(moved)
        )

    return BranchFigures(
        **score(whole, labels),
        scales=np.asarray(params["head"]["scales"]),
        weights=branch_weights(model, params, rows.ids, rows.weights),
        without=[ablated([number]) for number in numbers],
        base=ablated(numbers),
    )


def without_branches(params: Params, numbers: Iterable[int]) -> Params:
    """The parameters with the down-projections of some branches at 0."""
    branches = dict(params["head"]["branches"])
    for number in numbers:
        down = branches[number]["down"]
        off = {"kernel": np.zeros_like(down["kernel"])}
        branches[number] = branches[number] | {"down": off}
    return params | {"head": params["head"] | {"branches": branches}}


def weights_by_class(weights: np.ndarray, labels: np.ndarray) -> list[ClassWeights]:
    """Mean weights of each bucket that has rows, the most unusual one first.

    A bucket is unusual by the branch whose weight is furthest from that over all
    rows; equals stand by number.

    Args:
      weights: `[m, n]` of the branches.
      labels: `[m]` buckets.
    """
    mean, found = weights.mean(axis=0), []
    for label in np.unique(labels):
        own = weights[labels == label]
        found.append(ClassWeights(int(label), len(own), own.mean(axis=0)))
    return sorted(found, key=lambda one: -float(np.abs(one.weights - mean).max()))
