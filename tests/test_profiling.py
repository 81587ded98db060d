"""`--profile` leaves a trace of training, and no other run has one."""

import gzip
import json

import pytest
from conftest import one_line, quick

from prefchat_jax.cli.main import main
from prefchat_jax.finetune import Silent, finetune


class _Notices(Silent):
    def __init__(self):
        self.said = []

    def notice(self, text):
        self.said.append(text)


def test_a_trace_of_steps_that_were_compiled(run, corpus_path, tmp_path):
    traced = finetune(quick(corpus_path, tmp_path / "run", epochs=2, profile=True))
    traces = list(traced.run.profile.rglob("*.trace.json.gz"))
    assert len(traces) == 1
    names = {
        event.get("name", "")
        for event in json.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]
    }
    assert any("run_steps" in name for name in names)
    assert not any("backend_compile" in name for name in names)
    assert not run.run.profile.exists()


def test_a_single_chunk_is_not_traced(corpus_path, tmp_path):
    progress = _Notices()
    config = quick(corpus_path, tmp_path / "run", epochs=1, profile=True)
    assert not finetune(config, progress).run.profile.exists()
    assert any("--profile" in text for text in progress.said)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["finetune", "--data", "x", "--profile", "3"], "3"),
        (["sweep", "--data", "x", "--profile"], "--profile: a sweep"),
        (
            ["finetune", "--preferences", "x", "--weights", "y", "--profile"],
            "--profile has no meaning with --preferences",
        ),
    ],
)
def test_a_wrong_value_is_one_line(capsys, flags, reason):
    assert main([*flags, "--output", "X"]) == 2
    assert reason in one_line(capsys)
