"""Times jitted functions: one compilation, then the median of many calls."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """One compilation and many calls of a jitted function."""

    compile_seconds: float
    median_us: float
    spread_us: float  # Interquartile range.


def time_jitted(
    fn: Callable[..., Any], *args: Any, repeats: int = 30, calls: int = 10
) -> Timing:
    """Compiles `fn` for `args`, warms up, and times blocks of calls.

    Args:
      fn: function of arrays; Python numbers would be compiled in.
      *args: its arguments.
      repeats: timed blocks.
      calls: calls in a block; only the last one is waited for.
    """
    start = time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    out = jax.block_until_ready(compiled(*args))
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            out = compiled(*args)
        jax.block_until_ready(out)
        samples.append(1e6 * (time.perf_counter() - start) / calls)
    low, median, high = statistics.quantiles(samples, n=4)
    return Timing(compile_seconds, median, high - low)
