"""The harness of the benchmarks: compile once, warm up, take turns, print.

What is compared runs in one process, turn by turn, so that a busy minute of the
machine meets all of it; a ratio is the median over turns of the ratio of a turn.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

import prefchat_jax
from benchmarks.machine import Ceilings, ceilings, describe, use_threads
from prefchat_jax.cli.console import table
from prefchat_jax.cli.device import select_device
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import finetune
from prefchat_jax.training.config import FinetuneConfig

# The rows that ship with the package.
DEMO = str(pathlib.Path(prefchat_jax.__file__).parent / "data" / "helpdesk.jsonl")
_FEWEST = 3  # Turns, however long one takes.


class Program(NamedTuple):
    """A compiled function and its arguments.

    Attributes:
      call: runs it, waits, and returns what it gives.
      compile_seconds: tracing included.
      array_bytes: of arguments and results, which no program can do without.
      accessed_bytes: what all operations read and write, as the compiler counts.
      temporary_bytes: what it sets aside beside arguments and results.
      operations: floating-point ones, as the compiler counts.
    """

    call: Callable[[], Any]
    compile_seconds: float
    array_bytes: float
    accessed_bytes: float
    temporary_bytes: float
    operations: float


class Timing(NamedTuple):
    """`[turns]` seconds of calls.

    Attributes:
      wall: by the clock.
      processor: of all threads of this process: other work on the machine changes it
        least.
    """

    wall: np.ndarray
    processor: np.ndarray

    @property
    def median_us(self) -> float:
        return 1e6 * float(np.median(self.wall))

    @property
    def spread_us(self) -> float:
        """The interquartile range."""
        low, high = np.quantile(self.wall, [0.25, 0.75])
        return 1e6 * float(high - low)


def compile_program(fn: Callable[..., Any], *args: Any, carry: bool = False) -> Program:
    """Compiles `fn` for arrays; Python numbers would be compiled in.

    Args:
      fn: what to time.
      *args: its arguments.
      carry: the first argument is a state, which is donated; the first result takes
        its place in the next call, as in a loop of training.
    """
    start = time.perf_counter()
    jitted = jax.jit(fn, donate_argnums=0 if carry else ())
    compiled = jitted.lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    assert memory is not None, "this device does not tell"
    cost = compiled.cost_analysis() or {}
    state = list(args)

    def call() -> Any:
        found = jax.block_until_ready(compiled(*state))
        if carry:
            state[0] = found[0]
        return found

    return Program(
        call,
        seconds,
        memory.argument_size_in_bytes + memory.output_size_in_bytes,
        cost.get("bytes accessed", float("nan")),
        memory.temp_size_in_bytes,
        cost.get("flops", float("nan")),
    )


def take_turns(
    calls: Mapping[str, Callable[[], Any]], *, seconds: float
) -> dict[str, Timing]:
    """Times calls one after the other, over and over.

    Args:
      calls: what to time, by name; each returns when it is done.
      seconds: how long, for each of them on average.
    """
    for call in calls.values():
        call()
        call()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds * len(calls)
    turns = 0
    while turns < _FEWEST or time.perf_counter() < end:
        for name, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            processor = time.process_time() - processor
            samples[name].append((time.perf_counter() - wall, processor))
        turns += 1
    return {name: Timing(*np.array(rows).T) for name, rows in samples.items()}


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times as long one takes as the other, turn by turn."""
    return float(np.median(slow.wall / fast.wall))


def figures(
    program: Program, timing: Timing, limits: Ceilings, examples: int
) -> dict[str, float]:
    """What there is to say of one timed program.

    The limit is the time that its arguments and results take to be copied once, or
    that its operations take in a matrix product, whichever is longer. Arrays that
    stay in a cache can beat it.
    """
    copied_us = 1e-3 * program.array_bytes / limits.copy_gb_per_second
    computed_us = 1e-3 * program.operations / limits.product_gflops
    limit_us = float(np.fmax(copied_us, computed_us))
    return {
        "compile_seconds": program.compile_seconds,
        "median_us": timing.median_us,
        "spread_us": timing.spread_us,
        "processor_us": 1e6 * float(np.median(timing.processor)),
        "examples_per_second": 1e6 * examples / timing.median_us,
        "array_mb": program.array_bytes / 1e6,
        "accessed_mb": program.accessed_bytes / 1e6,
        "temporary_mb": program.temporary_bytes / 1e6,
        "mflop": program.operations / 1e6,
        "copy_fraction": copied_us / timing.median_us,
        "product_fraction": computed_us / timing.median_us,
        "limit_us": limit_us,
        "limit_fraction": limit_us / timing.median_us,
    }


def flags(doc: str, *, seconds: float | None, quick: str) -> argparse.ArgumentParser:
    """The flags of every benchmark; one of whole processes has no `--seconds`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    devices = ["auto", "cpu", "gpu", "tpu"]
    parser.add_argument("--device", choices=devices, default="auto")
    parser.add_argument("--threads", type=int, help="processors to use; all")
    if seconds is not None:
        parser.add_argument(
            "--seconds", type=float, default=seconds, help="of each; %(default)s"
        )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="JSON lines, no table")
    return parser


def chat_flags(doc: str, *, seconds: float, quick: str) -> argparse.ArgumentParser:
    """The flags of those that ask a run which has stored answers."""
    parser = flags(doc, seconds=seconds, quick=quick)
    parser.add_argument("--weights", help="run directory; one of the demo's rows")
    parser.add_argument("--data", default=DEMO, help="rows with a reply; the demo's")
    rows = [10_000, 100_000]
    parser.add_argument("--rows", type=int, nargs="+", default=rows, help="to store")
    parser.add_argument("--messages", type=int, default=300, help="to ask")
    return parser


def run_or_demo(weights: str | None, folder: str) -> str:
    """The run of `--weights`, or else one of the demo's rows, trained in a folder."""
    if weights:
        return weights
    output = os.path.join(folder, "run")
    finetune(FinetuneConfig(data=DEMO, output=output))
    return output


def start(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Ceilings]:
    """Reads the flags, holds JAX to what they say, and measures the machine."""
    args = parser.parse_args(argv)
    if args.quick and "seconds" in args:
        args.seconds = min(args.seconds, 0.02)
    try:
        use_threads(args.threads)
        select_device(args.device)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    return args, ceilings(quick=args.quick)


def show(
    title: str,
    columns: Mapping[str, tuple[str, str]],
    rows: Sequence[dict],
    limits: Ceilings,
    *,
    as_json: bool,
    text_columns: int = 1,
) -> None:
    """Prints rows under the machine and its ceilings, or a line of JSON for each.

    Args:
      title: what the table is of.
      columns: the key of a row and its format, by heading; one that no row fills is
        left out.
      rows: the figures; what a row lacks, or has as None, stays empty.
      limits: of this machine, in this run.
      as_json: whether to print JSON lines.
      text_columns: how many columns at the left are text.
    """
    machine = describe() | {
        key: round(value, 1) for key, value in limits._asdict().items()
    }
    if as_json:
        for row in rows:
            print(json.dumps(machine | row))
        return
    filled = {
        heading: (key, form)
        for heading, (key, form) in columns.items()
        if any(row.get(key) is not None for row in rows)
    }
    cells = [
        [
            "" if row.get(key) is None else format(row[key], form)
            for key, form in filled.values()
        ]
        for row in rows
    ]
    console = Console(width=180, highlight=False)
    said = [f"{key.replace('_', ' ')} {value}" for key, value in machine.items()]
    console.print(", ".join(said), soft_wrap=True)
    console.print(table(title, list(filled), cells, text_columns=text_columns))


def command(main: Callable[[], None]) -> None:
    """Runs a benchmark; what its user did wrong is one line."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
