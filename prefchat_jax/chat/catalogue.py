"""The catalogue: what is stored, as a chat searches it, kept up with the store.

A large first segment, mapped from a file where one was saved, and small ones for
what was added since. Entries that were changed or removed are masked.
"""

import pathlib
import threading
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.segment import Segment
from prefchat_jax.chat.sqlite_store import SqliteStore

_SEGMENTS = 8  # From so many on they become one.


class View(NamedTuple):
    """The stored answers at one version; never changes.

    Attributes:
      version: of the store.
      segments: the entries.
      alive: bool `[n]` for each segment; false where an entry is gone or newer
        in another segment.
      size: entries that are alive.
    """

    version: int
    segments: tuple[Segment, ...]
    alive: tuple[np.ndarray, ...]
    size: int


class Catalogue:
    """Follows a store. `view()` may be called in any thread."""

    def __init__(self, store: SqliteStore, bits: int):
        self._store = store
        self._bits = bits
        self._lock = threading.Lock()
        self._view = _saved(store) or View(0, (), (), 0)

    def view(self) -> View:
        """The present entries; cheap unless the store has changed."""
        if self._store.version() == self._view.version:
            return self._view
        with self._lock:
            if self._store.version() != self._view.version:
                self._view = self._caught_up(self._view)
            return self._view

    def _caught_up(self, view: View) -> View:
        if len(view.segments) == _SEGMENTS:
            view = View(0, (), (), 0)
        changes = self._store.changes(view.version)
        gone = np.concatenate([changes.ids, changes.removed])
        alive = [
            mask & ~np.isin(segment.ids, gone)
            for segment, mask in zip(view.segments, view.alive, strict=True)
        ]
        segments = list(view.segments)
        if len(changes.ids):
            segments.append(Segment.build(changes, self._bits))
            alive.append(np.ones(len(changes.ids), bool))
        size = sum(int(mask.sum()) for mask in alive)
        return View(changes.version, tuple(segments), tuple(alive), size)


def save_segment(store: SqliteStore, bits: int) -> None:
    """Writes what a chat derives from the store beside it, for a fast start."""
    changes = store.changes(0)
    state = store.state()
    if store.version() == changes.version:  # Else somebody writes: it would lie.
        meta = {"version": str(changes.version), "state": state, "bits": str(bits)}
        Segment.build(changes, bits).save(_path(store), meta)
        store.note_segment(changes.version, state)


def _saved(store: SqliteStore) -> View | None:
    """The view of a saved segment, if this store is the one it was made from."""
    found = Segment.open(_path(store))
    if found is None:
        return None
    segment, meta = found
    if (meta["version"], meta["state"]) != store.noted_segment():
        return None
    alive = np.ones(len(segment.ids), bool)
    return View(int(meta["version"]), (segment,), (alive,), len(segment.ids))


def _path(store: SqliteStore) -> pathlib.Path:
    return store.path.with_suffix(".index")
