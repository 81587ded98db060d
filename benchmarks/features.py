"""How fast texts become features, beside scikit-learn on the same n-grams.

    python -m benchmarks.features --threads 1 --data corpus.jsonl

Both count byte 3-grams and 4-grams, words and pairs of words, take 1 + log of a count
times the inverse document frequency, and norm the two kinds apart; before they are
timed, turn by turn, their n-grams are counted and the likeness of rows compared. The
first pass of a process, which imports and warms up, is stated apart. Rows a second are
by the clock, and by the processor time of all threads, which other work on a busy
machine changes least; the limit is copying the texts and the padded arrays.
"""

import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.machine import Ceilings
from benchmarks.timing import (
    DEMO,
    Timing,
    command,
    flags,
    ratio,
    show,
    start,
    take_turns,
)
from prefchat_jax.datasets.records import read_records
from prefchat_jax.text.dialogue import Turn
from prefchat_jax.text.features import FeatureConfig, Featurizer
from prefchat_jax.text.ngrams import ngram_keys

COLUMNS = {
    "": ("name", ""),
    "rows/s": ("rows_per_second", ",.0f"),
    "rows/CPU s": ("rows_per_cpu_second", ",.0f"),
    "first pass": ("first_rows_per_second", ",.0f"),
    "us/row": ("us_per_row", ".2f"),
    "spread": ("spread_us_per_row", ".2f"),
    "of the copy limit": ("limit_fraction", ".1%"),
    "peer takes": ("peer_ratio", ".1f"),
}
_PEER = "scikit-learn, CSR"
_COMPARED = 60  # Rows whose likeness is compared.


class Sklearn:
    """The same features by scikit-learn: two hashing vectorizers, tf-idf and norm."""

    def __init__(self, config: FeatureConfig, texts: Sequence[str], bits: int):
        from scipy import sparse
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        chars = min(config.char_ngrams), max(config.char_ngrams)
        kinds: tuple[dict[str, Any], ...] = (
            {"analyzer": "char", "ngram_range": chars},
            {"ngram_range": (1, 2), "token_pattern": r"[a-z0-9_']+|[^a-z0-9_'\s]"},
        )
        same: dict[str, Any] = {
            "n_features": 2 ** (bits - 1),
            "norm": None,
            "alternate_sign": False,
        }
        self.counters = [HashingVectorizer(**kind, **same) for kind in kinds]
        self._weighers = [TfidfTransformer(sublinear_tf=True) for _ in kinds]
        self._stack = sparse.hstack
        for counts, weigher in zip(self.counts(texts), self._weighers, strict=True):
            weigher.fit(counts)

    def counts(self, texts: Sequence[str]) -> list[Any]:
        """Sparse counts of both kinds; spaces show where a text begins and ends."""
        spaced = [f" {text} " for text in texts]
        return [counter.transform(spaced) for counter in self.counters]

    def __call__(self, texts: Sequence[str]) -> Any:
        """Sparse `[texts, 2**bits]`; each kind has half of the squared norm."""
        counts = zip(self.counts(texts), self._weighers, strict=True)
        parts = [weigher.transform(count, copy=False) for count, weigher in counts]
        return self._stack(parts, format="csr") * np.sqrt(0.5)


def compare(config: FeatureConfig, texts: Sequence[str]) -> None:
    """Counts n-grams on both sides, and compares how like texts are to each other.

    Scikit-learn hashes characters where we hash bytes, and lets white space be: only
    plain ASCII with single spaces has the same n-grams.

    Raises:
      AssertionError: they differ.
    """
    from scipy import sparse

    plain = [" ".join(text.split()) for text in texts if text.isascii()][:_COMPARED]
    bits = 22  # So many ids that hardly two n-grams share one.
    wide = FeatureConfig(bits=bits, char_ngrams=config.char_ngrams, max_features=9_999)
    peer = Sklearn(wide, plain, bits)
    ours = ngram_keys(plain, wide.char_ngrams, bits) >> bits
    theirs = sum(count.sum(axis=1) for count in peer.counts(plain))
    np.testing.assert_array_equal(np.bincount(ours), np.ravel(theirs))
    contexts = [(Turn("user", text),) for text in plain]
    bags = Featurizer.fit(contexts, wide).packed(contexts)
    same = sparse.csr_array(
        (bags.weights, bags.ids, bags.offsets), (len(plain), 1 << bits)
    )
    found = peer(plain)
    apart = np.abs((same @ same.T - found @ found.T).toarray())
    # The few that hashing gives one id make few rows a little more alike.
    assert np.quantile(apart, 0.98) < 2e-3 and apart.max() < 0.05, apart.max()


def measure(texts: Sequence[str], seconds: float, limits: Ceilings) -> list[dict]:
    """One row of figures for each way to make features of the texts."""
    contexts = [(Turn("user", text),) for text in texts]
    featurizer = Featurizer.fit(contexts, FeatureConfig())
    calls: dict[str, Callable[[], Any]] = {
        "CSR: ids, weights, offsets": lambda: featurizer.packed(contexts),
        "padded ids and weights": lambda: featurizer(contexts),
        "document frequencies": lambda: Featurizer.fit(contexts, FeatureConfig()),
    }
    if importlib.util.find_spec("sklearn"):
        compare(featurizer.config, texts)
        peer = Sklearn(featurizer.config, texts, featurizer.config.bits)
        calls[_PEER] = lambda: peer(texts)
    first = {name: _seconds(call) for name, call in calls.items()}
    timed = take_turns(calls, seconds=seconds)
    read = sum(map(len, texts))
    written = sum(part.nbytes for part in featurizer(contexts))
    copied_us = (read + written) / limits.copy_gb_per_second / 1e3
    rows = []
    for name, timing in timed.items():
        row = _figures(name, timing, first[name], len(texts))
        if _PEER in timed:
            row["peer_ratio"] = ratio(timed[_PEER], timing)
        if name.startswith("padded"):
            row["limit_fraction"] = copied_us / timing.median_us
        rows.append(row)
    return rows


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _figures(name: str, timing: Timing, first: float, rows: int) -> dict[str, Any]:
    return {
        "name": name,
        "rows": rows,
        "rows_per_second": 1e6 * rows / timing.median_us,
        "rows_per_cpu_second": rows / float(np.median(timing.processor)),
        "first_rows_per_second": rows / first,
        "us_per_row": timing.median_us / rows,
        "spread_us_per_row": timing.spread_us / rows,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = flags(__doc__, seconds=10.0, quick="few rows")
    parser.add_argument("--data", default=DEMO, help="JSONL; a shipped corpus")
    parser.add_argument("--rows", type=int, default=9_000, help="%(default)s")
    args, limits = start(parser, argv)
    questions = [row.question for row in read_records([args.data]).examples]
    count = min(args.rows, 100) if args.quick else args.rows
    texts = list(itertools.islice(itertools.cycle(questions), count))
    letters = sum(map(len, texts)) / len(texts)
    title = f"{len(texts)} questions of {letters:.0f} characters, {args.data}"
    rows = measure(texts, args.seconds, limits)
    show(title, COLUMNS, rows, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
