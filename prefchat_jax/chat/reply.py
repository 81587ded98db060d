"""What a chat says, and why."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A stored answer that was considered.

    Attributes:
      response: the stored text.
      question: the stored question that it answered.
      bucket: its label, or None if it was added without training.
      score: the sum of `terms`.
      terms: what each term of the ranking added.
      id: of the entry in the store.
    """

    response: str
    question: str
    bucket: str | None
    score: float
    terms: dict[str, float]
    id: int = -1


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the chat says, and why.

    Attributes:
      text: what to show: stored text in the chosen style, or the abstention.
      bucket: the label of the chosen candidate; None if it has none.
      confidence: the probability that the answer is right, as calibrated on the
        run's validation rows.
      abstained: whether even the best candidate was below the threshold.
      style: the style that was used.
      candidates: the best stored answers, best first.
      buckets: the most probable buckets, with their probabilities.
      milliseconds: from the message to the reply.
    """

    text: str
    bucket: str | None
    confidence: float
    abstained: bool
    style: str
    candidates: list[Candidate]
    buckets: dict[str, float]
    milliseconds: float = 0.0

    @property
    def why(self) -> str:
        """One line: the terms behind the choice, and the question it is stored for."""
        if not self.candidates:
            return "nothing is stored"
        best = self.candidates[0]
        parts = [f"{k} {v:+.2f}" for k, v in best.terms.items() if abs(v) >= 0.005]
        return f"{' '.join(parts)}; stored for the question: {best.question!r}"


def as_dict(reply: Reply) -> dict[str, Any]:
    """A reply as plain data, as programs read it; numbers to six decimals."""
    return _rounded(dataclasses.asdict(reply))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 6) if isinstance(value, float) else value


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A reply with everything that led to it; `str` of it is plain aligned text.

    Attributes:
      reply: the best reply.
      searched: the texts that were searched for, with how much each counts; the
        message itself is the last one and counts 1.
      earlier: turns before the message; those that are not in `searched` did not
        count.
      probabilities: of all buckets, most probable first; they sum to 1.
      candidates: the ten best stored answers, by score.
      confidences: of the candidates; the reply is refused if its own is below
        `threshold`.
      threshold: see `confidences`.
      considered: stored entries that were ranked.
    """

    reply: Reply
    searched: tuple[tuple[str, float], ...]
    earlier: int
    probabilities: dict[str, float]
    candidates: tuple[Candidate, ...]
    confidences: tuple[float, ...]
    threshold: float
    considered: int

    @property
    def buckets(self) -> dict[str, float]:
        """The ten most probable buckets."""
        return dict(list(self.probabilities.items())[:10])

    @property
    def summary(self) -> list[str]:
        """Lines: what was said and why, and what was searched for."""
        reply = self.reply
        counted = len(self.searched) - 1
        verdict = "below" if reply.abstained else "at or above"
        lines = [
            f"reply      {' '.join(reply.text.split())}",
            f"decision   {'refused' if reply.abstained else 'answered'}: confidence "
            f"{reply.confidence:.3f} {verdict} the threshold {self.threshold:.3f}",
            f"style      {reply.style}",
            f"ranked     {self.considered} entries in {reply.milliseconds:.1f} ms",
            f"history    {counted} of {self.earlier} earlier turns count",
        ]
        return lines + [
            f"searched   {weight:.3f} {' '.join(text.split())}"
            for text, weight in self.searched
        ]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Heads and cells of the candidates: score, confidence, terms, texts."""
        names = list(self.candidates[0].terms) if self.candidates else []
        heads = ["", "score", "confidence", *names]
        heads += ["its bucket", "its question", "its response"]
        cells = [
            [
                str(number),
                f"{candidate.score:.3f}",
                f"{confidence:.3f}",
                *(f"{candidate.terms[name]:+.3f}" for name in names),
                candidate.bucket or "-",
                " ".join(candidate.question.split()),
                " ".join(candidate.response.split()),
            ]
            for number, (candidate, confidence) in enumerate(
                zip(self.candidates, self.confidences, strict=True), 1
            )
        ]
        return heads, cells

    def __str__(self) -> str:
        wide = max(map(len, self.buckets), default=0)
        buckets = [f"  {name:<{wide}}  {p:.3f}" for name, p in self.buckets.items()]
        heads, cells = self.rows()
        table = [heads, *([text[:40] for text in row] for row in cells)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        texts = len(heads) - 3  # The last three columns are text, the others numbers.
        lines = [
            "  ".join(
                text.ljust(width) if i >= texts else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        return "\n".join([*self.summary, "buckets", *buckets, "candidates", *lines])
