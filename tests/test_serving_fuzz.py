"""Requests that nobody means: none may fail the server."""

import json
import random

import pytest
from serving import (
    CHAT,
    ask,
    encoded,
    exchange,
    http,
    samples,
    served,
    valid,
)

from prefchat_jax import Chat, ChatSettings

LIMIT = 20_000
PATHS = (CHAT, CHAT, CHAT, "/v1/feedback")
JUNK = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    -(10**400),
    2**63,
    "",
    "\x00",
    "a" * 300,
    "\U0001f600\u202e",
    "auto",
    [],
    [[]],
    {},
    {"type": "text"},
    [{"role": "user", "content": "hi"}],
]


def _places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in items:
        yield from _places(item, (*path, key))


def _changed(rng, value):
    """The value with one place replaced or removed."""
    path = rng.choice(list(_places(value)))
    if not path:
        return rng.choice(JUNK)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if rng.random() < 0.2:
        del parent[path[-1]]
    else:
        parent[path[-1]] = rng.choice(JUNK)
    return value


def _wrong_types(rng):
    asked = valid() | {"chosen": "a", "rejected": "b"}
    for _ in range(rng.randint(1, 3)):
        asked = _changed(rng, asked)
        if not isinstance(asked, dict):
            break
    return http(encoded(asked), rng.choice(PATHS))


def _random_bytes(rng):
    return http(rng.randbytes(rng.randint(0, 400)), rng.choice(PATHS))


def _nested(rng):
    depth = rng.choice([50, 900, 1100, 9000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('{"messages":[', "]}")])
    deep = opening * depth + "1" + closing * depth
    deep = rng.choice(
        [deep, '{"messages": [], "prefchat": ' + deep + "}", deep[:depth]]
    )
    return http(deep.encode(), rng.choice(PATHS))


def _huge_numbers(rng):
    number = rng.choice(["9" * 5000, "1e999", "-1e-999", "NaN", "Infinity", "0x1", "-"])
    field = rng.choice(["temperature", "seed", "n", "max_tokens", "stream"])
    text = json.dumps(valid()).replace("}", f', "{field}": {number}}}', 1)
    flat = f'{{"messages": [{{"role": "user", "content": "a"}}], "{field}": {number}}}'
    return http(rng.choice([text, flat]).encode())


def _bad_text(rng):
    bad = rng.choice(
        [b"\xff", b"\xc3", b"\xed\xa0\x80", rb"\ud800", rb"\udc00x", b"\n"]
    )
    return http(encoded(valid()).replace(b"my parcel", b"my " + bad), rng.choice(PATHS))


def _odd_text(rng):
    """Texts that are allowed, and hard to read."""
    letters = rng.choice(["\u0301", "\u0000", "\u202e", "\ufdfa", " ", "!?", "a\u0020"])
    asked = valid()
    asked["messages"][-1]["content"] = letters * rng.randint(0, 3000)
    return http(json.dumps(asked, ensure_ascii=rng.random() < 0.5).encode())


def _wrong_kind(rng):
    kinds = ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
    kinds += ["multipart/form-data; boundary=x", "application/json; charset=\xe9", ";"]
    return http(encoded(valid()), rng.choice(PATHS), kind=rng.choice(kinds))


def _oversize(rng):
    size = rng.choice([LIMIT + 1, 3 * LIMIT])
    if rng.random() < 0.5:
        return http(b" " * size)
    head = http(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    return head + b"%x\r\n%s\r\n0\r\n\r\n" % (size, b" " * size)


def _chunked(rng):
    head = http(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    body = encoded(valid())
    chunks = b"%x\r\n%s\r\n" % (len(body), body)
    wrong = [chunks[: rng.randint(0, len(chunks))], chunks, b"zz\r\n", b"-1\r\n\r\n"]
    return head + rng.choice(wrong)


def _cut(rng):
    request = http(encoded(valid()), rng.choice(PATHS))
    return request[: rng.randint(1, len(request) - 1)]


def _flipped(rng):
    request = bytearray(http(encoded(valid()), rng.choice(PATHS)))
    for _ in range(rng.randint(1, 4)):
        request[rng.randrange(len(request))] = rng.randrange(256)
    return bytes(request)


def _no_http(rng):
    lines = [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 50,
        b"\x16\x03\x01",
        b"PRI * HTTP/2.0",
    ]
    lines += [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", rng.randbytes(200)]
    lines += [b"GET /v1/models/%ff%00%0d%0a HTTP/1.1\r\nHost: x\r\n\r\n"]
    lines += [b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"TRACE / HTTP/1.1\r\n\r\n"]
    return rng.choice(lines)


# Whole requests must be answered; of the others the client ends its side early.
WHOLE = (
    _wrong_types,
    _random_bytes,
    _nested,
    _huge_numbers,
    _bad_text,
    _odd_text,
    _wrong_kind,
    _oversize,
)
BROKEN = (_chunked, _cut, _flipped, _no_http)


def _soak(run, tmp_path, count, seed):
    rng = random.Random(seed)
    settings = {"max_request_bytes": LIMIT, "feedback": tmp_path / "feedback.jsonl"}
    with (
        Chat.load(run.run.path, settings=ChatSettings(min_confidence=0.0)) as chat,
        served(chat, **settings) as url,
    ):
        expected = ask(url).json()["choices"]
        seen = set()
        for number in range(count):
            make = rng.choice(WHOLE if number % 2 else BROKEN)
            data = make(rng)
            statuses, body = exchange(url, data, end=make in BROKEN)
            seen |= set(statuses)
            note = f"{make.__name__}, {number}: {statuses} for {data[:300]!r}"
            assert all(status < 500 for status in statuses), note
            if make in WHOLE and make is not _oversize:
                assert len(statuses) == 1, note
                if statuses[0] >= 400 and body.startswith(b"{"):
                    assert set(json.loads(body)) == {"error"}, note
        assert ask(url).json()["choices"] == expected
        numbers = samples(url)
    assert {200, 400, 404, 413, 415} <= seen
    failed = [name for name in numbers if 'status="5' in name]
    assert not failed, failed
    assert numbers["prefchat_in_flight"] == 1


def test_no_request_fails_the_server(run, tmp_path, caplog):
    _soak(run, tmp_path, 2_000, seed=1)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.slow
def test_ten_thousand_requests_fail_nothing(run, tmp_path, caplog):
    _soak(run, tmp_path, 10_000, seed=2)
    assert not [record for record in caplog.records if record.exc_info]
