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
    check_sources,
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
from prefchat_jax.building.read import Corpora, Progress, Silent, read
from prefchat_jax.building.table import Table
from prefchat_jax.building.write import Written, write_lines
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
    with WorkFolder(config.output, dataclasses.asdict(scan)) as folder:
        with Processes(_processes(config, progress)) as processes:
            corpora = read(inputs, holdout, folder, scan, processes, progress)
            job = Job(config, scan, folder, processes, corpora.holdout_rows)
            progress.step("comparing")
            figures = _compare(corpora, job, progress)
        progress.step("writing")
        written = _write(figures, outputs, job)
        seconds = time.perf_counter() - start
        made = report.make(config, figures, written, command, seconds)
        is_stale = report.is_stale(outputs, written)
        report.write(made, outputs)
        if is_stale:
            outputs.preferences.unlink()
        failure = None if written else report.nothing_left(figures, outputs)
        folder.remove()
    if failure:
        raise UserError(failure)
    return made


def _compare(corpora: Corpora, job: Job, progress: Progress) -> report.Figures:
    """Marks what goes; draws, or adds, what the target asks for."""
    path, parts = job.folder.path, corpora.parts
    rows = Table(path, parts, "rows", row_columns(job.scan))
    pairs = Table(path, parts, "pairs", pair_columns(job.scan))
    check_sources(rows, job.config)
    held_out = drop_held_out(rows, job)
    drop_held_out_pairs(pairs, rows, job)
    contradictions = drop_pair_duplicates(pairs, job)
    repeated = [] if job.config.allow_duplicates else drop_duplicates(rows, job)
    longer = _to_target(rows, job, progress)
    return report.Figures(
        corpora, longer, pairs, len(rows), held_out, repeated, contradictions
    )


def _write(figures: report.Figures, outputs: report.Outputs, job: Job) -> list[Written]:
    """Writes the corpus and the pairs, where there are some."""
    rows, pairs, written = figures.rows, figures.pairs, []
    if rows.count():
        ids = job.config.augments
        written.append(
            write_lines(rows, "rows", outputs.corpus, job.folder, with_ids=ids)
        )
    if pairs.count():
        written.append(write_lines(pairs, "pairs", outputs.preferences, job.folder))
    return written


def _find(
    config: BuildConfig, outputs: report.Outputs, progress: Progress
) -> tuple[list[str], list[str]]:
    """The input files, and the held-out ones."""
    manifest = config.inputs_manifest
    for path in outputs:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file: name another --output.")
        if manifest and path.resolve() == pathlib.Path(manifest).resolve():
            raise UserError(f"{path} is read, and the output: name another.")
    inputs, left_out = find_inputs(
        [*config.inputs, *(read_manifest(manifest) if manifest else [])],
        skip_missing=config.skip_missing_inputs,
        outputs=outputs,
    )
    for path in left_out:
        progress.notice(f"{path} is left out: missing, no file, or an output")
    if not config.holdout:
        return inputs, []
    holdout, _ = find_inputs(config.holdout, outputs=outputs)
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
    target = job.config.target
    if target is None:
        return rows
    draw(rows, target, job)
    kept = rows.count()
    if kept and kept < target and job.config.augments:
        progress.step("augmenting")
        rows = augment(rows, target - kept, job)
    if rows.count() < target:
        more = "" if job.config.augments else ", or --augment"
        progress.notice(
            f"{rows.count():,} rows, fewer than --target {target:,}: give more "
            f"inputs{more}"
        )
    return rows
