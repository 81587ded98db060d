"""Preferred: `prefchat evaluate --preferences`, which of two replies a run prefers."""

import os
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prefchat_jax.cli.console import table
from prefchat_jax.datasets.records import Comparisons, read_pairs
from prefchat_jax.errors import UserError
from prefchat_jax.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from prefchat_jax.evaluation.preferences import Measured

_COLUMNS = [
    "pairs of",
    "score",
    "pairs",
    "accuracy",
    "matched",
    "accuracy there",
    "length corr.",
]
_WIDE = 24  # Characters of a name.


def read_compared(weights: str | os.PathLike, path: str | os.PathLike) -> Comparisons:
    """The pairs of a file, for a run that can score them.

    Raises:
      UserError: the run has no response scorer, or the file holds no pair.
    """
    if RunDirectory.open(weights).config().get("scorer") is None:
        raise UserError(
            f"--preferences: {weights} has no response scorer: train it anew, on "
            "rows with two or more different replies and without --scorer_epochs 0."
        )
    return read_pairs([path])


def show_preferred(
    weights: str | os.PathLike, compared: Comparisons, console: Console
) -> dict[str, Any]:
    """Prints how often the run prefers the chosen replies; returns the figures."""
    from prefchat_jax.chat.session import Chat
    from prefchat_jax.evaluation.preferences import by_origin, chat_margins

    with console.status("comparing replies"), Chat.load(weights) as chat:
        found = by_origin(chat_margins(chat, compared.pairs), compared.pairs)
    rows = _rows("all", found["all"])
    for key in ("source", "annotator"):
        for name, measured in found.get(key, {}).items():
            rows += _rows(name or f"no {key}", measured)
    title = "how often the chosen reply is preferred, also among length-matched pairs"
    console.print(table(title, _COLUMNS, rows, text_columns=2))
    if notice := compared.notice():
        console.print(f"note: {notice}", highlight=False, soft_wrap=True, markup=False)
    return found


def _rows(name: str, measured: "Measured") -> list[list[str]]:
    """A line for each score."""
    lines = [["", score, *_figures(figures)] for score, figures in measured.items()]
    lines[0][0] = name if len(name) <= _WIDE else f"{name[:11]}…{name[-12:]}"
    return lines


def _figures(figures: dict[str, float]) -> list[str]:
    return [
        f"{figures['pairs']:,}",
        _interval(figures, "accuracy"),
        f"{figures['matched_pairs']:,}",
        _interval(figures, "matched_accuracy"),
        f"{figures['length_correlation']:+.2f}",
    ]


def _interval(figures: dict[str, float], name: str) -> str:
    ends = figures[f"{name}_low"], figures[f"{name}_high"]
    return f"{figures[name]:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
