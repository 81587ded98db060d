"""`prefchat import_torch`: a checkpoint of the PyTorch reference as a run."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportFlags:
    """Make a run of a checkpoint of the PyTorch reference; needs no torch."""

    weights: str
    """File of torch.save(model.state_dict(), ...); may come first, without its flag."""
    output: str
    """Run directory to write."""
    meta: str | None = None
    """Metadata of the checkpoint: mode of its features, replies, names in `labels`."""
    feature_mode: Literal["legacy", "context_v2"] | None = None
    """How the checkpoint's features are made [as --meta says, or context_v2]."""
    from_db: str | None = None
    """Database of replies of the reference to store."""
    data: str | None = None
    """JSONL rows with a reply to store."""


def main(argv: Sequence[str]) -> None:
    """Writes the run and says what it is and what to do with it."""
    given = flags.parse(ImportFlags, "import_torch", argv, first="weights")
    from prefchat_jax.compat.importing import import_run

    made = import_run(
        given.weights,
        given.output,
        meta=given.meta,
        feature_mode=given.feature_mode,
        from_db=given.from_db,
        data=given.data,
    )
    lines = [f"note: {note}" for note in made.notes]
    lines += [
        f"head {made.head.name}, {made.head.num_buckets} classes, "
        f"{made.parameters:,} parameters, features {made.feature_mode}",
        f"{made.replies:,} answers stored, saved in {given.output}",
        f"next: prefchat chat --weights {given.output}; it refuses nothing until "
        "prefchat evaluate --tune_ranking has measured it on rows of yours"
        if made.replies
        else f"next: prefchat index --weights {given.output} --from_db FILE, or --data "
        "FILE, stores replies to chat with",
    ]
    for line in lines:
        output().print(line, highlight=False, soft_wrap=True, markup=False)
