"""`prefchat index`: what a run can answer, without training."""

import dataclasses
from collections.abc import Sequence

from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output
from prefchat_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexFlags:
    """Add answered questions to a run's database, build it, remove some, or check it.

    Removes first, then adds, checks, and counts.
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
    delete: tuple[int, ...] = ()
    """Entries to remove, by the ids that replies name."""
    delete_response: str | None = None
    """Remove all entries that give this reply."""
    check: bool = False
    """Read the whole database and say whether it is intact."""
    stats: bool = False
    """Count what is stored."""

    def __post_init__(self):
        if any(entry_id < 1 for entry_id in self.delete):
            raise UserError(f"--delete {min(self.delete)}: ids count from 1.")


def main(argv: Sequence[str]) -> None:
    """Changes the database as the flags say, and says what it did."""
    given = flags.parse(IndexFlags, "index", argv)
    from prefchat_jax import indexing
    from prefchat_jax.datasets.records import corpus_paths

    say = lambda text: output().print(text, highlight=False)
    run, where = given.weights, {"database": given.llm_db}
    removes = bool(given.delete) or given.delete_response is not None
    other_work = removes or given.check or given.stats or given.from_db
    paths, examples = [], []
    if given.data or given.data_manifest or not other_work:
        paths = corpus_paths(given.data, given.data_manifest)
    if given.from_db:
        from prefchat_jax.compat.database import read_examples

        examples = read_examples(given.from_db)
        if not examples:
            raise UserError(f"--from_db {given.from_db} has no row with a reply.")
    if removes:
        replies = [] if given.delete_response is None else [given.delete_response]
        removed, total = indexing.delete(
            run, ids=given.delete, responses=replies, **where
        )
        say(f"{removed} entries removed, {total} answers stored")
    if paths or examples:
        added, total = indexing.index(run, paths, examples=examples, **where)
        say(f"{added} rows added, {total} answers stored")
    if given.check:
        indexing.check(run, **where)
        say("the database is intact")
    if given.stats:
        for name, value in indexing.stats(run, **where).items():
            say(f"{name.replace('_', ' ')}: {value:,}")
