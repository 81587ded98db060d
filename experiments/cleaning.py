"""What does cleaning a corpus bring?

    python -m experiments.cleaning --noise 0.5
    python -m experiments.cleaning --data train.jsonl --val val.jsonl --noise 0

Trains on a corpus as it is and on what `prefchat build` leaves of it. `--noise` first
adds that share of bad exchanges: a question of the corpus under a label drawn at
random, with a reply that refuses, disclaims, echoes, repeats itself, or is damaged;
then a run on the corpus without them is the bound. Without `--data` it is the shipped
help desk. With `--noise 0` the noise is the corpus's own.

Printed are means and standard deviations over seeds, on `--val`: accuracy of the
buckets, right replies of the chat (both need labels), and 1-of-100: how often the
right reply ranks first among 100 stored ones, bad ones included, by the likelihood
that it falls into the bucket of the question.
"""

import argparse
import dataclasses
import importlib.resources
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from experiments.errors import one_line_errors
from prefchat_jax.building.build import build
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.building.describe import chat_row
from prefchat_jax.cli.console import table
from prefchat_jax.datasets.records import read_records
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.ranks import rank_metrics
from prefchat_jax.evaluation.run import evaluate_run
from prefchat_jax.finetune import finetune
from prefchat_jax.text.dialogue import Context, Example, Turn
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.steps import predict

_CANDIDATES = 100
_JUDGED = 1000  # Rows of `--val` that are ranked at most.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to train on, and what to judge on."""

    data: str | None = None
    val: str | None = None
    noise: float = 0.5
    seeds: int = 3
    num_buckets: int = 10
    epochs: int | None = None


def run(config: Config) -> list[dict[str, Any]]:
    """Trains on each corpus with every seed; one row of figures for each corpus.

    Raises:
      UserError: a bad file, or settings that do not go together.
    """
    if config.noise < 0:
        raise UserError(f"--noise {config.noise}: must not be negative.")
    if (config.data is None) != (config.val is None):
        raise UserError("--data needs --val: rows to judge on.")
    shipped = importlib.resources.files("prefchat_jax") / "data"
    data = config.data or str(shipped / "helpdesk.jsonl")
    val = config.val or str(shipped / "helpdesk_val.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        corpora, kept = _corpora(data, config.noise, pathlib.Path(folder))
        replies = _replies(corpora["as it is"])
        rows = []
        for name, path in corpora.items():
            figures = [
                _judge(path, val, replies, config, f"{folder}/{name} {seed}", seed)
                for seed in range(config.seeds)
            ]
            rows.append(
                {"corpus": name, "rows": kept[name]}
                | {
                    key: (
                        float(np.mean([run[key] for run in figures])),
                        float(np.std([run[key] for run in figures])),
                    )
                    for key in figures[0]
                }
            )
    return rows


def _corpora(
    data: str, noise: float, folder: pathlib.Path
) -> tuple[dict[str, str], dict[str, int]]:
    """The corpora to train on, and how many rows each has."""
    examples = read_records([data]).examples
    corpora = {"as it is": data}
    if noise:
        noisy = folder / "noisy.jsonl"
        rows = [*examples, *bad_exchanges(examples, round(noise * len(examples)))]
        lines = [json.dumps(chat_row(row)) for row in rows]
        noisy.write_text("\n".join(lines) + "\n")
        corpora = {"without the noise": data, "as it is": str(noisy)}
    cleaned = str(folder / "cleaned.jsonl")
    build(BuildConfig(inputs=(corpora["as it is"],), output=cleaned))
    corpora["cleaned"] = cleaned
    counts = {
        name: len(read_records([path]).examples) for name, path in corpora.items()
    }
    return corpora, counts


def bad_exchanges(examples: Sequence[Example], count: int) -> list[Example]:
    """Questions of the corpus with bad replies and labels drawn at random."""
    rng = np.random.default_rng(0)
    labels = sorted({str(e.label): e.label for e in examples}.values(), key=str)
    bad = []
    for number, place in enumerate(rng.integers(0, len(examples), count)):
        example = examples[place]
        damage = DAMAGES[number % len(DAMAGES)]
        bad.append(
            example._replace(
                response=damage(example.question, example.response),
                label=labels[rng.integers(len(labels))],
            )
        )
    return bad


DAMAGES = (
    lambda question, reply: "I'm sorry, I don't know that.",
    lambda question, reply: "As an AI language model, I have no access to that.",
    lambda question, reply: "ok",
    lambda question, reply: question,
    lambda question, reply: reply.replace("e", "Ã©"),
    lambda question, reply: f"<div><b>{reply[:40]}</b></div>",
    lambda question, reply: f"hm{'m' * 12}, who can say",
    lambda question, reply: "no no no no no no no no no no no no",
)


def _replies(path: str) -> list[str]:
    return sorted({e.response for e in read_records([path]).examples} - {""})


def _judge(
    path: str, val: str, replies: list[str], config: Config, run: str, seed: int
) -> dict[str, float]:
    """Trains one run; its figures on the validation file."""
    finetune(
        FinetuneConfig(
            data=path,
            output=run,
            seed=seed,
            num_buckets=config.num_buckets,
            epochs=config.epochs,
        )
    )
    examples = read_records([val]).examples
    figures = {}
    if examples[0].label is not None:
        found = evaluate_run(run, [val])
        figures = {key: float(found[key]) for key in ("accuracy", "right", "wrong")}
    return figures | {"one_of_100": one_of_100(run, examples, replies)}


def one_of_100(run: str, examples: Sequence[Example], replies: Sequence[str]) -> float:
    """How often the right reply of an example ranks first among 100.

    Args:
      run: run directory.
      examples: rows with replies.
      replies: stored ones, from which the others are drawn.
    """
    rng = np.random.default_rng(0)
    answered = [example for example in examples if example.response]
    chosen = [answered[i] for i in rng.permutation(len(answered))[:_JUDGED]]
    texts = sorted({e.response for e in chosen} | set(replies))
    place = {text: i for i, text in enumerate(texts)}
    right = np.array([place[example.response] for example in chosen])
    others = min(_CANDIDATES, len(texts)) - 1
    pools = np.stack(
        [
            np.append(r, rng.choice(np.delete(np.arange(len(texts)), r), others, False))
            for r in right
        ]
    )
    asked = _probabilities(run, [example.context for example in chosen])
    said = _probabilities(run, [(Turn("user", text),) for text in texts])
    scores = np.take_along_axis(asked @ said.T, pools, axis=1)
    return rank_metrics(scores, np.zeros(len(chosen), np.int64)).recall_at_1


def _probabilities(run: str, contexts: Sequence[Context]) -> np.ndarray:
    directory = RunDirectory.open(run)
    featurizer = directory.featurizer()
    logits = predict(
        *load_model(directory), *featurizer.embedded(featurizer(contexts))
    ).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, or JSON lines with `--json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="JSONL rows [the shipped help desk]")
    parser.add_argument("--val", help="JSONL rows to judge on")
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num_buckets", type=int, default=10)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--json", action="store_true", help="JSON lines, no table")
    args = vars(parser.parse_args(argv))
    as_json = args.pop("json")
    rows = run(Config(**args))
    if as_json:
        for row in rows:
            print(json.dumps(row))  # noqa: T201
        return
    keys = [key for key in rows[0] if key not in ("corpus", "rows")]
    cells = [
        [
            row["corpus"],
            f"{row['rows']:,}",
            *(f"{row[key][0]:.4f} +- {row[key][1]:.4f}" for key in keys),
        ]
        for row in rows
    ]
    columns = ["corpus", "rows", *keys]
    Console(width=110).print(table("on the validation file", columns, cells))


if __name__ == "__main__":
    main()
