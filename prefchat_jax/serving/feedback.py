"""Feedback: preference pairs of users, one JSON line each, kept through crashes."""

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator

from prefchat_jax.datasets.preferences import PreferencePair, pair_row, pairs_of
from prefchat_jax.datasets.rows import Unusable
from prefchat_jax.errors import UserError
from prefchat_jax.serving.wire import ApiError, FeedbackRequest, encode, turns_of

MAX_CHARACTERS = 32_768  # Of a pair, its conversation included.
MAX_BYTES = 256 * 2**20  # Of the file.
SOURCE = "feedback"


def pair_of(request: FeedbackRequest) -> PreferencePair:
    """The pair of a request, which `datasets.preferences` reads back as it is.

    Raises:
      ApiError: 400 for what is no pair, 413 for too much text.
    """
    turns = [
        turn._replace(content=turn.content.strip())
        for turn in turns_of(request.messages)
    ]
    pair = PreferencePair(
        tuple(turn for turn in turns if turn.content),
        request.chosen.strip(),
        request.rejected.strip(),
        source=SOURCE,
        annotator=(request.user or "").strip(),
    )
    texts = *(turn.content for turn in pair.context), *pair[1:3], pair.annotator
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise ApiError(
            413,
            f"A pair and its conversation have at most {MAX_CHARACTERS} characters.",
            code="too_large",
        )
    if not turns[-1].content:
        raise _wrong("messages", "the user's last message is empty")
    for name in ("chosen", "rejected"):
        if not getattr(pair, name):
            raise _wrong(name, "is empty")
    if pair.chosen == pair.rejected:
        raise _wrong("rejected", "equals chosen, so that nothing is preferred")
    try:
        read = pairs_of(pair_row(pair))
    except Unusable as error:
        raise _wrong("messages", str(error)) from None
    if read != [pair]:
        raise _wrong("messages", "cannot be stored as a preference pair")
    return pair


class FeedbackFile:
    """Appends pairs to a file. Safe in any thread, and with other processes."""

    def __init__(self, path: pathlib.Path, *, max_bytes: int = MAX_BYTES):
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def check(self) -> None:
        """Makes the file; raises `UserError` if it cannot be written."""
        try:
            with self._opened():
                pass
        except OSError as error:
            raise UserError(
                f"{self.path}: {error.strerror}. Feedback is kept there; "
                "--no_feedback serves without."
            ) from error

    def append(self, pair: PreferencePair) -> None:
        """Writes one line; it is on disk when this returns.

        Raises:
          ApiError: 429, the file has reached its size.
          OSError: the disk refused; the file is as it was.
        """
        line = encode(pair_row(pair)) + b"\n"
        with self._opened() as handle:
            size = os.fstat(handle).st_size
            if size + len(line) > self._max_bytes:
                raise ApiError(
                    429, f"{self.path.name} is full.", code="insufficient_quota"
                )
            if size and not _ends_a_line(handle, size):
                line = b"\n" + line  # A crash left half a line.
            try:
                _write_all(handle, line)
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        with self._lock:
            handle = os.open(self.path, flags, 0o666)
            try:
                with _locked(handle):
                    yield handle
            finally:
                os.close(handle)


@contextlib.contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Keeps other processes from the file, where the system can."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield  # Closing the file unlocks it.


def _ends_a_line(handle: int, size: int) -> bool:
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1) == b"\n"


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}.", param=param, code="invalid_value")
