"""Times training, an epoch a dispatch as `prefchat finetune` runs it.

    python -m benchmarks.training --data banking77/train.jsonl --device cpu

The shipped recipe, and turn by turn what leaves a part of it out, adds one, or trains
another model: a ratio is its time over that of the recipe as shipped. Features are
made before, and nothing is validated or saved.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import Ceilings
from benchmarks.timing import (
    DEMO,
    Program,
    command,
    compile_program,
    figures,
    flags,
    ratio,
    show,
    start,
    take_turns,
)
from prefchat_jax.finetune import Silent
from prefchat_jax.models.classifier import ModelConfig
from prefchat_jax.models.frozen import freeze, frozen_vectors, trained_params
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.corpus import Corpus, load_corpus
from prefchat_jax.training.recipe import make_plan, make_recipe
from prefchat_jax.training.start import initial_params, model_shape
from prefchat_jax.training.steps import init_state, run_steps

SHIPPED = "as shipped"
HEAD = "head alone, as --frozen_features"
VARIANTS: dict[str, dict[str, Any]] = {
    SHIPPED: {},
    "without clip": {"grad_clip_norm": 0.0},
    "without preference": {"pref_weight": 0.0},
    "with EMA": {"ema_decay": 0.999},
    "accumulation 4": {"grad_accum_steps": 4},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "base": {"model_size": "base"},
    "xlarge": {"model_size": "xlarge"},
    "xxlarge": {"model_size": "xxlarge"},
    "xxlarge, bfloat16": {"model_size": "xxlarge", "compute_dtype": "bfloat16"},
    HEAD: {},
}


def run(
    corpus: Corpus,
    config: FinetuneConfig,
    limits: Ceilings,
    *,
    seconds: float,
    variants: Sequence[str] = tuple(VARIANTS),
) -> list[dict]:
    """A row for each variant; the first one is what the others are compared with."""
    programs = {name: epoch_program(name, config, corpus) for name in variants}
    calls = {name: program.call for name, program in programs.items()}
    timed = take_turns(calls, seconds=seconds)
    rows = []
    for name, program in programs.items():
        row = {"variant": name, "ratio": ratio(timed[name], timed[variants[0]])}
        examples = len(corpus.train.labels)
        rows.append(row | figures(program, timed[name], limits, examples))
    return rows


def epoch_program(name: str, config: FinetuneConfig, corpus: Corpus) -> Program:
    """One epoch of a variant, which goes on where the one before it ended."""
    config = dataclasses.replace(config, **VARIANTS[name])
    model = model_shape(config, corpus, None)
    recipe, _ = make_recipe(config, model, corpus, Silent())
    params, _ = initial_params(config, model, corpus, None)
    rows = corpus.train
    if name == HEAD:
        assert isinstance(model, ModelConfig)
        vectors = frozen_vectors(model, params, rows.ids, rows.weights)
        rows = rows._replace(ids=rows.ids[:, :0], weights=vectors)
        recipe = dataclasses.replace(recipe, model=freeze(model))
        params = trained_params(params)
    return compile_program(
        lambda state, rows, plan, key: run_steps(
            recipe, state, rows, plan, key, jnp.float32(1.0)
        ),
        init_state(recipe, params),
        jax.device_put(rows),
        jax.tree.map(jnp.asarray, make_plan(config, corpus).epoch(1)),
        jax.random.key(0),
        carry=True,
    )


COLUMNS = {
    "variant": ("variant", ""),
    "examples/s": ("examples_per_second", ",.0f"),
    "time, to the first": ("ratio", ".2f"),
    "compile s": ("compile_seconds", ".1f"),
    "ms an epoch": ("median_ms", ",.0f"),
    "CPU ms": ("processor_ms", ",.0f"),
    "temporary MB": ("temporary_mb", ",.0f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags(__doc__, seconds=5.0, quick="64 rows, three variants")
    parser.add_argument("--data", default=DEMO, help="rows; those of the demo")
    args, limits = start(parser, argv)
    config = FinetuneConfig(data=args.data, output="")
    corpus = load_corpus(config, Silent())
    variants = tuple(VARIANTS)
    if args.quick:
        few = jax.tree.map(lambda x: x[:64], corpus.train)
        corpus, variants = corpus._replace(train=few), (SHIPPED, "base", HEAD)
    rows = run(corpus, config, limits, seconds=args.seconds, variants=variants)
    for row in rows:
        row["median_ms"] = row["median_us"] / 1e3
        row["processor_ms"] = row["processor_us"] / 1e3
    count, width = np.shape(corpus.train.ids)
    title = f"{count:,} rows of {width} features"
    show(title, COLUMNS, rows, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
