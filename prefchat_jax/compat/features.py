"""The reference's hashed features: a text to 128 numbers of unit norm.

A key's place is its hash modulo 128, and one further bit of the hash is its sign.
No JAX. Vectors are float32, zeros for a text without tokens.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from prefchat_jax.compat.lexicon import CODE_LINE, DOMAINS

NUM_FEATURES = 128

FeatureMode = Literal["legacy", "context_v2"]

_MAX_TOKENS = 384
_MAX_IDENTIFIERS = 96
_MAX_PARTS = 8  # Of one identifier.
_MAX_CODE_LINES = 16
_MAX_LINES = 32  # Of a context: the newest.
_CACHED_LINES = 50_000

_TOKEN = re.compile(r"[A-Za-z0-9_']+|[^\w\s]")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")
_SEPARATOR = re.compile(r"[_\-./:]+")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_ROLE = re.compile(
    r"\s*(user|assistant|system|tool|memory\s+\d+\s+(?:user|assistant))\s*:\s*",
    re.IGNORECASE,
)
_ASKS_TO_ACT = re.compile(
    r"\b(?:please|can you|could you|help|build|fix|make|optimi[sz]e)\b",
    re.IGNORECASE,
)
_ROLE_WEIGHTS = {
    "user": 1.20,
    "assistant": 0.95,
    "system": 0.85,
    "tool": 0.88,
    "memory_user": 1.05,
    "memory_assistant": 0.90,
    "text": 1.0,
}

# A key, its weight, and the bit of its hash that is its sign.
_Key = tuple[str, float, int]


def featurise(texts: Sequence[str], mode: FeatureMode) -> np.ndarray:
    """The features of texts, float32 `[n, 128]`, in one of the reference's modes."""
    vectors = [MODES[mode](text) for text in texts]
    return np.array(vectors, np.float32).reshape(-1, NUM_FEATURES)


def legacy(text: str) -> np.ndarray:
    """Tokens, pairs, parts of identifiers, shapes of code, and domains; `[128]`."""
    return _legacy(text).astype(np.float32)


def context_v2(context: str) -> np.ndarray:
    """The newest lines of a dialogue, later ones and the user's heavier; `[128]`.

    Args:
      context: lines, each with the role it begins with, such as `User: hello`.
    """
    lines = [line.strip() for line in context.splitlines()]
    lines = [line for line in lines if line][-_MAX_LINES:]
    total = np.zeros(NUM_FEATURES)
    for number, line in enumerate(lines, start=1):
        role, content = _split_role(line)
        if not content:
            continue
        weight = (0.55 + 0.45 * number / len(lines)) * _ROLE_WEIGHTS[role]
        total += weight * _legacy(f"[{role}] {content}")
        if "?" in content:
            total += 0.035 * _legacy("[question_intent]")
        if _ASKS_TO_ACT.search(content):
            total += 0.030 * _legacy("[action_request]")
    return _unit(total).astype(np.float32)


MODES: dict[FeatureMode, Callable[[str], np.ndarray]] = {
    "legacy": legacy,
    "context_v2": context_v2,
}


def hash64(key: str) -> int:
    """The unsigned 64-bit hash of a key."""
    digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


@functools.lru_cache(_CACHED_LINES)
def _legacy(text: str) -> np.ndarray:
    vector = np.zeros(NUM_FEATURES)
    for key, weight, bit in _keys(text):
        hashed = hash64(key)
        vector[hashed % NUM_FEATURES] += -weight if hashed >> bit & 1 else weight
    vector = _unit(vector)
    vector.flags.writeable = False  # The cache hands out this very array.
    return vector


def _keys(text: str) -> Iterator[_Key]:
    tokens = _TOKEN.findall(text.lower())[:_MAX_TOKENS]
    identifiers = _IDENTIFIER.findall(text)[:_MAX_IDENTIFIERS]
    parts = [_parts(identifier) for identifier in identifiers]
    shapes = [_shape(line) for line in text.splitlines() if CODE_LINE.search(line)]
    shapes = shapes[:_MAX_CODE_LINES]
    for token in tokens:
        yield f"u|{token}", 1.0, 1
    for pair in zip(tokens, tokens[1:], strict=False):
        yield f"b|{'__'.join(pair)}", 0.75, 2
    for identifier, of_it in zip(identifiers, parts, strict=True):
        yield from _identifier_keys(identifier.lower(), of_it)
    for shape in shapes:
        yield f"line|{shape}", 0.65, 10
    compound = sum(len(of_it) >= 2 for of_it in parts)
    yield from _domain_keys(text, tokens, code_hits=compound + len(shapes))


def _identifier_keys(identifier: str, parts: Sequence[str]) -> Iterator[_Key]:
    for part in parts:
        yield f"id|{part}", 0.40, 6
    if len(identifier) >= 5:
        yield f"idh|{identifier[:4]}", 0.18, 7
        yield f"idt|{identifier[-4:]}", 0.18, 8


def _domain_keys(text: str, tokens: Sequence[str], code_hits: int) -> Iterator[_Key]:
    for name, domain in DOMAINS.items():
        found = [token for token in tokens if token in domain.words]
        for token in found:
            yield f"kw|{name}|{token}", *domain.word
        hits = len(found) + (code_hits if name == "code" else 0)
        pattern, hint = domain.hint_pattern, domain.hint
        if pattern and hint and pattern.search(text):
            yield f"domain|{name}_hint", *hint
            hits += 2
        if hits:
            cap, each, bit = domain.total
            yield f"domain|{name}", min(cap, each * hits), bit


def _parts(identifier: str) -> list[str]:
    """The words of an identifier: `maxHTTPSize_2` has max, http and size."""
    pieces = _SEPARATOR.split(identifier)
    parts = [part.lower() for piece in pieces for part in _PART.findall(piece)]
    return [part for part in parts if len(part) >= 2][:_MAX_PARTS]


def _shape(line: str) -> str:
    """A line of code with what differs from program to program left out."""
    shape = re.sub(r"[A-Za-z_][A-Za-z0-9_]*", "ID", line.strip())
    shape = _QUOTED.sub("STR", re.sub(r"\d+", "N", shape))
    return re.sub(r"\s+", " ", shape)[:96]


def _split_role(line: str) -> tuple[str, str]:
    match = _ROLE.match(line)
    if match is None:
        return "text", line
    role = re.sub(r"\s+\d+\s+", "_", match[1].lower())
    return role, line[match.end() :]


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector
