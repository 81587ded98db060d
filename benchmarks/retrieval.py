"""How long a reply takes, and what the stored answers cost, by their number.

    python -m benchmarks.retrieval --weights RUN --data pairs.jsonl

Fills a database of a run with as many rows as asked for: those of `--data`, and
then the same with two words of others added, so that nothing is stored twice. Then
a process of its own opens it and replies to messages of `--data`, one at a time and
in one thread. In the same run and over the same texts, BM25 alone: the index of
words that a chat uses, FTS5 of the database, and `bm25s` where installed. Times are
CPU milliseconds and wall milliseconds. Prints tables or JSON lines (`--json`).
"""

import argparse
import importlib
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rich.console import Console

from prefchat_jax.chat.answers import as_answers
from prefchat_jax.chat.catalogue import segment_path
from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.chat.session import Chat
from prefchat_jax.cli.console import table
from prefchat_jax.datasets.records import read_records
from prefchat_jax.indexing import build_store, open_store
from prefchat_jax.inference import Inference
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.words import WordIndex, WordQuery, top
from prefchat_jax.training.run_directory import RunDirectory

_BLOCK = 20_000
_LIMIT = 80  # Rows that a lexical search returns.


def rows_of(examples: Sequence[Example], count: int) -> Iterator[tuple[Example, int]]:
    """`count` answered questions without a bucket, no two the same."""
    rng = np.random.default_rng(0)
    words = [word for e in examples for word in e.context[-1].content.split()]
    drawn = lambda: " ".join(words[i] for i in rng.integers(len(words), size=2))
    for number in range(count):
        example = examples[number % len(examples)]
        question, response = example.context[-1].content, str(example.response)
        if number >= len(examples):
            question, response = f"{question} {drawn()}", f"{response} {drawn()}"
            response += str(number)
        turns = (*example.context[:-1], Turn("user", question))
        yield example._replace(context=turns, response=response), -1


# --- a reply


def build(run: str, database: pathlib.Path, rows: Sequence) -> dict:
    """Builds a database; rows a second with and without featurising, and bytes."""
    inference = Inference.load(RunDirectory.open(run))
    cpu, wall = time.process_time(), time.perf_counter()
    build_store(database, inference, rows)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    examples = [example for example, _ in rows]
    start = time.process_time()
    contexts = [example.context for example in examples]
    responses = [str(example.response) for example in examples]
    for i in range(0, len(rows), _BLOCK):
        span = slice(i, i + _BLOCK)
        as_answers(
            inference, contexts[span], responses[span], [-1] * len(contexts[span])
        )
    featurising = time.process_time() - start
    texts = [c[-1].content + r for c, r in zip(contexts, responses, strict=True)]
    text = sum(len(each.encode()) for each in texts)
    with open_store(database, inference) as store:
        stored = store.stats()
    return {
        "rows": len(rows),
        "entries": stored["entries"],
        "build_rows_per_second": len(rows) / wall,
        "build_rows_per_cpu_second": len(rows) / cpu,
        "without_featurising": len(rows) / max(cpu - featurising, 1e-9),
        "text_bytes": text / len(rows),
        "database_bytes": database.stat().st_size / len(rows),
        "index_bytes": segment_path(database).stat().st_size / len(rows),
    }


def reply(run: str, database: pathlib.Path, messages: Sequence[str]) -> dict:
    """Opens a database, cold in this process, and times one reply after another."""
    start = time.perf_counter()
    chat = Chat.load(run, database=database, settings=ChatSettings(min_confidence=0))
    chat.reply(messages[0])
    load = time.perf_counter() - start
    wall, cpu = _timed(lambda text: chat.reply(text, style="balanced"), messages)
    chat.close()
    return {
        "load_seconds": load,
        "p50_ms": float(np.percentile(wall, 50)),
        "p99_ms": float(np.percentile(wall, 99)),
        "cpu_ms": cpu,
        "resident_mb": peak_memory() / 1e6,
    }


def peak_memory() -> float:
    """Bytes; `getrusage` would also count what the parent had when it forked."""
    status = pathlib.Path("/proc/self/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024.0 * int(match[1]) if match else 0.0


def in_process(run: str, database: pathlib.Path, messages: Sequence[str]) -> dict:
    """`reply` in a process of its own, whose memory holds nothing else."""
    command = [sys.executable, "-m", "benchmarks.retrieval", "--weights", run]
    done = subprocess.run(
        [*command, "--reply_from", str(database)],
        input=json.dumps(list(messages)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _timed(ask: Callable[[str], object], texts: Sequence[str]) -> tuple[list, float]:
    """Wall milliseconds of each call, and CPU milliseconds of one on average."""
    wall, cpu = [], time.process_time()
    for text in texts:
        start = time.perf_counter()
        ask(text)
        wall.append(1e3 * (time.perf_counter() - start))
    return wall, 1e3 * (time.process_time() - cpu) / len(texts)


# --- words alone


def lexical(
    run: str, database: pathlib.Path, rows: Sequence, messages: Sequence[str]
) -> Iterator[dict]:
    """BM25 over questions and responses together, in three ways."""
    texts = [f"{e.context[-1].content} {e.response}" for e, _ in rows]
    start = time.process_time()
    index = WordIndex.build(texts)
    seconds = time.process_time() - start
    ask = lambda text: top(index.scores(WordQuery.of([(text, 1.0)])), _LIMIT)
    yield _way("words of a chat", len(rows), seconds, *_timed(ask, messages))
    inference = Inference.load(RunDirectory.open(run))
    with open_store(database, inference) as store:
        ask = lambda text: store.search_text(text, _LIMIT)
        yield _way("FTS5 of the database", len(rows), None, *_timed(ask, messages))
    try:
        bm25s = importlib.import_module("bm25s")
    except ImportError:
        return
    split = lambda text: re.findall(r"\w+", text.lower())
    start = time.process_time()
    peer = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    peer.index([split(text) for text in texts], show_progress=False)
    seconds = time.process_time() - start
    ask = lambda text: peer.retrieve(
        [split(text)], k=min(_LIMIT, len(texts)), show_progress=False
    )
    yield _way("bm25s", len(rows), seconds, *_timed(ask, messages))


def _way(name: str, rows: int, seconds: float | None, wall: list, cpu: float) -> dict:
    return {
        "way": name,
        "rows": rows,
        "build_rows_per_cpu_second": seconds and rows / seconds,
        "p50_ms": float(np.percentile(wall, 50)),
        "p99_ms": float(np.percentile(wall, 99)),
        "cpu_ms": cpu,
    }


# --- the tables


def run(
    weights: str, data: str, sizes: Sequence[int], asked: int
) -> tuple[list[dict], list[dict]]:
    """Figures of replies, and of searches by words, for each size."""
    examples = [e for e in read_records([data]).examples if e.response]
    step = max(len(examples) // asked, 1)
    messages = [e.context[-1].content for e in examples[::step]][:asked]
    replies, searches = [], []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            database = pathlib.Path(folder) / "responses.db"
            rows = list(rows_of(examples, size))
            figures = build(weights, database, rows)
            replies.append(figures | in_process(weights, database, messages))
            searches += lexical(weights, database, rows, messages)
    return replies, searches


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", required=True, help="run directory")
    parser.add_argument("--data", help="JSONL rows with a reply")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="1,000 rows, 20 messages")
    parser.add_argument("--json", action="store_true", help="JSON lines, no table")
    parser.add_argument("--reply_from", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.reply_from:
        messages = json.load(sys.stdin)
        figures = reply(args.weights, pathlib.Path(args.reply_from), messages)
        print(json.dumps(figures))  # noqa: T201
        return
    if not args.data:
        parser.error("--data is missing: give JSONL rows with a reply.")
    sizes, asked = ([1000], 20) if args.quick else (args.rows, args.messages)
    for figures in run(args.weights, args.data, sizes, asked):
        if args.json:
            for row in figures:
                print(json.dumps(row))  # noqa: T201
        else:
            names = [name.replace("_", " ") for name in figures[0]]
            cells = [[_cell(value) for value in row.values()] for row in figures]
            title = "replies" if "way" not in figures[0] else "words alone"
            Console(width=160).print(table(title, names, cells))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return (
        "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    )


if __name__ == "__main__":
    main()
