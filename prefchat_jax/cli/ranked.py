"""Ranked: `prefchat evaluate --one_of_100`, the true reply among 100, beside a bar."""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from rich.console import Console
from rich.table import Table

from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.cli.console import table
from prefchat_jax.datasets.records import corpus_paths, read_records
from prefchat_jax.errors import UserError
from prefchat_jax.training.run_directory import RunDirectory

if TYPE_CHECKING:
    from prefchat_jax.evaluation.retrieval import Block, Retrieval
    from prefchat_jax.text.dialogue import Example


class Ranking(NamedTuple):
    """What --one_of_100 ranks, read before the run is asked."""

    blocks: Sequence["Block"]
    train: Sequence["Example"]
    notes: list[str]


def training_paths(
    weights: str | os.PathLike, train_data: str | None
) -> list[str | pathlib.Path]:
    """The file of `--train_data`, or those of the run if they can be named."""
    if train_data:
        return [train_data]
    trained = RunDirectory.open(weights).config()["finetune"]
    try:
        return corpus_paths(trained.get("data"), trained.get("data_manifest"))
    except UserError:
        return []


def read_ranking(
    examples: Sequence["Example"],
    train_paths: Sequence[str | os.PathLike],
    *,
    given: bool,
) -> Ranking:
    """Blocks of 100 of some rows, and the rows whose statistics the bar uses.

    Args:
      examples: the rows to rank.
      train_paths: JSONL files.
      given: whether the user named them: then it is an error, and else only a note,
        if they cannot be read.

    Raises:
      UserError: there are too few different responses, or see `given`.
    """
    from prefchat_jax.evaluation.retrieval import blocks

    made = blocks(examples)
    try:
        return Ranking(made, read_records(train_paths).examples, [])
    except UserError:
        if given:
            raise
    note = (
        "what the run trained on is not there any more: BM25 and TF-IDF know the "
        "ranked responses alone; give --train_data."
    )
    return Ranking(made, [], [note])


def show_ranked(
    weights: str, settings: ChatSettings, ranking: Ranking, console: Console
) -> dict[str, dict[str, list[float]]]:
    """Prints how high the run ranks the true replies; returns the figures."""
    from prefchat_jax.chat.session import Chat
    from prefchat_jax.evaluation.retrieval import (
        Retrieval,
        ScoresResponses,
        chat_scorer,
        one_of_100,
    )

    made, train, notes = ranking
    with console.status("ranking replies"):
        with Chat.load(weights, settings=settings) as chat:
            ranks = one_of_100(made, chat_scorer(cast(ScoresResponses, chat)))
        systems = [Retrieval("run", ranks)]
        systems += _baselines(made, train, notes)
    title = f"the true reply among 100, {100 * len(made):,} contexts, 95 % intervals"
    console.print(retrieval_table(title, systems))
    for note in notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    return {system.system: system.means() for system in systems}


def retrieval_table(title: str, systems: Sequence["Retrieval"]) -> Table:
    """One row for each system: recall and MRR with their 95 % intervals."""
    columns = ["system", "R@1", "R@5", "R@10", "MRR"]
    rows = [
        [
            system.system,
            *(
                f"{mean:.3f} [{low:.3f}, {high:.3f}]"
                for mean, low, high in system.means().values()
            ),
        ]
        for system in systems
    ]
    return table(title, columns, rows)


def _baselines(
    made: Sequence["Block"], train: Sequence["Example"], notes: list[str]
) -> list["Retrieval"]:
    """The best of each kind; of one that is not installed, a note."""
    from prefchat_jax.evaluation.retrieval import best, bm25_systems, tfidf_systems

    found = []
    for systems in (bm25_systems, tfidf_systems):
        try:
            found.append(best(systems(made, train)))
        except UserError as error:
            notes.append(str(error))
    return found
