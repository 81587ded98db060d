"""`prefchat sweep`."""

import pathlib
import statistics
from collections.abc import Sequence

from prefchat_jax.cli import flags
from prefchat_jax.cli.allocator import give_memory_back
from prefchat_jax.cli.compile_cache import use_compile_cache
from prefchat_jax.cli.console import TrainingProgress, output, table
from prefchat_jax.cli.device import select_device
from prefchat_jax.reporting.leaderboard import SHOWN, settings
from prefchat_jax.training.run_directory import start_run
from prefchat_jax.training.sweep_config import SweepConfig


def main(argv: Sequence[str]) -> None:
    """Trains the runs, and prints what each setting came to, the best first."""
    config = flags.parse(SweepConfig, "sweep", argv)
    runs = list(config.runs())
    start_run(runs[0])  # Says what is wrong before JAX is imported, for seconds.
    give_memory_back()
    select_device(config.device)
    use_compile_cache(config.compile_cache)
    from prefchat_jax.sweep import sweep

    console = output()
    with TrainingProgress(console, epochs=False) as progress:
        result = sweep(config, progress)
    columns, rows = summary(result.rows, list(config.axes()))
    title = (
        f"{config.data or config.data_manifest}: mean +- standard deviation over seeds"
    )
    console.print(
        table(title, columns, rows, text_columns=len(columns) - len(SHOWN) - 2)
    )
    trained = f"{result.trained} runs" if result.trained else "nothing new"
    kept = len(result.rows) - result.trained
    lines = [
        f"{trained} in {result.seconds:.1f} s, {result.compile_seconds:.1f} s of it to "
        f"compile; {result.memory / 2**20:.0f} MiB in the largest program"
        + (f"; {kept} were there" if kept else ""),
        f"every run: {pathlib.Path(config.output) / 'results.csv'}",
        f"next: prefchat report {config.output} draws them",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def summary(
    rows: Sequence[dict[str, str]], names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """One line for each setting: mean and standard deviation over seeds.

    Args:
      rows: of runs, as in results.csv; those that diverged are counted alone.
      names: what varies.

    Returns:
      Column names and cells, the most accurate setting first.
    """
    cells = [
        [
            *setting.values,
            *(_spread(setting.figures(figure)) for figure in SHOWN),
            str(len(setting.rows)),
            str(len(setting.diverged)),
        ]
        for setting in settings(rows, names)
    ]
    return [*names, *SHOWN.values(), "runs", "diverged"], cells


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of figures; of those that have none, nothing."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.fmean(values):.4f} +- {statistics.stdev(values):.4f}"
