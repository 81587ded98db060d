"""Rows a second, memory and found duplicates of `prefchat build`, beside peers.

    python -m benchmarks.datasets --workers 2

Writes generated rows, a tenth of them copies and a tenth nearly so, and builds a
corpus from them: comparing alone, with the filters, with near-duplicates. In the
same run, turn by turn: a loop of plain Python that finds exact copies on one core,
and `datasketch` or `rensa`, where installed, that find near-duplicates. Ours are
whole processes, start and report included.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.machine import threads
from benchmarks.processes import PREFCHAT
from benchmarks.timing import command, flags, show, start

_VOCABULARY = 40_000
_THRESHOLD = 0.8


class Planted(NamedTuple):
    """Which rows repeat an earlier one.

    Attributes:
      exact: copies.
      near: copies with some words exchanged, whose question and whose reply are as
        like as the threshold.
      unlike: such copies that are less alike.
    """

    exact: set[str]
    near: set[str]
    unlike: set[str]


def generate(path: pathlib.Path, rows: int, seed: int = 0) -> Planted:
    """Writes rows of Zipf-distributed words, about 590 bytes each."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, n)) for n in rng.integers(2, 11, _VOCABULARY)]
    odds = 1 / np.arange(1, _VOCABULARY + 1)
    stream = _words(rng, words, odds / odds.sum())
    take = lambda least, most: [next(stream) for _ in range(rng.integers(least, most))]
    planted = Planted(set(), set(), set())
    earlier: list[tuple[list[str], list[str]]] = []
    with path.open("w") as file:
        for number in range(rows):
            kind = rng.random() if number > 100 else 1.0
            name = f"row{number}"
            if kind < 0.2:
                source = earlier[rng.integers(len(earlier))]
                asked, reply = list(source[0]), list(source[1])
                if kind < 0.1:
                    planted.exact.add(name)
                else:
                    _edit(rng, stream, asked, reply)
                    pairs = zip(source, (asked, reply), strict=True)
                    alike = min(_likeness(*pair) for pair in pairs) >= _THRESHOLD
                    (planted.near if alike else planted.unlike).add(name)
            else:
                asked, reply = take(8, 22), take(45, 85)
                earlier.append((asked, reply))
            row = {"user": " ".join(asked), "assistant": " ".join(reply), "group": name}
            file.write(json.dumps(row) + "\n")
    return planted


def _words(
    rng: np.random.Generator, words: list[str], odds: np.ndarray
) -> Iterator[str]:
    while True:
        yield from (words[i] for i in rng.choice(len(words), 100_000, p=odds))


def _edit(rng, stream: Iterator[str], *texts: list[str]) -> None:
    """Exchanges up to three words of each text, but at least one in all."""
    counts = [0] * len(texts)
    while not any(counts):
        counts = [int(rng.integers(4)) for _ in texts]
    for text, count in zip(texts, counts, strict=True):
        for place in rng.integers(0, len(text), count):
            text[place] = next(stream)


def _likeness(left: list[str], right: list[str]) -> float:
    sets = [set(zip([None, *w], w, strict=False)) for w in (left, right)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


# --- what is timed


class Timed(NamedTuple):
    """One run: seconds, peak memory in MB if watched, and the rows that were kept."""

    seconds: float
    memory: float | None
    kept: set[str]


def build(path: pathlib.Path, workers: int, *flags: str) -> Timed:
    """`prefchat build` as a process of its own."""
    output = path.with_name("built.jsonl")
    argv = ["build", "--inputs", str(path), "--output", str(output), "--workers"]
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", PREFCHAT, *argv, str(workers), *flags],
        stdout=subprocess.DEVNULL,
    ) as process:
        with _peak_memory(process.pid) as peak:
            process.wait()
        seconds = time.perf_counter() - start
    assert process.returncode == 0
    return Timed(seconds, peak[0] / 1e6, _names(output))


def plain_python(path: pathlib.Path) -> Timed:
    """Decodes, hashes, looks up and encodes: what exact deduplication needs."""
    start, seen, kept = time.perf_counter(), set(), set()
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    with path.open("rb") as file, path.with_name("plain.jsonl").open("wb") as output:
        for line in file:
            row = decode(line)
            text = f"{row['user']}\0{row['assistant']}".lower().encode()
            key = hashlib.blake2b(text, digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                kept.add(row["group"])
                output.write(encode(row) + b"\n")
    return Timed(time.perf_counter() - start, None, kept)


def datasketch(path: pathlib.Path) -> Timed:
    """MinHash-LSH of word pairs of the whole row, keep-first, 128 permutations."""
    library = importlib.import_module("datasketch")
    start, kept = time.perf_counter(), set()
    index = library.MinHashLSH(threshold=_THRESHOLD, num_perm=128)
    for name, pairs in _shingled(path):
        sketch = library.MinHash(num_perm=128)
        sketch.update_batch(pairs)
        if not index.query(sketch):
            index.insert(name, sketch, check_duplication=False)
            kept.add(name)
    return Timed(time.perf_counter() - start, None, kept)


def rensa(path: pathlib.Path) -> Timed:
    """The same with rensa's R-MinHash."""
    library = importlib.import_module("rensa")
    start, kept = time.perf_counter(), set()
    index = library.RMinHashLSH(threshold=_THRESHOLD, num_perm=128, num_bands=16)
    sketches = []
    for name, pairs in _shingled(path):
        sketch = library.RMinHash(num_perm=128, seed=1)
        sketch.update([pair.decode() for pair in pairs])
        found = index.query(sketch)
        if not any(sketches[i].jaccard(sketch) >= _THRESHOLD for i in found):
            index.insert(len(sketches), sketch)
            sketches.append(sketch)
            kept.add(name)
    return Timed(time.perf_counter() - start, None, kept)


PEERS = {"datasketch": datasketch, "rensa": rensa}


def _shingled(path: pathlib.Path) -> Iterator[tuple[str, list[bytes]]]:
    with path.open("rb") as file:
        for line in file:
            row = msgspec.json.decode(line)
            words = re.findall(r"\w+", f"{row['user']} {row['assistant']}".lower())
            pairs = zip(words, words[1:], strict=False)
            yield row["group"], [" ".join(pair).encode() for pair in pairs]


def _names(path: pathlib.Path) -> set[str]:
    with path.open("rb") as file:
        return {msgspec.json.decode(line)["group"] for line in file}


@contextlib.contextmanager
def _peak_memory(pid: int) -> Iterator[list[float]]:
    """The largest sum of the proportional set sizes of a process and its children."""
    peak, done = [0.0], threading.Event()

    def watch():
        while not done.wait(0.05):
            peak[0] = max(peak[0], sum(map(_pss, _tree(pid))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _tree(pid: int) -> list[int]:
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return [pid]
    return [pid, *(one for child in text.split() for one in _tree(int(child)))]


def _pss(pid: int) -> float:
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return 1024.0 * int(match[1]) if match else 0.0


# --- the table


def run(rows: int, workers: int, repeats: int, peers: Sequence[str]) -> list[dict]:
    """One row of figures for each way to build."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.jsonl"
        planted = generate(path, rows)
        every = _names(path)
        exact = ("--near_duplicates", "0")
        ways: dict[str, Callable[[], Timed]] = {
            "plain Python, exact, one core": lambda: plain_python(path),
            "exact alone": lambda: build(
                path, workers, *exact, "--skip_filters", "all"
            ),
            "exact, filters": lambda: build(path, workers, *exact),
            "near, filters": lambda: build(path, workers),
        }
        for name in peers:
            ways[name] = functools.partial(PEERS[name], path)
        timed: dict[str, list[Timed]] = {name: [] for name in ways}
        for repeat in range(repeats):
            for name, way in ways.items():
                if repeat == 0 or name not in peers:  # They take minutes.
                    timed[name].append(way())
        size = path.stat().st_size
    return [_figures(name, runs, planted, every, size) for name, runs in timed.items()]


def _figures(
    name: str, runs: list[Timed], planted: Planted, every: set[str], size: int
) -> dict:
    seconds = statistics.median(run.seconds for run in runs)
    dropped = every - runs[0].kept
    wanted = planted.exact | planted.near
    return {
        "way": name,
        "rows": len(every),
        "seconds": seconds,
        "spread": max(r.seconds for r in runs) - min(r.seconds for r in runs),
        "rows_per_second": len(every) / seconds,
        "mb_per_second": size / 1e6 / seconds,
        "peak_mb": max((r.memory for r in runs if r.memory is not None), default=None),
        "exact_found": len(dropped & planted.exact) / max(len(planted.exact), 1),
        "near_found": len(dropped & planted.near) / max(len(planted.near), 1),
        "unlike_dropped": len(dropped & planted.unlike) / max(len(planted.unlike), 1),
        "precision": len(dropped & wanted) / max(len(dropped), 1),
    }


COLUMNS = {
    "way": ("way", ""),
    "s": ("seconds", ".2f"),
    "spread": ("spread", ".2f"),
    "rows/s": ("rows_per_second", ",.0f"),
    "MB/s": ("mb_per_second", ",.0f"),
    "peak MB": ("peak_mb", ",.0f"),
    "exact": ("exact_found", ".4f"),
    "near": ("near_found", ".4f"),
    "unlike": ("unlike_dropped", ".4f"),
    "precision": ("precision", ".4f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = flags(__doc__, seconds=None, quick="2,000 rows, once")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--workers", type=int, help="of a build; --threads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=[], choices=[*PEERS])
    args, limits = start(parser, argv)
    rows, repeats = (2000, 1) if args.quick else (args.rows, args.repeats)
    found = run(rows, args.workers or threads(), repeats, args.peers)
    show(f"{rows:,} rows", COLUMNS, found, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
