"""Output: progress bars in a terminal, plain lines elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

Metrics = dict[str, float]


class TrainingProgress:
    """Shows loss, accuracy, rate and time left while a model trains.

    Args:
      console: where to.
      epochs: whether each epoch leaves a line, and what it starts from a table.
    """

    def __init__(self, console: Console, *, epochs: bool = True):
        self._console = console
        self._epochs = epochs
        self._bar = progress_bar(console)
        self._task = self._bar.add_task("training", total=None, figures="")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def notice(self, text: str) -> None:
        """A line that the user should know."""
        self._console.print(
            f"note: {text}", highlight=False, soft_wrap=True, markup=False
        )

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """What training starts from: a table in a terminal, elsewhere lines."""
        if not self._epochs:
            return
        if self._console.is_terminal:
            self._console.print(table(title, columns, rows))
            return
        for row in rows:
            cells = zip(columns[1:], row[1:], strict=True)
            figures = ", ".join(f"{name} {cell}" for name, cell in cells if cell)
            self._console.print(
                f"{title}: {row[0]}: {figures}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )

    def stage(self, name: str) -> None:
        """What trains from now on: the bar says so, and starts again."""
        self._bar.reset(self._task, total=None, description=name, figures="")

    def chunk(self, done: int, total: int, metrics: Metrics) -> None:
        """Some micro-batches are through."""
        figures = f"loss {metrics['loss']:.3f} accuracy {metrics['accuracy']:.3f}"
        self._bar.update(self._task, completed=done, total=total, figures=figures)

    def epoch(self, metrics: Metrics) -> None:
        """An epoch was validated: one line for it."""
        if not self._epochs:
            return
        shown = [f"epoch {metrics['epoch']:>2}", f"loss {metrics['loss']:.3f}"]
        if "eval_accuracy" in metrics:
            shown.append(f"val loss {metrics['eval_loss']:.3f}")
            shown.append(f"val accuracy {metrics['eval_accuracy']:.3f}")
        if "rewards/accuracies" in metrics:
            shown.append(f"rewards/accuracies {metrics['rewards/accuracies']:.3f}")
        shown.append(f"{metrics['examples_per_second']:,.0f} examples/s")
        self._console.print("  ".join(shown), highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """A bar with figures beside it, in a terminal only; it leaves no line."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def output() -> Console:
    """The console of a command; wide enough for tables where nobody looks."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def table(
    title: str, columns: list[str], rows: list[list[str]], *, text_columns: int = 1
) -> Table:
    """A table whose first columns are text and whose others are figures."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < text_columns else "right")
    for row in rows:
        made.add_row(*map(escape, row))
    return made
