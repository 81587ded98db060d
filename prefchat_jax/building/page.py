"""Page: the report of a build as HTML."""

from collections.abc import Iterable, Sequence
from typing import Any

from prefchat_jax.pages import document, folded, safe, table

_LISTED = 40  # Unusable lines, and labels, that the page lists.


def render(report: dict[str, Any]) -> str:
    """The page of a report."""
    rows = report["rows"]
    tiles = [
        ("rows in", rows["in"]),
        ("rows kept", rows["kept"]),
        ("preference pairs kept", rows["pairs"]),
        ("variants added", rows["variants"]),
        ("seconds", f"{report['seconds']:.1f}"),
        ("rows a second", report["rows_per_second"]),
    ]
    body = [
        f'<p class="small"><code>{safe(report["command"])}</code></p>',
        '<div class="tiles">',
        *(f'<div class="tile"><b>{_number(v)}</b>{safe(k)}</div>' for k, v in tiles),
        "</div>",
        *_reasons(report),
        *_sources(report),
        *_clusters(report),
        *_lengths(report),
        *_labels(report),
        *_preferences(report),
        *_unusable(report),
        *_files(report),
    ]
    name = report["settings"]["output"].rpartition("/")[2]
    return document(f"Corpus {name}", body)


def _reasons(report: dict[str, Any]) -> Iterable[str]:
    yield "<h2>Dropped, by reason</h2>"
    if not report["reasons"]:
        yield "<p>Nothing was dropped.</p>"
        return
    most = max(reason["rows"] for reason in report["reasons"].values())
    yield table(
        ("reason", "rows", "", "examples"),
        (
            (
                safe(name),
                _number(reason["rows"]),
                _bar(reason["rows"], most),
                _examples(reason["examples"]),
            )
            for name, reason in report["reasons"].items()
        ),
    )


def _examples(examples: Sequence[Sequence[str]]) -> str:
    if not examples:
        return ""
    items = "".join(
        f"<li><code>{safe(place)}</code> {safe(words)}: {safe(text)}</li>"
        for place, words, text in examples
    )
    return f'<div class="small">{folded("show", f"<ul>{items}</ul>")}</div>'


def _sources(report: dict[str, Any]) -> Iterable[str]:
    yield "<h2>Sources</h2>"
    yield table(
        ("source", "in", "kept", "pairs kept", "share", "dropped"),
        (
            (
                safe(name),
                _number(source["in"]),
                _number(source["kept"]),
                _number(source["pairs"]),
                _share(source["kept"] + source["pairs"], source["in"]),
                safe(
                    ", ".join(
                        f"{count:,} {reason}"
                        for reason, count in sorted(
                            source["dropped"].items(), key=lambda item: -item[1]
                        )
                    )
                ),
            )
            for name, source in report["sources"].items()
        ),
        figures=(1, 2, 3, 4),
    )


def _clusters(report: dict[str, Any]) -> Iterable[str]:
    clusters = report["clusters"]
    if not clusters or not clusters["rows"]:
        return
    yield "<h2>Duplicates</h2>"
    yield (
        f"<p>{clusters['rows']:,} rows repeat one of {clusters['clusters']:,} earlier "
        "ones. The most repeated:</p>"
    )
    yield table(
        ("copies", "row that was kept", ""),
        (
            (
                _number(c["copies"]),
                safe(c["first"]),
                f"<code>{safe(c['place'])}</code>",
            )
            for c in clusters["largest"]
        ),
        figures=(0,),
    )


def _lengths(report: dict[str, Any]) -> Iterable[str]:
    lengths = report["lengths"]
    yield "<h2>Lengths of what was kept, in characters</h2>"
    for side in ("question", "reply"):
        counts = lengths[side]
        most = max(max(counts), 1)
        yield f"<h3>{side}</h3>"
        edges = lengths["edges"]
        names = [
            f"{low:,} to {high - 1:,}"
            for low, high in zip(edges, edges[1:], strict=False)
        ]
        yield table(
            ("characters", "rows", ""),
            (
                (safe(name), _number(count), _bar(count, most))
                for name, count in zip(
                    [*names, f"{edges[-1]:,} and more"], counts, strict=True
                )
            ),
        )


def _labels(report: dict[str, Any]) -> Iterable[str]:
    labels = report["labels"]
    if not labels["labels"]:
        return
    yield "<h2>Class balance</h2>"
    ratio = labels["largest"] / max(labels["smallest"], 1)
    yield (
        f"<p>{labels['labels']:,} labels on {labels['rows']:,} rows; the largest has "
        f"{ratio:,.1f} times the rows of the smallest.</p>"
    )
    yield table(
        ("label", "rows", ""),
        (
            (safe(name), _number(count), _bar(count, labels["largest"]))
            for name, count in list(labels["counts"].items())[:_LISTED]
        ),
    )


def _preferences(report: dict[str, Any]) -> Iterable[str]:
    preferences = report["preferences"]
    if not preferences["pairs"]:
        return
    yield "<h2>Preferences</h2>"
    yield (
        f"<p>{preferences['pairs']:,} pairs; {preferences['contradictions']:,} "
        "comparisons were judged both ways. A judge who looks at length alone would "
        "agree with these shares:</p>"
    )
    yield table(
        ("source", "pairs", "longer chosen", "shorter chosen"),
        (
            (
                safe(name),
                _number(bias["pairs"]),
                f"{bias['longer_chosen']:.1%}",
                f"{bias['shorter_chosen']:.1%}",
            )
            for name, bias in preferences["length_bias"].items()
        ),
        figures=(1, 2, 3),
    )


def _unusable(report: dict[str, Any]) -> Iterable[str]:
    lines = report["unusable"]
    if not lines:
        return
    yield "<h2>Unusable lines</h2>"
    yield table(
        ("line", "what is wrong"),
        (
            (f"<code>{safe(place)}</code>", safe(words))
            for place, words in lines[:_LISTED]
        ),
    )
    if len(lines) > _LISTED:
        yield f"<p>{len(lines):,} are listed in the JSON report.</p>"


def _files(report: dict[str, Any]) -> Iterable[str]:
    yield "<h2>Files</h2>"
    rows = [
        (kind, file)
        for kind in ("inputs", "holdout", "written")
        for file in report[kind]
    ]
    yield table(
        ("", "file", "bytes", "BLAKE2b (b2sum -l 256)"),
        (
            (
                safe(kind),
                safe(file["path"]),
                _number(file["bytes"]),
                f"<code>{file['blake2b']}</code>",
            )
            for kind, file in rows
        ),
        figures=(2,),
    )
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    yield f'<p class="small">{safe(report["finished"])}, {safe(versions)}</p>'


def _bar(count: int, most: int) -> str:
    return f'<span class="bar" style="width:{12 * count / max(most, 1):.2f}rem"></span>'


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else safe(value)
