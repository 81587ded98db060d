"""`prefchat sweep`."""

import pathlib
import statistics
from collections.abc import Sequence

from prefchat_jax.cli import flags
from prefchat_jax.cli.compile_cache import use_compile_cache
from prefchat_jax.cli.console import TrainingProgress, output, table
from prefchat_jax.cli.device import select_device
from prefchat_jax.training.run_directory import start_run
from prefchat_jax.training.sweep_config import SweepConfig

# The figures that the table shows, and what it calls them.
_SHOWN = {
    "eval_accuracy": "accuracy",
    "eval_macro_f1": "macro-F1",
    "eval_loss": "val loss",
    "rewards/margins": "margin",
}


def main(argv: Sequence[str]) -> None:
    """Trains the runs, and prints what each setting came to, the best first."""
    config = flags.parse(SweepConfig, "sweep", argv)
    runs = list(config.runs())
    start_run(runs[0])  # Says what is wrong before JAX is imported, for seconds.
    select_device(config.device)
    use_compile_cache(config.compile_cache)
    from prefchat_jax.sweep import sweep

    console = output()
    with TrainingProgress(console, epochs=False) as progress:
        result = sweep(config, progress)
    columns, rows = summary(result.rows, list(config.axes()))
    title = f"{config.data or config.data_manifest}: mean +- deviation over seeds"
    console.print(
        table(title, columns, rows, text_columns=len(columns) - len(_SHOWN) - 2)
    )
    trained = f"{result.trained} runs" if result.trained else "nothing new"
    kept = len(result.rows) - result.trained
    lines = [
        f"{trained} in {result.seconds:.1f} s, {result.compile_seconds:.1f} s of it to "
        f"compile; {result.memory / 2**20:.0f} MiB in the largest program"
        + (f"; {kept} were there" if kept else ""),
        f"every run: {pathlib.Path(config.output) / 'results.csv'}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def summary(
    rows: Sequence[dict[str, str]], names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """One line for each setting: mean and deviation over the seeds that came through.

    Args:
      rows: of runs, as in results.csv.
      names: what varies.

    Returns:
      Column names and cells, the most accurate setting first.
    """
    settings: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        settings.setdefault(tuple(row[name] for name in names), []).append(row)
    ranked = []
    for setting, members in settings.items():
        through = [row for row in members if not row["diverged"]]
        accuracy = [float(row["eval_accuracy"]) for row in through]
        cells = [_spread([row[figure] for row in through]) for figure in _SHOWN]
        counts = [str(len(members)), str(len(members) - len(through))]
        best = statistics.fmean(accuracy) if accuracy else -1.0
        ranked.append((best, [*setting, *cells, *counts]))
    ranked.sort(key=lambda pair: -pair[0])
    columns = [*(names or []), *_SHOWN.values(), "runs", "diverged"]
    return columns, [cells for _, cells in ranked]


def _spread(texts: Sequence[str]) -> str:
    """Mean and deviation of figures; of those that have none, nothing."""
    values = [float(text) for text in texts if text]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} +- {statistics.stdev(values):.4f}"
