"""Build: inputs to rows, rows to marks, marks to one corpus and its report.

Everything that grows with the input lies on disk, in the work folder: each step
reads what the step before has written, and a row is a number from first to last.
"""

import dataclasses
import pathlib
import time

from prefchat_jax.building import report
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.building.describe import ScanSettings
from prefchat_jax.building.inputs import find_inputs
from prefchat_jax.building.marking import (
    Job,
    augment,
    draw,
    drop_duplicates,
    drop_held_out,
    drop_held_out_pairs,
    drop_pair_duplicates,
    pair_columns,
    row_columns,
)
from prefchat_jax.building.parts import WorkFolder
from prefchat_jax.building.processes import Processes
from prefchat_jax.building.read import Progress, Silent, read
from prefchat_jax.building.table import Table
from prefchat_jax.building.write import write_lines
from prefchat_jax.datasets.records import read_manifest
from prefchat_jax.errors import UserError
from prefchat_jax.text.sketches import Banding

_PROCESS = 2**27  # Memory that a process needs for itself and for a part.


def build(
    config: BuildConfig, progress: Progress = Silent(), command: str = ""
) -> report.Report:
    """Builds a corpus; see `BuildConfig` for what it does.

    Args:
      config: settings.
      progress: hears how far it is.
      command: how it was called, for the report.

    Returns:
      The report, as it was written beside the corpus.

    Raises:
      UserError: an input cannot be read, or no row is left.
    """
    start = time.perf_counter()
    outputs = report.outputs(config.output)
    inputs, holdout = _find(config, outputs, progress)
    scan = _scan_settings(config)
    folder = WorkFolder(config.output, dataclasses.asdict(scan))
    with Processes(_processes(config, progress)) as processes:
        corpora = read(inputs, holdout, folder, scan, processes, progress)
        job = Job(config, scan, folder, processes, corpora.holdout_rows)
        progress.step("comparing")
        rows = Table(folder.path, corpora.parts, "rows", row_columns(scan))
        pairs = Table(folder.path, corpora.parts, "pairs", pair_columns(scan))
        drop_held_out(rows, job)
        drop_held_out_pairs(pairs, rows, job)
        contradictions = drop_pair_duplicates(pairs, job)
        repeated = None if config.allow_duplicates else drop_duplicates(rows, job)
        originals = len(rows)
        rows = _to_target(rows, job, progress)
    figures = report.Figures(corpora, rows, pairs, originals, repeated, contradictions)
    if not rows.count() and not pairs.count():
        raise UserError(report.nothing_left(figures))
    progress.step("writing")
    written = []
    if rows.count():
        augmented = config.augments
        written.append(write_lines(rows, "rows", outputs.corpus, with_ids=augmented))
    if pairs.count():
        written.append(write_lines(pairs, "pairs", outputs.preferences))
    for path in {str(outputs.corpus), str(outputs.preferences)} - {
        file.path for file in written
    }:
        pathlib.Path(path).unlink(missing_ok=True)  # Of an earlier build.
    made = report.make(config, figures, written, command, time.perf_counter() - start)
    report.write(made, outputs)
    folder.remove()
    return made


def _find(
    config: BuildConfig, outputs: report.Outputs, progress: Progress
) -> tuple[list[str], list[str]]:
    """The input files, and the held-out ones."""
    manifest = config.inputs_manifest
    inputs, missing = find_inputs(
        [*config.inputs, *(read_manifest(manifest) if manifest else [])],
        skip_missing=config.skip_missing_inputs,
        apart=[str(path) for path in outputs],
    )
    for path in missing:
        progress.notice(f"{path}: no such file, left out")
    if not config.holdout:
        return inputs, []
    holdout, _ = find_inputs(config.holdout, skip_missing=False, apart=())
    return inputs, holdout


def _scan_settings(config: BuildConfig) -> ScanSettings:
    views = () if config.allow_duplicates else (config.dedupe_on,)
    if config.holdout:
        views = tuple(dict.fromkeys((*views, "context")))
    threshold = config.near_duplicates
    return ScanSettings(
        limits=config.limits,
        skip_filters=tuple(sorted(set(config.skip_filters))),
        personal_data=config.personal_data,
        max_turns=config.max_turns,
        max_rows=config.max_rows_per_input,
        views=views,
        banding=Banding.at(threshold) if threshold and views else None,
        finds_code=config.programming_boost_factor != 1,
    )


def _processes(config: BuildConfig, progress: Progress) -> int:
    """As many as were asked for, or as the memory lets work at once."""
    fits = max(1, config.memory // _PROCESS - 1)
    if config.processes > fits:
        progress.notice(
            f"{fits} processes instead of {config.processes}, since --max_memory is "
            f"{config.max_memory}"
        )
    return min(config.processes, fits)


def _to_target(rows: Table, job: Job, progress: Progress) -> Table:
    """Draws a sample, or adds variants, so that the target is met."""
    target, kept = job.config.target, rows.count()
    if target is None:
        return rows
    draw(rows, target, job)
    if kept >= target or not kept:
        return rows
    if job.config.augments:
        progress.step("augmenting")
        rows = augment(rows, target - kept, job)
    if rows.count() < target:
        more = "" if job.config.augments else ", or --augment"
        progress.notice(
            f"{rows.count():,} rows, fewer than --target {target:,}: give more "
            f"inputs{more}"
        )
    return rows
