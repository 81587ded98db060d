"""The store: what a chat can answer, whatever keeps it.

A store is the source of truth. What a search needs in memory is derived from it
(`catalogue.py`) and follows it by version numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

NO_BUCKET = -1


class Answers(NamedTuple):
    """Answered questions to add, as columns; `n` of them.

    Attributes:
      questions: what was asked.
      responses: what was answered.
      buckets: int `[n]`, `NO_BUCKET` for one that was never trained on.
      question_features: features of each question with its context, encoded.
      response_features: features of each response, encoded.
      response_vectors: float16 `[n, d]` from the response scorer; d may be 0.
    """

    questions: Sequence[str]
    responses: Sequence[str]
    buckets: np.ndarray
    question_features: Sequence[bytes]
    response_features: Sequence[bytes]
    response_vectors: np.ndarray


class Changes(NamedTuple):
    """What happened to a store after some version.

    Attributes:
      version: the version that these changes lead to.
      ids: int64 `[n]` entries that are new or changed, ascending.
      questions: `[n]` texts.
      response_ids: int64 `[n]` the response of each.
      buckets: int32 `[n]`.
      counts: int32 `[n]` how often each pair was added.
      question_features: `[n]` encoded features.
      responses: of each response that `response_ids` names: text, encoded
        features, encoded vector.
      removed: int64 ids that are gone.
    """

    version: int
    ids: np.ndarray
    questions: list[str]
    response_ids: np.ndarray
    buckets: np.ndarray
    counts: np.ndarray
    question_features: list[bytes]
    responses: Mapping[int, tuple[str, bytes, bytes]]
    removed: np.ndarray


class Entry(NamedTuple):
    """One stored pair, as people read it."""

    id: int
    question: str
    response: str
    bucket: int
    count: int


class ResponseStore(Protocol):
    """Keeps answered questions. Every call is atomic and may run in any thread.

    What goes wrong with a file is `UserError`, and then nothing has changed.
    """

    def add(self, answers: Answers) -> np.ndarray:
        """Adds answers; returns int64 `[n]` ids.

        A stored pair counts once more and keeps its bucket, or gains one.
        """
        ...

    def delete(self, ids: Iterable[int]) -> int:
        """Removes entries, unknown ids aside; returns how many there were."""
        ...

    def update(self, entry_id: int, answers: Answers) -> None:
        """Replaces one entry by the only row of `answers`.

        It keeps its id and its count.

        Raises:
          UserError: there is no such entry, or another one says the same.
        """
        ...

    def search_text(self, text: str, limit: int) -> dict[int, float]:
        """BM25 scores by entry id, best first, larger is better."""
        ...

    def search_vector(self, vector: np.ndarray, limit: int) -> dict[int, float]:
        """Inner products with response vectors by entry id, best first."""
        ...

    def get(self, ids: Sequence[int] | np.ndarray) -> list[Entry]:
        """Entries by id, in this order; those that are gone are left out."""
        ...

    def find_response(self, response: str) -> list[Entry]:
        """All entries that give this response, by id."""
        ...

    def changes(self, after: int) -> Changes:
        """What happened after a version; 0 is before everything."""
        ...

    def version(self) -> int:
        """A number that grows with every change of an entry; cheap."""
        ...

    def stats(self) -> dict[str, int]:
        """Entries, responses, bytes."""
        ...

    def optimize(self) -> None:
        """Makes searches fast again after many changes."""
        ...

    def close(self) -> None:
        """Lets go of the file."""
        ...
