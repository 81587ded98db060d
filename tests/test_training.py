import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import quick

from prefchat_jax import Chat
from prefchat_jax.datasets.sampling import EpochPlan
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import Silent, finetune
from prefchat_jax.models.classifier import ModelConfig, init_params
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.objective import (
    Objective,
    example_losses,
    resolve_link,
)
from prefchat_jax.training.optimizers import (
    OptimizerConfig,
    averaged_params,
    make_optimizer,
    make_schedule,
)
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.steps import Recipe, Rows, init_state, predict, run_steps


def _params_equal(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# --- objective


def test_the_objective_is_ce_plus_weight_times_ramp_times_preference(rng):
    logits = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    labels = jnp.arange(6) % 5
    objective = Objective(label_smoothing=0.1, weight=0.3, num_negatives=4, beta=2.0)
    key = jax.random.key(0)
    for ramp in (0.0, 0.5, 1.0):
        total, parts = example_losses(objective, key, logits, labels, ramp=ramp)
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


def test_a_weight_of_zero_leaves_the_preference_loss_out(rng):
    logits, labels = jnp.asarray(rng.normal(size=(3, 4))), jnp.arange(3)
    objective = Objective(weight=0.0)
    _, parts = example_losses(objective, jax.random.key(0), logits, labels, ramp=1.0)
    assert "loss/pref" not in parts


def test_groups_are_capped_at_the_wrong_buckets(rng):
    logits, labels = jnp.asarray(rng.normal(size=(3, 4))), jnp.arange(3)
    objective = Objective(weight=1.0, num_negatives=99)
    loss, _ = example_losses(objective, jax.random.key(0), logits, labels, ramp=1.0)
    assert jnp.isfinite(loss).all()


def test_links_by_name_and_a_users_own():
    link, beta = resolve_link("sigmoid")
    assert link(jnp.zeros(1)) == pytest.approx(np.log(2)) and beta == 2.0
    link, beta = resolve_link("repo_relu", margin=0.3)
    assert link(jnp.zeros(1)) == pytest.approx(0.3) and beta == 1.0
    assert resolve_link("repo_relu", margin=0.3)[0] is link
    assert resolve_link("jax.nn:softplus", beta=0.5) == (jax.nn.softplus, 0.5)


def reduces(margins):
    return margins.mean()


@pytest.mark.parametrize(
    "name",
    ["hinge", "no_such:f", "jax.nn:no", "jax:__version__", "test_training:reduces"],
)
def test_what_is_no_link_is_one_line(name):
    with pytest.raises(UserError, match="--pref_objective"):
        resolve_link(name)


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
    return Recipe(model=model, objective=Objective(weight=0.0), optimizer=optimizer)


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
    other = tmp_path / "other.jsonl"
    other.write_text(corpus_path.read_text().replace('"parcel"', '"package"'))
    with pytest.raises(UserError, match=r"labels \[.*parcel.*\] there"):
        finetune(
            dataclasses.replace(config, data=str(other), output=str(tmp_path / "x"))
        )
    everything = dataclasses.replace(
        config, output=str(tmp_path / "all"), train_all=True
    )
    trained = load_model(finetune(everything).run)[1]
    assert not np.array_equal(trained["encoder"]["table"], source["encoder"]["table"])
    with pytest.raises(UserError, match=r"branch_widths \(\) there, \(512,\) here"):
        finetune(
            dataclasses.replace(config, output=str(tmp_path / "no"), model_size="large")
        )


def test_the_run_directory_is_complete_and_says_how_it_was_made(run):
    names = {path.name for path in run.run.path.iterdir()}
    assert names == {
        "config.json",
        "labels.json",
        "features.npz",
        "checkpoints",
        "responses.db",
        "metrics.jsonl",
    }
    config = RunDirectory.open(run.run.path).config()
    assert config["finetune"]["lr"] == 0.02 and config["best_epoch"] >= 1
