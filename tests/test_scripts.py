"""The experiment and the benchmark run, small."""

import json

import pytest

from benchmarks import losses as benchmark
from experiments import compare_losses
from prefchat_jax.training import objective


@pytest.fixture
def one_objective(monkeypatch):
    """Two groups of one objective say as much as those of all, in half the time."""
    one = {"sigmoid": objective.LINKS["sigmoid"]}
    monkeypatch.setattr(objective, "LINKS", one)
    monkeypatch.setattr(compare_losses, "LINKS", one)


def test_compare_losses_prints_a_row_for_each_variant(corpus_path, one_objective):
    config = compare_losses.Config(
        data=str(corpus_path), seeds=1, epochs=1, val_split=0.2, model_size="base"
    )
    rows = compare_losses.run(config)
    assert [row["variant"] for row in rows] == [
        "cross-entropy alone",
        "sigmoid / pairwise_mean",
        "sigmoid / epo",
    ]
    assert rows[0]["difference"] == 0.0
    assert len({row["cross_entropy"] for row in rows}) == 3


def test_the_benchmark_times_every_variant(capsys, one_objective):
    benchmark.main(["--quick", "--repeats", "3", "--json", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert row["compile_seconds"] > 0
        assert row["forward_us"] > 0 and row["forward_backward_us"] > 0


@pytest.mark.slow
def test_the_linear_svm_is_the_published_one(shared):
    from experiments.intents import svm_predictions

    predicted, right = svm_predictions(shared / "data" / "intents" / "banking77")
    assert (predicted == right).mean() == pytest.approx(0.915, abs=0.005)


@pytest.mark.slow
def test_the_default_recipe_matches_it_on_banking77(shared):
    from experiments.intents import our_predictions

    folder = shared / "data" / "intents" / "banking77"
    predicted, _, _ = our_predictions(folder, 0)
    from prefchat_jax.datasets.records import read_records

    right = [str(row.label) for row in read_records([folder / "val.jsonl"]).examples]
    assert (predicted == right).mean() > 0.91
