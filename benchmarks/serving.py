"""Replies a second and their time of `prefchat serve`, many clients asking at once.

    python -m benchmarks.serving --weights RUN --data questions.jsonl --seconds 30

Starts the server as a process of its own. Each client is a connection that stays
open and sends its next question when it has its reply: sockets and ready bytes, so
that the clients cost little beside the server. `cpu_ms` is processor time for each
reply, which other work on the machine changes least. With `--max_batch 1` nothing
is batched. Prints a table or JSON (`--json`).
"""

import argparse
import asyncio
import json
import math
import pathlib
import re
import resource
import subprocess
import sys
import time
from typing import NamedTuple
from urllib.parse import urlsplit

from rich.console import Console

from prefchat_jax.cli.console import table
from prefchat_jax.datasets.records import read_records

_SERVE = "import sys; from prefchat_jax.cli.main import main; sys.exit(main())"
_WARM = 2.0  # Seconds before anything is counted.


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


def measure(given: argparse.Namespace, max_batch: int) -> dict:
    """Starts a server, asks it, stops it."""
    questions = [example.question for example in read_records(given.data).examples]
    argv = [sys.executable, "-c", _SERVE, "serve", given.weights, "--port", "0"]
    argv += ["--no_feedback", "--max_batch", str(max_batch)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().split()[0]
            before, own = counted(url), _own_seconds()
            seen = load(url, questions, given.clients, given.seconds)
            own = _own_seconds() - own
            after = counted(url)
        finally:  # Else leaving the block waits for it for ever.
            server.terminate()
    replies = after.replies - before.replies
    ordered = sorted(seen.seconds)
    at = lambda share: 1e3 * ordered[math.ceil(share * len(ordered)) - 1]
    return {
        "max_batch": max_batch,
        "replies_per_second": len(ordered) / given.seconds,
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


def main(argv: list[str] | None = None) -> None:
    """Measures each batch size and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True, nargs="+", type=pathlib.Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--max_batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    found = [measure(given, size) for size in given.max_batch]
    console = Console(highlight=False, soft_wrap=True)
    if given.json:
        console.print_json(data=found)
        return
    columns = ["max_batch", "replies_per_second", "p50_ms", "p99_ms", "errors"]
    columns += ["mean_batch", "server_cpu_ms", "client_cpu_ms"]
    rows = [[f"{row[name]:.4g}" for name in columns] for row in found]
    console.print(table(f"{given.clients} clients", columns, rows))


if __name__ == "__main__":
    main()
