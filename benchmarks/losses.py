"""Times preference losses, negatives included: forward, and with the gradient.

    python -m benchmarks.losses --device cpu --threads 1

Beside them, turn by turn, eager torch where it is installed (extra `peers`) and
`torch.compile` (`--torch_compile`, which needs a C++ compiler and half a minute for
each). Values and gradients are compared first, with hard negatives alone, which both
sides find alike; what is timed draws from both kinds.
"""

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import Ceilings, threads
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
from prefchat_jax import losses
from prefchat_jax.losses.negatives import mines_in_blocks
from prefchat_jax.training.catalogue import GROUPS, OBJECTIVES, hyper_parameters

SHAPES = ((128, 10, 4), (4096, 10, 4), (1024, 1000, 16))
TOKENS = (64, 512)  # Pairs of responses, tokens of each.
# What the command line of the system before this one trains with comes first.
VARIANTS = (
    ("sigmoid", "epo", "confidence"),
    *((name, "pairwise_mean", "none") for name in OBJECTIVES),
    *(("sigmoid", name, "none") for name in GROUPS if name != "pairwise_mean"),
)
SEQUENCE: dict[str, Callable[..., jax.Array]] = {
    "dpo": partial(losses.dpo, beta=0.1),
    "ipo": partial(losses.ipo, beta=0.1),
    "exo": partial(losses.exo, beta=0.1, label_smoothing=1e-3),
    "nca": partial(losses.nca, beta=0.1),
    "apo_zero": partial(losses.apo_zero, beta=0.1),
    "simpo": lambda w, r, *_: losses.simpo(w, r, beta=2.0, gamma=0.5),
    "orpo": lambda w, r, *_: losses.orpo(w, r, beta=0.1),
}
_HARD_RATIO = 0.78


class Case(NamedTuple):
    """A preference loss on a shape: batch, buckets, negatives."""

    shape: tuple[int, int, int]
    objective: str
    group: str
    noise: str
    approximate: bool = False

    @property
    def name(self) -> str:
        parts = [self.objective, self.group, self.noise]
        parts += ["approximate"] * self.approximate
        return " / ".join(part for part in parts if part != "none")

    def inputs(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Logits, logits of the reference if there is one, labels."""
        batch, buckets, _ = self.shape
        logits = np.random.default_rng(0).normal(size=(2, batch, buckets))
        logits = logits.astype(np.float32)
        has_reference = OBJECTIVES[self.objective].reference
        labels = np.arange(batch, dtype=np.int32) % buckets
        return logits[0], logits[1] if has_reference else None, labels


def run(
    shapes: Sequence[tuple[int, int, int]],
    limits: Ceilings,
    *,
    seconds: float,
    variants: Sequence[tuple[str, str, str]] = VARIANTS,
    torch_compile: bool = False,
) -> Iterator[dict]:
    """A row for each shape and variant, with one negative and with all of the shape.

    The first variant also with approximate negatives where those differ.
    """
    for batch, buckets, most in shapes:
        for negatives in sorted({1, most}):
            shape = batch, buckets, negatives
            cases = [Case(shape, *variant) for variant in variants]
            if negatives > 1 and mines_in_blocks(buckets, negatives):
                cases.append(cases[0]._replace(approximate=True))
            for case in cases:
                yield time_case(case, limits, seconds, torch_compile)


def time_case(
    case: Case, limits: Ceilings, seconds: float, torch_compile: bool
) -> dict:
    """Times one preference loss, beside its peers."""
    arrays = *jax.tree.map(jnp.asarray, case.inputs()), jax.random.key(1)
    forward = compile_program(_ours(case, _HARD_RATIO), *arrays)
    both = compile_program(jax.value_and_grad(_ours(case, _HARD_RATIO)), *arrays)
    peers, why_not = _peers(case, torch_compile)
    calls = {"forward": forward.call, "both": both.call}
    timed = take_turns(calls | peers, seconds=seconds)
    batch, buckets, negatives = case.shape
    row = {"batch": batch, "buckets": buckets, "negatives": negatives}
    row |= {"loss": case.name, "forward_us": timed["forward"].median_us}
    row |= figures(both, timed["both"], limits, batch)
    for name in peers:
        row[f"{name}_us"] = timed[name].median_us
        row[f"{name}_ratio"] = ratio(timed[name], timed["both"])
        processor = np.median(timed[name].processor / timed["both"].processor)
        row[f"{name}_processor_ratio"] = float(processor)
    if case.approximate:
        row["recall"] = recall(case)
    return row | {"without": why_not}


def recall(case: Case) -> float:
    """The share of the hardest negatives that approximate ones have."""
    logits, _, labels = case.inputs()
    exact, found = (
        losses.mine_negatives(
            jax.random.key(0),
            logits,
            labels,
            num_negatives=case.shape[2],
            hard_ratio=1.0,
            approximate=approximate,
        ).buckets
        for approximate in (False, True)
    )
    is_found = exact[..., :, None] == found[..., None, :]
    return float(jnp.mean(jnp.any(is_found, axis=-1)))


def _ours(case: Case, hard_ratio: float) -> Callable[..., jax.Array]:
    from prefchat_jax.training.preference import (
        init_preference_state,
        make_preference,
        preference_losses,
    )
    from prefchat_jax.training.targets import Targets

    preference = make_preference(
        case.objective,
        group=case.group,
        noise=case.noise,
        num_negatives=case.shape[2],
        hard_ratio=hard_ratio,
        approximate_negatives=case.approximate,
    )

    def loss(logits, ref_logits, labels, key):
        state = init_preference_state(preference)
        targets = Targets(labels, ref_logits)
        judged, _ = preference_losses(preference, key, logits, targets, state)
        return judged.values.mean()

    return loss


# --- peers


def _peers(
    case: Case, torch_compile: bool
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Calls that do the same in torch, and why others are not there."""
    if importlib.util.find_spec("torch") is None:
        return {}, {"torch": "not installed: pip install -e '.[peers]'"}
    if jax.default_backend() != "cpu":
        return {}, {"torch": "compared on a CPU alone"}
    if case.objective == "lmpo":
        return {}, {"torch": "lmpo has a state"}
    import torch

    from benchmarks import torch_losses

    torch.set_num_threads(threads())
    logits, ref_logits, labels = case.inputs()
    tensors = (
        torch.tensor(logits, requires_grad=True),
        None if ref_logits is None else torch.tensor(ref_logits),
        torch.tensor(labels, dtype=torch.int64),
    )
    beta, margin = hyper_parameters(case.objective, beta=None, margin=None)

    def theirs(hard_ratio):
        return torch_losses.preference_loss(
            case.objective,
            case.group,
            case.noise,
            num_negatives=case.shape[2],
            hard_ratio=hard_ratio,
            beta=beta,
            margin=margin,
        )

    _compare(
        case._replace(approximate=False),
        torch_losses.value_and_gradient(theirs(1.0), *tensors),
    )
    timed = theirs(_HARD_RATIO)
    calls: dict[str, Callable[[], Any]] = {
        "torch": partial(torch_losses.value_and_gradient, timed, *tensors)
    }
    if not torch_compile:
        return calls, {"torch.compile": "not asked for (--torch_compile)"}
    if not shutil.which("g++"):
        return calls, {"torch.compile": "needs a C++ compiler"}
    # Else it would take a second shape for one of many, and give up after eight.
    torch.compiler.reset()
    compiled = torch.compile(timed, dynamic=False, fullgraph=True)
    calls["torch_compile"] = partial(
        torch_losses.value_and_gradient, compiled, *tensors
    )
    return calls, {}


def _compare(case: Case, theirs: Sequence[Any]) -> None:
    """Ours and theirs, with hard negatives alone.

    Raises:
      AssertionError: values or gradients differ.
    """
    ours = jax.jit(jax.value_and_grad(_ours(case, 1.0)))
    value, gradient = ours(*jax.tree.map(jnp.asarray, case.inputs()), jax.random.key(1))
    np.testing.assert_allclose(theirs[0].item(), value, rtol=1e-4, err_msg=case.name)
    scale = float(jnp.abs(gradient).max())
    difference = np.abs(theirs[1].numpy() - gradient).max()
    assert difference <= 1e-4 * scale, f"{case.name}: gradients differ"


# --- losses of sequences


def run_sequences(
    tokens: tuple[int, int], limits: Ceilings, *, seconds: float
) -> Iterator[dict]:
    """A row for each loss of pairs of responses, from token log-probs to gradient."""
    pairs, length = tokens
    rng = np.random.default_rng(0)
    logps = jnp.asarray(-rng.gamma(2.0, 0.7, (4, *tokens)), jnp.float32)
    where = jnp.arange(length)[None, :] < rng.integers(1, length, (pairs, 1))
    for name, loss in SEQUENCE.items():

        def mean(policy, reference, where, loss=loss):
            sides = [*policy, *reference]
            return jnp.mean(loss(*(jnp.sum(side, -1, where=where) for side in sides)))

        arguments = logps[:2], logps[2:], where
        forward = compile_program(mean, *arguments)
        both = compile_program(jax.value_and_grad(mean), *arguments)
        timed = take_turns(
            {"forward": forward.call, "both": both.call}, seconds=seconds
        )
        row = {"batch": pairs, "tokens": length, "loss": name}
        row |= {"forward_us": timed["forward"].median_us}
        yield row | figures(both, timed["both"], limits, pairs)


# --- the tables


COLUMNS = {
    "loss": ("loss", ""),
    "batch": ("batch", ","),
    "buckets": ("buckets", ","),
    "negatives": ("negatives", ""),
    "compile s": ("compile_seconds", ".2f"),
    "forward us": ("forward_us", ",.0f"),
    "+ backward us": ("median_us", ",.0f"),
    "quartiles": ("spread_us", ",.0f"),
    "rows/s": ("examples_per_second", ",.0f"),
    "recall": ("recall", ".3f"),
    "of limit": ("limit_fraction", ".2f"),
    "torch us": ("torch_us", ",.0f"),
    "torch / ours": ("torch_ratio", ".2f"),
    "by CPU": ("torch_processor_ratio", ".2f"),
    "compiled / ours": ("torch_compile_ratio", ".2f"),
}
_OF_BUCKETS = ("buckets", "negatives", "recall", "torch", "CPU", "compiled")


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags(__doc__, seconds=1.0, quick="the smallest shape, two losses")
    parser.add_argument("--torch_compile", action="store_true")
    parser.add_argument(
        "--first_only", action="store_true", help="sigmoid / epo / confidence alone"
    )
    args, limits = start(parser, argv)
    shapes = SHAPES[:1] if args.quick else SHAPES
    variants = VARIANTS[:1] if args.quick or args.first_only else VARIANTS
    rows = run(
        shapes,
        limits,
        seconds=args.seconds,
        variants=variants,
        torch_compile=args.torch_compile,
    )
    show("buckets", COLUMNS, list(rows), limits, as_json=args.json)
    if args.first_only:
        return
    sequences = list(run_sequences(TOKENS, limits, seconds=args.seconds))
    columns = {
        name: column
        for name, column in COLUMNS.items()
        if not any(part in name for part in _OF_BUCKETS)
    }
    columns = {"loss": columns.pop("loss"), "tokens": ("tokens", ""), **columns}
    show("sequences", columns, sequences, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
