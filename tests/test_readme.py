"""Every code block of the README runs, in order, as it stands."""

import pathlib
import re
import sys

from prefchat_jax import losses
from prefchat_jax.cli.main import main
from prefchat_jax.training import catalogue

README = pathlib.Path(__file__).parents[1] / "README.md"


def _blocks():
    return re.findall(r"^```(bash|python)\n(.*?)^```", README.read_text(), re.M | re.S)


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


def test_code_blocks_run(corpus_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", (tmp_path / "stdin").open("w+"))
    (tmp_path / "corpus.jsonl").write_text(corpus_path.read_text())
    namespace = {}
    ran = {"bash": 0, "python": 0}
    for language, text in _blocks():
        if language == "bash":
            for line in text.splitlines():
                program, *argv = line.split()
                assert program == "prefchat"
                assert main(argv) == 0, capsys.readouterr().err
                ran["bash"] += 1
        elif text.startswith("# mylosses.py"):
            (tmp_path / "mylosses.py").write_text(text)
        else:
            exec(compile(text, str(README), "exec"), namespace)
            ran["python"] += 1
    sys.stdin.close()
    assert ran["bash"] >= 3 and ran["python"] >= 2
    assert float(namespace["loss"]) < 0.1
    assert (
        namespace["chat"].reply("do you sell umbrellas").text == "Yes, at the counter."
    )


def test_every_function_with_a_paper_and_every_name_is_mentioned():
    names = {
        name
        for name, value in vars(losses).items()
        if callable(value) and "https://" in (value.__doc__ or "")
    }
    assert {"dpo", "softmax", "wpo_weights", "kto"} <= names
    names |= {*catalogue.OBJECTIVES, *catalogue.GROUPS, *catalogue.NOISE} - {"none"}
    words = set(re.findall(r"\w+", README.read_text()))
    assert not names - words


def test_every_flag_it_names_exists():
    import dataclasses

    from prefchat_jax.building.config import BuildConfig
    from prefchat_jax.cli.chat import ChatFlags
    from prefchat_jax.cli.evaluate import EvaluateFlags
    from prefchat_jax.cli.index import IndexFlags
    from prefchat_jax.cli.serve import ServeFlags
    from prefchat_jax.training.sweep_config import SweepConfig

    configs = (
        BuildConfig,
        ChatFlags,
        EvaluateFlags,
        IndexFlags,
        ServeFlags,
        SweepConfig,  # Has the flags of finetune, too.
    )
    known = {f.name for c in configs for f in dataclasses.fields(c)}
    known |= {f"no_{name}" for name in known}
    known |= {
        "peers",
        "help",
        "config",
        "corpus",
        "json",
        "folder",
        "sizes",
        "rows",
    }
    named = set(re.findall(r"--([a-z_0-9]+)", README.read_text()))
    assert named and not named - known, named - known
