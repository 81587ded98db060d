"""`prefchat evaluate --preferences`: which of two replies a run prefers."""

import json

import numpy as np
import pytest
from conftest import QUESTIONS, one_line

from prefchat_jax.chat.session import Chat
from prefchat_jax.cli.main import main
from prefchat_jax.datasets.preferences import PreferencePair
from prefchat_jax.evaluation.preferences import by_origin, chat_margins
from prefchat_jax.models.scorer import encode
from prefchat_jax.text.dialogue import Turn
from prefchat_jax.training.checkpoints import load_scorer

ANSWERS = [answer for answer, _ in QUESTIONS.values()]


def pairs_for(flip=()):
    """The right answer to each question against each wrong one."""
    rows = []
    for number, (answer, question) in enumerate(QUESTIONS.values()):
        for wrong in (other for other in ANSWERS if other != answer):
            chosen, rejected = (wrong, answer) if number in flip else (answer, wrong)
            rows.append({"prompt": question, "chosen": chosen, "rejected": rejected})
            rows[-1]["annotator"] = "careless" if number in flip else "careful"
    return rows


@pytest.fixture
def evaluate(run, tmp_path, capsys):
    """Runs the command on rows; returns its figures and what it printed."""

    def evaluate(rows, *argv, weights=run.run.path):
        path, figures = tmp_path / "prefs.jsonl", tmp_path / "figures.json"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        base = ["evaluate", "--weights", weights, "--preferences", path]
        code = main([*map(str, base), "--json", str(figures), *map(str, argv)])
        assert code == 0, capsys.readouterr().err
        return json.loads(figures.read_text()), capsys.readouterr().out

    return evaluate


def _towers(run, message, reply, history=()):
    """The cosine of a context and a reply, by the module that training uses."""
    config, params = load_scorer(run)
    featurizer, vectors = run.featurizer(), []
    for name, turns in (
        ("context", [*history, Turn("user", message)]),
        ("response", [Turn("assistant", reply)]),
    ):
        bags = featurizer.scorer_embedded(featurizer([tuple(turns)]))
        vectors.append(np.asarray(encode(config, params, name, *bags), np.float64)[0])
    return float(vectors[0] @ vectors[1])


def _pair(message, history=()):
    context = (*history, Turn("user", message))
    return PreferencePair(context, ANSWERS[0], ANSWERS[1])


def test_margins_are_those_of_the_towers_and_of_the_ranking(run):
    pairs = [_pair("where is my parcel"), _pair("money back please")]
    with Chat.load(run.run.path) as chat:
        found = chat_margins(chat, pairs)
        for number, pair in enumerate(pairs):
            message = pair.context[-1].content
            right, wrong = (_towers(run.run, message, text) for text in ANSWERS[:2])
            assert found["scorer"][number] == pytest.approx(right - wrong, abs=1e-5)
            both = chat.score_responses([message], ANSWERS[:2])[0]
            assert found["ranking"][number] == pytest.approx(both[0] - both[1])
    assert found["scorer"][0] > 0 > found["scorer"][1]


def test_history_counts_as_in_the_chat(run, own_run):
    history = (Turn("user", "money back"), Turn("assistant", ANSWERS[1]))
    message = "where is my parcel today"
    pair = [_pair(message, history)]
    margin = lambda *turns: (
        _towers(run.run, message, ANSWERS[0], turns)
        - _towers(run.run, message, ANSWERS[1], turns)
    )
    with Chat.load(run.run.path) as chat:
        # Its rows had no history: the message stands alone.
        (alone,) = chat_margins(chat, pair)["scorer"]
    assert alone == pytest.approx(margin(), abs=1e-5)
    config = json.loads((own_run / "config.json").read_text()) | {"history": 1.0}
    (own_run / "config.json").write_text(json.dumps(config))
    with Chat.load(own_run) as chat:
        (after,) = chat_margins(chat, pair)["scorer"]
    assert after == pytest.approx(margin(*history), abs=1e-5)
    assert abs(after - alone) > 1e-3


def test_right_answers_are_preferred_and_lies_are_not(evaluate):
    figures, out = evaluate(pairs_for())
    (found,) = figures.values()
    assert found["all"]["scorer"]["accuracy"] == 1.0 and "annotator" not in found
    assert "scorer" in out and "longer" in out and "1.000 [1.000, 1.000]" in out
    lies = evaluate(pairs_for(flip=range(4)))[0]["preferences"]
    assert lies["all"]["scorer"]["accuracy"] == 0.0
    assert lies["all"]["longer"]["accuracy"] == pytest.approx(0.5)


def test_figures_by_annotator(evaluate):
    figures, out = evaluate(pairs_for(flip=[3]))
    found = figures["preferences"]["annotator"]
    assert found["careful"]["scorer"]["accuracy"] == 1.0
    assert found["careless"]["scorer"]["accuracy"] == 0.0
    assert found["careless"]["scorer"]["pairs"] == 3 and "careless" in out


def test_the_rules_are_scores_of_their_own():
    pairs = [PreferencePair((Turn("user", "q"),), "aaa", "b", "s", "x")]
    found = by_origin({"mine": np.array([-1.0])}, pairs)
    assert set(found) == {"all"}
    shares = {name: figures["accuracy"] for name, figures in found["all"].items()}
    assert shares == {"mine": 0.0, "longer": 1.0, "shorter": 0.0}


def test_rows_and_preferences_are_judged_together(evaluate, corpus_path):
    figures, out = evaluate(pairs_for(), "--data", corpus_path)
    assert figures["right"] > 0.5 and figures["preferences"]["all"]
    assert "in_scope_rows" in out


def test_what_was_left_out_is_told(evaluate):
    _, out = evaluate([*pairs_for(), {"prompt": "q", "chosen": "a", "rejected": "a"}])
    assert "prefs.jsonl:13 (chosen equals rejected)" in out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--device", "cpu"], "--device is for the rows of --data"),
        (["--min_confidence", "0.5"], "--min_confidence is for the rows of --data"),
        (["--tune_ranking"], "--tune_ranking is for the rows of --data"),
        (["--one_of_100"], "--one_of_100 is for the rows of --data"),
        (["--errors", "e.jsonl"], "--errors is for the rows of --data"),
        (["--plot", "p.png"], "--plot is for the rows of --data"),
        (["--preferences", "none.jsonl"], "none.jsonl: No such file"),
        (["--json", "prefs.jsonl"], "would replace what is read"),
    ],
)
def test_a_wrong_value_is_one_line(argv, message, run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefs.jsonl").write_text(json.dumps(pairs_for()[0]) + "\n")
    base = ["--weights", str(run.run.path)]
    if "--preferences" not in argv:
        base += ["--preferences", "prefs.jsonl"]
    assert main(["evaluate", *base, *argv]) == 2
    assert message in one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["prefs.jsonl"]


def test_lines_and_runs_that_cannot_be_judged(run, own_run, tmp_path, capsys):
    path = tmp_path / "prefs.jsonl"
    argv = ["evaluate", "--weights", str(own_run), "--preferences", str(path)]
    path.write_text(json.dumps(pairs_for()[0]) + "\n{]\n")
    assert main(argv) == 2 and "prefs.jsonl:2 is not valid JSON" in one_line(capsys)
    path.write_text('{"user": "q", "assistant": "a"}\n')
    assert main(argv) == 2 and "prefs.jsonl:1 (no chosen" in one_line(capsys)
    config = json.loads((own_run / "config.json").read_text()) | {"scorer": None}
    (own_run / "config.json").write_text(json.dumps(config))
    assert main(argv) == 2 and "has no response scorer" in one_line(capsys)
    assert main(argv[:3]) == 2 and "or --preferences" in one_line(capsys)
