"""The page: one file of HTML, and the policy that lets it do no more than it must."""

import base64
import hashlib
import importlib.resources
import re

_INLINE = r"<{0}\b[^>]*>(.*?)</{0}\s*>"


def read_page() -> tuple[bytes, dict[str, str]]:
    """The page and its headers.

    Its own inline scripts and styles are allowed by their digests, requests to
    where it came from, and nothing else.
    """
    text = (
        importlib.resources.files("prefchat_jax.serving")
        .joinpath("page.html")
        .read_bytes()
    )
    return text, {
        "Content-Security-Policy": policy(text.decode()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def policy(html: str) -> str:
    """The Content-Security-Policy of a page without external parts."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_sources('script', html)}",
            f"style-src {_sources('style', html)}",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _sources(tag: str, html: str) -> str:
    parts = re.findall(_INLINE.format(tag), html, re.DOTALL | re.IGNORECASE)
    digests = (hashlib.sha256(part.encode()).digest() for part in parts)
    sources = [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]
    return " ".join(sources) or "'none'"
