"""Bad input: one line that says what, where and what to do; exit code 2."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from conftest import one_line, quick

import prefchat_jax.finetune as finetune_module
from prefchat_jax import Chat
from prefchat_jax.chat import connections
from prefchat_jax.cli.main import main
from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside
from prefchat_jax.finetune import finetune
from prefchat_jax.training.run_directory import RunDirectory


def _case_missing_file(tmp_path, corpus):
    return [
        "finetune",
        "--data",
        "no.jsonl",
        "--output",
        str(tmp_path / "r"),
    ], "no.jsonl"


def _file(tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    return ["finetune", "--data", str(path), "--output", str(tmp_path / "r")]


ROW = '{"user": "q", "assistant": "a", "label": "x"}\n'
BAD_INPUT = {
    "missing file": (None, r"No such file"),
    "empty file": ("", r"bad\.jsonl: no rows"),
    "broken JSON": (ROW + '{"user": \n', r"bad\.jsonl:2 is not valid JSON"),
    "not an object": (ROW + "[1]\n", r"bad\.jsonl:2 is not a JSON object \(an array: "),
    "an array of a file": ("[\n{}\n]\n", r"bad\.jsonl:1 .*\(an array: write one"),
    "an array in one line": ("[{}]", r"bad\.jsonl:1 .*\(an array: write one"),
    "no usable row": ('{"user": "q"}\n', r"no usable row\. 1 row left out.*:1"),
    "one class only": (ROW * 3, r"All rows have the label 'x'"),
    "one row only": (ROW, r"The only row has the label 'x'"),
    "one reply only": (
        '{"user": "q", "assistant": "a"}\n' * 2,
        r"All replies say the same",
    ),
    "out of scope only": (
        '{"user": "q", "label": -1}\n',
        r"All rows are out of scope",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_corpora(name, tmp_path, capsys):
    text, message = BAD_INPUT[name]
    argv = _file(tmp_path, text or "")
    if text is None:
        (tmp_path / "bad.jsonl").unlink()
    assert main(argv) == 2
    assert re.search(message, one_line(capsys))
    assert not (tmp_path / "r").exists()


def test_bad_manifests_and_gzip(tmp_path, capsys):
    (tmp_path / "m.json").write_text('{"files": 3}')
    output = ["--output", str(tmp_path / "r")]
    argv = ["finetune", "--data_manifest", str(tmp_path / "m.json"), *output]
    assert main(argv) == 2 and "list of file names" in one_line(capsys)
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8bnot gzip")
    argv = ["finetune", "--data", str(tmp_path / "a.jsonl.gz"), *output]
    assert main(argv) == 2 and "damaged gzip" in one_line(capsys)


def _damage_version(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"format": 99}))
    return "newer than this one"


def _damage_config(run):
    (run / "config.json").write_text('{"format": ')
    return r"config\.json is damaged"


def _damage_checkpoint(run):
    step = json.loads((run / "config.json").read_text())["last_epoch"]
    for path in (run / "checkpoints" / str(step)).rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[:50])
    return r"\d cannot be loaded: the checkpoint is damaged, or of another shape or v"


def _damage_missing_step(run):
    shutil.rmtree(run / "checkpoints")
    return r"\d cannot be loaded: the checkpoint is missing\. Train again\."


def _damage_foreign_config(run):
    (run / "config.json").write_text('{"architectures": ["Bert"]}')
    return "not a run directory of prefchat-jax"


def _damage_labels(run):
    (run / "labels.json").write_text('["a", "b", "c", "d"]')
    return r"labels\.json is damaged: it does not name 4 buckets"


def _damage_count_of_labels(run):
    labels = json.loads((run / "labels.json").read_text())
    (run / "labels.json").write_text(json.dumps(labels[:3]))
    return r"labels\.json is damaged"


def _damage_features(run):
    (run / "features.npz").write_bytes(b"PK\x03\x04")
    return "features"


def _damage_database(run):
    (run / "responses.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    return r"responses\.db is damaged .*--resume; answers .* lost"


def _damage_text_database(run):
    (run / "responses.db").write_text("hello")
    return r"responses\.db is damaged \(file is not a database\): delete it"


def _damage_unfinished(run):
    config = json.loads((run / "config.json").read_text())
    del config["last_epoch"]
    (run / "config.json").write_text(json.dumps(config))
    return "not finished"


def _damage_nothing_there(run):
    shutil.rmtree(run)
    return "not a run directory"


DAMAGE = [value for name, value in globals().items() if name.startswith("_damage")]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__[8:])
def test_damaged_runs(damage, own_run, capsys, caplog):
    message = damage(own_run)
    assert main(["chat", "--weights", str(own_run)]) == 2
    assert re.search(message, one_line(capsys)) and not caplog.records


def test_a_deleted_database_is_written_anew(own_run, corpus_path):
    with Chat.load(own_run) as chat:
        before = chat.store.get(range(99))
        chat.add("vase", "Yes.")
    (own_run / "responses.db").unlink()
    finetune(dataclasses.replace(quick(corpus_path, own_run), resume=True))
    with Chat.load(own_run) as chat:
        assert chat.store.get(range(99)) == before


@pytest.mark.parametrize("command", ["chat", "index --data corpus.jsonl"])
@pytest.mark.parametrize("name", ["corpus.jsonl", "notes.db", "other/responses.db"])
def test_a_database_of_another_kind_is_not_to_be_deleted(
    name, command, own_run, corpus_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(corpus_path, "corpus.jsonl")
    shutil.copytree(own_run, "other")
    foreign = "UPDATE meta SET value = 'g' WHERE key = 'fingerprint'"
    for path, change in (
        ("notes.db", "CREATE TABLE notes (text)"),
        ("other/responses.db", foreign),
    ):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(change)
            db.commit()
    before = (tmp_path / name).read_bytes()
    argv = [*command.split(), "--weights", str(own_run), "--llm_db", name]
    assert main(argv) == 2
    line = one_line(capsys)
    assert re.search(rf"{name} (is not a database of replies|belongs to another)", line)
    assert "check --" in line and "delete" not in line
    assert (tmp_path / name).read_bytes() == before


def test_an_unknown_label_at_evaluation(own_run, tmp_path, capsys):
    path = tmp_path / "val.jsonl"
    path.write_text('{"user": "q", "label": "refund"}\n{"user": "q", "label": "no"}\n')
    assert main(["evaluate", "--weights", str(own_run), "--data", str(path)]) == 2
    assert re.search(r"val\.jsonl:2: label 'no' is not one of the 4", one_line(capsys))


def test_an_existing_run_is_not_overwritten(own_run, corpus_path, capsys):
    before = (own_run / "config.json").read_bytes()
    argv = ["finetune", "--data", str(corpus_path), "--output", str(own_run)]
    assert main(argv) == 2 and "--resume" in one_line(capsys)
    assert (own_run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--meta", "no/m.json"], "--meta no/m.json: no such folder"),
        (["--meta", "."], "--meta . is a folder"),
        (["--meta", "new/m.json"], "lies in the run"),
        (["--meta", "c.jsonl"], "would replace what is read"),
        (["--output", "c.jsonl"], "--output c.jsonl is a file"),
        (["--output", "old"], "already holds a run"),
        (["--output", "no", "--resume"], "no is not a run directory"),
    ],
)
def test_what_finetune_cannot_write_is_told_before_jax_is_loaded(
    argv, message, own_run, corpus_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "prefchat_jax.finetune", None)
    own_run.rename("old")
    shutil.copy(corpus_path, "c.jsonl")
    (tmp_path / "m.json").write_text('["c.jsonl"]')
    assert (
        main(["finetune", "--data_manifest", "m.json", "--output", "new", *argv]) == 2
    )
    assert message in one_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"old", "c.jsonl", "m.json"}


def test_one_training_at_a_time_writes_a_run(corpus_path, tmp_path, capsys):
    argv = ["finetune", "--data", str(corpus_path), "--output", str(tmp_path / "r")]
    with RunDirectory(tmp_path / "r").alone():
        assert main(argv) == 2 and "another finetune" in one_line(capsys)
    assert not list((tmp_path / "r").iterdir())


def test_of_two_that_start_together_one_is_told(corpus_path, tmp_path, monkeypatch):
    run, read = RunDirectory(tmp_path / "r"), finetune_module.load_corpus
    with contextlib.ExitStack() as held:

        def slow(*args):
            corpus = read(*args)
            held.enter_context(run.alone())  # As the other one does meanwhile.
            return corpus

        monkeypatch.setattr(finetune_module, "load_corpus", slow)
        with pytest.raises(UserError, match="another finetune"):
            finetune(quick(corpus_path, run.path))
        assert not list(run.path.iterdir())
    with run.alone():
        pass  # The lock went with its holder.


@pytest.mark.parametrize("fails", ["mkstemp", "write", "replace"])
def test_an_error_of_writing_names_the_file_not_the_temporary_one(fails, tmp_path):
    path = tmp_path / ("no/x" if fails == "mkstemp" else "x")
    if fails == "replace":
        path.mkdir()
    with pytest.raises(OSError) as caught, write_aside(path):
        if fails == "write":
            raise OSError(errno.ENOSPC, "full")  # As file.write does.
    assert caught.value.filename == str(path) and caught.value.filename2 is None
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["responses.db", "config.json"])
def test_a_full_disk_leaves_nothing_half_written(
    name, corpus_path, tmp_path, capsys, monkeypatch
):
    replace = os.replace

    def full(source, target):
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return replace(source, target)

    monkeypatch.setattr("os.replace", full)
    output = tmp_path / "run"
    argv = ["finetune", "--data", str(corpus_path), "--output", str(output)]
    assert main([*argv, "--epochs", "1", "--model_size", "base"]) == 2
    assert re.search(rf"{re.escape(name)}.*No space left on device", one_line(capsys))
    assert not (output / name).exists()
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_a_full_database_loses_nothing(own_run, tmp_path, capsys, monkeypatch):
    opened = connections.connect

    def small(path, mode):
        db = opened(path, mode)
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    rng = np.random.default_rng(0)
    path = tmp_path / "more.jsonl"
    words = lambda: " ".join(map(str, rng.integers(0, 10**9, 40)))
    rows = ({"user": words(), "assistant": words()} for _ in range(300))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = (own_run / "responses.db").read_bytes()
    monkeypatch.setattr(connections, "connect", small)
    assert main(["index", "--weights", str(own_run), "--data", str(path)]) == 2
    assert "full" in one_line(capsys)
    assert (own_run / "responses.db").read_bytes() == before


@pytest.mark.parametrize("where", ["a directory", "no such folder"])
def test_a_database_that_is_no_file(where, own_run, tmp_path, capsys):
    path = tmp_path if where == "a directory" else tmp_path / "no" / "x.db"
    argv = ["chat", "--weights", str(own_run), "--llm_db", str(path)]
    assert main(argv) == 2 and str(path) in one_line(capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["chat", "--weights", "r", "--seed", "-1"],
        ["demo", "--seeds", "0"],
        ["chat", "--weights", "r", "--min_confidence", "3"],
        ["chat", "--weights", "r", "--top_labels", "0"],
        ["chat", "--weights", "r", "--max_candidates_per_bucket", "0"],
        ["chat", "--weights", "r", "--db_top_k", "-1"],
        ["evaluate", "--weights", "r", "--data", "d", "--min_confidence", "3"],
    ],
)
def test_other_wrong_numbers(argv, capsys):
    assert main(argv) == 2
    assert f"error: {argv[-2]} {argv[-1]}: must be" in one_line(capsys)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [["--help"], ["losses"]])
def test_an_output_that_is_full_is_named(argv, unbuffered):
    command = [sys.executable, "-m", "prefchat_jax", *argv]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    wanted = "prefchat: error: standard output: No space left on device.\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def test_a_file_that_is_no_metadata(own_run, tmp_path, capsys):
    (tmp_path / "meta.json").write_text("[1]")
    argv = ["chat", "--weights", str(own_run), "--meta", str(tmp_path / "meta.json")]
    assert main(argv) == 2 and "another run" in one_line(capsys)


def test_files_of_a_run_can_be_read_by_others(own_run, run):
    mode = (run.run.path / "config.json").stat().st_mode & 0o777
    assert mode == 0o666 & ~_umask()


def _umask():
    os.umask(mask := os.umask(0))
    return mask


def test_a_nan_loss(corpus_path, tmp_path, capsys):
    argv = ["finetune", "--data", str(corpus_path), "--output", str(tmp_path / "r")]
    argv += ["--pref_objective", "test_training:nan_loss", "--model_size", "base"]
    assert main(argv) == 2 and "loss/pref is nan at step 1" in one_line(capsys)


def test_an_unknown_command_and_device(capsys, corpus_path, tmp_path):
    assert main(["train"]) == 2 and "no command 'train'" in one_line(capsys)


def test_the_device_that_is_not_there_isone_line(corpus_path, tmp_path):
    argv = ["finetune", "--data", str(corpus_path), "--output", str(tmp_path / "r")]
    code = f"from prefchat_jax.cli.main import main; main({[*argv, '--device', 'tpu']})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if "prefchat: error" in line]
    assert len(lines) == 1 and "--device tpu: JAX finds none here" in lines[0]
    assert "Traceback" not in done.stderr
