"""Training in bfloat16: what is computed in it, and what stays float32."""

import collections
import csv

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from conftest import quick

from prefchat_jax.cli.main import main
from prefchat_jax.compat.model import ChampionConfig
from prefchat_jax.finetune import finetune
from prefchat_jax.models.classifier import ModelConfig, bucket_logits, init_params
from prefchat_jax.models.frozen import FrozenEncoder
from prefchat_jax.models.scorer import (
    ScorerConfig,
    encode,
    init_scorer,
    pair_scores,
    with_values,
)
from prefchat_jax.numerics import product
from prefchat_jax.training.checkpoints import load_model, load_scorer
from prefchat_jax.training.objective import Objective
from prefchat_jax.training.optimizers import OptimizerConfig, averaged_params
from prefchat_jax.training.steps import Plan, Recipe, Rows, init_state, run_steps

BUCKETS = 5
MODELS = {
    "base": ModelConfig(num_buckets=BUCKETS, vocabulary=64, branch_widths=()),
    "three": ModelConfig(num_buckets=BUCKETS, vocabulary=64, branch_widths=(8, 9, 16)),
    "frozen": FrozenEncoder(num_buckets=BUCKETS, width=128, branch_widths=(8,)),
}
# Its gradient takes half a minute to compile; its products are looked at below.
CHAMPION = ChampionConfig(
    num_buckets=BUCKETS, branch_widths=(8, 9), feature_mode="context_v2"
)
EPSILON = 2.0**-8  # Of bfloat16.


def _products(jaxpr):
    """The dtypes of both sides of every matrix product."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(side.aval.dtype.name for side in equation.invars)
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from _products(inner.jaxpr)


def _rounded(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def _noisy(params):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    noisy = [x + 0.05 * jax.random.normal(key, x.shape) for x, key in pairs]
    return jax.tree.unflatten(structure, noisy)


@pytest.fixture
def bags(rng):
    ids = rng.integers(0, 64, (12, 128)).astype(np.int32)
    return jnp.asarray(ids), jnp.asarray(rng.random((12, 128)), jnp.float32) / 11


def test_a_product_rounds_what_it_multiplies_and_not_what_it_sums(rng):
    x, kernel = rng.normal(size=(3, 4, 300)), rng.normal(size=(300, 7))
    low = lambda x, kernel: product(x, kernel.astype("bfloat16"))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    found, pull = jax.vjp(low, x, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, _rounded(x) @ _rounded(kernel), atol=1e-4)
    down = jnp.asarray(rng.normal(size=found.shape), jnp.float32)
    of_x, of_kernel = pull(down)
    assert of_x.dtype == of_kernel.dtype == jnp.float32
    np.testing.assert_allclose(of_x, _rounded(down) @ _rounded(kernel).T, atol=1e-4)
    expected = np.einsum("abi,abo->io", _rounded(x), _rounded(down))
    np.testing.assert_allclose(of_kernel, expected, rtol=EPSILON, atol=1e-4)
    # As wide as it was: the plain product, to the last bit.
    np.testing.assert_array_equal(product(x, kernel), x @ kernel)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_close_and_float32(name, bags):
    model, (ids, weights) = MODELS[name], bags
    params = _noisy(init_params(model, jax.random.key(0)))

    def loss(params, dtype):
        logits = bucket_logits(model, params, ids, weights, dtype=dtype)
        return jax.nn.logsumexp(logits, -1).mean(), logits

    both = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, logits), gradient = both(params, None)
    (value, low), low_gradient = both(params, "bfloat16")
    assert value.dtype == low.dtype == logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(low_gradient)} == {jnp.dtype("float32")}
    assert 0 < np.abs(low - logits).max() < 2 * EPSILON * np.abs(logits).max()
    norm = lambda tree: np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(tree)))
    apart = jax.tree.map(jnp.subtract, low_gradient, gradient)
    assert 0 < norm(apart) < 2 * EPSILON * norm(gradient)


@pytest.mark.parametrize(
    "model", [*MODELS.values(), CHAMPION], ids=[*MODELS, "champion"]
)
def test_all_products_of_kernels_are_of_16_bits(model, bags):
    ids, weights = bags
    params = init_params(model, jax.random.key(0))

    def sides(dtype):
        loss = lambda p: bucket_logits(model, p, ids, weights, dtype=dtype).sum()
        return list(_products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))

    assert set(sides(None)) == {("float32", "float32")}
    counts = collections.Counter(sides("bfloat16"))
    assert counts.pop(("bfloat16", "bfloat16")) >= 9
    # Branches are mixed in float32; a bag sends its gradient to rows of the table.
    mixing = 3 if model.branch_widths else 0
    rows = 1 if isinstance(model, ModelConfig) else 0
    left = {("float32", "float32"): mixing, ("float32", "bfloat16"): rows}
    assert counts == collections.Counter(left)


@pytest.mark.parametrize("valued", [False, True])
def test_scores_of_replies_are_close_and_float32(valued, bags):
    config = ScorerConfig(vocabulary=64, width=16, hidden=8)
    params = init_scorer(config, jax.random.key(0))
    if valued:
        config, params = with_values(config, params)
    params = _noisy(params)

    def scores(dtype):
        x, y = (
            encode(config, params, side, *bags, dtype=dtype)
            for side in ("context", "response")
        )
        assert x.dtype == y.dtype == jnp.float32
        return pair_scores(params, x, y, dtype=dtype)

    plain, low = scores(None), scores("bfloat16")
    assert low.dtype == jnp.float32
    assert 0 < np.abs(plain - low).max() < 4 * EPSILON * np.abs(plain).max()


def test_only_the_logits_of_a_step_are_lower(rng):
    """Loss, optimizer and average see float32, and the loss is that of the logits."""
    model = MODELS["three"]
    ids = rng.integers(0, 64, (8, 10)).astype(np.int32)
    rows = Rows(ids, rng.random((8, 10), np.float32), np.arange(8) % BUCKETS)
    plan = Plan(np.arange(8)[None], np.full(1, 8.0))
    params = _noisy(init_params(model, jax.random.key(0)))
    adam = OptimizerConfig(num_steps=5, warmup_steps=0, lr=0.01, ema_decay=0.5)
    losses = {}
    for dtype in (None, "bfloat16"):
        recipe = Recipe(
            model=model, objective=Objective(), optimizer=adam, compute_dtype=dtype
        )
        state, metrics = run_steps(
            recipe, init_state(recipe, params), rows, plan, jax.random.key(2), 1.0
        )
        losses[dtype] = float(metrics["loss"][0])
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, float)]
        floats += jax.tree.leaves(averaged_params(adam, state.opt_state))
        assert {x.dtype for x in floats} == {jnp.dtype("float32")}
    assert losses[None] != losses["bfloat16"]
    # A sum in 16 bits could not come so close.
    assert losses["bfloat16"] == pytest.approx(losses[None], rel=EPSILON / 2)


def test_a_run_in_bfloat16_learns_the_same_and_says_so(run, corpus_path, tmp_path):
    low = finetune(quick(corpus_path, tmp_path / "low", compute_dtype="bfloat16"))
    assert low.run.config()["finetune"]["compute_dtype"] == "bfloat16"
    assert run.run.config()["finetune"]["compute_dtype"] == "float32"
    last, plain = low.fit.history[-1], run.fit.history[-1]
    assert last["eval_loss"] != plain["eval_loss"]
    assert last["eval_loss"] == pytest.approx(plain["eval_loss"], rel=0.1)
    assert abs(last["eval_accuracy"] - plain["eval_accuracy"]) <= 1 / 7  # One row.
    for load in (load_model, load_scorer):
        (shape, params), (old_shape, old) = load(low.run), load(run.run)
        assert shape == old_shape  # Nothing that reads the run knows of it.
        pairs = list(zip(*map(jax.tree.leaves, (params, old)), strict=True))
        assert all(new.dtype == before.dtype == np.float32 for new, before in pairs)
        assert not all(np.array_equal(new, before) for new, before in pairs)


def test_a_sweep_compares_both(corpus_path, tmp_path, capsys):
    argv = ["sweep", "--data", str(corpus_path), "--output", str(tmp_path / "s")]
    argv += ["--seeds", "1", "--grid", "compute_dtype=float32,bfloat16"]
    argv += ["--epochs", "2", "--model_size", "base", "--val_split", "0.2"]
    assert main(argv) == 0
    assert "program 2 of 2" in capsys.readouterr().out
    with (tmp_path / "s" / "results.csv").open(newline="") as file:
        rows = {
            row["compute_dtype"]: float(row["loss"]) for row in csv.DictReader(file)
        }
    assert rows["float32"] != rows["bfloat16"]
    assert rows["float32"] == pytest.approx(rows["bfloat16"], rel=0.05)
