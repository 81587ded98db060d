"""What does every stage of a reply bring, and what does it cost?

    python -m experiments.stages --weights RUN --data val.jsonl

`--data` holds answered rows whose replies are stored in `RUN`, such as questions to
a FAQ. Stages are added one by one: words alone, likeness of question and reply, the
buckets, the response scorer, style and creativity as `prefchat chat` has them, all
rows as one user with a memory, and a temperature of 0.08. A reply is right if what
is shown is the row's own reply as that style shows it; nothing is refused but in
the last line, which is the default.

Half a minute for 1,000 rows. Found on BANKING77 (one canned answer an intent, val,
mean of three seeds): words .678, likeness .755, buckets .927, scorer .926; style
changes nothing, a memory costs 0.1 points, the temperature 0.4, refusals 0.7.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

from experiments.errors import one_line_errors
from prefchat_jax import Chat, ChatSettings, Reply
from prefchat_jax.chat.cleanup import clean
from prefchat_jax.chat.config import RelevanceWeights
from prefchat_jax.chat.memory import Memory
from prefchat_jax.chat.styles import get_style
from prefchat_jax.cli.console import output, table
from prefchat_jax.cli.conversation import Conversation
from prefchat_jax.datasets.records import read_records
from prefchat_jax.text.dialogue import Example

TEMPERATURE = 0.08
# Terms of relevance, in the order in which they are added.
STAGES = {
    "words": ("words",),
    "+ likeness": ("question", "response"),
    "+ buckets": ("bucket",),
    "+ scorer": ("scorer",),
}


def is_right(reply: Reply, row: Example, creativity: float) -> bool:
    """Whether a reply shows the row's own response."""
    show = get_style(reply.style).show
    return reply.text == show(clean(row.response), creativity, row.question)


def plain(chat: Chat, rows: Sequence[Example]) -> list[bool]:
    """Each row on its own, in the style `balanced`, nothing novel."""
    replies = chat.reply_batch(
        [row.question for row in rows], style="balanced", creativity=0.0
    )
    return [is_right(r, row, 0.0) for r, row in zip(replies, rows, strict=True)]


def styled(chat: Chat, rows: Sequence[Example]) -> list[bool]:
    """Each row on its own, as `prefchat chat` answers by default."""
    replies = chat.reply_batch([row.question for row in rows])
    return [is_right(r, row, 0.2) for r, row in zip(replies, rows, strict=True)]


def remembered(
    chat: Chat, rows: Sequence[Example], temperature: float = 0.0
) -> list[bool]:
    """All rows as messages of one user."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory(pathlib.Path(folder) / "m.db", "customer") as memory,
    ):
        talk = Conversation(chat, memory, temperature=temperature)
        return [is_right(talk.say(row.question), row, 0.2) for row in rows]


def drawn(chat: Chat, rows: Sequence[Example]) -> list[bool]:
    """As one user, one of the best replies drawn."""
    return remembered(chat, rows, TEMPERATURE)


def run(weights: str, rows: Sequence[Example]) -> dict[str, float]:
    """The share of right replies after each stage."""
    never = ChatSettings(min_confidence=0.0)
    with Chat.load(weights, settings=never) as chat:
        whole, terms = chat.calibration, []
        fitted = dataclasses.asdict(whole.weights)
        found: dict[str, float] = {}
        for name, added in STAGES.items():
            terms += added
            kept = {term: fitted[term] * (term in terms) for term in fitted}
            part = RelevanceWeights(**kept)
            chat.calibration = dataclasses.replace(whole, weights=part)
            found[name] = float(np.mean(plain(chat, rows)))
        later: dict[str, Callable[[Chat, Sequence[Example]], list[bool]]] = {
            "+ style": styled,
            "+ memory": remembered,
            f"+ temperature {TEMPERATURE:g}": drawn,
        }
        for name, measure in later.items():
            found[name] = float(np.mean(measure(chat, rows)))
    with Chat.load(weights) as chat:
        found["defaults, refusals and all"] = float(np.mean(styled(chat, rows)))
    return found


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="run directory")
    parser.add_argument("--data", required=True, help="JSONL rows with stored replies")
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows")
    given = parser.parse_args(argv)
    rows = [row for row in read_records([given.data]).examples if row.response]
    rows = [rows[i] for i in np.random.default_rng(given.seed).permutation(len(rows))]
    found = run(given.weights, rows)
    shown = [[name, f"{share:.4f}"] for name, share in found.items()]
    title = f"{given.weights}: right replies to {len(rows):,} rows"
    output().print(table(title, ["stage", "right"], shown))


if __name__ == "__main__":
    main()
