"""Page: what every experiment leaves, in a terminal, in files, and in docs/results.md.

An experiment is a module: its docstring has the question, the command, what is done
and, last, what was found; `Config` its settings; `run` makes figures of them, `tables`
and `draw` show the figures. `EXPERIMENT.main()` is its command.
"""

import csv
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console

from experiments.errors import one_line_errors
from prefchat_jax.cli import flags
from prefchat_jax.cli.compile_cache import use_compile_cache
from prefchat_jax.cli.console import TrainingProgress, table
from prefchat_jax.files import write_aside
from prefchat_jax.reporting import charts
from prefchat_jax.reporting.report import markdown
from prefchat_jax.training.loop import Progress

_PROGRAM = "python -m"
# What an experiment found: `rows` by column, each a plain value or a mean with its
# interval, and what else it tells.
Result = dict[str, Any]


class Table(NamedTuple):
    """Cells as they are shown; the first column is text."""

    title: str
    columns: list[str]
    cells: list[list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every experiment can be told."""

    output: str | None = None
    """Folder for NAME.json, NAME.csv and NAME.png [none are written]."""


class Experiment(NamedTuple):
    """One question, and all that answers it.

    Attributes:
      name: of its module.
      doc: of its module.
      config: a dataclass of its settings, a `Settings`.
      run: makes the figures.
      tables: shows them.
      draw: makes a matplotlib figure of them.
    """

    name: str
    doc: str
    config: type
    run: Callable[[Any, Progress], Result]
    tables: Callable[[Result], list[Table]]
    draw: Callable[[Result], Any]

    @property
    def question(self) -> str:
        """The first line of its docstring."""
        return self.doc.strip().splitlines()[0]

    def main(self, argv: Sequence[str] | None = None) -> None:
        """The command: runs, prints the tables, and writes the files if asked."""
        console = Console(width=None if sys.stdout.isatty() else 140)
        argv = sys.argv[1:] if argv is None else argv
        use_compile_cache(True)
        with one_line_errors():
            config = flags.parse(
                self.config, f"experiments.{self.name}", argv, program=_PROGRAM
            )
            result = self.answer(config)
        for one in self.tables(result):
            console.print(table(*one))
        console.print(f"{result['seconds']:.0f} s", highlight=False)

    def answer(self, config: Any, root: str = "") -> Result:
        """Runs with a bar, and writes the files of `config.output`.

        Args:
          config: its settings.
          root: a folder that the command in the files leaves out of paths.

        Raises:
          UserError: bad data or settings.
        """
        start = time.perf_counter()
        with TrainingProgress(Console(stderr=True), epochs=False) as progress:
            result = self.run(config, progress)
        result |= {
            "command": self._command(config, root),
            "seconds": time.perf_counter() - start,
            **_where(),
        }
        if config.output:
            self.write(pathlib.Path(config.output), result)
        return result

    def result(self, folder: pathlib.Path) -> Result:
        """What it left in `folder`."""
        return json.loads((folder / f"{self.name}.json").read_text(encoding="utf-8"))

    def section(self, folder: pathlib.Path) -> str:
        """Its part of a page that stands beside `folder`, where its files are."""
        result = self.result(folder)
        _, *told = self.doc.strip().split("\n\n")
        prose = [" ".join(p.split()) for p in told if not p.startswith("    ")]
        shown = [
            f"**{one.title}**\n\n{markdown(one.columns, one.cells)}"
            for one in self.tables(result)
        ]
        made = (
            f"`{result['command']}`, {result['seconds']:.0f} s at commit "
            f"{result['commit']} on {result['machine']}."
        )
        return "\n\n".join(
            [
                f'<a id="{self.name}"></a>\n\n## {self.question}',
                *prose[:-1],
                *shown,
                f"![{self.question}]({folder.name}/{self.name}.png)",
                prose[-1],
                made,
            ]
        )

    def write(self, folder: pathlib.Path, result: Result) -> None:
        """Writes a result as JSON and CSV, and draws it."""
        folder.mkdir(parents=True, exist_ok=True)
        with write_aside(folder / f"{self.name}.json") as aside:
            aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        rows = [_flat(row) for row in result["rows"]]
        columns = list({name: None for row in rows for name in row})
        with (
            write_aside(folder / f"{self.name}.csv") as aside,
            aside.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        charts.save(self.draw(result), folder / f"{self.name}.png")

    def _command(self, config: Any, root: str) -> str:
        """What to type for these settings, in a folder that has the data."""
        words = [_PROGRAM, f"experiments.{self.name}"]
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name == "output" or value == field.default:
                continue
            values = value if isinstance(value, tuple) else (value,)
            below = [_below(root, str(one)) for one in values]
            words += [f"--{field.name}", *map(shlex.quote, below)]
        return " ".join(words)


def _below(root: str, path: str) -> str:
    """A path as it is typed in the folder `root`; what does not lie there stays."""
    return path.removeprefix(root).lstrip("/") if root else path


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of plain values: a mean with its interval is three of them."""
    flat = {}
    for name, value in row.items():
        if isinstance(value, tuple | list):
            value, flat[f"{name}_low"], flat[f"{name}_high"] = value
        flat[name] = value
    return flat


def _where() -> dict[str, str]:
    """The commit and the machine that figures come from."""
    git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    here = pathlib.Path(__file__).parent
    found = subprocess.run(git, cwd=here, capture_output=True, text=True, check=False)
    device = jax.devices()[0]
    return {
        "commit": found.stdout.strip() or "unknown",
        "machine": f"{os.cpu_count()} cores, {_cpu()}, {device.platform} with jax "
        f"{jax.__version__}, Python {platform.python_version()}",
    }


def _cpu() -> str:
    """The name of the processor, where the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()
