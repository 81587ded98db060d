"""Replies a second and their time of `prefchat serve`, many clients asking at once.

    python -m benchmarks.serving --weights RUN --data questions.jsonl --seconds 30

Starts the server as a process of its own. Each client is a connection that stays
open and sends its next question when it has its reply: sockets and ready bytes, so
that the clients cost little beside the server. `cpu_ms` is processor time for each
reply, which other work on the machine changes least. With `--max_batch 1` nothing
is batched. Without `--weights` a run of the demo's rows is trained first.
"""

import asyncio
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks.processes import PREFCHAT
from benchmarks.timing import DEMO, command, flags, run_or_demo, show, start
from prefchat_jax.datasets.records import read_records

_WARM = 2.0  # Seconds before anything is counted.
_LEAST = 1.0  # Seconds that are, however quick.
COLUMNS = {
    "clients": ("clients", ""),
    "max batch": ("max_batch", ""),
    "replies/s": ("replies_per_second", ",.0f"),
    "p50 ms": ("p50_ms", ".2f"),
    "p99 ms": ("p99_ms", ".2f"),
    "errors": ("errors", ""),
    "mean batch": ("mean_batch", ".1f"),
    "server CPU ms": ("server_cpu_ms", ".2f"),
    "client CPU ms": ("client_cpu_ms", ".2f"),
}


class Seen(NamedTuple):
    """What the clients saw: seconds of each reply, and statuses that were not 200."""

    seconds: list[float]
    errors: list[int]


def load(url: str, questions: list[str], clients: int, seconds: float) -> Seen:
    """Asks from many connections for some seconds."""
    return asyncio.run(_load(url, questions, clients, seconds))


async def _load(url: str, questions: list[str], clients: int, seconds: float) -> Seen:
    requests = [_request(question) for question in questions]
    seen = Seen([], [])
    start = time.perf_counter() + _WARM
    await asyncio.gather(
        *(
            _client(url, requests[number::clients], start, start + seconds, seen)
            for number in range(clients)
        )
    )
    return seen


async def _client(
    url: str, requests: list[bytes], start: float, end: float, seen: Seen
) -> None:
    """One connection; counts the replies that came in time."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    number = 0
    while (sent := time.perf_counter()) < end:
        writer.write(requests[number % len(requests)])
        number += 1
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        now = time.perf_counter()
        if start <= now <= end:
            status = int(head[9:12])
            if status == 200:
                seen.seconds.append(now - sent)
            else:
                seen.errors.append(status)
    writer.close()


def _request(question: str) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    ) + body


async def _get(url: str, path: str) -> str:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    return answer.decode()


class Counted(NamedTuple):
    """What the server counted so far."""

    replies: float
    batches: float
    cpu_seconds: float


def counted(url: str) -> Counted:
    """Reads the server's own numbers."""
    lines = asyncio.run(_get(url, "/metrics")).splitlines()
    numbers = dict(line.rsplit(" ", 1) for line in lines if line.startswith("prefchat"))
    return Counted(
        float(numbers["prefchat_batch_size_sum"]),
        float(numbers["prefchat_batch_size_count"]),
        float(numbers["prefchat_cpu_seconds"]),
    )


def measure(
    run: str, questions: list[str], clients: int, seconds: float, max_batch: int
) -> dict:
    """Starts a server, asks it, stops it."""
    argv = [sys.executable, "-c", PREFCHAT, "serve", run, "--port", "0"]
    argv += ["--no_feedback", "--max_batch", str(max_batch)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[0]
            before, own = counted(url), _own_seconds()
            seen = load(url, questions, clients, seconds)
            own = _own_seconds() - own
            after = counted(url)
        finally:  # Else leaving the block waits for it for ever.
            server.terminate()
    replies = after.replies - before.replies
    ordered = sorted(seen.seconds)
    at = lambda share: 1e3 * ordered[math.ceil(share * len(ordered)) - 1]
    return {
        "clients": clients,
        "max_batch": max_batch,
        "replies_per_second": len(ordered) / seconds,
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "errors": len(seen.errors),
        "mean_batch": replies / (after.batches - before.batches),
        "server_cpu_ms": 1e3 * (after.cpu_seconds - before.cpu_seconds) / replies,
        "client_cpu_ms": 1e3 * own / replies,
        "exit_code": server.returncode,
    }


def _own_seconds() -> float:
    """Processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = flags(__doc__, seconds=30.0, quick="a second, three clients")
    parser.add_argument("--weights", help="run directory; one of the demo's rows")
    parser.add_argument("--data", nargs="+", default=[DEMO], help="what to ask")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--max_batch", type=int, nargs="+", default=[1, 32])
    args, limits = start(parser, argv)
    clients = 3 if args.quick else args.clients
    questions = [example.question for example in read_records(args.data).examples]
    seconds = max(args.seconds, _LEAST)
    with tempfile.TemporaryDirectory() as folder:
        run = run_or_demo(args.weights, folder)
        rows = [
            measure(run, questions, clients, seconds, size) for size in args.max_batch
        ]
    show("prefchat serve", COLUMNS, rows, limits, as_json=args.json)


if __name__ == "__main__":
    command(main)
