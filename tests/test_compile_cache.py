"""Compiled programs on disk change how long a command takes, and nothing else."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import one_line

from prefchat_jax.cli import compile_cache
from prefchat_jax.cli.main import main
from prefchat_jax.errors import UserError
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.run_directory import RunDirectory

_MAIN = "import sys; from prefchat_jax.cli.main import main; sys.exit(main())"


@pytest.fixture
def settings():
    """JAX's, as they were, after the test."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


def _start(corpus, output, cache):
    argv = ["finetune", "--data", str(corpus), "--output", str(output)]
    argv += ["--model_size", "base", "--epochs", "2", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", _MAIN, *argv],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _trained(process, output):
    """What a finished process left: the parameters, and the losses of its epochs."""
    _, errors = process.communicate()
    assert process.returncode == 0 and "compilation cache" not in errors, errors
    lines = (output / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if "second" not in k}
            for line in lines]  # fmt: skip
    params = load_model(RunDirectory.open(output))[1]
    return [leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(params))], rows


def test_kept_programs_train_to_the_same_bytes(corpus_path, tmp_path):
    """Also where two processes keep them at once, and where one was kept by half."""
    cache = tmp_path / "cache"
    output = lambda name: tmp_path / name
    pair = [_start(corpus_path, output(name), cache) for name in ("one", "two")]
    compiled, other = (
        _trained(process, output(name))
        for process, name in zip(pair, ("one", "two"), strict=True)
    )
    assert compiled == other
    kept = sorted(cache.rglob("*-cache"))
    steps = [path for path in kept if "run_steps" in path.name]
    assert len(steps) == 1  # An epoch is one program, and both processes' is one.
    content = kept[0].read_bytes()
    kept[0].write_bytes(content[: len(content) // 2])
    warm = _trained(_start(corpus_path, output("warm"), cache), output("warm"))
    assert warm == compiled and sorted(cache.rglob("*-cache")) == kept


def test_an_evaluation_keeps_its_program(run, corpus_path, tmp_path):
    argv = ["evaluate", "--weights", run.run.path, "--data", corpus_path]
    argv += ["--device", "cpu"]

    def kept(cache, *flags):
        subprocess.run(
            [sys.executable, "-c", _MAIN, *map(str, argv), *flags],
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return [path.name for path in cache.rglob("*-cache")]

    [name] = kept(tmp_path / "cache")
    assert "logits" in name and kept(tmp_path / "cache") == [name]
    assert not kept(tmp_path / "none", "--no_compile_cache")


def test_programs_are_kept_by_version_and_processor(monkeypatch, tmp_path, settings):
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache.use_compile_cache(True)
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert folder.is_dir() and folder.is_relative_to(tmp_path)
    assert jax.lib.__version__ in folder.name
    monkeypatch.setattr(compile_cache, "_processor", lambda: "another")
    assert compile_cache.cache_folder() != folder
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compile_cache.cache_folder().is_relative_to(tmp_path / "home" / ".cache")


def test_a_home_that_cannot_be_written_is_no_failure(monkeypatch, tmp_path, settings):
    jax.config.update("jax_compilation_cache_dir", None)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_cache.use_compile_cache(True)
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    compile_cache.use_compile_cache(True)
    assert jax.config.jax_compilation_cache_dir is None


def test_what_the_user_told_jax_stays(monkeypatch, tmp_path, settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "/else/where")
    compile_cache.use_compile_cache(True)
    assert jax.config.jax_compilation_cache_dir == "/else/where"
    assert not list(tmp_path.iterdir())
    compile_cache.use_compile_cache(False)
    assert not jax.config.jax_enable_compilation_cache


def test_the_oldest_programs_go_when_there_are_too_many(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_cache, "_MOST_BYTES", 25)
    for age, name in enumerate(("new", "middle", "old")):
        path = tmp_path / f"version{age}" / f"{name}-cache"
        path.parent.mkdir()
        path.write_bytes(bytes(10))
        os.utime(path, (1_000 - age, 1_000 - age))
    compile_cache._prune(tmp_path)
    assert {path.name for path in tmp_path.rglob("*-cache")} == {
        "new-cache",
        "middle-cache",
    }


COMMANDS = ["finetune", "sweep", "demo", "evaluate"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flags", [[], ["--no_compile_cache"]])
def test_commands_that_compile_keep_programs(
    monkeypatch, corpus_path, run, tmp_path, command, flags
):
    told = []

    def stop(enabled):
        told.append(enabled)
        raise UserError("enough")

    module = importlib.import_module(f"prefchat_jax.cli.{command}")
    monkeypatch.setattr(module, "use_compile_cache", stop)
    data = [] if command == "demo" else ["--data", str(corpus_path)]
    where = ["--output", str(tmp_path / "run")]
    where = ["--weights", str(run.run.path)] if command == "evaluate" else where
    assert main([command, *where, *data, *flags]) == 2
    assert told == [not flags]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_value_is_one_line(capsys, command):
    where = "--weights" if command == "evaluate" else "--output"
    assert main([command, "--compile_cache", "maybe", where, "X"]) == 2
    assert "maybe" in one_line(capsys)
