"""Where a run starts: at random, or from the run of --weights."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from prefchat_jax.datasets.labels import Label
from prefchat_jax.errors import UserError
from prefchat_jax.models.classifier import (
    BucketModel,
    ModelConfig,
    Params,
    init_params,
)
from prefchat_jax.models.frozen import freeze, frozen_vectors
from prefchat_jax.training import catalogue
from prefchat_jax.training.checkpoints import load_model
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.corpus import Corpus, bucket_names
from prefchat_jax.training.loop import Progress
from prefchat_jax.training.parts import Part, count_parts
from prefchat_jax.training.run_directory import RunDirectory
from prefchat_jax.training.scorer_run import ScorerStart
from prefchat_jax.training.steps import Recipe, Rows, predict
from prefchat_jax.training.warm_start import Report, grow


class Source(NamedTuple):
    """The run of --weights: its shape, its parameters, and its buckets by name."""

    shape: BucketModel
    params: Params
    names: list[str]


def load_source(config: FinetuneConfig) -> Source | None:
    """The run of --weights; None without that flag.

    Raises:
      UserError: it is no finished run, or cannot be read.
    """
    if not config.weights:
        return None
    run = RunDirectory.open(config.weights)
    written = run.config()
    buckets = run.buckets()
    names = _distinct_names(
        [bucket["label"] for bucket in buckets],
        [bucket["name"] for bucket in buckets],
        clustering=None
        if written["labels_given"]
        else _clustering(written["finetune"], written["data_fingerprint"]),
    )
    return Source(*load_model(run), names)


def model_shape(
    config: FinetuneConfig, corpus: Corpus, source: Source | None
) -> BucketModel:
    """The shape to train: as the flags say, and where they do not, the source's."""
    num_buckets = len(corpus.labelled.buckets.labels)
    if source is None:
        return ModelConfig(
            num_buckets=num_buckets,
            vocabulary=corpus.featurizer.num_rows,
            branch_widths=config.branch_widths(),
        )
    return dataclasses.replace(
        source.shape,
        num_buckets=num_buckets,
        branch_widths=config.branch_widths(source.shape.branch_widths),
    )


def initial_params(
    config: FinetuneConfig, model: BucketModel, corpus: Corpus, source: Source | None
) -> tuple[Params, Report | None]:
    """The parameters before step 1, and what of them is the source's.

    Raises:
      UserError: the source does not fit into the model.
    """
    params = init_params(model, jax.random.fold_in(jax.random.key(config.seed), 1))
    if source is None:
        return params, None
    buckets = corpus.labelled.buckets
    names = _distinct_names(
        buckets.labels,
        bucket_names(corpus),
        clustering=None
        if buckets.given
        else _clustering(dataclasses.asdict(config), corpus.fingerprint),
    )
    theirs = _renamed(
        source.names, dict(zip(map(str, buckets.labels), names, strict=True))
    )
    return grow(source.params, params, theirs, names, model.growing_axes)


def with_reference(
    config: FinetuneConfig,
    recipe: Recipe,
    params: Params,
    train: Rows,
    progress: Progress,
) -> Rows:
    """The rows with the logits of the frozen start, if the objective wants them.

    On the buckets of --weights these are its own, on others near 0.
    """
    row = catalogue.OBJECTIVES.get(config.pref_objective, catalogue.USERS)
    if not row.reference or config.pref_weight == 0:
        return train
    if not config.weights:
        progress.notice(
            f"--pref_objective {config.pref_objective} without --weights: the "
            "reference policy is uniform"
        )
        return train
    logits = predict(recipe.model, params, train.ids, train.weights)
    return train._replace(ref_logits=logits)


def frozen_recipe(config: FinetuneConfig, recipe: Recipe) -> Recipe:
    """With --frozen_features: the recipe of the head alone; else as it is.

    Raises:
      UserError: the model of --weights has no encoder to freeze.
    """
    if not config.frozen_features:
        return recipe
    if not isinstance(recipe.model, ModelConfig):
        raise UserError(
            f"--frozen_features: the model of --weights {config.weights} is all head: "
            "it has no encoder to freeze."
        )
    return dataclasses.replace(recipe, model=freeze(recipe.model))


def frozen_rows(
    config: FinetuneConfig, recipe: Recipe, params: Params, rows: Rows
) -> Rows:
    """With --frozen_features: rows of vectors, for the head alone; else as they are."""
    model = recipe.model
    if not config.frozen_features or not isinstance(model, ModelConfig):
        return rows
    return rows._replace(
        ids=np.zeros((len(rows.ids), 0), np.int32),
        weights=frozen_vectors(model, params, rows.ids, rows.weights),
    )


def _clustering(settings: dict[str, Any], fingerprint: str) -> str:
    """What a clustering depends on: the same again finds the same clusters."""
    count, seed = settings["num_buckets"], settings.get("data_seed")
    seed = settings["seed"] if seed is None else seed
    return f"{count} of data {fingerprint[:12]}, seed {seed}"


def _distinct_names(
    labels: Sequence[Label], names: Sequence[str], *, clustering: str | None
) -> list[str]:
    """Names under which buckets of two runs are the same; none occurs twice.

    Clusters have only numbers, which mean nothing in another clustering.
    """
    if clustering is not None:
        return [f"cluster {label} ({clustering})" for label in labels]
    count = collections.Counter(names)
    pairs = zip(labels, names, strict=True)
    return [
        name if count[name] == 1 else f"{name} (label {label})" for label, name in pairs
    ]


def _renamed(theirs: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Buckets that are known by a label alone, by the name that it has here.

    Args:
      theirs: names of another run.
      names: here, by label.
    """
    taken = set(theirs)
    renamed = {old: names.get(old, old) for old in theirs}
    return [old if renamed[old] in taken else renamed[old] for old in theirs]


def show_report(report: Report, config: FinetuneConfig, progress: Progress) -> None:
    """Tells which buckets and arrays are those of --weights."""
    buckets = [
        (report.copied_buckets, "copied"),
        (report.fresh_buckets, "fresh"),
        (report.unused_buckets, "unused"),
    ]
    progress.notice(
        f"buckets of --weights {config.weights}: "
        + ", ".join(f"{len(names)} {how}{_some(names)}" for names, how in buckets)
    )
    columns = ["array", "how", "there", "here", "copied", "fresh", "unused"]
    rows = [
        [
            path.path,
            path.how,
            "" if path.source_shape is None else _shape(path.source_shape),
            _shape(path.target_shape),
            f"{path.copied:,}",
            f"{path.fresh:,}",
            f"{path.unused:,}",
        ]
        for path in report.paths
    ]
    progress.table("warm start", columns, rows)


def show_parts(
    recipe: Recipe, params: Params, scorer: ScorerStart | None, progress: Progress
) -> None:
    """Tells how many parameters train, by part of the model."""
    parts = count_parts(
        params,
        None if scorer is None else scorer.params,
        head_only=recipe.optimizer.head_only,
        scorer_trains=scorer is not None and scorer.rows is not None,
    )
    _, trained, frozen = zip(*parts, strict=True)
    parts.append(Part("all", sum(trained), sum(frozen)))
    rows = [[part.name, f"{part.trained:,}", f"{part.frozen:,}"] for part in parts]
    progress.table("parameters", ["part", "trained", "frozen"], rows)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "number"


def _some(names: tuple[str, ...]) -> str:
    """The first names, in brackets."""
    more = ", ..." if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{more})" if names else ""
