"""The page of `prefchat serve`, in a browser and read as a file."""

import base64
import configparser
import contextlib
import hashlib
import html.parser
import http.server
import json
import pathlib
import re
import socket
import threading
import time

import browser
import pytest

import prefchat_jax

PACKAGE = pathlib.Path(prefchat_jax.__file__).parent
PAGE = PACKAGE / "serving" / "page.html"
ENTER, SHIFT, ESCAPE = "\ue007", "\ue008", "\ue00c"
# Elements without an end tag.
VOID = {"meta", "input", "path", "circle", "rect"}

LISTED = """First open Orders:
1. Press Track.
2. Read the date.

```python
if late:
    print("<b>sorry</b>")
```
Then wait \N{PACKAGE}, \u05e9\u05dc\u05d5\u05dd."""
TERMS = {"words": 0.31, "question": 0.24, "response": 0.12, "scorer": 0.0} | {
    "bucket": 0.09,
    "style": 0.05,
    "novelty": 0.02,
}
CANDIDATES = [
    {
        "response": LISTED,
        "question": "where is my parcel?",
        "bucket": "tracking",
        "score": 0.83,
        "terms": TERMS | {"repeat": 0.0},
    },
    {
        "response": "We pay back within five days.",
        "question": "when do I get my <money> back?",
        "bucket": "refund",
        "score": 0.36,
        "terms": {name: value / 2 for name, value in TERMS.items()}
        | {"repeat": -0.055},
    },
    {
        "response": "We are open from nine to five.",
        "question": "when are you open?",
        "bucket": None,
        "score": 0.104,
        "terms": {name: value / 8 for name, value in TERMS.items()},
    },
]


def completion(content, **given):
    detail = {
        "bucket": "tracking",
        "confidence": 0.873,
        "abstained": False,
        "style": "balanced",
        "buckets": {"tracking": 0.81, "refund": 0.12, "hours": 0.03},
        "milliseconds": 4.23,
        "candidates": CANDIDATES,
    }
    message = {"role": "assistant", "content": content}
    return {"choices": [{"message": message}], "prefchat": detail | given}


UNSURE = completion(
    "I do not have a stored answer for that.", abstained=True, confidence=0.11
)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves the page under a strict policy, and what the test has laid ready."""

    def do_GET(self):
        if self.path == "/":
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/v1/models":
            self._json(200, {"data": [{"id": "help-desk"} | self.server.model]})
        else:
            self._json(404, {})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.received.append((self.path, body, self.headers.get("Authorization")))
        time.sleep(server.delay)
        if server.gone:
            return self.connection.shutdown(socket.SHUT_RDWR)
        status, answer = server.answers.get(self.path, (404, {}))
        with contextlib.suppress(BrokenPipeError):  # It was stopped.
            self._json(status, answer)

    def _json(self, status, value):
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status, data, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", policy())
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def policy():
    """Nothing but this style, this script and this server; no markup from data."""

    def digest(tag):
        text = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE.read_text(), re.DOTALL)[0]
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; style-src 'sha256-{digest('style')}'; "
        f"script-src 'sha256-{digest('script')}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


@contextlib.contextmanager
def _serving():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.received, server.delay, server.gone = [], 0.0, False
    server.model = {}
    server.answers = {
        "/v1/chat/completions": (200, completion(LISTED)),
        "/v1/feedback": (200, {}),
    }
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server():
    with _serving() as server:
        yield server


@pytest.fixture(scope="module")
def any_tab():
    if reason := browser.missing():
        pytest.skip(f"{reason}: apt-get install chromium chromium-driver")
    with browser.driver() as address, browser.browser(address) as tab:
        yield tab


@pytest.fixture
def tab(any_tab, server):
    """The page, freshly opened; a page that complains or asks elsewhere fails."""
    home = f"http://127.0.0.1:{server.server_port}"
    any_tab.complaints(), any_tab.requested()
    _open(any_tab, home)
    yield any_tab
    # What the browser itself writes of a refused or failed request is no error.
    bad = [line for line in any_tab.complaints() if "Failed to load" not in line]
    assert bad == []
    requested = any_tab.requested()
    assert f"{home}/v1/models" in requested
    assert {url.removeprefix(home) for url in requested} <= {
        *("/", "/favicon.ico", "/v1/models"),
        *("/v1/chat/completions", "/v1/feedback"),
    }


def _open(tab, home):
    tab.open(f"{home}/")
    tab.until("return document.title.startsWith('help-desk')")


def _set(tab, field, value):
    """As a user does, so that the page is told."""
    tab.run(
        "const field = document.getElementById(arguments[0]);"
        "field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', { bubbles: true }));",
        field,
        value,
    )


def _ask(tab, text="where is it"):
    replies = tab.run("return document.querySelectorAll('.reply').length")
    tab.type("#box", text + ENTER)
    more = "return document.querySelectorAll('.reply').length > arguments[0]"
    tab.until(more, replies)


def _box(tab):
    return tab.run("return document.getElementById('box').value")


def test_enter_sends_with_the_settings_and_the_conversation(tab, server):
    _set(tab, "style", "analyst")
    _set(tab, "creativity", "0.75")
    _set(tab, "temperature", "0.2")
    _ask(tab, "where is it")
    assert _box(tab) == ""
    _ask(tab, "and now?")
    path, first, key = server.received[0]
    assert path == "/v1/chat/completions" and key is None
    assert first == {
        "model": "help-desk",
        "messages": [{"role": "user", "content": "where is it"}],
        "temperature": 0.2,
        "prefchat": {"style": "analyst", "creativity": 0.75},
    }
    assert server.received[1][1]["messages"] == [
        {"role": "user", "content": "where is it"},
        {"role": "assistant", "content": LISTED},
        {"role": "user", "content": "and now?"},
    ]
    assert tab.text("h1") == "help-desk"


def test_what_was_not_chosen_is_left_to_the_server(tab, server):
    _ask(tab)
    assert server.received[-1][1]["prefchat"] == {}
    manner = {"style": "loud", "creativity": 0.33, "styles": ["auto", "loud", "calm"]}
    server.model = {"prefchat": manner}
    _open(tab, f"http://127.0.0.1:{server.server_port}")
    offered = "return [...document.getElementById('style')].map((each) => each.text)"
    assert tab.run(offered) == manner["styles"]
    value = "return document.getElementById(arguments[0]).value"
    assert [tab.run(value, id) for id in ("style", "creativity")] == ["loud", "0.33"]
    assert tab.text("#creativity + output") == "0.33"
    _set(tab, "style", "calm")
    _ask(tab)
    assert server.received[-1][1]["prefchat"] == {"style": "calm"}
    server.model["prefchat"] = manner | {"creativity": 0.7}
    tab.run("return name()")  # As after a key was given.
    assert [tab.run(value, id) for id in ("style", "creativity")] == ["calm", "0.7"]


def test_shift_enter_makes_a_line_and_an_empty_message_is_not_sent(tab, server):
    tab.type("#box", " " + ENTER)
    tab.run("document.getElementById('box').value = ''")
    tab.type("#box", "one")
    tab.press([ENTER], held=[SHIFT])
    tab.press("2")
    assert _box(tab) == "one\n2" and server.received == []
    tab.press([ENTER])
    tab.until("return document.querySelector('.reply')")
    assert server.received[0][1]["messages"][0]["content"] == "one\n2"


def test_a_reply_is_shown_as_it_is(tab):
    _ask(tab)
    before, code, after = re.split(r"```\w*\n", LISTED)
    assert tab.texts(".said-text > .text") == [before.rstrip("\n"), after]
    assert tab.texts(".said-text pre") == [code.rstrip("\n")]
    family = "return getComputedStyle(document.querySelector('pre')).fontFamily"
    assert "monospace" in tab.run(family)
    assert tab.run("return document.querySelector('.said-text b')") is None
    assert tab.texts(".meta span") == ["tracking", "87 % confident"] + [
        "balanced",
        "4.2 ms",
    ]
    announced = "return document.querySelector('[aria-live]').textContent"
    assert tab.run(announced) == LISTED


def test_why_shows_terms_on_one_scale_the_nearest_question_and_buckets(tab):
    _ask(tab)
    assert tab.texts(".why") == []
    tab.click(".why-button")
    assert tab.text(".why .near") == "where is my parcel?"
    assert tab.texts(".buckets li > :first-child") == ["tracking", "refund", "hours"]
    assert tab.texts(".buckets b") == ["81 %", "12 %", "3 %"]
    assert tab.texts(".candidate .tag") == ["shown"]
    assert tab.texts(".candidate .score") == ["0.83", "0.36", "0.10"]
    # The scorer adds nothing anywhere, so it has no place in the legend.
    named = [line.split(":")[0] for line in tab.texts(".legend li")]
    assert named == [name for name in [*TERMS, "repeat"] if name != "scorer"]
    rows = tab.run(
        "return [...document.querySelectorAll('.candidate')].map((row) => ["
        "[...row.querySelectorAll('.terms li')].map((e) => e.innerText.trim()),"
        "[...row.querySelectorAll('.over i')].reduce((sum, e) =>"
        " sum + e.getBoundingClientRect().width, 0),"
        "[...row.querySelectorAll('.under i')].reduce((sum, e) =>"
        " sum + e.getBoundingClientRect().width, 0)])"
    )
    assert rows[0][0][:2] == ["words +0.31", "question +0.24"]
    assert rows[1][0][-1] == "repeat \N{MINUS SIGN}0.06"
    pixels = rows[0][1] / 0.83
    assert rows[1][1] == pytest.approx(0.415 * pixels, rel=0.05)
    assert rows[1][2] == pytest.approx(0.055 * pixels, rel=0.05)
    assert rows[0][2] == 0
    tab.click(".why-button")
    assert tab.texts(".why") == []


@pytest.mark.parametrize(
    "shown, place",
    [
        ("Think of it so: we pay back within five days.", 1),
        ("We are open.", 2),
        ("First open Orders:", 0),
    ],
)
def test_the_candidate_that_was_drawn_or_framed_is_told(tab, server, shown, place):
    # One that shares a word with every reply, and has no other, is none of them.
    short = CANDIDATES[2] | {"response": "We open."}
    given = completion(shown, candidates=[*CANDIDATES, short])
    server.answers["/v1/chat/completions"] = 200, given
    _ask(tab)
    tab.click(".why-button")
    said = "return [...document.querySelectorAll('.candidate')]"
    said += ".map((row) => row.classList.contains('said'))"
    assert tab.run(said) == [i == place for i in range(4)]


def test_thumbs_up_stores_the_shown_reply_over_the_runner_up_once(tab, server):
    _ask(tab)
    tab.click(".up")
    tab.until("return document.querySelector('.up[aria-pressed=true]')")
    assert tab.text(".status") == "Stored, thank you"
    tab.click(".up"), tab.click(".down")
    assert tab.texts(".picker") == []
    sent = [body for path, body, _ in server.received if path == "/v1/feedback"]
    assert sent == [
        {
            "messages": [{"role": "user", "content": "where is it"}],
            "chosen": LISTED,
            "rejected": CANDIDATES[1]["response"],
            "user": sent[0]["user"],
        }
    ]
    assert re.fullmatch(r"web-[0-9a-z]+", sent[0]["user"])


def test_thumbs_down_stores_what_was_picked_and_nothing_without_a_pick(tab, server):
    _ask(tab)
    tab.click("#more")
    tab.type("#signed", "ada")
    tab.click(".down")
    assert tab.texts(".pick") == [c["response"] for c in CANDIDATES[1:]]
    tab.click(".leave")
    assert [path for path, _, _ in server.received] == ["/v1/chat/completions"]
    tab.click(".down")
    tab.click("li + li > .pick")
    tab.until("return document.querySelector('.down[aria-pressed=true]')")
    path, body, _ = server.received[-1]
    assert path == "/v1/feedback" and body["user"] == "ada"
    assert body["chosen"] == CANDIDATES[2]["response"] and body["rejected"] == LISTED


def test_feedback_that_was_not_stored_can_be_sent_again(tab, server):
    server.answers["/v1/feedback"] = 503, {}
    _ask(tab)
    tab.click(".up")
    tab.until("return document.querySelector('.status.wrong')")
    assert tab.text(".status").startswith("Not stored. The server is busy.")
    full = {"error": {"message": "feedback.jsonl is full."}}
    server.answers["/v1/feedback"] = 429, full
    tab.click(".up")
    tab.until("return document.querySelector('.status').innerText.endsWith('full.')")
    server.answers["/v1/feedback"] = 200, {}
    tab.click(".up")
    tab.until("return document.querySelector('.up[aria-pressed=true]')")


def test_an_abstention_looks_different_and_asks_the_nearest_question(tab, server):
    server.answers["/v1/chat/completions"] = 200, UNSURE
    _ask(tab, "what is the moon?")
    assert tab.text(".doubtful .doubt") == "Not sure enough to answer"
    assert tab.texts(".up") == []
    # What would have been right is compared with a stored reply, not with a refusal.
    tab.click(".down")
    tab.click(".pick")
    tab.until("return document.querySelector('.down[aria-pressed=true]')")
    body = server.received[-1][1]
    assert [body["chosen"], body["rejected"]] == [c["response"] for c in CANDIDATES[:2]]
    server.answers["/v1/chat/completions"] = 200, completion(LISTED)
    tab.click(".instead")
    tab.until("return document.querySelectorAll('.reply').length == 2")
    asked = server.received[-1][1]["messages"][-1]["content"]
    assert asked == CANDIDATES[0]["question"]


@pytest.mark.parametrize(
    "status, answer, line",
    [
        (503, {}, "The server is busy. Try again in a moment."),
        (429, {}, "The server is busy. Try again in a moment."),
        (500, {}, "The server met a problem. Try again in a moment."),
        (400, {"error": {"message": "style 'x':\nuse auto."}}, "style 'x': use auto."),
        (200, {"choices": []}, "The server sent what this page cannot read."),
        (200, ["no completion"], "The server sent what this page cannot read."),
    ],
)
def test_an_error_is_one_line_and_the_message_stays(tab, server, status, answer, line):
    server.answers["/v1/chat/completions"] = status, answer
    tab.type("#box", "where is it" + ENTER)
    assert tab.text("#notice span").endswith(line)
    assert _box(tab) == "where is it" and tab.texts(".turn") == []
    server.answers["/v1/chat/completions"] = 200, completion(LISTED)
    tab.type("#box", ENTER)
    tab.until("return document.querySelector('.reply')")
    assert tab.texts("#notice") == []
    assert len(server.received[-1][1]["messages"]) == 1


def test_a_server_that_went_away_is_one_line(tab, server):
    server.gone = True
    tab.type("#box", "hello" + ENTER)
    assert tab.text("#notice span") == "The server does not answer. Is it running?"
    assert _box(tab) == "hello"


def test_a_key_is_asked_for_on_401_and_kept_for_the_tab_alone(tab, server):
    tab.run("sessionStorage.clear()")
    server.answers["/v1/chat/completions"] = 401, {}
    assert tab.texts("#key-form") == []
    tab.type("#box", "hello" + ENTER)
    tab.type("#key", "a b" + ENTER)
    assert "no spaces" in tab.text("#notice")
    tab.run("document.getElementById('key').value = ''")
    server.answers["/v1/chat/completions"] = 200, completion(LISTED)
    tab.type("#key", "s3cret" + ENTER)
    tab.until("return document.querySelector('.reply')")
    assert server.received[-1][2] == "Bearer s3cret"
    assert tab.texts("#key-form") == []
    assert "s3cret" in tab.run("return Object.values(sessionStorage)")
    assert tab.run("return localStorage.length + document.cookie.length") == 0
    tab.run("sessionStorage.clear()")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_a_reply_that_takes_long_can_be_stopped(tab, server, how):
    server.delay = 1.0
    tab.type("#box", "hello" + ENTER)
    tab.until("return document.getElementById('send').textContent == 'Stop'")
    assert len(tab.texts(".waiting")) == 1
    tab.click("#send") if how == "button" else tab.press([ESCAPE])
    tab.until("return document.getElementById('send').textContent == 'Send'")
    assert _box(tab) == "hello" and tab.texts(".turn, #notice") == []


def test_clear_forgets_and_can_be_undone(tab, server):
    _ask(tab)
    tab.click("#clear")
    assert tab.texts(".turn") == [] and tab.texts("#empty")
    _ask(tab, "again")
    assert len(server.received[-1][1]["messages"]) == 1
    tab.click("#clear")
    tab.click("#notice button")
    _ask(tab, "more")
    asked = [m["content"] for m in server.received[-1][1]["messages"]]
    assert asked == ["again", LISTED, "more"]


def test_what_was_pending_does_not_come_back(tab, server):
    _ask(tab, "one")
    server.delay = 1.0
    tab.type("#box", "two" + ENTER)
    tab.click("#clear")
    tab.click("#notice button")
    tab.until("return document.getElementById('send').textContent == 'Send'")
    assert tab.texts(".mine") == ["one"] and tab.texts(".waiting") == []


def test_a_server_of_another_make_has_replies_without_a_why(tab, server):
    plain = {"choices": completion("Hello.")["choices"]}
    server.answers["/v1/chat/completions"] = 200, plain
    _ask(tab)
    assert tab.texts(".said-text") == ["Hello."]
    assert tab.texts(".meta, .up, .down, .why-button") == []


def test_hostile_data_is_text(tab, server):
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    candidate = {"response": evil, "question": evil, "bucket": evil, "score": 1}
    terms = {"__proto__": 0.5, evil: 0.25, "constructor": -0.25, "words": None}
    server.answers["/v1/chat/completions"] = (
        200,
        completion(
            evil,
            bucket=evil,
            candidates=[candidate | {"terms": terms}, candidate, CANDIDATES[1]],
            buckets={evil: 2.0},
        ),
    )
    _ask(tab, evil)
    tab.click(".why-button")
    assert tab.texts(".mine, .said-text, .candidate:first-child .text") == [evil] * 3
    added = ["constructor \N{MINUS SIGN}0.25", "__proto__ +0.50", f"{evil} +0.25"]
    shown = tab.texts(".candidate:first-child .terms li")
    assert set(added) < set(shown) and "question 0" in shown
    assert tab.run("return document.querySelector('img, .turn script')") is None


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(tab, width):
    size = {"width": width, "height": 640, "deviceScaleFactor": 1, "mobile": False}
    tab.devtools("Emulation.setDeviceMetricsOverride", **size)
    try:
        _ask(tab, "x" * 400)
        tab.click("#more"), tab.click(".why-button"), tab.click(".down")
        wide = "return document.documentElement.scrollWidth"
        assert tab.run(wide) <= width
    finally:
        tab.devtools("Emulation.clearDeviceMetricsOverride")


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    weights = 0.2126, 0.7152, 0.0722
    linear = [p / 12.92 if p < 0.04 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * c for w, c in zip(weights, linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(scheme):
    style = PAGE.read_text().split("</style>")[0]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", dark))
    for name, colour in found.items():
        if len(colour) == 4:
            found[name] = "#" + "".join(2 * digit for digit in colour[1:])
    pairs = [("ink", ground) for ground in ("paper", "surface", "mine", "code")]
    pairs += [("muted", ground) for ground in ("paper", "surface", "code")]
    pairs += [("accent", ground) for ground in ("paper", "surface")]
    pairs += [("on-accent", "accent"), ("doubt-ink", "doubt"), ("ink", "doubt")]
    pairs += [("bad-ink", "bad"), ("bad-ink", "paper")]
    edges = [("edge", "surface"), ("edge", "paper"), ("doubt-edge", "doubt")]
    for least, group in ((4.5, pairs), (3.0, edges)):
        for a, b in group:
            dim, bright = sorted(_luminance(found[name]) for name in (a, b))
            assert (bright + 0.05) / (dim + 0.05) >= least, (a, b)


class _Outline(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_labelled():
    outline = _Outline()
    outline.feed(PAGE.read_text())
    outline.close()
    assert outline.open == [] and len(set(outline.ids)) == len(outline.ids)
    targets = [value for _, name, value in outline.attributes if name == "for"]
    assert set(targets) <= set(outline.ids)
    names = {name for _, name, _ in outline.attributes}
    assert "style" not in names and not [n for n in names if n.startswith("on")]
    assert not names & {"src", "href", "srcset", "action"}


def test_the_page_is_self_contained_and_builds_no_markup_from_data():
    text = PAGE.read_text()
    assert len(text.encode()) < 60_000
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bimport\b", text)
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write"):
        assert word not in text
    assert not re.search(r"\beval\b|new Function|cssText|localStorage", text)
    assert len(re.findall(r"<style>", text)) == len(re.findall(r"<script>", text)) == 1


def test_the_page_is_packaged():
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    patterns = config["options.package_data"]["prefchat_jax"].split()
    assert any(PAGE in PACKAGE.glob(pattern) for pattern in patterns)
