"""Times the preference loss, negatives included: forward, and with its gradient.

    python -m benchmarks.losses --device cpu

Prints a JSON line for each variant (with `--json`) or a table.
"""

import argparse
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks.timing import time_jitted
from prefchat_jax.cli.console import table
from prefchat_jax.cli.device import select_device

SHAPES = ((128, 10, 4), (4096, 10, 4), (1024, 1000, 16))


def run(shapes: Sequence[tuple[int, int, int]], repeats: int) -> list[dict]:
    """One row for each shape (batch, buckets, negatives), objective and group."""
    from prefchat_jax.training.objective import (
        GROUPS,
        LINKS,
        Objective,
        preference_losses,
        resolve_link,
    )

    rows = []
    for batch, buckets, negatives in shapes:
        logits = jax.random.normal(jax.random.key(0), (batch, buckets))
        labels = jnp.arange(batch) % buckets
        key = jax.random.key(1)
        for name in LINKS:
            link, beta = resolve_link(name)
            for group in GROUPS:
                objective = Objective(
                    weight=1.0,
                    link=link,
                    group=GROUPS[group],
                    beta=beta,
                    num_negatives=negatives,
                    hard_ratio=0.78,
                    confidence=True,
                )

                def loss(logits, labels, key, objective=objective):
                    values, _ = preference_losses(objective, key, logits, labels)
                    return values.mean()

                forward = time_jitted(loss, logits, labels, key, repeats=repeats)
                both = time_jitted(
                    jax.value_and_grad(loss), logits, labels, key, repeats=repeats
                )
                rows.append(
                    {
                        "batch": batch,
                        "buckets": buckets,
                        "negatives": negatives,
                        "objective": name,
                        "group": group,
                        "compile_seconds": both.compile_seconds,
                        "forward_us": forward.median_us,
                        "forward_backward_us": both.median_us,
                        "spread_us": both.spread_us,
                    }
                )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    devices = ["auto", "cpu", "gpu", "tpu"]
    parser.add_argument("--device", choices=devices, default="auto")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="the smallest shape only")
    parser.add_argument("--json", action="store_true", help="JSON lines, no table")
    args = parser.parse_args(argv)
    select_device(args.device)
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
    Console().print(table(title, columns, cells))


if __name__ == "__main__":
    main()
