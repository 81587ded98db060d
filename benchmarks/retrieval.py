"""Building a database of stored answers, and finding some by words, by their number.

    python -m benchmarks.retrieval --weights RUN --data pairs.jsonl --rows 10000 100000

Fills a database of a run with as many rows as asked for: those of `--data`, and
then the same with two words of others added, so that nothing is stored twice. Then
BM25 over the same texts, turn by turn, a message at a time: the index of words that a
chat uses, FTS5 of the database, and `bm25s` where it is installed. A whole reply is
timed by `benchmarks.chat`. Without `--weights` a run of the demo's rows is trained.
"""

import importlib
import itertools
import logging
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.timing import (
    chat_flags,
    command,
    run_or_demo,
    show,
    start,
    take_turns,
)
from prefchat_jax.chat.answers import as_answers
from prefchat_jax.chat.catalogue import segment_path
from prefchat_jax.datasets.records import read_records
from prefchat_jax.errors import UserError
from prefchat_jax.indexing import build_store, open_store
from prefchat_jax.inference import Inference
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.words import WordIndex, WordQuery, top
from prefchat_jax.training.run_directory import RunDirectory

_BLOCK = 20_000
_LIMIT = 80  # Rows that a lexical search returns.
BUILDS = {
    "rows": ("rows", ","),
    "entries": ("entries", ","),
    "rows/s": ("build_rows_per_second", ",.0f"),
    "rows/CPU s": ("build_rows_per_cpu_second", ",.0f"),
    "without features": ("without_featurising", ",.0f"),
    "text bytes a row": ("text_bytes", ",.0f"),
    "database": ("database_bytes", ",.0f"),
    "index": ("index_bytes", ",.0f"),
}
SEARCHES = {
    "by": ("way", ""),
    "rows": ("rows", ","),
    "built rows/CPU s": ("build_rows_per_cpu_second", ",.0f"),
    "p50 ms": ("p50_ms", ".2f"),
    "p99 ms": ("p99_ms", ".2f"),
    "CPU ms": ("cpu_ms", ".2f"),
}


def read_answered(path: str) -> list[Example]:
    """The rows with a reply.

    Raises:
      UserError: there are none.
    """
    examples = [e for e in read_records([path]).examples if e.response]
    if not examples:
        raise UserError(f"--data {path}: no row has a reply.")
    return examples


def questions(examples: Sequence[Example], count: int) -> list[str]:
    """So many questions, from all over."""
    step = max(len(examples) // count, 1)
    return [example.question for example in examples[::step]][:count]


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


def build(inference: Inference, database: pathlib.Path, rows: Sequence) -> dict:
    """Builds a database; rows a second with and without featurising, and bytes."""
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


# --- by words


def search(
    database: pathlib.Path,
    inference: Inference,
    rows: Sequence,
    messages: Sequence[str],
    seconds: float,
) -> list[dict]:
    """A row for each way of BM25 over questions and replies together."""
    texts = [f"{e.context[-1].content} {e.response}" for e, _ in rows]
    start = time.process_time()
    index = WordIndex.build(texts)
    built = {"words of a chat": time.process_time() - start}
    calls = {
        "words of a chat": _asking(
            lambda text: top(index.scores(WordQuery.of([(text, 1.0)])), _LIMIT),
            messages,
        )
    }
    with open_store(database, inference) as store:
        by_store = lambda text: store.search_text(text, _LIMIT)
        calls["FTS5 of the database"] = _asking(by_store, messages)
        if importlib.util.find_spec("bm25s"):
            built["bm25s"], ask = _peer(texts)
            calls["bm25s"] = _asking(ask, messages)
        timed = take_turns(calls, seconds=seconds)
    return [
        {
            "way": name,
            "rows": len(rows),
            "build_rows_per_cpu_second": len(rows) / built[name]
            if name in built
            else None,
            "p50_ms": 1e3 * float(np.percentile(timing.wall, 50)),
            "p99_ms": 1e3 * float(np.percentile(timing.wall, 99)),
            "cpu_ms": 1e3 * float(np.mean(timing.processor)),
        }
        for name, timing in timed.items()
    ]


def _peer(texts: Sequence[str]) -> tuple[float, Callable[[str], Any]]:
    """Seconds that `bm25s` takes to index texts, and what asks it."""
    bm25s = importlib.import_module("bm25s")
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    split = lambda text: re.findall(r"\w+", text.lower())
    start = time.process_time()
    peer = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    peer.index([split(text) for text in texts], show_progress=False)
    seconds = time.process_time() - start
    few = min(_LIMIT, len(texts))
    return seconds, lambda text: peer.retrieve(
        [split(text)], k=few, show_progress=False
    )


def _asking(ask: Callable[[str], Any], messages: Sequence[str]) -> Callable[[], Any]:
    """A call that asks the next message."""
    following = itertools.cycle(messages)
    return lambda: ask(next(following))


# --- the tables


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = chat_flags(__doc__, seconds=5.0, quick="1,000 rows, 20 messages")
    args, limits = start(parser, argv)
    sizes, asked = ([1000], 20) if args.quick else (args.rows, args.messages)
    examples, builds, searches = read_answered(args.data), [], []
    with tempfile.TemporaryDirectory() as folder:
        run = run_or_demo(args.weights, folder)
        inference = Inference.load(RunDirectory.open(run))
        for size in sizes:
            database = pathlib.Path(folder) / f"{size}.db"
            rows = list(rows_of(examples, size))
            builds.append(build(inference, database, rows))
            messages = questions(examples, asked)
            searches += search(database, inference, rows, messages, args.seconds)
    show("building a database", BUILDS, builds, limits, as_json=args.json)
    show("words alone", SEARCHES, searches, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
