"""The log of training, in metrics.jsonl and in TensorBoard."""

import dataclasses
import importlib.util

import pytest
from board import board_points, crc32c, logged_points
from conftest import one_line, quick

from prefchat_jax.cli.main import main
from prefchat_jax.finetune import finetune
from prefchat_jax.training.metrics_log import MetricsLog, read_epochs
from prefchat_jax.training.run_directory import RunDirectory

needs_board = pytest.mark.skipif(
    importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is missing"
)


def test_the_checksum_is_the_one_of_its_standard():
    assert crc32c(b"123456789") == 0xE3069283


@needs_board
def test_tensorboard_has_what_metrics_jsonl_has(corpus_path, tmp_path):
    config = quick(corpus_path, tmp_path / "a", epochs=2, scorer_epochs=0)
    plain = finetune(config)
    assert not (plain.run.path / "tensorboard").exists()
    asked = dataclasses.replace(
        config, output=str(tmp_path / "b"), report_to="tensorboard"
    )
    run = finetune(asked).run.path
    points = board_points(run)
    assert points == logged_points(run)
    tags = {tag for tag, _, _ in points}
    assert {"steps/loss", "epochs/loss", "epochs/eval_loss"} <= tags
    assert [step for tag, step, _ in points if tag == "epochs/eval_loss"] == [1, 2]
    # A run that goes on shows each epoch once, and may be told so only then.
    finetune(dataclasses.replace(asked, resume=True))
    finetune(dataclasses.replace(config, resume=True, report_to="tensorboard"))
    for path in (run, plain.run.path):
        points = board_points(path)
        assert points == logged_points(path) and len(points) == len(set(points))
        assert [step for tag, step, _ in points if tag == "epochs/loss"] == [1, 2]


@needs_board
def test_what_is_written_is_there_at_once(tmp_path):
    run = RunDirectory(tmp_path)
    with MetricsLog(run, [{"epoch": 1, "loss": 0.5}], "tensorboard") as log:
        log.write({"step": 7, "epoch": 2, "loss": 0.25})
        assert board_points(tmp_path) == [
            ("epochs/loss", 1, 0.5),
            ("steps/loss", 7, 0.25),
        ]
    assert read_epochs(run) == [{"epoch": 1, "loss": 0.5}]


def test_without_tensorboardx_it_is_one_line(
    corpus_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    argv = ["finetune", "--data", str(corpus_path), "--output", str(tmp_path / "r")]
    assert main([*argv, "--report_to", "tensorboard"]) == 2
    assert "pip install 'prefchat-jax[tensorboard]'" in one_line(capsys)
    assert not list(tmp_path.iterdir())


@needs_board
def test_a_sweep_says_that_it_does_not_report(corpus_path, tmp_path, capsys):
    argv = ["sweep", "--data", str(corpus_path), "--output", str(tmp_path / "s")]
    assert main([*argv, "--report_to", "tensorboard"]) == 2
    assert "--report_to: a sweep" in one_line(capsys)
