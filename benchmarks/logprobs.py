"""Memory and time of token log-probabilities: all logits at once, and in chunks.

    python -m benchmarks.logprobs --device cpu

The value and its gradient by hidden states and unembedding. `memory` is what the
compiler sets aside beside arguments and results; the differences to the first row
are relative to its largest entry. Prints JSON lines (with `--json`) or a table.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import Ceilings
from benchmarks.timing import (
    command,
    compile_program,
    figures,
    flags,
    ratio,
    show,
    start,
    take_turns,
)
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


def run(
    shape: Shape, chunk_sizes: Sequence[int], limits: Ceilings, *, seconds: float
) -> list[dict]:
    """One row for all logits at once, and one for each size of a chunk."""
    arguments = _arguments(shape)
    programs = {
        size: compile_program(
            jax.value_and_grad(_loss(size), argnums=(0, 1)), *arguments
        )
        for size in (None, *chunk_sizes)
    }
    names = {str(size): program.call for size, program in programs.items()}
    timed = take_turns(names, seconds=seconds)
    wanted = jax.tree.leaves(programs[None].call())
    rows = []
    for size, program in programs.items():
        value, *gradients = map(_difference, jax.tree.leaves(program.call()), wanted)
        examples = shape.sequences * shape.tokens
        row = {**shape._asdict(), "chunk_size": size}
        row["logits"] = f"chunks of {size}" if size else "all at once"
        row |= figures(program, timed[str(size)], limits, examples)
        row["memory_factor"] = programs[None].temporary_bytes / program.temporary_bytes
        row["time_ratio"] = ratio(timed[str(size)], timed["None"])
        row["value_difference"] = value
        row["gradient_difference"] = max(gradients)
        rows.append(row)
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


COLUMNS = {
    "logits": ("logits", ""),
    "memory MB": ("temporary_mb", ",.1f"),
    "factor less": ("memory_factor", ".1f"),
    "compile s": ("compile_seconds", ".1f"),
    "median us": ("median_us", ",.0f"),
    "ratio": ("time_ratio", ".2f"),
    "tokens/s": ("examples_per_second", ",.0f"),
    "of limit": ("limit_fraction", ".2f"),
    "value differs": ("value_difference", ".0e"),
    "gradient differs": ("gradient_difference", ".0e"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags(__doc__, seconds=10.0, quick="a small shape")
    args, limits = start(parser, argv)
    shape = QUICK if args.quick else SHAPE
    sizes = [size // 8 for size in CHUNK_SIZES] if args.quick else CHUNK_SIZES
    rows = run(shape, sizes, limits, seconds=args.seconds)
    title = " x ".join(map(str, shape)) + ", forward + backward"
    show(title, COLUMNS, rows, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
