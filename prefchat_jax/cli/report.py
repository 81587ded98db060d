"""`prefchat report`: runs and sweeps as one page that opens offline."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from rich.console import Console

from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output, table
from prefchat_jax.errors import UserError
from prefchat_jax.files import check_outputs, write_aside
from prefchat_jax.pages import document
from prefchat_jax.reporting.leaderboard import SHOWN, settings, varying
from prefchat_jax.reporting.run_page import run_sections
from prefchat_jax.reporting.runs import Told, final_figures, read_run, short_names
from prefchat_jax.reporting.sweep_page import interval_text, sweep_sections
from prefchat_jax.training.sweep_table import Row, read_table

_MOST = 10  # Settings of sweeps that the terminal shows, with these figures.
_PRINTED = ("eval_accuracy", "eval_loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Write a page with curves and figures of runs and of sweeps, side by side."""

    runs: tuple[str, ...] = ()
    """Run directories and folders of sweeps; may come first, without the flag."""
    output: str | None = None
    """HTML file to write [report.html in the first of them]; an old one is replaced."""

    def __post_init__(self):
        if not self.runs:
            raise UserError("--runs is missing: name runs, or folders of sweeps.")


def main(argv: Sequence[str]) -> None:
    """Writes the page, and prints the figures that say most."""
    given = flags.parse(ReportFlags, "report", argv, first="runs")
    _check_differ(given.runs)
    if given.output:
        tables = [pathlib.Path(path) / "results.csv" for path in given.runs]
        check_outputs({"output": given.output}, reads=tables)
    names = short_names(given.runs)
    runs, rows = [], []
    for path, name in zip(given.runs, names, strict=True):
        if (pathlib.Path(path) / "results.csv").exists():
            rows += [row | {"sweep": name} for row in _read_sweep(path)]
        else:
            runs.append(_read_run(path, name))
    body = list(run_sections(runs)) + (list(sweep_sections(rows)) if rows else [])
    page = pathlib.Path(given.output or pathlib.Path(given.runs[0], "report.html"))
    replaced = " (replaced)" * page.exists()
    with write_aside(page) as aside:
        text = document(f"Report on {', '.join(names)}", body)
        aside.write_text(text, encoding="utf-8")
    console = output()
    _show(runs, rows, console)
    console.print(
        f"page: {page}{replaced}", highlight=False, soft_wrap=True, markup=False
    )


def _check_differ(paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        place = os.path.realpath(path)
        if place in seen:
            raise UserError(f"{seen[place]} and {path} are the same: give each once.")
        seen[place] = path


def _read_run(path: str, name: str) -> Told:
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such folder. Check the path.")
    if not (pathlib.Path(path) / "config.json").exists():
        raise UserError(
            f"{path} is neither a run (no config.json) nor a sweep (no results.csv)."
        )
    return read_run(path, name)


def _read_sweep(path: str) -> list[Row]:
    table_path = pathlib.Path(path) / "results.csv"
    rows = read_table(table_path)
    if not rows:
        raise UserError(f"{table_path} has no run yet: let `prefchat sweep` go on.")
    for line, row in enumerate(rows, 2):
        for name in SHOWN:
            try:
                float(row[name] or 0)
            except ValueError:
                raise UserError(
                    f"{table_path}:{line}: {name} is no number: {row[name]!r}."
                ) from None
    return rows


def _show(runs: Sequence[Told], rows: Sequence[Row], console: Console) -> None:
    for members in (
        [run for run in runs if run.tuned is None],
        [run for run in runs if run.tuned is not None],
    ):
        if members:
            cells = [[name, *cells] for name, cells in final_figures(members).items()]
            columns = ["figure", *(run.name for run in members)]
            console.print(table("best epochs", columns, cells))
    if rows:
        names = varying(rows)
        ranked = settings(rows, names)
        cells = [
            [
                *one.values,
                *(interval_text(one.figures(figure)) for figure in _PRINTED),
                str(len(one.rows)),
                str(len(one.diverged)),
            ]
            for one in ranked[:_MOST]
        ]
        columns = [*names, *(SHOWN[name] for name in _PRINTED), "runs", "diverged"]
        title = (
            f"the best of {len(ranked):,} settings: mean +- half of its 95 % interval"
        )
        console.print(table(title, columns, cells, text_columns=len(names)))
