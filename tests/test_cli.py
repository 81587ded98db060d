import dataclasses
import io
import json
import math
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import one_line, quick

from prefchat_jax.cli import flags
from prefchat_jax.cli.chat import ChatFlags
from prefchat_jax.cli.main import COMMANDS, main
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import finetune
from prefchat_jax.training import catalogue
from prefchat_jax.training.checkpoints import load_scorer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.groups_of_flags import OF_PREFERENCE_LOSS

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


def test_no_file_of_rows_replaces_another(tmp_path):
    twice = ["--output", "o", "--data", "a.jsonl", "--data=b.jsonl"]
    with pytest.raises(UserError, match=r"a\.jsonl and --data b\.jsonl: give .*manif"):
        _parse(FinetuneConfig, twice)
    twice = ["--output", "o", "--preferences", "a", "--preferences", "b"]
    with pytest.raises(UserError, match="--preferences b: give it once"):
        _parse(FinetuneConfig, twice)
    # What else is given twice is overridden, and so is a file of --config.
    (tmp_path / "c.yaml").write_text("data: a\noutput: o\nepochs: 1\n")
    argv = ["--config", str(tmp_path / "c.yaml"), "--data", "b"]
    config = _parse(FinetuneConfig, [*argv, "--epochs", "2", "--epochs", "3"])
    assert (config.data, config.epochs) == ("b", 3)


def test_a_yaml_file_is_overridden_by_flags(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: a\noutput: b\nepochs: 3\ntrain-all: true\nmeta: null\n")
    config = _parse(FinetuneConfig, ["--config", str(path), "--epochs", "5"])
    assert (config.data, config.epochs, config.train_all) == ("a", 5, True)
    assert not _parse(FinetuneConfig, [f"--config={path}", "--no_train_all"]).train_all
    path.write_text("epoch: 3\n")
    with pytest.raises(UserError, match=r"run\.yaml:1: no flag 'epoch'"):
        _parse(FinetuneConfig, ["--config", str(path)])


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("", ["--epochs", "ten"], "--epochs ten: give a whole number."),
        ("", ["--lr=ten"], "--lr ten: give a number."),
        ("", ["--pref-beta", "ten"], "--pref_beta ten: give a number."),
        ("", ["--pref_noise", "no"], "--pref_noise no: use one of none, confidence"),
        ("", ["--epochs"], "--epochs needs a value."),
        ("epochs: ten", [], "run.yaml:1: --epochs ten: give a whole number."),
        ("epochs: 0", [], "run.yaml:1: --epochs 0: must be at least 1."),
        ("output: b\ntrain-all: maybe", [], "run.yaml:2: --train_all maybe: say --tr"),
        ("resume: 1", [], "run.yaml:1: --resume 1: say --resume or --no_resume, in a "),
        ('{"val": "a",\n "resume": "no"}', [], "run.yaml:2: --resume no: say --resume"),
        ("lr: [0.1, 0.2]", [], "run.yaml:1: --lr 0.1 0.2: give one value."),
        ("", ["--no_train_all", "x"], "--no_train_all x: say --train_all or --no_"),
        ("epochs: 0", ["--epochs", "x"], "--epochs x: give a whole number."),
        ("meta: ''", [], "run.yaml:1: --meta is empty"),
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
    assert "--delete x: give a whole number." in one_line(capsys)
    assert main(["chat"]) == 2
    assert "error: --weights is missing: Run directory" in one_line(capsys)


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
    assert f"{argv[-2]} is empty" in one_line(capsys)
    assert not list(tmp_path.iterdir())


WRONG_VALUES = {
    "val_split": "1.5",
    "epochs": "0",
    "batch_size": "0",
    "grad_accum_steps": "0",
    "lr": "0",
    "weight_decay": "-1",
    "label_smoothing": "2",
    "gce_q": "0",
    "logit_adjustment": "-1",
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
    "length_control": "matched",
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
    "frozen_features": None,
    "seed": "-1",
    "data_seed": "-1",
    "device": "npu",
    "compute_dtype": "float16",
    "report_to": "wandb",
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


def test_flags_of_cross_entropy_that_do_not_go_together_are_errors():
    config = lambda **changes: FinetuneConfig(data="a", output="b", **changes)
    for wrong, message in (
        ({"gce_q": 0.7, "label_smoothing": 0.05}, "--label_smoothing 0.05 is for"),
        ({"gce_q": 1.01}, r"--gce_q 1.01: must be in \[1e-12, 1\]"),
        ({"logit_adjustment": math.inf}, "must be at least 0, and finite"),
        ({"logit_adjustment": math.nan}, "--logit_adjustment nan: must be at least 0"),
        ({"logit_adjustment": 1.0, "balanced_sampler": True}, "--balanced_sampler"),
        (
            {"gce_q": 0.7, "preferences": "c", "weights": "d"},
            "--gce_q has no meaning with --preferences",
        ),
    ):
        with pytest.raises(UserError, match=message):
            config(**wrong)
    # What is left to the run, and what is asked for though it changes nothing.
    assert config().smoothing() == 0.05
    assert config(gce_q=0.7).smoothing() == 0.0
    assert config(gce_q=0.7, label_smoothing=0.0).smoothing() == 0.0
    assert config(label_smoothing=0.3).smoothing() == 0.3
    assert config(balanced_sampler=True).logit_adjustment == 0.0


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
        ({"pref_weight": 0.0, "pref_beta": 3.0}, "pref_beta 3.0 needs --pref_weight"),
        (
            {"pref_weight": 0.0, "approximate_negatives": True},
            "--approximate_negatives needs --pref_weight above 0",
        ),
        ({"pref_objective": "simpo", "pref_margin": math.inf}, "pref_margin inf"),
        (
            {
                "pref_group_estimator": "softmax",
                "sampling_correction": True,
                "hard_negative_ratio": 1.0,
            },
            "hard_negative_ratio below 1",
        ),
        (
            {"approximate_negatives": True, "hard_negative_ratio": 0.0},
            "hard_negative_ratio above 0",
        ),
        (
            {
                "approximate_negatives": True,
                "pref_group_estimator": "softmax",
                "sampling_correction": True,
            },
            "approximate_negatives: --sampling_correction",
        ),
    ):
        with pytest.raises(UserError, match=message):
            config(**wrong)
    for name in OF_PREFERENCE_LOSS:
        if name in CHANGES:
            with pytest.raises(UserError, match=f"{name}|pref_noise"):
                config(**{name: CHANGES[name], "pref_weight": 0.0})
    # Epochs over pairs are compared by the loss, also where it has no weight.
    pairs = {"preferences": "c", "weights": "d", "pref_objective": "dpo"}
    assert config(pref_weight=0.0, **pairs).pref_objective == "dpo"
    assert config(adaptive_pref_weighting=True).noise() == "confidence"
    assert config(pref_noise="smoothing", pref_noise_rate=0.2).noise() == "smoothing"


CHANGES = {
    "compute_dtype": "bfloat16",
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
    "gce_q": 0.7,
    "logit_adjustment": 1.0,
    "weight_decay": 10.0,
    "grad_clip_norm": 0.01,
    "lr_schedule": "constant",
    "warmup_steps": 3,
    "balanced_sampler": True,
    "learn_from_responses": False,
    "grad_accum_steps": 2,
    "batch_size": 5,
    "seed": 3,
    "data_seed": 3,
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


@pytest.mark.parametrize(
    "command", ["finetune", "sweep", "chat", "evaluate", "index", "demo"]
)
def test_every_command_explains_its_flags(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "--device" in capsys.readouterr().out or command == "index"


def test_losses_and_env_print_what_they_promise(capsys):
    assert main(["losses"]) == 0
    out = capsys.readouterr().out
    assert "repo_relu" in out and "2305.18290" in out and "epo" in out
    assert "--gce_q" in out and "2007.07314" in out
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
    argv += ["--approximate_negatives", "--num_buckets", "7"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "epoch  5" in out and "best epoch" in out and output in out
    assert re.search(r"--warmup_steps 999 cut to \d+: the run has \d+ steps", out)
    assert "--pref_group_size 9 cut to 3" in out
    assert "--approximate_negatives changes nothing: 4 buckets are too few" in out
    assert "--num_buckets 7 changes nothing: the rows have 4 labels" in out
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


@pytest.mark.parametrize(
    "command",
    [
        ["chat", "--json"],
        ["evaluate", "--data", "{corpus}"],
        ["index", "--stats"],
        ["export", "--output", "{folder}/m.npz"],
    ],
)
def test_a_run_may_come_first(
    command, own_run, corpus_path, tmp_path, capsys, monkeypatch
):
    """`prefchat chat RUN` is `prefchat chat --weights RUN`."""
    words = {"corpus": corpus_path, "folder": tmp_path}
    (tmp_path / "m.npz").touch()  # Replaced both times.
    name, *rest = (word.format(**words) for word in command)
    said = []
    for run in ([str(own_run)], ["--weights", str(own_run)]):
        monkeypatch.setattr("sys.stdin", io.StringIO("when are you open\n"))
        assert main([name, *run, *rest]) == 0
        said.append(capsys.readouterr().out)
    assert all(said) and (said[0] == said[1] or name in ("chat", "evaluate"))
    assert main([name, "twice", "--weights", str(own_run), *rest]) == 2
    assert "twice and --weights: both name it" in capsys.readouterr().err
