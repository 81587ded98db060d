"""Refusals: what is said where nothing stored is likely enough to be right."""

NOTHING_STORED = "I have no stored answers yet."
_NOT_THAT = "I do not have a stored answer for that."


def refusal(question: str) -> str:
    """A refusal that offers the nearest stored question; empty if there is none."""
    return (
        f"{_NOT_THAT} The nearest question I know: {question!r}"
        if question
        else _NOT_THAT
    )


def is_refusal(text: str) -> bool:
    """Whether a reply refused: such a turn says nothing about what is talked of."""
    return text.startswith((_NOT_THAT, NOTHING_STORED))
