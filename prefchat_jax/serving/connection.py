"""A connection: HTTP/1.1 by uvicorn and h11, with a time for the head of a request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def prompt_protocol(seconds: float) -> type[H11Protocol]:
    """A protocol whose connections end where no head arrives in time.

    uvicorn limits how long a connection may be idle between two requests, and forgets
    that limit with the first byte: half a head would stay open for ever.

    Args:
      seconds: from the start of a connection, or from the first byte of a later
        request, to the end of its head.
    """

    class Prompt(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def _watch(self) -> None:
            """Sets a deadline, unless one is set or a request is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self._deadline is None:
                close = self.timeout_keep_alive_handler
                self._deadline = self.loop.call_later(seconds, close)

        def _forget(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Prompt
