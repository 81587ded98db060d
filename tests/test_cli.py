import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import quick

import prefchat_jax.finetune as finetune_module
from prefchat_jax import Chat
from prefchat_jax.chat import connections
from prefchat_jax.cli import flags
from prefchat_jax.cli.chat import ChatFlags
from prefchat_jax.cli.main import COMMANDS, main
from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside
from prefchat_jax.finetune import finetune
from prefchat_jax.training import catalogue
from prefchat_jax.training.checkpoints import load_scorer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.run_directory import RunDirectory

SEED_FINETUNE = (
    "--data corpus.jsonl --weights RUN_OR_FILE --model_size large --train_all "
    "--balanced_sampler --split_mode stratified --pref_weight 0.22 --pref_beta 2.6 "
    "--pref_objective sigmoid --pref_group_size 4 --pref_group_estimator epo "
    "--hard_negative_ratio 0.78 --adaptive_pref_weighting --pref_warmup_epochs 1.2 "
    "--lr_schedule cosine --warmup_steps 180 --early_stop_patience 2 --epochs 2 "
    "--batch_size 128 --device cpu --output RUN --meta meta.json"
)
SEED_CHAT = (
    "--weights RUN --meta meta.json --device cpu --pool_mode all --top_labels 4 "
    "--response_temperature 0.08 --llm_db responses.db --db_top_k 160"
)


def _parse(config, argv):
    return flags.parse(config, "x", argv)


# --- flags


def test_every_flag_of_the_seed_is_read_with_its_meaning():
    config = _parse(FinetuneConfig, SEED_FINETUNE.split())
    assert dataclasses.asdict(config) == dataclasses.asdict(
        FinetuneConfig(
            data="corpus.jsonl",
            weights="RUN_OR_FILE",
            model_size="large",
            train_all=True,
            balanced_sampler=True,
            split_mode="stratified",
            pref_weight=0.22,
            pref_beta=2.6,
            pref_objective="sigmoid",
            pref_group_size=4,
            pref_group_estimator="epo",
            hard_negative_ratio=0.78,
            adaptive_pref_weighting=True,
            pref_warmup_epochs=1.2,
            lr_schedule="cosine",
            warmup_steps=180,
            early_stop_patience=2,
            epochs=2,
            batch_size=128,
            device="cpu",
            output="RUN",
            meta="meta.json",
        )
    )
    chat = _parse(ChatFlags, SEED_CHAT.split())
    assert (chat.top_labels, chat.response_temperature) == (4, 0.08)
    assert (chat.llm_db, chat.db_top_k) == ("responses.db", 160)


def test_a_misspelt_flag_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean --pref_objective?"):
        _parse(FinetuneConfig, ["--output", "b", "--pref_objectve", "sigmoid"])


def test_hyphens_are_underscores():
    config = _parse(
        FinetuneConfig,
        ["--data", "a", "--output", "b", "--pref-group-size", "7", "--train-all"],
    )
    assert config.pref_group_size == 7 and config.train_all


def test_a_yaml_file_is_overridden_by_flags(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: a\noutput: b\nepochs: 3\ntrain-all: true\nmeta: null\n")
    config = _parse(FinetuneConfig, ["--config", str(path), "--epochs", "5"])
    assert (config.data, config.epochs, config.train_all) == ("a", 5, True)
    assert not _parse(FinetuneConfig, [f"--config={path}", "--no_train_all"]).train_all
    path.write_text("epoch: 3\n")
    with pytest.raises(UserError, match=r"run\.yaml: no flag 'epoch'"):
        _parse(FinetuneConfig, ["--config", str(path)])


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("", ["--epochs", "ten"], "--epochs ten: give a whole number."),
        ("", ["--lr=ten"], "--lr ten: give a number."),
        ("", ["--pref-beta", "ten"], "--pref_beta ten: give a number."),
        ("", ["--pref_noise", "no"], "--pref_noise no: use one of none, confidence"),
        ("", ["--epochs"], "--epochs needs a value."),
        ("epochs: ten", [], "run.yaml: --epochs ten: give a whole number."),
        ("epochs: 0", [], "run.yaml: --epochs 0: must be at least 1."),
        ("epochs: 0", ["--epochs", "x"], "--epochs x: give a whole number."),
        ("meta: ''", [], "run.yaml: --meta is empty"),
    ],
)
def test_a_value_that_cannot_be_read(text, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text or "output: b")
    argv = ["--output", "b", *argv]
    with pytest.raises(UserError) as caught:
        _parse(FinetuneConfig, ["--config", "run.yaml", *argv])
    assert str(caught.value).startswith(message) and "{None}" not in str(caught.value)


def test_numbers_of_a_list_and_flags_that_are_missing(capsys):
    assert main(["index", "--weights", "r", "--delete", "3", "x"]) == 2
    assert "--delete x: give a whole number." in _one_line(capsys)
    assert main(["chat"]) == 2
    assert "error: --weights is missing: Run directory" in _one_line(capsys)


@pytest.mark.parametrize(
    "argv",
    [
        ["finetune", "--data", "c.jsonl", "--output", ""],
        ["finetune", "--data", "c.jsonl", "--output", "r", "--meta", " "],
        ["chat", "--weights", "r", "--memory_db", "m", "--user", ""],
        ["build", "--output", "x", "--inputs", ""],
        ["evaluate", "--data", "c.jsonl", "--weights", ""],
    ],
)
def test_no_text_is_empty(argv, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert f"{argv[-2]} is empty" in _one_line(capsys)
    assert not list(tmp_path.iterdir())


WRONG_VALUES = {
    "val_split": "1.5",
    "epochs": "0",
    "batch_size": "0",
    "grad_accum_steps": "0",
    "lr": "0",
    "weight_decay": "-1",
    "label_smoothing": "2",
    "ema_decay": "1",
    "disable_ema_eval": None,
    "grad_clip_norm": "-1",
    "pref_weight": "-1",
    "pref_beta": "0",
    "pref_margin": "0.3",
    "pref_group_size": "0",
    "pref_group_estimator": "mean",
    "pref_objective": "dpoo",
    "pref_noise": "gauss",
    "pref_noise_rate": "0.1",
    "false_negative_margin": "-1",
    "sampling_correction": None,
    "hard_negative_ratio": "1.1",
    "pref_warmup_epochs": "-1",
    "lr_schedule": "linear",
    "warmup_steps": "-1",
    "early_stop_patience": "-1",
    "num_buckets": "1",
    "split_mode": "group",
    "model_size": "small",
    "expansion_dim": "-4",
    "extra_expansion_dim": "8",
    "third_expansion_dim": "8",
    "max_candidates_per_bucket": "0",
    "scorer_epochs": "-1",
    "scorer_width": "0",
    "scorer_batch_size": "1",
    "scorer_lr": "0",
    "scorer_group_estimator": "mean",
    "scorer_hard_negatives": "-1",
    "seed": "-1",
    "device": "npu",
    "nonsense": "1",
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_a_wrong_value_is_one_line_that_names_the_flag(
    name, corpus_path, tmp_path, capsys
):
    value = WRONG_VALUES[name]
    argv = ["finetune", "--data", str(corpus_path), "--output", str(tmp_path / "run")]
    argv += [f"--{name}", *([value] if value else [])]
    assert main(argv) == 2
    line = capsys.readouterr().err
    assert line.startswith("prefchat: error: ") and line.count("\n") == 1
    assert name in line.replace("-", "_")


def test_widths_of_branches_come_from_the_size_or_the_flags():
    config = lambda **changes: FinetuneConfig(data="a", output="b", **changes)
    assert config(model_size="xlarge").branch_widths() == (768, 1536)
    changed = config(model_size="xxlarge", extra_expansion_dim=9).branch_widths()
    assert changed == (1024, 9, 3072)
    with pytest.raises(UserError, match="base has 0 branches"):
        config(model_size="base", expansion_dim=4)


def test_preference_flags_that_would_be_ignored_are_errors():
    config = lambda **changes: FinetuneConfig(data="a", output="b", **changes)
    for wrong, message in (
        ({"pref_objective": "repo_relu", "pref_beta": 2.0}, "pref_beta: repo_relu"),
        ({"pref_objective": "orpo", "pref_beta": 2.0}, "pref_beta: orpo has none"),
        ({"pref_objective": "m:f", "pref_margin": 1.0}, "pref_margin: m:f has none"),
        ({"pref_noise_rate": 0.2}, "pref_noise_rate needs"),
        ({"pref_noise": "re_po", "pref_noise_rate": 0.6}, "pref_noise_rate 0.6"),
        ({"adaptive_pref_weighting": True, "pref_noise": "re_po"}, "give one"),
        ({"pref_noise": "re_po", "pref_weight": 0.0}, "needs --pref_weight"),
        ({"pref_objective": "simpo", "pref_margin": math.inf}, "pref_margin inf"),
        (
            {
                "pref_group_estimator": "softmax",
                "sampling_correction": True,
                "hard_negative_ratio": 1.0,
            },
            "hard_negative_ratio below 1",
        ),
    ):
        with pytest.raises(UserError, match=message):
            config(**wrong)
    assert config(adaptive_pref_weighting=True).noise() == "confidence"
    assert config(pref_noise="smoothing", pref_noise_rate=0.2).noise() == "smoothing"


CHANGES = {
    "pref_weight": 0.0,
    "pref_beta": 5.0,
    "pref_objective": "repo_relu",
    "pref_group_size": 1,
    "pref_group_estimator": "epo",
    "hard_negative_ratio": 0.0,
    "adaptive_pref_weighting": True,
    "pref_noise": "re_po",
    "false_negative_margin": 0.0,
    "pref_warmup_epochs": 0.0,
    "label_smoothing": 0.3,
    "weight_decay": 10.0,
    "grad_clip_norm": 0.01,
    "lr_schedule": "constant",
    "warmup_steps": 3,
    "balanced_sampler": True,
    "learn_from_responses": False,
    "grad_accum_steps": 2,
    "batch_size": 5,
    "seed": 3,
    "split_mode": "random",
}
# What trains the scorer, and nothing else.
SCORER_CHANGES = {
    "scorer_epochs": 1,
    "scorer_width": 32,
    "scorer_batch_size": 7,
    "scorer_lr": 1e-3,
    "scorer_group_estimator": "epo",
    "scorer_hard_negatives": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORER_CHANGES)
def test_each_flag_of_the_scorer_changes_the_scorer_alone(
    name, run, corpus_path, tmp_path
):
    changed = quick(corpus_path, tmp_path / "a", **{name: SCORER_CHANGES[name]})
    result = finetune(changed)
    (shape, params), (old_shape, old) = map(load_scorer, (result.run, run.run))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(old), strict=True)
    same = all(np.array_equal(new, before) for new, before in pairs)
    assert shape != old_shape or not same
    assert result.fit.history[-1]["eval_loss"] == run.fit.history[-1]["eval_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_each_flag_changes_the_run(name, run, corpus_path, tmp_path):
    changed = {name: CHANGES[name]}
    settings = {"pref_weight": 1.0, "epochs": 2}
    plain = finetune(quick(corpus_path, tmp_path / "a", **settings))
    other = finetune(quick(corpus_path, tmp_path / "b", **(settings | changed)))
    key = "eval_loss"
    assert plain.fit.history[-1][key] != other.fit.history[-1][key]


@pytest.mark.slow
def test_each_name_of_the_catalogue_trains_in_its_own_way(run, corpus_path, tmp_path):
    start = {"pref_weight": 1.0, "epochs": 2, "pref_group_size": 3}
    start |= {"weights": str(run.run.path), "train_all": True}
    variants = [{"pref_objective": name} for name in catalogue.OBJECTIVES]
    variants += [{"pref_group_estimator": name} for name in catalogue.GROUPS]
    variants += [{"pref_noise": name} for name in catalogue.NOISE]
    variants += [
        {"pref_group_estimator": "softmax", "sampling_correction": True},
        {"pref_noise": "smoothing", "pref_noise_rate": 0.3},
        {"pref_objective": "simpo", "pref_margin": 2.0},
    ]
    found = [
        finetune(quick(corpus_path, tmp_path / str(i), **start, **changes))
        for i, changes in enumerate(variants)
    ]
    losses = [result.fit.history[-1]["loss/pref"] for result in found]
    # sigmoid, pairwise_mean and no noise are one and the same, thrice.
    assert len(set(losses)) == len(variants) - 2, losses


# --- commands


def test_help_is_fast_and_imports_no_jax():
    code = (
        "import sys, time; start = time.perf_counter(); "
        "from prefchat_jax.cli.main import main; main(['--help']); "
        "assert 'jax' not in sys.modules and 'tyro' not in sys.modules; "
        "print(time.perf_counter() - start)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert all(name in out for name in COMMANDS)
    assert float(out.split()[-1]) < 0.2


def test_the_package_is_a_command_too():
    argv = [sys.executable, "-m", "prefchat_jax", "chta"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 2 and "no command 'chta'" in done.stderr


@pytest.mark.parametrize("command", ["finetune", "chat", "evaluate", "index", "demo"])
def test_every_command_explains_its_flags(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "--device" in capsys.readouterr().out or command == "index"


def test_losses_and_env_print_what_they_promise(capsys):
    assert main(["losses"]) == 0
    out = capsys.readouterr().out
    assert "repo_relu" in out and "2305.18290" in out and "epo" in out
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert "jax" in out and "devices" in out


def test_finetune_evaluate_and_chat_work_together(
    corpus_path, tmp_path, capsys, monkeypatch
):
    output, meta = str(tmp_path / "run"), str(tmp_path / "meta.json")
    argv = ["finetune", "--data", str(corpus_path), "--output", output]
    argv += ["--meta", meta, "--epochs", "5", "--model_size", "base", "--device", "cpu"]
    argv += ["--warmup_steps", "999", "--pref_group_size", "9", "--lr", "0.02"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "epoch  5" in out and "best epoch" in out and output in out
    assert re.search(r"--warmup_steps 999 cut to \d+: the run has \d+ steps", out)
    assert "--pref_group_size 9 cut to 3" in out
    assert "chat would refuse 0% of 4 answered validation rows" in out
    assert "so few rows say little" in out and "hardly anything" not in out
    assert json.loads((tmp_path / "meta.json").read_text())["labels"][0]["label"]
    held_out = tmp_path / "val.jsonl"
    held_out.write_text(
        corpus_path.read_text().splitlines()[0]
        + '\n{"user": "pizza", "label": "out_of_scope"}\n'
    )
    figures = tmp_path / "figures.json"
    argv = ["evaluate", "--weights", output, "--data", str(held_out)]
    assert main([*argv, "--json", str(figures)]) == 0
    values = json.loads(figures.read_text())
    assert values["accuracy"] == 1.0 and {"right", "refused"} <= set(values)
    assert "macro_f1" in capsys.readouterr().out

    monkeypatch.setattr("sys.stdin", open(held_out.parent / "lines", "w+"))  # noqa: SIM115
    with sys.stdin:
        sys.stdin.write("where is my parcel\n\n/why\nmoney back\n/quit\nnever\n")
        sys.stdin.seek(0)
        argv = ["chat", "--weights", output, "--meta", meta, "--min_confidence", "0"]
        assert main(argv) == 0
    out = capsys.readouterr().out
    assert "Open Orders" in out and "[refund] confidence" in out
    for wrong in (["--expansion_dim", "9"], ["--model_size", "large"]):
        assert main([*argv, *wrong]) == 2
        assert wrong[0] in capsys.readouterr().err


def test_a_run_that_will_refuse_says_so(tmp_path, capsys):
    """Each question has as many replies as there are: none is ever likely."""
    rows = [
        {"user": f"{word} {extra}", "assistant": f"Reply {i}.", "label": word}
        for word in ("parcel", "refund")
        for extra in ("please", "today", "now", "help", "again")
        for i in range(12)
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["finetune", "--data", str(path), "--output", str(tmp_path / "r")]
    argv += ["--epochs", "2", "--model_size", "base", "--val_split", "0.3"]
    assert main([*argv, "--scorer_epochs", "0"]) == 0
    out = capsys.readouterr().out
    share = int(re.search(r"refuse (\d+)% of 48 answered validation rows", out)[1])
    assert share > 50 and "hardly anything would be answered" in out
    assert "so few rows" not in out


# --- bad input: one line, exit code 2


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


def _one_line(capsys):
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "Event loop is closed" not in line]
    assert len(lines) == 1 and lines[0].startswith("prefchat: error: "), error
    return lines[0]


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_corpora(name, tmp_path, capsys):
    text, message = BAD_INPUT[name]
    argv = _file(tmp_path, text or "")
    if text is None:
        (tmp_path / "bad.jsonl").unlink()
    assert main(argv) == 2
    assert re.search(message, _one_line(capsys))
    assert not (tmp_path / "r").exists()


def test_bad_manifests_and_gzip(tmp_path, capsys):
    (tmp_path / "m.json").write_text('{"files": 3}')
    output = ["--output", str(tmp_path / "r")]
    argv = ["finetune", "--data_manifest", str(tmp_path / "m.json"), *output]
    assert main(argv) == 2 and "list of file names" in _one_line(capsys)
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8bnot gzip")
    argv = ["finetune", "--data", str(tmp_path / "a.jsonl.gz"), *output]
    assert main(argv) == 2 and "damaged gzip" in _one_line(capsys)


@pytest.fixture
def own_run(run, tmp_path):
    return shutil.copytree(run.run.path, tmp_path / "run")


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
    return r"\d cannot be loaded: the checkpoint is damaged, or of another shape\."


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
    assert re.search(message, _one_line(capsys)) and not caplog.records


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
    line = _one_line(capsys)
    assert re.search(rf"{name} (is not a database of replies|belongs to another)", line)
    assert "check --" in line and "delete" not in line
    assert (tmp_path / name).read_bytes() == before


def test_an_unknown_label_at_evaluation(own_run, tmp_path, capsys):
    path = tmp_path / "val.jsonl"
    path.write_text('{"user": "q", "label": "refund"}\n{"user": "q", "label": "no"}\n')
    assert main(["evaluate", "--weights", str(own_run), "--data", str(path)]) == 2
    assert re.search(r"val\.jsonl:2: label 'no' is not one of the 4", _one_line(capsys))


def test_an_existing_run_is_not_overwritten(own_run, corpus_path, capsys):
    before = (own_run / "config.json").read_bytes()
    argv = ["finetune", "--data", str(corpus_path), "--output", str(own_run)]
    assert main(argv) == 2 and "--resume" in _one_line(capsys)
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
    assert message in _one_line(capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"old", "c.jsonl", "m.json"}


def test_one_training_at_a_time_writes_a_run(corpus_path, tmp_path, capsys):
    argv = ["finetune", "--data", str(corpus_path), "--output", str(tmp_path / "r")]
    with RunDirectory(tmp_path / "r").alone():
        assert main(argv) == 2 and "another finetune" in _one_line(capsys)
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
    assert re.search(rf"{re.escape(name)}.*No space left on device", _one_line(capsys))
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
    assert "full" in _one_line(capsys)
    assert (own_run / "responses.db").read_bytes() == before


@pytest.mark.parametrize("where", ["a directory", "no such folder"])
def test_a_database_that_is_no_file(where, own_run, tmp_path, capsys):
    path = tmp_path if where == "a directory" else tmp_path / "no" / "x.db"
    argv = ["chat", "--weights", str(own_run), "--llm_db", str(path)]
    assert main(argv) == 2 and str(path) in _one_line(capsys)


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
    assert f"error: {argv[-2]} {argv[-1]}: must be" in _one_line(capsys)


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
    assert main(argv) == 2 and "another run" in _one_line(capsys)


def test_files_of_a_run_can_be_read_by_others(own_run, run):
    mode = (run.run.path / "config.json").stat().st_mode & 0o777
    assert mode == 0o666 & ~_umask()


def _umask():
    os.umask(mask := os.umask(0))
    return mask


def test_a_nan_loss(corpus_path, tmp_path, capsys):
    argv = ["finetune", "--data", str(corpus_path), "--output", str(tmp_path / "r")]
    argv += ["--pref_objective", "test_training:nan_loss", "--model_size", "base"]
    assert main(argv) == 2 and "loss/pref is nan at step 1" in _one_line(capsys)


def test_an_unknown_command_and_device(capsys, corpus_path, tmp_path):
    assert main(["train"]) == 2 and "no command 'train'" in _one_line(capsys)


def test_the_device_that_is_not_there_is_one_line(corpus_path, tmp_path):
    argv = ["finetune", "--data", str(corpus_path), "--output", str(tmp_path / "r")]
    code = f"from prefchat_jax.cli.main import main; main({[*argv, '--device', 'tpu']})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if "prefchat: error" in line]
    assert len(lines) == 1 and "--device tpu: JAX finds none here" in lines[0]
    assert "Traceback" not in done.stderr
