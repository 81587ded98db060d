"""What do earlier turns cost, and what do they bring, on a run that learnt from none?

    python -m experiments.follow_ups --weights RUN --data bank_val.jsonl

`RUN` is trained on one canned answer for each intent of BANKING77, "This is the
answer to the intent card arrival.", and `--data` holds its val rows with the same
answers. Printed, once with the rule of `chat/follow_up.py` and once with a history
that always counts: the share of rows whose best answer is right alone, after an
unrelated exchange, and as turns of one user with a memory; and how many of the
thirty follow-ups of `follow_ups.jsonl`, which were written before anything was
measured, get the answer to the right intent; and how many of thirty asides, such as
"thanks", are refused after an exchange, as all of them are on their own.

Found: .926 alone; after an unrelated exchange .926 with the rule, .899 without; with
a memory .926 and .903; follow-ups 20 and 24 of 30, 6 on their own; asides refused 30
with the rule, 1 without.
"""

import argparse
import json
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from experiments.errors import one_line_errors
from prefchat_jax import Chat
from prefchat_jax.chat.memory import Memory
from prefchat_jax.cli.console import table
from prefchat_jax.cli.conversation import Conversation
from prefchat_jax.datasets.records import read_records

CASES = pathlib.Path(__file__).with_suffix(".jsonl")
# What people say after an answer that asks for no other; written before measuring.
ASIDES = [
    "thanks",
    "thank you so much",
    "thx!",
    "ok",
    "okay great",
    "cool",
    "perfect",
    "bye",
    "see you later",
    "goodbye",
    "hello",
    "hi there",
    "good morning",
    "lol",
    "haha",
    "hmm",
    "wow",
    "yes",
    "no",
    "nope",
    "sure",
    "right",
    "I see",
    "got it",
    "never mind",
    "asdf qwer",
    "???",
    "123",
    "blah blah",
    "you are funny",
]


def answer(intent: str) -> str:
    """The canned answer to an intent."""
    return f"This is the answer to the intent {intent.replace('_', ' ')}."


def measure(chat: Chat, rows: list) -> list[float]:
    """Shares of right rows: alone, after another row, as one user; follow-ups."""
    questions = [row.question for row in rows]
    before = [
        [("user", row.question), ("assistant", row.response)]
        for row in [rows[-1], *rows[:-1]]
    ]
    right = lambda replies: float(
        np.mean(
            [
                reply.candidates[0].response == row.response
                for reply, row in zip(replies, rows, strict=True)
            ]
        )
    )
    alone = chat.reply_batch(questions)
    after = chat.reply_batch(questions, histories=before)
    with (
        tempfile.TemporaryDirectory() as folder,
        Memory(pathlib.Path(folder) / "m.db", "customer") as memory,
    ):
        talk = Conversation(chat, memory)
        remembered = [talk.say(question) for question in questions]
    answered = [right(alone), right(after), right(remembered)]
    return [*answered, *_follow_ups(chat), *_asides(chat, before)]


def _asides(chat: Chat, before: list) -> tuple[float, float]:
    """How many asides are refused, after an exchange and alone."""
    after = chat.reply_batch(ASIDES, histories=before[: len(ASIDES)])
    counts = [
        sum(reply.abstained for reply in replies)
        for replies in (after, chat.reply_batch(ASIDES))
    ]
    return counts[0], counts[1]


def _follow_ups(chat: Chat) -> tuple[float, float]:
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    histories = [
        [("user", case["first"]), ("assistant", answer(case["first_intent"]))]
        for case in cases
    ]
    messages = [case["then"] for case in cases]
    counts = [
        sum(
            reply.text == answer(case["intent"])
            for reply, case in zip(replies, cases, strict=True)
        )
        for replies in (
            chat.reply_batch(messages, histories=histories),
            chat.reply_batch(messages),
        )
    ]
    return counts[0], counts[1]


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Prints one line with the rule and one without."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows")
    given = parser.parse_args(argv)
    rows = read_records([given.data]).examples
    rows = [rows[i] for i in np.random.default_rng(given.seed).permutation(len(rows))]
    shown = []
    with Chat.load(given.weights) as chat:
        for name, learnt in (("rule", False), ("history always counts", True)):
            chat.learnt_history = learnt  # As if the run had noted the other.
            found = measure(chat, rows)
            figures = [f"{share:.4f}" for share in found[:3]]
            shown.append([name, *figures, *(f"{count}" for count in found[3:])])
    columns = [
        "",
        "alone",
        "unrelated exchange",
        "memory",
        "follow-ups",
        "on their own",
        "asides refused",
        "on their own",
    ]
    Console(width=120).print(table("Right answers", columns, shown))


if __name__ == "__main__":
    main()
