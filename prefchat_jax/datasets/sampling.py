"""Sampling: which rows each micro-batch reads, a pure function of seed and epoch."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """Which rows each micro-batch reads.

    Attributes:
      rows: int32 `[m, batch]` row numbers; -1 for an empty place.
      window: float32 `[m]` rows in the accumulation window of the micro-batch.
    """

    rows: np.ndarray
    window: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class EpochPlan:
    """The order of the rows in every epoch.

    Attributes:
      labels: `[n]` buckets of the training rows.
      batch_size: rows of a micro-batch; the last one of an epoch may be short.
      accumulate: micro-batches of one optimizer step; the last window of an
        epoch is filled up with empty ones.
      balanced: draws with replacement, a row with weight 1 / size of its class.
      seed: of the order.
    """

    labels: np.ndarray
    batch_size: int
    accumulate: int
    balanced: bool
    seed: int

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of one epoch."""
        return -(-len(self.labels) // (self.batch_size * self.accumulate))

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one epoch, empty ones included."""
        return self.optimizer_steps * self.accumulate

    def epoch(self, number: int) -> Plan:
        """The micro-batches of one epoch."""
        order = self._order(np.random.default_rng([self.seed, number]))
        rows = np.full(self.micro_batches * self.batch_size, -1, np.int32)
        rows[: len(order)] = order
        windows = np.sum(rows.reshape(self.optimizer_steps, -1) >= 0, axis=1)
        return Plan(
            rows.reshape(self.micro_batches, self.batch_size),
            np.repeat(windows, self.accumulate).astype(np.float32),
        )

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        if not self.balanced:
            return rng.permutation(len(self.labels))
        weights = 1 / np.bincount(self.labels)[self.labels]
        return rng.choice(len(self.labels), len(self.labels), p=weights / weights.sum())
