"""Preferences: rows that compare replies, read into pairs of one schema."""

from typing import Any, NamedTuple

from prefchat_jax.datasets.rows import (
    DIALOGUE_KEYS,
    USER_KEYS,
    Row,
    Unusable,
    text_of,
    turns_of,
)
from prefchat_jax.text.dialogue import Turn


class PreferencePair(NamedTuple):
    """Two replies to one context, the better one first.

    Attributes:
      context: turns, oldest first.
      chosen: the reply that was preferred.
      rejected: the other one.
      source: the row's `source`, or its file.
      annotator: who judged, if the row says so.
      scores: of the chosen and of the rejected reply, where they were rated.
    """

    context: tuple[Turn, ...]
    chosen: str
    rejected: str
    source: str = ""
    annotator: str = ""
    scores: tuple[float, float] | None = None

    @property
    def labeller(self) -> str:
        """Who is to be trusted for the choice: a person, a data set, or a file."""
        return self.annotator or self.source


def pairs_of(row: Row, source: str = "") -> list[PreferencePair]:
    """The pairs of a row: `chosen` and `rejected`, or `responses` with `scores`.

    Prompt and replies are strings or lists of `{"role", "content"}`; without a
    prompt, the turns that both replies begin with are it. Of rated responses the
    best one makes a pair with each that has a lower score.

    Args:
      row: a decoded line.
      source: of a row that names none.

    Raises:
      Unusable: a part is missing or has another form.
    """
    named = text_of(row.get("source")) or source, text_of(row.get("annotator"))
    if row.get("responses") is not None:
        return _rated_pairs(row, *named)
    chosen, rejected = _reply(row, "chosen"), _reply(row, "rejected")
    context = _context(row)
    if context:
        chosen, rejected = _after(context, chosen), _after(context, rejected)
    else:
        shared = _shared(chosen, rejected)
        context, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not context:
            raise Unusable("no prompt")
    texts = _only_text(chosen, "chosen"), _only_text(rejected, "rejected")
    scores = _given_scores(row)
    return [PreferencePair(tuple(context), *texts, *named, scores)]


def pair_row(pair: PreferencePair) -> Row:
    """A pair as one JSON object, in TRL's conversational form.

    https://huggingface.co/docs/trl/dataset_formats#preference
    """
    row: Row = {
        "prompt": [turn._asdict() for turn in pair.context],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }
    if pair.scores:
        row["score_chosen"], row["score_rejected"] = pair.scores
    if pair.annotator:
        row["annotator"] = pair.annotator
    row["source"] = pair.source
    return row


def _rated_pairs(row: Row, source: str, annotator: str) -> list[PreferencePair]:
    responses, scores = row["responses"], row.get("scores")
    if not isinstance(responses, list) or not isinstance(scores, list):
        raise Unusable("responses and scores must both be lists")
    if len(responses) != len(scores):
        raise Unusable(f"{len(responses)} responses but {len(scores)} scores")
    if not all(_is_number(score) for score in scores):
        raise Unusable("a score is no number")
    context = _context(row)
    if not context:
        raise Unusable("no prompt")
    texts = [
        _only_text(_after(context, _turns(response, "a response")), "a response")
        for response in responses
    ]
    if len(set(scores)) < 2:
        raise Unusable("all scores are equal, or there are fewer than two")
    best = max(range(len(scores)), key=scores.__getitem__)
    return [
        PreferencePair(
            tuple(context),
            texts[best],
            text,
            source,
            annotator,
            (float(scores[best]), float(score)),
        )
        for text, score in zip(texts, scores, strict=True)
        if score < scores[best]
    ]


def _context(row: Row) -> list[Turn] | None:
    """The turns of the prompt; a list of messages says more than a string."""
    for key in (*DIALOGUE_KEYS, *USER_KEYS):
        value = row.get(key)
        if isinstance(value, list) and value:
            return turns_of(value)
    for key in USER_KEYS:
        if text := text_of(row.get(key)):
            return [Turn("user", text)]
    return None


def _reply(row: Row, key: str) -> list[Turn]:
    if row.get(key) is None:
        raise Unusable(f"no {key} reply")
    return _turns(row[key], key)


def _turns(value: Any, what: str) -> list[Turn]:
    if isinstance(value, list):
        return turns_of(value)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        return turns_of([value])
    text = text_of(value)
    if not text:
        raise Unusable(f"{what} is empty")
    return [Turn("assistant", text)]


def _shared(left: list[Turn], right: list[Turn]) -> int:
    """How many turns two dialogues have in common before they part."""
    same = 0
    limit = min(len(left), len(right)) - 1
    while same < limit and left[same] == right[same]:
        same += 1
    return same


def _after(context: list[Turn], turns: list[Turn]) -> list[Turn]:
    """What follows the context, if the turns begin with it."""
    return turns[len(context) :] if turns[: len(context)] == context else turns


def _only_text(turns: list[Turn], what: str) -> str:
    if not turns:
        raise Unusable(f"{what} is empty")
    if turns[-1].role != "assistant":
        raise Unusable(f"{what} does not end with the assistant")
    if len(turns) > 1:
        raise Unusable(f"{what} parts from the prompt before its last turn")
    return turns[0].content


def _given_scores(row: Row) -> tuple[float, float] | None:
    scores = [
        row.get(name, row.get(other))
        for name, other in (
            ("score_chosen", "chosen_score"),
            ("score_rejected", "rejected_score"),
        )
    ]
    if not all(map(_is_number, scores)):
        return None
    return float(scores[0]), float(scores[1])  # type: ignore


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
