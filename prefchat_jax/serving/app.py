"""The routes: OpenAI's chat completions, models, feedback, health, metrics, a page."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from prefchat_jax.chat.reply import Reply
from prefchat_jax.chat.session import Chat
from prefchat_jax.chat.styles import style_names
from prefchat_jax.serving import guard, metrics, wire
from prefchat_jax.serving.answers import completion, listed, stream
from prefchat_jax.serving.batching import Batcher, Manner, Overloaded
from prefchat_jax.serving.config import ServerSettings
from prefchat_jax.serving.feedback import FeedbackFile, pair_of
from prefchat_jax.serving.page import read_page
from prefchat_jax.serving.wire import (
    ApiError,
    ChatRequest,
    FeedbackRequest,
    check_style,
    decode,
    encode,
    turns_of,
)
from prefchat_jax.text.dialogue import Turn

_COUNT_SECONDS = 2.0
_SEEDS = 2**64


def make_app(chat: Chat, settings: ServerSettings) -> Starlette:
    """The ASGI application that serves a chat.

    Its start begins a thread for replies and one for files; its shutdown answers
    what waits, and ends them.
    """
    service = Service(chat, settings)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origin),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )
    named = settings.is_local and settings.api_key is None
    return Starlette(
        routes=[
            Route(guard.COMPLETIONS, service.complete, methods=["POST"]),
            Route(guard.FEEDBACK, service.feed_back, methods=["POST"]),
            Route(guard.MODELS, service.list_models),
            Route(guard.MODELS + "/{model:path}", service.show_model),
            Route(guard.HEALTH, service.health),
            Route(guard.METRICS, service.measure),
            Route(guard.PAGE, service.page),
        ],
        middleware=[
            Middleware(guard.Measured, metrics=service.metrics),
            *([cors] if settings.cors_origin else []),
            *([Middleware(guard.Named)] if named else []),
            Middleware(guard.Authorized, api_key=settings.api_key),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
        lifespan=service.lifespan,
    )


class Service:
    """The routes over a chat."""

    def __init__(self, chat: Chat, settings: ServerSettings):
        self.metrics = metrics.Metrics()
        self._chat = chat
        self._settings = settings
        self._page = read_page()
        path = settings.feedback
        self._feedback = None if path is None else FeedbackFile(path)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Starts the threads, and ends them after the last request."""
        self._batcher = Batcher(
            self._chat,
            max_batch=self._settings.max_batch,
            max_waiting=self._settings.max_waiting,
            observe=self.metrics.batches.observe,
        )
        # One thread: every thread that asks the database keeps a connection.
        with ThreadPoolExecutor(1, "files") as self._files:
            self.metrics.stored.set(await self._in_files(len, self._chat))
            try:
                yield
            finally:
                await asyncio.to_thread(self._batcher.close)

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = decode(await self._body(request), ChatRequest)
        turns = turns_of(asked.messages)
        model = self._settings.model
        if asked.model not in (None, model):
            raise self._no_model(asked.model)
        if asked.n not in (None, 1):
            raise ApiError(
                400, "n: only 1 reply can be given.", param="n", code="invalid_value"
            )
        reply = await self._reply(turns, self._manner(asked))
        if reply.abstained:
            self.metrics.abstentions.add()
        if not asked.stream:
            return guard.json_response(encode(completion(reply, turns, model)))
        options = asked.stream_options
        events = stream(
            reply,
            turns,
            model,
            include_usage=bool(options and options.include_usage),
        )
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Response(b"".join(events), 200, headers, "text/event-stream")

    async def feed_back(self, request: Request) -> Response:
        """POST /v1/feedback."""
        if self._feedback is None:
            raise ApiError(404, "This server takes no feedback.", code="no_feedback")
        pair = pair_of(decode(await self._body(request), FeedbackRequest))
        await self._in_files(self._feedback.append, pair)
        self.metrics.feedback.add()
        return guard.json_response(encode({"object": "feedback", "stored": 1}))

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        return guard.json_response(encode({"object": "list", "data": [self._model()]}))

    async def show_model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        name = request.path_params["model"]
        if name != self._settings.model:
            raise self._no_model(name)
        return guard.json_response(encode(self._model()))

    async def health(self, request: Request) -> Response:
        """GET /healthz."""
        if not self._batcher.alive:
            raise ApiError(503, "The thread that replies has ended.", code="dead")
        return guard.json_response(encode({"status": "ok"}))

    async def measure(self, request: Request) -> Response:
        """GET /metrics."""
        with contextlib.suppress(TimeoutError):  # Then the last count stands.
            async with asyncio.timeout(_COUNT_SECONDS):
                self.metrics.stored.set(await self._in_files(len, self._chat))
        return Response(
            self.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE}
        )

    async def page(self, request: Request) -> Response:
        """GET /."""
        html, headers = self._page
        return Response(html, 200, headers, "text/html")

    async def _body(self, request: Request) -> bytes:
        return await guard.read_json(
            request,
            limit=self._settings.max_request_bytes,
            timeout=self._settings.timeout,
        )

    def _manner(self, asked: ChatRequest) -> Manner:
        given = asked.prefchat or wire.Manner()
        style = self._settings.style_mode if given.style is None else given.style
        creativity = given.creativity
        temperature = asked.temperature or 0.0
        if temperature == 0:
            seed = 0  # No draw, so that all seeds are one batch.
        elif asked.seed is None:
            seed = secrets.randbits(64)
        else:
            seed = asked.seed % _SEEDS
        return Manner(
            check_style(style),
            self._settings.creativity if creativity is None else creativity,
            temperature,
            seed,
        )

    async def _reply(self, turns: Sequence[Turn], manner: Manner) -> Reply:
        """Waits for a reply, and not for ever."""
        try:
            future = self._batcher.submit(turns, manner)
        except Overloaded:
            raise ApiError(
                503,
                "Too many requests are waiting: try again.",
                code="overloaded",
                headers={"Retry-After": "1"},
            ) from None
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise ApiError(
                504, f"No reply within {self._settings.timeout:g} s.", code="timeout"
            ) from None

    async def _in_files(self, work: Any, *arguments: Any) -> Any:
        """Does what waits for a disk, away from the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._files, work, *arguments)

    def _model(self) -> dict[str, Any]:
        """The model, and what a request may leave out of `prefchat`."""
        settings = self._settings
        manner = {
            "style": settings.style_mode,
            "creativity": settings.creativity,
            "styles": ["auto", *style_names()],
        }
        return listed(settings.model, settings.created) | {"prefchat": manner}

    def _no_model(self, name: str | None) -> ApiError:
        return ApiError(
            404,
            f"There is no model {(name or '')[:80]!r}: use {self._settings.model!r}.",
            param="model",
            code="model_not_found",
        )


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return guard.error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """A route or a method that does not exist."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:80]}: {error.detail}."
    known = ApiError(error.status_code, message, code="unknown_url")
    known.headers.update(error.headers or {})
    return guard.error_response(known)


async def _gone(request: Request, error: Exception) -> Response:
    """The client went away; nobody reads this, but it is counted."""
    return Response(status_code=499)


async def _unexpected(request: Request, error: Exception) -> Response:
    """A defect or a broken disk; the server's log has the traceback."""
    return guard.error_response(
        ApiError(500, "The server failed.", code="internal_error")
    )
