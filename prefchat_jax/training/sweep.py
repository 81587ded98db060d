"""Sweep: runs that differ in seeds and numbers, as one compiled program.

A recipe is a pytree of its hyper-parameters, so recipes of one structure are stacked
and trained by the very step that a single run takes. All that differs otherwise (an
objective, a group, a size) is another structure, and another program.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prefchat_jax.datasets.sampling import EpochPlan, Plan
from prefchat_jax.models.classifier import Params, bucket_logits
from prefchat_jax.training.loop import (
    LoopConfig,
    Metrics,
    best_epoch,
    is_over,
    judged,
    metric_sums,
    not_finite,
    trust,
)
from prefchat_jax.training.steps import (
    Recipe,
    Rows,
    TrainState,
    eval_batches,
    eval_params,
    init_state,
    run_steps,
)

_FASTER = 0.85  # Share of the seconds that more runs at once must stay below.
_STEP = 4  # By which number of runs at once is multiplied while that helps.


class Run(NamedTuple):
    """One run of a sweep: what `finetune` makes of its flags.

    Attributes:
      recipe: its hyper-parameters, and what they are numbers of.
      loop: its epochs.
      plan: the order of its rows, and their labels.
      params: makes its initial parameters.
      ref_logits: makes its `[n, C]` logits of the reference policy, or None.
    """

    recipe: Recipe
    loop: LoopConfig
    plan: EpochPlan
    params: Callable[[], Params]
    ref_logits: Callable[[], np.ndarray | None]

    def structure(self) -> Any:
        """What compiles: runs with one structure share one program. Hashable."""
        return (
            jax.tree.structure(self.recipe),
            self.plan.batch_size,
            self.loop.epochs,
            self.loop.use_ema,
        )


class Answers(NamedTuple):
    """What a run says on the validation rows.

    Attributes:
      predicted: `[n]` buckets.
      confidence: `[n]` their probabilities.
    """

    predicted: np.ndarray
    confidence: np.ndarray


class Outcome(NamedTuple):
    """What a run of a sweep came to.

    Attributes:
      history: means of each epoch, as `finetune` writes them; without the epochs
        from where the run diverged on.
      best: answers at the best epoch, which `finetune` would save.
      last: answers at the last epoch, which no validation row chose.
      diverged: what was not finite first, and when; empty if all was.
      steps_per_second: micro-batches of all runs that trained together, a second.
    """

    history: list[Metrics]
    best: Answers
    last: Answers
    diverged: str
    steps_per_second: float


class Lanes(NamedTuple):
    """What runs that train together have of their own, stacked `[runs, ...]`."""

    recipe: Recipe
    key: jax.Array
    ramp_steps: jax.Array
    labels: jax.Array
    ref_logits: jax.Array | None


@partial(jax.jit, static_argnames="use_ema", donate_argnames="states")
def run_epoch(
    lanes: Lanes,
    states: TrainState,
    plans: Plan,
    rows: Rows,
    val: tuple[jax.Array, jax.Array],
    *,
    use_ema: bool,
) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
    """Trains every run for one epoch, and validates it.

    Args:
      lanes: the runs.
      states: `[runs, ...]` where they go on; donated.
      plans: `[runs, m, batch]` micro-batches.
      rows: all training rows, one copy for all runs.
      val: bags `[batches, batch, features]` of the validation rows.
      use_ema: whether averaged parameters are validated.

    Returns:
      The new states, metrics `[runs, m]`, and logits `[runs, batches * batch, C]`.
    """

    def one(own):
        lane, state, plan = own
        recipe = lane.recipe
        given = rows._replace(labels=lane.labels, ref_logits=lane.ref_logits)
        state, metrics = run_steps(
            recipe, state, given, plan, lane.key, lane.ramp_steps
        )
        params = eval_params(recipe, state, use_ema=use_ema)
        logits = jax.lax.map(
            lambda batch: bucket_logits(recipe.model, params, *batch), val
        )
        return state, metrics, logits.reshape(-1, logits.shape[-1])

    # One run alone needs no batched axis, which would cost it time and bits.
    count = len(lanes.key)
    batch_size = count if count > 1 else None
    return jax.lax.map(one, (lanes, states, plans), batch_size=batch_size)


class Program:
    """A compiled `run_epoch` for runs of one structure, `at_once` of them together.

    Attributes:
      at_once: runs that train together.
      compile_seconds: what compiling took.
      memory: bytes of what it reads, writes and holds in between.
    """

    def __init__(self, runs: Sequence[Run], at_once: int, train: Rows, val: Rows):
        self.at_once = at_once
        self._train, self._val = train, val
        self._batches = _stack(eval_batches(val.ids, val.weights))
        self._use_ema = runs[0].loop.use_ema
        lanes, states = self._start(self._filled(runs))
        start = time.perf_counter()
        self._compiled = run_epoch.lower(
            lanes,
            states,
            self._plans(self._filled(runs), 1),
            train,
            self._batches,
            use_ema=self._use_ema,
        ).compile()
        self.compile_seconds = time.perf_counter() - start
        used = self._compiled.memory_analysis()
        sizes = "argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes"
        self.memory = sum(getattr(used, size, 0) for size in sizes)

    def train(self, runs: Sequence[Run]) -> list[Outcome]:
        """Trains up to `at_once` runs to their ends; a diverged one stops none."""
        lanes, states = self._start(self._filled(runs))
        tracks = [_Track(run) for run in runs]
        start = time.perf_counter()
        for epoch in range(1, runs[0].loop.epochs + 1):
            plans = self._plans(self._filled(runs), epoch)
            states, *found = self._epoch(lanes, states, plans)
            for i, track in enumerate(tracks):
                plan, metrics, logits, reliability = jax.tree.map(
                    lambda part, i=i: part[i], (plans, *found)
                )
                logits = logits[: len(self._val.ids)]
                track.add(metrics, plan, reliability, logits, self._val)
            if all(track.is_over() for track in tracks):
                break
        steps = epoch * runs[0].plan.micro_batches * len(runs)
        rate = steps / (time.perf_counter() - start)
        return [track.outcome(rate) for track in tracks]

    def seconds_of_a_run(self, runs: Sequence[Run]) -> float:
        """How long one epoch of one run takes; what it trains is thrown away."""
        lanes, states = self._start(self._filled(runs))
        plans = self._plans(self._filled(runs), 1)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            states, *_ = self._epoch(lanes, states, plans)
            seconds.append(time.perf_counter() - start)
        return min(seconds) / self.at_once

    def _filled(self, runs: Sequence[Run]) -> list[Run]:
        """As many runs as were compiled for: the last one, again and again."""
        runs = list(runs[: self.at_once])
        return runs + [runs[-1]] * (self.at_once - len(runs))

    def _start(self, runs: Sequence[Run]) -> tuple[Lanes, TrainState]:
        refs = [ref for run in runs if (ref := run.ref_logits()) is not None]
        lanes = Lanes(
            _stack([jax.tree.map(np.float32, run.recipe) for run in runs]),
            jnp.stack([jax.random.key(run.loop.seed) for run in runs]),
            jnp.array(
                [run.loop.ramp_epochs * run.plan.micro_batches for run in runs],
                jnp.float32,
            ),
            jnp.stack([run.plan.labels for run in runs]),
            jnp.stack(refs) if refs else None,
        )
        params = _stack([run.params() for run in runs])
        return lanes, jax.vmap(init_state)(lanes.recipe, params)

    def _plans(self, runs: Sequence[Run], epoch: int) -> Plan:
        plans = [run.plan.epoch(epoch) for run in runs]
        return Plan(*(np.stack(parts) for parts in zip(*plans, strict=True)))

    def _epoch(self, lanes: Lanes, states: TrainState, plans: Plan) -> Any:
        states, *found = self._compiled(
            lanes, states, plans, self._train, self._batches
        )
        return states, *jax.device_get((*found, states.preference.reliability))


def measured_program(
    runs: Sequence[Run], train: Rows, val: Rows, *, most: int
) -> tuple[Program, dict[int, float], float]:
    """The program with as many runs at once as this device is fastest with.

    Args:
      runs: runs of one structure.
      train: training rows, on the device.
      val: validation rows, in NumPy.
      most: runs at once that memory has room for.

    Returns:
      The program, the seconds of an epoch of a run by runs at once, and those that
      all programs took to compile.
    """
    best = Program(runs, 1, train, val)
    seconds, compiling = {1: best.seconds_of_a_run(runs)}, best.compile_seconds
    # What is measured is lost: it should be little beside the runs themselves.
    while best.at_once * _STEP <= min(most, len(runs) // _STEP):
        other = Program(runs, best.at_once * _STEP, train, val)
        seconds[other.at_once] = other.seconds_of_a_run(runs)
        compiling += other.compile_seconds
        if seconds[other.at_once] > _FASTER * seconds[best.at_once]:
            break
        best = other
    return best, seconds, compiling


def state_bytes(run: Run) -> int:
    """Bytes of the state of one run, which every run at once needs."""
    state = jax.eval_shape(init_state, run.recipe, run.params())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


class _Track:
    """The history of one run, as `loop.fit` keeps it."""

    def __init__(self, run: Run):
        self._run = run
        self._history: list[Metrics] = []
        self._best = self._last = Answers(np.zeros(0, np.int64), np.zeros(0))
        self._diverged = ""

    def add(
        self,
        metrics: dict[str, np.ndarray],
        plan: Plan,
        reliability: np.ndarray,
        logits: np.ndarray,
        val: Rows,
    ) -> None:
        """An epoch is through; after the end of this run it is none of its own."""
        if self.is_over():
            return
        epoch, order = len(self._history) + 1, self._run.plan
        self._diverged = not_finite(metrics, (epoch - 1) * order.micro_batches)
        if self._diverged:
            return
        sums = metric_sums(metrics, plan)
        means = {name: total / len(order.labels) for name, total in sums.items()}
        means |= judged(logits, val) | trust(
            self._run.recipe.objective.preference, reliability
        )
        self._history.append({"epoch": epoch, **means})
        self._last = _answers(logits)
        if best_epoch(self._history) == epoch:
            self._best = self._last

    def is_over(self) -> bool:
        """Whether this run has diverged, or is through."""
        return bool(self._diverged) or is_over(self._history, self._run.loop)

    def outcome(self, steps_per_second: float) -> Outcome:
        """What the run came to."""
        return Outcome(
            self._history, self._best, self._last, self._diverged, steps_per_second
        )


def _answers(logits: np.ndarray) -> Answers:
    """The most likely bucket of each row of logits `[n, C]`, and how likely it is."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return Answers(logits.argmax(axis=-1), 1 / odds.sum(axis=-1))


def _stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one tree on the device, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
