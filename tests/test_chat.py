import shutil
import sqlite3

import pytest

from prefchat_jax import Chat, ChatSettings
from prefchat_jax.chat.styles import STYLES
from prefchat_jax.errors import UserError
from prefchat_jax.indexing import index

NEVER = ChatSettings(min_confidence=0.0)


@pytest.fixture(scope="module")
def chat(run):
    return Chat.load(run.run.path, settings=NEVER)


# --- replies


@pytest.mark.parametrize(
    "question", ["where is my parcel", "were is my parcle", "MONEY BACK?"]
)
def test_questions_get_their_answer_also_with_a_typo(chat, question):
    reply = chat.reply(question)
    assert reply.bucket == ("refund" if "MONEY" in question else "parcel")
    assert not reply.abstained and 0 <= reply.confidence <= 1
    best = reply.candidates[0]
    assert best.score == pytest.approx(sum(best.terms.values()), abs=1e-5)
    scores = [candidate.score for candidate in reply.candidates]
    assert scores == sorted(scores, reverse=True)
    assert "stored for the question" in reply.why


@pytest.mark.parametrize(
    ("messages", "settings", "words"),
    [
        ("ab", {}, "give a list of texts"),
        (["hello", None], {}, "message None: must be text"),
        (["hello"], {"creativity": "x"}, "creativity 'x': must be a number"),
        (["hello"], {"temperature": None}, "temperature None: must be a number"),
    ],
)
def test_what_is_no_message_and_no_number(messages, settings, words, chat):
    with pytest.raises(TypeError, match=words):
        chat.reply_batch(messages, **settings)
    with pytest.raises(TypeError):
        chat.explain(None)


def test_a_follow_up_is_answered_from_the_history(chat):
    alone = chat.reply("and how long?")
    history = [("user", "where is my parcel"), ("assistant", "Open Orders.")]
    together = chat.reply("and how long?", history=history)
    assert together.bucket == "parcel"
    parcel = lambda reply: max(
        (c.score for c in reply.candidates if c.bucket == "parcel"), default=0.0
    )
    assert parcel(together) > parcel(alone)


def test_it_abstains_below_the_threshold_and_names_the_nearest_question(run):
    chat = Chat.load(run.run.path, settings=ChatSettings(min_confidence=0.9999))
    reply = chat.reply("where is my parcel")
    assert reply.abstained and "where is my parcel" in reply.text
    assert reply.text not in {c.response for c in reply.candidates}


def test_batches_equal_single_replies(chat):
    messages = ["money back now", "cannot log in sir"]
    batch = chat.reply_batch(messages)
    for message, reply in zip(messages, batch, strict=True):
        assert reply.text == chat.reply(message).text


def test_top_labels_change_scores_in_both_pools(run):
    def scores(mode, top):
        settings = ChatSettings(pool_mode=mode, top_labels=top, min_confidence=0.0)
        reply = Chat.load(run.run.path, settings=settings).reply("parcel money open")
        return {c.response: round(c.score, 6) for c in reply.candidates}

    for mode in ("all", "topk"):
        assert scores(mode, 1) != scores(mode, 4)
    assert len(scores("topk", 1)) == 1 and len(scores("all", 1)) == 4


def test_a_recent_reply_is_held_back(chat):
    shown = chat.reply("where is my parcel").text
    history = [("user", "hello"), ("assistant", shown)]
    first = chat.reply("where is my parcel").candidates[0]
    again = chat.reply("where is my parcel", history=history)
    repeated = next(c for c in again.candidates if c.response == first.response)
    assert first.terms["repeat"] == 0 > repeated.terms["repeat"]


def _ranked(chat, **changes):
    return [c.response for c in chat.reply("open parcel money", **changes).candidates]


def test_creativity_changes_the_ranking_terms(chat):
    plain = chat.reply("open parcel money", creativity=0.0, style="creative")
    bold = chat.reply("open parcel money", creativity=1.0, style="creative")
    assert all(c.terms["novelty"] == 0 for c in plain.candidates)
    assert len({round(c.terms["novelty"], 4) for c in bold.candidates}) > 1


def test_all_styles_change_the_ranking(tmp_path, run, own_run):
    """Four replies to one question, each made for one style."""
    rows = {
        "concise": "Use Orders.",
        "analyst": "First open Orders, then press Track, because the parcel moves.",
        "creative": "Imagine a parcel: like a bird, it tries the sky! Explore; play.",
        "balanced": "Orders lists the parcel and the place where the parcel is at "
        "the moment so you can see where the parcel is and where the parcel goes",
    }
    chat = Chat.load(own_run, settings=NEVER)
    for answer in rows.values():
        chat.add("vase", answer)
    first = {}
    for style in STYLES:
        reply = chat.reply("vase", style=style, creativity=1.0 * (style == "creative"))
        pool = [c for c in reply.candidates if c.response in rows.values()]
        first[style] = pool[0].response
        ranks = [c.response for c in pool]
        if style != "balanced":
            plain = [
                c.response
                for c in chat.reply("vase", style="balanced", creativity=0.0).candidates
                if c.response in rows.values()
            ]
            assert ranks.index(rows[style]) <= plain.index(rows[style])
    assert len(set(first.values())) >= 3
    assert first["concise"] == rows["concise"]
    assert first["analyst"] == rows["analyst"]
    assert first["creative"] == rows["creative"]


def test_temperature_draws_repeatably(chat):
    texts = {chat.reply("open", temperature=2.0, seed=s).text for s in range(30)}
    assert len(texts) > 1
    again = [chat.reply("open", temperature=2.0, seed=7).text for _ in range(3)]
    assert len(set(again)) == 1


def test_clean_up_comes_before_the_style(own_run):
    chat = Chat.load(own_run, settings=NEVER)
    chat.add("vase", "Sure. Click save now. Click save now. Then wait.")
    steps = "1. Click save now.\n2. Then wait."
    assert chat.reply("vase", style="analyst").text == steps
    assert chat.reply("vase", style="concise").text == "Click save now. Then wait."


def test_a_draw_is_never_refused_where_the_best_reply_is_not(run):
    best = Chat.load(run.run.path, settings=NEVER).reply("where is my parcel")
    bound = ChatSettings(min_confidence=best.confidence - 0.01)
    chat = Chat.load(run.run.path, settings=bound)
    replies = [
        chat.reply("where is my parcel", temperature=5.0, seed=s) for s in range(20)
    ]
    assert not any(reply.abstained for reply in replies)
    assert all(reply.candidates == replies[0].candidates for reply in replies)


def test_added_answers_are_found_at_once_and_stay(own_run):
    chat = Chat.load(own_run, settings=NEVER)
    chat.add("do you sell umbrellas", "Yes, at the counter.")
    reply = chat.reply("do you sell umbrellas here")
    assert (reply.text, reply.bucket) == ("Yes, at the counter.", None)
    assert Chat.load(own_run).reply("umbrellas").candidates[0].bucket is None
    chat.add("parcel gone", chat.reply("where is my parcel").candidates[0].response)
    assert chat.reply("parcel gone").bucket == "parcel"
    with pytest.raises(ValueError, match="question and an answer"):
        chat.add("", "x")


def test_chat_loads_from_the_orbax_step_alone(own_run):
    """No export stands beside the checkpoint, and the state to resume is not read."""
    before = Chat.load(own_run, settings=NEVER).reply("money back")
    (step,) = (own_run / "checkpoints").iterdir()
    shutil.rmtree(step / "last")
    after = Chat.load(own_run, settings=NEVER).reply("money back")
    assert before.candidates == after.candidates


def test_index_extends_and_rebuilds(own_run, corpus_path, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text('{"user": "got umbrellas", "assistant": "Yes."}\n')
    done = index(own_run, [more])
    with Chat.load(own_run) as chat:
        assert done == (1, 0, len(chat), [])
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text('{"user": "u", "assistant": "a", "label": "nowhere"}\n')
    assert index(own_run, [foreign]).new == 1
    (own_run / "responses.db").unlink()
    with pytest.raises(UserError, match="prefchat index"):
        Chat.load(own_run)
    assert index(own_run, [corpus_path]).total == 36
    other = tmp_path / "other.db"
    assert index(own_run, [more], database=other) == (1, 0, 1, [])
    assert Chat.load(own_run, database=other, settings=NEVER).reply("x").text == "Yes."


def test_the_store_holds_training_rows_only(run):
    store = sqlite3.connect(run.run.store)
    questions = {row[0] for row in store.execute("SELECT question FROM entries")}
    store.close()
    assert questions == {row.question for row in run.corpus.train_rows}
    assert not questions & {row.question for row in run.corpus.val_rows}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "loud"}, "style 'loud'"),
        ({"creativity": 1.5}, "creativity 1.5"),
        ({"temperature": -1.0}, "temperature -1"),
    ],
)
def test_wrong_arguments_are_one_line(chat, arguments, message):
    with pytest.raises(UserError, match=message):
        chat.reply("x", **arguments)


@pytest.mark.parametrize(
    "changes",
    [
        {"pool_mode": "some"},
        {"top_labels": 0},
        {"db_top_k": -1},
        {"max_candidates_per_bucket": 0},
        {"min_confidence": 2.0},
    ],
)
def test_wrong_settings_are_one_line(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        ChatSettings(**changes)


def test_pool_sizes_change_what_is_considered(run):
    wide = Chat.load(run.run.path, settings=NEVER)
    narrow = Chat.load(
        run.run.path,
        settings=ChatSettings(
            max_candidates_per_bucket=1, db_top_k=0, min_confidence=0
        ),
    )
    question = "where is my parcel again"
    pooled = lambda chat: {
        int(i) for pool, _ in chat.pools([question]) for i in pool.ids
    }
    assert pooled(narrow) < pooled(wide)
    assert len(pooled(narrow)) == 4  # The most frequent reply of each bucket.
