"""`prefchat index`: what a run can answer, without training."""

import dataclasses
import re
import sys
from collections.abc import Sequence

from prefchat_jax.chat.store import Entry
from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output, table
from prefchat_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexFlags:
    """Add answered questions to a run's database, build it, remove, find or check some.

    Removes first, then adds, checks, counts, and searches.
    """

    weights: str
    """Run directory whose features and buckets are used."""
    data: str | None = None
    """JSONL rows with a reply to add."""
    data_manifest: str | None = None
    """JSON list of files, instead of --data or beside it."""
    from_db: str | None = None
    """Database of replies of the PyTorch reference, instead of --data or beside it."""
    llm_db: str | None = None
    """Database to change or build [the run's own]."""
    delete: tuple[int, ...] | None = None
    """Entries to remove, by the ids that --search lists."""
    delete_response: str | None = None
    """Remove all entries that give exactly this reply."""
    check: bool = False
    """Read the whole database and say whether it is intact."""
    stats: bool = False
    """Count what is stored."""
    search: str | None = None
    """List the 20 entries that these words find best: id, question, reply."""

    def __post_init__(self):
        if self.delete == ():
            raise UserError("--delete needs ids: --search WORDS lists them.")
        if self.delete and min(self.delete) < 1:
            raise UserError(f"--delete {min(self.delete)}: ids count from 1.")
        if self.search is not None and not re.search(r"\w", self.search):
            raise UserError(f"--search {self.search!r}: give a word to look for.")


def main(argv: Sequence[str]) -> None:
    """Changes the database as the flags say, and says what it did."""
    given = flags.parse(IndexFlags, "index", argv, first="weights")
    from prefchat_jax import indexing
    from prefchat_jax.datasets.records import corpus_paths

    say = lambda text: output().out(text, highlight=False)
    run, where = given.weights, {"database": given.llm_db}
    removes = given.delete is not None or given.delete_response is not None
    paths, examples = [], []
    if given.data or given.data_manifest:
        paths = corpus_paths(given.data, given.data_manifest)
    elif not (removes or given.check or given.stats or given.search or given.from_db):
        raise UserError(
            "--data is missing: give a JSONL corpus to add, or one of --from_db, "
            "--search, --delete, --delete_response, --check and --stats."
        )
    if given.from_db:
        from prefchat_jax.compat.database import read_examples

        examples = read_examples(given.from_db)
        if not examples:
            raise UserError(f"--from_db {given.from_db} has no row with a reply.")
    if removes:
        replies = [] if given.delete_response is None else [given.delete_response]
        removed, total = indexing.delete(
            run, ids=given.delete or (), responses=replies, **where
        )
        say(f"{removed} entries removed, {total} answers stored")
    if paths or examples:
        done = indexing.index(run, paths, examples=examples, **where)
        for note in done.notes:
            say(f"note: {note}")
        again = f"{done.again} were there already"
        say(f"{done.new} rows added, {again}, {done.total} answers stored")
    if given.check:
        indexing.check(run, **where)
        say("the database is intact")
    if given.stats:
        for name, value in indexing.stats(run, **where).items():
            say(f"{name.replace('_', ' ')}: {value:,}")
    if given.search is not None:
        _show(indexing.search(run, given.search, **where))


def _show(entries: Sequence[Entry]) -> None:
    """A table in a terminal; elsewhere a line each, with tabs between."""
    columns = ["id", "question", "reply"]
    rows = [
        [str(entry.id), *(" ".join(text.split()) for text in entry[1:3])]
        for entry in entries
    ]
    console = output()
    if console.is_terminal and rows:
        console.print(table("", columns, rows, text_columns=len(columns)))
        return
    for row in rows or [["nothing found"]]:  # A console would expand the tabs.
        sys.stdout.write("\t".join(row) + "\n")
