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

    say = lambda text: output().print(
        text, highlight=False, markup=False, soft_wrap=True
    )
    run, where = given.weights, {"database": given.llm_db}
    removes = bool(given.delete) or given.delete_response is not None
    paths = []
    if given.data or given.data_manifest or not (removes or given.check or given.stats):
        paths = corpus_paths(given.data, given.data_manifest)
    if removes:
        replies = [] if given.delete_response is None else [given.delete_response]
        removed, total = indexing.delete(
            run, ids=given.delete, responses=replies, **where
        )
        say(f"{removed} entries removed, {total} answers stored")
    if paths:
        done = indexing.index(run, paths, **where)
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
