"""What every loss must do: transforms, extremes, padding, order, identities."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import loss_cases
import numpy as np
import pytest
from jax.test_util import check_grads
from loss_cases import ELEMENTWISE, GROUPS, LINKS, NOISE, SEQUENCE

from prefchat_jax import losses

hypothesis.settings.register_profile("quiet", deadline=None, max_examples=60)
hypothesis.settings.load_profile("quiet")

VARIANTS = {
    "jit": jax.jit,
    "vmap": jax.vmap,
    "jit_vmap": lambda f: jax.jit(jax.vmap(f)),
}
over_cases = pytest.mark.parametrize("name", ELEMENTWISE)
over_groups = pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)


def _bound(case):
    return functools.partial(case.fn, **case.hyper)


@over_cases
def test_transforms_change_nothing(name, rng):
    case = ELEMENTWISE[name]
    fn, inputs = _bound(case), loss_cases.inputs(case, rng)
    wanted = fn(*inputs)  # Eager.
    assert wanted.shape == (6,) and wanted.dtype == jnp.float32
    with jax.enable_x64(True):  # Only float64 inputs give float64.
        assert fn(*map(jnp.asarray, inputs)).dtype == jnp.float32
    for variant in VARIANTS.values():
        np.testing.assert_allclose(variant(fn)(*inputs), wanted, rtol=2e-5, atol=1e-6)
    # Elementwise: any shape, one pair at a time, in any order.
    reshaped = [x.reshape(2, 3) for x in inputs]
    np.testing.assert_allclose(fn(*reshaped).ravel(), wanted, rtol=2e-5, atol=1e-6)
    order = rng.permutation(6)
    permuted = fn(*(x[order] for x in inputs))
    np.testing.assert_allclose(permuted, wanted[order], rtol=2e-5, atol=1e-6)


@over_cases
def test_gradients_are_right(name, rng):
    case = ELEMENTWISE[name]
    with jax.enable_x64(True):
        inputs = loss_cases.inputs(case, rng, dtype=np.float64)
        rest = inputs[case.grads :]
        fn = jax.jit(lambda *x: case.fn(*x, *rest, **case.hyper))
        if case.grads == 0:
            gradient = jax.grad(lambda x: case.fn(x, *rest[1:], **case.hyper).sum())
            assert (gradient(rest[0]) == 0).all()
        elif name == "reliability_nll":  # Through the losses, not the reliability.
            check_grads(fn, inputs, order=1, modes=["rev"], eps=1e-6)
        else:
            check_grads(fn, inputs[: case.grads], order=1, modes=["rev"], eps=1e-6)


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if ELEMENTWISE[n].hyper])
def test_hyper_parameters_can_be_swept(name, rng):
    case = ELEMENTWISE[name]
    inputs = loss_cases.inputs(case, rng)
    scales = np.array([0.5, 0.9, 1.0], np.float32)
    sweep = {key: jnp.asarray(value * scales) for key, value in case.hyper.items()}
    got = jax.jit(jax.vmap(lambda hyper: case.fn(*inputs, **hyper)))(sweep)
    for row, scale in zip(got, scales, strict=True):
        hyper = {key: value * scale for key, value in case.hyper.items()}
        wanted = case.fn(*inputs, **hyper)
        np.testing.assert_allclose(row, wanted, rtol=2e-4, atol=1e-5)
    assert (got[0] != got[2]).any()  # Every sweep changes the losses.


MASKED = SEQUENCE | NOISE


@pytest.mark.parametrize("name", MASKED)
def test_where_hides_nan_and_costs_nothing(name, rng):
    case = MASKED[name]
    inputs = loss_cases.inputs(case, rng)
    where = np.array([True, False, True, True, False, True])
    poisoned = [
        np.where(where, x, bad)
        for x, bad in zip(
            inputs, (np.nan, np.inf, -np.inf, np.nan, np.nan, np.nan), strict=False
        )
    ]

    @jax.jit
    def losses_and_gradients(*inputs):
        fn = lambda *x: case.fn(*x, **case.hyper, where=where)
        values, pull_back = jax.vjp(fn, *inputs)
        return values, pull_back(jnp.ones_like(values))

    values, gradients = losses_and_gradients(*poisoned)
    wanted = _bound(case)(*inputs)
    np.testing.assert_allclose(values, np.where(where, wanted, 0), rtol=2e-5, atol=1e-6)
    for gradient in gradients:
        assert jnp.isfinite(gradient).all() and (gradient[~where] == 0).all()
    if case.grads:
        assert any((gradient[where] != 0).any() for gradient in gradients)


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_links_are_finite_at_extreme_margins(name, dtype):
    size = 1e4 if dtype == jnp.float32 else 80.0
    link = _bound(LINKS[name])
    margins = jnp.array([-size, -size / 100, 0.0, size / 100, size], dtype)
    values = link(margins)
    gradients = jax.grad(lambda m: link(m).sum())(margins)
    assert values.dtype == jnp.float32
    assert jnp.isfinite(values).all() and jnp.isfinite(gradients).all()
    if name in ("logistic", "target_logistic", "relu_margin", "log_ratio_modulated"):
        # A pair that is badly wrong is where a clamped sigmoid loses its gradient.
        np.testing.assert_allclose(values[0], size, rtol=1e-2)
        np.testing.assert_allclose(gradients[0], -1.0, rtol=1e-2)


@pytest.mark.parametrize("name", SEQUENCE)
def test_sequence_losses_are_finite_at_extreme_log_probs(name):
    case = SEQUENCE[name]
    # Averages are smaller: a probability of exp(-80) is as good as none.
    size = 80.0 if name in ("orpo", "odds_ratio") else 1e4
    columns = np.array(
        [[0, size], [size, 1e-3], [size, size], [1e-3, size]], np.float32
    )
    inputs = [-columns[:, 0], -columns[:, 1], *[np.full(4, -1.0, np.float32)] * 4]
    fn = lambda *x: case.fn(*x, *inputs[2 : case.inputs], **case.hyper)
    values = fn(*inputs[:2])
    gradients = jax.grad(lambda *x: fn(*x).sum(), (0, 1))(*inputs[:2])
    assert jnp.isfinite(values).all()
    assert jnp.isfinite(jnp.stack(gradients)).all()


# --- ORPO up to p = 1


@pytest.mark.parametrize(
    "chosen", [-1e-12, -1e-8, -1e-7, -3e-8, -1e-3, -0.5, -5.0, -80.0]
)
@pytest.mark.parametrize("rejected", [-1e-3, -0.7, -30.0])
def test_odds_ratio_is_exact_in_float32(chosen, rejected):
    """Against the closed form `log(1 + q (1 - p) / (p (1 - q)))` in float64."""
    chosen, rejected = np.float32(chosen), np.float32(rejected)
    log_p, log_q = np.float64(chosen), np.float64(rejected)
    miss_p, miss_q = -np.expm1(log_p), -np.expm1(log_q)
    ratio = np.exp(log_q - log_p) * miss_p / miss_q
    denominator = np.exp(log_p) * miss_q + np.exp(log_q) * miss_p
    value = losses.odds_ratio(chosen, rejected)
    gradient = jax.grad(losses.odds_ratio, (0, 1))(chosen, rejected)
    np.testing.assert_allclose(value, np.log1p(ratio), rtol=3e-5)
    np.testing.assert_allclose(gradient[0], -np.exp(log_q) / denominator, rtol=3e-5)
    wanted = np.exp(log_q) * miss_p / miss_q / denominator
    np.testing.assert_allclose(gradient[1], wanted, rtol=3e-5)


def test_odds_ratio_at_probability_one():
    value, gradient = jax.value_and_grad(losses.odds_ratio, (0, 1))(0.0, -0.5)
    odds = np.exp(-0.5) / -np.expm1(-0.5)  # The limit of the slope.
    assert value == 0.0
    np.testing.assert_allclose(gradient, (-odds, 0.0), rtol=1e-6)
    value, gradient = jax.value_and_grad(losses.odds_ratio, (0, 1))(0.0, 0.0)
    np.testing.assert_allclose((value, *gradient), (np.log(2), 0, 0), rtol=1e-6)


def test_bucket_log_odds_have_exact_gradients_at_probability_one():
    logits = jnp.array([[200.0, -200.0, 0.0, 1.0]])
    gradient = jax.grad(lambda z: losses.bucket_log_odds(z, jnp.array([[0]])).sum())
    share = np.exp([-200.0, 0.0, 1.0]) / np.exp([-200.0, 0.0, 1.0]).sum()
    np.testing.assert_allclose(
        gradient(logits)[0], [1.0, *-share], rtol=1e-6, atol=1e-38
    )


# --- groups


@jax.jit
def all_groups(margins, where):
    """Costs `[..., groups]` under the logistic link."""
    return jnp.stack(
        [group(margins, losses.logistic, where=where) for group in GROUPS.values()],
        axis=-1,
    )


finite = st.floats(-50, 50, width=32)
margins_and_where = st.tuples(
    st.lists(finite, min_size=6, max_size=6), st.permutations([True] * 3 + [False] * 3)
)


@hypothesis.given(margins_and_where)
def test_groups_are_ordered(drawn):
    margins, where = map(np.array, drawn)
    for counts in (where, np.ones(6, bool)):
        cost = dict(zip(GROUPS, all_groups(margins, counts).tolist(), strict=True))
        slack = 1e-4
        order = "expected_win", "pairwise_mean", "hardest", "softmax"
        for less, more in zip(order, order[1:], strict=False):
            assert cost[less] <= cost[more] + slack, cost
        assert cost["mean_reward"] <= cost["pairwise_mean"] + slack  # Jensen.
        assert cost["softmax_mean"] <= cost["hardest"] + slack


@hypothesis.given(margins_and_where, st.permutations(range(6)))
def test_groups_do_not_depend_on_the_order_of_negatives(drawn, order):
    margins, where = map(np.array, drawn)
    one = all_groups(margins, where)
    other = all_groups(margins[list(order)], where[list(order)])
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@hypothesis.given(finite, st.integers(1, 6))
def test_groups_of_equal_margins(margin, count):
    costs = all_groups(np.full(6, margin, np.float32), np.arange(6) < count)
    for name, cost in zip(GROUPS, costs.tolist(), strict=True):
        # K negatives are harder to beat than one.
        lead = margin - np.log(count) if name == "softmax" else margin
        np.testing.assert_allclose(
            cost, np.logaddexp(0, -lead), rtol=1e-4, atol=1e-5, err_msg=name
        )


@over_groups
@pytest.mark.parametrize("link", ["logistic", "relu_margin", "rpo_margin_fwd_kl"])
def test_groups_take_every_link_and_gradients_are_right(group, link, rng):
    margins = jnp.asarray(rng.normal(0, 2, (3, 4)), jnp.float32)
    fn = jax.jit(lambda m: group(m, _bound(LINKS[link])))
    assert fn(margins).shape == (3,)
    wanted = jnp.stack([fn(margins[i : i + 1])[0] for i in range(3)])
    np.testing.assert_allclose(fn(margins), wanted, rtol=1e-4, atol=1e-5)
    with jax.enable_x64(True):
        check_grads(fn, (np.asarray(margins, np.float64),), order=1, modes=["rev"])
    if link != "rpo_margin_fwd_kl":
        gradient = jax.grad(lambda m: fn(m).sum())(margins)
        assert (gradient <= 0).all() and (gradient < 0).any()  # Margins go up.


def test_the_published_weights_of_a_false_negative():
    """Three negatives are beaten by 2, a fourth leads by 4."""
    margins = jnp.array([2.0, 2.0, 2.0, -4.0])
    weight = lambda group: -jax.grad(lambda m: group(m, losses.logistic))(margins)[3]
    np.testing.assert_allclose(weight(losses.expected_win), 0.007, atol=5e-4)
    np.testing.assert_allclose(weight(losses.pairwise_mean), 0.246, atol=5e-4)
    np.testing.assert_allclose(weight(losses.softmax), 0.975, atol=5e-4)


@over_groups
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_groups_are_finite_at_extreme_margins(group, dtype):
    size = 1e4 if dtype == jnp.float32 else 80.0
    margins = jnp.array([[-size, -size], [size, -size], [size, size]], dtype)
    values = group(margins, losses.logistic)
    gradient = jax.grad(lambda m: group(m, losses.logistic).sum())(margins)
    assert values.dtype == jnp.float32
    assert jnp.isfinite(values).all() and jnp.isfinite(gradient).all()
    np.testing.assert_allclose(values[0], size, rtol=1e-2)
    np.testing.assert_allclose(gradient[0].sum(), -1.0, rtol=1e-2)


@over_groups
def test_groups_where_is_slicing_and_hides_nan(group, rng):
    margins = rng.normal(0, 3, (5, 4)).astype(np.float32)
    where = np.array([True, False, True, True])
    poisoned = jnp.asarray(margins).at[:, 1].set(jnp.nan)
    wanted = group(jnp.asarray(margins[:, where]), losses.logistic)
    apply = lambda m: group(m, losses.logistic, where=jnp.broadcast_to(where, m.shape))
    np.testing.assert_allclose(apply(poisoned), wanted, rtol=1e-5)
    gradient = jax.grad(lambda m: apply(m).sum())(poisoned)
    assert jnp.isfinite(gradient).all() and (gradient[:, 1] == 0).all()
    nothing = lambda m: group(m, losses.logistic, where=jnp.zeros(m.shape, bool))
    assert (nothing(poisoned) == 0).all()
    assert (jax.grad(lambda m: nothing(m).sum())(poisoned) == 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_plackett_luce_chooses_stage_by_stage(count, rng):
    scores = rng.normal(0, 10, count).astype(np.float32)
    stages = [
        losses.softmax(scores[k] - scores[k + 1 :], losses.logistic)
        for k in range(count - 1)
    ]
    got = losses.plackett_luce(scores)
    np.testing.assert_allclose(got, np.sum(stages), rtol=1e-4, atol=1e-4)
    padded = jnp.append(scores, jnp.array([jnp.nan, 3.0], jnp.float32))
    apply = lambda s: losses.plackett_luce(s, where=np.arange(count + 2) < count)
    value, gradient = jax.jit(jax.value_and_grad(apply))(padded)
    np.testing.assert_allclose(value, got, rtol=1e-4, atol=1e-4)
    assert jnp.isfinite(gradient).all() and (gradient[count:] == 0).all()


# --- identities


four = st.tuples(*[st.floats(-30, 0, width=32)] * 4)
rate = st.floats(0, 0.4375, width=32)


@jax.jit
def _noisy(logps, noise):
    swapped = logps[1], logps[0], logps[3], logps[2]
    hyper = {"beta": 0.3, "label_smoothing": noise}
    plain = [losses.dpo(*x, beta=0.3) for x in (logps, swapped)]
    robust = [losses.rdpo(*x, **hyper) for x in (logps, swapped)]
    return plain, losses.cdpo(*logps, **hyper), robust


@hypothesis.given(four, rate)
def test_smoothing_is_a_mixture_and_the_robust_loss_undoes_it(logps, noise):
    (own, swapped), conservative, (robust, flipped) = _noisy(logps, noise)
    expected = (1 - noise) * own + noise * swapped
    np.testing.assert_allclose(conservative, expected, rtol=1e-4, atol=1e-5)
    # Of labels flipped at that rate, robust DPO expects the loss of clean ones.
    mean = (1 - noise) * robust + noise * flipped
    np.testing.assert_allclose(mean, own, rtol=1e-3, atol=1e-3)


@functools.partial(jax.jit, static_argnames="distance")
def _rpo(logps, reward, distance):
    return losses.rpo(*logps, reward, 0.0, distance=distance, beta=0.2, eta=1.0)


@hypothesis.given(four)
def test_limits_of_rpo(logps):
    with jax.enable_x64(True):
        noise = 0.1
        entropy = -noise * np.log(noise) - (1 - noise) * np.log1p(-noise)
        dpo = losses.dpo(*logps, beta=0.2)
        cdpo = losses.cdpo(*logps, beta=0.2, label_smoothing=noise)
        ipo = losses.ipo(*logps, beta=0.2)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9)
        close(_rpo(logps, 200.0, losses.rpo_bwd_kl), dpo)
        target = np.log((1 - noise) / noise)
        close(_rpo(logps, target, losses.rpo_bwd_kl) + entropy, cdpo)
        close(_rpo(logps, 0.5, losses.rpo_sq), 0.04 * ipo)


def test_two_responses_are_a_pair_and_rloo_is_the_gradient_of_rpo(rng):
    with jax.enable_x64(True):
        logps, refs, rewards = rng.normal(0, 2, (3, 5, 2))
        for distance in (losses.rpo_sq, losses.rpo_bwd_kl, losses.rpo_fwd_kl):
            hyper = {"distance": distance, "beta": 0.2, "eta": 0.7}
            pair = losses.rpo(*logps.T, *refs.T, *rewards.T, **hyper)
            both = losses.rpo_responses(logps, refs, rewards, **hyper)
            np.testing.assert_allclose(pair, both, rtol=1e-10)
        logps, refs, rewards = rng.normal(0, 2, (3, 5, 4))
        hyper = {"distance": losses.rpo_sq, "beta": 0.2, "eta": 0.7}
        gradient = jax.grad(
            lambda x: losses.rpo_responses(x, refs, rewards, **hyper).sum()
        )(logps)
        shaped = 0.7 * rewards - 0.2 * (logps - refs)
        advantage = shaped - (shaped.sum(-1, keepdims=True) - shaped) / 3
        np.testing.assert_allclose(gradient, -2 * 0.2 / 3 * advantage, rtol=1e-9)


@pytest.mark.parametrize("distance", ["rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"])
def test_responses_that_do_not_count_change_nothing(distance, rng):
    logps, refs, rewards = rng.normal(0, 2, (3, 5, 4)).astype(np.float32)
    hyper = {"distance": getattr(losses, distance), "beta": 0.2, "eta": 1.0}
    where = np.array([True, True, False, True])
    fn = lambda x: losses.rpo_responses(
        x, refs, rewards, **hyper, where=np.broadcast_to(where, x.shape)
    )
    poisoned = jnp.asarray(logps).at[:, 2].set(jnp.nan)
    cut = [x[:, where] for x in (logps, refs, rewards)]
    wanted = losses.rpo_responses(*cut, **hyper)
    np.testing.assert_allclose(fn(poisoned), wanted, rtol=1e-4)
    gradient = jax.grad(lambda x: fn(x).sum())(poisoned)
    assert jnp.isfinite(gradient).all() and (gradient[:, 2] == 0).all()


@jax.jit
def _reliable(x, reliability):
    nll = lambda x, r: losses.reliability_nll(
        losses.logistic(x), losses.logistic(-x), reliability=r
    )
    half = losses.logistic(0.0)
    posterior = losses.reliability_posterior(half, half, reliability=reliability)
    return nll(x, 1.0), nll(x, reliability), posterior, jax.grad(nll)(0.0, reliability)


@hypothesis.given(finite, st.floats(0.0625, 0.9375, width=32))
def test_reliability_of_one_is_trust_and_even_odds_are_smoothing(x, reliability):
    certain, nll, posterior, slope = _reliable(x, reliability)
    np.testing.assert_allclose(certain, np.logaddexp(0, -x), rtol=1e-4, atol=1e-5)
    # A label that is surely wrong costs no more than that it was given.
    worst = -np.log(min(reliability, 1 - reliability))
    assert nll <= worst + 1e-4
    # At p = 1/2 the posterior is the reliability, and the gradient cDPO's.
    np.testing.assert_allclose(posterior, reliability, rtol=1e-5)
    np.testing.assert_allclose(slope, -(2 * reliability - 1) / 2, atol=1e-5)


def test_generalised_cross_entropies_lie_between_their_limits(rng):
    logits = jnp.asarray(rng.normal(0, 2, (5, 4)), jnp.float32)
    labels = jnp.arange(5) % 4
    gold = jax.nn.log_softmax(logits)[jnp.arange(5), labels]
    small = losses.generalized_cross_entropy(logits, labels, q=1e-3)
    np.testing.assert_allclose(small, -gold, rtol=1e-2)
    one = losses.generalized_cross_entropy(logits, labels, q=1.0)
    np.testing.assert_allclose(one, 1 - jnp.exp(gold), rtol=1e-5)
    alone = losses.symmetric_cross_entropy(
        logits, labels, alpha=1.0, beta=0.0, log_zero=-4.0
    )
    np.testing.assert_allclose(alone, -gold, rtol=1e-5)


# --- state


def test_lmpo_under_jit_and_where(rng):
    chosen, rejected = -rng.gamma(2, 0.5, (2, 8)).astype(np.float32)
    lengths = rng.integers(1, 9, (2, 8))
    hyper = {"beta": 2.5, "gamma": 1.0, "margin_weight": 0.2, "power": 5, "decay": 0.9}
    where = np.arange(8) < 6

    @jax.jit
    def step(chosen, rejected, state):
        def loss(chosen, rejected):
            values, new = losses.lmpo(
                chosen, rejected, *lengths, state, **hyper, where=where
            )
            return values.sum(), (values, new)

        return jax.grad(loss, (0, 1), has_aux=True)(chosen, rejected)

    poisoned = [np.where(where, x, np.nan) for x in (chosen, rejected)]
    gradients, (values, state) = step(*poisoned, losses.init_lmpo())
    cut, _ = losses.lmpo(
        chosen[:6], rejected[:6], *lengths[:, :6], losses.init_lmpo(), **hyper
    )
    np.testing.assert_allclose(values, np.append(cut, [0, 0]), rtol=1e-4)
    assert all(jnp.isfinite(g).all() for g in gradients)
    assert int(state.count) == 1
    nothing = losses.lmpo_offset(
        jnp.ones(3), state, decay=0.9, where=jnp.zeros(3, bool)
    )[1]
    np.testing.assert_allclose(nothing, state)  # An empty batch changes nothing.
    values = {name: jnp.array([value, 0.9 * value]) for name, value in hyper.items()}
    sweep = jax.vmap(
        lambda hyper: losses.lmpo(chosen, rejected, *lengths, state, **hyper)[0]
    )(values | {"power": jnp.array([5, 3])})
    plain = losses.lmpo(chosen, rejected, *lengths, state, **hyper)[0]
    np.testing.assert_allclose(sweep[0], plain, rtol=1e-4)
    assert jnp.isfinite(sweep).all() and (sweep[0] != sweep[1]).all()


def test_lmpo_of_single_pairs_is_simpo_until_there_is_a_deviation():
    hyper = {"beta": 2.5, "gamma": 1.0, "margin_weight": 0.2, "power": 5, "decay": 0.9}
    state = losses.init_lmpo()
    for w, r in ((-1.0, -2.0), (-0.5, -0.6), (-3.0, -1.0)):
        value, state = losses.lmpo(w, r, 3, 4, state, **hyper)
        simpo = losses.simpo(w, r, beta=2.5, gamma=1.0)
        np.testing.assert_allclose(value, simpo, rtol=1e-6)
    pairs = np.float32([-1.0, -0.5]), np.float32([-2.0, -0.6])
    _, state = losses.lmpo(*pairs, 3, 4, state, **hyper)
    before = state.std
    value, state = losses.lmpo(-1.0, -2.0, 3, 4, state, **hyper)
    assert value < 10 and state.std == before  # One pair has no deviation.
    with jax.enable_x64(True):
        values, _ = losses.lmpo(*pairs, 3, 4, losses.init_lmpo(), **hyper)
        assert values.dtype == jnp.float32


def test_reliability_update_leaves_absent_annotators_and_skips_padding():
    update = functools.partial(
        losses.reliability_update, jnp.array([0.9, 0.8]), rate=0.5, low=0.5, high=0.99
    )
    got = update(jnp.array([0.5, 0.7]), jnp.array([0, 0]))
    np.testing.assert_allclose(got, [0.75, 0.8], rtol=1e-6)
    where = jnp.array([True, False])
    got = update(jnp.array([0.5, jnp.nan]), jnp.array([0, 1]), where=where)
    np.testing.assert_allclose(got, [0.7, 0.8], rtol=1e-6)
    got = update(jnp.array([0.0, 1.0]), jnp.array([0, 1]), prior_right=1, prior_wrong=1)
    np.testing.assert_allclose(got, [0.5 * 0.9 + 0.5 / 3, 0.4 + 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("name", ["forward_kl", "js", "alpha"])
def test_f_dpo_is_dpo_near_the_reference_and_finite_far_from_it(name):
    scores = {
        "forward_kl": losses.forward_kl_scores,
        "js": lambda x: 2 * losses.js_scores(x),  # Its slope at 0 is 1/2.
        "alpha": functools.partial(losses.alpha_scores, alpha=0.9),
    }[name]
    loss = functools.partial(losses.f_dpo, scores=scores, beta=0.1)
    slope = jax.grad(loss)(-1.0, -2.0, -1.0, -2.0)
    np.testing.assert_allclose(slope, -0.05, rtol=1e-5)  # DPO's, where they agree.
    for w, r in ((-1.0, -1e3), (-1e3, -1.0), (-100.0, -120.0), (1e3, -1e3)):
        value, gradient = jax.value_and_grad(loss, (0, 1))(w, r, 0.0, 0.0)
        assert jnp.isfinite(value) and jnp.isfinite(jnp.stack(gradient)).all()
        assert value == 0 or w < r + 50
    with_nan = jax.grad(lambda w: loss(w, -1.0, 0.0, 0.0, where=False))(jnp.nan)
    assert with_nan == 0


def test_odds_ratio_takes_rounding_errors_above_zero():
    for w, r in ((1e-7, -1.0), (-1.0, -1e-7)):
        value, gradient = jax.value_and_grad(losses.odds_ratio, (0, 1))(w, r)
        assert jnp.isfinite(value) and jnp.isfinite(jnp.stack(gradient)).all()
    exact = jax.value_and_grad(losses.odds_ratio, (0, 1))(0.0, -1.0)
    rounded = jax.value_and_grad(losses.odds_ratio, (0, 1))(1e-7, -1.0)
    np.testing.assert_allclose(jnp.hstack(rounded[1]), jnp.hstack(exact[1]))


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_transport_couples_the_batch(name, rng):
    fn = functools.partial(getattr(losses, name), beta=0.1, label_smoothing=0.1)
    inputs = rng.normal(0, 2, (4, 3, 6)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(fn)(*inputs), fn(*inputs), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(fn)(*inputs), fn(*inputs), rtol=1e-5)
    order = rng.permutation(6)
    # The losses belong to ranks: any order of the pairs gives the same ones.
    np.testing.assert_allclose(fn(*inputs[..., order]), fn(*inputs), rtol=1e-5)
    where = np.array([True, False, True, True, False, True])
    poisoned = jnp.asarray(np.where(where, inputs, np.nan))
    values, pull_back = jax.vjp(lambda x: fn(*x, where=where), poisoned)
    cut = fn(*inputs[..., where])
    np.testing.assert_allclose(values, np.pad(cut, ((0, 0), (0, 2))), rtol=1e-5)
    (gradient,) = pull_back(jnp.ones_like(values))
    assert jnp.isfinite(gradient).all() and (gradient[..., ~where] == 0).all()
