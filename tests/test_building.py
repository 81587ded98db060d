"""Whole builds: what comes in, what comes out, and what the report says."""

import gzip
import hashlib
import html.parser
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from prefchat_jax.building import inputs, read
from prefchat_jax.building.build import build
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.datasets.labels import assign_buckets
from prefchat_jax.datasets.records import read_records
from prefchat_jax.datasets.split import split_rows
from prefchat_jax.errors import UserError
from prefchat_jax.text.features import FeatureConfig

GOOD = {"user": "where is my parcel?", "assistant": "Open Orders to track it."}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def build_rows(tmp_path, rows, **changes):
    """Builds one file of rows; returns the kept rows and the report."""
    return build_files(tmp_path, [write_rows(tmp_path / "in.jsonl", rows)], **changes)


def build_files(tmp_path, files, **changes):
    output = tmp_path / "out.jsonl"
    output.unlink(missing_ok=True)
    settings = {"workers": 1, "near_duplicates": 0.8} | changes
    report = build(
        BuildConfig(inputs=tuple(map(str, files)), output=str(output), **settings)
    )
    return lines_of(output) if output.exists() else [], report


def many(count, start=0):
    """Rows that have little in common."""
    rng = np.random.default_rng(start)
    words = lambda n: " ".join(f"w{i}" for i in rng.integers(0, 2000, n))
    return [
        {"user": f"question {words(4)}", "assistant": f"reply {words(12)}"}
        for _ in range(count)
    ]


def assert_accounts(report):
    """Every row that came in is kept or dropped for a reason, once."""
    for source in report["sources"].values():
        kept = source["kept"] + source["pairs"]
        assert source["in"] == kept + sum(source["dropped"].values())


# --- rows


def test_every_form_of_row_comes_out_in_one(tmp_path):
    dialogue = [
        {"from": "human", "value": "what do you sell?"},
        {"from": "gpt", "value": "We sell umbrellas and raincoats."},
        {"from": "human", "value": "how much is an umbrella?"},
        {"from": "gpt", "value": "An umbrella is twelve euros."},
    ]
    rows = [
        GOOD | {"label": 3, "intent": "track", "source": "shop", "annotator": "ann"},
        {"conversations": dialogue, "label": "price"},
        {"question": "do you ship abroad?", "intent": "shipping"},
    ]
    got, report = build_rows(tmp_path, rows)
    assert got[0] == {
        **GOOD,
        "label": 3,
        "intent": "track",
        "annotator": "ann",
        "source": "shop",
    }
    assert [turn["content"] for turn in got[2]["history"]] == [
        "what do you sell?",
        "We sell umbrellas and raincoats.",
    ]
    assert "label" not in got[1] and got[2]["label"] == "price"
    assert got[1]["group"] == got[2]["group"]
    assert got[3] == {
        "user": "do you ship abroad?",
        "label": "shipping",
        "source": "in",
    }
    assert_accounts(report)


def test_what_is_written_reads_as_the_same_examples(tmp_path):
    turns = [
        {"role": role, "content": f"turn {i} of a dialogue, spoken by {role}"}
        for i, role in enumerate(["system", "user", "assistant", "user", "assistant"])
    ]
    rows = [GOOD | {"label": 3, "group": "g"}, {"messages": turns, "source": "talk"}]
    build_rows(tmp_path, rows)
    first = read_records([tmp_path / "in.jsonl"]).examples
    second = read_records([tmp_path / "out.jsonl"]).examples
    plain = lambda row: row._replace(where="", source="")
    assert [plain(row) for row in first] == [plain(row) for row in second]
    (tmp_path / "again").mkdir()
    again, _ = build_files(tmp_path / "again", [tmp_path / "out.jsonl"])
    assert again == lines_of(tmp_path / "out.jsonl")


def test_only_the_last_turns_are_kept(tmp_path):
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": f"turn number {i} of many"}
        for i in range(12)
    ]
    got, _ = build_rows(tmp_path, [{"messages": turns}], max_turns=2)
    assert [len(row.get("history", [])) for row in got] == [0, 2, 2, 2, 2, 2]
    got, _ = build_rows(tmp_path, [{"messages": turns}], max_turns=0)
    assert not any("history" in row for row in got)


def test_files_folders_gz_and_manifest(tmp_path):
    rows = many(8)
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    write_rows(folder / "b.jsonl", rows[:2])
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows[2:4])))
    (folder / "notes.txt").write_text("no rows")
    write_rows(tmp_path / "c.jsonl", rows[4:6])
    write_rows(tmp_path / "d.jsonl", rows[6:])
    (tmp_path / "m.json").write_text('["d.jsonl", "c.jsonl"]')
    got, report = build_files(
        tmp_path,
        [tmp_path / "c.jsonl", tmp_path / "folder"],
        inputs_manifest=str(tmp_path / "m.json"),
    )
    order = [4, 5, 2, 3, 0, 1, 6, 7]
    assert [row["user"] for row in got] == [rows[i]["user"] for i in order]
    assert [row["source"] for row in got[::2]] == ["c", "a", "b", "d"]
    assert len(report["inputs"]) == 4


def test_sources_have_the_shortest_names_that_differ():
    paths = ["/x/a/train.jsonl", "/x/b/train.jsonl.gz", "/x/b/val.jsonl"]
    assert inputs.source_names(paths) == ["a/train", "b/train", "val"]


def test_what_an_output_folder_holds_is_no_input(tmp_path):
    write_rows(tmp_path / "in.jsonl", many(3))
    for _ in range(2):
        got, report = build_files(tmp_path, [tmp_path])
        assert len(got) == 3 and len(report["inputs"]) == 1


def test_missing_inputs(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", many(3))
    with pytest.raises(UserError, match="no such file"):
        build_files(tmp_path, [path, tmp_path / "gone.jsonl"])
    got, _ = build_files(
        tmp_path, [path, tmp_path / "gone.jsonl"], skip_missing_inputs=True
    )
    assert len(got) == 3
    with pytest.raises(UserError, match="None of the inputs exists"):
        build_files(tmp_path, [tmp_path / "gone.jsonl"], skip_missing_inputs=True)


def test_rows_of_each_input_can_be_capped(tmp_path):
    files = [write_rows(tmp_path / f"{i}.jsonl", many(700, i)) for i in range(2)]
    got, report = build_files(tmp_path, files, max_rows_per_input=600)
    assert len(got) == 1200
    assert report["rows"]["in"] == report["rows"]["lines"] == 1200


# --- processes, memory, interruption


def test_pieces_and_processes_do_not_change_a_byte(tmp_path, monkeypatch):
    rows = many(3000)
    rows[5::7] = rows[4::7][: len(rows[5::7])]
    rows[6::50] = [GOOD | {"user": "hi"}] * len(rows[6::50])
    path = write_rows(tmp_path / "in.jsonl", rows)
    with path.open("a") as file:
        file.write("not json\n" * 3 + "\n\n")
    settings = {"target": 1500, "source_weights": ("in=2",)}
    wanted, one = build_files(tmp_path, [path], **settings)
    _, two = build_files(tmp_path, [path], **settings, workers=2)
    monkeypatch.setattr(inputs, "PIECE", 10_000)
    _, cut = build_files(tmp_path, [path], **settings)
    assert lines_of(tmp_path / "out.jsonl") == wanted
    keys = ("written", "sources", "reasons", "unusable", "rows", "clusters", "lengths")
    for key in keys:
        assert one[key] == two[key] == cut[key]


def test_lines_longer_than_a_piece_and_than_the_limit(tmp_path, monkeypatch):
    rows = many(4)
    rows[1]["extra"] = "x" * 300
    rows[2]["extra"] = "x" * 900
    path = write_rows(tmp_path / "in.jsonl", rows)
    for piece in (61, 150, 10_000):
        monkeypatch.setattr(inputs, "PIECE", piece)
        got, _ = build_files(tmp_path, [path])
        assert [row["user"] for row in got] == [row["user"] for row in rows]
        monkeypatch.setattr(inputs, "LONGEST_LINE", 600)
        got, report = build_files(tmp_path, [path])
        assert [row["user"] for row in got] == [rows[i]["user"] for i in (0, 1, 3)]
        assert report["unusable"][0][0] == f"{path}:3"
        monkeypatch.setattr(inputs, "LONGEST_LINE", 2**24)


def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    files = [write_rows(tmp_path / f"{i}.jsonl", many(40, i)) for i in range(3)]
    wanted, _ = build_files(tmp_path, files)
    scanned = []

    def scan(piece, *arguments):
        scanned.append(piece.source)
        if len(scanned) == 3:
            raise KeyboardInterrupt
        return original(piece, *arguments)

    original = read.scan_piece
    monkeypatch.setattr(read, "scan_piece", scan)
    with pytest.raises(KeyboardInterrupt):
        build_files(tmp_path, files)
    assert not (tmp_path / "out.jsonl").exists()
    got, _ = build_files(tmp_path, files)
    assert got == wanted and scanned == ["0", "1", "2", "2"]
    assert not (tmp_path / "out.jsonl.build").exists()
    # A file that has changed, or other settings, are read anew.
    scanned[:] = [""] * 0
    with pytest.raises(KeyboardInterrupt):
        build_files(tmp_path, files)
    write_rows(files[0], many(41, 9))
    scanned.clear()
    monkeypatch.setattr(
        read, "scan_piece", lambda *a: scanned.append(a[0].source) or original(*a)
    )
    got, _ = build_files(tmp_path, files)
    assert scanned == ["0", "2"] and len(got) == 121


def test_a_killed_build_leaves_nothing_half_written(tmp_path):
    files = [write_rows(tmp_path / f"{i}.jsonl", many(9000, i)) for i in range(3)]
    wanted, _ = build_files(tmp_path, files)
    output = tmp_path / "killed.jsonl"
    command = [sys.executable, "-c", "from prefchat_jax.cli.main import main; main()"]
    command += ["build", "--inputs", *map(str, files), "--output", str(output)]
    with subprocess.Popen(
        [*command, "--workers", "1"], stdout=subprocess.PIPE
    ) as killed:
        records = f"{output}.build/00000-000000.json"
        deadline = time.monotonic() + 60
        while not os.path.exists(records) and time.monotonic() < deadline:
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
    assert not output.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "goes on where it was stopped" in done.stdout
    assert lines_of(output) == wanted
    assert sorted(path.name for path in tmp_path.glob("killed*")) == [
        "killed.jsonl",
        "killed.report.html",
        "killed.report.json",
    ]


def test_a_failed_build_keeps_the_old_corpus(tmp_path):
    build_rows(tmp_path, many(5))
    before = (tmp_path / "out.jsonl").read_bytes()
    path = write_rows(tmp_path / "bad.jsonl", [{"user": "hm"}])
    with pytest.raises(UserError, match=r"None of 1 rows is left: 1 unusable .*bad"):
        build(BuildConfig(inputs=(str(path),), output=str(tmp_path / "out.jsonl")))
    assert (tmp_path / "out.jsonl").read_bytes() == before


# --- personal data, held-out rows, variants


def test_personal_data_is_kept_masked_or_dropped(tmp_path):
    rows = [
        *many(2),
        {"user": "whom do I ask?", "assistant": "Write to ann@example.org, please."},
        {
            "messages": [
                {"role": "user", "content": "my number is 555-867-5309"},
                {"role": "assistant", "content": "Thank you, we will call."},
                {"role": "user", "content": "and when will that be?"},
                {"role": "assistant", "content": "Tomorrow in the morning."},
            ]
        },
    ]
    kept, _ = build_rows(tmp_path, rows)
    assert "ann@example.org" in kept[2]["assistant"]
    masked, _ = build_rows(tmp_path, rows, personal_data="mask")
    assert masked[2]["assistant"] == "Write to [email], please."
    assert masked[4]["history"][0]["content"] == "my number is [phone]"
    dropped, report = build_rows(tmp_path, rows, personal_data="drop")
    assert len(dropped) == 2 and report["reasons"]["personal_data"]["rows"] == 3


def test_held_out_contexts_leave_the_corpus(tmp_path):
    rows = many(60)
    held = [
        {"user": rows[3]["user"].upper(), "label": "x"},
        {
            "user": f"{rows[4]['user']} indeed",
            "assistant": "Another reply, to be sure.",
        },
        {"user": "hm", "label": "y"},  # The filters are not for held-out rows.
    ]
    rows.append({"user": "hm", "assistant": "A reply that is long enough."})
    path = write_rows(tmp_path / "test.jsonl", held)
    settings = {"holdout": (str(path),), "min_user_chars": 1, "near_duplicates": 0.7}
    got, report = build_rows(tmp_path, rows, **settings)
    users = {row["user"] for row in got}
    assert users == {row["user"] for i, row in enumerate(rows) if i not in (3, 4, 60)}
    assert report["reasons"]["held_out"]["rows"] == 3
    assert_accounts(report)
    _, report = build_rows(tmp_path, rows, **settings | {"near_duplicates": 0})
    assert report["reasons"]["held_out"]["rows"] == 2
    # Also of duplicates that are kept, of preference pairs, and of variants.
    pair = {"prompt": rows[3]["user"], "chosen": "a better one", "rejected": "a worse"}
    more = [*rows, rows[3], pair, pair | {"prompt": "something else"}]
    _, report = build_rows(tmp_path, more, **settings, allow_duplicates=True)
    assert report["reasons"]["held_out"]["rows"] == 5 and report["rows"]["pairs"] == 1


def test_variants_are_tagged_and_stay_with_their_rows(tmp_path):
    rows = [row | {"label": i % 2} for i, row in enumerate(many(100))]
    plain, _ = build_rows(tmp_path, rows, target=300)
    assert len(plain) == 100 and not any("id" in row for row in plain)
    got, report = build_rows(tmp_path, rows, target=300, augment=True)
    assert len(got) == 300 and report["rows"]["variants"] == 200
    originals, variants = got[:100], got[100:]
    names = {row["id"]: row for row in originals}
    for row in variants:
        assert row["augmented"] is True and set(row["parents"]) <= set(names)
        assert {names[parent]["label"] for parent in row["parents"]} == {row["label"]}
    blends = [row for row in variants if len(row["parents"]) == 2]
    assert 10 < len(blends) < 100
    assert len({(r["user"].lower(), r["assistant"].lower()) for r in got}) == 300
    examples = read_records([tmp_path / "out.jsonl"]).examples
    labelled = assign_buckets(examples, num_buckets=2, seed=0, features=FeatureConfig())
    train, val = split_rows(
        examples, labelled.numbers, fraction=0.2, mode="stratified", seed=0
    )
    assert 40 < len(val) < 90
    side = dict.fromkeys(train.tolist(), "train") | dict.fromkeys(val.tolist(), "val")
    places = {row["id"]: i for i, row in enumerate(originals)}
    for i, row in enumerate(variants, start=100):
        assert {side[places[parent]] for parent in row["parents"]} == {side[i]}


def test_chances_of_variants(tmp_path):
    rows = many(60)
    frames = ("As you would say", "In your own words", "Imagine that", "Just curious")
    share = lambda rows: np.mean([row["user"].startswith(frames) for row in rows[60:]])
    none, _ = build_rows(tmp_path, rows, target=200, creative_prob=0.0, blend_prob=0.0)
    assert share(none) == 0 and all(len(row["parents"]) == 1 for row in none[60:])
    most, _ = build_rows(tmp_path, rows, target=200, creative_prob=1.0, blend_prob=0.0)
    assert share(most) == 1
    both, _ = build_rows(tmp_path, rows, target=90, blend_prob=1.0)
    assert all(len(row["parents"]) == 2 for row in both[60:])
    again, _ = build_rows(tmp_path, rows, target=90, blend_prob=1.0, workers=2)
    assert again == both
    other, _ = build_rows(tmp_path, rows, target=90, blend_prob=1.0, seed=1)
    assert other != both


# --- report


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_tells_all_and_opens_offline(tmp_path):
    rows = [
        GOOD | {"label": "<b>"},
        GOOD,
        GOOD,
        *many(30),
        {"user": "hm"},
        {"user": "<script>"},
    ]
    rows += [{"prompt": "p", "chosen": "a long one", "rejected": "short"}]
    path = write_rows(tmp_path / "in.jsonl", rows)
    _, report = build_files(tmp_path, [path])
    page = (tmp_path / "out.report.html").read_text()
    links = _Links()
    links.feed(page)
    assert not links.open and not {"script", "link", "img"} & links.tags
    for words in (
        "duplicate",
        "unusable",
        "neither a reply nor a label",
        "longer chosen",
    ):
        assert words in page
    assert json.loads((tmp_path / "out.report.json").read_text()) == json.loads(
        json.dumps(report)
    )
    assert_accounts(report)
    for file in (*report["inputs"], *report["written"]):
        with open(file["path"], "rb") as opened:
            data = opened.read()
        assert hashlib.blake2b(data, digest_size=32).hexdigest() == file["blake2b"]
        assert len(data) == file["bytes"]
    assert report["rows"] == {
        "lines": 36,
        "in": 36,
        "kept": 32,
        "variants": 0,
        "pairs": 1,
    }
    assert report["labels"]["counts"] == {"<b>": 1}
    assert sum(report["lengths"]["reply"]) == 32


def test_clusters_name_the_row_that_was_kept(tmp_path):
    rows = [*many(5), *[GOOD] * 4, many(5)[2]]
    _, report = build_rows(tmp_path, rows)
    assert report["clusters"]["clusters"] == 2 and report["clusters"]["rows"] == 4
    largest = report["clusters"]["largest"][0]
    assert largest["copies"] == 3 and largest["first"].startswith(GOOD["user"])


def test_real_corpora(tmp_path, shared):
    """Rows of every kind; the length bias is what the data's own notes say."""
    files = [
        shared / "data" / "prefs" / f"hh_{kind}_train.jsonl"
        for kind in ("helpful", "harmless")
    ]
    files.append(shared / "data" / "faq" / "personality_chat_humorous.jsonl")
    _, report = build_files(tmp_path, files)
    assert_accounts(report)
    bias = {
        source: round(figures["longer_chosen"], 2)
        for source, figures in report["preferences"]["length_bias"].items()
    }
    assert sorted(bias.values()) == [0.44, 0.59]
    assert report["rows"]["pairs"] == 1876 + 1848
