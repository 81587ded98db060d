"""Every experiment, one after the other, and docs/results.md of what they found.

    make experiments DATA=folder
    python -m experiments.results --data folder --only few_shot heads

`--data` is a folder with the sets that `RUNS` names. What has been run stays in
`docs/results/` until it is run again: `--only` runs some, `--only` alone runs none and
writes the page anew.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from experiments import (
    class_imbalance,
    compare_losses,
    ema_accumulation,
    few_shot,
    group_estimators,
    heads,
    label_noise,
    length_bias,
    sequence_preferences,
)
from experiments.errors import one_line_errors
from experiments.page import Experiment
from prefchat_jax.cli import flags
from prefchat_jax.cli.compile_cache import use_compile_cache
from prefchat_jax.errors import UserError
from prefchat_jax.files import write_aside

_INTENTS = tuple(f"intents/{name}" for name in ("banking77", "clinc150", "hwu64"))
_PAIRS = tuple(f"prefs/hh_{name}_train.jsonl" for name in ("helpful", "harmless"))
# What is run, and on which files below --data.
RUNS: tuple[tuple[Experiment, dict[str, Any]], ...] = (
    (compare_losses.EXPERIMENT, {"data": _INTENTS}),
    (label_noise.EXPERIMENT, {"data": _INTENTS[0]}),
    (group_estimators.EXPERIMENT, {"data": _INTENTS[0]}),
    (heads.EXPERIMENT, {"data": _INTENTS[0]}),
    (ema_accumulation.EXPERIMENT, {"data": _INTENTS[0]}),
    (class_imbalance.EXPERIMENT, {"data": _INTENTS[1]}),
    (few_shot.EXPERIMENT, {"data": (_INTENTS[0], _INTENTS[2])}),
    (length_bias.EXPERIMENT, {"data": _PAIRS}),
    (sequence_preferences.EXPERIMENT, {"data": "prefs/taskmaster_reward.jsonl"}),
)
NAMES = tuple(experiment.name for experiment, _ in RUNS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Run the experiments and write docs/results.md."""

    data: str
    """Folder of the data sets."""
    docs: str = "docs"
    """Folder to write to."""
    only: tuple[str, ...] = NAMES
    """Run these; the others are as they were [all]."""

    def __post_init__(self):
        for name in self.only:
            if name not in NAMES:
                raise UserError(f"--only {name}: use some of {' '.join(NAMES)}.")


def run(config: Config) -> None:
    """Runs what is asked for, and writes the page of all that is there.

    Raises:
      UserError: data are missing.
    """
    docs = pathlib.Path(config.docs)
    folder = docs / "results"
    for experiment, named in RUNS:
        if experiment.name in config.only:
            print(f"{experiment.name}: {experiment.question}", flush=True)
            files = {flag: _below(config.data, value) for flag, value in named.items()}
            settings = experiment.config(output=str(folder), **files)
            experiment.answer(settings, root=config.data)
            jax.clear_caches()  # Thousands of programs would crash the process.
    parts = [e for e, _ in RUNS if (folder / f"{e.name}.json").exists()]
    for experiment in parts:  # Pictures follow their figures, also old ones.
        experiment.write(folder, experiment.result(folder))
    with write_aside(docs / "results.md") as aside:
        aside.write_text(page(parts, folder), encoding="utf-8")


def page(experiments: Sequence[Experiment], folder: pathlib.Path) -> str:
    """The page of what experiments left in `folder`."""
    contents = [f"- [{e.question}](#{e.name})" for e in experiments]
    minutes = sum(e.result(folder)["seconds"] for e in experiments) / 60
    head = (
        "# What the experiments found\n\nWritten by `make experiments DATA=folder`, "
        f"{minutes:.0f} minutes in all. Every experiment is one file of "
        "`experiments/`; its figures are also in `results/` as CSV and JSON. Intervals "
        "are of 95 %. Runs are judged at their last epoch, on rows that chose nothing. "
        "A section is of the commit that it names; some were run set by set."
    )
    sections = [experiment.section(folder) for experiment in experiments]
    return "\n\n".join([head, "\n".join(contents), *sections]) + "\n"


def _below(root: str, paths: str | tuple[str, ...]) -> Any:
    if isinstance(paths, str):
        return str(pathlib.Path(root, paths))
    return tuple(str(pathlib.Path(root, path)) for path in paths)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    use_compile_cache(True)
    with one_line_errors():
        run(flags.parse(Config, "experiments.results", argv, program="python -m"))


if __name__ == "__main__":
    main()
