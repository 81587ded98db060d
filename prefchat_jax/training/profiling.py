"""A trace of training, to see where its time goes."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

from prefchat_jax.datasets.sampling import Plan


class Traced:
    """A function of a state and a chunk, traced once, after it has compiled.

    The trace is that of the first chunk whose size another chunk had before, and goes
    to a folder that TensorBoard reads; its `*.trace.json.gz` is for ui.perfetto.dev.
    A training of one chunk leaves none.
    """

    def __init__(self, run_chunk: Callable[..., Any], folder: pathlib.Path):
        self._run_chunk = run_chunk
        self._folder = folder
        self._sizes: set[int] = set()
        self._is_over = False

    def __call__(self, *, state: Any, plan: Plan) -> Any:
        """Runs the chunk."""
        size = len(plan.window)
        if self._is_over or size not in self._sizes:
            self._sizes.add(size)
            return self._run_chunk(state=state, plan=plan)
        self._is_over = True
        with jax.profiler.trace(str(self._folder)):
            return jax.block_until_ready(self._run_chunk(state=state, plan=plan))
