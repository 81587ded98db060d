"""Each flag of `prefchat serve` does something, and says what is wrong."""

import contextlib
import shutil
import socket
import sys
import threading

import httpx
import pytest
from serving import CHAT, HELLO, ask, in_thread, samples, wait_for

from prefchat_jax.chat.session import Chat
from prefchat_jax.cli.main import main
from prefchat_jax.serving import server


@pytest.fixture
def serving(own_run, monkeypatch, capsys):
    """Runs the command in this process; yields the URL."""

    @contextlib.contextmanager
    def serving(*argv, run=(str(own_run),)):
        ready, done = threading.Event(), threading.Event()
        found = {}

        def instead(app, sock, *, timeout):
            found["url"] = server.address(sock)
            with in_thread(server.make_server(app, timeout=timeout), sock):
                ready.set()
                done.wait(30)

        monkeypatch.setattr(server, "run", instead)
        argv = ["serve", *run, "--port", "0", *map(str, argv)]
        command = threading.Thread(target=lambda: found.update(code=main(argv)))
        command.start()
        try:
            wait_for(lambda: ready.is_set() or not command.is_alive())
            assert ready.is_set(), capsys.readouterr().err
            yield found["url"]
        finally:
            done.set()
            command.join(30)
        assert found["code"] == 0

    return serving


WORDS = [{"role": "user", "content": "umbrella pizza"}]


def test_one_line_says_where_and_how_to_try_it(serving, capsys):
    with serving() as url:
        line = capsys.readouterr().out
        assert line.count("\n") == 1 and line.startswith(f"{url} answers from 28 ")
        assert f"curl {url}{CHAT}" in line and "set --api_key" not in line
        httpx.get(url + "/healthz")
    assert capsys.readouterr() == ("", "")  # No access log.


def test_the_run_may_be_named_either_way(serving, own_run):
    with serving("--weights", own_run, run=()) as url:
        assert httpx.get(f"{url}/v1/models/run").status_code == 200


def test_host(serving, capsys):
    with serving("--host", "0.0.0.0") as url:
        assert "set --api_key" in capsys.readouterr().out
        port = url.rsplit(":", 1)[1]
        there = f"http://127.0.0.2:{port}/healthz"
        assert httpx.get(there, headers={"Host": "a.example"}).status_code == 200
    with serving() as url:
        foreign = httpx.get(url + "/healthz", headers={"Host": "a.example"})
        assert foreign.status_code == 421
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), timeout=2)


def test_port(serving):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving("--port", port) as url:
        assert url == f"http://127.0.0.1:{port}"


def test_api_key(serving, monkeypatch, capsys):
    code = lambda url, key: (
        ask(url, headers={"Authorization": f"Bearer {key}"}).status_code
    )
    monkeypatch.setenv("PREFCHAT_API_KEY", "env")
    with serving() as url:
        assert code(url, "env") == 200 and code(url, "flag") == 401
        assert "$PREFCHAT_API_KEY" in capsys.readouterr().out
    with serving("--api_key", "flag") as url:
        assert code(url, "env") == 401 and code(url, "flag") == 200
        assert "flag" not in capsys.readouterr().out


def test_cors_origin(serving, tmp_path):
    allowed = lambda url, origin: (
        ask(url, headers={"Origin": origin}).headers.get("access-control-allow-origin")
        == origin
    )
    first, second = "https://a.example", "http://localhost:3000"
    with serving("--cors_origin", first, "--cors_origin", second) as url:
        assert allowed(url, first) and allowed(url, second)
        assert not allowed(url, "https://c.example")
    config = tmp_path / "serve.yaml"
    config.write_text(f"cors_origin: [{first}, {second}]\n")
    with serving("--config", config) as url:
        assert allowed(url, first) and allowed(url, second)


def test_max_request_bytes(serving):
    with serving("--max_request_bytes", 60) as url:
        assert ask(url).status_code == 413
    with serving() as url:
        assert ask(url).status_code == 200


def test_timeout(serving, monkeypatch):
    plain, gate = Chat.reply_batch, threading.Event()

    def slow(self, *arguments, **manner):
        gate.wait(1)
        return plain(self, *arguments, **manner)

    monkeypatch.setattr(Chat, "reply_batch", slow)
    with serving("--timeout", 0.2) as url:
        assert ask(url).status_code == 504
        gate.set()
    gate.clear()
    with serving("--timeout", 20) as url:
        assert ask(url).status_code == 200


def test_max_batch(serving, monkeypatch):
    plain, gate, entered = Chat.reply_batch, threading.Event(), threading.Event()

    def gated(self, *arguments, **manner):
        entered.set()
        assert gate.wait(20)
        return plain(self, *arguments, **manner)

    monkeypatch.setattr(Chat, "reply_batch", gated)
    # Without the flag those who wait are one batch; one may arrive a moment too late.
    for flags, expected in ((("--max_batch", 1), {4}), ((), {2, 3})):
        gate.clear(), entered.clear()
        with serving(*flags) as url:
            threads = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
            threads[0].start()
            assert entered.wait(20)
            for thread in threads[1:]:
                thread.start()
            wait_for(lambda url=url: samples(url)["prefchat_in_flight"] == 5)
            gate.set()
            for thread in threads:
                thread.join()
            assert samples(url)["prefchat_batch_size_count"] in expected


def test_llm_db(serving, own_run, tmp_path):
    other = tmp_path / "other.db"
    with Chat.load(own_run) as chat:
        chat.store.note_segment(0, "")  # The copy has no saved segment.
    shutil.copy(own_run / "responses.db", other)
    with Chat.load(own_run, database=other) as chat:
        chat.add("umbrella pizza", "Both at the counter.")
    with serving("--llm_db", other, "--min_confidence", 0) as url:
        assert samples(url)["prefchat_stored_answers"] == 29
        assert "counter" in ask(url, WORDS).json()["choices"][0]["message"]["content"]
    with serving() as url:
        assert samples(url)["prefchat_stored_answers"] == 28


def test_min_confidence(serving):
    for threshold, abstained in ((1, True), (0, False)):
        with serving("--min_confidence", threshold) as url:
            assert ask(url).json()["prefchat"]["abstained"] is abstained


def test_style_mode_and_creativity_are_defaults(serving):
    framed = lambda url, **more: ask(
        url, [{"role": "user", "content": "money back"}], **more
    ).json()
    text = lambda answer: answer["choices"][0]["message"]["content"]
    with serving("--style_mode", "creative", "--min_confidence", 0) as url:
        listed = httpx.get(f"{url}/v1/models").json()["data"][0]["prefchat"]
        assert listed["style"] == "creative" and listed["creativity"] == 0.2
        calm = framed(url)
        assert calm["prefchat"]["style"] == "creative"
        lively = framed(url, prefchat={"creativity": 1})
        other = framed(url, prefchat={"style": "concise"})
        assert other["prefchat"]["style"] == "concise"
    flags = "--style_mode", "creative", "--creativity", 1, "--min_confidence", 0
    with serving(*flags) as url:
        assert text(framed(url)) == text(lively) != text(calm)
        assert text(framed(url, prefchat={"creativity": 0.2})) == text(calm)


def test_feedback(serving, own_run):
    body = {"messages": HELLO, "chosen": "a", "rejected": "b"}
    with serving("--no_feedback") as url:
        assert httpx.post(f"{url}/v1/feedback", json=body).status_code == 404
    assert not (own_run / "feedback.jsonl").exists()
    with serving() as url:
        assert httpx.post(f"{url}/v1/feedback", json=body).status_code == 200
    assert (own_run / "feedback.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--port", "65536"], "--port"),
        (["--port", "http"], "--port"),
        (["--host", "256.0.0.1"], "--host 256.0.0.1"),
        (["--api_key", ""], "api_key"),
        (["--api_key", "a b"], "api_key"),
        (["--cors_origin", "a.example"], "error: --cors_origin "),
        (["--cors_origin", "https://a.example/path"], "error: --cors_origin "),
        (["--max_request_bytes", "0"], "error: --max_request_bytes "),
        (["--timeout", "0"], "error: --timeout "),
        (["--timeout", "inf"], "error: --timeout "),
        (["--max_batch", "0"], "error: --max_batch "),
        (["--llm_db", "no.db"], "no.db"),
        (["--min_confidence", "2"], "error: --min_confidence "),
        (["--style_mode", "loud"], "style_mode"),
        (["--creativity", "1.5"], "creativity"),
        (["--feedback", "maybe"], "maybe"),
        (["--weights", "twice"], "both name it: give one"),
        (["--prot", "1"], "did you mean --port?"),
    ],
)
def test_a_wrong_value_is_one_line(own_run, capsys, argv, named):
    assert main(["serve", str(own_run), "--port", "0", *argv]) == 2
    line = capsys.readouterr().err
    assert line.startswith("prefchat: error: ") and line.count("\n") == 1
    assert named in line.replace("-", "_").replace("__", "--") or named in line


def test_what_is_missing_is_one_line(own_run, capsys, monkeypatch, tmp_path):
    line = lambda *argv: (main(["serve", *argv]), capsys.readouterr().err)
    assert line()[0] == 2 and "error: --weights is missing: Run dir" in line()[1]
    assert "is not a run directory" in line(str(tmp_path / "no"))[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, error = line(str(own_run), "--port", port)
    assert code == 2 and error.count("\n") == 1
    assert f"--port {port}: Address already in use" in error
    monkeypatch.setenv("PREFCHAT_API_KEY", "")
    assert "PREFCHAT_API_KEY" in line(str(own_run))[1]
    monkeypatch.delenv("PREFCHAT_API_KEY")
    for name in ("prefchat_jax.serving.app", "prefchat_jax.serving.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("prefchat_jax.serving.app", raising=False)
    monkeypatch.delattr("prefchat_jax.serving.server", raising=False)
    for loaded in [name for name in sys.modules if name.split(".")[0] == "starlette"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert "pip install 'prefchat-jax[serve]'" in line(str(own_run))[1]
