"""Memory and time of token log-probabilities: all logits at once, and in chunks.

    python -m benchmarks.logprobs --device cpu

The value and its gradient by hidden states and unembedding. `memory` is what the
compiler sets aside beside arguments and results; the differences to the first row
are relative to its largest entry. Prints JSON lines (with `--json`) or a table.
"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks.timing import parse, time_jitted
from prefchat_jax.cli.console import table
from prefchat_jax.losses.logprobs import chunked_token_logps, token_logps


class Shape(NamedTuple):
    """Sequences of tokens, with hidden states of `hidden`, over a vocabulary."""

    sequences: int
    tokens: int
    hidden: int
    vocabulary: int


SHAPE = Shape(4, 1024, 512, 32000)
QUICK = Shape(2, 128, 64, 2000)
CHUNK_SIZES = (128, 256, 512)


def run(shape: Shape, chunk_sizes: Sequence[int], repeats: int) -> list[dict]:
    """One row for all logits at once, and one for each size of a chunk."""
    arguments = _arguments(shape)
    rows, wanted = [], None
    for chunk_size in (None, *chunk_sizes):
        fn = jax.value_and_grad(_loss(chunk_size), argnums=(0, 1))
        timing = time_jitted(fn, *arguments, repeats=repeats, calls=1)
        compiled = jax.jit(fn).lower(*arguments).compile()
        memory = compiled.memory_analysis()
        assert memory is not None, "this device does not tell"
        got = jax.tree.leaves(compiled(*arguments))
        wanted = wanted or got
        value, *gradients = map(_difference, got, wanted)
        rows.append(
            {
                **shape._asdict(),
                "chunk_size": chunk_size,
                "memory_mb": memory.temp_size_in_bytes / 1e6,
                "compile_seconds": timing.compile_seconds,
                "median_ms": timing.median_us / 1e3,
                "spread_ms": timing.spread_us / 1e3,
                "value_difference": value,
                "gradient_difference": max(gradients),
            }
        )
    for row in rows:
        row["memory_factor"] = rows[0]["memory_mb"] / row["memory_mb"]
        row["time_ratio"] = row["median_ms"] / rows[0]["median_ms"]
    return rows


def _arguments(shape: Shape) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    places = shape.sequences, shape.tokens
    hidden = jax.random.normal(keys[0], (*places, shape.hidden))
    unembedding = jax.random.normal(keys[1], (shape.hidden, shape.vocabulary))
    targets = jax.random.randint(keys[2], places, 0, shape.vocabulary)
    return hidden, unembedding / shape.hidden**0.5, targets


def _loss(chunk_size: int | None) -> Callable[..., jax.Array]:
    if chunk_size is None:
        return lambda hidden, unembedding, targets: (
            -jnp.mean(token_logps(hidden @ unembedding, targets))
        )
    return lambda hidden, unembedding, targets: (
        -jnp.mean(
            chunked_token_logps(hidden, unembedding, targets, chunk_size=chunk_size)
        )
    )


def _difference(ours: jax.Array, theirs: jax.Array) -> float:
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(__doc__, argv, repeats=3, quick="a small shape")
    shape = QUICK if args.quick else SHAPE
    sizes = [size // 8 for size in CHUNK_SIZES] if args.quick else CHUNK_SIZES
    rows = run(shape, sizes, args.repeats)
    device = jax.devices()[0]
    if args.json:
        for row in rows:
            print(json.dumps({"device": str(device), "jax": jax.__version__} | row))
        return
    cells = [
        [
            f"chunks of {row['chunk_size']}" if row["chunk_size"] else "all at once",
            f"{row['memory_mb']:,.1f}",
            f"{row['memory_factor']:.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['median_ms']:,.0f}",
            f"{row['time_ratio']:.2f}",
            f"{row['value_difference']:.0e}",
            f"{row['gradient_difference']:.0e}",
        ]
        for row in rows
    ]
    columns = ["logits", "memory MB", "factor less", "compile s", "median ms"]
    columns += ["ratio", "value differs", "gradient differs"]
    sizes_text = " x ".join(map(str, shape))
    title = f"{device}, jax {jax.__version__}: {sizes_text}, forward + backward"
    Console(width=120).print(table(title, columns, cells))


if __name__ == "__main__":
    main()
