"""Preference rows: every form is read into one."""

import json

import pytest
from test_building import assert_accounts, build_rows, lines_of

from prefchat_jax.datasets.preferences import pair_row, pairs_of
from prefchat_jax.datasets.records import read_pairs
from prefchat_jax.datasets.rows import Unusable
from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Turn

QUESTION = {"role": "user", "content": "where is it?"}
BETTER = {"role": "assistant", "content": "On the second floor."}
WORSE = {"role": "assistant", "content": "No idea."}
WANTED = {"prompt": [QUESTION], "chosen": [BETTER], "rejected": [WORSE], "source": "s"}

FORMS = {
    "strings": {
        "prompt": "where is it?",
        "chosen": "On the second floor.",
        "rejected": "No idea.",
    },
    "messages": {"prompt": [QUESTION], "chosen": [BETTER], "rejected": [WORSE]},
    "one message": {"prompt": [QUESTION], "chosen": BETTER, "rejected": WORSE},
    "implicit prompt": {"chosen": [QUESTION, BETTER], "rejected": [QUESTION, WORSE]},
    "question": {
        "question": "where is it?",
        "chosen": [BETTER],
        "rejected": "No idea.",
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "where is it?"}],
        "chosen": {"from": "gpt", "value": "On the second floor."},
        "rejected": {"from": "gpt", "value": "No idea."},
    },
    "context as turns": {
        "prompt": "Human: where is it?",
        "messages": [QUESTION],
        "chosen": "On the second floor.",
        "rejected": "No idea.",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_pair(form):
    (pair,) = pairs_of(FORMS[form], "s")
    assert pair_row(pair) == WANTED
    assert pairs_of(pair_row(pair)) == [pair]


def test_rated_responses_pair_the_best_with_each_worse_one():
    row = {
        "prompt": "q",
        "responses": ["bad", "best", {"content": "good"}, "as good"],
        "scores": [1, 4.5, 3, 4.5],
        "annotator": "ann",
    }
    pairs = pairs_of(row, "s")
    assert [(p.chosen, p.rejected, p.scores) for p in pairs] == [
        ("best", "bad", (4.5, 1.0)),
        ("best", "good", (4.5, 3.0)),
    ]
    assert pair_row(pairs[0])["score_rejected"] == 1.0
    assert {pair.annotator for pair in pairs} == {"ann"}
    with pytest.raises(Unusable, match="all scores are equal"):
        pairs_of(row | {"scores": [1, 1, 1, 1]})


def test_scores_of_a_pair_are_kept():
    row = FORMS["strings"] | {"chosen_score": 3, "rejected_score": 1.5}
    assert pairs_of(row)[0].scores == (3.0, 1.5)
    assert pairs_of(FORMS["strings"] | {"score_chosen": 3})[0].scores is None


@pytest.mark.parametrize(
    "row, words",
    [
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "chosen is empty"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "chosen is empty"),
        ({"responses": ["a", "b"], "scores": [1, 2]}, "no prompt"),
        ({"prompt": "q", "responses": "a", "scores": [1]}, "must both be lists"),
    ],
)
def test_a_pair_without_a_part_is_named(row, words):
    with pytest.raises(Unusable, match=words):
        pairs_of(row)


def test_a_build_checks_pairs_and_counts_their_contradictions(tmp_path):
    pair = FORMS["strings"]
    turned = pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}
    rows = [
        pair | {"annotator": "a"},
        pair | {"annotator": "a"},
        pair | {"annotator": "b"},
        turned | {"annotator": "c"},
        pair | {"prompt": "another?"},
        pair | {"rejected": "on the  second floor."},
        pair | {"rejected": "lost \ufffd letters"},
        {"user": "and where is this?", "assistant": "On the third floor, I think."},
    ]
    got, report = build_rows(tmp_path, rows)
    pairs = lines_of(tmp_path / "out.preferences.jsonl")
    assert len(got) == 1 and len(pairs) == 4
    assert report["preferences"]["contradictions"] == 1
    dropped = {name: reason["rows"] for name, reason in report["reasons"].items()}
    assert dropped == {"duplicate": 1, "encoding": 1, "equal_pair": 1}
    bias = report["preferences"]["length_bias"]["in"]
    assert bias == {"pairs": 4, "longer_chosen": 0.75, "shorter_chosen": 0.25}
    assert_accounts(report)


def test_personal_data_of_pairs(tmp_path):
    rows = [FORMS["strings"], FORMS["strings"] | {"chosen": "Ask ann@example.org now."}]
    build_rows(tmp_path, rows, personal_data="mask")
    pairs = lines_of(tmp_path / "out.preferences.jsonl")
    assert pairs[1]["chosen"][0]["content"] == "Ask [email] now."
    _, report = build_rows(tmp_path, rows, personal_data="drop")
    assert report["rows"]["pairs"] == 1


def test_turns_are_kept():
    turns = [QUESTION, BETTER, {"role": "user", "content": "and then?"}]
    (pair,) = pairs_of({"prompt": turns, "chosen": "Left.", "rejected": "Right."})
    assert pair.context[-1] == Turn("user", "and then?") and len(pair.context) == 3
    assert json.loads(json.dumps(pair_row(pair)))["prompt"] == turns


def test_files_of_pairs_are_read_with_what_was_of_no_use(tmp_path):
    path = tmp_path / "prefs.jsonl"
    rows = [
        FORMS["strings"],
        {"user": "where?", "assistant": "There."},
        FORMS["messages"] | {"annotator": "ann", "source": "s"},
        FORMS["strings"] | {"rejected": FORMS["strings"]["chosen"]},
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 3, 2]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_pairs([path])
    assert [pair.source for pair in found.pairs] == [str(path), "s", *[str(path)] * 2]
    assert [pair.rejected for pair in found.pairs[2:]] == ["a", "c"]
    assert found.unusable == 2 and found.unusable_places == [
        f"{path}:2 (no chosen reply)",
        f"{path}:4 (chosen equals rejected)",
    ]
    again = read_pairs([path])
    assert again == found and len(found.fingerprint) == 64


def test_a_file_without_pairs_is_one_error(tmp_path):
    path = tmp_path / "prefs.jsonl"
    path.write_text('{"user": "q", "assistant": "a"}\n')
    with pytest.raises(UserError, match=r'prefs\.jsonl:1 .* looks like {"prompt"'):
        read_pairs([path])
    path.write_text(json.dumps(FORMS["strings"]) + "\n[1]\n")
    with pytest.raises(UserError, match=r"prefs\.jsonl:2 is not a JSON object"):
        read_pairs([path])
    with pytest.raises(UserError, match="No such file"):
        read_pairs([tmp_path / "none.jsonl"])
