"""The experiment and the benchmark run, small."""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest

from benchmarks import chat as chat_benchmark
from benchmarks import datasets as builder_benchmark
from benchmarks import processes, timing
from benchmarks import retrieval as retrieval_benchmark
from benchmarks import serving as serving_benchmark
from experiments import (
    cleaning,
    follow_ups,
    intents,
    preferences,
    retrieval,
    stages,
    thumbs,
    warm_start,
)
from prefchat_jax.building.filters import Limits, exchange_of, objection
from prefchat_jax.datasets.records import read_pairs, read_records
from prefchat_jax.errors import UserError

NO, ROWS = "nowhere", "{rows}"
WRONG_PATHS = [
    (cleaning, ["--data", NO, "--val", NO]),
    (follow_ups, ["--weights", NO, "--data", ROWS]),
    (intents, ["--folder", NO]),
    (preferences, ["--data", NO]),
    (retrieval, ["--data", NO]),
    (stages, ["--weights", NO, "--data", NO]),
    (stages, ["--weights", NO, "--data", ROWS]),
    (thumbs, ["--data", NO, "--val", ROWS]),
    (thumbs, ["--data", ROWS, "--val", NO]),
    (warm_start, ["--weights", NO, "--data", ROWS, "--val", ROWS]),
]


@pytest.mark.parametrize(("experiment", "argv"), WRONG_PATHS)
def test_a_wrong_path_is_one_line(experiment, argv, corpus_path, capsys):
    argv = [word.format(rows=corpus_path) for word in argv]
    with pytest.raises(SystemExit) as stop:
        experiment.main(argv)
    told = capsys.readouterr()
    assert stop.value.code == 2 and not told.out
    assert re.fullmatch(r"error: .*nowhere.*\n", told.err)


def test_a_warm_start_is_compared_with_none(run, corpus_path, monkeypatch):
    weights, data = str(run.run.path), str(corpus_path)
    small = {"model_size": "base", "epochs": 3}
    variants = {"from scratch": small, "warm": small | {"weights": weights}}
    monkeypatch.setattr(warm_start, "variants", lambda weights: variants)
    scratch, warm = warm_start.run(weights, data, data, seeds=1)
    assert scratch["epochs_to_scratch"][0] >= warm["epochs_to_scratch"][0] == 1
    assert warm["start_off"] < 1e-5 and warm["loss"][0] < scratch["loss"][0]


def test_thumbs_become_pairs_and_their_questions_are_stored(corpus_path, monkeypatch):
    tuned = []

    def tune(first, prefs, data, output, **changes):
        pairs = read_pairs([prefs]).pairs
        assert all(pair.chosen.startswith("This is the answer") for pair in pairs)
        tuned.append((len(pairs), changes["pref_weight"]))
        original(first, prefs, data, output, **changes)

    original = thumbs.tune
    monkeypatch.setattr(thumbs, "tune", tune)
    data = str(corpus_path)
    args = argparse.Namespace(data=data, val=data, shots=3, pairs=12, seeds=1)
    rows = thumbs.run(args, model_size="base", epochs=2, val_split=0.0)
    assert tuned == [(12, weight) for weight in thumbs.WEIGHTS.values()]
    assert rows[0]["system"] == thumbs.FIRST and len(rows) == 7
    right = {row["system"]: row["right"][0] for row in rows}
    assert rows[0]["gain"] == 0 and right["questions stored"] >= right[thumbs.FIRST]


def test_the_builder_is_timed_and_finds_what_was_planted():
    rows = builder_benchmark.run(3000, 1, 1, [])
    ways = {row["way"]: row for row in rows}
    assert list(ways)[1:] == ["exact alone", "exact, filters", "near, filters"]
    for row in rows:
        assert row["rows"] == 3000 and row["rows_per_second"] > 0
        assert row["exact_found"] == 1 and row["precision"] == 1
    assert ways["near, filters"]["near_found"] > 0.98
    assert ways["near, filters"]["unlike_dropped"] == 0
    assert ways["near, filters"]["peak_mb"] > 10


def test_the_server_is_timed(run, corpus_path, capsys):
    argv = ["--weights", str(run.run.path), "--data", str(corpus_path), "--json"]
    argv += ["--quick", "--device", "cpu", "--max_batch", "1", "3"]
    serving_benchmark.main(argv)
    single, batched = map(json.loads, capsys.readouterr().out.splitlines())
    assert single["mean_batch"] == 1 < batched["mean_batch"] <= 3
    for row in (single, batched):
        assert row["errors"] == row["exit_code"] == 0
        assert 0 < row["p50_ms"] <= row["p99_ms"] and row["replies_per_second"] > 3
        assert 0 < row["client_cpu_ms"] < row["server_cpu_ms"]


@pytest.fixture
def asked(run, corpus_path, monkeypatch):
    """Flags of a benchmark that fills a database, from the folder it is run in."""
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    argv = ["--weights", str(run.run.path), "--data", str(corpus_path), "--json"]
    argv += ["--rows", "50", "200", "--messages", "5", "--seconds", "0.02"]
    return [*argv, "--device", "cpu"]


def test_replies_are_timed_without_jax(asked, capsys):
    chat_benchmark.main(asked)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rows"] for row in rows] == [50, 200]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p99_ms"] and row["load_seconds"] > 0
        assert row["replies"] >= 5 and row["threads"] > 0
    held = processes.in_process("benchmarks.processes:peak_memory") / 1e6
    assert held < rows[0]["resident_mb"] < held + 90  # JAX is more than that.


def test_databases_are_built_and_searched(asked, capsys):
    retrieval_benchmark.main(asked)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    builds, searches = rows[:2], rows[2:]
    assert [(row["rows"], row["entries"]) for row in builds] == [(50, 50), (200, 200)]
    for row in builds:
        assert row["database_bytes"] > row["text_bytes"] > 10
        assert row["index_bytes"] > 10 and row["build_rows_per_second"] > 0
    peers = ["bm25s"] * (importlib.util.find_spec("bm25s") is not None)
    ways = ["words of a chat", "FTS5 of the database", *peers]
    assert [row["way"] for row in searches] == 2 * ways
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in searches)


@pytest.mark.parametrize("benchmark", [chat_benchmark, retrieval_benchmark])
def test_rows_without_a_reply_are_one_line(benchmark, asked, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"user": "hello", "label": "a"}\n')
    with pytest.raises(SystemExit) as stop:
        timing.command(lambda: benchmark.main([*asked, "--data", str(path)]))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"error: --data {path}: no row has a reply."


def test_the_builder_is_timed_by_its_command(capsys):
    builder_benchmark.main(["--quick", "--json", "--device", "cpu", "--workers", "1"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4 and {row["rows"] for row in rows} == {2000}
    assert all(row["seconds"] > 0 and row["threads"] > 0 for row in rows)


def test_cleaning_takes_the_noise_away(corpus_path, examples):
    bad = cleaning.bad_exchanges(examples, 64)
    assert all(objection(exchange_of(row), Limits()) for row in bad)
    config = cleaning.Config(
        data=str(corpus_path), val=str(corpus_path), seeds=1, epochs=1
    )
    clean, noisy, cleaned = cleaning.run(config)
    assert (clean["rows"], noisy["rows"]) == (36, 54)
    assert 4 < cleaned["rows"] <= 36  # Near-duplicates of the clean rows go, too.
    assert 0 <= cleaned["one_of_100"][0] <= 1 and "right" in cleaned
    with pytest.raises(UserError, match="--data needs --val"):
        cleaning.run(dataclasses.replace(config, val=None))


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
    right = [str(row.label) for row in read_records([folder / "val.jsonl"]).examples]
    assert (predicted == right).mean() > 0.91


def test_each_stage_of_a_reply_is_measured(run, examples):
    found = stages.run(str(run.run.path), examples)
    assert list(found) == [
        *stages.STAGES,
        "+ style",
        "+ memory",
        "+ temperature 0.08",
        "defaults, refusals and all",
    ]
    # The corpus has a reply for each telling word: all stages find nearly all.
    assert 0.8 < found["words"] <= 1 and 0.9 < found["+ scorer"] <= 1
    wrong = [row._replace(response="Nobody says this.") for row in examples]
    assert set(stages.run(str(run.run.path), wrong).values()) == {0.0}


def test_preferences_are_judged_by_folds(tmp_path, monkeypatch):
    """Each pair once, by a scorer that trained on other prompts; wrong labels hurt."""
    lines = [
        {
            "prompt": f"where is the {word} {i}",
            "chosen": f"Gladly: the {word} {i} is here.",
            "rejected": f"Never the {word} {i}, go away.",
        }
        for i in range(20)
        for word in ("parcel", "refund", "login")
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(preferences, "FOLDS", 2)
    monkeypatch.setattr(preferences, "first_of_100", lambda fold, params: np.zeros(1))
    named = {"RE-PO": {"pref_objective": "dpo", "pref_noise": "re_po", "epochs": 2}}
    monkeypatch.setattr(preferences, "variants", lambda objectives, flip: named)
    before, tuned = preferences.run(str(path), ("dpo",), flip=0.4)
    assert before["variant"] == preferences.START and before["pairs"] == 60
    assert before["longer"] == 1.0 and before["reliability"] == {}
    assert tuned["reliability"].keys() == {"careful", "careless"}
    assert tuned["accuracy"] != before["accuracy"] and len(preferences.shown([tuned]))
    pairs = read_pairs([path]).pairs
    wrong = [
        noisy.annotator
        for noisy, pair in zip(preferences.flipped(pairs, 0.4), pairs, strict=True)
        if noisy.chosen != pair.chosen
    ]
    assert set(wrong) == {"careless"} and 15 < len(wrong) < 33
