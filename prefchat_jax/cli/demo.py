"""`prefchat demo`: the whole job on the shipped corpus, measured."""

import dataclasses
import importlib.resources
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console

from prefchat_jax.cli import flags
from prefchat_jax.cli.chat import ChatFlags, open_conversation
from prefchat_jax.cli.compile_cache import use_compile_cache
from prefchat_jax.cli.console import TrainingProgress, output, table
from prefchat_jax.cli.device import select_device
from prefchat_jax.cli.ranked import retrieval_table
from prefchat_jax.cli.terminal import show, talk
from prefchat_jax.errors import UserError
from prefchat_jax.training.config import FinetuneConfig

if TYPE_CHECKING:
    from prefchat_jax.chat.session import Chat
    from prefchat_jax.datasets.records import Records
    from prefchat_jax.evaluation.metrics import Outcome
    from prefchat_jax.finetune import Result

# A message, and whether it goes on with the conversation before it.
CONVERSATION = (
    ("how do i instal prefchat?", False),
    ("how do I use it from python?", False),
    ("can I ask many at once?", True),
    ("briefly, what is DPO?", False),
    ("what is the best pizza in town?", False),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoFlags:
    """Train on the corpus that ships with the package, show figures, and chat."""

    corpus: Literal["helpdesk", "chitchat"] = "helpdesk"
    """Questions about this package, or human small talk (retrieval only)."""
    output: str | None = None
    """Run directory to write [runs/demo, or the next free number]."""
    seeds: int = 3
    """Trained models of each kind."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to train."""
    compile_cache: bool = True
    """Keep what was compiled in ~/.cache, for the next command to begin sooner."""

    def __post_init__(self):
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: must be at least 1.")


def main(argv: Sequence[str]) -> None:
    """Runs the demo; opens a chat only in a terminal."""
    given = flags.parse(DemoFlags, "demo", argv)
    console = output()
    if given.corpus == "chitchat":
        _small_talk(console)
        return
    select_device(given.device)
    use_compile_cache(given.compile_cache)
    from prefchat_jax.chat.session import Chat
    from prefchat_jax.datasets.records import read_records

    start = time.perf_counter()
    data = importlib.resources.files("prefchat_jax") / "data"
    run = given.output or str(_free_path(pathlib.Path("runs/demo")))
    with (
        importlib.resources.as_file(data / "helpdesk.jsonl") as train,
        importlib.resources.as_file(data / "helpdesk_val.jsonl") as held_out,
    ):
        questions = read_records([held_out])
        result = _train(str(train), run, console)
        chat = Chat.load(run)
        _converse(chat, console)
        rows = list(_compare(str(train), given.seeds, result, questions, console))
    title = (
        f"{len(questions.examples)} questions that nobody trained on, "
        f"{len(questions.out_of_scope)} out of scope; {given.seeds} seeds, mean +- "
        "standard deviation"
    )
    columns = [
        "system",
        "right answer",
        "macro-F1",
        "answered wrongly",
        "out-of-scope refused",
        "p50 / p99 ms",
    ]
    console.print(table(title, columns, rows))
    console.print(
        "Right and wrong are shares of the in-scope questions, the rest of them was "
        "refused; refused of the out-of-scope ones. Each system measured on the same "
        "validation rows when to refuse.",
        style="dim",
        highlight=False,
    )
    _next_steps(time.perf_counter() - start, console)
    if sys.stdin.isatty():
        talk(open_conversation(chat, ChatFlags(weights=run, why=True)), console)


def _train(train: str, output: str, console: Console) -> "Result":
    from prefchat_jax.finetune import finetune

    config = FinetuneConfig(data=train, output=output)
    with TrainingProgress(console, epochs=False) as progress:
        result = finetune(config, progress)
    corpus = result.corpus
    answers = len({row.response for row in corpus.labelled.examples})
    best = result.fit.history[result.fit.best_epoch - 1]
    console.print(
        f"{len(corpus.labelled.examples)} rows, {answers} answers; cross-entropy + "
        f"{config.pref_weight} x {config.pref_objective} preference loss; best epoch "
        f"{result.fit.best_epoch} of {len(result.fit.history)} (validation loss "
        f"{best['eval_loss']:.3f}); {result.seconds:.1f} s; saved in {output}\n",
        highlight=False,
        soft_wrap=True,
    )
    return result


def _converse(chat: "Chat", console: Console) -> None:
    """Plays a fixed conversation: a typo, a follow-up, brevity, a refusal."""
    history: list[tuple[str, str]] = []
    chat.reply("hello")  # Compiles.
    for message, goes_on in CONVERSATION:
        history = history if goes_on else []
        console.print(f"> {message}", style="bold", highlight=False)
        reply = chat.reply(message, history=history)
        show(reply, console, why=True)
        history = [*history, ("user", message), ("assistant", reply.text)]
    console.print()


def _compare(
    train: str, seeds: int, result: "Result", questions: "Records", console: Console
) -> Iterator[list[str]]:
    """One row for each system, all judged on the same questions."""
    from prefchat_jax.baselines import BM25Answers, Majority
    from prefchat_jax.chat.session import Chat

    corpus = result.corpus
    for name, made in (
        ("majority", Majority(corpus.train_rows)),
        ("BM25 (bm25s)", BM25Answers(corpus.train_rows)),
    ):
        yield [name, *_shown([_judge_baseline(made, corpus.val_rows, questions)])]
    with console.status("cross-entropy alone"):
        plain = [_judge_seed(train, seed, 0.0, questions) for seed in range(seeds)]
    yield ["prefchat, CE alone", *_shown(plain)]
    with console.status("cross-entropy + preference"):
        with Chat.load(result.run.path) as chat:  # Seed 0.
            first = _judge_chat(chat, questions)
        others = [_judge_seed(train, seed, None, questions) for seed in range(1, seeds)]
    yield ["prefchat, CE + preference", *_shown([first, *others])]


Judged = tuple["Outcome", Sequence[float]]


def _judge_baseline(system, val_rows, questions: "Records") -> Judged:
    """Refuses below a threshold that is measured as that of a run is."""
    from prefchat_jax.calibration import answer_threshold
    from prefchat_jax.evaluation.metrics import outcome

    answers = system.answer([row.question for row in val_rows])
    right = [
        response == row.response
        for response, row in zip(answers.responses, val_rows, strict=True)
    ]
    threshold = answer_threshold(answers.confidence, np.array(right))
    inside, outside = questions.examples, questions.out_of_scope
    times = []
    predicted, refused = [], []
    for row in [*inside, *outside]:
        start = time.perf_counter()
        answer = system.answer([row.question])
        times.append(1e3 * (time.perf_counter() - start))
        abstains = bool(answer.confidence[0] < threshold)
        predicted.append("" if abstains else answer.responses[0])
        refused.append(abstains)
    count = len(inside)
    labels = [row.response for row in inside]
    return outcome(predicted[:count], labels, np.array(refused[count:])), times


def _judge_seed(
    train: str, seed: int, weight: float | None, questions: "Records"
) -> Judged:
    """Trains one more model, with another preference weight if one is given."""
    from prefchat_jax.chat.session import Chat
    from prefchat_jax.finetune import finetune

    with tempfile.TemporaryDirectory() as folder:
        config = FinetuneConfig(data=train, output=folder, seed=seed)
        if weight is not None:
            config = dataclasses.replace(config, pref_weight=weight)
        finetune(config)
        with Chat.load(folder) as chat:
            return _judge_chat(chat, questions)


def _judge_chat(chat: "Chat", questions: "Records") -> Judged:
    from prefchat_jax.evaluation.metrics import outcome

    ask = lambda row: chat.reply(row.question, style="balanced", creativity=0.0)
    ask(questions.examples[0])  # Compiles.
    inside = [ask(row) for row in questions.examples]
    outside = [ask(row) for row in questions.out_of_scope]
    predicted = [
        "" if reply.abstained else reply.candidates[0].response for reply in inside
    ]
    labels = [row.response for row in questions.examples]
    refused = np.array([reply.abstained for reply in outside])
    times = [reply.milliseconds for reply in [*inside, *outside]]
    return outcome(predicted, labels, refused), times


def _shown(judged: Sequence[Judged]) -> list[str]:
    figures = np.array([outcome for outcome, _ in judged])
    mean, spread = figures.mean(axis=0), figures.std(axis=0)
    cells = [
        f"{m:.3f}" + (f" +- {s:.3f}" if len(judged) > 1 else "")
        for m, s in zip(mean, spread, strict=True)
    ]
    p50, p99 = np.percentile(np.concatenate([times for _, times in judged]), [50, 99])
    return [*cells, f"{p50:.1f} / {p99:.1f}"]


def _next_steps(seconds: float, console: Console) -> None:
    lines = (
        f"\n{seconds:.0f} s, installation apart. Next (in the clone, after "
        "`source .venv/bin/activate`):",
        "  train on your own data   prefchat finetune --data yours.jsonl --output RUN "
        "(then: prefchat chat --weights RUN)",
        "  compare losses           python -m experiments.compare_losses --data "
        "yours.jsonl",
        "  run the benchmark        python -m benchmarks.losses --device cpu",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _small_talk(console: Console) -> None:
    """Ranks the true reply among 100: our features against BM25."""
    from prefchat_jax.smalltalk import compare_retrieval

    with console.status("ranking small talk"):
        figures = compare_retrieval()
    title = "chitchat-dataset: the true reply among 100, held-out dialogues"
    console.print(retrieval_table(title, figures))


def _free_path(path: pathlib.Path) -> pathlib.Path:
    """The path itself, or the first `path-2`, `path-3`, ... that is free."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
