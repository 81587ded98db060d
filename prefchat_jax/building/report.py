"""Report: what came in, what went and why, as figures; `page` draws them."""

import dataclasses
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from prefchat_jax import __version__
from prefchat_jax.building import page
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.building.duplicates import Pairs
from prefchat_jax.building.read import Corpora
from prefchat_jax.building.table import KEPT, REASONS, Table
from prefchat_jax.building.tally import SHOWN
from prefchat_jax.building.write import Written
from prefchat_jax.files import write_aside

Report = dict[str, Any]

# Characters: the lowest edge of each bar of a length histogram.
LENGTH_EDGES = (0, 20, 50, 100, 200, 500, 1000, 2000, 5000)

_CLUSTERS = 10
_LABELS = 1000


class Outputs(NamedTuple):
    """The files of a build."""

    corpus: pathlib.Path
    preferences: pathlib.Path
    json: pathlib.Path
    html: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a report is made from.

    Attributes:
      corpora: what was read.
      rows: all rows, the held-out ones first, the variants last.
      pairs: all preference pairs.
      originals: how many rows are no variants.
      held_out: rows that match a held-out one, exactly or nearly.
      repeated: rows that repeat another one: exactly, and nearly.
      contradictions: comparisons that were judged both ways.
    """

    corpora: Corpora
    rows: Table
    pairs: Table
    originals: int
    held_out: Sequence[Pairs]
    repeated: Sequence[Pairs]
    contradictions: int


def outputs(corpus: str) -> Outputs:
    """The files beside a corpus: `NAME.preferences.jsonl`, `NAME.report.html`, ..."""
    path = pathlib.Path(corpus)
    beside = lambda end: path.with_name(f"{path.name.removesuffix('.jsonl')}.{end}")
    return Outputs(
        path,
        beside("preferences.jsonl"),
        beside("report.json"),
        beside("report.html"),
    )


def make(
    config: BuildConfig,
    figures: Figures,
    written: Sequence[Written],
    command: str,
    seconds: float,
) -> Report:
    """All figures of a build."""
    corpora, tally = figures.corpora, figures.corpora.tally
    rows_in = sum(tally.rows.values())
    return {
        "command": command,
        "settings": dataclasses.asdict(config),
        "versions": {
            "prefchat_jax": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows_in / max(seconds, 1e-9)),
        "inputs": [file._asdict() for file in corpora.files],
        "holdout": [file._asdict() for file in corpora.holdout_files],
        "written": [file._asdict() for file in written],
        "rows": {
            "lines": tally.lines,
            "in": rows_in,
            "kept": figures.rows.count(KEPT) - _variants(figures),
            "variants": _variants(figures),
            "pairs": figures.pairs.count(KEPT),
        },
        "sources": _sources(figures),
        "reasons": _reasons(figures),
        "unusable": tally.unusable,
        "clusters": _clusters(figures),
        "lengths": {
            "edges": LENGTH_EDGES,
            "question": _lengths(figures.rows, "asked"),
            "reply": _lengths(figures.rows, "replied"),
        },
        "labels": _labels(figures.rows),
        "preferences": _preferences(figures),
    }


def write(report: Report, paths: Outputs) -> None:
    """Writes the report as JSON and as one HTML page."""
    with write_aside(paths.json) as aside:
        data = msgspec.json.encode(report)
        aside.write_bytes(msgspec.json.format(data, indent=1) + b"\n")
    with write_aside(paths.html) as aside:
        aside.write_text(page.render(report), "utf-8")


def is_stale(paths: Outputs, written: Sequence[Written]) -> bool:
    """Whether an earlier build of this output wrote pairs, and this one none."""
    names = [file.path for file in written]
    if str(paths.preferences) in names or not paths.preferences.exists():
        return False
    try:
        before = msgspec.json.decode(paths.json.read_bytes())["written"]
    except (OSError, msgspec.DecodeError, LookupError, TypeError):
        return False
    return any(file["path"] == str(paths.preferences) for file in before)


def nothing_left(figures: Figures, paths: Outputs) -> str:
    """One line about a build that has nothing to write."""
    tally = figures.corpora.tally
    total = sum(tally.rows.values())
    if not total:
        return "The inputs hold no rows: give one JSON object a line."
    reasons = [f"{r['rows']} {name}" for name, r in _reasons(figures).items()]
    first = f" (first: {' '.join(tally.unusable[0])})" if tally.unusable else ""
    return (
        f"None of {total} rows is left: {', '.join(reasons[:3])}{first}. See "
        f"{paths.html}."
    )


def _variants(figures: Figures) -> int:
    return figures.rows.count(KEPT, start=figures.originals)


def _sources(figures: Figures) -> dict[str, Any]:
    """Rows in, kept and dropped for each source."""
    tally, stop = figures.corpora.tally, figures.originals
    kept = figures.rows.count_by("source", KEPT, stop)
    kept_pairs = figures.pairs.count_by("preference_source", KEPT)
    sources = {
        source: {
            "in": count,
            "kept": kept.get(source, 0),
            "pairs": kept_pairs.get(source, 0),
            "dropped": dict(tally.dropped.get(source, {})),
        }
        for source, count in sorted(tally.rows.items())
    }
    for state, reason in REASONS.items():
        for counts in (
            figures.rows.count_by("source", state, stop),
            figures.pairs.count_by("preference_source", state),
        ):
            for source, count in counts.items():
                dropped = sources[source]["dropped"]
                dropped[reason] = dropped.get(reason, 0) + count
    return sources


def _reasons(figures: Figures) -> dict[str, Any]:
    """Rows dropped for each reason, most first, with examples."""
    counts: dict[str, int] = {}
    for source in _sources(figures).values():
        for reason, count in source["dropped"].items():
            counts[reason] = counts.get(reason, 0) + count
    excerpts = figures.corpora.tally.excerpts | _matches(figures)
    order = sorted(counts, key=lambda reason: (-counts[reason], reason))
    return {
        reason: {"rows": counts[reason], "examples": excerpts.get(reason, [])}
        for reason in order
    }


def _matches(figures: Figures) -> dict[str, list[list[str]]]:
    """The first rows that match another one, by reason: place, words, text."""
    found = {"held_out": figures.held_out}
    found |= {
        name: [pairs]
        for name, pairs in zip(
            ("duplicate", "near_duplicate"), figures.repeated, strict=False
        )
    }
    return {
        reason: [
            [
                _place(figures, right),
                f"is like {_place(figures, left)}, {_text(figures, left)}",
                _text(figures, right),
            ]
            for pairs in of_reason
            for left, right in zip(
                pairs.left[:SHOWN].tolist(), pairs.right[:SHOWN].tolist(), strict=True
            )
        ][:SHOWN]
        for reason, of_reason in found.items()
    }


def _place(figures: Figures, row: int) -> str:
    """`file:line` of an original row."""
    part = int(np.searchsorted(figures.rows.edges, row, "right")) - 1
    path, before = figures.corpora.places[part]
    return f"{path}:{before + int(figures.rows['line'][row])}"


def _text(figures: Figures, row: int) -> str:
    said = msgspec.json.decode(figures.rows.line(row))
    return f"{said['user'][:80]} | {said.get('assistant', '')[:120]}"


def _clusters(figures: Figures) -> dict[str, Any] | None:
    """How many rows say the same, and the largest such clusters."""
    if not figures.repeated:
        return None
    left = np.concatenate([pairs.left for pairs in figures.repeated])
    firsts, sizes = np.unique(left, return_counts=True)
    order = np.argsort(-sizes, kind="stable")[:_CLUSTERS].tolist()
    return {
        "clusters": len(firsts),
        "rows": int(sizes.sum()),
        "largest": [
            {
                "copies": int(sizes[i]),
                "place": _place(figures, int(firsts[i])),
                "first": _text(figures, int(firsts[i])),
            }
            for i in order
        ],
    }


def _lengths(rows: Table, name: str) -> list[int]:
    counts = np.zeros(len(LENGTH_EDGES), np.int64)
    for block in rows.blocks():
        lengths = rows[name][block][rows.state.open()[block] == KEPT]
        bars = np.searchsorted(LENGTH_EDGES, lengths, "right") - 1
        counts += np.bincount(bars, minlength=len(counts))
    return counts.tolist()


def _labels(rows: Table) -> dict[str, Any]:
    counts = rows.count_by("label", KEPT)
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {
        "labels": len(most),
        "rows": sum(counts.values()),
        "largest": most[0][1] if most else 0,
        "smallest": most[-1][1] if most else 0,
        "counts": dict(most[:_LABELS]),
    }


def _preferences(figures: Figures) -> dict[str, Any]:
    """How often the longer reply was chosen, for each source."""
    pairs, names = figures.pairs, figures.pairs.names["sources"]
    counts = np.zeros((len(names), 3), np.int64)  # Shorter, equal, longer.
    for block in pairs.blocks():
        kept = pairs.state.open()[block] == KEPT
        places = 3 * pairs["preference_source"][block] + pairs["length_sign"][block] + 1
        counts += np.bincount(places[kept], minlength=counts.size).reshape(-1, 3)
    return {
        "pairs": pairs.count(KEPT),
        "contradictions": figures.contradictions,
        "length_bias": {
            name: {
                "pairs": int(of_source.sum()),
                "longer_chosen": round(float(of_source[2] / of_source.sum()), 4),
                "shorter_chosen": round(float(of_source[0] / of_source.sum()), 4),
            }
            for name, of_source in zip(names, counts, strict=True)
            if of_source.any()
        },
    }
