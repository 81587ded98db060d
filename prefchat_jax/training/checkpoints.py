"""Checkpoints with orbax: the best and the last step of a run.

A step holds `model`, the parameters that were validated and that chat loads; the
last one also holds `train`, the whole state from which a run resumes. Steps are
written once and never overwritten, so a killed save loses nothing.
"""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from prefchat_jax.errors import UserError
from prefchat_jax.models.classifier import ModelConfig, Params, abstract_params
from prefchat_jax.training.steps import TrainState

SAVE_SECONDS = 15.0

_policies = ocp.training.preservation_policies


class Checkpoints:
    """Writes the steps of one run; a step is an epoch.

    Saving takes as long as training a small model for an epoch, so the last
    epoch is saved every `SAVE_SECONDS` and at the end. The best epoch so far
    is kept in memory and saved just before.
    """

    def __init__(
        self,
        path: pathlib.Path,
    ):
        # Only the best epochs have a rank, and a later best one a higher rank.
        best = _policies.BestN(get_metric_fn=lambda m: m["best"], n=1)
        policy: Any = _policies.AnyPreservationPolicy([best, _policies.LatestN(1)])
        self._steps = ocp.training.Checkpointer(
            str(path), preservation_policy=policy, cleanup_tmp_directories=True
        )
        self._saved_at = time.monotonic()
        self._best: tuple[int, Params] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._steps.close()

    @property
    def last_epoch(self) -> int:
        """The last epoch that was saved; 0 before the first."""
        return self._steps.latest.step if self._steps.latest else 0

    def offer(
        self,
        epoch: int,
        params: Params,
        state: TrainState,
        *,
        is_best: bool,
        is_last: bool,
    ) -> None:
        """Takes an epoch, and saves it if it is time.

        Args:
          epoch: its number.
          params: the parameters that were validated.
          state: the state to resume from; not kept.
          is_best: whether it is the best one so far.
          is_last: whether training ends here.
        """
        if is_best:
            # A copy: the next training step donates the state.
            self._best = (epoch, jax.tree.map(jnp.copy, params))
        if not is_last and time.monotonic() - self._saved_at < SAVE_SECONDS:
            return
        if self._best and self._best[0] != epoch:
            self._save(self._best[0], {"model": self._best[1]}, is_best=True)
        self._save(epoch, {"model": params, "train": state}, is_best=is_best)
        self._best, self._saved_at = None, time.monotonic()

    def load_state(self, like: TrainState) -> TrainState:
        """Loads the last epoch, to resume from it, onto the device of `like`."""
        target = {"train": _abstract(like)}
        return self._steps.load_checkpointables(self.last_epoch, target)["train"]

    def _save(self, epoch: int, trees: dict[str, Any], *, is_best: bool) -> None:
        metrics: dict[str, Any] = {"best": epoch if is_best else 0}
        self._steps.save_checkpointables(epoch, trees, metrics=metrics, force=True)


def load_params(path: pathlib.Path, step: int, config: ModelConfig) -> Params:
    """Loads the parameters of one step, whatever devices they were saved on.

    Raises:
      UserError: the step is missing, truncated, or of another shape.
    """
    target = {"model": _abstract(abstract_params(config))}
    try:
        return ocp.load_checkpointables(str(path / str(step)), target)["model"]
    except Exception as error:  # Orbax and tensorstore raise many types here.
        reason = str(error).strip().splitlines()[0][:200] if str(error) else "no data"
        raise UserError(
            f"{path / str(step)} cannot be loaded ({reason}): the checkpoint is "
            "damaged or of another shape, train again."
        ) from error


def _abstract(tree: Any) -> Any:
    """Shapes, dtypes and a device: loading then fits any number of devices."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree
    )
