"""How high do BM25 and TF-IDF rank the true reply among 100?

    python -m experiments.retrieval --train train.jsonl --data val.jsonl
    python -m experiments.retrieval --data faq.jsonl --hold_out topic

The bar of `prefchat evaluate --one_of_100`: every query (the last message, the
whole context) and every source of statistics (the ranked block, the training
responses) that it chooses from. `--hold_out FIELD` trains on four fifths of the
values of a field of `--data` and ranks the rows of the others, for corpora without
a split.

Needs the extras `demo` (bm25s) and `experiments` (scikit-learn).
"""

import argparse
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Sequence

from experiments.errors import one_line_errors
from prefchat_jax.cli.console import output
from prefchat_jax.cli.ranked import retrieval_table
from prefchat_jax.datasets.records import read_records
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.retrieval import (
    Retrieval,
    blocks,
    bm25_systems,
    tfidf_systems,
)
from prefchat_jax.text.dialogue import Example

_HELD_OUT = 5  # One value of the field in five.


def split_by(path: str, field: str) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples that share no value of a field."""
    parts: tuple[list[str], list[str]] = ([], [])
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        value = str(json.loads(line).get(field))
        held_out = hashlib.blake2b(value.encode()).digest()[0] % _HELD_OUT == 0
        parts[held_out].append(line)
    with tempfile.TemporaryDirectory() as folder:
        read = []
        for name, lines in zip(("train", "held_out"), parts, strict=True):
            part = pathlib.Path(folder) / f"{name}.jsonl"
            part.write_text("\n".join(lines), encoding="utf-8")
            read.append(read_records([part]).examples)
    return read[0], read[1]


def run(train: Sequence[Example], rows: Sequence[Example]) -> list[Retrieval]:
    """Every baseline on the blocks of the rows.

    Raises:
      UserError: too few rows, or an extra is missing.
    """
    made = blocks(rows)
    return [*bm25_systems(made, train), *tfidf_systems(made, train)]


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", nargs="+", default=[], help="JSONL files")
    parser.add_argument("--data", nargs="+", required=True, help="JSONL files")
    parser.add_argument("--hold_out", help="split --data by this field")
    args = parser.parse_args(argv)
    if args.hold_out and (args.train or len(args.data) > 1):
        raise UserError("--hold_out splits one --data file, without --train.")
    if args.hold_out:
        train, rows = split_by(args.data[0], args.hold_out)
    else:
        train = read_records(args.train).examples if args.train else []
        rows = read_records(args.data).examples
    systems = run(train, rows)
    count = len(systems[0].rows.mrr)
    title = f"the true reply among 100, {count:,} contexts, 95 % intervals"
    output().print(retrieval_table(title, systems))


if __name__ == "__main__":
    main()
