"""The server: a socket, an application, and a graceful end."""

import contextlib
import math
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from prefchat_jax.errors import UserError
from prefchat_jax.serving.connection import prompt_protocol

_KEEP_ALIVE = 75  # Seconds; clients that pool connections give them up before.
_CONNECTIONS = 1000  # At once; the next get 503. A process may open about 1024 files.
_STOPS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one.

    Raises:
      UserError: the port is taken or not allowed, or the host is not one's own.
    """
    sock = None
    try:
        kind = socket.SOCK_STREAM, socket.IPPROTO_TCP
        family = socket.getaddrinfo(host, port, 0, *kind)[0][0]
        # asyncio sends at once only where the protocol is named; else the body of an
        # answer waits 40 ms for the client to acknowledge its head.
        sock = socket.socket(family, *kind)
        if os.name == "posix":  # Elsewhere it would let two servers share a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)
        return sock
    except OSError as error:
        if sock is not None:
            sock.close()
        raise UserError(
            f"--host {host} --port {port}: {error.strerror or error}. Choose another."
        ) from error


def address(sock: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: Starlette, *, timeout: float) -> uvicorn.Server:
    """A server whose end waits for what is in flight, at most `timeout` twice.

    The head of a request must arrive within `timeout`, as its body must.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="none",
            loop="asyncio",
            http=prompt_protocol(timeout),
            limit_concurrency=_CONNECTIONS,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(2 * timeout) + 1,
        )
    )


def run(app: Starlette, sock: socket.socket, *, timeout: float) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight."""
    with _expected_stop():
        make_server(app, timeout=timeout).run(sockets=[sock])


@contextlib.contextmanager
def _expected_stop() -> Iterator[None]:
    """A stop by a signal is no failure, though uvicorn raises it again at the end."""
    before = {number: signal.signal(number, _nothing) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing(number: int, frame: object) -> None:
    return
