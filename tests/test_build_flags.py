"""Flags of `prefchat build`: each changes the corpus, and a wrong one is one line."""

import dataclasses
import json

import pytest
from test_building import lines_of, many, write_rows

from prefchat_jax.building.build import build
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.cli import flags
from prefchat_jax.cli.main import main
from prefchat_jax.errors import UserError

SEED_BUILD = (
    "--inputs a.jsonl b.jsonl.gz dir/ --inputs_manifest shards.json --output o.jsonl "
    "--target 260000 --creative_prob 0.3 --blend_prob 0.2 "
    "--programming_boost_factor 2.5 --allow_duplicates --min_user_chars 4 "
    "--min_assistant_chars 12 --max_repeat_ratio 0.78 --max_rows_per_input 5000 "
    "--skip_missing_inputs --seed 7"
)


def test_every_flag_of_the_seed_is_read_with_its_meaning():
    config = flags.parse(BuildConfig, "build", SEED_BUILD.split())
    assert config == BuildConfig(
        inputs=("a.jsonl", "b.jsonl.gz", "dir/"),
        inputs_manifest="shards.json",
        output="o.jsonl",
        target=260_000,
        creative_prob=0.3,
        blend_prob=0.2,
        programming_boost_factor=2.5,
        allow_duplicates=True,
        min_user_chars=4,
        min_assistant_chars=12,
        max_repeat_ratio=0.78,
        max_rows_per_input=5000,
        skip_missing_inputs=True,
        seed=7,
    )
    assert config.augments


def test_lists_in_a_yaml_file(tmp_path):
    path = tmp_path / "build.yaml"
    path.write_text(
        "inputs: [a.jsonl, b.jsonl]\noutput: o.jsonl\nskip-filters: [echo]\n"
    )
    config = flags.parse(BuildConfig, "build", ["--config", str(path)])
    assert config.inputs == ("a.jsonl", "b.jsonl") and config.skip_filters == ("echo",)


def _noisy_rows():
    """Rows to which every filter, and every comparison, has something to say."""
    rows = many(30)
    rows += [rows[0], rows[1] | {"assistant": "a reply of another kind, I believe"}]
    rows.append(rows[2] | {"assistant": f"{rows[2]['assistant']}x"})  # Its last word.
    rows += [
        {"user": "hm?", "assistant": "a short question with a reply"},
        {"user": "a question that is not at all short", "assistant": "two words."},
        {"user": "how do I?", "assistant": "so so so so so so so so so so so"},
        {"user": "how is it?", "assistant": "It is soooooooooo good, you know."},
        {"user": "whom do I ask?", "assistant": "Write to ann@example.org, please."},
        *(
            {"user": f"how do I fix {n} python code?", "assistant": "See sql, json."}
            | {"source": "code"}
            for n in ("your", "their", "other", "all the", "this one")
        ),
    ]
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": f"{i} is the turn's number"}
        for i in range(6)
    ]
    return [*rows, {"messages": turns}]


CHANGES = {
    "max_rows_per_input": 20,
    "skip_filters": ("repetition",),
    "min_user_chars": 20,
    "max_user_chars": 30,
    "min_assistant_chars": 40,
    "max_assistant_chars": 60,
    "min_assistant_words": 5,
    "max_repeat_ratio": 0.99,
    "max_char_run": 20,
    "personal_data": "mask",
    "max_turns": 1,
    "allow_duplicates": True,
    "dedupe_on": "context",
    "near_duplicates": 0.0,
    "holdout": ("held.jsonl",),
    "target": 9,
    "source_weights": ("in=0",),
    "programming_boost_factor": 1000.0,
    "augment": True,
    "creative_prob": 1.0,
    "blend_prob": 1.0,
    "seed": 3,
    "inputs_manifest": "more.json",
}
NEED_TARGET = {"source_weights": 9, "programming_boost_factor": 9, "seed": 9}
NEED_TARGET |= {"augment": 60, "creative_prob": 60, "blend_prob": 60}


@pytest.mark.parametrize("name", CHANGES)
def test_each_flag_changes_the_corpus(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "in.jsonl", _noisy_rows())
    write_rows(tmp_path / "held.jsonl", _noisy_rows()[4:6])
    write_rows(tmp_path / "other.jsonl", many(9, 5))
    (tmp_path / "more.json").write_text(json.dumps(["other.jsonl"]))
    settings = {"target": NEED_TARGET.get(name), "workers": 1}
    if name in ("creative_prob", "blend_prob"):
        settings["augment"] = True

    def built(**changes):
        config = BuildConfig(inputs=("in.jsonl",), output="out.jsonl", **changes)
        build(config)
        return lines_of(tmp_path / "out.jsonl")

    assert built(**settings) != built(**settings | {name: CHANGES[name]})


def test_the_table_of_changes_is_whole():
    fields = {field.name for field in dataclasses.fields(BuildConfig)}
    elsewhere = {"inputs", "output", "skip_missing_inputs", "max_memory", "workers"}
    assert fields == set(CHANGES) | elsewhere


WRONG_VALUES = {
    "inputs": "gone.jsonl",
    "inputs_manifest": "gone.json",
    "output": "in.jsonl",
    "max_rows_per_input": "0",
    "skip_filters": "refusals",
    "min_user_chars": "-1",
    "max_user_chars": "0",
    "min_assistant_chars": "x",
    "max_assistant_chars": "0",
    "min_assistant_words": "-1",
    "max_repeat_ratio": "1.5",
    "max_char_run": "0",
    "personal_data": "hide",
    "max_turns": "-1",
    "dedupe_on": "reply",
    "near_duplicates": "80",
    "holdout": "gone.jsonl",
    "target": "0",
    "source_weights": "a=much",
    "programming_boost_factor": "0",
    "augment": None,
    "creative_prob": "2",
    "blend_prob": "-0.1",
    "max_memory": "1M",
    "workers": "0",
    "seed": "-1",
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_a_wrong_value_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = write_rows(tmp_path / "in.jsonl", many(3)).read_bytes()
    argv = {"inputs": "in.jsonl", "output": "out.jsonl"} | {name: WRONG_VALUES[name]}
    words = [word for flag, value in argv.items() for word in (f"--{flag}", value)]
    assert main(["build", *(word for word in words if word is not None)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("prefchat: error: ") and line.count("\n") == 1
    named = WRONG_VALUES[name] or "augmentation"
    assert name in line.replace("-", "_") or named in line
    assert not (tmp_path / "out.jsonl").exists()
    assert (tmp_path / "in.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"inputs": ()}, "--inputs is missing"),
        ({"source_weights": ("a=2",)}, "does nothing without --target"),
        ({"programming_boost_factor": 2.0}, "does nothing without --target"),
        ({"blend_prob": 0.1}, "does nothing without --target"),
        (
            {"allow_duplicates": True, "dedupe_on": "context"},
            "--dedupe_on does nothing",
        ),
        ({"max_memory": "lots"}, "write 1GiB or 800M"),
        ({"source_weights": ("a=-1",), "target": 9}, "write SOURCE=WEIGHT"),
        ({"source_weights": ("2",), "target": 9}, "write SOURCE=WEIGHT"),
    ],
)
def test_flags_that_would_be_ignored_are_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        BuildConfig(**{"inputs": ("a",), "output": "b"} | wrong)


@pytest.mark.parametrize(
    "text, size", [("1GiB", 2**30), ("800M", 800 * 2**20), ("1.5 gb", 3 * 2**29)]
)
def test_memory_is_read_as_people_write_it(text, size):
    assert BuildConfig(inputs=("a",), output="b", max_memory=text).memory == size


def test_little_memory_means_fewer_processes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "in.jsonl", many(3))
    argv = ["build", "--inputs", "in.jsonl", "--output", "out.jsonl"]
    assert main([*argv, "--workers", "9", "--max_memory", "256M"]) == 0
    out = capsys.readouterr().out
    assert "1 processes instead of 9" in out and "next: prefchat finetune" in out
    assert "3 rows in out.jsonl" in out and "out.report.html" in out


def test_a_folder_without_corpora_and_an_empty_file(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").write_text("\n\n")
    output = ["--output", str(tmp_path / "out.jsonl")]
    for path, message in (("empty", "holds no .jsonl"), ("none.jsonl", "no rows")):
        assert main(["build", "--inputs", str(tmp_path / path), *output]) == 2
        assert message in capsys.readouterr().err


def test_a_damaged_gzip_file(tmp_path, capsys):
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b\x08 no")
    argv = ["--inputs", str(tmp_path / "a.jsonl.gz"), "--output", str(tmp_path / "o")]
    assert main(["build", *argv]) == 2
    assert "a.jsonl.gz is a damaged gzip file" in capsys.readouterr().err
