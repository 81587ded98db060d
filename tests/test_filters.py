"""Filters, normal form, personal data, code, and the screen before the filters."""

import json
import pathlib
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefchat_jax.building.code import is_code_like
from prefchat_jax.building.describe import texts_of
from prefchat_jax.building.filters import (
    FILTERS,
    Exchange,
    Limits,
    exchange_of,
    objection,
    refuses,
)
from prefchat_jax.building.fingerprints import TEXTS
from prefchat_jax.building.normal import normalize
from prefchat_jax.building.personal import find_personal, mask_personal
from prefchat_jax.building.screen import objectionable, untidy
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.text.hashing import byte_buffer

QUALITY = json.loads(
    (pathlib.Path(__file__).parent / "golden/quality.json").read_text()
)
GOOD = "Open the settings and press the third button."


def _example(question, reply, *before):
    turns = (*(Turn("user", text) for text in before), Turn("user", question))
    return Example(turns, reply)


def _reason(question, reply, **limits):
    found = objection(exchange_of(_example(question, reply)), Limits(**limits))
    return found and found[0]


@pytest.mark.parametrize("user, reply, keeps, score, _", QUALITY)
def test_the_seeds_verdicts(user, reply, keeps, score, _):
    exchange = exchange_of(_example(normalize(user), normalize(reply)))
    assert (objection(exchange, Limits()) is None) == keeps
    assert is_code_like(user, reply) == (score >= 1.5)


OBJECTIONS = {
    "question_length": ("hm", GOOD),
    "encoding": ("how do I", "the cafÃ© is open today"),
    "reply_length": ("how do I", "a b c d"),
    "near_empty": ("how do I", "internationalisation."),
    "echo": ("How are you doing today?", "how are you doing today"),
    "refusal": ("how do I", "I'm sorry, but I can't help with that."),
    "disclaimer": ("how do I", "As an AI language model I have no idea of taste."),
    "boilerplate": ("how do I", "Lorem ipsum dolor sit amet, consectetur."),
    "markup": ("how do I", "Press the <b>third</b> button now."),
    "repeated_characters": ("how do I", "It is soooooooooo good, you know."),
    "repetition": ("how do I", "very " * 20 + "good"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_objects_and_can_be_switched_off(name):
    exchange = exchange_of(_example(*OBJECTIONS[name]))
    assert objection(exchange, Limits())[0] == name
    rest = objection(exchange, Limits(), without=(name,))
    assert rest is None or rest[0] != name


def test_a_good_exchange_passes():
    assert _reason("how do I do it?", GOOD) is None
    assert _reason("本当ですか?", "はい、本当にそうです。ご安心ください。") is None
    assert (
        _reason("how?!", "Run this:\n\n```\nif x:\n        y = '--------'\n```") is None
    )


@pytest.mark.parametrize(
    "limits, question, reply, reason",
    [
        ({"min_user_chars": 9}, "how do I", GOOD, "question_length"),
        ({"max_user_chars": 7}, "how do I", GOOD, "question_length"),
        ({"min_assistant_chars": 99}, "how do I", GOOD, "reply_length"),
        ({"max_assistant_chars": 9}, "how do I", GOOD, "reply_length"),
        ({"min_assistant_words": 9}, "how do I", GOOD, "near_empty"),
        ({"max_repeat_ratio": 0.1}, "how do I", GOOD, "repetition"),
        ({"max_char_run": 1}, "how do I", GOOD, "repeated_characters"),
    ],
)
def test_each_threshold_counts(limits, question, reply, reason):
    assert _reason(question, reply) is None
    assert _reason(question, reply, **limits) == reason


def test_repetition_is_measured_in_windows():
    natural = " ".join(f"the {i % 60} of a" for i in range(400))
    assert _reason("how do I", natural) is None


@pytest.mark.parametrize(
    "reply, wanted",
    [
        ("I don't know.", True),
        ("I don\u2019t know that one yet", True),
        ("Sorry, I cannot help you with this", True),
        ("not sure about that", True),
        ("I don't know how students got through college without it", False),
        ("Not sure if it rains? Take a coat.", False),
        ("You can help by sending the form.", False),
    ],
)
def test_refusals_are_told_from_openings(reply, wanted):
    assert refuses(reply) == wanted


def test_a_label_without_a_reply_is_asked_about_its_question_alone():
    exchange = Exchange("where is my card", "", "")
    assert objection(exchange, Limits()) is None
    assert objection(Exchange("hi", "", ""), Limits())[0] == "question_length"


@pytest.mark.parametrize(
    "raw, wanted",
    [
        ("  a \t b  ", "a b"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("a  \n\n\n\n b", "a\n\n b"),
        ("def f():\n    return  1", "def f():\n    return 1"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u00a0\u2003b", "a b"),
    ],
)
def test_normal_form(raw, wanted):
    assert normalize(raw) == wanted == normalize(wanted)


@pytest.mark.parametrize(
    "text, found",
    [
        ("write to jane.doe+x@mail.example.org now", ["jane.doe+x@mail.example.org"]),
        ("call +44 20 7946 0958 or 555-867-5309", ["+44 20 7946 0958", "555-867-5309"]),
        ("call (030) 1234 5678", ["(030) 1234 5678"]),
        ("on 2024-05-17 it cost $1,234,567.89 and 12345678901 units", []),
        ("version 10.12.2024 and 17.05.2024, order 1234-5678", []),
        ("@home", []),
    ],
)
def test_personal_data(text, found):
    assert find_personal(text) == found
    masked = mask_personal(text)
    assert find_personal(masked) == []
    assert (masked == text) == (not found)


SAID = st.one_of(
    st.text(string.ascii_letters + "  .,?<&\n\t[!é", max_size=60),
    st.lists(
        st.sampled_from(["very", "good", "an AI", "ooooooooo", "know"]), max_size=30
    ).map(" ".join),
    st.sampled_from([pair[i] for pair in OBJECTIONS.values() for i in (0, 1)]),
    st.sampled_from(
        ["trained on training data by", "see JavaScript", "knowledge cutoff"]
    ),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(SAID, SAID, st.booleans()), min_size=1, max_size=8),
    st.builds(
        Limits,
        min_user_chars=st.integers(0, 9),
        max_user_chars=st.integers(9, 60),
        min_assistant_chars=st.integers(0, 20),
        max_assistant_chars=st.integers(20, 90),
        min_assistant_words=st.integers(0, 5),
        max_repeat_ratio=st.floats(0, 1),
        max_char_run=st.integers(1, 9),
    ),
)
def test_the_screen_lets_nothing_through(rows, limits):
    """What it calls plain is in normal form, and only `refusal` may object."""
    before = lambda has: ("an earlier turn",) if has else ()
    examples = [
        _example(asked.strip(), reply.strip(), *before(has))._replace(
            label="a label of some length" if has else None
        )
        for asked, reply, has in rows
        if asked.strip() and reply.strip()
    ]
    buffer, starts = byte_buffer(texts_of(examples))
    look = untidy(buffer, starts).reshape(-1, TEXTS).any(axis=1)
    look |= objectionable(buffer, starts, limits)
    for example, suspicious in zip(examples, look, strict=True):
        if not suspicious:
            assert normalize(example.question) == example.question
            assert normalize(example.response) == example.response
            exchange = exchange_of(example)
            assert objection(exchange, limits, without=("refusal",)) is None


def test_the_screen_lets_plain_rows_pass():
    rows = [_example(f"how do I do number {i}?", GOOD) for i in range(50)]
    buffer, starts = byte_buffer(texts_of(rows))
    assert not untidy(buffer, starts).any()
    assert not objectionable(buffer, starts, Limits()).any()
