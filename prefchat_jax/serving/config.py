"""What a server is told at its start."""

import dataclasses
import ipaddress
import math
import pathlib
import re

from prefchat_jax.chat.styles import get_style
from prefchat_jax.errors import UserError

_ORIGIN = re.compile(r"https?://[^/\s?#@]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits and defaults; checked.

    Attributes:
      model: name that clients see.
      created: seconds since 1970 at which the model was made.
      host: where it listens. At a loopback address without a key, only requests to
        localhost or to an address are answered.
      api_key: what clients must send; None asks for nothing.
      cors_origin: web pages of other hosts that may ask, as `https://host[:port]`,
        or `*` for all.
      max_request_bytes: of a body.
      timeout: seconds for a body to arrive, and again for its reply.
      max_batch: requests that are answered at once, at most.
      max_waiting: requests that may wait for it; more get 503.
      style_mode: where a request names no style.
      creativity: where a request names none, in [0, 1].
      feedback: file of preference pairs; None takes none.
    """

    model: str
    created: int = 0
    host: str = "0.0.0.0"
    api_key: str | None = None
    cors_origin: tuple[str, ...] = ()
    max_request_bytes: int = 2**18
    timeout: float = 30.0
    max_batch: int = 32
    max_waiting: int = 256
    style_mode: str = "auto"
    creativity: float = 0.2
    feedback: pathlib.Path | None = None

    def __post_init__(self):
        for name in ("max_request_bytes", "max_batch", "max_waiting"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: must be at least 1.")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise UserError(f"timeout {self.timeout:g}: must be above 0.")
        if not 0 <= self.creativity <= 1:
            raise UserError(f"creativity {self.creativity:g}: must be in [0, 1].")
        if self.style_mode != "auto":
            get_style(self.style_mode)
        for origin in self.cors_origin:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise UserError(
                    f"cors_origin {origin!r}: give https://host[:port], without a "
                    "path, or *."
                )
        key = self.api_key
        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise UserError(
                "api_key: must be visible ASCII characters without spaces, and not "
                "empty (it may come from PREFCHAT_API_KEY)."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        address = address_of(self.host)
        return address is not None and address.is_loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is without asking anyone; None for other names."""
    name = host.strip("[]").lower()
    try:
        return ipaddress.ip_address("127.0.0.1" if name == "localhost" else name)
    except ValueError:
        return None
