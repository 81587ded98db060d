"""`prefchat evaluate`: how good a run is on rows that it never saw."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.cli import flags
from prefchat_jax.cli.compile_cache import use_compile_cache
from prefchat_jax.cli.console import output, table
from prefchat_jax.cli.device import select_device
from prefchat_jax.cli.preferred import read_compared, show_preferred
from prefchat_jax.cli.ranked import read_ranking, show_ranked, training_paths
from prefchat_jax.datasets.records import Records, corpus_paths, read_records
from prefchat_jax.errors import UserError
from prefchat_jax.files import check_outputs
from prefchat_jax.training.run_directory import RunDirectory, write_json

if TYPE_CHECKING:
    from prefchat_jax.evaluation.run import Judgement
    from prefchat_jax.text.dialogue import Example

# Flags that say nothing of preferences.
_OF_ROWS = (
    "device",
    "compile_cache",
    "min_confidence",
    "tune_ranking",
    "one_of_100",
    "train_data",
    "errors",
    "plot",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Score a run on JSONL rows: buckets, replies, what it refuses, what it prefers.

    Rows of --data labelled -1, "oos" or "out_of_scope" count as refused or not.
    """

    weights: str
    """Run directory."""
    data: str | None = None
    """JSONL rows that the run never saw."""
    data_manifest: str | None = None
    """JSON list of files, instead of --data or beside it."""
    preferences: str | None = None
    """JSONL rows with prompt, chosen and rejected: which reply the run prefers."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where the classifier runs."""
    compile_cache: bool = True
    """Keep what was compiled in ~/.cache, for the next command to begin sooner."""
    min_confidence: float | None = None
    """Abstain below it [measured by finetune]."""
    tune_ranking: bool = False
    """First fit the ranking weights and the confidence to these rows, in the run."""
    one_of_100: bool = False
    """Also rank each true reply among 100, beside BM25 and TF-IDF."""
    train_data: str | None = None
    """JSONL rows whose statistics BM25 and TF-IDF use [what the run trained on]."""
    errors: str | None = None
    """Write every mistake to this JSONL file, and print what is confused most."""
    plot: str | None = None
    """Draw accuracy by confidence to this PNG, SVG or PDF file."""
    json: str | None = None
    """Also write the figures to this JSON file."""

    def __post_init__(self):
        if not self.has_rows:
            if not self.preferences:
                raise UserError(
                    "--data is missing: give a JSONL corpus, or --preferences."
                )
            self._check_alone()
        if self.train_data and not self.one_of_100:
            raise UserError("--train_data is for --one_of_100: give both.")
        if self.train_data and not pathlib.Path(self.train_data).is_file():
            raise UserError(f"--train_data {self.train_data}: no such file.")

    @property
    def has_rows(self) -> bool:
        """Whether there is more to judge than --preferences."""
        return bool(self.data or self.data_manifest)

    def _check_alone(self) -> None:
        """Raises `UserError` for a flag that --preferences alone would ignore."""
        for field in dataclasses.fields(self):
            if field.name in _OF_ROWS and getattr(self, field.name) != field.default:
                raise UserError(
                    f"--{field.name} is for the rows of --data: give --data, too."
                )


def main(argv: Sequence[str]) -> None:
    """Prints tables; checks what can be wrong before the run is asked."""
    given = flags.parse(EvaluateFlags, "evaluate", argv, first="weights")
    settings = flags.checked(ChatSettings, min_confidence=given.min_confidence)
    RunDirectory.open(given.weights)
    paths = corpus_paths(given.data, given.data_manifest) if given.has_rows else []
    train_paths = (
        training_paths(given.weights, given.train_data) if given.one_of_100 else []
    )
    _check_outputs(given, [*paths, *train_paths])
    records = read_records(paths) if paths else Records()
    ranking = None
    if given.one_of_100:
        told = given.train_data is not None
        ranking = read_ranking(records.examples, train_paths, given=told)
    compared = (
        read_compared(given.weights, given.preferences) if given.preferences else None
    )
    console, found, judged = output(), {}, None
    if paths:
        judged = _judge(given, settings, records, console)
        found = _figures(given, judged, paths, console)
    if ranking:
        found["one_of_100"] = show_ranked(given.weights, settings, ranking, console)
    if compared:
        found["preferences"] = show_preferred(given.weights, compared, console)
    if given.json:
        write_json(given.json, found)
    if given.plot and judged:  # Last: there may be nothing to draw.
        _plot(given.plot, judged, given.weights, paths, console)


def _judge(
    given: EvaluateFlags, settings: ChatSettings, records: Records, console: Console
) -> "Judgement":
    select_device(given.device)
    use_compile_cache(given.compile_cache)
    from prefchat_jax.evaluation.run import judge_records

    if given.tune_ranking:
        _tune(given.weights, records.examples, console)
    return judge_records(given.weights, records, settings)


def _figures(
    given: EvaluateFlags,
    judged: "Judgement",
    paths: Sequence[str | os.PathLike],
    console: Console,
) -> dict[str, Any]:
    from prefchat_jax.evaluation.run import figures

    found: dict[str, Any] = dict(figures(judged))
    rows = [[name, _shown(value)] for name, value in found.items()]
    title = f"{given.weights} on {', '.join(map(str, paths))}"
    console.print(table(title, ["figure", "value"], rows))
    if given.errors:
        found["confused"] = _errors(given.errors, judged, console)
    return found


def _check_outputs(given: EvaluateFlags, reads: Sequence[str | os.PathLike]) -> None:
    """Raises `UserError` where an output is read, lies in the run or cannot be."""
    more = [path for path in (given.data_manifest, given.preferences) if path]
    check_outputs(
        {"errors": given.errors, "plot": given.plot, "json": given.json},
        reads=[*reads, *more],
        run=given.weights,
    )
    if given.plot:
        from prefchat_jax.reporting.reliability import check_plot

        check_plot(given.plot)


def _tune(weights: str, rows: Sequence["Example"], console: Console) -> None:
    from prefchat_jax.calibration import tune_run

    with console.status("fitting the ranking"):
        found = tune_run(weights, rows)
    fitted = ", ".join(f"{name} {value:g}" for name, value in found["weights"].items())
    _say(console, f"ranking weights, kept in {weights}: {fitted}")
    _say(console, "note: the figures below are of the rows that they were fitted to")


def _plot(
    path: str,
    judged: "Judgement",
    weights: str,
    data: Sequence[str | os.PathLike],
    console: Console,
) -> None:
    from prefchat_jax.reporting.reliability import plot_reliability

    names = ", ".join(pathlib.Path(file).name for file in data)
    plot_reliability(path, judged, f"{pathlib.Path(weights).name} on {names}")
    _say(console, f"reliability diagram: {path}")


def _errors(
    path: str | os.PathLike, judged: "Judgement", console: Console
) -> list[dict[str, Any]]:
    from prefchat_jax.evaluation.errors import confusions, mistakes, write_mistakes

    wrong = mistakes(judged)
    write_mistakes(path, wrong)
    pairs = confusions(wrong)
    if pairs:
        rows = [[_short(p.expected), _short(p.given), f"{p.count:,}"] for p in pairs]
        title = "confused most"
        columns = [f"expected {pairs[0].kind}", "given", "rows"]
        console.print(table(title, columns, rows, text_columns=2))
    _say(console, f"{len(wrong):,} mistakes: {os.fspath(path)}")
    return [pair._asdict() for pair in pairs]


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 48 else f"{line[:47]}…"


def _shown(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
