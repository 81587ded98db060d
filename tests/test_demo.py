import json
import re

import pytest

from prefchat_jax.cli.demo import CONVERSATION, DemoFlags
from prefchat_jax.cli.main import main
from prefchat_jax.datasets.records import read_records
from prefchat_jax.training.run_directory import RunDirectory


@pytest.fixture(scope="module")
def corpora():
    import importlib.resources

    data = importlib.resources.files("prefchat_jax") / "data"
    return [
        read_records([data / name]) for name in ("helpdesk.jsonl", "helpdesk_val.jsonl")
    ]


def test_the_corpus_has_48_answers_12_phrasings_and_a_held_out_set(corpora):
    train, val = corpora
    answers = {row.response: row.label for row in train.examples}
    assert len(answers) == len(set(answers.values())) == 48
    counts = [sum(r.response == a for r in train.examples) for a in answers]
    assert set(counts) == {12}
    assert len(val.examples) == 3 * 48 and len(val.out_of_scope) == 30
    assert {row.response for row in val.examples} == set(answers)
    asked = {row.question.lower() for row in train.examples}
    assert not asked & {row.question.lower() for row in val.examples}


def test_what_the_answers_say_of_flags_is_true(corpora):
    import dataclasses

    from prefchat_jax.cli.chat import ChatFlags
    from prefchat_jax.cli.main import COMMANDS
    from prefchat_jax.training.config import FinetuneConfig

    known = {f.name for c in (ChatFlags, FinetuneConfig) for f in dataclasses.fields(c)}
    for row in corpora[0].examples:
        assert set(re.findall(r"--([a-z_]+)", row.response)) <= known
        assert set(re.findall(r"`prefchat ([a-z]+)", row.response)) <= set(COMMANDS)


def test_the_demo_shows_what_it_promises(tmp_path, capsys):
    output = str(tmp_path / "demo")
    assert main(["demo", "--output", output, "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "576 rows, 48 answers" in out and output in out and "best epoch" in out
    for message, _ in CONVERSATION:
        assert f"> {message}" in out
    assert "concise" in out and "The nearest question I know" in out
    for row in ("majority", "BM25", "CE alone", "CE + preference"):
        assert row in out
    for step in ("prefchat finetune", "compare_losses", "benchmarks.losses"):
        assert step in out
    assert json.loads((tmp_path / "demo" / "config.json").read_text())["best_epoch"]
    assert RunDirectory.open(output)


def test_the_demo_refuses_wrong_flags(capsys):
    assert main(["demo", "--corpus", "reddit"]) == 2
    assert "corpus" in capsys.readouterr().err
    assert DemoFlags().seeds == 3
