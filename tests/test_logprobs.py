import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from benchmarks import logprobs as benchmark
from prefchat_jax.losses.logprobs import (
    chunked_token_logps,
    log_collision,
    mean_sequence_logps,
    sequence_logps,
    token_logps,
)

IGNORED = -100


@pytest.fixture
def case(rng):
    """Hidden states, an unembedding, targets, and where a response is."""
    hidden = rng.normal(size=(3, 7, 5))
    unembedding = rng.normal(size=(5, 11))
    targets = rng.integers(11, size=(3, 7))
    where = np.arange(7) < np.array([[7], [4], [0]])
    return hidden, unembedding, targets, where


def oracle(hidden, unembedding, targets, where):
    """Token by token, in NumPy float64."""
    logps = np.zeros(targets.shape)
    for place in np.argwhere(where):
        logits = np.asarray(hidden, np.float64)[tuple(place)] @ unembedding
        probs = np.exp(logits - logits.max())
        logps[tuple(place)] = np.log((probs / probs.sum())[targets[tuple(place)]])
    return logps


def naive(hidden, unembedding, targets, *, where=None):
    return token_logps(hidden @ unembedding, targets, where=where)


def weighted(fn, **kwargs):
    """A scalar whose gradient differs from token to token, and that gradient."""

    def total(hidden, unembedding, targets, where=None):
        logps = fn(hidden, unembedding, targets, where=where, **kwargs)
        return jnp.sum(logps * jnp.cos(jnp.arange(logps.size).reshape(logps.shape)))

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))


def assert_trees_close(got, wanted, tolerance):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk_size", [3, 4, 100])
@pytest.mark.parametrize("x64", [False, True])
def test_chunks_change_neither_values_nor_gradients(case, chunk_size, x64):
    hidden, unembedding, targets, where = case
    tolerance = 1e-10 if x64 else 1e-5
    with jax.enable_x64(x64):
        arrays = jnp.asarray(hidden), jnp.asarray(unembedding), jnp.asarray(targets)
        chunked = jax.jit(chunked_token_logps, static_argnames="chunk_size")
        for mask in (None, jnp.asarray(where)):
            values = chunked(*arrays, chunk_size=chunk_size, where=mask)
            assert values.dtype == arrays[0].dtype
            everywhere = np.ones_like(where) if mask is None else where
            expected = oracle(hidden, unembedding, targets, everywhere)
            np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance)
            got = weighted(chunked_token_logps, chunk_size=chunk_size)(*arrays, mask)
            assert_trees_close(got, weighted(naive)(*arrays, mask), tolerance)


def test_gradients_are_those_of_finite_differences(case):
    hidden, unembedding, targets, where = case
    fn = jax.jit(
        lambda h, u: chunked_token_logps(h, u, targets, chunk_size=4, where=where)
    )
    with jax.enable_x64(True):
        arrays = jnp.asarray(hidden), jnp.asarray(unembedding)
        check_grads(fn, arrays, order=1, modes=["fwd", "rev"])


def test_jit_and_vmap_change_nothing(case):
    hidden, unembedding, targets, where = (jnp.asarray(array) for array in case)

    def fn(hidden, targets, where):
        return chunked_token_logps(
            hidden, unembedding, targets, chunk_size=4, where=where
        )

    wanted = fn(hidden, targets, where)  # Not compiled: jit changes nothing too.
    for variant in (jax.vmap(fn), jax.jit(jax.vmap(fn))):
        assert_trees_close(variant(hidden, targets, where), wanted, 1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_padding_reaches_no_value_and_no_gradient(case, poison):
    hidden, unembedding, targets, where = (jnp.asarray(array) for array in case)
    run = weighted(chunked_token_logps, chunk_size=4)
    dirty = jnp.where(where[..., None], hidden, poison)
    ignored = jnp.where(where, targets, IGNORED)
    got = run(dirty, unembedding, ignored, where)
    assert_trees_close(got, run(hidden, unembedding, targets, where), 1e-6)
    assert (got[1][0][~where] == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("fn", [token_logps, log_collision])
def test_padded_logits_reach_no_value_and_no_gradient(case, fn, poison):
    hidden, unembedding, targets, where = (jnp.asarray(array) for array in case)
    if fn is token_logps:
        fn = lambda z, where: token_logps(
            z, jnp.where(where, targets, IGNORED), where=where
        )
    else:
        fn = lambda z, where: log_collision(z, where=where)
    clean = hidden @ unembedding
    dirty = jnp.where(where[..., None], clean, poison)
    np.testing.assert_array_equal(fn(dirty, where), fn(clean, where))
    gradient = jax.grad(lambda z: fn(z, where).sum())(dirty)
    assert jnp.isfinite(gradient).all() and (gradient[~where] == 0).all()
    assert (gradient[where] != 0).any()


@pytest.mark.parametrize("chunk_size", [3, 64])
def test_16_bits_give_32_and_the_unembedding_sums_its_gradient_in_32(rng, chunk_size):
    targets = rng.integers(50, size=(4, 64))
    exact = [
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16).astype(jnp.float32)
        for shape in ((4, 64, 16), (16, 50))
    ]
    halves = [array.astype(jnp.bfloat16) for array in exact]
    chunked = jax.jit(chunked_token_logps, static_argnames="chunk_size")
    values = chunked(*halves, targets, chunk_size=chunk_size)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, naive(*exact, targets), rtol=1e-5, atol=1e-5)
    assert token_logps(halves[1], targets[0, :16]).dtype == jnp.float32
    _, wanted = weighted(naive)(*exact, targets)
    _, got = weighted(chunked_token_logps, chunk_size=chunk_size)(*halves, targets)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == jnp.bfloat16
        error = np.abs(one.astype(jnp.float32) - other).max()
        assert error < 0.01 * np.abs(other).max()


def test_a_chunk_has_a_token(case):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        chunked_token_logps(*case[:3], chunk_size=0)


def test_extreme_logits_stay_finite():
    logits = jnp.array([[1e4, -1e4, 0.0], [-jnp.inf, 0.0, 0.0]])
    values, gradient = jax.value_and_grad(
        lambda z: token_logps(z, jnp.array([1, 2])).sum()
    )(logits)
    np.testing.assert_allclose(values, -2e4 - np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-1, 1, 0], [0, -0.5, 0.5]], atol=1e-6)
    # A constant added to the logits of a token costs no digits.
    near = token_logps(jnp.array([1e4, 1e4 - 1.0]), jnp.array(1))
    np.testing.assert_allclose(near, -1 - np.log1p(np.exp(-1)), rtol=1e-6)


def test_sequences_are_sums_and_means_of_their_tokens(rng):
    logps = rng.normal(size=(2, 3, 5)).astype(np.float32)
    where = np.arange(5) < np.array([5, 2, 0])[:, None]
    dirty = jnp.where(where, logps, jnp.nan)
    sums = np.where(where, logps, 0).sum(axis=-1)
    np.testing.assert_allclose(sequence_logps(dirty, where=where), sums, rtol=1e-6)
    means = mean_sequence_logps(dirty, where=where)
    np.testing.assert_allclose(means, sums / [5, 2, 1], rtol=1e-6)
    for fn in (sequence_logps, mean_sequence_logps):
        gradient = jax.grad(lambda x, fn=fn: fn(x, where=where).sum())(dirty)
        assert jnp.isfinite(gradient).all() and (gradient[:, ~where] == 0).all()
        np.testing.assert_array_equal(fn(jnp.zeros((2, 0))), [0.0, 0.0])
        assert fn(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32


def test_log_collision_is_the_chance_that_two_draws_agree(rng):
    logits = rng.normal(0, 3, size=(4, 6))
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = np.log((probs**2).sum(axis=-1))
    np.testing.assert_allclose(log_collision(logits), expected, rtol=1e-5)
    uniform = log_collision(jnp.full((8,), 1e4))
    np.testing.assert_allclose(uniform, -np.log(8), rtol=1e-6)


def temporary_bytes(fn, tokens, hidden, vocabulary):
    """What the compiler sets aside for a value and its gradients; runs nothing."""
    arguments = (
        jax.ShapeDtypeStruct((tokens, hidden), jnp.float32),
        jax.ShapeDtypeStruct((hidden, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    compiled = jax.jit(fn).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("tokens", "hidden", "vocabulary", "chunk_size"),
    [(1024, 32, 2000, 64), (4096, 512, 32000, 128)],
)
def test_chunks_need_a_quarter_of_the_memory(tokens, hidden, vocabulary, chunk_size):
    chunked = weighted(chunked_token_logps, chunk_size=chunk_size)
    ours = temporary_bytes(chunked, tokens, hidden, vocabulary)
    assert 4 * ours <= temporary_bytes(weighted(naive), tokens, hidden, vocabulary)


def test_the_benchmark_finds_less_memory_and_the_same_gradients(capsys):
    benchmark.main(["--quick", "--json", "--device", "cpu"])
    naive_row, *rows = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert naive_row["memory_factor"] == naive_row["time_ratio"] == 1
    for row in rows:
        assert row["temporary_mb"] < naive_row["temporary_mb"] and row["median_us"] > 0
        assert max(row["value_difference"], row["gradient_difference"]) < 1e-5
