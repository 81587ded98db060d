import json
import shutil

import pytest

from prefchat_jax import Chat, ChatSettings
from prefchat_jax.chat.follow_up import content_words, counted, leans, learnt_history
from prefchat_jax.text.dialogue import Turn

HISTORY = [Turn("user", "where is my parcel"), Turn("assistant", "Open Orders.")]


@pytest.mark.parametrize(
    "message",
    [
        "and how long does it take?",
        "What about my other card",
        "And the second one?",
        "but why?",
        "how long?",
        "can I get it back?",
        "what if they refuse?",
        "which one?",
    ],
)
def test_messages_that_lean(message):
    assert leans(message)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "?!",
        "hello",
        "where is my parcel",
        "Is it possible to change my PIN?",
        "How long does it take to get a new card delivered?",
        "this card is broken",
        "And I would like to know why my transfer to Spain was declined yesterday",
        "quanto tempo demora",
        "Why was my card payment declined in that shop when it worked before?",
    ],
)
def test_messages_that_stand_on_their_own(message):
    assert not leans(message)


def test_apostrophes_and_case_make_no_difference():
    assert leans("AND WHAT\u2019S THAT?") == leans("and what's that?") is True
    assert content_words("Why isn\u2019t MY card card here?") == ["card"]


def test_history_counts_where_it_was_learnt_or_needed():
    assert learnt_history(None) and learnt_history(0.5)
    assert not learnt_history(0.0)
    assert counted("where is my bike", HISTORY, learnt=True) == HISTORY
    assert counted("where is my bike", HISTORY, learnt=False) == []
    assert counted("and the second one?", HISTORY, learnt=False) == HISTORY


def _with_share(run, path, share):
    made = shutil.copytree(run.run.path, path)
    config = json.loads((made / "config.json").read_text())
    config.pop("history", None)
    if share is not None:
        config["history"] = share
    (made / "config.json").write_text(json.dumps(config))
    return made


def test_a_run_notes_the_share_of_rows_with_history(run):
    assert run.run.config()["history"] == 0.0
    from prefchat_jax.finetune import _history_share

    rows = run.corpus.train_rows[:4]
    longer = [rows[0]._replace(context=(Turn("user", "x"), *rows[0].context))]
    assert _history_share([*longer, *rows[1:]]) == 0.25


def test_unrelated_history_changes_nothing_unless_it_was_learnt(run, tmp_path):
    settings = ChatSettings(min_confidence=0.0)
    message = "when are you open today"

    def terms(share, history):
        path = _with_share(run, tmp_path / f"{share}-{len(history)}", share)
        with Chat.load(path, settings=settings) as chat:
            best = chat.reply(message, history=history).candidates[0]
        return {k: v for k, v in best.terms.items() if k in ("words", "bucket")}

    assert terms(0.0, HISTORY) == terms(0.0, [])
    assert terms(0.5, HISTORY) != terms(0.5, [])
    assert terms(None, HISTORY) != terms(None, [])  # A run of before.


def test_a_refused_message_that_may_lean_is_tried_with_the_history(run, tmp_path):
    path = _with_share(run, tmp_path / "r", 0.0)
    message = "duration"
    assert not leans(message)
    with Chat.load(path, settings=ChatSettings(min_confidence=0.0)) as chat:
        alone = chat.reply(message).confidence
    with Chat.load(path, settings=ChatSettings(min_confidence=alone + 0.01)) as chat:
        assert chat.reply(message).abstained
        together = chat.reply(message, history=HISTORY)
        assert not together.abstained and together.bucket == "parcel"
        assert len(chat.explain(message, history=HISTORY).searched) == 3
        longer = "what is the duration of the voyage to the moon"
        assert chat.explain(longer, history=HISTORY).searched == ((longer, 1.0),)
