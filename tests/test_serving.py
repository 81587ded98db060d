"""A real server, asked by OpenAI's own client and by plain requests."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from serving import (
    CHAT,
    HELLO,
    ask,
    encoded,
    error_of,
    exchange,
    http,
    in_thread,
    samples,
    served,
    wait_for,
)

from prefchat_jax import Chat, ChatSettings
from prefchat_jax.chat.styles import STYLES, Style, register_style, unregister_style
from prefchat_jax.datasets.preferences import PreferencePair, pairs_of
from prefchat_jax.datasets.rows import decode_row
from prefchat_jax.errors import UserError
from prefchat_jax.serving import server
from prefchat_jax.serving.app import make_app
from prefchat_jax.serving.config import ServerSettings
from prefchat_jax.serving.feedback import FeedbackFile
from prefchat_jax.serving.page import policy
from prefchat_jax.serving.server import listen, make_server
from prefchat_jax.serving.wire import ApiError
from prefchat_jax.text.dialogue import Turn

QUESTIONS = ["where is my parcel", "money back", "cannot log in", "when are you open"]


@pytest.fixture(scope="module")
def chat(run):
    with Chat.load(run.run.path, settings=ChatSettings(min_confidence=0.0)) as chat:
        yield chat


@pytest.fixture(scope="module")
def url(chat):
    with served(chat) as url:
        yield url


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


class Gated:
    """A chat whose replies wait until the gate opens."""

    def __init__(self, chat):
        self._chat = chat
        self.gate = threading.Event()
        self.entered = threading.Event()

    def __len__(self):
        return len(self._chat)

    def reply_batch(self, messages, **manner):
        self.entered.set()
        assert self.gate.wait(20)
        return self._chat.reply_batch(messages, **manner)


# --- OpenAI's client


def test_a_completion_is_the_reply_of_the_chat(client, chat):
    history = [("system", "Be kind."), ("user", "hello"), ("assistant", "Hi!")]
    messages = [{"role": role, "content": text} for role, text in history]
    messages.append({"role": "user", "content": "where is my parcel"})
    answer = client.chat.completions.create(model="run", messages=messages)
    expected = chat.reply("where is my parcel", history=history)
    choice = answer.choices[0]
    assert choice.message.content == expected.text and choice.finish_reason == "stop"
    assert answer.model == "run" and answer.object == "chat.completion"
    assert answer.usage.prompt_tokens == 2 + 1 + 1 + 4  # Words.
    assert answer.usage.completion_tokens == len(expected.text.split())
    explained = answer.prefchat
    assert explained["bucket"] == expected.bucket == "parcel"
    assert explained["confidence"] == pytest.approx(expected.confidence)
    assert explained["abstained"] is False and explained["milliseconds"] > 0
    assert [c["question"] for c in explained["candidates"]] == [
        c.question for c in expected.candidates
    ]
    first = explained["candidates"][0]
    assert sum(first["terms"].values()) == pytest.approx(first["score"], abs=1e-5)


def test_a_stream_says_the_same_and_ends_with_usage(client):
    ask = lambda **more: client.chat.completions.create(
        model="run", messages=HELLO, **more
    )
    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].prefchat["bucket"] == "parcel"
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in ask(stream=True))


def test_the_extension_sets_the_manner(client, chat):
    answer = client.chat.completions.create(
        model="run",
        messages=[{"role": "user", "content": "money back"}],
        extra_body={"prefchat": {"style": "creative", "creativity": 0.9}},
    )
    expected = chat.reply("money back", style="creative", creativity=0.9)
    assert answer.choices[0].message.content == expected.text
    assert answer.prefchat["style"] == "creative"
    assert expected.text != chat.reply("money back").text
    assert expected.text != chat.reply("money back", style="creative").text


def test_temperature_and_seed_draw_as_the_chat_does(client, chat):
    draw = lambda **more: client.chat.completions.create(
        model="run", messages=HELLO, temperature=2.0, **more
    )
    drawn = [draw(seed=seed).choices[0].message.content for seed in range(12)]
    expected = [
        chat.reply("where is my parcel", temperature=2.0, seed=seed).text
        for seed in range(12)
    ]
    assert drawn == expected and len(set(drawn)) > 1
    assert len({draw().choices[0].message.content for _ in range(40)}) > 1
    for odd in (-1, 2**70):
        assert draw(seed=odd).choices[0].message.content
    tiny = ask(str(client.base_url).removesuffix("/v1/"), temperature=5e-324, seed=3)
    assert tiny.json()["prefchat"]["bucket"] == "parcel"


def test_models_are_listed_and_unknown_ones_are_not_found(client):
    assert [model.id for model in client.models.list()] == ["run"]
    assert client.models.retrieve("run").owned_by == "prefchat"
    register_style(Style(name="listed"))
    styles = client.models.list().data[0].prefchat["styles"]
    unregister_style("listed")
    assert styles == ["auto", *STYLES, "listed"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert caught.value.body["param"] == "model" and "'run'" in str(caught.value)


def test_a_key_opens_all_but_the_page_and_health(chat):
    with served(chat, api_key="s3cret") as url:
        for key in ("s3cre", "s3cret2", ""):
            response = ask(url, headers={"Authorization": f"Bearer {key}".strip()})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert error_of(response)["code"] == "invalid_api_key"
        key = {"Authorization": "Bearer s3cret"}
        assert ask(url, headers=key).status_code == 200
        codes = lambda **more: [
            httpx.get(url + path, **more).status_code
            for path in ("/healthz", "/", "/metrics", "/v1/models", "/no")
        ]
        assert codes() == [200, 200, 401, 401, 401]
        assert codes(headers=key) == [200, 200, 200, 200, 404]
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as wrong,
            pytest.raises(openai.AuthenticationError),
        ):
            wrong.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret") as right:
            assert right.models.list().data


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_name_of_another_host_is_no_name_of_this_machine(chat, host):
    code = lambda url, name, path="/v1/models": (
        httpx.get(url + path, headers={"Host": name}).status_code
    )
    good = ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "192.168.0.7:80"]
    bad = ["evil.example", "evil.example:8000", "localhost.evil.example", "", "[x]"]
    with served(chat, host=host) as url:
        assert [code(url, name) for name in good] == [200] * 5
        assert [code(url, name) for name in bad] == [421] * 5
        assert code(url, "evil.example", "/") == 421
        assert exchange(url, b"GET /healthz HTTP/1.0\r\n\r\n")[0] == [200]
        refused = ask(url, headers={"Host": "evil.example"})
        assert refused.status_code == 421 and "'evil.example'" in refused.text
        assert error_of(refused)["code"] == "wrong_host"
        assert samples(url)[
            'prefchat_requests_total{route="/v1/models",status="421"}'
        ] == len(bad)


def test_a_key_or_an_open_address_allows_every_host(chat):
    for settings in ({"api_key": "k", "host": "::1"}, {"host": "0.0.0.0"}):
        headers = {"Host": "chat.example", "Authorization": "Bearer k"}
        with served(chat, **settings) as url:
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200


# --- what is wrong with a request


@pytest.mark.parametrize(
    "fields, status, param",
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": None}, 400, "messages"),
        ({"messages": [{"content": "a"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "a"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages[0].content[0]",
        ),
        ({"temperature": 2.1}, 400, "temperature"),
        ({"temperature": -0.1}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature"),
        ({"seed": "1"}, 400, "seed"),
        ({"n": 2}, 400, "n"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": 1}, 400, "stream_options"),
        ({"model": "other"}, 404, "model"),
        ({"prefchat": {"style": "loud"}}, 400, "prefchat.style"),
        ({"prefchat": {"creativity": 1.5}}, 400, "prefchat.creativity"),
        ({"prefchat": []}, 400, "prefchat"),
        ({"prefchat": {"creativty": 0.3}}, 400, "prefchat.creativty"),
        ({"prefchat": {"a` - at `$.b\n": 1}}, 400, "prefchat.a` - at `$.b\n"),
    ],
)
def test_an_error_names_the_field(url, fields, status, param):
    response = ask(url, **({"messages": HELLO} | fields))
    assert response.status_code == status
    error = error_of(response)
    assert error["param"] == param and error["type"] == "invalid_request_error"


def test_an_unknown_wish_is_named_beside_the_known_ones(url):
    error = error_of(ask(url, prefchat={"creativty": 0.3}))
    assert error["message"] == (
        "prefchat: 'creativty' is unknown: use style, creativity."
    )


def test_null_and_unknown_fields_are_ignored(url):
    names = ("model", "stream", "temperature", "seed", "n", "user", "prefchat")
    fields = dict.fromkeys(names) | {"max_tokens": 1, "stop": [1], "no_such": {}}
    calls = [{"role": "assistant", "content": None, "tool_calls": [1]}]
    response = ask(url, [*calls, *HELLO], **fields)
    assert response.status_code == 200
    assert response.json()["prefchat"]["bucket"] == "parcel"


def test_bodies_and_routes_that_cannot_be_read(chat):
    with served(chat, max_request_bytes=2000, timeout=0.5) as url:
        post = lambda body, kind="application/json; charset=utf-8": httpx.post(
            url + CHAT, content=body, headers={"Content-Type": kind}
        )
        assert error_of(post(b"{"))["code"] == "invalid_json"
        assert post(encoded({"messages": HELLO}), "text/plain").status_code == 415
        assert post(b" " * 2001).status_code == 413
        assert post(iter([b" " * 1001] * 2)).status_code == 413
        assert post(encoded({"messages": HELLO}) + b" " * 1800).status_code == 200
        assert error_of(httpx.get(url + "/nothing"))["code"] == "unknown_url"
        wrong = httpx.get(url + CHAT)
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        slow = http(b"{}").replace(b"Length: 2", b"Length: 9")
        assert exchange(url, slow)[0] == [408]


@pytest.mark.parametrize("kept", [False, True])
def test_half_a_head_is_not_waited_for(chat, kept):
    sock = listen("127.0.0.1", 0)
    place = sock.getsockname()
    app = make_app(chat, ServerSettings(model="run"))
    with (
        in_thread(make_server(app, timeout=0.5), sock),
        socket.create_connection(place, timeout=20) as client,
    ):
        if kept:
            request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
            for _ in range(2):  # Idle, a connection may stay longer.
                client.sendall(request)
                received = b""
                while not received.endswith(b"}"):
                    received += client.recv(65536)
                time.sleep(0.7)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost")
        for _ in range(4):  # Each byte more wins no time.
            time.sleep(0.2)
            with contextlib.suppress(ConnectionError):
                client.sendall(b"x")
        with contextlib.suppress(ConnectionError):
            assert client.recv(65536) == b""


def test_a_long_head_and_too_many_connections_are_refused(chat, url, monkeypatch):
    long = {"X-Long": "a" * 12_000}
    assert httpx.get(f"{url}/healthz", headers=long).status_code == 200
    unended = b"GET /healthz HTTP/1.1\r\nX-Long: " + b"a" * 20_000
    assert exchange(url, unended)[0] == [400]
    monkeypatch.setattr(server, "_CONNECTIONS", 3)
    with served(chat) as other, contextlib.ExitStack() as taken:
        place = other.removeprefix("http://").split(":")
        assert httpx.get(f"{other}/healthz").status_code == 200
        for _ in range(3):
            sock = socket.create_connection((place[0], int(place[1])), timeout=20)
            taken.enter_context(sock)
        assert httpx.get(f"{other}/healthz").status_code == 503
        taken.close()
        wait_for(lambda: httpx.get(f"{other}/healthz").status_code == 200)


@pytest.mark.parametrize(
    "text", ["short " + 64_000 * "and ", "in one word" + 250_000 * " ", 64_000 * "1. x"]
)
def test_no_message_holds_up_the_others(chat, text):
    start = time.process_time()
    chat.reply(text, creativity=1.0)
    assert time.process_time() - start < 4  # A square would take minutes.


# --- batching, time and load


def test_who_waits_is_answered_together_and_as_alone(chat):
    gated = Gated(chat)
    manners = [{}, {"prefchat": {"style": "creative"}}, {"temperature": 1.0, "seed": 3}]
    asked = [(question, m) for _ in range(4) for question in QUESTIONS for m in manners]
    with served(gated) as url, ThreadPoolExecutor(len(asked) + 1) as pool:
        first = pool.submit(ask, url)
        assert gated.entered.wait(20)
        answers = [
            pool.submit(ask, url, [{"role": "user", "content": question}], **manner)
            for question, manner in asked
        ]
        wait_for(lambda: samples(url)["prefchat_in_flight"] == len(asked) + 2)
        gated.gate.set()
        assert first.result().status_code == 200
        for (question, manner), answer in zip(asked, answers, strict=True):
            style = manner.get("prefchat", {}).get("style", "auto")
            draw = {k: v for k, v in manner.items() if k != "prefchat"}
            expected = chat.reply(question, style=style, **draw)
            found = answer.result().json()
            assert found["choices"][0]["message"]["content"] == expected.text
            confidence = found["prefchat"]["confidence"]
            assert confidence == pytest.approx(expected.confidence, abs=1e-5)
        numbers = samples(url)
    assert numbers["prefchat_batch_size_sum"] == len(asked) + 1
    assert numbers["prefchat_batch_size_count"] == 1 + len(manners)


def test_a_batch_has_its_limit(chat):
    gated = Gated(chat)
    with served(gated, max_batch=3) as url, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, url) for _ in range(8)]
        wait_for(lambda: samples(url)["prefchat_in_flight"] == 9)
        gated.gate.set()
        assert {answer.result().status_code for answer in answers} == {200}
        numbers = samples(url)
    assert (
        numbers['prefchat_batch_size_bucket{le="4"}']
        == (numbers["prefchat_batch_size_count"])
    )
    assert numbers["prefchat_batch_size_count"] >= 3


def test_one_bad_request_spoils_no_other(chat):
    class Picky(Gated):
        def reply_batch(self, messages, **manner):
            found = super().reply_batch(messages, **manner)
            if "bad" in messages:
                raise OSError("the disk is gone")
            return found

    gated = Picky(chat)
    with served(gated) as url, ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, url)
        assert gated.entered.wait(20)
        bad = pool.submit(ask, url, [{"role": "user", "content": "bad"}])
        good = [pool.submit(ask, url) for _ in range(2)]
        wait_for(lambda: samples(url)["prefchat_in_flight"] == 5)
        gated.gate.set()
        assert [g.result().status_code for g in (first, *good)] == [200] * 3
        assert bad.result().status_code == 500
        assert error_of(bad.result()) == {
            "message": "The server failed.",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }


def test_a_late_reply_is_504_and_the_queue_goes_on(chat):
    gated = Gated(chat)
    with served(gated, timeout=0.3) as url:
        late = ask(url)
        assert late.status_code == 504 and error_of(late)["code"] == "timeout"
        assert ask(url).status_code == 504  # It waits behind the first.
        gated.gate.set()
        wait_for(lambda: ask(url).status_code == 200)
        # The second was given up before its turn came, and never answered.
        count = samples(url)["prefchat_batch_size_sum"]
        wanted = 'prefchat_requests_total{route="/v1/chat/completions",status="200"}'
        assert count == samples(url)[wanted] + 1


def test_a_full_queue_is_503_with_a_time_to_come_back(chat):
    gated = Gated(chat)
    with served(gated, max_waiting=2) as url, ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(ask, url)]
        assert gated.entered.wait(20)
        taken += [pool.submit(ask, url) for _ in range(2)]
        wait_for(lambda: samples(url)["prefchat_in_flight"] == 4)
        refused = ask(url)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert error_of(refused)["code"] == "overloaded"
        assert httpx.get(url + "/healthz").json() == {"status": "ok"}
        gated.gate.set()
        assert [answer.result().status_code for answer in taken] == [200] * 3


def test_an_answer_is_sent_at_once(url):
    """A body that waits for its head to be acknowledged takes 40 ms each."""
    body = encoded({"messages": HELLO, "n": 2})  # Refused, so that it is quick.
    with httpx.Client() as client:
        post = lambda: client.post(
            url + CHAT, content=body, headers={"Content-Type": "application/json"}
        )
        times = [post().elapsed.total_seconds() for _ in range(30)]
    assert sorted(times)[15] < 0.03


# --- metrics, page, other origins


def test_metrics_count_what_happened(run, tmp_path):
    own = shutil.copytree(run.run.path, tmp_path / "run")
    with (
        Chat.load(own, settings=ChatSettings(min_confidence=1.0)) as never,
        served(never) as url,
    ):
        before = samples(url)["prefchat_stored_answers"]
        assert ask(url).json()["prefchat"]["abstained"] is True
        ask(url, [])
        httpx.get(f"{url}/v1/models/a")
        httpx.get(f"{url}/v1/models/b")
        httpx.get(f"{url}/secret/1")
        never.add("do you sell umbrellas", "At the counter.")
        numbers = samples(url)
        stored = len(never)
    route = 'prefchat_requests_total{{route="{}",status="{}"}}'.format
    assert numbers[route(CHAT, 200)] == numbers[route(CHAT, 400)] == 1
    assert numbers[route("/v1/models/{id}", 404)] == 2
    assert numbers[route("other", 404)] == 1
    assert numbers["prefchat_abstentions_total"] == 1
    assert numbers["prefchat_in_flight"] == 1  # This very request.
    assert numbers["prefchat_stored_answers"] == before + 1 == stored
    assert numbers["prefchat_request_seconds_count"] == 2
    assert numbers['prefchat_request_seconds_bucket{le="+Inf"}'] == 2
    assert 0 < numbers["prefchat_request_seconds_sum"] < 20


def test_the_page_may_run_its_own_parts_alone(url):
    page = httpx.get(url + "/")
    rules = page.headers["content-security-policy"]
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in rules and "unsafe" not in rules
    assert rules == policy(page.text) and "'sha256-" in rules
    for part in ('src="http', "src='http", "@import", "url(http", " onclick="):
        assert part not in page.text
    # The digest of `alert(1)`, as browsers compute it.
    digest = "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"
    assert f"script-src {digest};" in policy("<script>alert(1)</script>")
    assert "style-src 'none'" in policy("<script>alert(1)</script>")


def test_other_origins_ask_only_where_allowed(chat, url):
    origin = {"Origin": "https://a.example"}
    ask_first = origin | {"Access-Control-Request-Method": "POST"}
    allow = "access-control-allow-origin"
    assert allow not in ask(url, headers=origin).headers
    with served(chat, cors_origin=("https://a.example",), api_key="k") as other:
        first = httpx.options(other + CHAT, headers=ask_first)
        assert first.status_code == 200 and first.headers[allow] == origin["Origin"]
        refused = ask(other, headers=origin)  # A page may read why.
        assert refused.status_code == 401 and refused.headers[allow]
        wrong = httpx.options(
            other + CHAT, headers=ask_first | {"Origin": "https://b.example"}
        )
        assert wrong.status_code == 400 and allow not in wrong.headers


# --- feedback


def test_feedback_becomes_preference_pairs(chat, tmp_path):
    path = tmp_path / "feedback.jsonl"
    fields = {"chosen": " Yes. ", "rejected": "No\nway.", "user": "ann"}
    history = [{"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}]
    with served(chat, feedback=path) as url:
        send = lambda **more: httpx.post(
            f"{url}/v1/feedback", json={"messages": [*history, *HELLO]} | fields | more
        )
        assert send().json() == {"object": "feedback", "stored": 1}
        assert send(user=None, chosen="\u2028").status_code == 400
        assert send(rejected="Yes.").status_code == 400
        assert error_of(send(chosen=1))["param"] == "chosen"
        assert send(annotator="ann").status_code == 400  # It would go unread.
        assert send(messages=[]).status_code == 400
        assert send(messages=[{"role": "user", "content": " "}]).status_code == 400
        assert send(rejected="x" * 40_000).status_code == 413
        with ThreadPoolExecutor(8) as pool:
            sent = list(pool.map(lambda i: send(rejected=f"No {i}."), range(40)))
        assert {response.status_code for response in sent} == {200}
        assert samples(url)["prefchat_feedback_total"] == 41
    pairs = [pairs_of(decode_row(line)) for line in path.read_bytes().splitlines()]
    context = (Turn("system", "Be kind."), Turn("user", "where is my parcel"))
    assert pairs[0] == [
        PreferencePair(context, "Yes.", "No\nway.", "feedback", "ann", None)
    ]
    assert {pair.rejected for (pair,) in pairs[1:]} == {f"No {i}." for i in range(40)}


def test_feedback_survives_half_a_line_and_keeps_to_its_size(tmp_path):
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(b'{"prompt": "ab')
    pair = PreferencePair((Turn("user", "a"),), "b", "c", "feedback")
    kept = FeedbackFile(path, max_bytes=400)
    kept.append(pair)
    lines = path.read_bytes().splitlines()
    assert pairs_of(decode_row(lines[1])) == [pair] and len(lines) == 2
    with pytest.raises(ApiError) as caught:
        for _ in range(9):
            kept.append(pair)
    assert caught.value.status == 429 and path.stat().st_size <= 400
    assert path.read_bytes().endswith(b"\n")
    with pytest.raises(UserError, match="--no_feedback"):
        FeedbackFile(tmp_path / "no" / "feedback.jsonl").check()


def test_without_a_file_there_is_no_feedback(url):
    body = {"messages": HELLO, "chosen": "a", "rejected": "b"}
    assert httpx.post(f"{url}/v1/feedback", json=body).status_code == 404


# --- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_in_flight_finish(run, number):
    code = "import sys; from prefchat_jax.cli.main import main; sys.exit(main())"
    argv = [sys.executable, "-c", code, "serve", str(run.run.path), "--port", "0"]
    argv += ["--no_feedback"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        host, port = line.split()[0].removeprefix("http://").split(":")
        body = json.dumps({"messages": HELLO}).encode()
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            request = http(body, extra="Expect: 100-continue\r\n")
            sock.sendall(request.removesuffix(body))
            assert b"100" in sock.recv(1000)  # Now the server waits for the body.
            process.send_signal(number)
            wait_for(lambda: _refused(host, int(port)))
            sock.sendall(body)
            received = b""
            while chunk := sock.recv(65536):
                received += chunk
        assert b"HTTP/1.1 200" in received and b"Open Orders" in received
        assert process.wait(20) == 0
        assert process.stderr.read() == "" and process.stdout.read() == ""


def _refused(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return True
    return False
