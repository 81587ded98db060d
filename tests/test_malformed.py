"""A hundred malformed lines of twenty kinds: each is reported, none is lost."""

import json
import re

import pytest

from prefchat_jax.building.build import build
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.datasets.records import read_records
from prefchat_jax.errors import UserError

# Bytes of a line, and what the report must say of it.
KINDS = {
    "cut off": (b'{"user": "q", "assist', "not valid JSON"),
    "two rows": (b'{"user": "q"} {"user": "p"}', "not valid JSON"),
    "single quotes": (b"{'user': 'q'}", "not valid JSON"),
    "not UTF-8": (
        b'{"user": "caf\xe9", "assistant": "r"}',
        "not valid JSON (not UTF-8: save the file as UTF-8",
    ),
    "UTF-16": ('{"user": "q"}'.encode("utf-16-le"), "not valid JSON (UTF-16"),
    "half a surrogate": (rb'{"user": "\ud83d", "assistant": "r"}', "not valid JSON"),
    "a raw control": (b'{"user": "a\x01b", "assistant": "r"}', "not valid JSON"),
    "not a number": (b'{"user": "q", "label": NaN}', "not valid JSON"),
    "too deep": (b'{"user": ' + b"[" * 5000, "not valid JSON"),
    "a list": (b'["q", "r"]', "not a JSON object (an array: write one object a"),
    "a string": (b'"q"', "not a JSON object"),
    "no question": (b'{"assistant": "r"}', "no user text"),
    "empty question": (b'{"user": "  ", "assistant": "r"}', "no user text"),
    "no reply": (b'{"user": "q"}', "neither a reply nor a label"),
    "wrong types": (b'{"user": true, "assistant": null}', "no user text"),
    "empty dialogue": (b'{"messages": []}', "no reply after a user turn"),
    "unknown role": (
        b'{"messages": [{"role": "narrator", "content": "x"}]}',
        "turn 1 has the unknown role 'narrator'",
    ),
    "turns of text": (b'{"messages": ["q", "r"]}', "turn 1 is not an object"),
    "no rejected": (b'{"prompt": "q", "chosen": "r"}', "no rejected reply"),
    "scores lost": (
        b'{"prompt": "q", "responses": ["a", "b"], "scores": [1]}',
        "2 responses but 1 scores",
    ),
    "score of text": (
        b'{"prompt": "q", "responses": ["a", "b"], "scores": [1, "2"]}',
        "a score is no number",
    ),
    "chosen by nobody": (
        b'{"prompt": "q", "chosen": [{"role": "user", "content": "x"}],'
        b' "rejected": "y"}',
        "chosen does not end with the assistant",
    ),
    "a list of labels": (
        b'{"user": "q", "assistant": "r", "label": ["oven"]}',
        "the label is a list: write text or a whole number",
    ),
    "a label of objects": (
        b'{"user": "q", "assistant": "r", "intent": {"name": "oven"}}',
        "the intent is an object",
    ),
    "a truth value as label": (
        b'{"messages": [{"role": "user", "content": "q"},'
        b' {"role": "assistant", "content": "r"}], "label": true}',
        "the label is true or false",
    ),
    "history of text": (
        b'{"user": "q", "assistant": "r", "history": "earlier"}',
        "turns are not a list",
    ),
}
GOOD = {"user": "where is it, please?", "assistant": "On the second floor."}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_malformed_line_is_reported_with_its_place(tmp_path, workers):
    lines, wanted = [], {}
    kinds = list(KINDS.values())
    for i in range(100):
        lines.append(json.dumps(GOOD | {"user": f"{GOOD['user']} {i}"}).encode())
        line, words = kinds[i % len(kinds)]
        lines.append(line)
        wanted[len(lines)] = words
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    config = BuildConfig(
        inputs=(str(path),),
        output=str(tmp_path / "out.jsonl"),
        near_duplicates=0,
        workers=workers,
    )
    report = build(config)
    assert len(report["unusable"]) == 100
    for place, words in report["unusable"]:
        file, _, line = place.rpartition(":")
        assert file == str(path)
        assert wanted.pop(int(line)) in words
    assert not wanted
    assert report["rows"]["in"] == 200 and report["rows"]["kept"] == 100
    assert report["reasons"]["unusable"]["rows"] == 100


@pytest.mark.parametrize("kind", KINDS)
def test_training_names_the_line_too(tmp_path, kind):
    """What is no row stops the training; a row without an example is counted."""
    line, words = KINDS[kind]
    path = tmp_path / "in.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line)
    if "JSON" in words:
        with pytest.raises(
            UserError, match=rf"in\.jsonl:2 .*{re.escape(words)}.*prefchat build"
        ):
            read_records([path])
    else:
        records = read_records([path])
        assert records.unusable == 1
        assert records.unusable_places[0].startswith(f"{path}:2 (")
