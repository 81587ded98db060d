"""How texts suit the built-in styles, beside patterns that are tried at each letter."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefchat_jax.chat import measuring
from prefchat_jax.chat.measuring import brevity, colour, orderliness

STEPS = re.compile(
    r"\b(first|second|third|then|next|finally|because|therefore|since|so that|instead"
    r"|step)\b|(^|\s)\d[.)]",
    re.IGNORECASE,
)
COLOUR = re.compile(
    r"\b(imagine|like|picture|think of|story|as if|perhaps|try|for example|such as"
    r"|wonder\w*|play\w*|explore\w*)\b|[!?:;]",
    re.IGNORECASE,
)
WORDS = (
    "first Second THEN then, next so that that such as if as if think of try trying "
    "play playing wonderful explore_d like likely for example step steps 1. 2) 33. 4.5"
)
ODD = (
    "\u0663. \u0665) ? ! : ; . , _ - \0 \x1f "
    "\xe9 \xb2 \xd7 \u2019 \u65e5 \U0001f600 \ud800"
)
PIECES = st.sampled_from([*WORDS.split(), *ODD.split(" ")])
# Letters that an `s`, a `k` or an `i` match beside their own capitals.
FOLDED = st.sampled_from(
    ["\u017ftep", "li\u212ae", "L\u0130ke", "th\u0131rd", "\u0130"]
)
GAPS = st.sampled_from(["", " ", " ", " ", "\n", "\t", ".", "\xa0"])


def _texts(pieces):
    pair = st.tuples(pieces, GAPS).map("".join)
    return st.lists(st.lists(pair, max_size=12).map("".join), max_size=6)


def _plain(pattern, texts):
    return np.array([min(len(pattern.findall(t)) / 4, 1) for t in texts], np.float32)


def _check(texts):
    np.testing.assert_array_equal(orderliness(texts), _plain(STEPS, texts))
    np.testing.assert_array_equal(colour(texts), _plain(COLOUR, texts))
    shares = [1 / (1 + len(text.split()) / 20) for text in texts]
    np.testing.assert_array_equal(brevity(texts), np.array(shares, np.float32))


@given(_texts(PIECES))
def test_measures_are_what_plain_patterns_count(texts):
    _check(texts)


@given(_texts(PIECES | FOLDED))
def test_measures_of_letters_that_fold(texts):
    _check(texts)


def test_measures_know_every_word_and_no_longer_one():
    words = [*measuring._STEPS, *(w.removesuffix(r"\w*") for w in measuring._IMAGES)]
    for text in [*words, *map(str.upper, words), *(f"x{w}" for w in words)]:
        _check([text, f"{text}s", f"({text})", f"{text} {text}"])
    assert orderliness(["then"]) == orderliness(["7)"]) == colour(["try"]) == 0.25
    assert not orderliness(["thence"]) and not colour(["tryst"])


def test_measures_of_more_texts_than_a_block(monkeypatch):
    texts = [f"{'then ' * (i % 6)}{'so! ' * (i % 3)}" for i in range(20)]
    monkeypatch.setattr(measuring, "_BLOCK", 3)
    _check(texts)


@pytest.mark.parametrize("measure", [orderliness, colour, brevity])
def test_measures_of_nothing(measure):
    assert measure([]).shape == (0,) and measure([]).dtype == np.float32


def test_measures_of_real_answers(shared):
    path = shared / "data" / "faq" / "medquad_train.jsonl"
    with path.open() as lines:
        some = itertools.islice(lines, 2000)
        _check([json.loads(line)["assistant"] for line in some])
