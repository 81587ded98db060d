"""Tally: what is counted while the lines of a part are read."""

import collections
import dataclasses
from collections.abc import Iterable

SHOWN = 3  # Rows that the report shows for each reason.
LISTED = 10_000  # Unusable lines of a part that the report lists.
UNUSABLE = "unusable"
_EXCERPT = 160


@dataclasses.dataclass
class Tally:
    """Counts of one part, or of many.

    Attributes:
      lines: lines read, blank ones included.
      rows: for each source, how many examples and pairs came in; an unusable line
        counts as one.
      dropped: for each source and reason, how many went.
      excerpts: for each reason, the first that went: place, words, text.
      unusable: place and fault of each line that holds no row.
      sources: names in the order of the numbers in the columns.
      labels: the same for labels.
    """

    lines: int = 0
    rows: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    excerpts: dict[str, list[list]] = dataclasses.field(default_factory=dict)
    unusable: list[list] = dataclasses.field(default_factory=list)
    sources: dict[str, int] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)

    def count(self, sources: Iterable[str]) -> None:
        """Counts rows that came in."""
        for source, count in collections.Counter(sources).items():
            self.rows[source] = self.rows.get(source, 0) + count

    def drop(
        self, source: str, reason: str, place: int | str, words: str, text: str
    ) -> None:
        """Counts a row that goes, and keeps the first few to show."""
        reasons = self.dropped.setdefault(source, {})
        reasons[reason] = reasons.get(reason, 0) + 1
        shown = self.excerpts.setdefault(reason, [])
        if len(shown) < SHOWN:
            shown.append([place, words, text[:_EXCERPT]])

    def fault(self, source: str, place: int, words: str, line: bytes) -> None:
        """Counts a line that holds no row."""
        self.count((source,))
        text = line[: 4 * _EXCERPT].decode("utf-8", "replace")
        self.drop(source, UNUSABLE, place, words, text)
        if len(self.unusable) < LISTED:
            self.unusable.append([place, words])

    def add(self, other: "Tally", path: str, lines_before: int) -> None:
        """Adds the counts of a part, with `file:line` for its places.

        Args:
          other: counts whose places are line numbers.
          path: the file of that part.
          lines_before: lines of the file before the first one of that part.
        """
        self.lines += other.lines
        for source, count in other.rows.items():
            self.rows[source] = self.rows.get(source, 0) + count
        for source, reasons in other.dropped.items():
            mine = self.dropped.setdefault(source, {})
            for reason, count in reasons.items():
                mine[reason] = mine.get(reason, 0) + count
        for reason, rows in other.excerpts.items():
            mine = self.excerpts.setdefault(reason, [])
            for line, words, text in rows[: SHOWN - len(mine)]:
                mine.append([f"{path}:{lines_before + line}", words, text])
        for line, words in other.unusable[: LISTED - len(self.unusable)]:
            self.unusable.append([f"{path}:{lines_before + line}", words])
