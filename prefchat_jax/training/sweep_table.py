"""results.csv: what the runs of a sweep came to, one row each. No JAX."""

import csv
import pathlib
from collections.abc import Iterable

from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside
from prefchat_jax.training.sweep_config import RUN_FIELDS

# What a row says of its run, beside its settings.
FIGURES = (
    "fingerprint",
    "diverged",
    "best_epoch",
    "eval_loss",
    "eval_accuracy",
    "eval_macro_f1",
    "eval_calibration",
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "reliability",
    "steps_per_second",
    "runs_at_once",
)
COLUMNS = (*RUN_FIELDS, *FIGURES)

# A row of the table: texts by column, as they stand in the file.
Row = dict[str, str]


def read_table(path: pathlib.Path) -> list[Row]:
    """The rows of a table.

    Raises:
      UserError: it is no table, or of another version.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table of a sweep: {error}.") from error
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row for row in rows):
        raise UserError(
            f"{path} has other columns than this version writes: sweep again, into "
            "another --output."
        )
    return rows


def write_table(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes a table, all or nothing."""
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
