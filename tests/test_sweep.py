import csv
import dataclasses
import json

import numpy as np
import pytest
from conftest import one_line, quick

from prefchat_jax.cli.main import main
from prefchat_jax.cli.sweep import summary
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.metrics import macro_f1
from prefchat_jax.finetune import Silent, finetune
from prefchat_jax.sweep import sweep
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.steps import predict, score
from prefchat_jax.training.sweep_config import RUN_FIELDS, SweepConfig
from prefchat_jax.training.sweep_table import COLUMNS

FIGURES = ("eval_loss", "eval_accuracy", "loss", "rewards/margins")


def sweeping(corpus_path, output, *, grid=(), seeds=1, at_once=1, **changes):
    """A small sweep; its runs are those of `quick`."""
    plain = dataclasses.asdict(quick(corpus_path, output, **({"epochs": 3} | changes)))
    return SweepConfig(**plain, grid=grid, seeds=seeds, runs_at_once=at_once)


def alone(row, corpus_path, output, **changes):
    """The run that a row is about, by finetune, with the row's own settings."""
    known = {"data_seed": 0, "seed": int(row["seed"]), "epochs": 3} | changes
    return finetune(quick(corpus_path, output, **known))


def assert_same(row, result, **tolerance):
    best = result.fit.history[result.fit.best_epoch - 1]
    assert int(row["best_epoch"]) == result.fit.best_epoch
    for name in FIGURES:
        np.testing.assert_allclose(float(row[name]), best[name], **tolerance)


# Settings, and what of them varies: floats that are arrays of one program, ...
SAME = {
    "plain": {},
    "averaged": {"ema_decay": 0.8, "grad_accum_steps": 2},
    "re_po": {"pref_noise": "re_po", "pref_noise_rate": 0.2, "pref_weight": 1.0},
    "simpo": {"pref_objective": "simpo", "pref_margin": 0.7, "pref_weight": 1.0},
    "gce": {"gce_q": 0.7, "logit_adjustment": 1.0, "pref_noise": "re_po"},
    "rpo": {"pref_objective": "rpo", "false_negative_margin": 2.0},
}


@pytest.mark.parametrize("name", SAME)
def test_a_run_of_a_sweep_is_that_run_alone_bit_for_bit(name, corpus_path, tmp_path):
    base = SAME[name]
    config = sweeping(
        corpus_path, tmp_path / "s", grid=("lr=0.01,0.03",), seeds=2, **base
    )
    rows = sweep(config).rows
    assert [(row["lr"], row["seed"]) for row in rows] == [
        (lr, seed) for lr in ("0.01", "0.03") for seed in ("0", "1")
    ]
    result = alone(rows[3], corpus_path, tmp_path / "alone", lr=0.03, **base)
    assert_same(rows[3], result, rtol=1e-12)
    model, params = load_model(result.run)
    val = result.corpus.val
    predicted = predict(model, params, val.ids, val.weights).argmax(axis=-1)
    assert float(rows[3]["eval_macro_f1"]) == macro_f1(predicted, val.labels)
    trusted = result.run.config().get("reliability", {})
    assert rows[3]["reliability"] == ", ".join(
        f"{who}={value:.6f}" for who, value in trusted.items()
    )


# ... and every float of a recipe: each value of it is another run.
FLOATS = {
    "lr": (0.01, 0.02),
    "weight_decay": (0.0, 5.0),
    "grad_clip_norm": (0.01, 1.0),
    "label_smoothing": (0.0, 0.2),
    "gce_q": (0.3, 0.9),
    "logit_adjustment": (0.5, 1.5),
    "ema_decay": (0.5, 0.9),
    "pref_weight": (0.1, 1.0),
    "pref_beta": (1.0, 4.0),
    "pref_margin": (0.1, 1.0),
    "pref_noise_rate": (0.1, 0.3),
    "pref_warmup_epochs": (0.0, 2.0),
    "hard_negative_ratio": (0.0, 1.0),
    "false_negative_margin": (0.0, 2.0),
}


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.notices = []

    def notice(self, text):
        self.notices.append(text)


def test_every_float_of_a_recipe_sweeps_in_one_program(corpus_path, tmp_path):
    told = Told()
    base = {
        "pref_objective": "simpo",
        "pref_noise": "smoothing",
        "pref_weight": 1.0,
        "pref_group_size": 1,  # All wrong buckets would leave no choice.
        "ema_decay": 0.5,
        "false_negative_margin": 1.0,
    }
    found = {}
    # One sweep after another into one table: what is there is not trained again.
    for name, values in FLOATS.items():
        grid = (f"{name}={values[0]},{values[1]}",)
        config = sweeping(corpus_path, tmp_path / "s", grid=grid, **base)
        rows = sweep(config, told).rows
        found[name] = [row["eval_loss"] for row in rows]
        assert len({row["eval_loss"] for row in rows}) == 2, name
    programs = [text for text in told.notices if text.startswith("program")]
    assert programs and all("program 1 of 1" in text for text in programs)


def test_no_weight_is_one_setting_whatever_its_loss_were(corpus_path, tmp_path):
    grid = ("pref_weight=0,1", "pref_beta=1,3", "pref_noise=none,re_po")
    config = sweeping(corpus_path, tmp_path / "s", grid=grid, seeds=2)
    told = [(c.pref_weight, c.pref_beta, c.pref_noise, c.seed) for c in config.runs()]
    assert told[:2] == [(0.0, None, "none", 0), (0.0, None, "none", 1)]
    assert len(told) == 2 * (1 + 2 * 2)
    with pytest.raises(UserError, match="--pref_beta 1.0 needs --pref_weight"):
        list(dataclasses.replace(config, grid=grid[1:], pref_weight=0.0).runs())


def test_what_is_no_number_is_another_program(corpus_path, tmp_path):
    told = Told()
    config = dataclasses.replace(
        sweeping(corpus_path, tmp_path / "s", grid=("ema_decay=0,0.5",)),
        objectives=("sigmoid", "repo_relu"),
        groups=("epo",),
    )
    result = sweep(config, told)
    assert result.trained == len(result.rows) == 4
    assert {row["pref_group_estimator"] for row in result.rows} == {"epo"}
    assert len({row["eval_loss"] for row in result.rows}) == 4
    assert any("program 4 of 4" in text for text in told.notices)


def test_runs_at_once_change_the_time_and_not_the_figures(corpus_path, tmp_path):
    one, four = (
        sweep(
            sweeping(
                corpus_path,
                tmp_path / str(at_once),
                grid=("pref_beta=1,2,4",),
                seeds=2,
                at_once=at_once,
                ema_decay=0.5,
            )
        ).rows
        for at_once in (1, 4)  # Six runs: the second four are half empty.
    )
    assert {row["runs_at_once"] for row in four} == {"4"}
    for a, b in zip(one, four, strict=True):
        for name in FIGURES:
            np.testing.assert_allclose(float(a[name]), float(b[name]), rtol=1e-4)


def test_how_many_runs_train_at_once_is_measured(corpus_path, tmp_path):
    told = Told()
    config = sweeping(corpus_path, tmp_path, at_once=None, seeds=16)
    rows = sweep(config, told).rows
    assert any("by runs at once: 1: " in text for text in told.notices)
    assert {row["runs_at_once"] for row in rows} <= {"1", "4", "16"}


def test_a_run_that_diverges_is_told_and_stops_no_other(corpus_path, tmp_path):
    for at_once in (1, 2):
        config = sweeping(
            corpus_path,
            tmp_path / str(at_once),
            grid=("lr=0.02,1e38",),
            at_once=at_once,
            model_size="large",
        )
        rows = sweep(config).rows
        fine, wild = rows
        assert not fine["diverged"] and float(fine["eval_accuracy"]) > 0.3
        assert " is " in wild["diverged"] and " at step " in wild["diverged"]
        assert not wild["eval_loss"] and not wild["best_epoch"]
        # finetune stops at the same place.
        with pytest.raises(UserError) as caught:
            alone(
                wild, corpus_path, tmp_path / f"a{at_once}", lr=1e38, model_size="large"
            )
        assert str(caught.value).startswith(wild["diverged"])
    columns, cells = summary(rows, ["lr"])
    assert columns[-2:] == ["runs", "diverged"]
    assert [row[0] for row in cells] == ["0.02", "1e+38"]
    assert [row[-1] for row in cells] == ["0", "1"]


def test_runs_that_train_together_stop_each_when_it_is_time(corpus_path, tmp_path):
    base = {"epochs": 9, "early_stop_patience": 1}
    config = sweeping(
        corpus_path, tmp_path / "s", grid=("lr=0.005,0.2",), at_once=2, **base
    )
    rows = sweep(config).rows
    assert int(rows[0]["best_epoch"]) > int(rows[1]["best_epoch"]) + 1
    result = alone(rows[1], corpus_path, tmp_path / "alone", lr=0.2, **base)
    assert len(result.fit.history) < 9
    assert_same(rows[1], result, rtol=1e-3)


def test_a_diverged_lane_leaves_its_neighbours_alone(corpus_path, tmp_path):
    rows = sweep(
        sweeping(corpus_path, tmp_path / "s", grid=("lr=0.02,1e38",), at_once=2)
    ).rows
    result = alone(rows[0], corpus_path, tmp_path / "alone", lr=0.02)
    assert_same(rows[0], result, rtol=1e-4)


class Stops(Silent):
    """Dies like a killed process, when some runs are through."""

    def chunk(self, done, total, metrics):
        if done == 3:
            raise KeyboardInterrupt


def test_a_sweep_that_was_stopped_goes_on(corpus_path, tmp_path):
    settings = {"grid": ("lr=0.01,0.02,0.03",), "seeds": 2}
    whole = sweep(sweeping(corpus_path, tmp_path / "whole", **settings))
    halved = sweeping(corpus_path, tmp_path / "halved", **settings)
    with pytest.raises(KeyboardInterrupt):
        sweep(halved, Stops())
    table = tmp_path / "halved" / "results.csv"
    assert 2 <= len(table.read_text().splitlines()) - 1 <= 3
    rest = sweep(halved)
    assert 3 <= rest.trained <= 4 and sweep(halved).trained == 0
    timeless = lambda rows: [
        {k: v for k, v in row.items() if k != "steps_per_second"} for row in rows
    ]
    assert timeless(whole.rows) == timeless(rest.rows)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == rest.rows and tuple(rows[0]) == COLUMNS


def test_validation_rows_may_have_a_file_of_their_own(corpus_path, tmp_path):
    lines = corpus_path.read_text().splitlines()
    (tmp_path / "val.jsonl").write_text("\n".join(lines[::4]) + "\n")
    val = {"val": str(tmp_path / "val.jsonl")}
    row = sweep(sweeping(corpus_path, tmp_path / "s", **val)).rows[0]
    result = alone(row, corpus_path, tmp_path / "alone", **val)
    assert len(result.corpus.val_rows) == 9 and len(result.corpus.train_rows) == 36
    assert_same(row, result, rtol=1e-12)


WRONG = {
    "no_such=1": "no such setting: use one of",
    "lr": "write NAME=VALUE,VALUE",
    "lr=": "write NAME=VALUE,VALUE",
    "lr=fast": "lr=fast: Expected `float`",
    "lr=0.01,-1": "--grid, at lr=-1.0: --lr -1: must be",
    "lr=0.01,0.010": "stands there twice",
    "epochs=1.5": "epochs=1.5: Expected `int",
    "pref_noise=gauss": "pref_noise=gauss: Invalid enum value",
    "pref_objective=dpoo": "--pref_objective dpoo: use",
    "pref_objective=orpo,sigmoid pref_beta=1": "--pref_beta: orpo has none",
    "gce_q=0.5,2": "at gce_q=2.0: --gce_q 2: must be in",
    "seed=1,2": "use --seeds",
    "val_split=0.1": "share one corpus",
    "scorer_lr=0.1": "--grid scorer_lr=0.1: a sweep trains no response scorer",
    "device=cpu": "no such setting",
    "lr=0.1 lr=0.2": "lr varies already",
}


@pytest.mark.parametrize("grid", WRONG)
def test_a_wrong_grid_is_one_line(grid, corpus_path, tmp_path, capsys):
    argv = ["sweep", "--data", str(corpus_path), "--output", str(tmp_path / "s")]
    assert main([*argv, "--grid", *grid.split()]) == 2
    assert WRONG[grid] in one_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--runs_at_once", "0"], "--runs_at_once 0: must be at least 1"),
        (["--objectives", "dpoo"], "--pref_objective dpoo"),
        (["--groups", "mean"], "--groups mean: use one of pairwise_mean"),
        (["--meta", "m.json"], "--meta: a sweep writes its figures to results.csv"),
        (["--resume"], "--resume: a sweep goes on by itself"),
        (["--profile"], "--profile: a sweep traces nothing"),
        (["--report_to", "tensorboard"], "--report_to: a sweep logs no epochs"),
        (["--preferences", "p"], "--preferences: a sweep compares classifiers"),
        (["--length_control", "matched"], "--length_control: a sweep compares"),
        (["--weights_meta", "m"], "--weights_meta: a sweep starts from a run"),
        (["--max_candidates_per_bucket", "2"], "a sweep keeps no run to chat with"),
        (["--scorer_epochs", "2"], "--scorer_epochs: a sweep trains no response sco"),
        (["--val_split", "0"], "--val_split 0 leaves nothing to judge"),
        (["--val", "nope.jsonl"], "nope.jsonl"),
        (["--lr", "0"], "--lr 0: must be"),
        (["--weights", "x.pth"], "import_torch"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, message, corpus_path, tmp_path, capsys):
    argv = ["sweep", "--data", str(corpus_path), "--output", str(tmp_path / "s")]
    assert main([*argv, *flags]) == 2
    assert message in one_line(capsys)


def test_a_folder_with_something_else_is_refused(run, corpus_path, tmp_path):
    with pytest.raises(UserError, match="already holds a run"):
        sweep(sweeping(corpus_path, run.run.path))
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="other columns"):
        sweep(sweeping(corpus_path, tmp_path))


def test_the_command_prints_a_table_and_writes_every_setting(
    corpus_path, tmp_path, capsys
):
    argv = ["sweep", "--data", str(corpus_path), "--output", str(tmp_path / "s")]
    argv += ["--seeds", "2", "--grid", "lr=0.0001,0.03", "--epochs", "3"]
    argv += ["--model_size", "base", "--val_split", "0.2", "--batch_size", "8"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "mean +- standard deviation over seeds" in " ".join(out.split())
    assert "4 runs in" in out and "program 1 of 1: 4 runs" in out
    assert out.index("0.03") < out.index("0.0001 ")  # The better one first.
    with (tmp_path / "s" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["lr"] for row in rows} == {"0.0001", "0.03"}
    # Also what the run chose for itself.
    assert rows[0]["pref_beta"] == "2.0" and rows[0]["warmup_steps"] == "0"
    assert set(rows[0]) >= set(RUN_FIELDS) >= {"lr", "seed", "data_seed", "val"}
    assert main(argv) == 0
    assert "nothing new in" in capsys.readouterr().out


def test_settings_of_runs_are_those_of_finetune():
    fields = {field.name for field in dataclasses.fields(FinetuneConfig)}
    assert set(RUN_FIELDS) < fields
    left = fields - set(RUN_FIELDS) - {"output", "device", "meta", "resume"}
    left -= {"compile_cache", "profile", "report_to"}
    left -= {"preferences", "length_control"}
    assert all(name.startswith(("scorer_", "weights_", "max_")) for name in left)


def test_heads_on_frozen_features_train_together(run, corpus_path, tmp_path):
    base = {"weights": str(run.run.path), "frozen_features": True, "pref_weight": 0.5}
    base |= {"pref_objective": "dpo", "ema_decay": 0.5, "logit_adjustment": 0.5}
    config = sweeping(
        corpus_path, tmp_path / "s", grid=("lr=0.01,0.03",), seeds=2, **base
    )
    rows = sweep(config).rows
    result = alone(rows[3], corpus_path, tmp_path / "alone", lr=0.03, **base)
    assert_same(rows[3], result, rtol=1e-12)
    together = dataclasses.replace(config, output=str(tmp_path / "t"), runs_at_once=4)
    assert_same(sweep(together).rows[3], result, rtol=1e-4)


def test_frozen_features_are_those_of_the_encoder_and_stay(run, corpus_path, tmp_path):
    base = {"weights": str(run.run.path), "epochs": 2}
    result = finetune(quick(corpus_path, tmp_path / "a", frozen_features=True, **base))
    (model, params), (_, source) = map(load_model, (result.run, run.run))
    assert np.array_equal(params["encoder"]["table"], source["encoder"]["table"])
    assert (params["head"]["base"]["kernel"] != source["head"]["base"]["kernel"]).any()
    # The run that is saved, with its encoder, gives the figures of the head alone.
    val = result.corpus.val
    found = score(predict(model, params, val.ids, val.weights), val.labels)
    best = result.fit.history[result.fit.best_epoch - 1]
    np.testing.assert_allclose(found["loss"], best["eval_loss"], rtol=1e-5)
    # Without dropout another head comes out.
    dropped = finetune(quick(corpus_path, tmp_path / "b", **base))
    assert dropped.fit.history[0]["loss"] != result.fit.history[0]["loss"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"user": "a b", "label": "pizza"}', "val.jsonl:1: label 'pizza' is not one"),
        ('{"user": "a b", "assistant": "Yes."}', "val.jsonl:1: label no label is not"),
        ('{"user": "a b", "label": "oos"}', "val.jsonl: all rows are out of scope"),
    ],
)
def test_validation_rows_that_do_not_fit_are_one_line(
    rows, message, corpus_path, tmp_path, capsys
):
    (tmp_path / "val.jsonl").write_text(rows + "\n")
    argv = ["--data", str(corpus_path), "--val", str(tmp_path / "val.jsonl")]
    for command in ("finetune", "sweep"):
        assert main([command, *argv, "--output", str(tmp_path / command)]) == 2
        assert message in one_line(capsys)
        assert not (tmp_path / command).exists()


def test_clusters_have_no_validation_rows_of_their_own(corpus_path, tmp_path, capsys):
    lines = [json.loads(line) for line in corpus_path.read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text(
        "".join(
            json.dumps({"user": row["user"], "assistant": row["assistant"]}) + "\n"
            for row in lines
        )
    )
    argv = ["finetune", "--data", str(bare), "--val", str(corpus_path)]
    assert main([*argv, "--output", str(tmp_path / "run")]) == 2
    assert "the corpus has no labels" in one_line(capsys)
