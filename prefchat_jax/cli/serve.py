"""`prefchat serve`: a run behind an HTTP interface that chat clients know."""

import dataclasses
import os
from collections.abc import Sequence

from tyro.conf import UseAppendAction

from prefchat_jax.chat.config import ChatSettings
from prefchat_jax.cli import flags
from prefchat_jax.cli.console import output
from prefchat_jax.errors import UserError
from prefchat_jax.serving.config import ServerSettings
from prefchat_jax.training.run_directory import RunDirectory

_KEY = "PREFCHAT_API_KEY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeFlags:
    """Serve a run as OpenAI's chat completions do, with a page to try it."""

    weights: str
    """Run directory of `prefchat finetune`; may come first, without its flag."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every one of this machine."""
    port: int = 8000
    """0 takes any free one."""
    api_key: str | None = None
    """What clients must send [environment PREFCHAT_API_KEY; nothing]."""
    cors_origin: UseAppendAction[tuple[str, ...]] = ()
    """Another host's pages that may ask, as https://host; may be repeated."""
    max_request_bytes: int = 2**18
    """Of a body; more is refused."""
    timeout: float = 30.0
    """Seconds for a reply."""
    max_batch: int = 32
    """Requests that are answered at once, at most."""
    llm_db: str | None = None
    """Database of replies instead of the run's own."""
    min_confidence: float | None = None
    """Abstain below it [measured by finetune]; 0 never abstains."""
    style_mode: str = "auto"
    """How replies look, where a request does not say."""
    creativity: float = 0.2
    """In [0, 1], where a request does not say."""
    feedback: bool = True
    """Keep the preference pairs that clients send, in RUN/feedback.jsonl."""

    def __post_init__(self):
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port {self.port}: must be in [0, 65535].")
        flags.check_style(self.style_mode)


def main(argv: Sequence[str]) -> None:
    """Loads the run and serves it until it is told to stop."""
    given = flags.parse(ServeFlags, "serve", argv, first="weights")
    try:
        from prefchat_jax.serving import app, server
    except ImportError as error:
        raise UserError(
            "serve needs starlette and uvicorn: pip install 'prefchat-jax[serve]'."
        ) from error
    from prefchat_jax.chat.session import Chat
    from prefchat_jax.serving.feedback import FeedbackFile

    run = RunDirectory.open(given.weights)
    settings = server_settings(given, run)
    if settings.feedback:
        FeedbackFile(settings.feedback).check()
    chosen = flags.checked(ChatSettings, min_confidence=given.min_confidence)
    with (
        server.listen(given.host, given.port) as sock,
        Chat.load(run.path, database=given.llm_db, settings=chosen) as chat,
    ):
        line = welcome(server.address(sock), len(chat), settings)
        if settings.api_key is None and not settings.is_local:
            line += " (anyone who reaches this address may ask: set --api_key)"
        output().print(line, highlight=False, markup=False, soft_wrap=True)
        server.run(app.make_app(chat, settings), sock, timeout=given.timeout)


def server_settings(given: ServeFlags, run: RunDirectory) -> ServerSettings:
    """The flags as the server takes them; raises `UserError`."""
    key = os.environ.get(_KEY) if given.api_key is None else given.api_key
    return flags.checked(
        ServerSettings,
        # Names of files may hold what UTF-8 cannot say.
        model=run.path.name.encode("utf-8", "replace").decode() or "run",
        created=int((run.path / "config.json").stat().st_mtime),
        host=given.host,
        api_key=key,
        cors_origin=given.cors_origin,
        max_request_bytes=given.max_request_bytes,
        timeout=given.timeout,
        max_batch=given.max_batch,
        style_mode=given.style_mode,
        creativity=given.creativity,
        feedback=run.feedback if given.feedback else None,
    )


def welcome(url: str, stored: int, settings: ServerSettings) -> str:
    """One line: where, how much, and how to try it."""
    key = "" if settings.api_key is None else f" -H 'Authorization: Bearer ${_KEY}'"
    key = key.replace("'", '"')
    return (
        f"{url} answers from {stored} stored answers; try: curl {url}"
        f"/v1/chat/completions{key} -H 'Content-Type: application/json' "
        """-d '{"messages": [{"role": "user", "content": "hello"}]}'"""
    )
