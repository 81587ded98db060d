"""The loop: epochs, validation, the best checkpoint, early stopping, resuming."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from prefchat_jax.datasets.sampling import EpochPlan, Plan
from prefchat_jax.errors import UserError
from prefchat_jax.models.classifier import Params
from prefchat_jax.training.checkpoints import Checkpoints
from prefchat_jax.training.config import ReportTo
from prefchat_jax.training.metrics_log import (
    Metrics,
    MetricsLog,
    read_epochs,
)
from prefchat_jax.training.noise import re_po
from prefchat_jax.training.preference import Preference
from prefchat_jax.training.profiling import Traced
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.steps import (
    Recipe,
    Rows,
    eval_params,
    init_state,
    predict,
    run_steps,
    score,
)

MOST_AT_ONCE = 128  # Micro-batches in one dispatch; progress is shown after each.
_ADVICE = (
    "lower --lr, set --grad_clip_norm 1.0, or check your own objective. Epochs that "
    "were saved before can be resumed"
)


class Progress(Protocol):
    """Is told how training goes."""

    def notice(self, text: str) -> None:
        """A line that the user should know."""

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """What training starts from."""

    def stage(self, name: str) -> None:
        """What trains from now on."""

    def chunk(self, done: int, total: int, metrics: Metrics) -> None:
        """`done` micro-batches of the run are through; metrics of the last ones."""

    def epoch(self, metrics: Metrics) -> None:
        """An epoch was validated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, and when to stop."""

    epochs: int
    patience: int  # Epochs without a better validation loss; 0 never stops.
    ramp_epochs: float  # Warm-up of the preference weight.
    use_ema: bool
    seed: int
    profile: bool = False


class Fit(NamedTuple):
    """What training found: the history by epoch, and the best one."""

    history: list[Metrics]
    best_epoch: int


def fit(
    run: RunDirectory,
    recipe: Recipe,
    config: LoopConfig,
    params: Params,
    train: Rows,
    val: Rows,
    plan: EpochPlan,
    progress: Progress,
    scorer: Params | None = None,
    report_to: ReportTo = "none",
) -> Fit:
    """Trains to the end, or goes on after the last checkpoint of `run`.

    Without validation rows the last epoch counts as the best. Each checkpoint also
    holds `scorer`, as it is. What is logged also goes where `report_to` says.

    Raises:
      UserError: a loss term is not finite.
    """
    rows = jax.device_put(train)
    run_chunk = partial(
        run_steps,
        recipe,
        rows=rows,
        key=jax.random.key(config.seed),
        ramp_steps=np.float32(config.ramp_epochs * plan.micro_batches),
    )
    if config.profile:
        run_chunk = Traced(run_chunk, run.profile)
    state = init_state(recipe, params)
    with ExitStack() as opened:
        checkpoints = opened.enter_context(Checkpoints(run.checkpoints, scorer))
        history: list[Metrics] = []
        if checkpoints.last_epoch:
            state = checkpoints.resume(state)
            history = _read_history(run, checkpoints.last_epoch)
        log = opened.enter_context(MetricsLog(run, history, report_to))

        def on_chunk(done: int, metrics: Metrics) -> None:
            log.write({"step": done, "epoch": len(history) + 1} | metrics)
            progress.chunk(done, config.epochs * plan.micro_batches, metrics)

        while not is_over(history, config):
            epoch = len(history) + 1
            state, row = train_epoch(run_chunk, state, plan, epoch, on_chunk, _ADVICE)
            params = eval_params(recipe, state, use_ema=config.use_ema)
            row |= _validate(recipe, params, val)
            row |= trust(recipe.objective.preference, state.preference.reliability)
            history.append(row)
            # Logged first: an epoch that is saved but not logged could not resume.
            log.write({"summary": True} | row)
            checkpoints.offer(
                epoch,
                params,
                state,
                is_best=best_epoch(history) == epoch,
                is_last=is_over(history, config),
            )
            progress.epoch(row)
    return Fit(history, best_epoch(history))


def best_epoch(history: list[Metrics]) -> int:
    """The first epoch with the lowest validation loss, counted from 1.

    Without validation rows it is the last one.
    """
    if "eval_loss" not in history[-1]:
        return len(history)
    return 1 + min(range(len(history)), key=lambda i: history[i]["eval_loss"])


def is_over(history: list[Metrics], config: LoopConfig) -> bool:
    """Whether all epochs are through, or too many brought nothing better."""
    if len(history) >= config.epochs:
        return True
    stale = len(history) - best_epoch(history) if history else 0
    return stale >= config.patience > 0


def train_epoch(
    run_chunk: Callable[..., tuple[Any, dict[str, jax.Array]]],
    state: Any,
    plan: EpochPlan,
    epoch: int,
    on_chunk: Callable[[int, Metrics], None],
    advice: str,
) -> tuple[Any, Metrics]:
    """Runs one epoch in chunks; returns the state and the mean metrics.

    Args:
      run_chunk: takes `state` and `plan`, a chunk; returns the new state, and metrics
        `[m]` of its micro-batches.
      state: where to go on.
      plan: the order of the rows.
      epoch: its number, from 1.
      on_chunk: is told the micro-batches that are through, and the means of a chunk.
      advice: what to do where a loss is not finite.

    Raises:
      UserError: a loss is not finite.
    """
    start = time.perf_counter()
    done = (epoch - 1) * plan.micro_batches
    sums: Metrics = {}
    for chunk in _chunks(plan.epoch(epoch)):
        state, metrics = run_chunk(state=state, plan=chunk)
        metrics = check_finite(jax.device_get(metrics), done, advice)
        done += len(chunk.window)
        totals = metric_sums(metrics, chunk)
        sums = {name: sums.get(name, 0.0) + totals[name] for name in totals}
        count = int(np.sum(chunk.rows >= 0))
        on_chunk(done, {name: total / count for name, total in totals.items()})
    means = {name: total / len(plan.labels) for name, total in sums.items()}
    rate = len(plan.labels) / (time.perf_counter() - start)
    return state, {"epoch": epoch, **means, "examples_per_second": rate}


def metric_sums(metrics: dict[str, np.ndarray], plan: Plan) -> Metrics:
    """Sums over rows of means `[m]` over micro-batches; an empty one counts 0."""
    rows = np.sum(plan.rows >= 0, axis=1)
    return {name: float(rows @ values) for name, values in metrics.items()}


def chunk_size(micro_batches: int) -> int:
    """How many micro-batches to run at once: if it can be, all chunks are of one size.

    Each other size compiles another program, for seconds.
    """
    sizes = range(MOST_AT_ONCE, MOST_AT_ONCE // 4, -1)
    even = (size for size in sizes if micro_batches % size == 0)
    return next(even, MOST_AT_ONCE)


def _chunks(plan: Plan) -> Iterator[Plan]:
    size = chunk_size(len(plan.window))
    for start in range(0, len(plan.window), size):
        yield Plan(*(part[start : start + size] for part in plan))


def _validate(recipe: Recipe, params: Params, val: Rows) -> Metrics:
    """Unsmoothed cross-entropy and accuracy; nothing without rows."""
    if not len(val.ids):
        return {}
    logits = predict(recipe.model, params, val.ids, val.weights)
    return judged(logits, val)


def judged(logits: np.ndarray, val: Rows) -> Metrics:
    """What an epoch says of logits `[n, C]` of the validation rows."""
    return {f"eval_{name}": value for name, value in score(logits, val.labels).items()}


def trust(preference: Preference, reliability: Any) -> Metrics:
    """How far RE-PO came to trust each of the `[sources]`; nothing without it."""
    if preference.noise is not re_po:
        return {}
    values = np.asarray(reliability).tolist()
    return {f"reliability/{source}": value for source, value in enumerate(values)}


def check_finite(
    metrics: dict[str, np.ndarray], done: int, advice: str
) -> dict[str, np.ndarray]:
    """Stops at the first value that is not finite, and names its loss term.

    Args:
      metrics: `[m]` values by name, of the micro-batches after `done`.
      done: micro-batches before them.
      advice: what to do about it.

    Raises:
      UserError: a value is not finite.
    """
    if what := not_finite(metrics, done):
        raise UserError(f"{what}: {advice}.")
    return metrics


def not_finite(metrics: dict[str, np.ndarray], done: int) -> str:
    """Which term is not finite first, and when; nothing if all are."""
    # The parts come before their sum: the message should name the culprit.
    names = sorted(metrics, key=lambda n: (n == "grad_norm", n == "loss", n))
    values = np.stack([metrics[name] for name in names], axis=1)
    bad = np.argwhere(~np.isfinite(values))
    if not len(bad):
        return ""
    step, name = bad[0]
    return f"{names[name]} is {values[step, name]} at step {done + step + 1}"


def _read_history(run: RunDirectory, last_epoch: int) -> list[Metrics]:
    """The epoch rows up to the last checkpoint; later ones were never saved."""
    history = [row for row in read_epochs(run) if row["epoch"] <= last_epoch]
    if len(history) != last_epoch:
        raise UserError(
            f"{run.metrics} does not tell of all {last_epoch} epochs: train again."
        )
    return history
