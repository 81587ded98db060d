import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from prefchat_jax.models.classifier import (
    ModelConfig,
    abstract_params,
    bucket_logits,
    init_params,
)
from prefchat_jax.models.encoders import sample_features
from prefchat_jax.training.config import BRANCH_WIDTHS
from prefchat_jax.training.objective import Objective
from prefchat_jax.training.optimizers import OptimizerConfig
from prefchat_jax.training.preference import Preference
from prefchat_jax.training.steps import Plan, Recipe, Rows, init_state, run_steps

LOGITS = jax.jit(bucket_logits, static_argnums=0)
SIZES = {0: (), 1: (8,), 2: (8, 12), 3: (8, 12, 16)}


def _config(widths, **changes):
    return ModelConfig(
        num_buckets=5, vocabulary=256, branch_widths=widths, **({"width": 16} | changes)
    )


@pytest.fixture
def batch(rng):
    ids = rng.integers(0, 256, (6, 10)).astype(np.int32)
    return ids, rng.random((6, 10)).astype(np.float32)


def _randomised(params, key):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        x + 0.3 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def _head_input(config, params, batch):
    """What the encoder gives the head, read off with an identity base head."""
    reads = dataclasses.replace(config, branch_widths=(), num_buckets=config.width)
    identity = {"kernel": jnp.eye(config.width), "bias": jnp.zeros(config.width)}
    head = {"base": identity}
    return LOGITS(reads, {"encoder": params["encoder"], "head": head}, *batch)


@pytest.mark.parametrize("branches", SIZES)
def test_the_head_equals_its_equation(branches, batch):
    config = _config(SIZES[branches])
    params = _randomised(init_params(config, jax.random.key(0)), jax.random.key(1))
    logits = LOGITS(config, params, *batch)
    x = _head_input(config, params, batch)
    np.testing.assert_allclose(
        logits,
        oracles.routed_head(x, jax.tree.map(np.asarray, params["head"])),
        rtol=2e-4,
        atol=2e-4,
    )


def test_every_size_starts_as_the_base_head(batch):
    base = _config(())
    shared = init_params(base, jax.random.key(0))
    expected = LOGITS(base, shared, *batch)
    for widths in list(SIZES.values())[1:]:
        config = _config(widths)
        params = init_params(config, jax.random.key(0))
        params["encoder"], params["head"]["base"] = (
            shared["encoder"],
            shared["head"]["base"],
        )
        np.testing.assert_allclose(LOGITS(config, params, *batch), expected, atol=1e-6)


def test_the_first_branch_has_no_router():
    params = init_params(_config(SIZES[1]), jax.random.key(0))
    assert "routers" not in params["head"] or not params["head"]["routers"]
    params = init_params(_config(SIZES[3]), jax.random.key(0))
    shapes = [r["kernel"].shape[1] for r in params["head"]["routers"].values()]
    assert shapes == [2, 3]


def test_more_branches_than_activations_is_an_error():
    with pytest.raises(ValueError, match="at most 3 branches, got 4"):
        init_params(_config((1, 2, 3, 4)), jax.random.key(0))


def test_presets_are_the_sizes_of_the_seed():
    assert [len(widths) for widths in BRANCH_WIDTHS.values()] == [0, 1, 2, 3]


def test_parameters_are_plain_dicts_of_the_abstract_shape():
    config = _config(SIZES[2])
    params = init_params(config, jax.random.key(0))
    abstract = abstract_params(config)
    assert type(params) is dict and type(params["head"]) is dict
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)


def test_feature_dropout_needs_a_key_and_keeps_the_expectation(rng):
    config = _config((), feature_dropout=0.5, hidden=4)
    params = init_params(config, jax.random.key(0))
    ids = np.arange(40, dtype=np.int32)[None]
    weights = np.ones((1, 40), np.float32)
    call = lambda key: bucket_logits(config, params, ids, weights, key=key)
    np.testing.assert_array_equal(call(None), call(None))
    assert (call(jax.random.key(0)) != call(jax.random.key(1))).any()
    kept = [
        sample_features(jax.random.key(k), jnp.asarray(ids), jnp.asarray(weights), 0.8)
        for k in range(300)
    ]
    total = np.zeros(40)
    for kept_ids, kept_weights in kept:
        assert len(set(np.asarray(kept_ids)[0])) == 8  # None twice.
        np.add.at(total, np.asarray(kept_ids)[0], np.asarray(kept_weights)[0])
    np.testing.assert_allclose(total / 300, 1.0, atol=0.45)
    np.testing.assert_allclose(total.mean() / 300, 1.0, rtol=1e-6)


def _train(config, batch, steps, weight=0.3):
    """Parameters after each of the first steps."""
    recipe = Recipe(
        model=config,
        objective=Objective(weight=weight, preference=Preference(num_negatives=2)),
        optimizer=OptimizerConfig(num_steps=10, warmup_steps=1, lr=1e-2),
    )
    rows = Rows(*map(jnp.asarray, (*batch, np.arange(6, dtype=np.int32) % 5)))
    state = init_state(recipe, init_params(config, jax.random.key(0)))
    plan = Plan(np.arange(6, dtype=np.int32)[None], np.full(1, 6, np.float32))
    seen = [jax.tree.map(np.asarray, state.params)]
    for _ in range(steps):
        state, _ = run_steps(
            recipe, state, rows, plan, jax.random.key(0), np.float32(0)
        )
        seen.append(jax.tree.map(np.asarray, state.params))
    return seen


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_step_one_moves_every_down_projection_and_step_three_everything(
    branches, batch
):
    seen = _train(_config(SIZES[branches], feature_dropout=0.0), batch, 3)
    for i in range(branches):
        before, after = (p["head"]["branches"][i]["down"]["kernel"] for p in seen[:2])
        assert (before == 0).all() and (after != 0).any(), f"down-projection {i}"
    # AdamW without weight decay moves what has had a gradient, and nothing else.
    start = jax.tree.leaves_with_path(seen[0]["head"])
    end = jax.tree.leaves(seen[3]["head"])
    for (path, first), last in zip(start, end, strict=True):
        assert (first != last).any(), f"{jax.tree_util.keystr(path)} never moved"
