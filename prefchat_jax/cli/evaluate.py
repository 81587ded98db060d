"""`prefchat evaluate`: how good a run is on rows that it never saw."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output, table
from prefchat_jax.cli.device import select_device
from prefchat_jax.training.run_directory import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Score a run on a JSONL file: buckets, replies, and what it refuses.

    Rows labelled -1, "oos" or "out_of_scope" count as refused or not.
    """

    weights: str
    """Run directory."""
    data: str | None = None
    """JSONL rows that the run never saw."""
    data_manifest: str | None = None
    """JSON list of files, instead of --data or beside it."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where the classifier runs."""
    min_confidence: float | None = None
    """Abstain below it [measured by finetune]."""
    json: str | None = None
    """Also write the figures to this JSON file."""


def main(argv: Sequence[str]) -> None:
    """Prints one table."""
    given = flags.parse(EvaluateFlags, "evaluate", argv)
    select_device(given.device)
    from prefchat_jax.chat.config import ChatSettings
    from prefchat_jax.datasets.records import corpus_paths
    from prefchat_jax.evaluation import evaluate_run

    paths = corpus_paths(given.data, given.data_manifest)
    settings = ChatSettings(min_confidence=given.min_confidence)
    figures = evaluate_run(given.weights, paths, settings)
    if given.json:
        write_json(given.json, figures)
    rows = [[name, _shown(value)] for name, value in figures.items()]
    title = f"{given.weights} on {', '.join(map(str, paths))}"
    output().print(table(title, ["figure", "value"], rows))


def _shown(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
