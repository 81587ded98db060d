"""The parts of a run's model, and how many parameters of each train."""

from typing import NamedTuple

from prefchat_jax.models.classifier import Params
from prefchat_jax.training.optimizers import trainable_in_head_only
from prefchat_jax.training.parameters import flatten

# By the start of a path.
_PARTS = {
    "encoder.table": "encoder embedding",
    "encoder.up": "encoder rest",
    "encoder.down": "encoder rest",
    "head.base": "head base",
    "head.branches": "branches",
    "head.routers": "routers and scales",
    "head.scales": "routers and scales",
    "encoder.norm": "final norm",
    "encoder": "encoder rest",
    "head": "head rest",
}


class Part(NamedTuple):
    """How many parameters a part has, by whether they train."""

    name: str
    trained: int
    frozen: int


def count_parts(
    params: Params,
    scorer: Params | None = None,
    *,
    head_only: bool,
    scorer_trains: bool = False,
) -> list[Part]:
    """The parts of a classifier, then the response scorer, if there is one."""
    sizes = {path: leaf.size for path, leaf in flatten(params).items()}
    trains = flatten(trainable_in_head_only(params)) if head_only else {}
    counts = {name: [0, 0] for name in _PARTS.values()}
    for path, size in sizes.items():
        name = next(part for start, part in _PARTS.items() if path.startswith(start))
        counts[name][not trains.get(path, True)] += size
    parts = [Part(name, *count) for name, count in counts.items() if any(count)]
    if scorer is not None:
        size = sum(leaf.size for leaf in flatten(scorer).values())
        parts.append(Part("scorer", *((size, 0) if scorer_trains else (0, size))))
    return parts
