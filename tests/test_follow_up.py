import json
import shutil

import pytest

from prefchat_jax import Chat, ChatSettings
from prefchat_jax.chat.follow_up import content_words, counted, leans, learnt_history
from prefchat_jax.chat.memory import Memory
from prefchat_jax.cli.conversation import Conversation
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
        "got it",
        "I see",
        "no",
        "sure",
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
    assert not learnt_history(0.0) and not learnt_history(1 / 7)
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


ASIDES = ["thanks", "bye", "ok", "got it", "I see", "yes", "sure", "lol", "???", ""]


@pytest.mark.parametrize("message", ASIDES)
def test_what_asks_nothing_is_refused_after_an_answer_too(run, tmp_path, message):
    """Else a thank-you would find the last answer once more, and be sure of it."""
    path = _with_share(run, tmp_path / "r", 0.0)
    with Chat.load(path) as chat:
        answered = chat.reply("where is my parcel")
        history = [("user", "where is my parcel"), ("assistant", answered.text)]
        assert not answered.abstained
        assert chat.reply(message, history=history).abstained
        assert chat.reply("and how long?", history=history).bucket == "parcel"


def test_a_refusal_says_nothing_about_what_is_talked_of(run):
    with Chat.load(run.run.path, settings=ChatSettings(min_confidence=1.0)) as chat:
        chat.learnt_history = True
        refused = chat.reply("where is my parcel")
        assert refused.abstained
        asked = ("user", "where is my parcel")
        searched = lambda reply: [
            text
            for text, _ in chat.explain(
                "and how long?", history=[asked, ("assistant", reply)]
            ).searched
        ]
        assert searched(refused.text) == ["where is my parcel", "and how long?"]
        assert "Open Orders." in searched("Open Orders.")
        history = [asked, ("assistant", refused.text)]
        again = chat.reply("where is my parcel", history=history).candidates
        assert {candidate.terms["repeat"] for candidate in again} == {0.0}


def test_what_is_recalled_counts_however_much_was_said_since(run, tmp_path):
    with (
        Chat.load(run.run.path) as chat,
        Memory(tmp_path / "m.db", "anna") as memory,
    ):
        memory.remember("user", "my gold card is lost")
        talk = Conversation(chat, memory)
        talk.history = [Turn("user", f"hello {i}") for i in range(12)]
        talk.say("and the gold one?")
        searched = dict(talk.explanation().searched)
        assert searched["my gold card is lost"] == pytest.approx(0.35)
