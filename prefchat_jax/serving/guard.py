"""The guard: what happens to every request, whatever its route.

Plain ASGI, so that nothing is buffered between the server and the routes.
"""

import asyncio
import hmac
import re
import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefchat_jax.serving.config import address_of
from prefchat_jax.serving.metrics import Metrics
from prefchat_jax.serving.wire import ApiError

COMPLETIONS = "/v1/chat/completions"
MODELS = "/v1/models"
FEEDBACK = "/v1/feedback"
HEALTH = "/healthz"
METRICS = "/metrics"
PAGE = "/"
_ROUTES = {COMPLETIONS, MODELS, FEEDBACK, HEALTH, METRICS, PAGE}
_OPEN = {HEALTH, PAGE}  # Neither tells what is stored.
_PORT = re.compile(r":\d*$")  # Behind a host.


class Measured:
    """Counts requests, their status and their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # Of a request that ends in an exception.

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        route = _route(scope["path"])
        start = time.perf_counter()
        self._metrics.in_flight.add(1)
        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.in_flight.add(-1)
            self._metrics.requests.add(route=route, status=str(status))
            if route == COMPLETIONS:
                self._metrics.seconds.observe(time.perf_counter() - start)


class Authorized:
    """Asks for the key, except where anyone may look."""

    def __init__(self, app: ASGIApp, api_key: str | None):
        self._app = app
        self._expected = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "http" and not self._allows(scope):
            error = ApiError(
                401,
                "Send the API key of this server as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in _OPEN:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        same = hmac.compare_digest(key.strip(), self._expected)
        return same and scheme.lower() == b"bearer"


class Named:
    """Answers only who asks this machine by its address, or as localhost.

    A page of another host can have its own name resolved to this machine (DNS
    rebinding) and would then read answers as if they were its own. Under an address
    nobody else has a page.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        headers = dict(scope.get("headers", ()))  # HTTP/1.0 needs no host.
        given = headers.get(b"host", b"localhost").decode("latin-1")
        if scope["type"] == "http" and address_of(_PORT.sub("", given)) is None:
            error = ApiError(
                421,
                f"Host {given[:80]!r} is no name of this server: use localhost or an "
                "address, let a proxy send `Host: localhost`, or set --api_key.",
                code="wrong_host",
            )
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


async def read_json(request: Request, *, limit: int, timeout: float) -> bytes:
    """The body of a request.

    A page of another host cannot send this content type without asking first.

    Raises:
      ApiError: 415 for another content type, 413 above `limit` bytes, 408 if it
        does not arrive in `timeout` seconds.
      ClientDisconnect: the client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, "Send JSON, with `Content-Type: application/json`.", code="wrong_type"
        )
    too_large = ApiError(
        413, f"The body has more than {limit} bytes.", code="request_too_large"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408, f"The body did not arrive within {timeout:g} s.", code="timeout"
        ) from None
    return bytes(body)


def error_response(error: ApiError) -> Response:
    """An error as OpenAI's clients read it."""
    return json_response(error.body(), error.status, error.headers)


def json_response(
    body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A JSON response that nobody keeps."""
    kept = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(body, status, kept | (headers or {}), "application/json")


def _route(path: str) -> str:
    """A name from a fixed set: clients must not choose how many series there are."""
    if path.startswith(f"{MODELS}/"):
        return f"{MODELS}/{{id}}"
    return path if path in _ROUTES else "other"
