import itertools
import json
import re
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefchat_jax.chat.cleanup import clean
from prefchat_jax.chat.cues import ANALYST, CONCISE, CREATIVE, strip_cues
from prefchat_jax.chat.styles import (
    BUILT_IN,
    STYLES,
    Style,
    StyleWeights,
    get_style,
    infer_style,
    register_style,
    signals,
    style_names,
    unregister_style,
)
from prefchat_jax.errors import UserError
from prefchat_jax.text.sentences import code_spans, sentence_spans, split_sentences

# --- sentences. A bar stands where a sentence ends; written before the splitter ran.

HARD = """
Open the app.| Press the button.| Wait.
Version 3.5 is required, e.g. on www.example.com/a.b?c.| Run `a. b` now!
He said "yes."| Dr. No agreed vs. me?| 1. First item.| Done
Pi is 3.14.| Use it.
J. K. Rowling wrote it.| She is rich.
J. R. R. Tolkien and C. S. Lewis met.| They talked.
George W. Bush spoke.| Then he left.
Take plan B.| It is cheaper.
We open at 9 a.m. and close at 5 p.m. on Sundays.
We close at 5 p.m.| Come earlier.
Call at 5 p.m. EST.| We answer.
The shop closes at 6 p.m. Monday to Friday.
Go to https://example.com/a?b=c.| Then log in.
See http://a.b/c.d!e.f for more.| Bye.
Write to jane.doe@example.co.uk.| She answers.
Open setup.py and main.rs.| Edit them.
Install Node.js 18.2.1 or .NET 6.0.| Restart.
Run `pip install x. Then y.` first.| Then stop.
Wait... what?| I see.
So it goes...| Then it stops.
Well… maybe not.| Yes.
He left . . . and came back.| Fine.
"Why?" she asked.| Nobody knew.
"Go away!" he said.| She went.
She said "Stop. Go back. Now." and left.| He stayed.
It works (see p. 4. It is there) for all.| Good.
It works.| (It really does.)| Trust me.
Is it (really?) so.| Yes.
Mr. and Mrs. Smith came.| They sat.
Prof. Dr. Jones of St. Mary spoke.| We listened.
See fig. 3 and eq. 12.| They differ.
No.| You cannot.
Take bus No. 5.| Get off.
Apple Inc. is big.| Google too.
He works at Apple Inc.| She works elsewhere.
Bring pens, paper, etc. and sit.| Write.
Bring pens, paper, etc.| Then sit.
He lives in the U.S.| He likes it.
The U.S. Army is here.| Go.
She has a Ph.D. in physics.| He has none.
Smith et al. showed it.| We agree.
It was on Jan. 3.| Then spring came.
It costs $3.50.| Pay now.
It costs 5.| Pay now.
It rose 3.5%.| Wow!
Really?!| Yes!!!| Good.
Great! 😀| Thanks.
Done. 🎉
It is so.[1]| We know it.[2][3]| Good.
ok. | open it. | press save.
1. Open it.| 2. Press save.| 3. Wait.
First: open.| Second: close.
Use 127.0.0.1:8080.| Then refresh.
Upgrade to v2.0.1-rc.1.| Restart it.
The regex is a.b?c!d.| Fine.
你好。|再见！|好吗？
「はい。」と言った。|そうです。
これは3.5です。|次です。
यह सच है।| हाँ।
¿Qué?| Nada.
C'est vrai !| Oui.
The file is at C:\\x.y\\z.txt.| Read it.
Use e.g. Python, i.e. the language.| Good.
Approx. 5 people came.| They left.
Type ... to go on.| Then stop.
I agree.| So do I.| Good.
He scored 9 vs. 8.| He won.
Ask Sgt. Pepper.| He knows.
Read ch. 3, pp. 4-5.| Sleep.
“Go. Now.” was all.| He went.
It ended in 1999.| It began in 1990.
Yes!| No?| Maybe.
a.b.c
...
""".strip().splitlines()

LAID_OUT = [
    "Run this:\n```\na. b\n\nc. d\n```\n|Then stop.",
    "Run this.\n|```\na.\n```",
    "Buy:\n|- milk. |Fresh.\n|- bread\n|- eggs",
    "A title\n\n|A text. |Two.",
    "A line that\ngoes on. |Next.",
    "Steps:\n|1. Open.\n|2. Close.",
    "```\nnever closed. Not here.\n\nStill.",
    "Use ``a ` b. c`` and go. |On.",
    "# Title\n\n|Text",
    "One lone ` tick. |Two.",
    "",
    "  \n ",
]


@pytest.mark.parametrize("case", [*HARD, *LAID_OUT])
def test_sentences_end_where_a_reader_ends_them(case):
    expected = [piece.strip() for piece in case.split("|") if piece.strip()]
    assert split_sentences(case.replace("|", "")) == expected


PIECES = st.sampled_from(
    [
        *".!?…。` \n\t\"'()[]「」“”:;-*#1",
        "```",
        "e.g.",
        "Dr.",
        "J.",
        "3.14",
        "The ",
        "so ",
    ]
    + [
        "Sure. ",
        "Open the app now. ",
        "www.a.com",
        "10.",
        "p.m.",
        " etc. ",
        "\n\n",
        "I",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))


@given(TEXTS)
def test_no_character_is_lost_between_sentences(text):
    spans = sentence_spans(text)
    edges = [0, *itertools.chain.from_iterable(spans), len(text)]
    assert edges == sorted(edges)
    gaps = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    assert not "".join(gaps).strip()
    sentences = [text[a:b] for a, b in spans]
    assert sentences == split_sentences(text)
    assert all(s and s == s.strip() for s in sentences)
    joined = gaps[0] + "".join(
        s + gap for s, gap in zip(sentences, gaps[1:], strict=True)
    )
    assert joined == text
    assert all(text[a] == "`" for a, _ in code_spans(text))


def _seconds(function, text):
    """The least of several times, in CPU seconds."""
    times = []
    for _ in range(5):
        start = time.process_time()
        function(text)
        times.append(time.process_time() - start)
    return min(times)


PIECES = [".", "`", "``` ", "`a\n", "(", '"a ', '("', ". ", " \n", "a.", "。", "Dr. "]
PIECES += ["1. ", "Then stop. ", "😀", ". 😀 ", "e.g.", "“", "- a\n", '."', "v. "]
PIECES += ["and ", "tell me in short, "]


@pytest.mark.parametrize(
    ("front", "piece"),
    [("", piece) for piece in PIECES] + [("in one word", " "), ("in short", ". ")],
)
def test_time_grows_linearly_with_the_length(front, piece):
    def everything(text):
        clean(text)
        for name in STYLES:
            get_style(name).show(text, 1.0, text)
        strip_cues(text)
        for pattern in (CONCISE, CREATIVE, ANALYST):
            re.search(pattern, text, re.IGNORECASE)

    n = 3_000 // len(piece)
    once, twice = (_seconds(everything, front + piece * k) for k in (n, 4 * n))
    assert twice < 4 * 2.5 * once + 0.02  # A square would need sixteen times as long.


def test_a_long_text_is_cleaned_and_shown_in_time():
    sentences = "".join(f"The a{i} b{i} c{i} d{i} e{i}. " for i in range(2000))
    assert _seconds(clean, sentences) < 1.5
    assert _seconds(lambda text: _show(text, "analyst"), "`a` 1. x " * 3000) < 2.5


# --- clean-up


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Sure. Open the app.", "Open the app."),
        ("Okay! Got it. Open the app.", "Open the app."),
        ("Open the app now. Open the app, now!", "Open the app now."),
        ("Open  it.  Well done.  Open  it.", "Open  it.  Well done.  Open  it."),
        ("Sure. One.  Two.", "One.  Two."),
        (
            "We are open from nine. Come in. We are open from nine. Bye.",
            "We are open from nine. Come in. Bye.",
        ),
    ],
)
def test_clean_drops_fillers_at_the_front_and_repeats(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "... ... ...",
        "Use 3.14 here. Use 2.71 here.",
        "See http://a.b/c.d. Pi is 3.14!",
        "  spaced   text.  ",
        "```\na.\na.\n```",
        "One line.\nOne line.",
        "Okay.",
        "Yes. We deliver.",
        "No. We do not.",
        "Go left. Right. Stop.",
        "Turn left. Go on. Turn left.",
        "Turn the big red handle of the door left. "
        "Turn the big red handle of the door right.",
        "You can do that here with us today. You can not do that here with us today.",
        "Type d. Type D.",
        "C is fast and old and good. C++ is fast and old and good.",
        "The dog bites the old man there. The old man bites the dog there.",
        "Version 3.5 is required. See www.example.com/a.b for more.",
    ],
)
def test_clean_touches_nothing_that_says_something(text):
    assert clean(text) == text


@given(TEXTS)
def test_clean_is_idempotent_and_drops_whole_sentences(text):
    once = clean(text)
    assert clean(once) == once
    if once != text:
        assert len(once) < len(text)
        left = iter(text)
        assert all(character in left for character in once)  # A subsequence.


# --- what a message asks for

WISHES = {
    "concise": """
        briefly, what is DPO?
        Briefly explain how refunds work
        please be brief
        what is DPO, in short?
        in one line: what is beta?
        explain DPO in one sentence
        what is a margin in a nutshell?
        give me a summary
        give me a short summary of the terms
        summarize the terms
        summarise this please
        tl;dr
        TLDR of the contract?
        can you keep it short?
        just a quick answer please
        I need a short answer: is it open?
        the short version please
        make it brief
        tell me briefly how to log in
    """,
    "creative": """
        be creative
        Be creative: name my shop
        name my shop, creatively
        please be more playful
        imagine a story about beta
        write me a poem about parcels
        tell me a story
        explain DPO with a metaphor
        explain it to me like a story
        let's brainstorm names for a cat
        brainstorm gift ideas
        think outside the box
        give me some creative ideas for a party
    """,
    "analyst": """
        step by step
        compare the two step by step
        explain step-by-step how to reset it
        how do I reset my phone, step by step?
        explain in detail
        explain the fee in more detail please
        in detail, how does it work?
        tell me in detail how refunds work
        walk me through the setup
        break it down for me
        what are the pros and cons of leasing?
        list the steps
        I want a detailed explanation
        be thorough
        show me your reasoning
    """,
    "balanced": """
        do you sell short sleeves?
        in short supply, are they?
        is the short version of the dress in stock?
        why was I charged
        why is my card not working?
        explain this charge
        explain the extra fee on my statement
        Explain why I can't do a transfer to an account.
        I did not get the explanation letter
        a love story please
        where can I buy the Toy Story blu-ray?
        do you have the book A Short Story of Time?
        my account was briefly locked yesterday
        I was charged twice briefly
        compare prices with a one-way flight
        find me a reasonably priced restaurant
        how many steps did I walk today
        my step counter is broken
        what is the reason for the decline
        where is the summary report?
        give me a summary of my purchases
        summarize my spending
        is there a brief case in stock
        I am going on a short trip
        how do I become an analyst?
        a creative writing course, please
        cancel my Creative Cloud plan
        Imagine Dragons tickets
        use apple in a sentence
        how long is the poem
        play something by Detail
        send the email in detail view
        the details are wrong
        then what happened
        where is my parcel
        the step-by-step verification fails
        what is an analogy
        do you sell poems
    """,
}


def _lines(text):
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize(
    ("message", "style"),
    [(message, style) for style, text in WISHES.items() for message in _lines(text)],
)
def test_wishes_are_read_and_contents_are_not(message, style):
    assert infer_style(message) == style
    assert infer_style(message.upper()) == style


def test_a_long_message_asks_at_its_ends_alone():
    pasted = "I went to the shop today and it was open. " * 200
    for front, end in (("Be brief. ", ""), ("", "Explain it, in short")):
        assert infer_style(front + pasted + end + 9_000 * " ") == "concise"
    assert infer_style(f"{pasted} Be brief. {pasted}") == "balanced"
    # Where the middle was left out there is no end, and nothing reaches across.
    cut = f"{'explain briefly':>2000}"
    assert infer_style(cut) == "concise" and infer_style(cut + pasted) == "balanced"
    apart = f"{'explain':>2000}{pasted}{' in short':.<2000}"
    assert infer_style(apart) == "balanced"


def test_an_empty_message_asks_for_nothing():
    assert infer_style("") == infer_style(" \n") == "balanced"


@pytest.mark.parametrize(
    ("path", "least"),
    [
        ("data/intents/banking77/val.jsonl", 1000),
        ("data/intents/clinc150/val.jsonl", 3000),
        ("data/dialogues/sgd_dev.jsonl", 19000),
    ],
)
def test_real_questions_are_rarely_taken_for_wishes(shared, path, least):
    messages = []
    for line in (shared / path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = row.get("messages", [{"role": "user", "content": row.get("user")}])
        messages += [turn["content"] for turn in turns if turn["role"] == "user"]
    read = [message for message in messages if infer_style(message) != "balanced"]
    assert len(messages) >= least
    assert len(read) <= len(messages) / 1000, read


def test_wishes_at_the_edges_are_not_searched_for():
    assert strip_cues("briefly, what is DPO?") == "what is DPO?"
    assert strip_cues("what is DPO, in short?") == "what is DPO"
    assert strip_cues("explain resets step by step") == "explain resets"
    assert strip_cues("Be creative: name a shop") == "name a shop"
    whole = ["compare DPO and IPO", "briefly", "do you sell short sleeves?"]
    whole += ["where is the summary report?", "in short supply", "tl;dr", ""]
    assert [strip_cues(message) for message in whole] == whole


# --- how a text is shown


def _show(text, style, creativity=0.5, message="m"):
    return get_style(style).show(text, creativity, message)


LONG = "It goes on and on with a great many words that nobody needs to read " * 2


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"One two. {LONG}. Three.", "One two."),
        (f"{LONG}. One two.", f"{LONG}."),  # Never below the first sentence.
        (f"Do this:\n- one.\n- two.\n\n{LONG}.", "Do this:\n- one.\n- two."),
        (f"To do:\n1. {LONG}.\n2. Two.\n\n{LONG}.", f"To do:\n1. {LONG}.\n2. Two."),
        (f"It is open. However, {LONG}.", "It is open."),
        (f"Did you lose it? {LONG}. Call.", f"Did you lose it? {LONG}."),
        (
            f"Run this.\n```\n{LONG}.\n{LONG}\n```\nBye.",
            f"Run this.\n```\n{LONG}.\n{LONG}\n```",
        ),
        (f"First, open it. Then {LONG}. It is red.", f"First, open it. Then {LONG}."),
        (f"Do the following. {LONG}. Bye.", f"Do the following. {LONG}."),
        (f"See www.a.com/b.c or e.g. v3.5. {LONG}.", "See www.a.com/b.c or e.g. v3.5."),
        (f"Version 3.5 is required. {LONG}.", "Version 3.5 is required."),
        ("营业时间是九点。" * 20, "营业时间是九点。" * 8),
        ("Short. Already.", "Short. Already."),
        ("", ""),
    ],
)
def test_concise_keeps_whole_sentences_and_what_they_need(text, kept):
    assert _show(text, "concise") == kept


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Open the app. Press Save.", "1. Open the app.\n2. Press Save."),
        (
            "First, open it. Then you wait. Finally, press Save.",
            "1. First, open it.\n2. Then you wait.\n3. Finally, press Save.",
        ),
        (
            "Second, press Save. Finally, wait. First, open it. It is red.",
            "1. First, open it. It is red.\n2. Second, press Save.\n3. Finally, wait.",
        ),
        (
            "Step 2: press Save. Then wait. Step 1: open it.",
            "1. Step 1: open it.\n2. Step 2: press Save.\n3. Then wait.",
        ),
        ("1. Open it. 2. Press Save.", "1. Open it.\n2. Press Save."),
        ("2. Press Save. 1. Open it.", "1. Open it.\n2. Press Save."),
        (
            "To reset: 1) open it 2) press 3) wait",
            "To reset:\n1) open it\n2) press\n3) wait",
        ),
        (
            "That is easy. Open the app. Press Save. Wait a day.",
            "That is easy.\n1. Open the app.\n2. Press Save.\n3. Wait a day.",
        ),
    ],
)
def test_analyst_sets_out_steps(text, shown):
    assert _show(text, "analyst") == shown
    assert _show(shown, "analyst") == shown


@pytest.mark.parametrize(
    "text",
    [
        "We sell hats. They are red. They cost 3.5 euros.",
        "First class tickets cost more. Last year they did not.",
        "Transfer fees are low. Return shipping is free.",
        "It rains. Next door it does not.",
        "Open the app. It is on your phone and it shows all. It is red. It is nice.",
        "Type I flu is common. Type II flu is rare. Type II also has been seen.",
        "Then press it. Then you wait.",
        "Pi is 3. 14 is more.",
        "See 2) and 1) above.",
        "Open it.\nClose it.",
        "First, open it. First, close it. First, you wait.",
        "Hello!",
        "",
        "Open `a. b`.",
    ],
)
def test_analyst_numbers_nothing_that_is_no_list_of_steps(text):
    assert _show(text, "analyst") == text


@given(
    TEXTS
    | st.permutations(["First, open it. ", "Second, press it. ", "Then wait. "]).map(
        "".join
    )
)
def test_no_style_changes_a_word(text):
    numbered = _show(text, "analyst").splitlines() if "\n" not in text else []
    for line in numbered:
        number, _, rest = line.partition(". ")
        assert line in text or (number.isdigit() and rest.split()[:1] != [])
    drop = lambda lines: [w for line in lines for w in line.split()]
    added = len(drop(numbered)) - len(text.split()) if numbered else 0
    assert 0 <= added <= len(numbered)
    assert text.lstrip().startswith(_show(text, "concise").lstrip())
    assert _show(text, "creative", 1.0).endswith(text.lstrip())
    assert _show(text, "balanced") == text


FRAMABLE = "We ship to all countries. It takes three days."


def test_creative_frames_from_a_creativity_on_by_the_message_alone():
    assert _show(FRAMABLE, "creative", 0.29) == FRAMABLE
    shown = _show(FRAMABLE, "creative", 0.3)
    assert shown.endswith(f": {FRAMABLE}")
    assert shown == _show(FRAMABLE, "creative", 1.0)
    frame = lambda text, message: _show(text, "creative", 1.0, message)[: -len(text)]
    other = "You can pay by card at the counter."
    for i in range(20):
        assert frame(FRAMABLE, f"m{i}") == frame(other, f"m{i}")
    assert len({frame(FRAMABLE, f"m{i}") for i in range(50)}) == 4
    assert frame(FRAMABLE, "\ud800")  # Half a surrogate pair.


@pytest.mark.parametrize(
    "text",
    [
        "`pip install x` does it all.",
        "```\nx = 1\ny = 2\n```",
        "- one thing\n- another thing",
        "1. Open the app now.",
        "| a | b | c |",
        "# The title of it",
        "Which city do you mean?",
        "We have two of them. Which one do you want?",
        "你们几点开门",
        "Yes.",
        "Sorry, we do not ship there.",
        "Hello and welcome to our shop!",
        "",
    ],
)
def test_creative_frames_no_code_list_question_or_greeting(text):
    assert _show(text, "creative", 1.0) == text


# --- styles as data


@pytest.fixture
def registered():
    """Registers styles, and removes them after the test."""
    names = []

    def register(**fields):
        register_style(Style(**fields))
        names.append(fields["name"])

    yield register
    for name in names:
        unregister_style(name)


def test_a_registered_style_is_inferred_measured_and_shown(registered):
    registered(
        name="loud",
        cues=r"\bshout\b",
        signal=lambda text: text.count("!") / max(len(text), 1),
        show=lambda text, creativity, message: f"{text} ({creativity}, {message})",
        weights=StyleWeights(style=0.5),
    )
    assert infer_style("SHOUT it, briefly") == "loud"
    assert style_names() == (*STYLES, "loud")
    assert get_style("loud").weights.style == 0.5
    np.testing.assert_array_equal(
        signals(["a!", "b", "!!"], "loud"), np.array([0.5, 0, 1], np.float32)
    )
    assert _show("x", "loud", 0.1, "q") == "x (0.1, q)"
    with pytest.raises(UserError, match="registered already"):
        register_style(Style(name="loud"))


def test_a_removed_style_is_gone():
    register_style(Style(name="quiet", cues="hush"))
    unregister_style("quiet")
    assert infer_style("hush") == "balanced"
    with pytest.raises(UserError, match="balanced, creative, concise, analyst"):
        get_style("quiet")
    for name in ("quiet", "concise"):
        with pytest.raises(UserError, match="only a registered style"):
            unregister_style(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "concise"}, "'concise' is registered already"),
        ({"name": "auto"}, "not auto"),
        ({"name": "Two words"}, "lower-case"),
        ({"name": "x", "cues": "("}, "no regular expression"),
        ({"name": "x", "cues": "a*"}, "match every message"),
        ({"name": "x", "signal": lambda text: 2.0}, "is 2.0; return a number"),
        ({"name": "x", "signal": lambda text: float("nan")}, "is nan"),
        ({"name": "x", "signal": lambda text: None}, "is None"),
    ],
)
def test_a_wrong_style_is_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        register_style(Style(**fields))
    assert "\n" not in str(error.value) and "x" not in style_names()


@pytest.mark.parametrize("name", ["style", "novelty", "repeat", "diversity"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_wrong_weight_is_one_line(name, value):
    with pytest.raises(UserError, match=f"style weight {name}"):
        StyleWeights(**{name: value})


def test_a_signal_that_goes_wrong_later_is_one_line(registered):
    registered(name="odd", signal=lambda text: 7.0 if "zebra" in text else 0.0)
    with pytest.raises(UserError, match="'odd': its signal of 'a zebra' is 7.0"):
        signals(["a horse", "a zebra"], "odd")


def test_a_signal_is_computed_once_for_a_text(registered):
    seen = []
    registered(name="count", signal=lambda text: seen.append(text) or 0.5)
    before = len(seen)
    for _ in range(3):
        assert signals(["once", "once", "twice"], get_style("count")).sum() == 1.5
    assert seen[before:] == ["once", "twice"]


@given(TEXTS)
def test_signals_of_built_in_styles_are_shares(text):
    for style in BUILT_IN:
        values = signals([text, "x"], style)
        assert values.dtype == np.float32 and values.shape == (2,)
        assert ((values >= 0) & (values <= 1)).all()
    assert signals([], "concise").shape == (0,)


def test_one_of_many_threads_registers_a_name():
    gate, failed = threading.Barrier(8), []

    def register():
        gate.wait()
        try:
            register_style(Style(name="raced"))
        except UserError as error:
            failed.append(error)

    threads = [threading.Thread(target=register) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    unregister_style("raced")
    assert len(failed) == 7
