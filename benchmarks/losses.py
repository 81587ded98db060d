"""Times the preference loss, negatives included: forward, and with its gradient.

    python -m benchmarks.losses --device cpu

Prints a JSON line for each variant (with `--json`) or a table.
"""

import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks.timing import parse, time_jitted
from prefchat_jax.cli.console import table
from prefchat_jax.training.catalogue import GROUPS, OBJECTIVES

SHAPES = ((128, 10, 4), (4096, 10, 4), (1024, 1000, 16))


def run(
    shapes: Sequence[tuple[int, int, int]],
    repeats: int,
    objectives: Sequence[str] = tuple(OBJECTIVES),
    groups: Sequence[str] = tuple(GROUPS),
) -> list[dict]:
    """A row for each shape, each objective, and each group of the first objective."""
    variants = [(name, "pairwise_mean") for name in objectives]
    variants += [(objectives[0], group) for group in groups if group != "pairwise_mean"]
    return [
        _time(shape, objective, group, repeats)
        for shape in shapes
        for objective, group in variants
    ]


def _time(
    shape: tuple[int, int, int], objective: str, group: str, repeats: int
) -> dict:
    """Times one preference loss for a shape (batch, buckets, negatives)."""
    from prefchat_jax.training.preference import (
        init_preference_state,
        make_preference,
        preference_losses,
    )
    from prefchat_jax.training.targets import Targets

    batch, buckets, negatives = shape
    logits, ref_logits = jax.random.normal(jax.random.key(0), (2, batch, buckets))
    labels = jnp.arange(batch) % buckets
    has_reference = OBJECTIVES[objective].reference
    preference = make_preference(
        objective, group=group, num_negatives=negatives, hard_ratio=0.78
    )

    def loss(logits, ref_logits, labels, key):
        targets = Targets(labels, ref_logits if has_reference else None)
        state = init_preference_state(preference)
        judged, _ = preference_losses(preference, key, logits, targets, state)
        return judged.values.mean()

    inputs = logits, ref_logits, labels, jax.random.key(1)
    forward = time_jitted(loss, *inputs, repeats=repeats)
    both = time_jitted(jax.value_and_grad(loss), *inputs, repeats=repeats)
    return {
        "batch": batch,
        "buckets": buckets,
        "negatives": negatives,
        "objective": objective,
        "group": group,
        "compile_seconds": both.compile_seconds,
        "forward_us": forward.median_us,
        "forward_backward_us": both.median_us,
        "spread_us": both.spread_us,
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(__doc__, argv, repeats=30, quick="the smallest shape only")
    rows = run(SHAPES[:1] if args.quick else SHAPES, args.repeats)
    device = jax.devices()[0]
    if args.json:
        for row in rows:
            print(json.dumps({"device": str(device), "jax": jax.__version__} | row))
        return
    cells = [
        [
            f"{row['objective']} / {row['group']}",
            f"{row['batch']} x {row['buckets']} x {row['negatives']}",
            f"{row['compile_seconds']:.2f}",
            f"{row['forward_us']:,.0f}",
            f"{row['forward_backward_us']:,.0f}",
            f"{row['spread_us']:,.0f}",
        ]
        for row in rows
    ]
    columns = ["objective / group", "batch x buckets x negatives", "compile s"]
    columns += ["forward us", "forward + backward us", "quartile range"]
    title = f"{device}, jax {jax.__version__}: medians"
    Console(width=120).print(table(title, columns, cells))


if __name__ == "__main__":
    main()
