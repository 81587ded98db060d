"""Checkpoints with orbax: the best and the last epoch of a run in one step.

A step holds `best`, the parameters with the lowest validation loss so far, which
chat loads, `last`, the whole state from which a run resumes, and the response
scorer, if the run has one. It is written as a new step, never over the old one, so
a killed save loses nothing.
"""

import logging
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from prefchat_jax.errors import UserError
from prefchat_jax.models.classifier import BucketModel, Params, abstract_params
from prefchat_jax.models.scorer import ScorerConfig, abstract_scorer
from prefchat_jax.training.kinds import load_part
from prefchat_jax.training.parameters import fingerprint as fingerprint
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.steps import TrainState

SAVE_SECONDS = 15.0  # Saving takes as long as an epoch of a small corpus.


class Checkpoints:
    """Writes the steps of one run; a step is named by its epoch.

    Args:
      path: the directory of the steps.
      scorer: parameters of the response scorer, which every step holds.
    """

    def __init__(self, path: pathlib.Path, scorer: Params | None = None):
        policy: Any = ocp.training.preservation_policies.LatestN(1)
        self._path = path
        self._steps = ocp.training.Checkpointer(
            str(path), preservation_policy=policy, cleanup_tmp_directories=True
        )
        self._saved_at = time.monotonic()
        self._best: Params = None
        self._scorer = {} if scorer is None else {"scorer": scorer}

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
        """Takes an epoch, and saves it if training ends or enough time has passed.

        Args:
          epoch: its number.
          params: the parameters that were validated.
          state: the state to resume from; not kept.
          is_best: whether it is the best one so far.
          is_last: whether training ends here.

        Raises:
          UserError: the step could not be written.
        """
        if is_best:
            # A copy, since the next training step donates the state; `jnp.copy` would
            # compile a program for each shape.
            self._best = jax.device_put(params, may_alias=False)
        if not is_last and time.monotonic() - self._saved_at < SAVE_SECONDS:
            return
        trees = {"best": self._best, "last": state} | self._scorer
        self._save(
            epoch, trees, "The step before is whole: make room and go on with --resume."
        )
        self._saved_at = time.monotonic()

    def save_final(self, epoch: int, params: Params) -> None:
        """Saves parameters that no epoch of this run has trained, nor resumes.

        Raises:
          UserError: the step could not be written.
        """
        trees = {"best": jax.tree.map(jnp.asarray, params)} | self._scorer
        self._save(epoch, trees, "Make room and start again.")

    def _save(self, epoch: int, trees: dict[str, Any], advice: str) -> None:
        try:
            self._steps.save_checkpointables(epoch, trees, force=True)
        except Exception as error:  # Orbax and tensorstore raise many types.
            raise UserError(
                f"{self._path / str(epoch)} cannot be written ({_reason(error)}). "
                f"{advice}"
            ) from error

    def resume(self, like: TrainState) -> TrainState:
        """Loads the last epoch onto the device of `like`, and the best one so far."""
        found = _load(
            self._path / str(self.last_epoch),
            {"best": _abstract(like.params), "last": _abstract(like)},
        )
        self._best = found["best"]
        return found["last"]


def load_model(run: RunDirectory) -> tuple[BucketModel, Params]:
    """The shape and the best parameters of a run; nothing but orbax is read.

    Raises:
      UserError: the run is not finished, or its step is missing or truncated.
    """
    shape = dict(run.config()["model"])
    shape["branch_widths"] = tuple(shape["branch_widths"])
    model = load_part(shape, "model")(**shape)
    step = _finished_step(run)
    return model, _load(step, {"best": _abstract(abstract_params(model))})["best"]


def load_scorer(
    run: RunDirectory, step: int | None = None
) -> tuple[ScorerConfig, Params] | None:
    """The shape and the parameters of a run's response scorer; None if it has none.

    Args:
      run: a run directory.
      step: the step to read; the one of a finished run if None.

    Raises:
      UserError: the run is not finished, or its step is missing or truncated.
    """
    shape = run.config().get("scorer")
    if shape is None:
        return None
    config = ScorerConfig(**shape)
    path = _finished_step(run) if step is None else run.checkpoints / str(step)
    return config, _load(path, {"scorer": _abstract(abstract_scorer(config))})["scorer"]


def _finished_step(run: RunDirectory) -> pathlib.Path:
    config = run.config()
    if "last_epoch" not in config:
        raise UserError(
            f"{run.path} is not finished: go on with `prefchat finetune --resume`."
        )
    return run.checkpoints / str(config["last_epoch"])


def _load(step: pathlib.Path, target: dict[str, Any]) -> dict[str, Any]:
    log, drop = logging.getLogger("absl"), lambda record: False
    log.addFilter(drop)  # Orbax logs the same, in words of its own.
    try:
        loaded = ocp.load_checkpointables(str(step), target)
        # By way of the host: orbax pins arrays to their device, and for pinned ones
        # every program would compile once more.
        return jax.device_put(jax.device_get(loaded))
    except Exception as error:  # Orbax and tensorstore raise many types.
        what = "is damaged, or of another shape or version of this package"
        what = what if step.exists() else "is missing"
        raise UserError(
            f"{step} cannot be loaded: the checkpoint {what}. Train again."
        ) from error
    finally:
        log.removeFilter(drop)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _abstract(tree: Any) -> Any:
    """Shapes, dtypes and a device: loading then fits any number of devices."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree
    )
