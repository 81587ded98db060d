"""Times a training step of the reference's network, and of routed heads alone.

    python -m benchmarks.champion --device cpu

Beside them, turn by turn, the same in eager torch where it is installed (extra
`peers`), in two ways: as the reference has it, and as fast as torch goes by itself (no
axis of time, the fused AdamW). Logits and gradients of the same weights are compared
first, in float32. Batches of 128 random rows, all parameters trained, a scan of steps
to a dispatch. The network in bfloat16 is a row of its own, beside torch under autocast.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import Ceilings, threads
from benchmarks.timing import (
    Program,
    Timing,
    command,
    compile_program,
    figures,
    flags,
    ratio,
    show,
    start,
    take_turns,
)
from prefchat_jax.compat.model import ChampionConfig
from prefchat_jax.compat.tensors import HeadShape, expected_tensors, to_params
from prefchat_jax.datasets.sampling import Plan
from prefchat_jax.models.classifier import BucketModel, Params, bucket_logits
from prefchat_jax.models.frozen import FrozenEncoder
from prefchat_jax.training.config import BRANCH_WIDTHS
from prefchat_jax.training.objective import Objective, example_losses
from prefchat_jax.training.optimizers import OptimizerConfig
from prefchat_jax.training.parameters import nest
from prefchat_jax.training.preference import init_preference_state, make_preference
from prefchat_jax.training.steps import Recipe, Rows, init_state, run_steps
from prefchat_jax.training.targets import Targets

BATCH = 128
BUCKETS = 10
VECTOR = 256  # What a head reads.
_FEATURES = 128  # What the network reads.
_DROPOUT = 0.1  # In the network's head.
# What the reference's recipe trains the network with.
_SMOOTHING, _WEIGHT, _BETA = 0.04, 0.22, 2.6
_PREFERENCE = ("sigmoid", "epo", "confidence")
_NEGATIVES, _HARD_RATIO = 4, 0.78
_NORM = "norm.weight"  # Of the vectors that a head alone reads.
_LR, _DECAY, _CLIP, _EMA = 1e-4, 0.01, 1.0, 0.999


class Case(NamedTuple):
    """What is trained: the whole network, or a head on ready vectors."""

    size: str
    whole: bool
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def name(self) -> str:
        name = f"network, {self.size} head" if self.whole else f"{self.size} head alone"
        return name if self.dtype == "float32" else f"{name}, {self.dtype}"

    @property
    def model(self) -> BucketModel:
        widths = BRANCH_WIDTHS[self.size]
        if self.whole:
            return ChampionConfig(
                num_buckets=BUCKETS, branch_widths=widths, feature_mode="legacy"
            )
        return FrozenEncoder(num_buckets=BUCKETS, branch_widths=widths, width=VECTOR)

    def recipe(self, hard_ratio: float = _HARD_RATIO) -> Recipe:
        """The network as the reference trains it; a head with AdamW and no more."""
        adamw = OptimizerConfig(
            num_steps=1_000_000, warmup_steps=0, lr=_LR, weight_decay=_DECAY
        )
        if not self.whole:
            return Recipe(model=self.model, objective=Objective(), optimizer=adamw)
        preference = make_preference(
            *_PREFERENCE[:1],
            group=_PREFERENCE[1],
            noise=_PREFERENCE[2],
            beta=_BETA,
            num_negatives=_NEGATIVES,
            hard_ratio=hard_ratio,
        )
        objective = Objective(
            label_smoothing=_SMOOTHING, weight=_WEIGHT, preference=preference
        )
        optimizer = dataclasses.replace(adamw, clip_norm=_CLIP, ema_decay=_EMA)
        return Recipe(
            model=self.model,
            objective=objective,
            optimizer=optimizer,
            compute_dtype=None if self.dtype == "float32" else self.dtype,
        )

    def weights(self) -> dict[str, np.ndarray]:
        """Random weights, none of them zero, by the names of the reference."""
        rng = np.random.default_rng(0)
        weights = {
            name: (rng.uniform(-1, 1, shape) / np.sqrt([1, *shape][-1])).astype("f4")
            for name, (_, shape) in self._tensors().items()
        }
        return weights if self.whole else weights | {_NORM: np.ones(VECTOR, "f4")}

    def params(self, weights: Mapping[str, np.ndarray]) -> Params:
        """The same as our parameters."""
        if self.whole:
            return to_params(weights, "")[1]
        tensors = self._tensors().items()
        params = nest({path: weights[name].T for name, (path, _) in tensors})
        if "scales" in params["head"]:
            scales = params["head"]["scales"]
            params["head"]["scales"] = np.stack([scales[i] for i in range(len(scales))])
        return params | {"encoder": {"norm": {"scale": weights[_NORM]}}}

    def _tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Our path and the shape of each, by the reference's name."""
        rows = expected_tensors(HeadShape("large", BRANCH_WIDTHS[self.size], BUCKETS))
        in_head = lambda path: path.startswith("head.") and "norm" not in path
        return {
            name: row for name, row in rows.items() if self.whole or in_head(row[0])
        }

    def rows(self, steps: int) -> Rows:
        """Random rows for so many steps."""
        rng, count = np.random.default_rng(1), steps * BATCH
        vectors = rng.normal(size=(count, _FEATURES if self.whole else VECTOR))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        labels = rng.integers(BUCKETS, size=count).astype(np.int32)
        return Rows(np.zeros((count, 0), np.int32), vectors.astype("f4"), labels)


CASES = (
    Case("xxlarge", True),
    Case("xxlarge", True, "bfloat16"),
    *(Case(size, False) for size in BRANCH_WIDTHS),
)


def time_case(case: Case, limits: Ceilings, *, seconds: float, steps: int) -> dict:
    """A row of figures of a training step; times are those of one of `steps`."""
    one = training_program(case, 1)
    many = training_program(case, steps) if steps > 1 else one
    peers, why_not = _peers(case, steps)
    timed = {
        name: Timing(timing.wall / steps, timing.processor / steps)
        for name, timing in take_turns(
            {"ours": many.call} | peers, seconds=seconds
        ).items()
    }
    # What one step reads, writes and computes, and what all of them took to compile.
    program = one._replace(compile_seconds=many.compile_seconds)
    size = sum(array.size for array in jax.tree.leaves(case.params(case.weights())))
    row = {"what": case.name, "parameters": size}
    row |= figures(program, timed["ours"], limits, BATCH)
    for name in peers:
        row[f"{name}_us"] = timed[name].median_us
        row[f"{name}_ratio"] = ratio(timed[name], timed["ours"])
        processor = np.median(timed[name].processor / timed["ours"].processor)
        row[f"{name}_processor_ratio"] = float(processor)
    return row | {"without": why_not}


def training_program(case: Case, steps: int) -> Program:
    """`steps` steps of training in one dispatch."""
    recipe = case.recipe()
    numbers = np.arange(steps * BATCH, dtype=np.int32).reshape(steps, BATCH)
    plan = Plan(numbers, np.full(steps, BATCH, np.float32))

    def train(state, rows, plan, key):
        return run_steps(recipe, state, rows, plan, key, jnp.float32(1.0))

    return compile_program(
        train,
        init_state(recipe, case.params(case.weights())),
        *jax.tree.map(jnp.asarray, (case.rows(steps), plan)),
        jax.random.key(0),
        carry=True,
    )


# --- peers


def _peers(
    case: Case, steps: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Calls that train as many steps in torch, and why there are none."""
    if importlib.util.find_spec("torch") is None:
        return {}, {"torch": "not installed: pip install -e '.[peers]'"}
    if jax.default_backend() != "cpu":
        return {}, {"torch": "compared on a CPU alone"}
    import torch

    from benchmarks import torch_champion

    torch.set_num_threads(threads())
    rows = case.rows(steps)
    batches = [
        (torch.tensor(rows.weights[span]), torch.tensor(rows.labels[span]).long())
        for span in (slice(i, i + BATCH) for i in range(0, steps * BATCH, BATCH))
    ]
    calls = {}
    for name, one_step in (("torch", False), ("torch_best", True)):
        loss = functools.partial(torch_loss, case, one_step=one_step)
        compare(case, loss(hard_ratio=1.0, dropout=0.0))
        timed = loss(hard_ratio=_HARD_RATIO, dropout=_DROPOUT)
        if case.dtype != "float32":
            timed = torch.autocast("cpu", torch.bfloat16)(timed)
        step = torch_champion.make_step(
            torch_state(case),
            timed,
            lr=_LR,
            weight_decay=_DECAY,
            clip=_CLIP if case.whole else None,
            ema=_EMA if case.whole else None,
            fused=one_step,
        )
        calls[name] = functools.partial(_each, step, batches)
    return calls, {}


def _each(step: Callable[..., Any], batches: Sequence[tuple]) -> None:
    for batch in batches:
        step(*batch)


def torch_state(case: Case) -> Any:
    """The weights of a case as tensors that train."""
    import torch

    weights = case.weights().items()
    return {name: torch.tensor(array, requires_grad=True) for name, array in weights}


def torch_loss(
    case: Case, *, one_step: bool, hard_ratio: float, dropout: float
) -> Callable[..., Any]:
    """`(state, x, labels)` to the mean loss of a batch and its logits."""
    from torch.nn import functional as F

    from benchmarks import torch_champion, torch_losses

    prefer = torch_losses.preference_loss(
        *_PREFERENCE,
        num_negatives=_NEGATIVES,
        hard_ratio=hard_ratio,
        beta=_BETA,
        margin=0.0,
    )

    def of_network(state, x, labels):
        found = torch_champion.logits(state, x, one_step=one_step, dropout=dropout)
        ce = F.cross_entropy(found, labels, label_smoothing=_SMOOTHING)
        return ce + _WEIGHT * prefer(found, None, labels), found

    def of_head(state, x, labels):
        x = F.rms_norm(x, x.shape[-1:], state[_NORM], eps=1e-6)
        found = torch_champion.head_logits(state, x)
        return F.cross_entropy(found, labels), found

    return of_network if case.whole else of_head


def compare(case: Case, theirs: Callable[..., Any]) -> None:
    """Logits, loss and gradients: with hard negatives alone and without dropout.

    Raises:
      AssertionError: they differ.
    """
    import torch

    rows, state = case.rows(1), torch_state(case)
    batch = torch.tensor(rows.weights), torch.tensor(rows.labels).long()
    their_loss, their_logits = theirs(state, *batch)
    their_loss.backward()
    (loss, logits), gradient = _ours(case)(case.params(case.weights()), rows)
    close = functools.partial(np.testing.assert_allclose, err_msg=case.name)
    close(their_logits.detach(), logits, rtol=1e-4, atol=1e-4)
    close(their_loss.item(), loss, rtol=1e-4)
    their_gradient = case.params(
        {
            name: np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
            for name, tensor in state.items()
        }
    )
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(
        lambda a, b: close(a, b, rtol=1e-3, atol=1e-4 * largest),
        their_gradient,
        jax.tree.map(np.asarray, gradient),
    )


def _ours(case: Case) -> Callable[..., Any]:
    """`(params, rows)` to the loss, the logits, and the gradient."""
    recipe = case.recipe(hard_ratio=1.0)
    state = init_preference_state(recipe.objective.preference)

    def loss(params, rows):
        logits = bucket_logits(recipe.model, params, rows.ids, rows.weights)
        losses, _, _ = example_losses(
            recipe.objective,
            jax.random.key(0),
            logits,
            Targets(rows.labels),
            state,
            ramp=jnp.float32(1.0),
        )
        return losses.mean(), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


# --- the table


COLUMNS = {
    "what": ("what", ""),
    "parameters": ("parameters", ","),
    "compile s": ("compile_seconds", ".1f"),
    "us a step": ("median_us", ",.0f"),
    "quartiles": ("spread_us", ",.0f"),
    "examples/s": ("examples_per_second", ",.0f"),
    "of products": ("product_fraction", ".2f"),
    "of copying": ("copy_fraction", ".2f"),
    "torch us": ("torch_us", ",.0f"),
    "torch / ours": ("torch_ratio", ".2f"),
    "by CPU": ("torch_processor_ratio", ".2f"),
    "its best / ours": ("torch_best_ratio", ".2f"),
    "best by CPU": ("torch_best_processor_ratio", ".2f"),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = flags(__doc__, seconds=10.0, quick="two small cases, one step")
    parser.add_argument("--steps", type=int, default=16, help="in one dispatch")
    args, limits = start(parser, argv)
    cases, steps = CASES, args.steps
    if args.quick:
        cases, steps = (Case("large", True), Case("base", False)), 1
    rows = [
        time_case(case, limits, seconds=args.seconds, steps=steps) for case in cases
    ]
    title = f"a step of {BATCH} rows"
    show(title, COLUMNS, rows, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
