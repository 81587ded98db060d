"""`prefchat index`: more stored replies for a run, without training."""

import dataclasses
from collections.abc import Sequence

from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexFlags:
    """Add the answered questions of a JSONL file to a run's database, or build it."""

    weights: str
    """Run directory whose features and buckets are used."""
    data: str | None = None
    """JSONL rows with a reply."""
    data_manifest: str | None = None
    """JSON list of files, instead of --data or beside it."""
    llm_db: str | None = None
    """Database to extend or build [the run's own]."""


def main(argv: Sequence[str]) -> None:
    """Adds rows and says how many are stored."""
    given = flags.parse(IndexFlags, "index", argv)
    from prefchat_jax.datasets.records import corpus_paths
    from prefchat_jax.indexing import index

    paths = corpus_paths(given.data, given.data_manifest)
    added, total = index(given.weights, paths, database=given.llm_db)
    output().print(f"{added} rows added, {total} answers stored", highlight=False)
