"""Warm start: the parameters of a run, copied into a model that is as large or larger.

Buckets are matched by name, all else by path. On the buckets that both have, the grown
model says what the source says:

- a wider branch has new hidden units whose rows of the down-projection are zero;
- a new branch has a down-projection of zero;
- a new stage has scale 0 where it also mixes branches that say something. Those give
  the scale its gradient from step 1, and through it the new branch from step 2. Where
  no branch says anything yet, it has scale 1, as in a new model;
- a new bucket has what it would have in a new model: logits near 0.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from prefchat_jax.errors import UserError
from prefchat_jax.models.classifier import Params
from prefchat_jax.models.heads import GROWING_AXES, Axes
from prefchat_jax.training.parameters import flatten, nest

_SCALES = "head.scales"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathReport:
    """What became of one array.

    Attributes:
      path: its dotted path.
      how: `copied` if all its values are the source's, `fresh` if none is.
      source_shape: its shape in the source; None if it is not there.
      target_shape: its shape in the grown model.
      copied: how many values are the source's.
      fresh: how many are not.
      unused: how many values of the source have no place.
    """

    path: str
    how: Literal["copied", "grown", "fresh"]
    source_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...]
    copied: int
    fresh: int
    unused: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a warm start took: the names of buckets, and every array."""

    copied_buckets: tuple[str, ...]
    fresh_buckets: tuple[str, ...]
    unused_buckets: tuple[str, ...]
    paths: tuple[PathReport, ...]

    def with_scorer(self, paths: tuple[PathReport, ...]) -> "Report":
        """The same with the arrays of the response scorer."""
        return dataclasses.replace(self, paths=(*self.paths, *paths))


class _Places(NamedTuple):
    """What is taken along an axis, `[m]`: its places there, and here."""

    source: np.ndarray
    target: np.ndarray


def grow(
    source: Params,
    target: Params,
    source_names: Sequence[str] = (),
    target_names: Sequence[str] = (),
    axes: Axes = GROWING_AXES,
) -> tuple[Params, Report]:
    """Copies what the source has into a new model.

    Args:
      source: trained parameters; empty to report that all is fresh.
      target: initial parameters of the new model, as `init_params` draws them.
      source_names: the name of every bucket of the source, none twice.
      target_names: the same of the new model.
      axes: which axes may differ, as the model says.

    Returns:
      The grown parameters, in NumPy, and the report.

    Raises:
      UserError: an array of the source is larger than that of the target, or not
        there; the message names its path and both shapes.
    """
    theirs, ours = flatten(source), flatten(target)
    for path, value in theirs.items():
        if path not in ours:
            raise _misfit(path, value, None)
    buckets = _matched(source_names, target_names)
    grown, paths = {}, []
    for path, fresh in ours.items():
        grown[path], row = _grown(path, theirs.get(path), fresh, buckets, axes)
        paths.append(row)
    if _SCALES in theirs and len(buckets.target):
        grown[_SCALES][len(theirs[_SCALES]) :] = 0.0
    return nest(grown), Report(
        copied_buckets=tuple(target_names[i] for i in buckets.target),
        fresh_buckets=_without(target_names, source_names),
        unused_buckets=_without(source_names, target_names),
        paths=tuple(paths),
    )


def _matched(source_names: Sequence[str], target_names: Sequence[str]) -> _Places:
    number = {name: i for i, name in enumerate(source_names)}
    pairs = [(number[x], i) for i, x in enumerate(target_names) if x in number]
    return _Places(*np.array(pairs, int).reshape(-1, 2).T)


def _without(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    known = set(others)
    return tuple(name for name in names if name not in known)


def _grown(
    path: str,
    theirs: np.ndarray | None,
    fresh: np.ndarray,
    buckets: _Places,
    axes: Axes,
) -> tuple[np.ndarray, PathReport]:
    """`fresh` with what the source has of it, and what that was."""
    value, copied = np.array(fresh), 0
    if theirs is not None:
        places = _places(path, theirs, fresh, buckets, axes)
        taken = theirs[np.ix_(*(place.source for place in places))]
        value[np.ix_(*(place.target for place in places))] = taken
        copied = taken.size
    row = PathReport(
        path=path,
        how="fresh" if not copied else "grown" if copied < value.size else "copied",
        source_shape=None if theirs is None else theirs.shape,
        target_shape=value.shape,
        copied=copied,
        fresh=value.size - copied,
        unused=0 if theirs is None else theirs.size - copied,
    )
    return value, row


def _places(
    path: str, theirs: np.ndarray, ours: np.ndarray, buckets: _Places, axes: Axes
) -> list[_Places]:
    """Along each axis, what is taken there and where it goes here."""
    named = (found for pattern, found in axes.items() if re.fullmatch(pattern, path))
    kinds = next(named, ("same",) * ours.ndim)
    if theirs.ndim != ours.ndim:
        raise _misfit(path, theirs, ours)
    places = []
    for axis, there, here in zip(kinds, theirs.shape, ours.shape, strict=True):
        if axis != "buckets" and (there > here or (axis == "same" and there < here)):
            raise _misfit(path, theirs, ours)
        every = np.arange(there)
        places.append(buckets if axis == "buckets" else _Places(every, every))
    return places


def _misfit(path: str, theirs: np.ndarray, ours: np.ndarray | None) -> UserError:
    here = "is missing" if ours is None else f"would be {list(ours.shape)}"
    return UserError(
        f"--weights: {path} is {list(theirs.shape)} in that run and {here} in this "
        "one: a warm start makes nothing smaller. Leave --model_size, the --..._dim "
        "flags and --scorer_width out to keep its shape."
    )
