"""The harness of the benchmarks, and that those of losses run."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    champion,
    features,
    growth,
    machine,
    startup,
    sweep,
    timing,
    training,
)
from benchmarks import losses as benchmark
from prefchat_jax.cli import main as cli
from prefchat_jax.errors import UserError
from prefchat_jax.training.catalogue import GROUPS, OBJECTIVES

LIMITS = machine.Ceilings(10.0, 100.0)
KEYS = {
    *("compile_seconds", "median_us", "spread_us", "processor_us", "array_mb"),
    *("examples_per_second", "accessed_mb", "mflop", "limit_us", "limit_fraction"),
    *("copy_fraction", "product_fraction"),
}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install -e '.[peers]'",
)


def test_a_program_is_counted():
    left, right = jnp.ones((64, 32)), jnp.full((32, 16), 2.0)
    program = timing.compile_program(jnp.matmul, left, right)
    assert program.operations == 2 * 64 * 32 * 16
    assert program.array_bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert program.accessed_bytes >= program.array_bytes
    np.testing.assert_array_equal(program.call(), np.full((64, 16), 64.0))


def test_a_state_is_carried_from_call_to_call():
    step = lambda state, by: ((state[0] + by,), 2 * by)
    carried = timing.compile_program(step, (jnp.zeros(3),), jnp.ones(3), carry=True)
    anew = timing.compile_program(step, (jnp.zeros(3),), jnp.ones(3))
    for calls in (1, 2, 3):
        assert float(carried.call()[0][0][0]) == calls
        assert float(anew.call()[0][0][0]) == 1


def test_who_takes_longer_is_measured_turn_by_turn():
    order = []

    def sleeper(name, seconds):
        return lambda: (order.append(name), time.sleep(seconds))

    calls = {"slow": sleeper("slow", 0.02), "fast": sleeper("fast", 0.005)}
    timed = timing.take_turns(calls, seconds=0.05)
    assert order[:4] == ["slow", "slow", "fast", "fast"]  # Warm-up.
    assert order[4:] == ["slow", "fast"] * (len(order[4:]) // 2)
    assert len(timed["slow"].wall) == len(timed["fast"].wall) >= 3
    assert 1.5 < timing.ratio(timed["slow"], timed["fast"]) < 6
    assert np.median(timed["slow"].processor) < 0.01  # It slept.


def test_the_limit_is_the_longer_of_copy_and_product():
    fixed = timing.Timing(np.full(3, 1e-3), np.full(3, 2e-3))
    program = timing.Program(lambda: None, 1.0, 5e6, 6e6, 7e6, 1e6)
    row = timing.figures(program, fixed, LIMITS, examples=100)
    assert row["limit_us"] == pytest.approx(500)  # 5 MB at 10 GB/s.
    assert row["limit_fraction"] == pytest.approx(0.5)
    assert row["examples_per_second"] == pytest.approx(100_000)
    assert row["processor_us"] == pytest.approx(2000)
    assert row["copy_fraction"] == pytest.approx(0.5)
    assert row["product_fraction"] == pytest.approx(0.01)
    many = program._replace(operations=80e6)  # 80 million at 100 a ns.
    assert timing.figures(many, fixed, LIMITS, 1)["limit_us"] == pytest.approx(800)
    untold = program._replace(operations=float("nan"))
    assert timing.figures(untold, fixed, LIMITS, 1)["limit_us"] == pytest.approx(500)


def test_the_machine_is_measured_and_described():
    found = machine.ceilings(quick=True)
    assert 0.1 < found.copy_gb_per_second < 5000 and found.product_gflops > 0.1
    said = machine.describe()
    assert said["threads"] == machine.threads() and said["jax"] == jax.__version__


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_threads_hold_the_process_and_wrong_ones_are_an_error():
    code = (
        "from benchmarks import machine; machine.use_threads(1); "
        "import os; print(machine.threads(), os.sched_getaffinity(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("1 {")
    machine.use_threads(None)
    for number in (0, 10_000):
        with pytest.raises(UserError, match=f"--threads {number}: this process may"):
            machine.use_threads(number)


def test_every_loss_is_timed():
    assert {objective for objective, _, _ in benchmark.VARIANTS} == set(OBJECTIVES)
    assert {group for _, group, _ in benchmark.VARIANTS} == set(GROUPS)
    variants = benchmark.VARIANTS[:1]
    rows = list(benchmark.run([(8, 33, 2)], LIMITS, seconds=0.01, variants=variants))
    assert [(row["negatives"], row["loss"]) for row in rows] == [
        (1, "sigmoid / epo / confidence"),
        (2, "sigmoid / epo / confidence"),
        (2, "sigmoid / epo / confidence / approximate"),
    ]
    for row in rows:
        assert row.keys() >= KEYS and row["forward_us"] > 0
        assert 0.8 < row.get("recall", 1.0) <= 1


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("variant", benchmark.VARIANTS)
def test_torch_does_the_same_work(variant):
    """The comparison before the timing fails where a loss or a gradient differs."""
    case = benchmark.Case((16, 7, 3), *variant)
    peers, why_not = benchmark._peers(case, torch_compile=False)
    assert peers.keys() == ({"torch"} if case.objective != "lmpo" else set())
    assert why_not.keys() == ({"torch"} if not peers else {"torch.compile"})
    if peers:
        value, gradient = peers["torch"]()
        with pytest.raises(AssertionError):
            benchmark._compare(case, (value + 1, gradient))
        wrong = gradient * 1.01
        with pytest.raises(AssertionError):
            benchmark._compare(case._replace(noise="none"), (value, wrong))


def test_a_step_of_the_network_and_of_a_head_is_timed(capsys, monkeypatch):
    monkeypatch.setattr(champion, "_peers", lambda *_: ({}, {"torch": "left out"}))
    champion.main(["--quick", "--json", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["what"] for row in rows] == ["network, large head", "base head alone"]
    assert rows[0]["parameters"] == 993_977  # As the reference counts.
    assert rows[0]["mflop"] > 100 * rows[1]["mflop"] > 0
    assert all(row.keys() >= KEYS and row["examples_per_second"] > 0 for row in rows)


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("case", champion.CASES, ids=lambda case: case.name)
def test_torch_trains_the_same_network(case):
    """The comparison before the timing fails where the networks differ."""
    losses = [
        champion.torch_loss(case, one_step=one_step, hard_ratio=1.0, dropout=0.0)
        for one_step in (False, True)
    ]
    for loss in losses:
        champion.compare(case, loss)
    off = lambda state, x, labels: losses[0](state, 1.01 * x + 0.01, labels)
    with pytest.raises(AssertionError):
        champion.compare(case, off)
    wrong = lambda *args: (losses[0](*args)[0] * 1.01, losses[0](*args)[1])
    with pytest.raises(AssertionError):
        champion.compare(case, wrong)


def test_training_is_timed(capsys):
    training.main(["--quick", "--json", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [training.SHIPPED, "base", training.HEAD]
    assert [row["variant"] for row in rows] == names and rows[0]["ratio"] == 1
    shipped, base, head = (row["mflop"] for row in rows)
    assert shipped > max(base, head) and min(base, head) > 0  # Less of it is less.
    assert all(row.keys() >= KEYS and row["examples_per_second"] > 0 for row in rows)


def test_questions_are_enlarged_by_words_of_others():
    given = ["where is it", "who are you"]
    found = list(growth.enlarged(given, 50))
    words = {word for question in given for word in question.split()}
    assert found[:2] == given and len(found) == 50
    for number, text in enumerate(found[2:]):
        base = given[number % 2].split()
        assert text.split()[:3] == base and {*text.split()[3:]} <= words
    assert len(set(found)) > 30  # Of 2 * 36 that there are.


@pytest.mark.parametrize(
    ("axis", "size", "changed"),
    [
        ("rows", 60, {}),
        ("buckets", 8, {}),
        ("branches", 1, {"model_size": "base"}),
        ("branches", 3, {"model_size": "xlarge", "extra_expansion_dim": 512}),
        ("negatives", 3, {"pref_group_size": 3}),
    ],
)
def test_one_thing_grows_at_a_time(axis, size, changed, tmp_path):
    path = tmp_path / "rows.jsonl"
    job = growth.training_job(axis, size, path, ["one two", "three four"], rows=40)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert job.items() >= changed.items()
    assert len(rows) == (60 if axis == "rows" else 40)
    buckets = {row["label"] for row in rows}
    assert len(buckets) == (8 if axis == "buckets" else 20)


@pytest.mark.parametrize("wrong", [["--only", "rows", "replies"], ["--only", "rows"]])
def test_one_size_has_no_exponent(wrong, capsys):
    sizes = ["--sizes", "30"] if len(wrong) == 2 else ["--sizes", "30", "60"]
    with pytest.raises(SystemExit) as caught:
        growth.main(["--quick", "--device", "cpu", *wrong, *sizes])
    assert caught.value.code == 2
    assert "--sizes: give two or more of them" in capsys.readouterr().err


def test_a_point_of_training_is_measured(tmp_path):
    job = growth.training_job("negatives", 2, tmp_path / "x", ["one two"], rows=40)
    found = growth.measure_training(job, "cpu", seconds=0.01)
    assert min(found["file_seconds"], found["epoch_seconds"]) > 0
    axis = growth.AXES["negatives"]
    rows = [{"size": n, "epoch_seconds": n**2, "peak_mb": 5 + 0 * n} for n in (1, 2, 4)]
    fitted = growth.exponents(axis, rows)
    assert fitted == pytest.approx({"epoch_seconds": 2, "peak_mb": 0}, abs=1e-9)
    pytest.importorskip("matplotlib")
    growth.plot(tmp_path / "growth.png", axis, rows)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_replies_from_more_rows_are_timed(run, examples, tmp_path):
    answered = [example for example in examples if example.response]
    found = [
        growth.reply(str(run.run.path), str(tmp_path), answered, n) for n in (50, 100)
    ]
    for row in found:
        assert 0 < row["p50_seconds"] <= row["p99_seconds"] and row["peak_mb"] > 1


def test_a_sweep_and_its_runs_alone_agree(tmp_path, monkeypatch, capsys):
    """The commands in this process: what differs between the ways would be found."""
    monkeypatch.setattr(sweep.subprocess, "run", lambda argv, **_: cli.main(argv[3:]))
    rows = ["login password", "parcel lost", "refund money", "opening hours"]
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number, text in enumerate(growth.enlarged(rows, 60)):
            file.write(json.dumps({"user": text, "label": number % 4}) + "\n")
    base = {"data": str(path), "epochs": 1, "device": "cpu"}
    runs = [sweep.Run(0, 1.0), sweep.Run(1, 1.0)]
    found = sweep.measure(base, str(tmp_path), runs, repeats=1)
    assert [row["runs"] for row in found] == [2, 1, 1]
    assert found[0]["ratio"] == 1 and all(row["seconds"] > 0 for row in found)
    other = sweep.Done(1.0, {run: 0.1 for run in runs})
    monkeypatch.setattr(sweep, "of_a_sweep", lambda *_: other)
    with pytest.raises(AssertionError):
        sweep.measure(base, str(tmp_path / "again"), runs, repeats=1)


def test_the_command_prints_lines_and_tables(capsys):
    benchmark.main(["--quick", "--json", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["loss"] for row in rows[2:]] == list(benchmark.SEQUENCE)
    for row in rows:
        assert row.keys() >= KEYS | {"jax", "threads", "copy_gb_per_second"}
    benchmark.show("title", benchmark.COLUMNS, rows, LIMITS, as_json=False)
    out = capsys.readouterr().out
    assert "product gflops 100.0" in out and "apo_zero" in out


def test_features_are_compared_and_timed(capsys):
    features.main(["--quick", "--json", "--device", "cpu"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    has_peer = importlib.util.find_spec("sklearn") is not None
    assert len(rows) == 3 + has_peer
    for row in rows:
        assert row["rows"] == 100 and row["rows_per_cpu_second"] > 0
        assert row["first_rows_per_second"] > 0 and ("peer_ratio" in row) == has_peer


def test_features_that_are_not_the_same_are_not_timed(monkeypatch):
    pytest.importorskip("sklearn")
    texts = [f"where is parcel number {number}?" for number in range(30)]
    features.compare(features.FeatureConfig(), texts)
    count = features.ngram_keys
    monkeypatch.setattr(features, "ngram_keys", lambda *args: count(*args)[1:])
    with pytest.raises(AssertionError):
        features.compare(features.FeatureConfig(), texts)


def test_processes_are_timed_to_an_event_or_their_end(tmp_path):
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    ran = startup.run(spin)
    assert ran.seconds >= ran.cpu_seconds > 0.1 and 1 < ran.peak_mb < 100
    path = tmp_path / "there"
    wait = (
        "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(99)"
    )
    assert startup.run(wait, [str(path)], until=path.exists).seconds < 60
    with pytest.raises(RuntimeError, match="of no use"):
        startup.run("raise SystemExit('of no use')")


@pytest.mark.slow
def test_whole_commands_are_timed(corpus_path, run, capsys):
    paths = ["--data", corpus_path, "--corpus", corpus_path, "--weights", run.run.path]
    startup.main(["--quick", "--json", "--device", "cpu", *map(str, paths)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    seconds = {row["name"]: row["cpu_seconds"] for row in rows}
    assert len(seconds) == 8
    for name in ("first steps", "whole, two epochs"):
        assert seconds[f"finetune: {name}, warm"] < seconds[f"finetune: {name}, cold"]


def test_a_wrong_file_is_one_line(capsys):
    argv = ["--data", "nowhere.jsonl", "--quick", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        timing.command(lambda: features.main(argv))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nowhere.jsonl")


def test_a_column_that_no_row_fills_is_left_out(capsys):
    columns = {"": ("name", ""), "us": ("us", ".0f"), "torch us": ("torch", ".0f")}
    limits = machine.Ceilings(1.0, 1.0)
    timing.show("t", columns, [{"name": "a", "us": 3.0}], limits, as_json=False)
    shown = capsys.readouterr().out
    assert "us" in shown and "torch" not in shown
