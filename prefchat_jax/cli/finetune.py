"""`prefchat finetune`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from prefchat_jax.cli import flags
from prefchat_jax.cli.allocator import give_memory_back
from prefchat_jax.cli.compile_cache import use_compile_cache
from prefchat_jax.cli.console import TrainingProgress, output
from prefchat_jax.cli.device import select_device
from prefchat_jax.cli.imported import imported_start
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.run_directory import start_run

if TYPE_CHECKING:
    from prefchat_jax.calibration import Refused
    from prefchat_jax.training.loop import Metrics

_FEW = 30  # Validation rows that say little.
_MOST = 0.5  # Share of refusals that nobody expects.


def main(argv: Sequence[str]) -> None:
    """Trains and says where the run is and what to do with it."""
    config = flags.parse(FinetuneConfig, "finetune", argv)
    start_run(config)  # Says what is wrong before JAX is imported, for seconds.
    give_memory_back()
    select_device(config.device)
    use_compile_cache(config.compile_cache)
    console = output()
    if config.preferences:
        _tune(config, console)
        return
    from prefchat_jax.finetune import finetune

    with imported_start(config) as started, TrainingProgress(console) as progress:
        result = finetune(started, progress)
    best = result.fit.history[result.fit.best_epoch - 1]
    corpus = result.corpus
    lines = [
        f"{len(corpus.train_rows)} training and {len(corpus.val_rows)} validation "
        f"rows, {len(corpus.labelled.buckets.labels)} buckets",
        f"best epoch {result.fit.best_epoch} of {len(result.fit.history)}"
        + (
            f": validation loss {best['eval_loss']:.4f}, accuracy "
            f"{best['eval_accuracy']:.4f}"
            if "eval_accuracy" in best
            else ""
        ),
        *_trust(result.run.config().get("reliability", {})),
        *_refused(result.refused),
        f"{result.seconds:.1f} s, saved in {config.output}",
        f"next: prefchat chat --weights {config.output}"
        if any(row.response for row in corpus.train_rows)
        else f"next: prefchat index --weights {config.output} --data FILE stores "
        "replies to chat with: no row has one",
    ]
    _say(console, lines)


def _tune(config: FinetuneConfig, console: Console) -> None:
    """Tunes the scorer on preferences, and says what came of it."""
    from prefchat_jax.preference_tuning import tune_preferences

    with TrainingProgress(console) as progress:
        tuned = tune_preferences(config, progress)
    history, corpus = tuned.fit.history, tuned.corpus
    best = history[tuned.fit.best_epoch - 1]
    measured = (
        f"measured on {tuned.rows} rows of --data"
        if tuned.rows
        else f"those of {config.weights}: give --data, or fit them with `prefchat "
        "evaluate --tune_ranking`"
    )
    lines = [
        f"{len(corpus.train.replies)} training and {len(corpus.val.replies)} "
        "validation pairs",
        f"best epoch {tuned.fit.best_epoch} of {len(history)}"
        + (
            ": of the validation pairs the rewards, which tuning added, order "
            f"{best['eval_reward_accuracy']:.4f}, the scores "
            f"{best['eval_accuracy']:.4f}, before {tuned.fit.start_accuracy:.4f}"
            if "eval_accuracy" in best
            else ""
        ),
        *_learned(best),
        *_trust(tuned.reliability),
        f"ranking weights and confidence: {measured}",
        f"{tuned.seconds:.1f} s, saved in {config.output}",
        f"next: prefchat chat --weights {config.output}",
    ]
    _say(console, lines)


def _learned(best: "Metrics") -> list[str]:
    """A note where nothing was learned that holds beyond the pairs that trained."""
    if best.get("eval_reward_accuracy", 1.0) > 0.5:
        return []
    return ["note: the rewards are no better than a coin: more pairs, or other flags?"]


def _say(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _trust(reliability: dict[str, float]) -> list[str]:
    """A line on how reliable RE-PO found each source, if it was asked."""
    if not reliability:
        return []
    shown = ", ".join(f"{name} {value:.2f}" for name, value in reliability.items())
    alike = max(reliability.values()) - min(reliability.values()) < 0.01
    note = " (none stands out: all agree, or were learned by heart)" if alike else ""
    return [f"reliability of the labels: {shown}{note}"]


def _refused(found: "Refused | None") -> list[str]:
    """What chat would refuse, and a note where that is much or rests on little."""
    if found is None:
        return []
    rows = f"{found.rows} answered validation row{'s' * (found.rows != 1)}"
    lines = [f"chat would refuse {found.share:.0%} of {rows}"]
    if found.rows < _FEW:
        lines.append(f"note: so few rows say little: give {_FEW} or more (--val_split)")
    if found.share > _MOST:
        lines.append(
            "note: hardly anything would be answered: do like questions have different "
            "replies? `prefchat evaluate --errors FILE` lists them"
        )
    return lines
