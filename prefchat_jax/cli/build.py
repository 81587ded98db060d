"""`prefchat build`."""

import shlex
from collections.abc import Sequence

from rich.console import Console

from prefchat_jax.building.config import BuildConfig
from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output, progress_bar, table

_SHOWN = 3  # Unusable lines, and sources of many, that the console names.


def main(argv: Sequence[str]) -> None:
    """Builds a corpus and says what is left of the rows."""
    config = flags.parse(BuildConfig, "build", argv)
    from prefchat_jax.building import report
    from prefchat_jax.building.build import build

    console = output()
    with BuildProgress(console) as progress:
        command = f"prefchat build {shlex.join(argv)}"
        try:
            made = build(config, progress, command)
        except KeyboardInterrupt:
            progress.notice("the same command goes on where this one was stopped")
            raise
    show(made, console)
    for file in made["written"]:
        _print(console, f"{file['rows']:,} rows in {file['path']}")
    _print(console, f"report: {report.outputs(config.output).html}")
    if made["rows"]["kept"]:
        _print(console, f"next: prefchat finetune --data {config.output} --output RUN")


def show(report: dict, console: Console) -> None:
    """Prints what came in and what went, by source and by reason."""
    rows = report["rows"]
    sources = [
        [
            name,
            f"{source['in']:,}",
            f"{source['kept'] + source['pairs']:,}",
        ]
        for name, source in report["sources"].items()
    ]
    console.print(
        f"{rows['in']:,} rows in {report['seconds']:.1f} s, "
        f"{report['rows_per_second']:,} rows/s",
        highlight=False,
    )
    console.print(table("sources", ["source", "in", "kept"], sources))
    dropped = [
        [name, f"{reason['rows']:,}"] for name, reason in report["reasons"].items()
    ]
    if dropped:
        console.print(table("dropped", ["reason", "rows"], dropped))
    for place, words in report["unusable"][:_SHOWN]:
        _print(console, f"note: {place} {words}")
    if (more := len(report["unusable"]) - _SHOWN) > 0:
        lines = "line is no row" if more == 1 else "lines are no rows"
        _print(console, f"note: {more:,} more {lines}: see the report")


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class BuildProgress:
    """Shows bytes, rows a second and time left while a corpus is built.

    Args:
      console: where to.
    """

    def __init__(self, console: Console):
        self._console = console
        self._bar = progress_bar(console)
        self._task = self._bar.add_task("reading", total=None, figures="")
        self._rows = 0

    def __enter__(self) -> "BuildProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def notice(self, text: str) -> None:
        """A line that the user should know."""
        _print(self._console, f"note: {text}")

    def step(self, name: str, total: int | None = None) -> None:
        """A step begins."""
        if not self._console.is_terminal:
            self._console.print(name, highlight=False)
        self._bar.reset(self._task, description=name, total=total, figures="")

    def advance(self, done: int, rows: int) -> None:
        """Bytes and rows are through."""
        self._rows += rows
        task = self._bar.tasks[0]
        rate = self._rows / task.elapsed if task.elapsed else 0
        self._bar.update(
            self._task,
            advance=done,
            figures=f"{self._rows:,} rows, {rate:,.0f} rows/s",
        )
