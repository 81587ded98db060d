"""Sweep: one corpus, many runs, one table of what each came to."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from prefchat_jax.building.config import usable_cores
from prefchat_jax.evaluation.metrics import expected_calibration_error, macro_f1
from prefchat_jax.finetune import Silent
from prefchat_jax.models.frozen import trained_params
from prefchat_jax.training import catalogue
from prefchat_jax.training.checkpoints import fingerprint
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.corpus import Corpus, load_corpus
from prefchat_jax.training.loop import Progress, best_epoch
from prefchat_jax.training.recipe import make_plan, make_recipe
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.start import (
    Source,
    frozen_recipe,
    frozen_rows,
    initial_params,
    load_source,
    model_shape,
    with_reference,
)
from prefchat_jax.training.steps import Rows
from prefchat_jax.training.sweep import (
    Outcome,
    Program,
    Run,
    measured_program,
    state_bytes,
)
from prefchat_jax.training.sweep_config import RUN_FIELDS, SweepConfig
from prefchat_jax.training.sweep_table import FIGURES, Row, read_table, write_table

_MEMORY = 2 << 30  # Bytes for states of runs, where the device tells no limit.
_WORTH_MEASURING = 16  # Fewer runs than this are through before it has paid.

# The labels that a run trains on, of its place and the right ones.
Relabel = Callable[[int, np.ndarray], np.ndarray]


def _as_they_are(number: int, labels: np.ndarray) -> np.ndarray:
    del number
    return labels


class Sweep(NamedTuple):
    """What a sweep leaves.

    Attributes:
      rows: of its runs, in their order, as in results.csv.
      trained: how many of them were trained now; the others were there.
      seconds: all in all.
      compile_seconds: those that compiled.
      memory: bytes of the largest program.
    """

    rows: list[Row]
    trained: int
    seconds: float
    compile_seconds: float
    memory: int


def sweep(config: SweepConfig, progress: Progress = Silent()) -> Sweep:
    """Trains every run that --output has no row of yet, and writes results.csv.

    Raises:
      UserError: bad data or settings; rows of runs that are through are kept.
    """
    start = time.perf_counter()
    configs = list(config.runs())
    output = RunDirectory.create(config.output)
    table = output.path / "results.csv"
    study = _study(configs, _as_they_are, cast(Progress, _Once(progress)))
    keys = [
        _settings(flags, run, study.identity)
        for flags, run in zip(configs, study.runs, strict=True)
    ]
    with output.alone():
        there = read_table(table) if table.exists() else []
        found = {_identity(row): row for row in there}
        todo = {
            i: run
            for i, run in enumerate(study.runs)
            if _identity(keys[i]) not in found
        }
        spent = _Spent()
        trained = _train(todo, study.rows, config.runs_at_once, spent, progress)
        for number, outcome, at_once in trained:
            row = keys[number] | _figures(outcome, study.corpus, at_once)
            found[_identity(row)] = row
            write_table(table, found.values())
    return Sweep(
        [found[_identity(key)] for key in keys],
        len(todo),
        time.perf_counter() - start,
        spent.compile_seconds,
        spent.memory,
    )


def train_runs(
    configs: Sequence[FinetuneConfig],
    relabel: Relabel = _as_they_are,
    progress: Progress = Silent(),
) -> tuple[Corpus, list[Outcome]]:
    """Trains runs that share one corpus as a sweep does, and keeps them in memory.

    Args:
      configs: flags of the runs, which differ in nothing that makes the corpus.
      relabel: makes the `[n]` labels that a run trains on, of its place in `configs`
        and the right ones: wrong ones, say.
      progress: is told what happens.

    Returns:
      The corpus, and what each run came to.

    Raises:
      UserError: bad data or settings.
    """
    study = _study(configs, relabel, cast(Progress, _Once(progress)))
    runs = dict(enumerate(study.runs))
    trained = _train(runs, study.rows, None, _Spent(), progress)
    outcomes = {number: outcome for number, outcome, _ in trained}
    return study.corpus, [outcomes[number] for number in runs]


class _Study(NamedTuple):
    """Runs over one corpus, ready to train."""

    corpus: Corpus
    identity: str  # Of the corpus, and of the run that all start from.
    runs: list[Run]
    rows: tuple[Rows, Rows]  # For training and for validation.


def _study(
    configs: Sequence[FinetuneConfig], relabel: Relabel, progress: Progress
) -> _Study:
    corpus = load_corpus(configs[0], progress)
    source = load_source(configs[0])
    identity = corpus.fingerprint[:16]
    if source is not None:
        identity += fingerprint(source.params, corpus.featurizer)[:16]
    runs = []
    for number, config in enumerate(configs):
        labels = relabel(number, corpus.train.labels)
        own = corpus._replace(train=corpus.train._replace(labels=labels))
        runs.append(_run(config, own, source, progress))
    rows = _rows(configs[0], corpus, source, progress)
    return _Study(corpus, identity, runs, rows)


@dataclasses.dataclass
class _Spent:
    """What the programs of a sweep cost."""

    compile_seconds: float = 0.0
    memory: int = 0


def _train(
    runs: dict[int, Run],
    rows: tuple[Rows, Rows],
    at_once: int | None,
    spent: _Spent,
    progress: Progress,
) -> Iterator[tuple[int, Outcome, int]]:
    """Yields the number of each run, what it came to, and how many trained together.

    Runs of one structure are one program; how many of them train together is found
    out with the first.
    """
    train, val = jax.device_put(rows[0]), rows[1]
    kinds: dict[Any, list[int]] = {}
    for number, run in runs.items():
        kinds.setdefault(run.structure(), []).append(number)
    done = 0
    for place, members in enumerate(kinds.values(), 1):
        progress.stage(f"program {place} of {len(kinds)}")
        start = time.perf_counter()
        mine = [runs[number] for number in members]
        if at_once is None and len(runs) >= _WORTH_MEASURING:
            program, compiling = _measured(mine, train, val, progress)
            at_once = program.at_once
        else:
            program = Program(mine, min(at_once or 1, len(mine)), train, val)
            compiling = program.compile_seconds
        spent.compile_seconds += compiling
        spent.memory = max(spent.memory, program.memory)
        for together, outcomes in _side_by_side(program, runs, members):
            for number, outcome in zip(together, outcomes, strict=True):
                yield number, outcome, program.at_once
            done += len(together)
            if outcomes[-1].history:
                progress.chunk(done, len(runs), outcomes[-1].history[-1])
        progress.notice(
            f"program {place} of {len(kinds)}: {len(members)} runs in "
            f"{time.perf_counter() - start:.1f} s, {program.at_once} at once, "
            f"{compiling:.1f} s of it to compile"
        )


def _side_by_side(
    program: Program, runs: dict[int, Run], members: list[int]
) -> Iterator[tuple[list[int], list[Outcome]]]:
    """Trains all members, chunk by chunk: on a CPU one chunk for each core.

    A step of a small model keeps one core busy. Threads do: JAX computes outside of
    Python's lock, and a run does not depend on what trains beside it.
    """
    cores = usable_cores() if jax.default_backend() == "cpu" else 1
    room = _room(runs[members[0]]) // program.at_once
    pool = ThreadPoolExecutor(max(1, min(cores, room)))
    starts = range(0, len(members), program.at_once)
    chunks = [members[start : start + program.at_once] for start in starts]
    train = lambda chunk: program.train([runs[number] for number in chunk])
    try:
        yield from zip(chunks, pool.map(train, chunks), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _measured(
    runs: Sequence[Run], train: Rows, val: Rows, progress: Progress
) -> tuple[Program, float]:
    """The program with the fastest number of runs at once, and seconds to compile."""
    program, seconds, compiling = measured_program(
        runs, train, val, most=_room(runs[0])
    )
    listed = ", ".join(f"{count}: {took:.3f} s" for count, took in seconds.items())
    progress.notice(f"an epoch of a run, by runs at once: {listed}")
    return program, compiling


def _room(run: Run) -> int:
    """How many runs like this one half of the memory holds: of a GPU, or of 2 GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    room = stats.get("bytes_limit", _MEMORY) // 2
    return max(1, room // state_bytes(run))


def _run(
    config: FinetuneConfig, corpus: Corpus, source: Source | None, progress: Progress
) -> Run:
    """What `finetune` would make of the flags."""
    model = model_shape(config, corpus, source)
    recipe, loop = make_recipe(config, model, corpus, progress)
    params = lambda: initial_params(config, model, corpus, source)[0]

    def ref_logits():
        rows = with_reference(config, recipe, params(), corpus.train, progress)
        return rows.ref_logits

    head = frozen_recipe(config, recipe)
    plan = make_plan(config, corpus)
    if not config.frozen_features:
        return Run(head, loop, plan, params, ref_logits)
    return Run(head, loop, plan, lambda: trained_params(params()), ref_logits)


def _rows(
    config: FinetuneConfig, corpus: Corpus, source: Source | None, progress: Progress
) -> tuple[Rows, Rows]:
    """Training and validation rows of all runs: a frozen encoder knows no seed."""
    model = model_shape(config, corpus, source)
    recipe, _ = make_recipe(config, model, corpus, progress)
    params, _ = initial_params(config, model, corpus, source)
    freeze = lambda rows: frozen_rows(config, recipe, params, rows)
    return freeze(corpus.train), freeze(corpus.val)


def _settings(config: FinetuneConfig, run: Run, identity: str) -> Row:
    """The settings of a run, those that it was left to choose included."""
    values = {name: getattr(config, name) for name in RUN_FIELDS}
    values |= {
        "epochs": run.loop.epochs,
        "label_smoothing": config.smoothing(),
        "batch_size": run.plan.batch_size,
        "warmup_steps": run.recipe.optimizer.warmup_steps,
        "fingerprint": identity,
    }
    row = catalogue.OBJECTIVES.get(config.pref_objective, catalogue.USERS)
    for name, default in (("pref_beta", row.beta), ("pref_margin", row.margin)):
        if values[name] is None:
            values[name] = default
    return {name: _text(value) for name, value in values.items()}


def _figures(outcome: Outcome, corpus: Corpus, at_once: int) -> Row:
    """What a run came to; a diverged one has no figures but where it did."""
    found: dict[str, Any] = {"diverged": outcome.diverged or None}
    if not outcome.diverged:
        best = best_epoch(outcome.history)
        metrics = outcome.history[best - 1]
        found |= {name: metrics[name] for name in FIGURES if name in metrics}
        found["best_epoch"] = best
        labels, (predicted, confidence) = corpus.val.labels, outcome.best
        found["eval_macro_f1"] = macro_f1(predicted, labels)
        found["eval_calibration"] = expected_calibration_error(
            confidence, predicted == labels
        )
        if "reliability/0" in metrics:
            found["reliability"] = ", ".join(
                f"{name}={metrics[f'reliability/{source}']:.6f}"
                for source, name in enumerate(corpus.sources)
            )
    found["steps_per_second"] = round(outcome.steps_per_second, 1)
    found["runs_at_once"] = at_once
    return {name: _text(found.get(name)) for name in FIGURES[1:]}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _identity(row: Row) -> tuple[str, ...]:
    """Rows with one identity are of one run."""
    return tuple(row[name] for name in (*RUN_FIELDS, "fingerprint"))


class _Once:
    """Progress that tells each notice once, not for every run."""

    def __init__(self, progress: Progress):
        self._told: set[str] = set()
        self._progress = progress

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)

    def notice(self, text: str) -> None:
        """A line that the user should know, if it is new."""
        if text not in self._told:
            self._told.add(text)
            self._progress.notice(text)
