"""`prefchat feedback`: what users of `prefchat serve` preferred, to see or train on.

The thumbs of the page, and requests to `/v1/feedback`, append to the file of a run.
"""

import collections
import dataclasses
import os
import sys
from collections.abc import Sequence

import msgspec

from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output, table
from prefchat_jax.datasets.preferences import PreferencePair, pair_row
from prefchat_jax.datasets.records import read_pairs
from prefchat_jax.datasets.verdicts import Verdicts, last_verdicts
from prefchat_jax.errors import UserError
from prefchat_jax.files import check_outputs, write_aside
from prefchat_jax.training.run_directory import RunDirectory

_UNSIGNED = "(unsigned)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Write the feedback on a run as preference pairs, for finetune --preferences.

    Where one user judged the same two replies more than once, the last verdict
    counts. Damaged lines are named and left out.
    """

    weights: str
    """Run directory that was served; may come first, without its flag."""
    output: str
    """JSONL file of prompt, chosen, rejected, annotator; one that is there is
    replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListFlags:
    """List the feedback on a run: user, question, preferred reply, the other one."""

    weights: str
    """Run directory that was served; may come first, without its flag."""


def main(argv: Sequence[str]) -> None:
    """Exports the feedback on a run, or lists it."""
    action, rest = (argv[0] if argv else "help"), argv[1:]
    if action in ("-h", "--help", "help"):
        print(_help())  # noqa: T201
    elif action in _ACTIONS:
        _ACTIONS[action](rest)
    else:
        raise UserError(f"feedback {action}: use one of {', '.join(_ACTIONS)}.")


def _export(argv: Sequence[str]) -> None:
    given = flags.parse(ExportFlags, "feedback export", argv, first="weights")
    run = RunDirectory.open(given.weights)
    check_outputs({"output": given.output}, reads=[run.feedback], run=run.path)
    verdicts, notice = _read(run)
    note = " (replaced)" * os.path.exists(given.output)
    write_pairs(given.output, verdicts.pairs)
    console = output()
    users = lambda pairs: collections.Counter(p.annotator or _UNSIGNED for p in pairs)
    kept, replaced = map(users, verdicts)
    rows = [[name, f"{n:,}", f"{replaced[name]:,}"] for name, n in kept.most_common()]
    title = f"feedback on {given.weights}"
    console.print(table(title, ["user", "pairs", "judged again"], rows))
    lines = [f"note: {notice}"] * bool(notice)
    lines.append(f"{len(verdicts.pairs):,} preference pairs: {given.output}{note}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _list(argv: Sequence[str]) -> None:
    given = flags.parse(ListFlags, "feedback list", argv, first="weights")
    verdicts, notice = _read(RunDirectory.open(given.weights))
    columns = ["user", "question", "preferred", "to"]
    rows = [
        [
            " ".join(text.split())
            for text in (
                pair.annotator or _UNSIGNED,
                pair.context[-1].content,
                pair.chosen,
                pair.rejected,
            )
        ]
        for pair in verdicts.pairs
    ]
    console = output()
    if console.is_terminal:
        console.print(table("", columns, rows, text_columns=len(columns)))
    else:  # A console would expand the tabs.
        sys.stdout.writelines("\t".join(row) + "\n" for row in rows)
    if notice:
        sys.stderr.write(f"note: {notice}\n")


def write_pairs(path: str | os.PathLike, pairs: Sequence[PreferencePair]) -> None:
    """Writes pairs as JSONL in TRL's conversational form, all or nothing."""
    encode = msgspec.json.Encoder().encode
    with write_aside(path) as aside, aside.open("wb") as file:
        file.writelines(encode(pair_row(pair)) + b"\n" for pair in pairs)


def _read(run: RunDirectory) -> tuple[Verdicts, str | None]:
    """What counts of the feedback, and a line about what cannot be read."""
    if not run.feedback.exists() or not run.feedback.stat().st_size:
        raise UserError(
            f"{run.feedback}: there is no feedback yet: `prefchat serve` keeps the "
            "thumbs of its page there."
        )
    found = read_pairs([run.feedback], skip_damaged=True)
    return last_verdicts(found.pairs), found.notice()


def _help() -> str:
    return (
        "usage: prefchat feedback export RUN --output FILE\n"
        "       prefchat feedback list RUN\n\n"
        "What users preferred: as preference pairs in FILE, or a line each."
    )


_ACTIONS = {"export": _export, "list": _list}
