"""How long whole commands take, from the start of their process.

    python -m benchmarks.startup --data banking77/train.jsonl --weights RUN \
        --corpus rows.jsonl

`prefchat --help`; a chat's first reply to a pipe; the first chunk of training steps of
`prefchat finetune`; and the whole of that command on `--corpus`, two epochs. Those that
train run with an empty directory of compiled programs (cold) and then with what that
left (warm). All take turns, after a bare `python -c pass` and `import jax`, the least
that such processes need. Seconds are by the clock and by the processor time of all
threads, which other work on a busy machine changes least; memory is the peak.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import PREFCHAT
from benchmarks.timing import DEMO, command, flags, show, start

COLUMNS = {
    "": ("name", ""),
    "seconds": ("seconds", ".2f"),
    "spread": ("spread", ".2f"),
    "CPU seconds": ("cpu_seconds", ".2f"),
    "peak MB": ("peak_mb", ".0f"),
    "goal s": ("goal_seconds", ".1f"),
}
_POLL = 0.005


class Ran(NamedTuple):
    """What one process came to, up to its event or its end."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run(
    code: str,
    argv: Sequence[str] = (),
    *,
    cache: pathlib.Path | None = None,
    typed: str = "",
    until: Callable[[], bool] = lambda: False,
) -> Ran:
    """Runs Python code as a process of its own, at most until something is there.

    Args:
      code: for `python -c`.
      argv: its arguments.
      cache: the user's cache directory.
      typed: its standard input.
      until: whether what is waited for has come; the process is then stopped.

    Raises:
      RuntimeError: it failed.
    """
    environment = os.environ | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as standard_input,
        tempfile.TemporaryFile("w+") as errors,
    ):
        standard_input.write(typed)
        standard_input.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-c", code, *argv],
            env=environment,
            stdin=standard_input,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        cpu = peak = 0.0
        while process.poll() is None:
            has_come = until()
            seconds = time.perf_counter() - began
            cpu, peak = _spent(process.pid, cpu, peak)
            if has_come:
                process.kill()
                process.wait()
                return Ran(seconds, cpu, peak)
            time.sleep(_POLL)
        seconds = time.perf_counter() - began
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{argv}: {errors.read()}")
        return Ran(seconds, cpu, peak)


def _spent(pid: int, cpu: float, peak: float) -> tuple[float, float]:
    """Processor seconds and peak MB of a process; what they were if it is over."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return cpu, peak
    ticks = int(fields[11]) + int(fields[12])
    cpu = max(cpu, ticks / os.sysconf("SC_CLK_TCK"))
    if "VmHWM:" in status:
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1e3
    return cpu, peak


def turns(
    folder: pathlib.Path, data: str, corpus: str | None, weights: str | None
) -> Iterator[tuple[str, float | None, Ran]]:
    """Each command once: its name, the seconds it should take, what it took."""
    yield "python -c pass", None, run("pass")
    yield "python -c 'import jax'", None, run("import jax")
    yield "prefchat --help", 0.2, run(PREFCHAT, ["--help"])
    if weights:
        argv = ["chat", weights]
        yield "chat: one reply, to the end", 1.0, run(PREFCHAT, argv, typed="hi\n")
    for state, goal, whole_goal in (("cold", 4.0, 12.0), ("warm", 3.0, 6.0)):
        output = folder / state
        train = ["finetune", "--output", str(output), "--device", "cpu", "--data"]
        log = output / "metrics.jsonl"
        yield (
            f"finetune: first steps, {state}",
            goal,
            run(
                PREFCHAT,
                [*train, data],
                cache=folder / "first",
                until=lambda log=log: log.exists() and log.stat().st_size > 0,
            ),
        )
        if corpus:
            whole = folder / f"whole_{state}"
            argv = ["finetune", "--output", str(whole), "--device", "cpu"]
            argv += ["--data", corpus, "--epochs", "2"]
            yield (
                f"finetune: whole, two epochs, {state}",
                whole_goal,
                run(PREFCHAT, argv, cache=folder / "whole"),
            )


def measure(rounds: int, *inputs: Any) -> list[dict[str, Any]]:
    """Medians over rounds of turns."""
    found: dict[str, list[Ran]] = {}
    goals = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, goal, ran in turns(pathlib.Path(folder), *inputs):
                found.setdefault(name, []).append(ran)
                goals[name] = goal
    rows = []
    for name, each in found.items():
        seconds, cpu_seconds, peak_mb = np.median(each, axis=0)
        low, high = np.quantile([ran.seconds for ran in each], [0.25, 0.75])
        rows.append(
            {
                "name": name,
                "seconds": seconds,
                "spread": high - low,
                "cpu_seconds": cpu_seconds,
                "peak_mb": peak_mb,
                "goal_seconds": goals[name],
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = flags(__doc__, seconds=None, quick="one round")
    parser.add_argument("--data", default=DEMO, help="to train on; a shipped one")
    parser.add_argument("--corpus", help="to run the whole command on; none")
    parser.add_argument("--weights", help="a run to chat with; none")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    args, limits = start(parser, argv)
    rounds = 1 if args.quick else args.rounds
    rows = measure(rounds, args.data, args.corpus, args.weights)
    title = f"median of {rounds} processes each"
    show(title, COLUMNS, rows, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
