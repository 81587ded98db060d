"""`prefchat feedback`: from the thumbs of a served run to pairs that can be learned."""

import json

import httpx
import pytest
from conftest import QUESTIONS, one_line
from serving import served

from prefchat_jax.chat.session import Chat
from prefchat_jax.cli.main import main
from prefchat_jax.datasets.preferences import PreferencePair
from prefchat_jax.datasets.records import read_pairs
from prefchat_jax.datasets.verdicts import last_verdicts
from prefchat_jax.text.dialogue import Turn

(PARCEL, PARCEL_ASKED), (REFUND, REFUND_ASKED), *_ = QUESTIONS.values()


def _pair(chosen, rejected, user="", message="where is it"):
    context = (Turn("user", message),)
    return PreferencePair(context, chosen, rejected, "feedback", user)


def test_the_last_verdict_of_a_user_counts():
    pairs = [
        _pair("a", "b", "ann"),
        _pair("a", "b", "bob"),  # Another user.
        _pair("a", "c", "ann"),  # Another reply.
        _pair("b", "a", "ann"),  # Changed their mind.
        _pair("a", "b", "ann", "and this"),  # Another question.
        _pair("a", "b", "bob"),  # Said it again.
        _pair("a", "b"),
        _pair("a", "b"),  # Nobody knows who: perhaps somebody else.
    ]
    found = last_verdicts(pairs)
    assert found.pairs == [pairs[i] for i in (2, 3, 4, 5, 6, 7)]
    assert found.replaced == [pairs[0], pairs[1]]


@pytest.fixture
def judged(own_run):
    """A run whose users have judged replies through its server."""
    with (
        Chat.load(own_run) as chat,
        served(chat, feedback=own_run / "feedback.jsonl") as url,
    ):

        def send(asked, chosen, rejected, user):
            messages = [{"role": "user", "content": asked}]
            body = {"messages": messages, "chosen": chosen, "rejected": rejected}
            answer = httpx.post(f"{url}/v1/feedback", json=body | {"user": user})
            assert answer.status_code == 200

        send(PARCEL_ASKED, REFUND, PARCEL, "ann")
        send(PARCEL_ASKED, PARCEL, REFUND, "ann")
        send(REFUND_ASKED, REFUND, PARCEL, "bob")
        send(REFUND_ASKED, REFUND, PARCEL, None)
    return own_run


def test_thumbs_become_pairs_that_can_be_judged(judged, tmp_path, capsys):
    path, figures = tmp_path / "prefs.jsonl", tmp_path / "figures.json"
    assert main(["feedback", "export", str(judged), "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"3 preference pairs: {path}\n" in out and "note" not in out
    assert main(["feedback", "export", str(judged), "--output", str(path)]) == 0
    assert f"{path} (replaced)\n" in capsys.readouterr().out
    lines = {tuple(line.split("│")[1:4]) for line in out.splitlines() if "│" in line}
    shown = {tuple(cell.strip() for cell in line) for line in lines}
    assert shown == {("ann", "1", "1"), ("bob", "1", "0"), ("(unsigned)", "1", "0")}
    context = lambda text: (Turn("user", text),)
    assert read_pairs([path]).pairs == [
        PreferencePair(context(PARCEL_ASKED), PARCEL, REFUND, "feedback", "ann"),
        PreferencePair(context(REFUND_ASKED), REFUND, PARCEL, "feedback", "bob"),
        PreferencePair(context(REFUND_ASKED), REFUND, PARCEL, "feedback"),
    ]
    row = json.loads(path.read_text().splitlines()[0])
    assert row["prompt"] == [{"role": "user", "content": PARCEL_ASKED}]
    assert row["annotator"] == "ann"
    argv = ["evaluate", "--weights", str(judged), "--preferences", str(path)]
    assert main([*argv, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())["preferences"]
    assert found["all"]["scorer"]["pairs"] == 3
    assert set(found["annotator"]) == {"", "ann", "bob"}


def test_damaged_lines_are_named_and_left_out(judged, tmp_path, capsys):
    with (judged / "feedback.jsonl").open("a") as file:
        file.write('{"prompt": "half a l\n{"prompt": "q", "chosen": "a"}\n')
    path = tmp_path / "prefs.jsonl"
    assert main(["feedback", "export", str(judged), "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "note: 2 rows left out:" in out and "no rejected reply" in out
    assert "feedback.jsonl:5 (is not valid JSON" in out and "feedback.jsonl:6 (" in out
    assert len(path.read_text().splitlines()) == 3


def test_feedback_is_listed(judged, capsys):
    assert main(["feedback", "list", "--weights", str(judged)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["ann", PARCEL_ASKED, PARCEL, REFUND]
    assert [line.split("\t")[0] for line in lines] == ["ann", "bob", "(unsigned)"]


def test_what_cannot_be_exported_is_one_line(judged, run, tmp_path, capsys):
    export = ["feedback", "export", str(judged), "--output"]
    kept = judged / "feedback.jsonl"
    before = kept.read_bytes()
    for argv, message in (
        ([*export, str(kept)], "lies in the run"),
        ([*export, str(judged / "x.jsonl")], "lies in the run"),
        ([*export, str(tmp_path)], "is a folder"),
        ([*export, str(tmp_path / "no" / "x")], "no such folder"),
        ([*export[:-1]], "--output is missing"),
        ([*export, "x", "--user", "ann"], "no flag --user"),
        (["feedback", "export", "--output", "x"], "--weights is missing"),
        (["feedback", "list"], "--weights is missing"),
        (["feedback", "export", str(run.run.path), "--output", "x"], "no feedback yet"),
        (["feedback", "list", str(run.run.path)], "no feedback yet"),
        (["feedback", "list", str(tmp_path)], "is not a run directory"),
        (["feedback", "drop"], "feedback drop: use one of export, list"),
    ):
        assert main(argv) == 2, argv
        assert message in one_line(capsys), argv
    link = tmp_path / "link.jsonl"
    link.symlink_to(kept)
    assert main([*export, str(link)]) == 2 and "lies in" in one_line(capsys)
    assert kept.read_bytes() == before
    kept.write_text("{\n")
    assert main([*export, str(tmp_path / "x")]) == 2
    assert "feedback.jsonl:1 (is not valid" in one_line(capsys)
    assert not (tmp_path / "x").exists()


def test_feedback_explains_itself(capsys):
    for argv in ([], ["--help"]):
        assert main(["feedback", *argv]) == 0
        assert "export RUN --output FILE" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["feedback", "export", "--help"])
    assert "the last verdict" in " ".join(capsys.readouterr().out.split())


def test_thumbs_tune_the_run_that_they_were_given_to(judged, tmp_path, capsys):
    path, tuned = tmp_path / "prefs.jsonl", tmp_path / "tuned"
    with Chat.load(judged) as chat:
        before = chat.scorer_scores([REFUND_ASKED] * 2, [REFUND, PARCEL])
    lines = (judged / "feedback.jsonl").read_text().splitlines(keepends=True)
    # Somebody insists: whoever asks for the parcel is to hear of refunds.
    (judged / "feedback.jsonl").write_text(lines[0] * 2 + lines[2])
    assert main(["feedback", "export", str(judged), "--output", str(path)]) == 0
    argv = ["finetune", "--weights", judged, "--preferences", path, "--output", tuned]
    argv += ["--val_split", "0", "--epochs", "40", "--pref_weight", "5"]
    assert main([*map(str, argv)]) == 0, capsys.readouterr().err
    with Chat.load(tuned) as chat:
        after = chat.scorer_scores([PARCEL_ASKED] * 2, [REFUND, PARCEL])
        kept = chat.scorer_scores([REFUND_ASKED] * 2, [REFUND, PARCEL])
    assert after[0] > after[1] and kept[0] > kept[1] and before[0] > before[1]
    text = (tuned / "report.md").read_text()
    assert text.startswith("# tuned\n") and "| training pairs | 2 |" in text
    assert f"--preferences {path}" in text and "--pref_weight 5.0" in text
    assert "## run\n" in text and "### Parameters" in text
