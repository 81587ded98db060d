"""The metadata that the reference keeps beside a checkpoint. No JAX.

A JSON object with its settings (`feature_mode` among them) and `buckets`: by label,
the replies that it pools, each with `text` and `count`. Rows write the number of a
class as their label; a list `labels` may name the classes, or, in the form of a run's
labels.json, also say what else rows write.
"""

import os
import pathlib
from typing import Any, NamedTuple, get_args

import msgspec

from prefchat_jax.compat.database import as_often
from prefchat_jax.compat.features import FeatureMode
from prefchat_jax.datasets.labels import Label
from prefchat_jax.errors import UserError
from prefchat_jax.text.dialogue import Example, Turn

_MODES = get_args(FeatureMode)


class Metadata(NamedTuple):
    """What an import takes from the metadata.

    Attributes:
      buckets: `label` and `name` of each class, in the order of the logits.
      feature_mode: None if the file says nothing.
      replies: rows with a label, a reply as often as it counts, and no question.
    """

    buckets: list[dict[str, Any]]
    feature_mode: FeatureMode | None = None
    replies: tuple[Example, ...] = ()


def read_metadata(
    path: str | os.PathLike | None, num_buckets: int, *, any_mode: bool = False
) -> Metadata:
    """Reads what a checkpoint of `num_buckets` classes needs; numbers them without.

    Args:
      path: the file; None for a checkpoint without metadata.
      num_buckets: classes of the checkpoint.
      any_mode: ignore the feature mode, which a flag replaces.

    Raises:
      UserError: it cannot be read, or is of a checkpoint with other classes.
    """
    if path is None:
        return Metadata(_numbered(num_buckets))
    try:
        found = msgspec.json.decode(pathlib.Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}. Check the path.") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is no JSON: {error}.") from error
    try:
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
        if not found.keys() & {"labels", "feature_mode", "buckets"}:
            raise ValueError("it has neither labels, feature_mode nor buckets")
        buckets = _buckets(found.get("labels"), num_buckets)
        mode = None if any_mode else _mode(found.get("feature_mode"))
        replies = _replies(found.get("buckets") or {}, buckets)
    except ValueError as error:
        raise UserError(
            f"{path}: {error}. Give the JSON file that was written beside the "
            "checkpoint."
        ) from error
    return Metadata(buckets, mode, replies)


def _numbered(count: int) -> list[dict[str, Any]]:
    return [{"label": i, "name": str(i)} for i in range(count)]


def _buckets(labels: Any, count: int) -> list[dict[str, Any]]:
    """Labels and names: those that the file gives, or else the classes' numbers."""
    if labels is None:
        return _numbered(count)
    if not isinstance(labels, list):
        raise ValueError("labels is no list")
    if len(labels) != count:
        raise ValueError(f"it has {len(labels)} labels and the checkpoint {count}")
    made = []
    for number, one in enumerate(labels):
        given = one if isinstance(one, dict) else {"label": number, "name": one}
        label, name = given.get("label"), given.get("name", given.get("label"))
        if isinstance(label, bool) or not isinstance(label, Label) or name is None:
            raise ValueError(f"the label {one!r} has no text and no number")
        made.append({"label": label, "name": str(name)})
    if len({str(bucket["label"]) for bucket in made}) < count:
        raise ValueError("two of its labels are the same")
    return made


def _mode(mode: Any) -> FeatureMode | None:
    if mode is not None and mode not in _MODES:
        raise ValueError(
            f"its feature_mode {mode!r} is not read: `prefchat import_torch "
            f"--feature_mode {' or '.join(_MODES)}` takes another, with other logits"
        )
    return mode


def _replies(pooled: Any, buckets: list[dict[str, Any]]) -> tuple[Example, ...]:
    """The stored replies of each class, in order."""
    if not isinstance(pooled, dict):
        raise ValueError("buckets is no object")
    rows: list[Example] = []
    for number, stored in pooled.items():
        if not (number.isdecimal() and int(number) < len(buckets)):
            raise ValueError(
                f"it has a bucket {number!r} and the checkpoint the classes 0 to "
                f"{len(buckets) - 1}"
            )
        if not isinstance(stored, list):
            raise ValueError(f"bucket {number} is no list")
        label = buckets[int(number)]["label"]
        for reply in stored:
            rows += _times(reply, number, label)
    return tuple(rows)


def _times(reply: Any, number: str, label: Label) -> list[Example]:
    if not isinstance(reply, dict) or not isinstance(reply.get("text"), str):
        raise ValueError(f"bucket {number} has a reply without a text")
    count, text = reply.get("count", 1), reply["text"].strip()
    if isinstance(count, bool) or not isinstance(count, int):
        raise ValueError(f"bucket {number} has a count {count!r}, no whole number")
    row = Example((Turn("user", ""),), text, label)
    return as_often(row, count) if text else []
