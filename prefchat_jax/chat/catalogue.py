"""The catalogue: what is stored, as a chat searches it, kept up with the store.

A large first segment, mapped from a file where one was saved, and smaller ones for
what was added since. Entries that were changed or removed are masked. As in a
log-structured merge tree (O'Neil et al., 1996), a new segment takes up those before
it that are not much larger, so that there are few and each entry is seldom moved.
"""

import pathlib
import threading
from typing import NamedTuple

import numpy as np

from prefchat_jax.chat.segment import Segment, most_frequent
from prefchat_jax.chat.sqlite_store import SqliteStore

_RATIO = 4  # A segment is taken up by one that has a quarter of its entries,
_LARGE = 20_000  # unless it is so large that a reply would wait for it.


class Part(NamedTuple):
    """A segment without what is gone from it.

    Attributes:
      segment: as it was derived.
      after: it holds what happened after this version of the store.
      alive: bool `[n]`, false for an entry that is gone, or newer in another
        segment; None if all are there.
      responses: bool `[m]`, false for a response without an entry; None likewise.
      best_entries: int32 `[m]` the most frequent entry of each response.
    """

    segment: Segment
    after: int
    alive: np.ndarray | None
    responses: np.ndarray | None
    best_entries: np.ndarray

    @classmethod
    def whole(cls, segment: Segment, after: int) -> "Part":
        """A segment of which nothing is gone."""
        return cls(segment, after, None, None, segment.best_entries)

    def without(self, ids: np.ndarray) -> "Part":
        """The part without these entries, ids in any order."""
        segment = self.segment
        places = np.searchsorted(segment.ids, ids)
        places = places[places < len(segment.ids)]
        places = places[np.isin(segment.ids[places], ids)]
        if not len(places):
            return self
        alive = _copy(self.alive, len(segment.ids))
        alive[places] = False
        touched = np.zeros(len(segment.response_ids), bool)
        touched[segment.rows[places]] = True
        left = np.flatnonzero(touched[segment.rows] & alive)
        best = most_frequent(segment.rows, segment.counts, len(touched), left)
        responses = _copy(self.responses, len(touched))
        responses[touched] = False
        responses[segment.rows[left]] = True
        best = np.where(touched, best, self.best_entries)
        return Part(segment, self.after, alive, responses, best)

    @property
    def size(self) -> int:
        """Entries that are there."""
        return len(self.segment.ids) if self.alive is None else int(self.alive.sum())


class View(NamedTuple):
    """The stored answers at one version; never changes.

    Attributes:
      version: of the store.
      parts: the entries, each in one of them.
      size: entries.
    """

    version: int
    parts: tuple[Part, ...]
    size: int

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of the parts, with what is gone from them."""
        return tuple(part.segment for part in self.parts)


class Catalogue:
    """Follows a store. `view()` may be called in any thread."""

    def __init__(self, store: SqliteStore, bits: int):
        self._store = store
        self._bits = bits
        self._lock = threading.Lock()
        self._view = saved_view(store, bits) or View(0, (), 0)

    def view(self) -> View:
        """The present entries; cheap unless the store has changed."""
        if self._store.version() == self._view.version:
            return self._view
        with self._lock:
            if self._store.version() != self._view.version:
                self._view = self._caught_up(self._view)
            return self._view

    def _caught_up(self, view: View) -> View:
        changes = self._store.changes(view.version)
        gone = np.concatenate([changes.ids, changes.removed])
        parts = [part.without(gone) for part in view.parts]
        after, size = view.version, len(changes.ids)
        while size and parts and parts[-1].size <= min(_RATIO * size, _LARGE):
            after, size = parts[-1].after, size + parts.pop().size
        if after < view.version:
            changes = self._store.changes(after)
            # Somebody may have written in between.
            parts = [
                part.without(np.concatenate([changes.ids, changes.removed]))
                for part in parts
            ]
        parts = [part for part in parts if part.size]
        if len(changes.ids):
            beside = parts[0].segment if parts else None
            segment = Segment.build(changes, self._bits, beside)
            parts.append(Part.whole(segment, after))
        return View(changes.version, tuple(parts), sum(part.size for part in parts))


def save_segment(store: SqliteStore, bits: int) -> None:
    """Writes what a chat derives from the store beside it, for a fast start."""
    changes, state = store.snapshot()
    meta = {"version": str(changes.version), "state": state, "bits": str(bits)}
    Segment.build(changes, bits).save(segment_path(store.path), meta)
    store.note_segment(changes.version, state)


def segment_path(database: pathlib.Path) -> pathlib.Path:
    """Where the segment of a store is saved."""
    return database.with_suffix(".index")


def saved_view(store: SqliteStore, bits: int) -> View | None:
    """The view of a saved segment, if this store is the one it was made from."""
    found = Segment.open(segment_path(store.path))
    if found is None:
        return None
    segment, meta = found
    noted = meta.get("version"), meta.get("state")
    if noted != store.noted_segment() or meta.get("bits") != str(bits):
        return None
    part = Part.whole(segment, 0)
    return View(int(meta["version"]), (part,), part.size)


def _copy(mask: np.ndarray | None, size: int) -> np.ndarray:
    return np.ones(size, bool) if mask is None else mask.copy()
