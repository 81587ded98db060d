"""Times jitted functions: one compilation, then the median of many calls."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from prefchat_jax.cli.device import select_device
from prefchat_jax.errors import UserError


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


def parse(
    doc: str, argv: Sequence[str] | None, *, repeats: int, quick: str
) -> argparse.Namespace:
    """The flags of a benchmark; JAX then computes on the device they name."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    devices = ["auto", "cpu", "gpu", "tpu"]
    parser.add_argument("--device", choices=devices, default="auto")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="JSON lines, no table")
    args = parser.parse_args(argv)
    try:
        select_device(args.device)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    return args
