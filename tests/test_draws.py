"""Experiments on draws of a corpus: who is drawn, and how that is judged."""

import collections
import json
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

from experiments import class_imbalance, draws, few_shot
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import Silent

WORDS = {
    "parcel": "where is my parcel {}",
    "refund": "give my money {} back",
    "hours": "when do you open on {}",
    "joke": "tell me a joke about {}",
}


def _write(path, rows, first=0):
    lines = [
        {"user": question.format(f"x{i}"), "label": label}
        for label, question in WORDS.items()
        for i in range(first, first + rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Four classes that one word tells apart, 20 rows each."""
    folder = tmp_path_factory.mktemp("planted")
    _write(folder / "train.jsonl", 20)
    _write(folder / "val.jsonl", 5, first=20)
    return folder


@pytest.fixture
def seen(monkeypatch):
    """Labels of the rows that each draw trains on, and nothing trains."""
    drawn = []

    def look(data, settings, seeds, **_):
        text = pathlib.Path(data, "train.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        assert len({row["user"] for row in rows}) == len(rows)
        drawn.append(collections.Counter(row["label"] for row in rows))
        return {}

    monkeypatch.setattr(draws, "run_trials", look)
    return drawn


def test_a_draw_takes_of_each_class_what_is_asked(rng):
    classes = rng.integers(0, 5, 200)
    sizes = np.array([3, 0, 1, 7, 12])
    rows = draws.choose(classes, sizes, 0)
    assert len(set(rows.tolist())) == len(rows)
    assert collections.Counter(classes[rows].tolist()) == {0: 3, 2: 1, 3: 7, 4: 12}
    assert np.array_equal(rows, draws.choose(classes, sizes, 0))
    assert not np.array_equal(rows, draws.choose(classes, sizes, 1))
    assert set(rows) < set(draws.choose(classes, sizes + 2, 0))
    every = np.bincount(classes)
    assert np.array_equal(draws.choose(classes, every, 0), np.arange(200))


@pytest.mark.parametrize("ratio", [1.0, 10.0, 100.0])
def test_class_sizes_fall_exponentially(ratio):
    counts = np.array([80, 100, 50, 90, 70])
    sizes = class_imbalance.long_tail(counts, 3, ratio=ratio)
    expected = [max(1, round(50 / ratio ** (k / 4))) for k in range(5)]
    assert sorted(sizes, reverse=True) == expected
    orders = {tuple(class_imbalance.long_tail(counts, s, ratio=100)) for s in range(9)}
    assert len(orders) > 5


def test_each_imbalance_trains_on_its_own_long_tail(planted, seen):
    sizes = lambda counts, seed: class_imbalance.long_tail(counts, seed, ratio=20)
    draws.run_draws(str(planted), sizes, {}, 6, progress=Silent())
    # 20 / 20**(k / 3).
    assert all(sorted(counts.values()) == [1, 3, 7, 20] for counts in seen)
    assert len({max(counts, key=counts.get) for counts in seen}) > 1


def test_few_shots_are_as_many_of_each_class(planted, seen):
    sizes = lambda counts, seed: np.full(len(counts), 3)
    draws.run_draws(str(planted), sizes, {}, 2, progress=Silent())
    assert seen == [dict.fromkeys(WORDS, 3)] * 2


def test_figures_are_means_over_draws_with_paired_differences():
    right = np.array([0, 0, 1, 1])
    ours = draws.Scores.of([(np.array([0, 0, 1, 0]), right), (right, right)])
    theirs = draws.Scores.of([(np.array([0, 1, 1, 0]), right), (1 - right, right)])
    # F1 of both classes: of the first draw 4/5 and 2/3, then 1; theirs 1/2, then 0.
    gaps = np.array([(4 / 5 + 2 / 3) / 2 - 1 / 2, 1.0])
    found = ours.figures(theirs)
    assert found["accuracy"][0] == 7 / 8
    assert found["accuracy_difference"][0] == 7 / 8 - 1 / 4
    low, high = stats.t.interval(0.95, 1, gaps.mean(), stats.sem(gaps))
    np.testing.assert_allclose(found["macro_f1_difference"], (gaps.mean(), low, high))
    same = ours.figures(ours)
    assert same["accuracy_difference"] == same["macro_f1_difference"] == (0, 0, 0)


def test_imbalance_has_a_row_for_each_ratio_and_remedy(planted, monkeypatch, tmp_path):
    small = {name: {**flags, "model_size": "base"} for name, flags in REMEDIES.items()}
    monkeypatch.setattr(class_imbalance, "REMEDIES", small)
    config = class_imbalance.Config(
        data=str(planted), ratios=(20.0,), seeds=2, epochs=3, output=str(tmp_path)
    )
    result = class_imbalance.EXPERIMENT.answer(config)
    f1 = {row["system"]: row["macro_f1"][0] for row in result["rows"]}
    assert list(f1) == [*REMEDIES, *(f"{name} + preference" for name in REMEDIES)]
    # After a few steps the largest class is said of all, where nothing is done.
    assert f1["logit adjustment"] > f1["cross-entropy"]
    assert f1["balanced sampling"] > f1["cross-entropy"]
    (table,) = class_imbalance.tables(result)
    assert len(table.cells) == 6 and len(table.cells[0]) == len(table.columns)
    written = class_imbalance.EXPERIMENT.result(tmp_path)
    assert [row["macro_f1"][0] for row in written["rows"]] == list(f1.values())
    assert (tmp_path / "class_imbalance.png").stat().st_size > 5_000


REMEDIES = class_imbalance.REMEDIES


def test_few_shot_has_a_row_for_each_system(planted, monkeypatch):
    pytest.importorskip("sklearn")
    small = {name: {**f, "model_size": "base"} for name, f in few_shot.LOSSES.items()}
    monkeypatch.setattr(few_shot, "LOSSES", small)
    config = few_shot.Config(data=(str(planted),), shots=(4,), seeds=2, epochs=6)
    result = few_shot.run(config, Silent())
    accuracy = {row["system"]: row["accuracy"][0] for row in result["rows"]}
    assert list(accuracy) == [*few_shot.LOSSES, "linear SVM"]
    # One word tells the classes apart.
    assert min(accuracy.values()) > 0.9
    (table,) = few_shot.tables(result)
    assert "4 examples a class" in table.title and table.cells[0][2] == ""
    assert few_shot.draw(result).axes[0].get_xlabel() == "examples a class"


def test_without_scikit_learn_it_is_one_line(planted, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(UserError, match=r"pip install 'prefchat-jax\[experiments\]'"):
        few_shot.svm_predictions(planted)


@pytest.mark.parametrize(
    ("experiment", "flags", "message"),
    [
        (
            few_shot,
            ["--shots", "21"],
            "class hours has 20 rows, and 21 are to be",
        ),
        (few_shot, ["--shots", "5", "0"], "--shots 0: must be at least 1"),
        (few_shot, ["--seeds", "0"], "--seeds 0: must be at least 1"),
        (class_imbalance, ["--ratios", "0.5"], "--ratios 0.5: must be at least 1"),
        (class_imbalance, ["--epochs", "0"], "--epochs 0: must be at least 1"),
        (class_imbalance, ["--data", "x.jsonl"], "x.jsonl has no train.jsonl"),
    ],
)
def test_a_wrong_setting_is_one_line(experiment, flags, message, planted, capsys):
    with pytest.raises(SystemExit) as stop:
        data = [] if "--data" in flags else ["--data", str(planted)]
        experiment.EXPERIMENT.main([*data, *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
