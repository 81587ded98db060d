"""Training on pairs: the loss, the start, what it learns, whom it trusts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefchat_jax import losses
from prefchat_jax.datasets.preferences import PreferencePair
from prefchat_jax.finetune import Silent
from prefchat_jax.models.scorer import ScorerConfig, encode, init_scorer, with_values
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.dialogue import Turn
from prefchat_jax.text.features import FeatureConfig, Featurizer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.optimizers import OptimizerConfig
from prefchat_jax.training.pairs import (
    PairRecipe,
    PairRows,
    init_pair_state,
    losses_as_labelled,
    pair_losses,
    score_pairs,
)
from prefchat_jax.training.pairs_run import load_pairs, tune_scorer
from prefchat_jax.training.preference import init_preference_state, make_preference

MODEL = ScorerConfig(vocabulary=64, width=8, hidden=6, valued=True)


@pytest.fixture
def scorer(rng):
    """Parameters whose towers are not the identity."""
    params = init_scorer(MODEL, jax.random.key(0))
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.2 * rng.normal(size=x.shape), jnp.float32), params
    )


def _rows(rng, count=5, replies=6, reference=None):
    bags = lambda n: Bags(
        rng.integers(1, 64, (n, 4)).astype(np.int32),
        rng.random((n, 4)).astype(np.float32),
    )
    pairs = [rng.choice(replies, 2, replace=False) for _ in range(count)]
    return PairRows(
        bags(count),
        bags(replies),
        np.array(pairs, np.int32),
        np.zeros(count, np.int32),
        rng.random(replies).astype(np.float32),
        reference,
    )


def _recipe(objective="dpo", *, weight=1.0, length_slope=0.0, **settings):
    return PairRecipe(
        model=MODEL,
        optimizer=OptimizerConfig(num_steps=4, warmup_steps=0, lr=0.1),
        preference=make_preference(objective, **settings),
        weight=weight,
        length_slope=length_slope,
    )


def _loss(recipe, params, rows, batch=None):
    batch = np.arange(len(rows.replies)) if batch is None else np.array(batch)
    state = init_preference_state(recipe.preference)
    rows = jax.tree.map(jnp.asarray, rows)
    return pair_losses(recipe, params, rows, jnp.asarray(batch, jnp.int32), state)


# --- the loss


def test_the_loss_is_that_of_the_papers_beside_that_of_finding(scorer, rng):
    """In float64 from vectors: DPO of the cosines, and cross-entropy over the batch."""
    reference = rng.normal(size=(5, 2)).astype(np.float32)
    rows = _rows(rng, reference=reference)
    recipe = _recipe("dpo", beta=3.0, weight=0.7, length_slope=0.9)
    values, metrics, _ = _loss(recipe, scorer, rows)

    plain = dataclasses.replace(MODEL, valued=False)
    towers = {name: x for name, x in scorer.items() if name != "worth"}
    vectors = lambda tower, bags: np.asarray(
        encode(plain, towers, tower, *bags), np.float64
    )
    x, y = vectors("context", rows.contexts), vectors("response", rows.responses)
    worth = np.asarray(scorer["worth"], np.float64)[rows.responses.ids]
    cosines = x @ y.T + (worth * rows.responses.weights).sum(axis=1)
    own = np.take_along_axis(cosines, rows.replies, axis=1)
    longer = np.diff(rows.log_lengths[rows.replies].astype(np.float64))[:, 0]
    d = (own - reference) @ [1, -1] - 0.9 / 3.0 * longer
    dpo = np.log1p(np.exp(-3.0 * d))
    chosen = rows.replies[:, 0]
    scores = np.exp(np.float64(scorer["log_scale"])) * cosines[:, chosen]
    same = (chosen[:, None] == chosen) & ~np.eye(5, dtype=bool)
    scores[same] = -np.inf  # The chosen reply of two rows is no negative of either.
    found = np.log(np.exp(scores).sum(axis=1)) - np.diagonal(scores)
    np.testing.assert_allclose(metrics["loss/pref"], dpo, rtol=2e-5)
    found = found / np.exp(np.float64(scorer["log_scale"]))
    np.testing.assert_allclose(metrics["loss/found"], found, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(values, found + 0.7 * dpo, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("objective", ["dpo", "ipo", "orpo", "simpo"])
def test_gradients_are_those_of_finite_differences(objective, scorer, rng):
    rows = _rows(rng, reference=0.1 * np.ones((5, 2), np.float32))
    recipe = _recipe(objective)
    start = init_pair_state(recipe, scorer).trained
    nudge = lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    trained = jax.tree.map(nudge, start)
    total = lambda t: jnp.mean(_loss(recipe, scorer | t, rows)[0])
    gradient = jax.grad(total)(trained)
    for name in ("worth", "context", "response"):
        draw = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)
        towards = jax.tree.map(draw, trained[name])
        shifted = lambda step, name=name, towards=towards: (
            trained
            | {name: jax.tree.map(lambda x, t: x + step * t, trained[name], towards)}
        )
        moved = [total(shifted(step)) for step in (1e-2, -1e-2)]
        slope = (moved[0] - moved[1]) / 2e-2
        along = jax.tree.map(jnp.vdot, gradient[name], towards)
        np.testing.assert_allclose(
            sum(jax.tree.leaves(along)), slope, rtol=0.02, atol=2e-4
        )


def test_training_starts_from_the_reference(scorer, rng):
    """Step 0 of DPO: a loss of log 2, no reward, and the scores of the run."""
    rows = _rows(rng)
    scores = score_pairs(MODEL, scorer, rows)
    rows = rows._replace(ref_scores=scores)
    recipe = _recipe("dpo")
    started = scorer | init_pair_state(recipe, scorer).trained
    assert all(map(np.array_equal, jax.tree.leaves(started), jax.tree.leaves(scorer)))
    _, metrics, _ = _loss(recipe, started, rows)
    np.testing.assert_allclose(metrics["loss/pref"], np.log(2), rtol=1e-6)
    for name in ("chosen", "rejected", "margins"):
        np.testing.assert_allclose(metrics[f"rewards/{name}"], 0, atol=1e-6)
    rows = jax.tree.map(jnp.asarray, rows)
    found = losses_as_labelled(recipe.preference, scores, rows)
    np.testing.assert_allclose(found, np.log(2), rtol=1e-6)


def test_a_value_is_added_to_the_cosine(scorer, rng):
    """With a value of 0 a scorer says what it said without; NumPy says it, too."""
    rows, plain = _rows(rng), dataclasses.replace(MODEL, valued=False)
    before = {name: x for name, x in scorer.items() if name != "worth"}
    sides = {"context": rows.contexts, "response": rows.responses}
    cosines, silent, valued = (
        np.matmul(*_both(model, params, sides))
        for model, params in (
            (plain, before),
            with_values(plain, before),
            (MODEL, scorer),
        )
    )
    np.testing.assert_allclose(silent, cosines, atol=1e-6)
    worth = np.asarray(scorer["worth"])[rows.responses.ids]
    values = np.sum(worth * rows.responses.weights, axis=1)
    np.testing.assert_allclose(valued - cosines, np.tile(values, (5, 1)), atol=1e-6)
    assert with_values(MODEL, scorer) == (MODEL, scorer)


def _both(model, params, sides):
    x, y = (np.asarray(encode(model, params, tower, *sides[tower])) for tower in sides)
    return x, y.T


def test_empty_places_of_a_batch_count_for_nothing(scorer, rng):
    rows = _rows(rng, reference=np.zeros((5, 2), np.float32))
    for recipe in (_recipe("lmpo"), _recipe("dpo", noise="re_po")):
        values, _, state = _loss(recipe, scorer, rows, [0, 3, 4])
        padded, _, padded_state = _loss(recipe, scorer, rows, [0, 3, 4, -1, -1])
        np.testing.assert_allclose(padded[:3], values, rtol=1e-5)
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(padded_state), strict=True)
        for one, other in leaves:
            np.testing.assert_allclose(one, other, rtol=1e-5)


def test_given_negatives_are_judged_and_none_are_mined(rng):
    """The same loss as of mined ones, if those are what was mined."""
    logits = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    preference = make_preference("sigmoid", beta=2.0)
    from prefchat_jax.training.preference import preference_losses
    from prefchat_jax.training.targets import Targets

    labels = jnp.asarray([0, 1, 0, 1, 1, 0])
    state = init_preference_state(preference)
    key = jax.random.key(0)
    mined, _ = preference_losses(preference, key, logits, Targets(labels), state)
    given = Targets(labels, rejected=1 - labels[:, None])
    judged, _ = preference_losses(preference, key, logits, given, state)
    np.testing.assert_array_equal(mined.values, judged.values)
    margins = losses.bucket_margins(logits, labels, 1 - labels[:, None], beta=2.0)
    np.testing.assert_allclose(judged.values, np.logaddexp(0, -margins[:, 0]), 1e-5)


# --- what it learns

WORDS = ["parcel", "refund", "login", "hours", "price"]


def _pairs(count, *, wrong=lambda i: 0.0, seed=0):
    """Polite replies are preferred to rude ones; who judges is right or wrong."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        word, other = rng.choice(WORDS), f"case {rng.integers(1000)}"
        polite = f"Gladly, the {word} is known to us, {other}."
        rude = f"Never, the {word} is not for you, {other}."
        sides = (rude, polite) if rng.random() < wrong(i) else (polite, rude)
        context = (Turn("user", f"what about the {word}, {other} {i}"),)
        made.append(PreferencePair(context, *sides, annotator=f"a{i % 2}"))
    return made


@pytest.fixture(scope="module")
def featurizer():
    pairs = _pairs(200) + _long_pairs()
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    return Featurizer.fit([pair.context for pair in pairs], FeatureConfig(), texts)


def _tune(featurizer, pairs, **changes):
    config = FinetuneConfig(
        output="b",
        weights="a",
        preferences="p",
        **({"epochs": 6, "scorer_lr": 0.1} | changes),
    )
    shape = _shape(featurizer)
    params = init_scorer(shape, jax.random.key(0))
    corpus = load_pairs(config, featurizer, pairs)
    return tune_scorer(config, shape, params, corpus, Silent()), corpus


def test_planted_preferences_are_learnt(featurizer):
    fit, corpus = _tune(featurizer, _pairs(300), val_split=0.3)
    assert len(corpus.val.replies) == pytest.approx(90, abs=2)
    assert fit.start_accuracy < 0.7
    best = fit.history[fit.best_epoch - 1]
    assert best["eval_accuracy"] > 0.97 and best["eval_margin"] > 0
    rewards = [row["eval_reward_accuracy"] for row in fit.history]
    assert best["eval_reward_accuracy"] == max(rewards)
    assert {"rewards/chosen", "rewards/rejected", "loss/pref"} <= best.keys()
    swapped = [p._replace(chosen=p.rejected, rejected=p.chosen) for p in _pairs(300)]
    other, _ = _tune(featurizer, swapped, val_split=0.3)
    rude = score_pairs(_shape(featurizer), other.params, corpus.val)
    assert np.mean(rude[:, 0] > rude[:, 1]) < 0.03


def _shape(featurizer):
    return ScorerConfig(
        vocabulary=featurizer.num_scorer_rows, width=32, hidden=16, valued=True
    )


def test_re_po_finds_the_careless_annotator(featurizer):
    pairs = _pairs(400, wrong=lambda i: 0.45 * (i % 2))
    fit, corpus = _tune(
        featurizer, pairs, pref_noise="re_po", pref_beta=10.0, pref_weight=5.0
    )
    assert corpus.sources == ["a0", "a1"]
    best = fit.history[fit.best_epoch - 1]
    assert best["reliability/0"] > 0.9 and best["reliability/1"] < 0.75


def test_the_same_seed_has_the_same_bytes(featurizer):
    runs = [_tune(featurizer, _pairs(60), epochs=2, seed=seed)[0] for seed in (1, 1, 2)]
    trees = [jax.tree.leaves(fit.params) for fit in runs]
    assert all(map(np.array_equal, trees[0], trees[1]))
    assert not all(map(np.array_equal, trees[0], trees[2]))


def test_pairs_of_one_prompt_stay_on_one_side(featurizer):
    pairs = [
        p._replace(context=_pairs(20)[i // 3].context) for i, p in enumerate(_pairs(60))
    ]
    _, corpus = _tune(featurizer, pairs, val_split=0.3, epochs=1)
    sides = [
        {tuple(row) for row in np.sort(rows.contexts.ids, axis=1).tolist()}
        for rows in (corpus.train, corpus.val)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_few_pairs_without_validation_keep_the_last_epoch(featurizer):
    fit, corpus = _tune(featurizer, _pairs(1), epochs=2)
    assert (len(corpus.train.replies), len(corpus.val.replies)) == (1, 0)
    assert fit.best_epoch == 2 and np.isnan(fit.start_accuracy)
    assert "eval_loss" not in fit.history[0]


# --- length


def _long_pairs(count=200):
    """The longer reply is right four times of five, and nothing else tells."""
    rng = np.random.default_rng(1)
    made = []
    for i in range(count):
        word = rng.choice(WORDS)
        short = f"The {word} is known to us."
        long = f"{short} We say so at length, and then again, and once more."
        sides = (long, short) if rng.random() < 0.8 else (short, long)
        context = (Turn("user", f"what about the {word} {i}"),)
        made.append(PreferencePair(context, *sides))
    return made


def test_length_control_leaves_length_out(featurizer):
    """Without it the scorer learns that longer is better; with it, it need not."""
    leads = {}
    for control in ("none", "matched", "projected"):
        fit, corpus = _tune(
            featurizer,
            _long_pairs(),
            length_control=control,
            val_split=0.0,
            pref_weight=2.0,
        )
        scores = score_pairs(_shape(featurizer), fit.params, corpus.train)
        longer = np.diff(corpus.train.log_lengths[corpus.train.replies])[:, 0] < 0
        lead = np.where(longer, 1, -1) * (scores[:, 0] - scores[:, 1])
        leads[control] = float(lead.mean())
        if control == "matched":
            assert longer.mean() == 0.5 and corpus.unmatched > 50
        if control == "projected":
            assert corpus.slope > 1
    assert leads["none"] > 0.5
    assert abs(leads["matched"]) < 0.3 * leads["none"]
    assert abs(leads["projected"]) < 0.5 * leads["none"]


# --- flags

CHANGES = {
    "compute_dtype": "bfloat16",
    "pref_objective": "repo_relu",
    "pref_weight": 3.0,
    "pref_beta": 9.0,
    "pref_noise": "smoothing",
    "adaptive_pref_weighting": True,
    "epochs": 2,
    "batch_size": 7,
    "scorer_lr": 1e-3,
    "val_split": 0.4,
    "early_stop_patience": 1,
    "length_control": "projected",
}


@pytest.fixture(scope="module")
def plain(featurizer):
    return _tune(featurizer, _pairs(40, wrong=lambda i: 0.3), val_split=0.2)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_each_flag_changes_the_tuning(name, plain, featurizer):
    changes = {"val_split": 0.2, name: CHANGES[name]}
    other, _ = _tune(featurizer, _pairs(40, wrong=lambda i: 0.3), **changes)
    strip = lambda fit: [
        {k: v for k, v in row.items() if k != "examples_per_second"}
        for row in fit.history
    ]
    assert strip(other) != strip(plain)


@pytest.mark.slow
def test_margin_and_rate_change_the_loss(featurizer):
    pairs = _pairs(40)
    found = [
        _tune(featurizer, pairs, epochs=1, **settings)[0].history[0]["loss/pref"]
        for settings in (
            {"pref_objective": "simpo"},
            {"pref_objective": "simpo", "pref_margin": 2.0},
            {"pref_noise": "robust", "pref_noise_rate": 0.1},
            {"pref_noise": "robust", "pref_noise_rate": 0.3},
        )
    ]
    assert len(set(found)) == 4
    assert dataclasses.is_dataclass(_recipe())
