"""Marking: which rows stay. Each step marks rows of a table and changes no text."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from prefchat_jax.building.augment import Chances
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.building.describe import ScanSettings
from prefchat_jax.building.duplicates import (
    Comparison,
    Pairs,
    contradictions,
    find_exact,
    find_near,
    partitions,
)
from prefchat_jax.building.expand import expand_part
from prefchat_jax.building.fingerprints import SIDES
from prefchat_jax.building.parts import Column, WorkFolder
from prefchat_jax.building.processes import Processes
from prefchat_jax.building.sample import draws, threshold
from prefchat_jax.building.table import (
    DUPLICATE,
    HELD_OUT,
    HOLDOUT,
    KEPT,
    NEAR_DUPLICATE,
    NOT_DRAWN,
    Table,
)
from prefchat_jax.errors import UserError
from prefchat_jax.text.hashing import mix

_CONTEXT = ("question", "history")
_MORE = 1.3  # Variants made for each one that is wanted; some are none.


@dataclasses.dataclass(frozen=True)
class Job:
    """What the steps of one build share.

    Attributes:
      config: settings of the build.
      scan: settings of the scan.
      folder: where columns and parts lie.
      processes: who works.
      holdout_rows: how many rows, the first ones, are held out.
    """

    config: BuildConfig
    scan: ScanSettings
    folder: WorkFolder
    processes: Processes
    holdout_rows: int


def row_columns(scan: ScanSettings) -> list[str]:
    """The columns of rows that the steps and the report need."""
    names = ["pair_key", "source", "line", "label", "asked", "replied"]
    if "context" in scan.views:
        names += ["context_key", "question_key", "has_history"]
    if scan.banding:
        names += ["verdict", *(f"{view}_bands" for view in scan.views)]
        names += [f"{side}_{what}" for side in SIDES for what in ("values", "edges")]
    return [*names, "is_code"] if scan.finds_code else names


def pair_columns(scan: ScanSettings) -> list[str]:
    """The columns of preference pairs that the steps and the report need."""
    names = ["preference_key", "comparison_key", "preference_order"]
    if "context" in scan.views:
        names += ["preference_context_key", "preference_question_key"]
    return [*names, "preference_source", "length_sign"]


def check_sources(rows: Table, config: BuildConfig) -> None:
    """Raises `UserError` for a weight of a source that does not occur."""
    names = rows.names["sources"]
    for name in config.weight_of_source:
        if name not in names:
            raise UserError(
                f"--source_weights {name}: no such source; there are "
                f"{', '.join(sorted(names)[:20])}."
            )


def drop_held_out(rows: Table, job: Job, *, near: bool = True) -> list[Pairs]:
    """Marks the rows that a held-out file has, exactly or nearly.

    A held-out question without history is looked for in every row, whatever was
    said before it; one with history only where that is alike.

    Returns:
      Which held-out row each marked row matches.
    """
    first, found = job.holdout_rows, []
    if not first:
        return found
    has_history = np.flatnonzero(rows["has_history"][:first])
    alone = np.flatnonzero(~rows["has_history"][:first])
    for held, key, sides in (
        (alone, "question_key", ("question",)),
        (has_history, "context_key", ("question", "history")),
    ):
        rows.mark(slice(0, first), HOLDOUT)
        rows.mark(held, KEPT)  # So that they take part.
        comparison = Comparison(rows.state, before=first)
        found.append(_exact(rows.columns[key], comparison, job))
        rows.mark(found[-1].right, HELD_OUT)
        if near and job.scan.banding:
            found.append(_near(rows, "context", sides, comparison, job))
            rows.mark(found[-1].right, HELD_OUT)
    rows.mark(slice(0, first), HOLDOUT)
    return found


def drop_held_out_pairs(pairs: Table, rows: Table, job: Job) -> None:
    """Marks the preference pairs whose context a held-out file has exactly."""
    if not job.holdout_rows or not len(pairs):
        return
    has_history = rows["has_history"][: job.holdout_rows]
    for name, held in (("question_key", ~has_history), ("context_key", has_history)):
        keys = set(map(bytes, rows[name][: job.holdout_rows][held]))
        for block in pairs.blocks():
            own = map(bytes, pairs[f"preference_{name}"][block])
            found = [row for row, key in enumerate(own, block.start) if key in keys]
            pairs.mark(np.array(found, np.int64), HELD_OUT)


def drop_duplicates(rows: Table, job: Job) -> list[Pairs]:
    """Marks the rows that repeat an earlier one; returns which repeats which."""
    view = job.config.dedupe_on
    exact = _exact(rows.columns[f"{view}_key"], Comparison(rows.state), job)
    rows.mark(exact.right, DUPLICATE)
    if not job.scan.banding:
        return [exact]
    # A row under another label, or of another annotator, tells something else.
    same = rows.columns["verdict"] if view == "pair" else None
    sides = ("question", "reply", "history") if view == "pair" else _CONTEXT
    near = _near(rows, view, sides, Comparison(rows.state, same=same), job)
    rows.mark(near.right, NEAR_DUPLICATE)
    return [exact, near]


def drop_pair_duplicates(pairs: Table, job: Job) -> int:
    """Marks repeated preference pairs; returns how many contradict one another."""
    comparison = Comparison(pairs.state)
    if not job.config.allow_duplicates:
        repeated = _exact(pairs.columns["preference_key"], comparison, job)
        pairs.mark(repeated.right, DUPLICATE)
    cuts = partitions(len(pairs), job.config.memory, job.processes.count)
    columns = pairs.columns["comparison_key"], pairs.columns["preference_order"]
    calls = [(*columns, comparison, partition) for partition in cuts]
    return sum(count for _, count in job.processes.each(contradictions, calls))


def draw(rows: Table, count: int, job: Job, start: int = 0) -> None:
    """Marks all rows from `start` on as not drawn, except a sample of `count`.

    The rows of a source of weight 0 are never drawn.
    """
    weights = _Weights(rows, job.config)
    for block in rows.blocks(start):
        out = (weights(block) == 0) & (rows.state.open()[block] == KEPT)
        rows.mark(block.start + np.flatnonzero(out), NOT_DRAWN)
    if rows.count(KEPT, start) <= count:
        return

    def numbers(block: slice) -> np.ndarray:
        keys = rows["pair_key"][block, 0]
        if job.config.allow_duplicates:  # Else equal rows would be drawn together.
            keys = keys ^ mix(np.arange(block.start, block.stop, dtype=np.uint64))
        return draws(keys, weights(block), job.config.seed)

    def kept() -> Iterator[np.ndarray]:
        for block in rows.blocks(start):
            yield numbers(block)[rows.state.open()[block] == KEPT]

    last = threshold(kept, count)
    for block in rows.blocks(start):
        out = (numbers(block) > last) & (rows.state.open()[block] == KEPT)
        rows.mark(block.start + np.flatnonzero(out), NOT_DRAWN)


def augment(rows: Table, wanted: int, job: Job) -> Table:
    """Adds variants of the kept rows, at most `wanted`; returns the longer table."""
    config = job.config
    per_row = math.ceil(wanted / rows.count() * _MORE) + 1
    chances = Chances(
        0.3 if config.creative_prob is None else config.creative_prob,
        0.2 if config.blend_prob is None else config.blend_prob,
    )
    calls = [
        (
            part,
            int(first),
            rows.state,
            f"{job.folder.path}/variants-{number:06d}",
            job.scan,
            chances,
            per_row,
            config.seed,
        )
        for number, (part, first) in enumerate(
            zip(rows.parts, rows.edges[:-1], strict=True)
        )
    ]
    made = sorted(job.processes.each(expand_part, calls), key=lambda item: item[0])
    apart = ("_bands", "_values", "_edges")  # Variants are compared exactly.
    names = [name for name in rows.columns if not name.endswith(apart)]
    before = len(rows)
    longer = Table(
        job.folder.path,
        [*rows.parts, *(part for _, part in made)],
        "rows",
        names,
        np.array(rows.state.open()),
    )
    drop_held_out(longer, job, near=False)
    if not config.allow_duplicates:
        keys = longer.columns[f"{config.dedupe_on}_key"]
        repeated = _exact(keys, Comparison(longer.state), job)
        longer.mark(repeated.right, DUPLICATE)
    draw(longer, wanted, job, start=before)
    return longer


class _Weights:
    """How likely rows are drawn."""

    def __init__(self, rows: Table, config: BuildConfig):
        given = config.weight_of_source
        names = rows.names["sources"]
        self._of_source = np.array([given.get(name, 1.0) for name in names])
        self._rows, self._boost = rows, config.programming_boost_factor

    def __call__(self, block: slice) -> np.ndarray:
        weights = self._of_source[self._rows["source"][block]]
        if self._boost != 1:
            weights = np.where(
                self._rows["is_code"][block], weights * self._boost, weights
            )
        return weights


def _exact(keys: Column, comparison: Comparison, job: Job) -> Pairs:
    return find_exact(keys, comparison, job.config.memory, job.processes)


def _near(
    rows: Table, view: str, sides: Sequence[str], comparison: Comparison, job: Job
) -> Pairs:
    columns = rows.columns
    return find_near(
        columns[f"{view}_bands"],
        [(columns[f"{side}_values"], columns[f"{side}_edges"]) for side in sides],
        job.config.near_duplicates,
        comparison,
        job.config.memory,
        job.processes,
    )
