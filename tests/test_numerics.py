import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from prefchat_jax import numerics
from prefchat_jax.compat import heads, layers
from prefchat_jax.models.heads import mish


@pytest.mark.parametrize("k", [1, 2, 7, 31, 32])
def test_the_kth_largest_is_what_a_sort_finds(k, rng):
    x = rng.normal(size=(5, 3, 32)).astype("f4")
    x[0] = np.round(x[0])  # Ties, zeros of both signs.
    x[1, 0, :4] = [np.inf, -np.inf, 1e-42, -1e-42]
    x[2] = -abs(x[2])
    expected = np.sort(x, axis=-1)[..., -k]
    np.testing.assert_array_equal(numerics.kth_largest(jnp.asarray(x), k), expected)
    np.testing.assert_array_equal(layers.kth_largest(x, k), expected)
    found = jax.vmap(lambda x: numerics.kth_largest(x, k))(jnp.asarray(x))
    np.testing.assert_array_equal(found, expected)


def test_bits_are_in_the_order_of_floats(rng):
    x = np.sort(rng.normal(size=100) * 10.0 ** rng.integers(-30, 30, 100)).astype("f4")
    assert (np.diff(numerics.ordered_bits(jnp.asarray(x))) > 0).all()


def test_few_columns_change_where_nothing_is_computed(rng):
    x, kernel = rng.normal(size=(6, 8)), rng.normal(size=(8, 3))
    plain = lambda x, k: jnp.sum(jnp.tanh(x @ k))
    fast = lambda x, k: jnp.sum(jnp.tanh(x @ numerics.few_columns(k)))
    for order in (plain, fast):
        check_grads(order, (x, kernel), 1, modes=("fwd", "rev"), atol=1e-2, rtol=1e-2)
    found, expected = (jax.grad(f, (0, 1))(x, kernel) for f in (fast, plain))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("act", [mish, layers.mish])
def test_mish_with_one_exponential_is_mish(act):
    x = np.concatenate([np.linspace(-60, 40, 2001), [-1e4, 1e4]])
    x = x.astype("f4").astype("f8")
    plain = lambda x: x * np.tanh(np.logaddexp(x, 0))
    sides = 1e-4
    slope = (plain(x + sides) - plain(x - sides)) / (2 * sides)
    values, slopes = jax.vmap(jax.value_and_grad(act))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(values, plain(x), rtol=2e-6, atol=1e-30)
    np.testing.assert_allclose(slopes, slope, rtol=1e-5, atol=1e-6)


def test_dropout_drops_a_tenth_and_keeps_the_mean():
    x = jnp.ones((256, 4096))
    dropped = [np.asarray(heads._dropped(x, jax.random.key(0), i)) for i in (0, 1)]
    for kept in dropped:
        assert set(np.unique(kept)) == {0, np.float32(1 / 0.9)}
        share = (kept == 0).mean()
        assert abs(share - 0.1) < 5 * np.sqrt(0.09 / kept.size)
        for axis in (0, 1):  # No row and no column stands out.
            deviation = ((kept == 0).mean(axis) - 0.1).std()
            expected = np.sqrt(0.09 / kept.shape[axis])
            assert 0.8 < deviation / expected < 1.2
    both = ((dropped[0] == 0) & (dropped[1] == 0)).mean()
    assert abs(both - 0.01) < 1e-3  # One branch does not follow the other.
    assert heads._dropped(x, None, 0) is x
