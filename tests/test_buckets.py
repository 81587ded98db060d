import doctest
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from prefchat_jax import losses

GOLDEN = pathlib.Path(__file__).parent / "golden"
GROUPS = {"pairwise_mean": losses.pairwise_mean, "epo": losses.expected_win}


def test_doctests():
    assert doctest.testmod(losses).failed == 0


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


BUCKET_LOSSES = {
    "margins": lambda z, y, n: losses.bucket_margins(z, y, n, beta=2.0),
    "margins to a reference": lambda z, y, n: losses.bucket_margins(
        z, y, n, beta=2.0, ref_logits=jnp.zeros_like(z)
    ),
    "log-odds": lambda z, y, n: losses.bucket_log_odds(z, n),
    "log-probs": lambda z, y, n: losses.bucket_logps(z, n),
    "generalised CE": lambda z, y, n: losses.generalized_cross_entropy(z, y, q=0.7),
    "symmetric CE": lambda z, y, n: losses.symmetric_cross_entropy(
        z, y, alpha=0.1, beta=1.0, log_zero=-4.0
    ),
    "confidence": lambda z, y, n: losses.confidence_weights(
        z, y, floor=0.0, ceiling=1.0
    ),
    "plausible": lambda z, y, n: losses.plausible_negatives(z, y, n, slack=0.5),
}


@pytest.mark.parametrize("name", BUCKET_LOSSES)
def test_transforms_and_extremes_of_bucket_losses(name, rng):
    fn = BUCKET_LOSSES[name]
    logits = rng.normal(size=(5, 6)).astype(np.float32)
    labels, negatives = np.arange(5), np.array([[5, 4], [5, 4], [5, 4], [5, 0], [5, 0]])
    wanted = fn(logits, labels, negatives)
    for variant in (jax.jit, jax.vmap, lambda f: jax.jit(jax.vmap(f))):
        got = variant(fn)(logits, labels, negatives)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    order = rng.permutation(5)
    got = fn(logits[order], labels[order], negatives[order])
    np.testing.assert_allclose(got, wanted[order], rtol=1e-5, atol=1e-6)
    if wanted.dtype == bool:
        return
    for dtype, size in ((jnp.float32, 1e4), (jnp.bfloat16, 80.0)):
        extreme = jnp.asarray(size * np.sign(logits), dtype)
        value, gradient = jax.value_and_grad(lambda z: fn(z, labels, negatives).sum())(
            extreme
        )
        assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
        assert fn(extreme, labels, negatives).dtype == jnp.float32


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


def test_log_probs_of_some_buckets_are_those_of_all(rng):
    logits = rng.normal(size=(4, 6)) * 30
    buckets = np.array([[0, 5], [3, 3], [1, 2], [5, 4]])
    every = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = np.take_along_axis(every, buckets, 1)
    np.testing.assert_allclose(
        losses.bucket_logps(logits, buckets), wanted, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "fn",
    [
        lambda z, w: losses.bucket_log_odds(z, jnp.zeros((3, 1), int), where=w)[:, 0],
        lambda z, w: losses.bucket_logps(z, jnp.zeros((3, 1), int), where=w)[:, 0],
        lambda z, w: losses.generalized_cross_entropy(z, jnp.arange(3), q=0.7, where=w),
        lambda z, w: losses.symmetric_cross_entropy(
            z, jnp.arange(3), alpha=0.1, beta=1.0, log_zero=-4.0, where=w
        ),
        lambda z, w: losses.confidence_weights(
            z, jnp.arange(3), floor=0.0, ceiling=1.0, where=w
        ),
    ],
    ids=["log-odds", "log-probs", "generalised CE", "symmetric CE", "confidence"],
)
def test_where_hides_nan_in_logits(fn, rng):
    logits = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    where = jnp.array([True, False, True])
    poisoned = logits.at[1].set(jnp.nan)
    wanted = fn(logits, jnp.ones(3, bool))
    values, pull_back = jax.vjp(lambda z: fn(z, where), poisoned)
    np.testing.assert_allclose(values[where], wanted[where], rtol=1e-6)
    (gradient,) = pull_back(jnp.ones(3))
    assert jnp.isfinite(values).all() and jnp.isfinite(gradient).all()
    assert (gradient[1] == 0).all()


def test_inclusion_of_many_negatives_and_its_dtype(rng):
    logits = jnp.asarray(rng.normal(size=(2, 1200)), jnp.float32)
    for number in (149, 1199):
        drawn = losses.mine_negatives(
            jax.random.key(0),
            logits,
            jnp.array([3, 4]),
            num_negatives=number,
            hard_ratio=0.6,
        )
        assert jnp.isfinite(drawn.log_inclusion).all()
    np.testing.assert_allclose(drawn.log_inclusion, 0.0, atol=1e-5)  # All are drawn.
    with jax.enable_x64(True):
        drawn = losses.mine_negatives(
            jax.random.key(0), logits, [3, 4], num_negatives=2, hard_ratio=0.6
        )
        assert drawn.log_inclusion.dtype == jnp.float32


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_negatives", [1, 4, 9])
def test_negatives_are_distinct_and_never_gold(ratio, num_negatives, rng):
    logits = jnp.asarray(rng.normal(size=(200, 10)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, 200))
    drawn, _ = losses.mine_negatives(
        jax.random.key(1), logits, labels, num_negatives=num_negatives, hard_ratio=ratio
    )
    assert drawn.shape == (200, num_negatives)
    for row, label in zip(np.asarray(drawn), np.asarray(labels), strict=True):
        assert label not in row and len(set(row)) == num_negatives


def test_hard_negatives_are_the_largest_wrong_logits_in_order(rng):
    logits = jnp.asarray(rng.normal(size=(50, 10)), jnp.float32)
    labels = jnp.argmax(logits, axis=-1)
    drawn, log_inclusion = losses.mine_negatives(
        jax.random.key(0), logits, labels, num_negatives=3, hard_ratio=1.0
    )
    np.testing.assert_allclose(log_inclusion, 0.0, atol=1e-6)
    np.testing.assert_array_equal(drawn, np.argsort(-logits, axis=-1)[:, 1:4])


def test_uniform_negatives_are_uniform_and_the_ratio_mixes(rng):
    logits = jnp.broadcast_to(jnp.arange(6.0), (6000, 6))
    labels = jnp.zeros(6000, int)
    draw = lambda ratio, k: np.asarray(
        losses.mine_negatives(
            jax.random.key(k), logits, labels, num_negatives=1, hard_ratio=ratio
        ).buckets
    )
    counts = np.bincount(draw(0.0, 1).ravel(), minlength=6)[1:] / 6000
    np.testing.assert_allclose(counts, 0.2, atol=0.02)
    share = np.mean(draw(0.5, 2) == 5)  # Half are hard, a fifth of the rest too.
    np.testing.assert_allclose(share, 0.6, atol=0.03)


@pytest.mark.parametrize("shape", [(7,), (3, 2)])
@pytest.mark.parametrize(("buckets", "number"), [(5, 4), (50, 3), (60, 40)])
def test_hard_negatives_are_those_of_a_sort(buckets, number, shape, rng):
    """A few or many, among few or many: by passes, in blocks, by a sort."""
    logits = rng.normal(size=(*shape, buckets)).astype(np.float32)
    labels = rng.integers(0, buckets, shape)
    draw = functools.partial(
        losses.mine_negatives, jax.random.key(0), num_negatives=number, hard_ratio=1.0
    )
    wrong = logits.copy()
    np.put_along_axis(wrong, labels[..., None], -np.inf, axis=-1)
    wanted = np.argsort(-wrong, axis=-1)[..., :number]
    np.testing.assert_array_equal(draw(logits, labels).buckets, wanted)
    batched = jax.vmap(draw)(logits, labels).buckets
    np.testing.assert_array_equal(batched, wanted)
    with jax.enable_x64(True):  # Equal in 32 bits, but not in 64.
        close = 1.0 + 1e-12 * logits.astype(np.float64)
        np.testing.assert_array_equal(draw(close, labels).buckets, wanted)


@pytest.mark.parametrize("value", [0.0, -np.inf, np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("buckets", [5, 90])
def test_negatives_are_distinct_among_equal_and_extreme_logits(value, buckets):
    logits = jnp.full((64, buckets), value)
    labels = jnp.arange(64) % buckets
    for ratio in (0.5, 1.0):
        drawn, _ = losses.mine_negatives(
            jax.random.key(2), logits, labels, num_negatives=4, hard_ratio=ratio
        )
        rows = np.concatenate([drawn, labels[:, None]], axis=1)
        assert all(len(set(row)) == 5 for row in rows)
        assert rows.min() >= 0 and rows.max() < buckets


def test_each_draw_is_as_likely_as_it_says(rng):
    """Three of six wrong buckets, partly hard: every set, and each bucket."""
    rows = 60_000
    logits = jnp.broadcast_to(jnp.arange(7.0), (rows, 7))
    labels = jnp.full(rows, 2)
    draw = lambda ratio: losses.mine_negatives(
        jax.random.key(5), logits, labels, num_negatives=3, hard_ratio=ratio
    )
    sets, counts = np.unique(
        np.sort(draw(0.0).buckets, axis=-1), axis=0, return_counts=True
    )
    assert len(sets) == 20
    np.testing.assert_allclose(counts / rows, 1 / 20, atol=4 * (0.05 / rows) ** 0.5)
    drawn, log_inclusion = map(np.asarray, draw(0.4))
    for bucket in (0, 1, 3, 4, 5, 6):
        is_it = drawn == bucket
        share = is_it.any(-1).mean()
        # Its rank tells, but for the draw: the mean over draws is the probability.
        assert share == pytest.approx(np.exp(log_inclusion[is_it]).mean(), abs=0.01)


def test_approximate_negatives_miss_few_hard_ones(rng):
    logits = jnp.asarray(rng.normal(size=(500, 400)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 400, 500))
    draw = lambda z, **settings: np.asarray(
        losses.mine_negatives(
            jax.random.key(0), z, labels, hard_ratio=1.0, **settings
        ).buckets
    )
    exact = draw(logits, num_negatives=6)
    found = draw(logits, num_negatives=6, approximate=True)
    pairs = list(zip(exact, found, strict=True))
    recall = np.mean([len(set(a) & set(b)) / 6 for a, b in pairs])
    assert 0.94 < recall < 0.96  # Two of 6 seldom share one of 50 blocks: 1 - 2.5 / 50.
    assert all(len(set(row)) == 6 for row in found)
    assert not (found == labels[:, None]).any()
    # The hardest is always found, and few buckets are no blocks.
    top = np.take_along_axis(np.asarray(logits), exact[:, :1], 1)
    np.testing.assert_allclose(
        np.take_along_axis(np.asarray(logits), found[:, :1], 1), top, rtol=1e-5
    )
    few = logits[:, :40]
    labels = labels % 40
    settings = {"num_negatives": 6}
    np.testing.assert_array_equal(
        draw(few, **settings), draw(few, approximate=True, **settings)
    )


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
