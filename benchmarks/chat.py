"""How long a chat takes from a text to its reply, by the number of stored answers.

    python -m benchmarks.chat --weights RUN --data pairs.jsonl --rows 10000 100000

Fills a database of the run with as many rows as asked for, as `benchmarks.retrieval`
does. Then a process of its own, which imports no JAX, opens it cold and replies to
messages of `--data`, one at a time. Without `--weights` a run of the demo's rows is
trained first. `benchmarks.serving` is the same over HTTP.
"""

import itertools
import pathlib
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.processes import in_process, peak_memory
from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.chat.session import Chat

COLUMNS = {
    "stored": ("rows", ","),
    "first reply s": ("load_seconds", ".2f"),
    "p50 ms": ("p50_ms", ".2f"),
    "p99 ms": ("p99_ms", ".2f"),
    "CPU ms": ("cpu_ms", ".2f"),
    "replies": ("replies", ","),
    "resident MB": ("resident_mb", ",.0f"),
}


def reply(run: str, database: str, messages: Sequence[str], seconds: float) -> dict:
    """Opens a database, cold in this process, and times one reply after another.

    Args:
      run: directory of the run.
      database: its stored answers.
      messages: what to ask, each at least once.
      seconds: for how long, then.
    """
    start = time.perf_counter()
    settings = ChatSettings(min_confidence=0)
    with Chat.load(run, database=database, settings=settings) as chat:
        chat.reply(messages[0])
        load = time.perf_counter() - start
        wall, cpu = [], time.process_time()
        end = time.perf_counter() + seconds
        for text in itertools.cycle(messages):
            start = time.perf_counter()
            chat.reply(text, style="balanced")
            now = time.perf_counter()
            wall.append(1e3 * (now - start))
            if now > end and len(wall) >= len(messages):
                break
        cpu = 1e3 * (time.process_time() - cpu) / len(wall)
    return {
        "load_seconds": load,
        "p50_ms": float(np.percentile(wall, 50)),
        "p99_ms": float(np.percentile(wall, 99)),
        "cpu_ms": cpu,
        "replies": len(wall),
        "resident_mb": peak_memory() / 1e6,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    # With JAX, which `reply` has to do without.
    from benchmarks.retrieval import build_store, questions, read_answered, rows_of
    from benchmarks.timing import chat_flags, run_or_demo, show, start
    from prefchat_jax.inference import Inference
    from prefchat_jax.training.run_directory import RunDirectory

    parser = chat_flags(__doc__, seconds=5.0, quick="1,000 rows, 20 messages")
    args, limits = start(parser, argv)
    sizes, asked = ([1000], 20) if args.quick else (args.rows, args.messages)
    examples, rows = read_answered(args.data), []
    with tempfile.TemporaryDirectory() as folder:
        run = run_or_demo(args.weights, folder)
        for size in sizes:
            database = pathlib.Path(folder) / f"{size}.db"
            inference = Inference.load(RunDirectory.open(run))
            build_store(database, inference, list(rows_of(examples, size)))
            ask = (run, str(database), questions(examples, asked), args.seconds)
            rows.append({"rows": size} | in_process("benchmarks.chat:reply", *ask))
    show("a reply", COLUMNS, rows, limits, as_json=args.json)


if __name__ == "__main__":
    from benchmarks.timing import command

    command(main)
