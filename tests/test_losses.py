import doctest
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from prefchat_jax import losses

GOLDEN = pathlib.Path(__file__).parent / "golden"
GROUPS = {"pairwise_mean": losses.pairwise_mean, "epo": losses.expected_win}
RELU = lambda margins: losses.relu_margin(margins, gamma=0.5)
LINKS = {"sigmoid": losses.logistic, "repo_relu": RELU}


@pytest.fixture(params=["eager", "jit", "vmap", "jit_vmap"])
def variant(request):
    """A transform that must not change an elementwise function's values."""
    return {
        "eager": lambda f: f,
        "jit": jax.jit,
        "vmap": jax.vmap,
        "jit_vmap": lambda f: jax.jit(jax.vmap(f)),
    }[request.param]


@pytest.fixture
def margins(rng):
    return rng.normal(0, 3, (5, 4)).astype(np.float32)


def test_doctests():
    assert doctest.testmod(losses).failed == 0


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_transforms_change_nothing(group, link, variant, margins):
    expected = np.stack([group(jnp.asarray(row), link) for row in margins])
    got = variant(lambda m: group(m, link))(jnp.asarray(margins))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def _golden():
    arrays = np.load(GOLDEN / "pref_loss.npz")
    records = json.loads((GOLDEN / "pref_loss.json").read_text())
    return arrays, records


@pytest.mark.parametrize("index", range(48))
def test_golden_preference_loss_and_gradient(index):
    arrays, records = _golden()
    record = records[index]
    negatives = arrays["neg_labels"][:, : record["group"]]
    labels = arrays["labels"]
    # The system behind the numbers ignores the estimator for repo_relu.
    is_relu = record["objective"] == "repo_relu"
    group = losses.pairwise_mean if is_relu else GROUPS[record["estimator"]]
    beta = 1.0 if is_relu else record["beta"]
    link = losses.logistic
    if is_relu:
        link = lambda m: losses.relu_margin(m, gamma=record["margin"])

    def loss(logits):
        values = group(
            losses.bucket_margins(logits, labels, negatives, beta=beta), link
        )
        if record["adaptive"]:
            values *= losses.confidence_weights(logits, labels, floor=0.2, ceiling=1.0)
        return values.mean()

    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(arrays["logits"]))
        np.testing.assert_allclose(value, record["loss"], rtol=1e-6)
        np.testing.assert_allclose(gradient, arrays["grads"][index], atol=1e-6)
    oracle = oracles.preference_loss(
        arrays["logits"],
        labels,
        negatives,
        objective=record["objective"],
        estimator="pairwise_mean" if is_relu else record["estimator"],
        beta=record["beta"],
        margin=record["margin"],
        adaptive=record["adaptive"],
    )
    np.testing.assert_allclose(value, oracle, rtol=1e-6)


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_gradients_are_right_and_push_margins_up(group, link, margins):
    margins = jnp.asarray(margins)
    check_grads(lambda m: group(m, link), (margins,), order=1, modes=["rev"], rtol=5e-2)
    gradient = jax.grad(lambda m: group(m, link).sum())(margins)
    assert (gradient <= 0).all() and (gradient < 0).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_extreme_margins_stay_finite_and_keep_their_gradient(group, dtype):
    size = 1e4 if dtype == jnp.float32 else 80.0
    margins = jnp.array([[-size, -size], [size, -size], [size, size]], dtype)
    value = group(margins, losses.logistic)
    gradient = jax.grad(lambda m: group(m, losses.logistic).sum())(margins)
    assert value.dtype == jnp.float32
    assert jnp.isfinite(value).all() and jnp.isfinite(gradient).all()
    # A pair that is badly wrong is where a clamped sigmoid loses its gradient.
    np.testing.assert_allclose(value[0], size, rtol=1e-2)
    np.testing.assert_allclose(gradient[0].sum(), -1.0, rtol=1e-2)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_where_is_slicing_and_hides_nan(group, margins):
    where = np.array([True, False, True, True])
    poisoned = jnp.asarray(margins).at[:, 1].set(jnp.nan)
    wanted = group(jnp.asarray(margins[:, where]), losses.logistic)
    apply = lambda m: group(m, losses.logistic, where=jnp.broadcast_to(where, m.shape))
    np.testing.assert_allclose(apply(poisoned), wanted, rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda m: apply(m).sum())(poisoned)).all()
    nothing = jnp.zeros(margins.shape, bool)
    assert (group(poisoned, losses.logistic, where=nothing) == 0).all()


def test_expected_win_is_at_most_the_pairwise_mean_and_redescends(margins):
    margins = jnp.asarray(margins)
    expected = losses.expected_win(margins, losses.logistic)
    assert (expected <= losses.pairwise_mean(margins, losses.logistic) + 1e-6).all()
    # The loss card's example: three negatives at +2, a fourth far ahead.
    row = jnp.array([2.0, 2.0, 2.0, -4.0])
    weights = -jax.grad(lambda m: losses.expected_win(m, losses.logistic))(row)
    np.testing.assert_allclose(weights[3] / weights.sum(), 0.053, atol=0.002)
    np.testing.assert_allclose(weights[3], 0.007, atol=0.001)


def test_hyper_parameters_can_be_swept_with_vmap(rng):
    logits = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    labels, negatives = jnp.array([0, 1, 2]), jnp.array([[3, 4], [3, 4], [3, 4]])
    betas = jnp.array([0.5, 2.0])
    sweep = jax.vmap(
        lambda beta: losses.bucket_margins(logits, labels, negatives, beta=beta)
    )(betas)
    np.testing.assert_allclose(sweep[1], 4 * sweep[0], rtol=1e-6)


def test_raw_logits_give_the_margins_of_log_probabilities(rng):
    logits = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    labels, negatives = jnp.arange(4), jnp.array([[5]] * 4)
    raw = losses.bucket_margins(logits, labels, negatives, beta=2.0)
    logps = jax.nn.log_softmax(logits)
    normal = losses.bucket_margins(logps, labels, negatives, beta=2.0)
    np.testing.assert_allclose(raw, normal, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_negatives", [1, 4, 9])
def test_negatives_are_distinct_and_never_gold(ratio, num_negatives, rng):
    logits = jnp.asarray(rng.normal(size=(200, 10)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, 200))
    drawn = losses.mine_negatives(
        jax.random.key(1), logits, labels, num_negatives=num_negatives, hard_ratio=ratio
    )
    assert drawn.shape == (200, num_negatives)
    for row, label in zip(np.asarray(drawn), np.asarray(labels), strict=True):
        assert label not in row and len(set(row)) == num_negatives


def test_hard_negatives_are_the_largest_wrong_logits_in_order(rng):
    logits = jnp.asarray(rng.normal(size=(50, 10)), jnp.float32)
    labels = jnp.argmax(logits, axis=-1)
    drawn = losses.mine_negatives(
        jax.random.key(0), logits, labels, num_negatives=3, hard_ratio=1.0
    )
    np.testing.assert_array_equal(drawn, np.argsort(-logits, axis=-1)[:, 1:4])


def test_uniform_negatives_are_uniform_and_the_ratio_mixes(rng):
    logits = jnp.broadcast_to(jnp.arange(6.0), (6000, 6))
    labels = jnp.zeros(6000, int)
    draw = lambda ratio, k: np.asarray(
        losses.mine_negatives(
            jax.random.key(k), logits, labels, num_negatives=1, hard_ratio=ratio
        )
    )
    counts = np.bincount(draw(0.0, 1).ravel(), minlength=6)[1:] / 6000
    np.testing.assert_allclose(counts, 0.2, atol=0.02)
    share = np.mean(draw(0.5, 2) == 5)  # Half are hard, a fifth of the rest too.
    np.testing.assert_allclose(share, 0.6, atol=0.03)


def test_too_many_negatives_are_one_clear_error():
    with pytest.raises(ValueError, match=r"in \[1, 3\] for 4 buckets, got 4"):
        losses.mine_negatives(
            jax.random.key(0),
            jnp.zeros((2, 4)),
            jnp.zeros(2, int),
            num_negatives=4,
            hard_ratio=1.0,
        )


def test_no_gradient_flows_through_weights_or_negatives(rng):
    logits = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    labels = jnp.arange(3)
    weigh = lambda z: losses.confidence_weights(z, labels, floor=0.0, ceiling=1.0)
    assert (jax.grad(lambda z: weigh(z).sum())(logits) == 0).all()
    clipped = losses.confidence_weights(logits, labels, floor=0.3, ceiling=0.4)
    assert (clipped >= 0.3).all() and (clipped <= 0.4).all()


def test_metrics_carry_the_usual_names():
    metrics = losses.preference_metrics(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(metrics["rewards/margins"], [0.5, -0.5])
    np.testing.assert_allclose(metrics["rewards/accuracies"], [1.0, 0.0])
