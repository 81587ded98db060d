"""Hazards of builds: leaking held-out rows, losing labels, touching foreign files."""

import json

import pytest
from test_building import (
    GOOD,
    assert_accounts,
    build_files,
    build_rows,
    many,
    write_rows,
)

from prefchat_jax.building import parts
from prefchat_jax.building.build import build
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.cli.main import main
from prefchat_jax.errors import UserError


def test_pairs_of_a_held_out_file_are_only_compared_with(tmp_path):
    pair = {"prompt": "what is left?", "chosen": "a better one", "rejected": "a worse"}
    held = write_rows(tmp_path / "test.jsonl", [pair, pair])
    rows = [*many(9), pair, pair | {"prompt": "what is right?"}]
    rows.append({"user": "What is left?", "assistant": "A reply of another kind."})
    _, report = build_rows(tmp_path, rows, holdout=(str(held),))
    assert report["reasons"]["held_out"]["rows"] == 2
    assert report["rows"]["pairs"] == 1 and report["rows"]["kept"] == 9
    assert_accounts(report)
    assert report["reasons"]["held_out"]["examples"][0][0].endswith("in.jsonl:12")


def test_caps_and_masks_do_not_weaken_a_held_out_file(tmp_path):
    rows = many(12)
    rows[11]["user"] = "my number is 555-867-5309"
    held = write_rows(tmp_path / "test.jsonl", rows[8:])
    settings = {"holdout": (str(held),), "near_duplicates": 0}
    got, _ = build_rows(tmp_path, rows[6:], **settings, max_rows_per_input=3)
    assert [row["user"] for row in got] == [row["user"] for row in rows[6:8]]
    got, _ = build_rows(tmp_path, rows[6:], **settings, personal_data="mask")
    assert len(got) == 2
    empty = write_rows(tmp_path / "rubbish.jsonl", [{"no": "row"}])
    with pytest.raises(UserError, match="no row to hold out"):
        build_rows(tmp_path, rows, holdout=(str(empty),))


def test_a_system_prompt_neither_makes_duplicates_nor_hides_them(tmp_path):
    system = {"role": "system", "content": " ".join(f"s{i}" for i in range(60))}
    turns = lambda row: [
        system,
        {"role": "user", "content": row["user"]},
        {"role": "assistant", "content": row["assistant"]},
    ]
    rows = many(8)
    got, _ = build_rows(tmp_path, [{"messages": turns(row)} for row in rows])
    assert len(got) == 8
    held = write_rows(tmp_path / "test.jsonl", rows[:3])
    dialogues = [{"messages": turns(row)} for row in rows]
    got, _ = build_rows(tmp_path, dialogues, holdout=(str(held),))
    assert len(got) == 5
    greeting = [
        {"role": "user", "content": "hello there, good morning to all of you"},
        {"role": "assistant", "content": "Hi, how can I help you on this fine day?"},
    ]
    long = [{"messages": greeting + turns(row)[1:]} for row in rows]
    got, _ = build_rows(tmp_path, long)
    assert len(got) == 9


def test_near_copies_of_a_template_are_found(tmp_path):
    """Many rows share a bucket, where few words tell them apart."""
    template = " ".join(f"t{i}" for i in range(40))
    rows = [{"user": f"{template} item{i}", "label": "x"} for i in range(300)]
    got, _ = build_rows(tmp_path, rows)
    assert len(got) == 1  # Each is like the first: 40 of 42 word pairs.
    held = write_rows(tmp_path / "test.jsonl", rows[:100])
    copies = [row | {"user": f"{row['user']} please"} for row in rows[:100]]
    got, _ = build_rows(tmp_path, [*many(5), *copies], holdout=(str(held),))
    assert len(got) == 5


def test_folders_and_files_of_others_are_left_alone(tmp_path, capsys):
    write_rows(tmp_path / "in.jsonl", many(3))
    other = tmp_path / "out.jsonl.build"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not of a build"):
        build_files(tmp_path, [tmp_path / "in.jsonl"])
    assert (other / "thesis.txt").read_text() == "mine"
    (other / "thesis.txt").unlink()
    mine = tmp_path / "out.preferences.jsonl"
    mine.write_text("mine")
    build_files(tmp_path, [tmp_path / "in.jsonl"])
    assert mine.read_text() == "mine"
    for name in ("out.jsonl", "out.preferences.jsonl"):
        config = BuildConfig(
            inputs=(str(tmp_path / "in.jsonl"),),
            output=str(tmp_path / "out.jsonl"),
            holdout=(str(tmp_path / name),),
        )
        with pytest.raises(UserError, match="is read, and the output"):
            build(config)


def test_pairs_of_an_earlier_build_go(tmp_path):
    pair = {"prompt": "p", "chosen": "a better one", "rejected": "a worse"}
    build_rows(tmp_path, [*many(3), pair])
    assert (tmp_path / "out.preferences.jsonl").exists()
    build_rows(tmp_path, many(3))
    assert not (tmp_path / "out.preferences.jsonl").exists()


def test_two_builds_to_one_output_are_told_apart(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", many(3))
    with (
        parts.WorkFolder(str(tmp_path / "out.jsonl"), {}),
        pytest.raises(UserError, match="another build writes to this output"),
    ):
        build_files(tmp_path, [path])
    assert len(build_files(tmp_path, [path])[0]) == 3


def test_odd_texts_neither_crash_nor_pass(tmp_path, capsys):
    nested = "[" * 100_000 + '"x"' + "]" * 100_000
    path = write_rows(tmp_path / "in.jsonl", many(2))
    lines = (
        f'{{"user": {nested}, "assistant": "a reply of some words"}}',
        f'{{"prompt": "q", "responses": ["a", "b"], "scores": [1, 1{"0" * 400}]}}',
        '{"messages": [{"role": "[/b]", "content": "x"}]}',
        r'{"user": "what is up?", "assistant": "a \u001e reply of words"}',
        r'{"user": "how warm?", "assistant": "20 \u212a today, my friend"}',
        '{"user": "and then?", "assistant": "it is done", "source": "[/red]"}',
    )
    with path.open("a") as file:
        file.write("\n".join(lines))
    argv = ["build", "--inputs", str(path), "--output", str(tmp_path / "out.jsonl")]
    assert main([*argv, "--workers", "1", "--min_assistant_chars", "1"]) == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert [place.rpartition(":")[2] for place, _ in report["unusable"]] == [
        "3",
        "4",
        "5",
    ]
    assert report["reasons"]["encoding"]["rows"] == 1
    assert "20 K today" in (tmp_path / "out.jsonl").read_text()  # NFC.
    assert "[/red]" in capsys.readouterr().out


def test_a_mask_is_not_a_filter_and_reports_hide_what_is_masked(tmp_path):
    rows = [*many(2), {"user": "whom?", "assistant": "ok ann@example.org"}]
    got, _ = build_rows(tmp_path, rows, skip_filters=("all",), personal_data="mask")
    assert got[2]["assistant"] == "ok [email]"
    got, _ = build_rows(tmp_path, rows, skip_filters=("all",), personal_data="drop")
    assert len(got) == 2 and "ann@" not in (tmp_path / "out.report.html").read_text()


def test_a_label_does_not_hide_a_bad_reply(tmp_path):
    rows = [GOOD, *({"user": f"what is {i}?", "assistant": "ok"} for i in range(3))]
    rows = [row | {"label": "a label that is long enough"} for row in rows]
    got, report = build_rows(tmp_path, rows)
    assert len(got) == 1 and report["reasons"]["reply_length"]["rows"] == 3


def test_labels_are_never_lost_to_rows_without(tmp_path):
    rows = [GOOD, GOOD | {"label": "a"}, GOOD | {"label": "A"}, GOOD | {"label": "a"}]
    rows += [GOOD | {"label": "a", "annotator": "ann"}]
    got, _ = build_rows(tmp_path, rows)
    assert [row.get("label") for row in got] == [None, "a", "A", "a"]
