"""The experiment and the benchmark run, small."""

import dataclasses

import pytest

from benchmarks import losses as benchmark
from experiments import compare_losses
from prefchat_jax.errors import UserError


def test_compare_losses_prints_a_row_for_each_variant(corpus_path):
    config = compare_losses.Config(
        data=str(corpus_path),
        val=str(corpus_path),
        flip=0.9,
        objectives=("simpo",),
        groups=("epo",),
        noises=("none", "re_po"),
        seeds=1,
        epochs=1,
        val_split=0.2,
        model_size="base",
    )
    rows = compare_losses.run(config)
    assert [row["variant"] for row in rows] == [
        "cross-entropy alone",
        "simpo",
        "simpo / epo",
        "simpo / re_po",
    ]
    assert rows[0]["difference"][0] == 0.0
    assert len({row["cross_entropy"] for row in rows}) == 4
    assert {"careful", "careless"} <= set(rows[-1]["reliability"])
    with pytest.raises(UserError, match="--flip needs --val"):
        compare_losses.run(dataclasses.replace(config, val=None))


def test_the_benchmark_times_every_variant(capsys):
    rows = benchmark.run([(32, 5, 2)], 3, ["sigmoid", "ipo"], ["epo"])
    assert [(row["objective"], row["group"]) for row in rows] == [
        ("sigmoid", "pairwise_mean"),
        ("ipo", "pairwise_mean"),
        ("sigmoid", "epo"),
    ]
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
