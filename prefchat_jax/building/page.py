"""Page: a report as one HTML file that needs no network."""

import html
import string
from collections.abc import Iterable, Sequence
from typing import Any

_LISTED = 40  # Unusable lines, and labels, that the page lists.

_PAGE = string.Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>
:root { color-scheme: light dark; --line: #8884; --bar: #3573b1; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; height: .8em; background: var(--bar); min-width: 1px; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem 1rem; }
.tile b { display: block; font-size: 1.6rem; }
code, .small { font-size: .85em; }
details { margin: .3rem 0; }
</style></head><body><h1>$title</h1>$body</body></html>
""")


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
        f'<p class="small"><code>{_safe(report["command"])}</code></p>',
        '<div class="tiles">',
        *(f'<div class="tile"><b>{_number(v)}</b>{_safe(k)}</div>' for k, v in tiles),
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
    return _PAGE.substitute(title=_safe(f"Corpus {name}"), body="\n".join(body))


def _reasons(report: dict[str, Any]) -> Iterable[str]:
    yield "<h2>Dropped, by reason</h2>"
    if not report["reasons"]:
        yield "<p>Nothing was dropped.</p>"
        return
    most = max(reason["rows"] for reason in report["reasons"].values())
    yield _table(
        ("reason", "rows", "", "examples"),
        (
            (
                _safe(name),
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
        f"<li><code>{_safe(place)}</code> {_safe(words)}: {_safe(text)}</li>"
        for place, words, text in examples
    )
    return f'<details class="small"><summary>show</summary><ul>{items}</ul></details>'


def _sources(report: dict[str, Any]) -> Iterable[str]:
    yield "<h2>Sources</h2>"
    yield _table(
        ("source", "in", "kept", "pairs kept", "share", "dropped"),
        (
            (
                _safe(name),
                _number(source["in"]),
                _number(source["kept"]),
                _number(source["pairs"]),
                _share(source["kept"] + source["pairs"], source["in"]),
                _safe(
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
    yield _table(
        ("copies", "row that was kept", ""),
        (
            (
                _number(c["copies"]),
                _safe(c["first"]),
                f"<code>{_safe(c['place'])}</code>",
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
        yield _table(
            ("characters", "rows", ""),
            (
                (_safe(name), _number(count), _bar(count, most))
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
    yield _table(
        ("label", "rows", ""),
        (
            (_safe(name), _number(count), _bar(count, labels["largest"]))
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
    yield _table(
        ("source", "pairs", "longer chosen", "shorter chosen"),
        (
            (
                _safe(name),
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
    yield _table(
        ("line", "what is wrong"),
        (
            (f"<code>{_safe(place)}</code>", _safe(words))
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
    yield _table(
        ("", "file", "bytes", "BLAKE2b (b2sum -l 256)"),
        (
            (
                _safe(kind),
                _safe(file["path"]),
                _number(file["bytes"]),
                f"<code>{file['blake2b']}</code>",
            )
            for kind, file in rows
        ),
        figures=(2,),
    )
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    yield f'<p class="small">{_safe(report["finished"])}, {_safe(versions)}</p>'


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    figures: Sequence[int] = (1,),
) -> str:
    kind = lambda i: ' class="n"' if i in figures else ""
    head = "".join(f"<th{kind(i)}>{_safe(c)}</th>" for i, c in enumerate(columns))
    body = "".join(
        f"<tr>{''.join(f'<td{kind(i)}>{c}</td>' for i, c in enumerate(row))}</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _bar(count: int, most: int) -> str:
    return f'<span class="bar" style="width:{12 * count / max(most, 1):.2f}rem"></span>'


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else _safe(value)


def _safe(text: str) -> str:
    return html.escape(str(text))
