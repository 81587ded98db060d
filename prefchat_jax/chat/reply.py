"""What a chat says, and why."""

import dataclasses


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
        """One line: the terms behind the choice, and the nearest question."""
        if not self.candidates:
            return "nothing is stored"
        best = self.candidates[0]
        parts = [f"{k} {v:+.2f}" for k, v in best.terms.items() if abs(v) >= 0.005]
        return f"{' '.join(parts)}; nearest stored question: {best.question!r}"
