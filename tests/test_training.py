import dataclasses
import json
import shutil
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import quick

from prefchat_jax import Chat, losses
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import Silent, finetune
from prefchat_jax.models.classifier import ModelConfig, init_params
from prefchat_jax.training import catalogue, preference
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.corpus import load_corpus
from prefchat_jax.training.objective import Objective, example_losses
from prefchat_jax.training.optimizers import (
    OptimizerConfig,
    averaged_params,
    make_optimizer,
    make_schedule,
)
from prefchat_jax.training.preference import (
    Preference,
    init_preference_state,
    make_preference,
    preference_losses,
)
from prefchat_jax.training.recipe import make_recipe
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.start import model_shape
from prefchat_jax.training.steps import Recipe, Rows, init_state, predict, run_steps
from prefchat_jax.training.targets import Targets


def _params_equal(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# --- objective


KEY = jax.random.key(0)


def _losses(objective, logits, labels, ramp=1.0):
    state = init_preference_state(objective.preference)
    return example_losses(objective, KEY, logits, Targets(labels), state, ramp=ramp)[:2]


def test_the_objective_is_ce_plus_weight_times_ramp_times_preference(rng):
    logits = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    labels = jnp.arange(6) % 5
    objective = Objective(
        label_smoothing=0.1,
        weight=0.3,
        preference=Preference(num_negatives=4, beta=2.0),
    )
    for ramp in (0.0, 0.5, 1.0):
        total, parts = _losses(objective, logits, labels, ramp)
        np.testing.assert_allclose(
            total, parts["loss/ce"] + 0.3 * ramp * parts["loss/pref"], rtol=1e-6
        )
    logps = np.asarray(jax.nn.log_softmax(logits), np.float64)
    gold = logps[np.arange(6), labels]
    np.testing.assert_allclose(
        parts["loss/ce"], -0.9 * gold - 0.1 * logps.mean(1), rtol=1e-5
    )
    # With all four wrong buckets as negatives nothing is left to chance.
    margins = 2.0 * (gold[:, None] - logps)
    wrong = np.arange(5)[None] != np.asarray(labels)[:, None]
    expected = np.logaddexp(0, -margins)[wrong].reshape(6, 4).mean(1)
    np.testing.assert_allclose(parts["loss/pref"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        parts["rewards/margins"], margins[wrong].reshape(6, 4).mean(1), rtol=1e-4
    )


def test_accuracy_is_that_of_argmax_also_among_equals(rng):
    logits = jnp.asarray(rng.integers(0, 2, (64, 5)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 5, 64))
    _, parts = _losses(Objective(), logits, labels)
    right = np.argmax(logits, axis=1) == labels
    assert 0 < right.sum() < (logits.max(1) == logits[np.arange(64), labels]).sum()
    np.testing.assert_array_equal(parts["accuracy"], right)


def _gold_probs(logits, labels):
    """By hand, in float64."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True))[np.arange(len(labels)), labels]


@pytest.mark.parametrize("q", [1e-6, 0.3, 0.7, 1.0])
def test_gce_stands_in_for_cross_entropy(q, rng):
    logits = jnp.asarray(3 * rng.normal(size=(6, 5)), jnp.float32)
    labels = np.arange(6) % 5
    # Smoothing, which it has no place for, changes nothing.
    objective = Objective(label_smoothing=0.3, gce_q=q, weight=0.3)
    total, parts = _losses(objective, logits, labels)
    probs = _gold_probs(logits, labels)
    expected = -np.log(probs) if q < 1e-3 else (1 - probs**q) / q
    np.testing.assert_allclose(parts["loss/ce"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        total, parts["loss/ce"] + 0.3 * parts["loss/pref"], rtol=1e-6
    )


def test_the_gradient_of_gce_is_that_of_cross_entropy_times_p_to_the_q(rng):
    logits = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    labels = np.arange(6) % 5
    slope = jax.grad(lambda z, o: _losses(o, z, labels)[0].sum())
    found = slope(logits, Objective(gce_q=0.7))
    expected = slope(logits, Objective()) * _gold_probs(logits, labels)[:, None] ** 0.7
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    # Where the gold bucket has no probability left, nothing pulls, and nothing is NaN.
    hopeless = np.where(np.eye(5)[labels] > 0, -1e4, 1e4).astype(np.float32)
    for objective in (
        Objective(gce_q=0.7),
        Objective(gce_q=1.0, adjustment=np.ones(5)),
    ):
        assert np.array_equal(slope(hopeless, objective), np.zeros((6, 5)))


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjustment_trains_on_logits_plus_log_priors(tau, rng):
    logits = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    labels, counts = np.arange(6) % 4, np.array([90, 9, 1, 0])
    adjustment = losses.logit_adjustment(counts, tau=tau)
    # The class without rows counts as one of one row.
    shares = np.array([90, 9, 1, 1]) / 101
    np.testing.assert_allclose(adjustment, tau * np.log(shares), rtol=1e-5)
    _, plain = _losses(Objective(weight=1.0), logits, labels)
    _, parts = _losses(Objective(weight=1.0, adjustment=adjustment), logits, labels)
    powers = np.exp(np.asarray(logits, np.float64)) * shares**tau
    expected = -np.log(powers[np.arange(6), labels] / powers.sum(-1))
    np.testing.assert_allclose(parts["loss/ce"], expected, rtol=1e-5)
    # Margins and accuracy are those of the plain logits, which predict.
    for name in ("loss/pref", "accuracy", "rewards/margins"):
        assert np.array_equal(parts[name], plain[name]), name


def test_priors_are_those_of_the_training_rows(corpus_path, tmp_path):
    config = quick(corpus_path, tmp_path / "run", logit_adjustment=2.0)
    corpus = load_corpus(config, Silent())
    model = model_shape(config, corpus, None)
    adjustment = make_recipe(config, model, corpus, Silent())[0].objective.adjustment
    labels = corpus.train.labels.tolist()
    shares = [labels.count(c) / len(labels) for c in range(max(labels) + 1)]
    np.testing.assert_allclose(adjustment, 2 * np.log(shares), rtol=1e-5)
    plain = dataclasses.replace(config, logit_adjustment=0.0)
    assert make_recipe(plain, model, corpus, Silent())[0].objective.adjustment is None


def test_logit_adjustment_finds_the_rare_class(tmp_path):
    """Two classes that share their words: where they do, the common one has won."""
    lines = [{"user": "my card is lost", "label": "common"}] * 40
    lines += [{"user": "my card is lost", "label": "rare"}] * 10
    lines += [{"user": "tell me a joke", "label": "other"}] * 40
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"pref_weight": 0.0, "epochs": 20, "scorer_epochs": 0, "val_split": 0.0}

    def gap(**changes):
        config = quick(path, tmp_path / f"run{len(changes)}", **settings, **changes)
        result = finetune(config)
        model, params = load_model(result.run)
        names = [str(label) for label in result.corpus.labelled.buckets.labels]
        logits = predict(model, params, *result.corpus.train[:2])[0]
        return logits[names.index("rare")] - logits[names.index("common")]

    # The posteriors are 4 to 1; adjusted, the logits are even.
    assert gap() < -0.9
    assert abs(gap(logit_adjustment=1.0)) < 0.3


def test_no_weight_leaves_the_preference_loss_out(rng):
    logits, labels = jnp.asarray(rng.normal(size=(3, 4))), jnp.arange(3)
    assert "loss/pref" not in _losses(Objective(weight=None), logits, labels)[1]


def test_groups_are_capped_at_the_wrong_buckets(rng):
    logits, labels = jnp.asarray(rng.normal(size=(3, 4))), jnp.arange(3)
    objective = Objective(weight=1.0, preference=Preference(num_negatives=99))
    assert jnp.isfinite(_losses(objective, logits, labels)[0]).all()


# --- named preference losses

LOGITS = np.array([[1.0, -0.5, 0.9], [0.0, 2.0, -1.0]], np.float32)
REF = np.array([[0.5, 0.0, -0.5], [1.0, 0.5, 0.0]], np.float32)
LABELS = np.array([0, 1])


def _preference(name, logits=LOGITS, labels=LABELS, ref=None, sources=None, **settings):
    """Losses over all wrong buckets: nothing is left to chance."""
    chosen = make_preference(name, num_negatives=2, **settings)
    targets = Targets(jnp.asarray(labels), ref, sources)
    state = init_preference_state(chosen)
    judged, metrics = preference_losses(
        chosen, KEY, jnp.asarray(logits), targets, state
    )
    return judged.values, metrics, judged.state


def _oracle(link, logits=LOGITS, labels=LABELS):
    """The mean of a link over the lead of gold over every other bucket, by loops."""
    return [
        np.mean([link(row[y] - row[n]) for n in range(3) if n != y])
        for row, y in zip(np.asarray(logits, np.float64), labels, strict=True)
    ]


softplus = lambda x: np.logaddexp(0.0, x)
win = lambda x: 1 / (1 + np.exp(-x))


def bernoulli_kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


BY_HAND = {
    "sigmoid": lambda d: softplus(-2 * d),
    "repo_relu": lambda d: max(0, 0.2 - d),
    "dpo": lambda d: softplus(-2 * d),
    "ipo": lambda d: (d - 5) ** 2,
    "hinge": lambda d: max(0, 1 - d),
    "simpo": lambda d: softplus(0.5 - 2 * d),
    "rpo": lambda d: bernoulli_kl(win(1.0), win(0.2 * d)),
    "rpo_fwd_kl": lambda d: bernoulli_kl(win(0.2 * d), win(1.0)),
    "rpo_sq": lambda d: (0.2 * d - 1) ** 2,
    "exo": lambda d: bernoulli_kl(win(2 * d), 0.999),
    "discopop": lambda d: (
        win(-2 * d) * softplus(-0.1 * d) + win(2 * d) * np.exp(-0.1 * d)
    ),
}


def test_every_name_of_the_catalogue_is_made_of_functions():
    flags = typing.get_type_hints(FinetuneConfig)
    choices = lambda flag: set(typing.get_args(flags[flag]))
    assert choices("pref_group_estimator") == set(catalogue.GROUPS)
    assert choices("pref_noise") == set(catalogue.NOISE)
    assert set(catalogue.OBJECTIVES) == set(BY_HAND) | {"orpo", "lmpo"}
    assert set(catalogue.GROUPS) == set(preference.GROUPS)
    assert set(catalogue.NOISE) == set(preference.NOISE)


@pytest.mark.parametrize("name", BY_HAND)
def test_objectives_are_what_the_catalogue_says(name):
    row = catalogue.OBJECTIVES[name]
    ref = jnp.asarray(REF) if row.reference else None
    wanted = _oracle(BY_HAND[name], LOGITS - REF if row.reference else LOGITS)
    np.testing.assert_allclose(_preference(name, ref=ref)[0], wanted, rtol=1e-4)
    # The flags are its hyper-parameters: an objective that has one listens to it.
    for flag, default in (("beta", row.beta), ("margin", row.margin)):
        if default is None:
            with pytest.raises(UserError, match=f"--pref_{flag}: {name} has none"):
                make_preference(name, **{flag: 1.5})
        else:
            changed = _preference(name, ref=ref, **{flag: default * 1.5})[0]
            assert not np.allclose(changed, wanted, rtol=1e-4)


def test_orpo_compares_log_odds():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    wanted = _oracle(lambda d: softplus(-d), np.log(p / (1 - p)))
    np.testing.assert_allclose(_preference("orpo")[0], wanted, rtol=1e-5)


def test_lmpo_runs_its_statistics_over_pairs():
    values, _, state = _preference("lmpo")
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    pairs = [(i, n) for i in range(2) for n in range(3) if n != LABELS[i]]
    gold = lambda table, i: table[i, LABELS[i]]
    raw = np.array(
        [(1 - gold(p, i)) * (1 - (gold(p, i) - p[i, n]) ** 5) / 2 for i, n in pairs]
    )
    z = (raw - raw.mean()) / raw.std(ddof=1)
    d = np.array([gold(LOGITS, i) - LOGITS[i, n] for i, n in pairs])
    wanted = softplus(1.0 - 2.5 * d + 0.2 * z).reshape(2, 2).mean(1)
    np.testing.assert_allclose(values, wanted, rtol=1e-4)
    np.testing.assert_allclose(state.lmpo.mean, 0.1 * raw.mean(), rtol=1e-4)


def test_noise_models():
    own = np.array(_oracle(lambda d: softplus(-2 * d)))
    swapped = np.array(_oracle(lambda d: softplus(2 * d)))
    noisy = lambda name, **settings: _preference("sigmoid", noise=name, **settings)
    np.testing.assert_allclose(noisy("none")[0], own, rtol=1e-5)
    p = np.exp(LOGITS[[0, 1], LABELS]) / np.exp(LOGITS).sum(-1)
    np.testing.assert_allclose(noisy("confidence")[0], p * own, rtol=1e-5)
    smooth = noisy("smoothing", noise_rate=0.2)[0]
    np.testing.assert_allclose(smooth, 0.8 * own + 0.2 * swapped, rtol=1e-5)
    robust = noisy("robust", noise_rate=0.2)[0]
    np.testing.assert_allclose(robust, (0.8 * own - 0.2 * swapped) / 0.6, rtol=1e-5)
    sources = jnp.array([1, 0])
    values, _, state = noisy("re_po", noise_rate=0.2, sources=sources, num_sources=3)
    p = win(swapped - own)
    np.testing.assert_allclose(values, -np.log(0.8 * p + 0.2 * (1 - p)), rtol=1e-5)
    posterior = 0.8 * p / (0.8 * p + 0.2 * (1 - p))
    trusted = 0.9 * 0.8 + 0.1 * posterior[::-1]
    np.testing.assert_allclose(state.reliability, [*trusted, 0.8], rtol=1e-5)
    assert trusted.max() < 0.9  # Half of the rate is never trusted away.


def test_the_preference_state_keeps_its_types():
    """Weak ones would become strong in step 1, and all would compile once more."""
    state = init_preference_state(make_preference("lmpo", noise="re_po"))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_re_po_weights_the_cross_entropy_by_its_posterior():
    preference = make_preference("sigmoid", noise="re_po", num_negatives=2)
    objective = Objective(weight=0.5, preference=preference)
    total, parts = _losses(objective, jnp.asarray(LOGITS), jnp.asarray(LABELS))
    own = np.array(_oracle(lambda d: softplus(-2 * d)))
    p = win(np.array(_oracle(lambda d: softplus(2 * d))) - own)
    posterior = 0.9 * p / (0.9 * p + 0.1 * (1 - p))
    wanted = posterior * parts["loss/ce"] + 0.5 * parts["loss/pref"]
    np.testing.assert_allclose(total, wanted, rtol=1e-5)


def test_negatives_far_ahead_do_not_count_with_a_guard():
    logits, labels = np.array([[0.0, 3.0, 1.0]], np.float32), [0]
    guarded = _preference("sigmoid", logits, labels, slack=2.0)[0]
    np.testing.assert_allclose(guarded, [softplus(2.0)], rtol=1e-5)


def test_sampling_correction_stands_for_all_wrong_buckets(rng):
    logits = jnp.asarray(rng.normal(size=(1, 12)), jnp.float32)
    targets = Targets(jnp.array([0]))
    settings = {"group": "softmax", "beta": 1.0, "correct_sampling": True}
    everything = make_preference("sigmoid", num_negatives=11, **settings)
    few = make_preference("sigmoid", num_negatives=4, hard_ratio=0.5, **settings)
    state = init_preference_state(few)
    cost = lambda made, key: (
        preference_losses(made, key, logits, targets, state)[0].values
    )
    # With all of them, the loss is cross-entropy.
    wanted = float(cost(everything, KEY)[0])
    np.testing.assert_allclose(wanted, -jax.nn.log_softmax(logits)[0, 0], rtol=1e-5)
    keys = jax.random.split(KEY, 4000)
    drawn = jax.jit(jax.vmap(lambda key: cost(few, key)[0]))(keys)
    # The sum of exponentials is unbiased: exp(loss) = 1 + that sum.
    np.testing.assert_allclose(np.exp(drawn).mean(), np.exp(wanted), rtol=0.02)


def test_approximate_negatives_are_less_hard(rng):
    logits = jnp.asarray(rng.normal(size=(64, 80)), jnp.float32)
    labels = np.arange(64)
    exact, found = (
        _preference("sigmoid", logits, labels, approximate_negatives=approximate)[0]
        for approximate in (False, True)
    )
    assert (found <= exact + 1e-5).all() and (found < exact - 1e-3).any()
    assert 0.95 * exact.mean() < found.mean()


def test_rows_that_do_not_count_leave_the_state_alone():
    made = make_preference("lmpo", noise="re_po", num_negatives=2)

    @jax.jit
    def state_of(logits, labels, where=None):
        targets, state = Targets(labels, where=where), init_preference_state(made)
        return preference_losses(made, KEY, logits, targets, state)[0].state

    rows = np.array([0, 1, 1])
    padded = state_of(LOGITS[rows], LABELS[rows], np.array([True, True, False]))
    alone = state_of(LOGITS, LABELS)
    for one, other in zip(jax.tree.leaves(padded), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("name", [*catalogue.OBJECTIVES, "jax.nn:softplus"])
def test_settings_of_one_objective_compile_once(name):
    """They differ in leaves alone, also in those of the link."""
    margin = catalogue.OBJECTIVES.get(name, catalogue.USERS).margin
    changed = {} if margin is None else {"margin": margin + 1}
    once, again = make_preference(name), make_preference(name, **changed)
    assert jax.tree.structure(once) == jax.tree.structure(again)
    assert (jax.tree.leaves(once) == jax.tree.leaves(again)) == (not changed)


def test_a_user_brings_a_link_and_zero_is_a_margin():
    none = make_preference("simpo", margin=0.0).link  # 0 is a value.
    np.testing.assert_allclose(none(jnp.zeros(1)), np.log(2), rtol=1e-6)
    made = make_preference("jax.nn:softplus", beta=0.5)
    assert (made.link.func, made.beta) == (jax.nn.softplus, 0.5)


def reduces(margins):
    return margins.mean()


@pytest.mark.parametrize(
    "name", ["no_such:f", "jax.nn:no", "jax:__version__", "test_training:reduces"]
)
def test_what_is_no_link_is_one_line(name):
    with pytest.raises(UserError, match="--pref_objective"):
        make_preference(name)


def test_the_reference_policy_is_the_frozen_start(run, corpus_path, tmp_path):
    """From where it starts, DPO's margins are 0: its first loss is log 2."""
    start = {"weights": str(run.run.path), "train_all": True, "pref_weight": 1.0}
    settings = start | {"epochs": 1, "lr": 1e-9, "learn_from_responses": False}
    found = {
        name: finetune(
            quick(corpus_path, tmp_path / name, pref_objective=name, **settings)
        ).fit.history[0]
        for name in ("dpo", "sigmoid")
    }
    # Dropout keeps the margins from being exactly 0.
    assert abs(found["dpo"]["rewards/margins"]) < 0.2 * abs(
        found["sigmoid"]["rewards/margins"]
    )
    assert found["dpo"]["loss/pref"] > found["sigmoid"]["loss/pref"]


# --- optimizer


def test_the_schedule_warms_up_from_a_first_real_step():
    config = OptimizerConfig(num_steps=100, warmup_steps=10, lr=1.0)
    schedule = make_schedule(config)
    rates = [float(schedule(t)) for t in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(0.0)
    half = 10 + 45  # Halfway down the cosine.
    assert rates[half] == pytest.approx(0.5)
    constant = make_schedule(dataclasses.replace(config, schedule="constant"))
    assert float(constant(100)) == pytest.approx(1.0)


def _step(tx, state, params, gradient):
    updates, state = tx.update({"kernel": gradient}, state, params)
    return optax.apply_updates(params, updates), state


def test_ema_is_bias_corrected_and_counts_real_steps():
    for accumulate in (1, 3):
        config = OptimizerConfig(
            num_steps=10, warmup_steps=1, lr=0.5, ema_decay=0.9, accumulate=accumulate
        )
        tx = make_optimizer(config)
        params = {"kernel": jnp.array([1.0])}
        state, seen = tx.init(params), []
        for step in range(4 * accumulate):
            params, state = _step(tx, state, params, jnp.array([1.0]))
            if (step + 1) % accumulate == 0:
                seen.append(float(params["kernel"][0]))
        weights = 0.9 ** np.arange(4)[::-1]
        expected = np.dot(weights, seen) / weights.sum()
        average = averaged_params(config, state)["kernel"][0]
        np.testing.assert_allclose(average, expected, rtol=1e-5)


def test_weight_decay_is_for_kernels_only():
    config = OptimizerConfig(num_steps=2, warmup_steps=0, lr=0.1, weight_decay=0.5)
    tx = make_optimizer(config)
    params = {"kernel": jnp.ones(1), "bias": jnp.ones(1), "table": jnp.ones(1)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    assert updates["kernel"][0] == pytest.approx(-0.05)
    assert updates["bias"][0] == updates["table"][0] == 0


def test_a_table_has_a_second_moment_a_row_and_no_momentum():
    config = OptimizerConfig(num_steps=9, warmup_steps=0, lr=0.1, schedule="constant")
    tx = make_optimizer(config)
    params = {"table": jnp.zeros((3, 2)), "kernel": jnp.zeros((3, 2))}
    state = tx.init(params)
    gradients = np.random.default_rng(0).normal(size=(4, 3, 2))
    gradients[2:, 0] = 0.0  # A feature that no later batch has.
    nu, expected = np.zeros((3, 1)), np.zeros((3, 2))
    for step, gradient in enumerate(gradients, start=1):
        updates, state = tx.update(
            {name: jnp.asarray(gradient, jnp.float32) for name in params}, state, params
        )
        params = optax.apply_updates(params, updates)
        nu = 0.999 * nu + 0.001 * (gradient**2).mean(1, keepdims=True)
        expected -= 0.1 * gradient / (np.sqrt(nu / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(params["table"], expected, rtol=1e-4)
    assert (updates["table"][0] == 0).all()
    # All else goes on by its momentum.
    assert (updates["kernel"][0] != 0).all()


def test_clipping_bounds_the_gradient_norm():
    config = OptimizerConfig(num_steps=2, warmup_steps=0, lr=1.0, clip_norm=1e-12)
    tx = make_optimizer(config)
    params = {"kernel": jnp.ones(2)}
    updates, _ = tx.update({"kernel": jnp.full(2, 1e9)}, tx.init(params), params)
    # Clipped far below Adam's epsilon, the step vanishes.
    assert jnp.abs(updates["kernel"]).max() < 1e-3


# --- steps


def _recipe(accumulate=1, **changes):
    model = ModelConfig(
        num_buckets=3,
        vocabulary=64,
        branch_widths=(4,),
        width=8,
        hidden=8,
        feature_dropout=0.0,
    )
    optimizer = OptimizerConfig(
        num_steps=8, warmup_steps=1, lr=0.05, accumulate=accumulate, **changes
    )
    return Recipe(model=model, objective=Objective(), optimizer=optimizer)


def _rows(rng, n=10):
    return Rows(
        jnp.asarray(rng.integers(0, 64, (n, 5)), jnp.int32),
        jnp.asarray(rng.random((n, 5)), jnp.float32),
        jnp.asarray(rng.integers(0, 3, n), jnp.int32),
    )


def _run(recipe, rows, plan, epochs=1, weight_scale=1.0):
    state = init_state(recipe, init_params(recipe.model, jax.random.key(0)))
    for epoch in range(1, epochs + 1):
        state, metrics = run_steps(
            recipe, state, rows, plan.epoch(epoch), jax.random.key(0), np.float32(0)
        )
    return state, metrics


def test_accumulated_micro_batches_equal_one_large_batch_also_in_a_short_window(rng):
    rows, labels = _rows(rng), np.zeros(10, int)
    small = _run(_recipe(4), rows, EpochPlan(labels, 2, 4, False, 0), 2)[0].params
    large = _run(_recipe(1), rows, EpochPlan(labels, 8, 1, False, 0), 2)[0].params
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_head_only_freezes_the_encoder_but_its_final_norm(rng):
    rows = _rows(rng)
    recipe = _recipe(head_only=True, ema_decay=0.5)
    before = init_params(recipe.model, jax.random.key(0))
    after = _run(recipe, rows, EpochPlan(np.zeros(10, int), 5, 1, False, 0))[0].params
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert moved["encoder"]["norm"]["scale"]
    assert not any(jax.tree.leaves(moved["encoder"] | {"norm": False}))
    assert moved["head"]["base"]["kernel"]


def test_metrics_come_for_every_micro_batch(rng):
    _, metrics = _run(
        _recipe(), _rows(rng), EpochPlan(np.zeros(10, int), 4, 1, False, 0)
    )
    assert set(metrics) >= {"loss", "loss/ce", "grad_norm", "learning_rate"}
    assert all(values.shape == (3,) for values in metrics.values())


def test_predictions_do_not_depend_on_the_batch(rng):
    recipe, rows = _recipe(), _rows(rng, 37)
    params = init_params(recipe.model, jax.random.key(0))
    ids, weights = np.asarray(rows.ids), np.asarray(rows.weights)
    together = predict(recipe.model, params, ids, weights)
    one = predict(recipe.model, params, ids[5:6], weights[5:6])
    np.testing.assert_allclose(together[5:6], one, atol=1e-6)
    assert predict(recipe.model, params, ids[:0], weights[:0]).shape == (0, 3)


def test_loaded_parameters_run_the_programs_of_training(run, caplog):
    """Those that orbax pins to a device would compile every program once more."""
    (model, loaded), val = load_model(run.run), run.corpus.val
    few = val.ids[:, :7], val.weights[:, :7]  # Of a shape that nothing compiled for.
    with jax.log_compiles():
        predict(model, init_params(model, jax.random.key(0)), *few)
        assert "Compiling jit(_logits)" in caplog.text
        caplog.clear()
        predict(model, loaded, *few)
    assert "Compiling" not in caplog.text


# --- loop and checkpoints


class Stop(Exception):
    pass


class StopsAfter(Silent):
    """Dies like a killed process, after an epoch was saved."""

    def __init__(self, epoch):
        self._epoch = epoch

    def epoch(self, metrics):
        if metrics["epoch"] == self._epoch:
            raise Stop


@pytest.fixture
def save_every_epoch(monkeypatch):
    monkeypatch.setattr("prefchat_jax.training.checkpoints.SAVE_SECONDS", 0.0)


def test_a_resumed_run_equals_one_that_never_stopped(
    corpus_path, tmp_path, save_every_epoch
):
    settings = {"ema_decay": 0.9, "grad_accum_steps": 2, "model_size": "large"}
    whole = finetune(quick(corpus_path, tmp_path / "whole", **settings))
    halved = quick(corpus_path, tmp_path / "halved", **settings)
    with pytest.raises(Stop):
        finetune(halved, StopsAfter(3))
    resumed = finetune(dataclasses.replace(halved, resume=True))
    assert _params_equal(load_model(whole.run)[1], load_model(resumed.run)[1])
    drop_rate = lambda rows: [
        {k: v for k, v in row.items() if k != "examples_per_second"} for row in rows
    ]
    assert drop_rate(whole.fit.history) == drop_rate(resumed.fit.history)


def test_a_save_that_fails_loses_neither_the_best_nor_the_state(
    corpus_path, tmp_path, save_every_epoch, monkeypatch
):
    """The disk is full at epoch 4; the run goes on from epoch 3, best included."""
    from prefchat_jax.training import checkpoints

    config = quick(corpus_path, tmp_path / "run", lr=0.3)
    whole = finetune(dataclasses.replace(config, output=str(tmp_path / "whole")))
    save = checkpoints.ocp.training.Checkpointer.save_checkpointables

    def full(self, step, *args, **kwargs):
        if step == 4:
            raise ValueError("OUT_OF_RANGE: No space left on device\nmore")
        return save(self, step, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints.ocp.training.Checkpointer, "save_checkpointables", full
        )
        with pytest.raises(UserError, match="4 cannot be written .*No space left"):
            finetune(config)
    resumed = finetune(dataclasses.replace(config, resume=True))
    assert resumed.fit.best_epoch == whole.fit.best_epoch
    assert _params_equal(load_model(whole.run)[1], load_model(resumed.run)[1])


def test_half_a_line_in_the_log_is_ignored_and_a_lost_one_refused(
    corpus_path, tmp_path, save_every_epoch
):
    config = quick(corpus_path, tmp_path / "run")
    with pytest.raises(Stop):
        finetune(config, StopsAfter(2))
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"summary": tr')
    with pytest.raises(Stop):
        finetune(dataclasses.replace(config, resume=True), StopsAfter(3))
    rows = [row for row in log.read_text().splitlines() if "summary" not in row]
    log.write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match="does not tell of all 3 epochs"):
        finetune(dataclasses.replace(config, resume=True))


def test_resuming_a_finished_run_keeps_added_replies(run, corpus_path, tmp_path):
    path = shutil.copytree(run.run.path, tmp_path / "run")
    with Chat.load(path) as chat:
        chat.add("umbrellas", "Yes.")
        count = len(chat)
    finetune(quick(corpus_path, path, resume=True))
    with Chat.load(path) as chat:
        assert len(chat) == count


def test_a_wrong_start_leaves_the_directory_free(corpus_path, tmp_path):
    config = quick(corpus_path, tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="not a run directory"):
        finetune(dataclasses.replace(config, weights="/nope"))
    with pytest.raises(UserError, match="loss/pref is nan"):
        finetune(dataclasses.replace(config, pref_objective="test_training:nan_loss"))
    assert finetune(config).fit.best_epoch == 1


def test_resuming_with_other_settings_or_data_is_refused(run, corpus_path, tmp_path):
    path = shutil.copytree(run.run.path, tmp_path / "run")
    config = quick(corpus_path, path, resume=True)
    with pytest.raises(UserError, match="--lr was 0.02 and is 0.5"):
        finetune(dataclasses.replace(config, lr=0.5))
    other = tmp_path / "other.jsonl"
    other.write_text(
        corpus_path.read_text() + '{"user":"u","assistant":"a","label":"parcel"}\n'
    )
    with pytest.raises(UserError, match="data"):
        finetune(dataclasses.replace(config, data=str(other)))


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(
    run, corpus_path, tmp_path
):
    again = finetune(quick(corpus_path, tmp_path / "again"))
    assert _params_equal(load_model(run.run)[1], load_model(again.run)[1])
    other = finetune(quick(corpus_path, tmp_path / "other", seed=1))
    assert not _params_equal(load_model(run.run)[1], load_model(other.run)[1])


@pytest.mark.parametrize(
    "ema", [{}, {"ema_decay": 0.8}, {"ema_decay": 0.8, "disable_ema_eval": True}]
)
def test_the_saved_best_gives_the_reported_figure(corpus_path, tmp_path, ema):
    # A rate that overshoots: the best epoch is not the last one.
    result = finetune(quick(corpus_path, tmp_path / "run", lr=0.3, epochs=8, **ema))
    best = result.fit.history[result.fit.best_epoch - 1]
    assert best["eval_loss"] == min(row["eval_loss"] for row in result.fit.history)
    model, params = load_model(result.run)
    val = result.corpus.val
    logits = predict(model, params, val.ids, val.weights)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, val.labels).mean()
    assert float(ce) == pytest.approx(best["eval_loss"], abs=1e-5)


def test_ema_weights_are_what_is_validated_and_saved(corpus_path, tmp_path):
    base = quick(corpus_path, tmp_path / "a", ema_decay=0.9)
    averaged = finetune(base)
    raw = finetune(
        dataclasses.replace(base, output=str(tmp_path / "b"), disable_ema_eval=True)
    )
    assert not _params_equal(load_model(averaged.run)[1], load_model(raw.run)[1])
    assert averaged.fit.history[0]["loss"] == raw.fit.history[0]["loss"]
    assert averaged.fit.history[0]["eval_loss"] != raw.fit.history[0]["eval_loss"]


def test_early_stopping_stops(corpus_path, tmp_path):
    config = quick(
        corpus_path, tmp_path / "a", epochs=40, lr=0.5, early_stop_patience=2
    )
    result = finetune(config)
    assert len(result.fit.history) < 40
    assert len(result.fit.history) - result.fit.best_epoch == 2


def test_without_validation_rows_the_last_epoch_is_used(corpus_path, tmp_path):
    result = finetune(quick(corpus_path, tmp_path / "a", val_split=0.0))
    assert result.fit.best_epoch == 6
    assert not {"eval_loss", "eval_accuracy"} & set(result.fit.history[0])


def nan_loss(margins):
    return margins * jnp.nan


def test_a_nan_names_its_term_and_step_and_keeps_the_last_good_epoch(
    corpus_path, tmp_path
):
    config = quick(
        corpus_path,
        tmp_path / "a",
        pref_objective="test_training:nan_loss",
    )
    with pytest.raises(UserError, match=r"loss/pref is nan at step 1:"):
        finetune(config)


def test_metrics_log_has_a_line_for_each_epoch_and_the_usual_names(run):
    lines = [json.loads(x) for x in run.run.metrics.read_text().splitlines()]
    epochs = [row for row in lines if row.get("summary")]
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4, 5, 6]
    assert set(epochs[0]) >= {
        "loss",
        "eval_loss",
        "eval_accuracy",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "grad_norm",
        "learning_rate",
    }
    assert epochs[-1]["eval_accuracy"] > epochs[0]["accuracy"]


def test_a_warm_start_copies_and_trains_the_head_only(run, corpus_path, tmp_path):
    config = quick(corpus_path, tmp_path / "warm", weights=str(run.run.path), epochs=1)
    warm = load_model(finetune(config).run)[1]
    source = load_model(run.run)[1]
    assert np.array_equal(warm["encoder"]["table"], source["encoder"]["table"])
    assert not np.array_equal(
        warm["head"]["base"]["kernel"], source["head"]["base"]["kernel"]
    )
    # Another split has other document frequencies, but the table keeps its rows.
    moved = finetune(
        dataclasses.replace(config, output=str(tmp_path / "moved"), seed=5)
    )
    featurizer = RunDirectory.open(run.run.path).featurizer()
    assert np.array_equal(moved.corpus.featurizer.rows, featurizer.rows)
    everything = dataclasses.replace(
        config, output=str(tmp_path / "all"), train_all=True
    )
    trained = load_model(finetune(everything).run)[1]
    assert not np.array_equal(trained["encoder"]["table"], source["encoder"]["table"])


def test_the_run_directory_is_complete_and_says_how_it_was_made(run):
    names = {path.name for path in run.run.path.iterdir()}
    assert names == {
        "config.json",
        "labels.json",
        "features.npz",
        "checkpoints",
        "inference.npz",
        "responses.db",
        "responses.index",
        "metrics.jsonl",
        "report.md",
    }
    config = RunDirectory.open(run.run.path).config()
    assert config["finetune"]["lr"] == 0.02 and config["best_epoch"] >= 1
