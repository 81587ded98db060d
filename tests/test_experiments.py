"""The experiments, small: their figures come out again by other means."""

import csv
import json
import types

import jax
import numpy as np
import pytest

from experiments import (
    compare_losses,
    ema_accumulation,
    group_estimators,
    heads,
    label_noise,
    length_bias,
    preferences,
    results,
)
from experiments.epochs import epochs, read_corpus
from experiments.trials import difference, run_trials
from prefchat_jax.evaluation.metrics import crossed_bootstrap
from prefchat_jax.finetune import Silent, finetune
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.steps import predict

WORDS = ("parcel", "refund", "invoice", "umbrella", "password", "museum")


def rows(count, first=0):
    """Questions of six classes that share no word but fillers."""
    return [
        {
            "user": f"my {WORDS[i % 6]} {WORDS[i % 6]}s number {first + i} please",
            "label": WORDS[i % 6],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set: train.jsonl and val.jsonl."""
    path = tmp_path_factory.mktemp("planted")
    for name, made in (("train", rows(120)), ("val", rows(48, first=500))):
        lines = (json.dumps(row) + "\n" for row in made)
        (path / f"{name}.jsonl").write_text("".join(lines))
    return path


SMALL = {"epochs": 2, "model_size": "base", "pref_weight": 0.0}


def test_a_trial_is_that_run_of_finetune_at_its_last_epoch(folder, tmp_path):
    trials = run_trials(str(folder), {"one": SMALL, "other": SMALL | {"lr": 1e-3}}, 2)
    config = FinetuneConfig(
        data=str(folder / "train.jsonl"),
        val=str(folder / "val.jsonl"),
        output=str(tmp_path),
        seed=1,
        data_seed=0,
        scorer_epochs=0,
        **SMALL,
    )
    result = finetune(config)
    last = result.fit.history[-1]
    outcome = trials["one"].outcomes[1]
    assert outcome.history[-1]["eval_loss"] == pytest.approx(last["eval_loss"], 1e-9)
    assert trials["one"].correct()[1].mean() == last["eval_accuracy"]
    mean, low, high = difference(trials["one"], trials["other"])
    both = [trials[name].correct() for name in ("one", "other")]
    assert mean == pytest.approx(both[0].mean() - both[1].mean())
    assert low <= mean <= high
    if result.fit.best_epoch == len(result.fit.history):
        val = result.corpus.val
        logits = predict(*load_model(result.run), val.ids, val.weights)
        np.testing.assert_array_equal(outcome.last.predicted, logits.argmax(axis=-1))


def test_a_planted_label_is_what_a_run_learns(folder):
    turned = lambda name, seed, labels: (labels + 1) % 6 if name == "turned" else labels
    plain = SMALL | {"epochs": 12}
    trials = run_trials(str(folder), {"right": plain, "turned": plain}, 1, plant=turned)
    assert trials["right"].correct().mean() == 1.0
    found = trials["turned"].outcomes[0].last.predicted
    np.testing.assert_array_equal(found, (trials["turned"].labels + 1) % 6)


def test_the_crossed_bootstrap_knows_both_sources_of_luck():
    rng = np.random.default_rng(0)
    seeds, items = rng.normal(0, 3, (6, 1)), rng.normal(0, 1, (1, 400))
    for values, sd in (
        (np.broadcast_to(items, (6, 400)), items.std() / 20),
        (np.broadcast_to(seeds, (6, 400)), seeds.std() / 6**0.5),
        (
            seeds + items,
            (items.std() ** 2 / 400 + seeds.std() ** 2 / 6) ** 0.5,
        ),
    ):
        low, high = crossed_bootstrap(values)
        assert high - low == pytest.approx(2 * 1.96 * sd, rel=0.12)
        assert low < values.mean() < high
    assert np.isnan(crossed_bootstrap(np.zeros((0, 4)))).all()


@pytest.mark.parametrize("kind", label_noise.KINDS)
def test_flips_are_as_many_and_as_wrong_as_planted(kind):
    labels = np.arange(60_000) % 10
    rate = np.where(labels < 5, 0.1, 0.4)
    flipped = label_noise.flip(labels, rate, kind, seed=3)
    wrong = flipped != labels
    assert wrong[labels < 5].mean() == pytest.approx(0.1, abs=0.006)
    assert wrong[labels >= 5].mean() == pytest.approx(0.4, abs=0.01)
    steps = (flipped - labels)[wrong] % 10
    if kind == "symmetric":
        counts = np.bincount(steps, minlength=10)[1:] / len(steps)
        np.testing.assert_allclose(counts, 1 / 9, atol=0.01)
    else:
        assert set(steps) == {1}
    assert (label_noise.flip(labels, 0.0, kind, seed=3) == labels).all()


def test_compare_losses_ranks_what_it_trained_and_writes_it_down(folder, tmp_path):
    config = compare_losses.Config(
        data=(str(folder),),
        objectives=("simpo",),
        groups=("epo",),
        seeds=2,
        epochs=1,
        output=str(tmp_path),
    )
    result = compare_losses.EXPERIMENT.answer(config, root=str(folder.parent))
    names = ["cross-entropy alone", "simpo", "simpo, epo"]
    assert [row["objective"] for row in result["rows"]] == names
    assert len({row["cross_entropy"] for row in result["rows"]}) == 3
    assert result["rows"][0]["difference"] == (0.0, 0.0, 0.0)
    written = json.loads((tmp_path / "compare_losses.json").read_text())
    assert written["command"].startswith(
        f"python -m experiments.compare_losses --data {folder.name} --objectives simpo"
    )
    with (tmp_path / "compare_losses.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["accuracy_low"]) for row in table] == [
        row["accuracy"][1] for row in written["rows"]
    ]
    assert (tmp_path / "compare_losses.png").stat().st_size < 60_000
    [shown] = compare_losses.tables(written)
    assert len(shown.cells) == 3


def test_label_noise_tells_accuracies_and_reliabilities(folder, monkeypatch):
    few = (label_noise.CE, label_noise.RE_PO)
    losses = label_noise.losses
    fewer = lambda rate: {name: losses(rate)[name] for name in few}
    monkeypatch.setattr(label_noise, "losses", fewer)
    config = label_noise.Config(data=str(folder), rates=(0.0, 0.4), epochs=1, seeds=1)
    result = label_noise.run(config, Silent())
    assert len(result["rows"]) == 3 * len(few)
    named = {row["source"]: row["planted"] for row in result["sources"]}
    assert named == label_noise.ANNOTATORS
    learned = [row["learned"][0] for row in result["sources"]]
    assert all(0.5 <= value <= 0.95 for value in learned) and len(set(learned)) > 1
    for table in label_noise.tables(result):
        assert all(len(cells) == len(table.columns) for cells in table.cells)
    assert label_noise.draw(result).axes[0].get_xlabel() == "wrong training labels, %"


def test_twins_are_halves_of_a_class_and_either_of_them_is_right(folder, tmp_path):
    group_estimators.write_twins(str(folder), tmp_path)
    for part, each in (("train", 10), ("val", 4)):
        texts = [(path / f"{part}.jsonl").read_text() for path in (folder, tmp_path)]
        old, new = (
            [json.loads(line) for line in text.split("\n")[:-1]] for text in texts
        )
        assert [row["user"] for row in old] == [row["user"] for row in new]
        twins = np.array([row["label"] for row in new])
        names = [sorted(WORDS)[label // 2] for label in twins]
        assert names == [row["label"] for row in old]
        assert np.bincount(twins).tolist() == [each] * 12
        assert (twins[1:] != (twins[:-1] + 1) % 12).any()  # At random, not by turns.


def test_group_estimators_differ_where_there_are_many_negatives(folder):
    config = group_estimators.Config(
        data=str(folder),
        estimators=("hardest", "mean_reward"),
        group_sizes=(4,),
        hard_ratios=(0.6,),
        margins=(),
        epochs=12,
        seeds=1,
    )
    result = group_estimators.run(config, Silent())
    for labels, best in ((group_estimators.PLAIN, 1.0), (group_estimators.TWINS, 0.5)):
        rows = [row for row in result["rows"] if row["labels"] == labels]
        assert [row["size"] for row in rows] == [0, 4, 4]
        assert len({row["cross_entropy"] for row in rows}) == 3
        # Words tell the class, and nothing tells the twin.
        assert all(row["accuracy"][0] == 1.0 for row in rows)
        assert all(row["cross_entropy"] > -np.log(best) for row in rows)
    for table in group_estimators.tables(result)[:4]:
        assert [len(cells) for cells in table.cells] == [2, 2]


def test_dead_branches_never_move_and_are_worth_nothing(folder):
    config = heads.Config(
        data=str(folder), sizes=("xlarge",), widths=(), epochs=2, seeds=1
    )
    result = heads.run(config, Silent())
    base, live, dead = result["rows"]
    size = 64 * (768 + 1536) + 6 * (768 + 1536) + 2 * 64 + 2 + 2
    assert live["added"] == dead["added"] == size
    assert live["parameters"] - base["parameters"] == size
    assert dead["moved"] == 0.0 and live["moved"] > 0.9
    assert dead["difference"] == (0.0, 0.0, 0.0)
    [table] = heads.tables(result)
    assert [cells[5] for cells in table.cells] == ["", f"{live['moved']:.1%}", "0.0%"]
    assert heads.draw(result).axes[0].get_yticks().tolist() == [0, 1]
    corpus = read_corpus(str(folder), Silent())
    logits = []
    for flags, start in (
        ({"model_size": "base"}, lambda params: params),
        ({"model_size": "xlarge"}, lambda params: params),
        ({"model_size": "xlarge"}, heads.deaden),
    ):
        flags |= {"epochs": 2, "weight_decay": 0.0}  # As compiled above.
        *_, last = epochs(corpus, flags, start=start)
        val = corpus.val
        params = last.state.params
        logits.append(predict(last.recipe.model, params, val.ids, val.weights))
    np.testing.assert_allclose(logits[2], logits[0], atol=1e-5)
    assert np.abs(logits[1] - logits[0]).max() > 0.01


def test_an_uncorrected_average_starts_at_the_initial_weights(folder):
    corpus = read_corpus(str(folder), Silent())
    flags = SMALL | {"batch_size": 120, "epochs": 4, "ema_decay": 0.9}  # 4 steps.
    run = epochs(corpus, flags)
    initial = jax.tree.map(np.array, next(run).state.params)
    shadow = jax.tree.map(np.float64, initial)
    for epoch in run:
        now = jax.tree.map(np.array, epoch.state.params)
        shadow = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, shadow, now)
    found = ema_accumulation.uncorrected(epoch, initial)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    jax.tree.map(close, found, shadow)
    assert ema_accumulation.largest(found, now) > 1e-3


def test_ema_and_accumulation_are_told_of_one_run(folder):
    config = ema_accumulation.Config(
        data=str(folder),
        decays=(0.999,),
        parts=(1, 3),
        batch_size=24,
        epochs=2,
        seeds=1,
    )
    result = ema_accumulation.run(config, Silent())
    raw, corrected, uncorrected, whole, parts = result["rows"]
    assert raw["accuracy"][0] == corrected["accuracy"][0] > uncorrected["accuracy"][0]
    assert uncorrected["initial_left"] == pytest.approx(0.999**10)
    assert whole["apart"] == 0 < parts["apart"] < 0.01 * parts["moved"]
    for table in ema_accumulation.tables(result):
        assert all(len(cells) == len(table.columns) for cells in table.cells)
    axes = ema_accumulation.draw(result).axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[5, 10]] * 3


def test_length_bias_judges_what_tuning_added_by_length(tmp_path, monkeypatch):
    """In three quarters of the pairs the longer reply is chosen; scores are planted."""
    longer, pair = [i % 4 > 0 for i in range(40)], ("a long reply", "short")
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {"prompt": f"p {i}", "chosen": pair[not up], "rejected": pair[up]}
            )
            + "\n"
            for i, up in enumerate(longer)
        )
    )
    before = np.random.default_rng(0).integers(-9, 9, 40)  # Exact, for ties.
    added = {"before tuning": 0.0, "none": np.where(longer, 2.0, -1.0)}
    added |= {"matched": 1.0, "projected": np.where(np.arange(40) < 30, 1.0, -1.0)}
    asked = {}

    def scorers(pairs, named, flip):
        assert flip is None and len(pairs) == 40
        asked.update(named)
        for part in (np.arange(0, 40, 2), np.arange(1, 40, 2)):
            fold = types.SimpleNamespace(test=part.tolist(), numbers=part)
            yield from ((fold, name, name, {}) for name in named)

    margins = lambda fold, name: (before + added[name])[fold.numbers]
    monkeypatch.setattr(preferences, "scorers", scorers)
    monkeypatch.setattr(preferences, "margins", margins)
    result = length_bias.run(length_bias.Config(data=(str(path),)), Silent())
    told = {row["length_control"]: row for row in result["rows"]}
    accuracy = {name: row["accuracy"][0] for name, row in told.items()}
    rule = "the longer reply"
    assert accuracy == {rule: 0.75, "none": 0.75, "matched": 1.0, "projected": 0.75}
    assert told["none"]["matched_pairs"] == 20
    assert told["none"]["matched_accuracy"][0] == told[rule]["matched_accuracy"][0]
    assert told["none"]["matched_accuracy"][0] == 0.5
    assert told["none"]["length_correlation"] == pytest.approx(1.0)
    assert told["matched"]["difference"][0] == pytest.approx(0.25)
    assert asked["before tuning"] is None
    assert {
        name: flags["length_control"] for name, flags in asked.items() if flags
    } == {name: name for name in length_bias.CONTROLS}
    [table] = length_bias.tables(result)
    assert all(len(cells) == len(table.columns) for cells in table.cells)
    assert len(length_bias.draw(result).axes[0].get_yticks()) == 8


def test_the_page_has_every_experiment_that_was_run(folder, tmp_path, monkeypatch):
    small = lambda **given: compare_losses.Config(
        objectives=("sigmoid",), seeds=1, epochs=1, **given
    )
    experiment = compare_losses.EXPERIMENT._replace(config=small)
    monkeypatch.setattr(results, "RUNS", ((experiment, {"data": (folder.name,)}),))
    config = results.Config(data=str(folder.parent), docs=str(tmp_path))
    results.run(config)
    page = (tmp_path / "results.md").read_text()
    assert (
        f"## {experiment.question}" in page and "](results/compare_losses.png)" in page
    )
    assert "| sigmoid |" in page and "cross-entropy alone" in page
    (tmp_path / "results.md").unlink()
    results.run(results.Config(data="nowhere", docs=str(tmp_path), only=()))
    assert (tmp_path / "results.md").read_text() == page  # Without running anything.


def test_wrong_settings_are_one_line(folder, tmp_path, capsys):
    data = ["--data", str(folder)]
    for main, argv, said in (
        (results.main, ["--data", "x", "--only", "nothing"], "--only nothing"),
        (compare_losses.EXPERIMENT.main, ["--data", str(tmp_path)], "train.jsonl"),
        (compare_losses.EXPERIMENT.main, [*data, "--noises", "x"], "--noises x"),
        (compare_losses.EXPERIMENT.main, [*data, "--seeds", "0"], "--seeds 0"),
        (label_noise.EXPERIMENT.main, [*data, "--rates", "0", "1.5"], "--rates 1.5"),
        (label_noise.EXPERIMENT.main, [*data, "--rates", "0.5"], "--rates: give 0"),
        (
            compare_losses.EXPERIMENT.main,
            ["--data", str(folder), "--seed", "3"],
            "--seed",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in error and error.startswith("error: ")
