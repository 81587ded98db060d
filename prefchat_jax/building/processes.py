"""Processes: a function over many arguments, on one core or on several."""

import concurrent.futures
import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prefchat_jax.errors import UserError

Result = TypeVar("Result")


class Processes:
    """Worker processes; with one, the work is done in this process.

    They are started by `spawn`, which is safe beside the threads of JAX.

    Args:
      count: how many work at once.
    """

    def __init__(self, count: int):
        self.count = count
        self._pool = (
            concurrent.futures.ProcessPoolExecutor(
                count, multiprocessing.get_context("spawn"), initializer=_start_worker
            )
            if count > 1
            else None
        )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def each(
        self, function: Callable[..., Result], calls: Iterable[tuple]
    ) -> Iterator[tuple[int, Result]]:
        """Yields the number of each call and its result, as they come.

        Raises:
          UserError: a process died.
        """
        if not self._pool:
            for number, arguments in enumerate(calls):
                with _no_garbage_collection():
                    result = function(*arguments)
                yield number, result
            return
        try:
            waiting = {
                self._pool.submit(function, *arguments): number
                for number, arguments in enumerate(calls)
            }
            for done in concurrent.futures.as_completed(waiting):
                yield waiting[done], done.result()
        except concurrent.futures.BrokenExecutor as error:
            raise UserError(
                "A worker process died: for want of memory (lower --max_memory or "
                "--workers), or since a script calls build() outside of `if __name__ "
                '== "__main__"`. What is done stays done; run it again.'
            ) from error


def _start_worker() -> None:
    """A worker lets its parent answer an interrupt, and ends when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows hold no cycles, and looking for some takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
