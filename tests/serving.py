"""What the tests of the server share: a server in a thread, and raw requests."""

import contextlib
import json
import re
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx

from prefchat_jax.serving.app import make_app
from prefchat_jax.serving.config import ServerSettings
from prefchat_jax.serving.server import address, listen, make_server

HELLO = [{"role": "user", "content": "where is my parcel"}]
CHAT = "/v1/chat/completions"


@contextlib.contextmanager
def served(chat, **settings):
    """Yields the URL of a real server."""
    sock = listen("127.0.0.1", 0)
    url = address(sock)
    made = ServerSettings(**({"model": "run"} | settings))
    server = make_server(make_app(chat, made), timeout=5)
    with in_thread(server, sock):
        yield url


@contextlib.contextmanager
def in_thread(server, sock):
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def ask(url, messages=HELLO, headers=None, **fields):
    return httpx.post(
        url + CHAT, json={"messages": messages, **fields}, headers=headers, timeout=30
    )


def error_of(response):
    """The body of an error, which must be OpenAI's."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    return body["error"]


def samples(url):
    """The numbers of /metrics by name and labels."""
    lines = httpx.get(url + "/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def http(body, path=CHAT, method="POST", kind="application/json", extra=""):
    """A whole request, as bytes."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def exchange(url, data, *, end=False):
    """Sends bytes and returns the statuses of what comes back, and the last body.

    With `end` the client ends its side, as one that dies does.
    """
    place = urlsplit(url)
    received = b""
    server = place.hostname, place.port
    with (
        socket.create_connection(server, timeout=20) as sock,
        contextlib.suppress(ConnectionError),
    ):
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        while chunk := sock.recv(65536):
            received += chunk
    statuses = [int(s) for s in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
    return statuses, received.partition(b"\r\n\r\n")[2]


def valid():
    """A request with every field."""
    return {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "where is it"}]},
            {"role": "assistant", "content": "What?"},
            {"role": "user", "content": "my parcel"},
        ],
        "model": "run",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "seed": 1,
        "n": 1,
        "user": "me",
        "prefchat": {"style": "concise", "creativity": 0.5},
        "tools": [],
    }


def encoded(value):
    return json.dumps(value).encode()
