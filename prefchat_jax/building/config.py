"""Settings of `prefchat build`. The fields are its flags."""

import dataclasses
import os
import re
from typing import Literal

from prefchat_jax.building.filters import FILTERS, Limits
from prefchat_jax.errors import UserError

PersonalData = Literal["keep", "mask", "drop"]
DedupeOn = Literal["pair", "context"]

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
LEAST_MEMORY = 2**28
_MOST = 2**31 - 1
_MOST_WEIGHT = 1e6
_LEAST_LIKENESS = 0.3


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on every system.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Build one clean corpus, and a report, from many JSONL corpora."""

    inputs: tuple[str, ...] = ()
    """JSONL files (plain or .gz), and folders to search for them; the first one
    that says something is the one that is kept."""
    inputs_manifest: str | None = None
    """JSON list of files, beside --inputs."""
    output: str
    """Corpus to write; preference pairs and the report are written beside it."""
    skip_missing_inputs: bool = False
    """Go on without the inputs that do not exist."""
    max_rows_per_input: int | None = None
    """Read this many rows of each file [all]."""

    skip_filters: tuple[str, ...] = ()
    """Filters to switch off: `all`, or their names."""
    min_user_chars: int = 4
    """Shortest question."""
    max_user_chars: int = 8000
    """Longest question."""
    min_assistant_chars: int = 12
    """Shortest reply."""
    max_assistant_chars: int = 16000
    """Longest reply."""
    min_assistant_words: int = 3
    """Fewest words of a reply."""
    max_repeat_ratio: float = 0.78
    """Largest share of the words of a reply that repeat an earlier one."""
    max_char_run: int = 7
    """How often a character may stand in a row."""
    personal_data: PersonalData = "keep"
    """Rows with an e-mail address or what looks like a phone number: keep, mask or
    drop."""
    max_turns: int = 8
    """Earlier turns of a dialogue that a row keeps."""

    allow_duplicates: bool = False
    """Keep copies and near-duplicates."""
    dedupe_on: DedupeOn = "pair"
    """What two rows must share: context and reply, or the context alone."""
    near_duplicates: float = 0.8
    """Likeness in (0, 1] from which rows are duplicates; 0 finds exact ones only."""
    holdout: tuple[str, ...] = ()
    """JSONL files whose questions must not occur in the corpus, nor nearly; one with
    a history counts where that is alike, too."""

    target: int | None = None
    """Rows to write: a sample of more, or filled up by augmentation [all]."""
    source_weights: tuple[str, ...] = ()
    """SOURCE=WEIGHT: how likely the rows of a source are drawn [1]. A source is
    what the rows say it is, or the name of their file without its ending."""
    programming_boost_factor: float = 1.0
    """How much likelier rows about code are drawn."""
    augment: bool = False
    """Fill up to the target with variants of rows; they are tagged."""
    creative_prob: float | None = None
    """Share of variants in a creative frame [0.3]; switches augmentation on."""
    blend_prob: float | None = None
    """Share of variants made of two rows, where a row has a partner of its kind
    [0.2]; switches augmentation on."""

    max_memory: str = "1GiB"
    """What all processes together may use."""
    workers: int | None = None
    """Processes [one a core]."""
    seed: int = 42
    """Of the sample and of the variants."""

    def __post_init__(self):
        if not self.inputs and not self.inputs_manifest:
            raise UserError("--inputs is missing: give JSONL files or folders.")
        if self.output.endswith((".gz", "/")) or os.path.isdir(self.output):
            raise UserError(f"--output {self.output}: name a plain .jsonl file.")
        for name in self.skip_filters:
            if name not in (*FILTERS, "all"):
                raise UserError(
                    f"--skip_filters {name}: no such filter; use all or some of "
                    f"{', '.join(FILTERS)}."
                )
        _check_at_least(self, 1, "target", "max_rows_per_input", "workers")
        _check_at_least(self, 0, "min_user_chars", "min_assistant_chars")
        _check_at_least(self, 0, "min_assistant_words", "max_turns", "seed")
        _check_at_least(self, 1, "max_user_chars", "max_assistant_chars")
        _check_at_least(self, 1, "max_char_run")
        for name in ("max_repeat_ratio", "near_duplicates"):
            _check_share(name, getattr(self, name))
        for name in ("creative_prob", "blend_prob"):
            if getattr(self, name) is not None:
                _check_share(name, getattr(self, name))
        if not 1e-6 <= self.programming_boost_factor <= _MOST_WEIGHT:
            raise UserError(
                f"--programming_boost_factor {self.programming_boost_factor}: must be "
                f"above 0, and at most {_MOST_WEIGHT:g}."
            )
        if 0 < self.near_duplicates < _LEAST_LIKENESS:
            raise UserError(
                f"--near_duplicates {self.near_duplicates}: must be 0, or at least "
                f"{_LEAST_LIKENESS}: less alike rows are no duplicates."
            )
        self._check_combinations()
        _ = self.memory, self.weight_of_source  # Raise for what cannot be read.

    def _check_combinations(self):
        needs_target = {
            "augmentation": self.augments,
            "--source_weights": bool(self.source_weights),
            "--programming_boost_factor": self.programming_boost_factor != 1,
        }
        for name, given in needs_target.items():
            if given and self.target is None:
                raise UserError(f"{name} does nothing without --target: give one.")
        if self.allow_duplicates and self.dedupe_on != "pair":
            raise UserError("--dedupe_on does nothing with --allow_duplicates.")
        if self.allow_duplicates and self.near_duplicates != 0.8 and not self.holdout:
            raise UserError("--near_duplicates does nothing with --allow_duplicates.")

    @property
    def augments(self) -> bool:
        """Whether variants were asked for."""
        given = (self.creative_prob, self.blend_prob)
        return self.augment or any(share is not None for share in given)

    @property
    def limits(self) -> Limits:
        """Thresholds of the filters."""
        names = [field.name for field in dataclasses.fields(Limits)]
        return Limits(**{name: getattr(self, name) for name in names})

    @property
    def memory(self) -> int:
        """`max_memory` in bytes."""
        match = re.fullmatch(
            r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", self.max_memory.strip().lower()
        )
        if not match:
            raise UserError(f"--max_memory {self.max_memory}: write 1GiB or 800M.")
        size = int(min(float(match[1]) * _UNITS[match[2]], 2.0**60))
        if size < LEAST_MEMORY:
            raise UserError(
                f"--max_memory {self.max_memory}: must be at least 256M, which the "
                "processes need for themselves."
            )
        return size

    @property
    def processes(self) -> int:
        """How many processes work."""
        if self.workers:
            return self.workers
        return usable_cores()

    @property
    def weight_of_source(self) -> dict[str, float]:
        """`source_weights` as numbers."""
        weights = {}
        for text in self.source_weights:
            name, _, value = text.rpartition("=")
            try:
                weight = float(value)
            except ValueError:
                weight = -1.0
            if not name or not (weight == 0 or 1e-6 <= weight <= _MOST_WEIGHT):
                raise UserError(f"--source_weights {text}: write SOURCE=WEIGHT.")
            weights[name] = weight
        return weights


def _check_at_least(config: BuildConfig, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value <= _MOST:
            raise UserError(f"--{name} {value}: must be from {least} to {_MOST}.")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"--{name} {value}: must be between 0 and 1.")
