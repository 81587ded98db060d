"""Checkpoints of the reference as runs: their logits, replies, flags and training."""

import contextlib
import io
import json
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import reference_network
from conftest import one_line
from reference_network import LABELS, META, WIDTHS, random_state

from prefchat_jax import Chat
from prefchat_jax.cli.main import main
from prefchat_jax.compat import features
from prefchat_jax.compat.importing import import_run
from prefchat_jax.compat.pth import read_state
from prefchat_jax.inference import Inference
from prefchat_jax.text.bags import Bags
from prefchat_jax.text.dialogue import Turn
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.steps import predict


def _difference(run, x, expected):
    """Of the logits of a run by NumPy and by JAX."""
    inference, (model, params) = Inference.load(run), load_model(run)
    ids = np.broadcast_to(np.arange(128), x.shape)
    found = [
        inference.classify(inference.classifier, Bags(ids, x)),
        predict(model, params, ids, x),
    ]
    return [float(np.abs(logits - expected).max()) for logits in found]


# --- what it says


@pytest.mark.parametrize("name", ["base", "large", "xlarge", "xxlarge"])
def test_the_logits_of_the_reference(shared, name, tmp_path):
    made = import_run(shared / "fixtures" / f"{name}.pth", tmp_path / "run")
    with np.load(shared / "fixtures" / f"{name}_io.npz") as arrays:
        found = _difference(made.run, arrays["x1"][:, 0], arrays["logits1"][:, 0])
    print(f"{name}: NumPy within {found[0]:.1e}, JAX {found[1]:.1e}")
    assert max(found) < 1e-5
    assert made.run.config()["model"]["kind"] == "champion"
    assert made.run.config()["model"]["head"] == made.head.name
    assert made.head.name == ("reference_base" if name == "base" else name)


@pytest.mark.parametrize("head", WIDTHS)
def test_random_weights_in_a_file(head, tmp_path, monkeypatch, rng):
    """torch writes the file where it is installed."""
    state, path = random_state(head), tmp_path / "x.pth"
    with contextlib.suppress(ImportError):
        import torch

        torch.save({k: torch.tensor(v) for k, v in state.items()}, path)
    if not path.exists():
        reference_network.write_pth(path, state, monkeypatch)
    made = import_run(path, tmp_path / "run")
    x = rng.normal(size=(32, 128)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert max(_difference(made.run, x, reference_network.logits(state, x))) < 1e-5


def test_the_oracle_is_the_reference(shared):
    for name in ("base", "large", "xlarge", "xxlarge"):
        with np.load(shared / "fixtures" / f"{name}_io.npz") as arrays:
            x, expected = arrays["x1"][:, 0], arrays["logits1_f64"][:, 0]
        state = read_state(shared / "fixtures" / f"{name}.pth")
        found = reference_network.logits(state, x)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_mode_of_the_features_decides_the_logits(reference_files, tmp_path):
    context = [Turn("user", "hello"), Turn("assistant", "Hi!"), Turn("user", "help?")]
    text = "User: hello\nAssistant: Hi!\nUser: help?"
    state = read_state(reference_files / "x.pth")
    for mode, make in features.MODES.items():
        output = tmp_path / mode
        argv = [
            str(reference_files / "x.pth"),
            "--output",
            str(output),
            "--feature_mode",
            mode,
        ]
        assert main(["import_torch", *argv]) == 0
        run = RunDirectory.open(output)
        assert run.config()["model"]["feature_mode"] == mode
        inference = Inference.load(run)
        logits = inference.bucket_logits(inference.featurizer([context]), [context])
        expected = reference_network.logits(state, make(text)[None])
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert not np.allclose(features.legacy(text), features.context_v2(text))


def test_contexts_that_are_missing_are_an_error(imported):
    inference = Inference.load(imported.run)
    with pytest.raises(ValueError, match="needs the contexts"):
        inference.bucket_logits(inference.featurizer.texts(["hello"]))


# --- the command


@pytest.mark.parametrize("command", ["import_torch", "import-torch"])
def test_an_import_chats(command, reference_files, tmp_path, capsys, monkeypatch):
    run, weights = str(tmp_path / "run"), str(reference_files / "x.pth")
    meta = str(reference_files / "x.json")
    argv = [command, weights, "--output", run, "--meta", meta]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "head large, 4 classes" in out and "features legacy" in out
    assert "4 answers stored" in out and f"next: prefchat chat --weights {run}" in out
    assert [bucket["name"] for bucket in RunDirectory.open(run).buckets()] == [*LABELS]
    monkeypatch.setattr("sys.stdin", io.StringIO("where is my parcel\n"))
    assert main(["chat", "--weights", run, "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["text"] == f"The answer about {reply['bucket']}."
    assert sum(reply["buckets"].values()) == pytest.approx(1, abs=1e-4)


def test_an_import_chats_without_jax(imported):
    code = (
        "import sys; from prefchat_jax import Chat; "
        f"chat = Chat.load({str(imported.run.path)!r}); "
        "assert chat.reply('hello').text; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_replies_of_files_are_stored(reference_files, corpus_path, tmp_path):
    db = tmp_path / "llm.db"
    with contextlib.closing(sqlite3.connect(db)) as opened, opened:
        opened.execute(
            "CREATE TABLE llm_entries (id INTEGER PRIMARY KEY, user_text TEXT, "
            "context_text TEXT, response_text TEXT, count INTEGER)"
        )
        opened.execute(
            "INSERT INTO llm_entries VALUES (1, 'umbrellas?', '', 'Second floor.', 2)"
        )
    weights, meta = reference_files / "x.pth", reference_files / "x.json"
    bare = import_run(weights, tmp_path / "bare")
    assert bare.replies == 0 and not bare.run.store.exists()
    assert "context_v2 is assumed" in bare.notes[0]
    made = import_run(
        weights, tmp_path / "run", meta=meta, from_db=db, data=corpus_path
    )
    assert made.replies == 4 + 1 + 36 and not made.notes
    with Chat.load(made.run.path) as chat:
        assert chat.reply("umbrellas?", style="balanced").text == "Second floor."
        reply = chat.reply("where is my parcel team", style="balanced")
        assert reply.text.startswith("Open Orders") and reply.bucket == "parcel"


def test_numbers_name_classes_without_metadata(reference_files, tmp_path, capsys):
    argv = [str(reference_files / "x.pth"), "--output", str(tmp_path / "run")]
    assert main(["import_torch", *argv]) == 0
    out = capsys.readouterr().out
    assert "context_v2 is assumed" in out and "prefchat index --weights" in out
    labels = RunDirectory.open(tmp_path / "run").buckets()
    assert labels == [{"label": i, "name": str(i)} for i in range(4)]
    _, meta = _write(tmp_path / "m.json", labels=LABELS)
    named = import_run(reference_files / "x.pth", tmp_path / "named", meta=meta).run
    assert named.buckets() == [{"label": i, "name": n} for i, n in enumerate(LABELS)]


def _write(path, **changes):
    path.write_text(json.dumps(META | changes))
    return ["--meta", str(path)]


BAD_META = {
    "five": ({"labels": [*"abcde"]}, "it has 5 labels and the checkpoint 4"),
    "twice": ({"labels": [{"label": c} for c in "abca"]}, "labels are the same"),
    "number": ({"labels": [{"label": 4.5}, *"abc"]}, "has no text and no number"),
    "text": ({"labels": "abcd"}, "labels is no list"),
    "class": ({"buckets": {"4": []}}, "bucket '4' and the checkpoint the classes 0 to"),
    "name": ({"buckets": {"hours": []}}, "it has a bucket 'hours'"),
    "pool": ({"buckets": [1]}, "buckets is no object"),
    "list": ({"buckets": {"1": 5}}, "bucket 1 is no list"),
    "reply": ({"buckets": {"1": [{"count": 1}]}}, "a reply without a text"),
    "count": ({"buckets": {"1": [{"text": "a", "count": "b"}]}}, "a count 'b'"),
    "mode": (
        {"feature_mode": "context_v5"},
        "'context_v5' is not read: `prefchat",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD_META.values(), ids=BAD_META)
def test_metadata_that_do_not_fit(changes, message, reference_files, tmp_path, capsys):
    argv = [str(reference_files / "x.pth"), "--output", str(tmp_path / "run")]
    assert main(["import_torch", *argv, *_write(tmp_path / "m.json", **changes)]) == 2
    line = one_line(capsys)
    assert f"{tmp_path / 'm.json'}: " in line and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_a_flag_replaces_a_mode_that_is_not_read(reference_files, tmp_path):
    argv = [str(reference_files / "x.pth"), "--output", str(tmp_path / "run")]
    meta = _write(tmp_path / "m.json", feature_mode="context_v5")
    assert main(["import_torch", *argv, *meta, "--feature_mode", "legacy"]) == 0


BAD_INPUT = {
    "no file": (["{tmp}/no.pth"], "no.pth: No such file"),
    "no state dict": (["{tmp}/text.pth"], "text.pth is not a file of torch 1.6"),
    "code": (["{tmp}/code.pth"], "names builtins.eval, which no state dict needs"),
    "missing": (["{tmp}/lacks.pth"], "head large: lacks layers.3.k_proj.weight"),
    "shape": (["{tmp}/shape.pth"], "9.weight is [9, 256] where [256, 256] is due"),
    "no meta": (["{x}", "--meta", "{tmp}/no.json"], "no.json: No such file"),
    "no JSON": (["{x}", "--meta", "{tmp}/text.pth"], "text.pth is no JSON"),
    "array": (["{x}", "--meta", "{tmp}/array.json"], "it is no JSON object"),
    "other": (["{x}", "--meta", "{tmp}/other.json"], "it has neither labels, feature"),
    "numpy": (["{tmp}/arrays.npz"], "arrays.npz is not a file of torch 1.6"),
    "mode": (["{x}", "--feature_mode", "v9"], "use one of legacy, context_v2"),
    "no database": (["{x}", "--from_db", "{tmp}/no.db"], "no.db: there is no such"),
    "no replies": (["{x}", "--data", "{tmp}/asked.jsonl"], "has no row with a reply"),
    "no weights": ([], "--weights is missing"),
}


@pytest.fixture
def bad(reference_files, tmp_path, monkeypatch):
    """A folder of files that are wrong."""
    import zipfile

    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "text.pth").write_text("weights")
    (folder / "array.json").write_text("[]")
    (folder / "other.json").write_text('{"head": "large"}')
    np.savez(folder / "arrays.npz", weight=np.ones(2))
    (folder / "asked.jsonl").write_text('{"user": "hello", "label": 1}\n')
    with zipfile.ZipFile(folder / "code.pth", "w") as archive:
        archive.writestr("model/data.pkl", b"cbuiltins\neval\n(S'1'\ntR.")
    state = random_state("large")
    wrong = state | {"layers.9.weight": np.zeros((9, 256), np.float32)}
    reference_network.write_pth(folder / "shape.pth", wrong, monkeypatch)
    del state["layers.3.k_proj.weight"]
    reference_network.write_pth(folder / "lacks.pth", state, monkeypatch)
    return folder


@pytest.mark.parametrize(("argv", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line(argv, message, reference_files, bad, tmp_path, capsys):
    argv = [arg.format(tmp=bad, x=reference_files / "x.pth") for arg in argv]
    output = tmp_path / "runs" / "run"
    assert main(["import_torch", *argv, "--output", str(output)]) == 2
    assert message in one_line(capsys)
    assert not output.parent.exists()


def test_a_run_is_not_overwritten(imported, reference_files, capsys):
    argv = [str(reference_files / "x.pth"), "--output", str(imported.run.path)]
    assert main(["import_torch", *argv]) == 2
    assert "already holds a run: choose another." in one_line(capsys)


def test_a_write_that_fails_leaves_nothing(
    reference_files, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prefchat_jax.compat.importing.index", fail)
    argv = [str(reference_files / "x.pth"), "--output", str(tmp_path / "run")]
    assert main(["import_torch", *argv, "--meta", str(reference_files / "x.json")]) == 2
    assert "No space left" in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_kind_of_a_newer_version(imported, tmp_path, capsys):
    own = shutil.copytree(imported.run.path, tmp_path / "run")
    config = json.loads((own / "config.json").read_text())
    config["model"]["kind"] = "newer"
    (own / "config.json").write_text(json.dumps(config))
    assert main(["chat", "--weights", str(own)]) == 2
    assert "of the kind 'newer'" in one_line(capsys)


# --- a .pth as --weights


def test_chat_imports_on_the_fly(reference_files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO("where is my parcel\n"))
    argv = ["chat", "--weights", str(reference_files / "x.pth"), "--json"]
    assert main([*argv, "--meta", str(reference_files / "x.json")]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["text"] == f"The answer about {reply['bucket']}."
    assert main(argv) == 2
    assert "there is nothing to reply: give --meta" in one_line(capsys)
    wrong = ["--meta", str(reference_files / "x.json"), "--model_size", "xlarge"]
    assert main([*argv, *wrong]) == 2
    assert "was trained with large" in one_line(capsys)
    assert not list(tmp_path.iterdir())
    more = {"0": [{"text": f"Reply {i}."} for i in range(20)]}
    meta = _write(tmp_path / "m.json", buckets=more, feature_mode=None)
    monkeypatch.setattr("sys.stdin", io.StringIO("where is it\n"))
    assert main([*argv, *meta]) == 0
    assert "note: nothing says how its features are made" in capsys.readouterr().err


def test_all_replies_of_a_class_are_pooled(reference_files, tmp_path):
    more = {"1": [{"text": f"Reply {i}."} for i in range(20)]}
    _, meta = _write(tmp_path / "m.json", buckets=more)
    run = import_run(reference_files / "x.pth", tmp_path / "run", meta=meta).run
    assert run.config()["finetune"]["max_candidates_per_bucket"] == 20


def test_finetune_imports_on_the_fly(reference_files, corpus_path, tmp_path, capsys):
    output, meta = tmp_path / "run", ["--weights_meta", str(reference_files / "x.json")]
    argv = ["finetune", "--data", str(corpus_path), "--output", str(output)]
    argv += ["--epochs", "1", "--scorer_epochs", "0", "--val_split", "0.2"]
    weights = ["--weights", str(reference_files / "x.pth")]
    written = tmp_path / "kept.json"
    written.write_text("{}")
    assert main([*argv, *weights, *meta, "--meta", str(written)]) == 2
    assert "is there already, and finetune writes it" in one_line(capsys)
    assert main([*argv, *meta]) == 2
    assert "needs a .pth as --weights" in one_line(capsys)
    assert main([*argv, *weights, "--model_size", "base"]) == 2
    assert "has 1 to 4 branches, and not 0" in one_line(capsys)
    assert not output.exists() and written.read_text() == "{}"
    assert main([*argv, *weights, *meta]) == 0
    assert "4 copied (hours, login, parcel, ...)" in capsys.readouterr().out
    config = json.loads((output / "config.json").read_text())
    assert config["finetune"]["weights"] == str(output / "imported")
    assert config["model"]["feature_mode"] == "legacy"
    assert main([*argv, *weights, *meta, "--resume"]) == 0
