"""How cost grows with rows, buckets, branches, negatives and stored replies.

    python -m benchmarks.growth --data banking77/train.jsonl --pairs medquad.jsonl

Each point is a process of its own, so that its memory holds nothing else. Training is
two parts: from the file to arrays, and one epoch, compiled before. Questions are those
of `--data`, and then the same with two words of others added; stored replies come in
the same way from `--pairs`. Prints each point and the exponent of the power of the
size that fits best, and `--plots FOLDER` draws them on logarithmic axes.
"""

import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import retrieval
from benchmarks.processes import in_process, peak_memory
from benchmarks.timing import DEMO, command, flags, run_or_demo, show, start
from prefchat_jax.datasets.records import read_records
from prefchat_jax.finetune import Silent
from prefchat_jax.inference import Inference
from prefchat_jax.reporting import charts
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.run_directory import RunDirectory

_WIDTHS = ("expansion_dim", "extra_expansion_dim", "third_expansion_dim")
_ROWS, _BUCKETS = 20_000, 100  # Where something else grows.
_MESSAGES = 200


class Axis(NamedTuple):
    """One thing that grows.

    Attributes:
      what: its unit, as the plot names it.
      sizes: those measured, and those of `--quick`.
      seconds: columns with seconds by the name that the plot gives them; the rest of
        a row is memory, `peak_mb`.
    """

    what: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    seconds: dict[str, str]


_TRAINING = {"file_seconds": "file to arrays", "epoch_seconds": "an epoch"}
_EPOCH = {"epoch_seconds": "an epoch"}
AXES = {
    "rows": Axis("rows", (10_000, 30_000, 100_000, 300_000), (200, 400), _TRAINING),
    "buckets": Axis("buckets", (10, 100, 1000, 10_000), (4, 8), _EPOCH),
    # A logarithm has no zero: the base layer counts as one.
    "branches": Axis("1 + branches of 512", (1, 2, 3, 4), (1, 2), _EPOCH),
    "negatives": Axis("negatives of a row", (1, 4, 16, 64), (1, 2), _EPOCH),
    "replies": Axis(
        "stored replies",
        (3000, 10_000, 30_000, 100_000),
        (300, 600),
        {"p50_seconds": "a reply, median", "p99_seconds": "99th percentile"},
    ),
}


def points(name: str, given: Any, sizes: Sequence[int]) -> Iterator[dict]:
    """A row of figures for each size."""
    with tempfile.TemporaryDirectory() as folder:
        measure: Callable[[int], dict]
        if name == "replies":
            run = run_or_demo(given.weights, folder)
            examples = [e for e in read_records([given.pairs]).examples if e.response]
            measure = lambda size: reply(run, folder, examples, size)
        else:
            questions = [e.question for e in read_records([given.data]).examples]
            rows = 200 if given.quick else _ROWS
            path = pathlib.Path(folder) / "rows.jsonl"
            measure = lambda size: in_process(
                "benchmarks.growth:measure_training",
                training_job(name, size, path, questions, rows),
                given.device,
                given.seconds,
            )
        for size in sizes:
            yield {"axis": name, "size": size} | measure(size)


# --- training


def training_job(
    name: str, size: int, path: pathlib.Path, questions: Sequence[str], rows: int
) -> dict[str, Any]:
    """Writes the rows of a point, and returns what of the flags it changes."""
    job: dict[str, Any] = {"data": str(path), "output": "", "val_split": 0.0}
    buckets = min(_BUCKETS, rows // 2)
    if name == "rows":
        rows = size
    elif name == "buckets":
        buckets = size
    elif name == "negatives":
        job["pref_group_size"] = size
    else:
        job["model_size"] = ("base", "large", "xlarge", "xxlarge")[size - 1]
        job |= dict.fromkeys(_WIDTHS[: size - 1], 512)
    with path.open("w") as file:
        for number, text in enumerate(enlarged(questions, rows)):
            row = {"user": text, "label": number % buckets}
            file.write(json.dumps(row) + "\n")
    return job


def enlarged(questions: Sequence[str], count: int) -> Iterator[str]:
    """`count` questions: those given, and then with two words of others added."""
    rng = np.random.default_rng(0)
    words = [word for question in questions for word in question.split()]
    for number in range(count):
        question = questions[number % len(questions)]
        if number < len(questions):
            yield question
        else:
            more = rng.integers(len(words), size=2)
            yield " ".join([question, *(words[i] for i in more)])


def measure_training(job: dict[str, Any], device: str, seconds: float) -> dict:
    """Figures of this process: reads the rows, compiles, and trains for a while."""
    from benchmarks import training
    from prefchat_jax.cli.device import select_device
    from prefchat_jax.training.corpus import load_corpus

    select_device(device)
    config = FinetuneConfig(**job)
    before = peak_memory()
    file, corpus = _timed(lambda: load_corpus(config, Silent()))
    program = training.epoch_program(training.SHIPPED, config, corpus)
    program.call()
    epochs: list[tuple[float, float]] = []
    while sum(wall for wall, _ in epochs) < seconds:
        epochs.append(_timed(program.call)[0])
    epoch = np.median(epochs, axis=0).tolist()
    return {
        "file_seconds": file[0],
        "file_processor": file[1],
        "epoch_seconds": epoch[0],
        "epoch_processor": epoch[1],
        "compile_seconds": program.compile_seconds,
        "peak_mb": (peak_memory() - before) / 1e6,
    }


def _timed(call: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds by the clock and of the processors, and the result."""
    wall, processor = time.perf_counter(), time.process_time()
    found = call()
    processor = time.process_time() - processor
    return (time.perf_counter() - wall, processor), found


# --- replies


def reply(run: str, folder: str, examples: Sequence, size: int) -> dict:
    """Fills a database, and asks a process that opened it."""
    database = pathlib.Path(folder) / f"{size}.db"
    begun = time.perf_counter()
    retrieval.build_store(
        database,
        Inference.load(RunDirectory.open(run)),
        list(retrieval.rows_of(examples, size)),
    )
    file_seconds = time.perf_counter() - begun
    messages = retrieval.questions(examples, _MESSAGES)
    found = in_process("benchmarks.chat:reply", run, str(database), messages, 0.0)
    return {
        "file_seconds": file_seconds,
        "p50_seconds": found["p50_ms"] / 1e3,
        "p99_seconds": found["p99_ms"] / 1e3,
        "peak_mb": found["resident_mb"],
    }


# --- the tables and the plots


def exponents(axis: Axis, rows: Sequence[dict]) -> dict[str, float]:
    """Of each column, over all sizes."""
    sizes = [row["size"] for row in rows]
    processor = [name.replace("seconds", "processor") for name in axis.seconds]
    return {
        name: charts.exponent(sizes, [row[name] for row in rows])
        for name in (*axis.seconds, *processor, "peak_mb")
        if name in rows[0]
    }


def plot(path: pathlib.Path, axis: Axis, rows: Sequence[dict]) -> None:
    """Seconds and memory beside each other."""
    sizes = [row["size"] for row in rows]
    figure = charts.new_figure(2)
    left, right = figure.subplots(1, 2)
    curves = {
        name: (sizes, [row[key] for row in rows]) for key, name in axis.seconds.items()
    }
    charts.powers(left, curves, axis.what, "seconds")
    memory = {"peak memory": (sizes, [row["peak_mb"] for row in rows])}
    charts.powers(right, memory, axis.what, "MB")
    charts.save(figure, path, dpi=80)


COLUMNS = {
    "axis": ("axis", ""),
    "size": ("size", ","),
    "file or build s": ("file_seconds", ",.2f"),
    "compile s": ("compile_seconds", ",.1f"),
    "epoch s": ("epoch_seconds", ",.3f"),
    "CPU s": ("epoch_processor", ",.3f"),
    "reply p50 s": ("p50_seconds", ".4f"),
    "p99 s": ("p99_seconds", ".4f"),
    "peak MB": ("peak_mb", ",.0f"),
}
EXPONENTS = {
    "axis": ("axis", ""),
    "file to arrays": ("file_seconds", ".2f"),
    "by CPU": ("file_processor", ".2f"),
    "epoch": ("epoch_seconds", ".2f"),
    "epoch by CPU": ("epoch_processor", ".2f"),
    "reply p50": ("p50_seconds", ".2f"),
    "p99": ("p99_seconds", ".2f"),
    "memory": ("peak_mb", ".2f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags(__doc__, seconds=1.0, quick="two small sizes of each")
    parser.add_argument("--only", nargs="+", choices=[*AXES], default=[*AXES])
    parser.add_argument("--sizes", nargs="+", type=int, help="instead, of --only one")
    parser.add_argument("--data", default=DEMO, help="JSONL rows; the demo's")
    parser.add_argument("--pairs", default=DEMO, help="rows with replies")
    parser.add_argument("--weights", help="run that replies; one of the demo's rows")
    parser.add_argument("--plots", type=pathlib.Path, help="folder for pictures")
    args, limits = start(parser, argv)
    if args.sizes and (len(args.only) > 1 or len(set(args.sizes)) < 2):
        parser.error("--sizes: give two or more of them, and --only one axis.")
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
    rows, fitted = [], []
    for name in args.only:
        axis = AXES[name]
        sizes = args.sizes or (axis.quick if args.quick else axis.sizes)
        found = list(points(name, args, sizes))
        rows += found
        fitted.append({"axis": name} | exponents(axis, found))
        if args.plots:
            plot(args.plots / f"growth_{name}.png", axis, found)
    show("how cost grows", COLUMNS, rows, limits, as_json=args.json)
    show("exponents", EXPONENTS, fitted, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
