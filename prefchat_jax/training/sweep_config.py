"""Settings of a sweep: those of a run, and which of them vary. No JAX."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec

from prefchat_jax.errors import UserError
from prefchat_jax.training.config import FinetuneConfig, GroupName, is_checkpoint
from prefchat_jax.training.groups_of_flags import OF_PREFERENCE_LOSS

# Runs of a sweep share one corpus, and leave figures: no scorer, no store.
_OF_THE_CORPUS = {
    "data",
    "data_manifest",
    "val",
    "weights",
    "frozen_features",
    "data_seed",
    "num_buckets",
    "split_mode",
    "val_split",
    "learn_from_responses",
}
# Flags that a sweep cannot take, and what it does instead.
_NO_SCORER = "trains no response scorer"
_CLASSIFIERS = "compares classifiers; `prefchat finetune` tunes a scorer on pairs"
_OF_A_DIRECTORY = {
    "meta": "writes its figures to results.csv in --output",
    "weights_meta": "starts from a run: `prefchat import_torch` makes one of a .pth",
    "resume": "goes on by itself when the command is repeated",
    "profile": "traces nothing; `prefchat finetune` traces one run",
    "report_to": "logs no epochs; `prefchat report` draws its results.csv",
    "preferences": _CLASSIFIERS,
    "length_control": _CLASSIFIERS,
    "max_candidates_per_bucket": "keeps no run to chat with",
    "scorer_epochs": _NO_SCORER,
    "scorer_width": _NO_SCORER,
    "scorer_batch_size": _NO_SCORER,
    "scorer_lr": _NO_SCORER,
    "scorer_group_estimator": _NO_SCORER,
    "scorer_hard_negatives": _NO_SCORER,
}
# Of runs that vary the weight of the preference loss: its settings where that is 0.
_NO_PREFERENCE = {name: getattr(FinetuneConfig, name) for name in OF_PREFERENCE_LOSS}
# What tells one run of a sweep from another, seeds included: the columns of its rows.
RUN_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(FinetuneConfig)
    if field.name not in {*_OF_A_DIRECTORY, "output", "device", "compile_cache"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(FinetuneConfig):
    """Train many runs as few compiled programs, and write one table of figures."""

    seeds: int = 3
    """Runs of each setting, with seeds from --seed on; all share one split."""
    grid: tuple[str, ...] = ()
    """Values of flags: `lr=1e-3,6e-3 pref_beta=1,2`; each goes with each. The other
    flags are settings of all runs."""
    objectives: tuple[str, ...] = ()
    """The same as --grid pref_objective=..."""
    groups: tuple[GroupName, ...] = ()
    """The same as --grid pref_group_estimator=..."""
    runs_at_once: int | None = None
    """Runs that train together [as many as this device is fastest with]."""

    def __post_init__(self):
        for name, instead in _OF_A_DIRECTORY.items():
            if getattr(self, name) != getattr(FinetuneConfig, name):
                raise UserError(f"--{name}: a sweep {instead}: leave it out.")
        super().__post_init__()
        if is_checkpoint(self.weights):
            raise UserError(
                f"--weights {self.weights}: `prefchat import_torch` makes a run of it, "
                "which a sweep can start from."
            )
        for name in ("seeds", "runs_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value}: must be at least 1.")
        if not self.val and self.val_split == 0:
            raise UserError(
                "--val_split 0 leaves nothing to judge runs by: give --val."
            )
        self.axes()

    def axes(self) -> dict[str, list[Any]]:
        """The values of every setting that varies, by its name.

        Raises:
          UserError: an unknown name or a wrong value, or a name twice.
        """
        given = [
            *(f"pref_objective={name}" for name in _joined(self.objectives)),
            *(f"pref_group_estimator={name}" for name in _joined(self.groups)),
            *self.grid,
        ]
        axes: dict[str, list[Any]] = {}
        for text in given:
            name, values = _axis(text)
            if name in axes:
                raise UserError(f"--grid {text}: {name} varies already.")
            axes[name] = values
        return axes

    def runs(self) -> Iterator[FinetuneConfig]:
        """The settings of every run, seeds innermost.

        Where `pref_weight` varies, its 0 is one setting: there the others of the
        preference loss, which would change nothing, stay as they are by default.

        Raises:
          UserError: settings that do not go together.
        """
        names = [field.name for field in dataclasses.fields(FinetuneConfig)]
        plain = {name: getattr(self, name) for name in names}
        plain |= {"data_seed": self.corpus_seed(), "scorer_epochs": 0}
        axes, done = self.axes(), set()
        for values in itertools.product(*axes.values()):
            changes = dict(zip(axes, values, strict=True))
            settings = plain | changes
            if changes.get("pref_weight") == 0:
                settings |= _NO_PREFERENCE
            if (key := tuple(settings.values())) in done:
                continue
            done.add(key)
            for seed in range(self.seed, self.seed + self.seeds):
                try:
                    yield FinetuneConfig(**(settings | {"seed": seed}))
                except UserError as error:
                    which = " ".join(f"{k}={v}" for k, v in changes.items())
                    raise UserError(f"--grid, at {which}: {error}") from None


def _joined(names: tuple[str, ...]) -> list[str]:
    """As one axis, if there are names."""
    return [",".join(names)] if names else []


def _axis(text: str) -> tuple[str, list[Any]]:
    """A name and its values, of the type of the flag."""
    name, equals, listed = text.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    free = [field for field in RUN_FIELDS if field not in _OF_THE_CORPUS | {"seed"}]
    if not equals or not listed:
        raise UserError(f"--grid {text}: write NAME=VALUE,VALUE.")
    if name == "seed":
        raise UserError(f"--grid {text}: use --seeds.")
    if name in _OF_THE_CORPUS:
        raise UserError(f"--grid {text}: runs of a sweep share one corpus.")
    if name in _OF_A_DIRECTORY:
        raise UserError(f"--grid {text}: a sweep {_OF_A_DIRECTORY[name]}.")
    if name not in free:
        raise UserError(f"--grid {text}: no such setting: use one of {' '.join(free)}.")
    hint, values = get_type_hints(FinetuneConfig)[name], []
    for value in listed.split(","):
        value = value.strip()
        try:
            given = (
                "null" if value == "none" and type(None) in get_args(hint) else value
            )
            values.append(msgspec.convert(given, hint, strict=False))
        except msgspec.ValidationError as error:
            raise UserError(f"--grid {name}={value}: {error}.") from None
    if len({repr(value) for value in values}) < len(values):
        raise UserError(f"--grid {text}: a value stands there twice.")
    return name, values
