"""Each flag of `prefchat evaluate` does something, and says what is wrong."""

import json
import shutil
import sys

import numpy as np
import pytest
from conftest import QUESTIONS

from prefchat_jax import indexing
from prefchat_jax.chat.session import Chat
from prefchat_jax.cli.main import main


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """120 answered rows without a label; the reply repeats a rare word."""
    path = tmp_path_factory.mktemp("many") / "many.jsonl"
    rows = [
        {"user": f"tell me of thing{i}", "assistant": f"Here is all of thing{i}."}
        for i in range(120)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def evaluate(run, corpus_path, capsys):
    def evaluate(*argv, data=corpus_path):
        base = ["evaluate", "--weights", str(run.run.path), "--data", str(data)]
        code = main([*base, *map(str, argv)])
        return (code, *capsys.readouterr())

    return evaluate


def _overlap(self, messages, responses, *, histories=None):
    share = lambda m, r: len(set(m.split()) & set(r.strip(".").split()))
    return np.array([[share(m, r) for r in responses] for m in messages], np.float32)


def _no_module(monkeypatch, name):
    """As if a package were not installed."""
    for loaded in list(sys.modules):
        if loaded.split(".")[0] == name:
            monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)


def test_one_of_100_ranks_the_run_beside_its_bar(evaluate, many, tmp_path, monkeypatch):
    monkeypatch.setattr(Chat, "score_responses", _overlap, raising=False)
    path = tmp_path / "figures.json"
    code, out, _ = evaluate("--one_of_100", "--json", path, data=many)
    assert code == 0 and "the true reply among 100, 100 contexts" in out
    found = json.loads(path.read_text())["one_of_100"]
    run, bm25, tfidf = found
    assert run == "run" and bm25.startswith("BM25") and tfidf.startswith("TF-IDF")
    assert found["run"]["recall_at_1"] == [1.0, 1.0, 1.0]
    assert set(found["run"]) == {"recall_at_1", "recall_at_5", "recall_at_10", "mrr"}


def test_train_data_sets_the_statistics(evaluate, many, tmp_path, monkeypatch):
    monkeypatch.setattr(Chat, "score_responses", _overlap, raising=False)
    path = tmp_path / "figures.json"
    evaluate("--one_of_100", "--json", path, data=many)
    plain = json.loads(path.read_text())["one_of_100"]
    # The run's own training rows know no thing, so TF-IDF is blind.
    assert plain["TF-IDF, last message"]["recall_at_1"][0] < 0.1
    evaluate("--one_of_100", "--json", path, "--train_data", many, data=many)
    told = json.loads(path.read_text())["one_of_100"]
    assert told["TF-IDF, last message"]["recall_at_1"][0] > 0.9


def test_what_is_not_installed_is_a_note(evaluate, many, monkeypatch):
    monkeypatch.setattr(Chat, "score_responses", _overlap, raising=False)
    for name in ("bm25s", "sklearn"):
        _no_module(monkeypatch, name)
    code, out, _ = evaluate("--one_of_100", data=many)
    assert code == 0 and "│ run" in out
    assert "prefchat-jax[demo]" in out and "prefchat-jax[experiments]" in out


def test_without_the_training_rows_there_is_a_note(
    evaluate, many, monkeypatch, run, tmp_path
):
    monkeypatch.setattr(Chat, "score_responses", _overlap, raising=False)
    own = shutil.copytree(run.run.path, tmp_path / "run")
    config = json.loads((own / "config.json").read_text())
    config["finetune"]["data"] = "gone.jsonl"
    (own / "config.json").write_text(json.dumps(config))
    code, out, _ = evaluate("--one_of_100", "--weights", own, data=many)
    assert code == 0 and "give --train_data" in out


def test_errors_are_written_and_counted(evaluate, tmp_path):
    errors, figures = tmp_path / "errors.jsonl", tmp_path / "figures.json"
    data = tmp_path / "val.jsonl"
    row = {"user": "where is my parcel", "assistant": "No.", "label": "refund"}
    data.write_text(json.dumps(row) + "\n")
    code, out, _ = evaluate("--errors", errors, "--json", figures, data=data)
    assert code == 0 and "confused most" in out and str(errors) in out
    kinds = {json.loads(line)["kind"] for line in errors.read_text().splitlines()}
    assert kinds == {"bucket", "reply"}
    (pair,) = json.loads(figures.read_text())["confused"]
    assert pair == {
        "kind": "bucket",
        "expected": "refund",
        "given": "parcel",
        "count": 1,
    }


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_plot_is_a_picture(ending, evaluate, tmp_path):
    path = tmp_path / f"reliability.{ending}"
    code, out, _ = evaluate("--plot", path)
    assert code == 0 and str(path) in out
    start = {"png": b"\x89PNG\r\n", "svg": b"<?xml"}[ending]
    assert path.read_bytes().startswith(start)
    if ending == "svg":
        text = path.read_text()
        assert all(word in text for word in ("accuracy", "confidence", "ECE", "rows"))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_threshold_changes_what_is_refused(evaluate, tmp_path):
    path, found = tmp_path / "figures.json", []
    for threshold in (0, 1):
        evaluate("--min_confidence", threshold, "--json", path)
        found.append(json.loads(path.read_text())["abstained"])
    assert found == [0.0, 1.0]


def _one_line(code, error):
    assert code == 2 and error.count("\n") == 1, error
    assert error.startswith("prefchat: error: ")
    return error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--plot", "x.doc"], r"--plot x\.doc: must end in one of .*png"),
        (["--plot", "no/x.png"], r"--plot no/x\.png: no such folder"),
        (["--errors", "no/x.jsonl"], r"--errors no/x\.jsonl: no such folder"),
        (["--json", "no/x.json"], r"--json no/x\.json: no such folder"),
        (["--train_data", "x.jsonl"], r"--train_data is for --one_of_100"),
        (
            ["--one_of_100", "--train_data", "x.jsonl"],
            r"--train_data x\.jsonl: no such",
        ),
        (["--one_of_100"], r"100 different responses .* the rows have 4"),
        (["--one_of_10"], r"did you mean --one_of_100"),
        (["--min_confidence", "2"], r"min_confidence 2: must be in \[0, 1\]"),
        (["--min_confidence", "high"], r"min.confidence"),
        (["--device", "npu"], r"device"),
        (["--data_manifest", "no.json"], r"no\.json"),
    ],
)
def test_a_wrong_value_is_one_line(argv, message, evaluate, monkeypatch, tmp_path):
    import re

    monkeypatch.chdir(tmp_path)
    code, _, error = evaluate(*argv)
    assert re.search(message, _one_line(code, error))
    assert not list(tmp_path.iterdir())


def test_training_rows_that_are_broken_are_one_line(
    evaluate, many, monkeypatch, tmp_path
):
    monkeypatch.setattr(Chat, "score_responses", _overlap, raising=False)
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    argv = ["--one_of_100", "--train_data", tmp_path / "bad.jsonl"]
    code, _, error = evaluate(*argv, data=many)
    assert "bad.jsonl:1" in _one_line(code, error)


@pytest.mark.parametrize("name", ["errors", "plot", "json"])
def test_no_output_replaces_the_data(name, evaluate, corpus_path, tmp_path):
    data = tmp_path / "val.png"
    data.write_bytes(corpus_path.read_bytes())
    code, _, error = evaluate(f"--{name}", tmp_path / "x" / ".." / "val.png", data=data)
    assert "no such folder" in _one_line(code, error)
    code, _, error = evaluate(f"--{name}", data, data=data)
    assert "would replace" in _one_line(code, error)
    assert data.read_bytes() == corpus_path.read_bytes()


def test_no_output_replaces_what_a_manifest_names(run, tmp_path, capsys):
    data, manifest = tmp_path / "val.jsonl", tmp_path / "m.json"
    data.write_text('{"user": "q", "label": "refund"}\n')
    manifest.write_text('["val.jsonl"]')
    base = ["evaluate", "--weights", str(run.run.path)]
    argv = [*base, "--data_manifest", str(manifest), "--errors", str(data)]
    code, error = main(argv), capsys.readouterr().err
    assert "would replace" in _one_line(code, error) and data.stat().st_size


def test_no_output_replaces_what_the_bar_is_trained_on(evaluate, run, many, tmp_path):
    own, train = shutil.copytree(run.run.path, tmp_path / "run"), tmp_path / "t.jsonl"
    train.write_text('{"user": "q", "assistant": "r"}\n')
    config = json.loads((own / "config.json").read_text())
    config["finetune"]["data"] = str(train)
    (own / "config.json").write_text(json.dumps(config))
    argv = ["--weights", own, "--one_of_100", "--errors", train]
    code, _, error = evaluate(*argv, data=many)
    assert "would replace" in _one_line(code, error) and train.stat().st_size


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--errors", "run/responses.db"], "lies in the run"),
        (["--json", "run/config.json"], "lies in the run"),
        (["--plot", "run/new/x.png"], "lies in the run"),
        (["--errors", "same", "--json", "./same"], "file of --errors, too"),
        (["--json", "."], "is a folder"),
        (["--errors", "/dev/null"], "is no regular file"),
    ],
)
def test_an_output_is_refused_before_the_run_is_asked(
    argv, message, evaluate, run, tmp_path, monkeypatch
):
    import prefchat_jax.evaluation.run as judging

    monkeypatch.setattr(judging, "judge_records", None, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(run.run.path)
    before = {path: path.stat() for path in run.run.path.iterdir()}
    code, _, error = evaluate(*argv)
    assert message in _one_line(code, error) and argv[-2] in error
    assert {path: path.stat() for path in run.run.path.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_few_rows_are_told_before_anything_is_done(evaluate, run, tmp_path):
    before = (run.run.path / "config.json").read_bytes()
    code, out, error = evaluate("--one_of_100", "--tune_ranking")
    assert "100 different responses" in _one_line(code, error) and not out
    assert (run.run.path / "config.json").read_bytes() == before


def test_tuning_a_run_that_stores_nothing_is_one_line(evaluate, run, tmp_path):
    own = shutil.copytree(run.run.path, tmp_path / "run")
    indexing.delete(own, responses=[answer for answer, _ in QUESTIONS.values()])
    code, _, error = evaluate("--tune_ranking", "--weights", own)
    assert "prefchat index" in _one_line(code, error)


def test_a_plot_without_matplotlib_is_one_line(evaluate, monkeypatch, tmp_path):
    _no_module(monkeypatch, "matplotlib")
    code, _, error = evaluate("--plot", tmp_path / "x.png")
    assert "pip install 'prefchat-jax[report]'" in _one_line(code, error)


def test_a_plot_of_nothing_is_one_line(evaluate, tmp_path):
    data = tmp_path / "val.jsonl"
    data.write_text('{"user": "pizza", "label": "oos"}\n')
    argv = ["--plot", "x.png", "--json", "x.json", "--errors", "x.jsonl"]
    argv = [arg if arg[0] == "-" else tmp_path / arg for arg in argv]
    code, out, error = evaluate(*argv, data=data)
    assert "no in-scope row" in _one_line(code, error)
    assert not (tmp_path / "x.png").exists() and "refused" in out
    # What was measured is not lost.
    assert "refused" in json.loads((tmp_path / "x.json").read_text())
    assert (tmp_path / "x.jsonl").exists()
