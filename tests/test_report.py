"""`prefchat report`: what the page says is what the files say, and nothing loads."""

import csv
import html.parser
import json
import re
import shutil
import statistics
import subprocess
import sys

import numpy as np
import pytest
from conftest import QUESTIONS, one_line, quick
from scipy import stats

from prefchat_jax.cli.main import main
from prefchat_jax.finetune import finetune
from prefchat_jax.pages import from_markdown
from prefchat_jax.preference_tuning import tune_preferences
from prefchat_jax.reporting import charts
from prefchat_jax.reporting.leaderboard import varying
from prefchat_jax.reporting.runs import Told, differing
from prefchat_jax.reporting.sweep_page import sweep_sections
from prefchat_jax.sweep import sweep
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.sweep_config import SweepConfig
from prefchat_jax.training.sweep_table import COLUMNS

pytest.importorskip("matplotlib")

HOSTILE = '<script>alert("$1$")</script> & <b>'
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; keeps tables, headings and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.tags, self.headings = [], [], [], []
        self.attributes = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


def read_page(path):
    """The parsed page, of which nothing loads and nothing runs."""
    text = path.read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#"), value
    assert not re.search(r"url\((?!#)|@import", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    return page


def report(*argv):
    assert main(["report", *map(str, argv)]) == 0


def logged(path):
    rows = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row.get("summary")]


@pytest.fixture(scope="module")
def noisy_run(corpus_path, tmp_path_factory):
    """Learned whom to trust; two annotators, one with markup for a name."""
    folder = tmp_path_factory.mktemp("noisy")
    rows = [json.loads(line) for line in corpus_path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["annotator"] = HOSTILE if number % 2 else "careful"
    data = folder / "noisy.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"pref_noise": "re_po", "pref_weight": 1.0, "scorer_epochs": 0}
    return finetune(quick(data, folder / "run", epochs=3, **flags)).run.path


@pytest.fixture(scope="module")
def swept(corpus_path, tmp_path_factory):
    """Two objectives, three betas, two seeds; and a run that diverged."""
    output = tmp_path_factory.mktemp("swept") / "s"
    plain = quick(corpus_path, output, epochs=2, pref_weight=1.0)
    settings = {f: getattr(plain, f) for f in FinetuneConfig.__dataclass_fields__}
    grid = ("pref_objective=sigmoid,ipo", "pref_beta=0.5,2,8")
    sweep(SweepConfig(**settings, grid=grid, seeds=2, runs_at_once=1))
    table = output / "results.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    broken = rows[-1] | dict.fromkeys(("eval_loss", "eval_accuracy", "loss"), "")
    rows.append(broken | {"seed": "9", "diverged": "loss is nan at step 3"})
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return output


@pytest.fixture
def drawn(monkeypatch):
    """What `charts.lines` was asked to draw, by the label of the y axis."""
    found = []
    lines = charts.lines

    def keep(axes, curves, xlabel, ylabel, looks=None):
        found.append((ylabel, dict(curves)))
        lines(axes, curves, xlabel, ylabel, looks)

    monkeypatch.setattr(charts, "lines", keep)
    return found


@pytest.fixture
def ended(monkeypatch):
    """The labels of the axes that end where shares do."""
    found = []

    def keep(axes, which):
        found.append(getattr(axes, f"get_{which}label")())

    monkeypatch.setattr(charts, "end_shares", keep)
    return found


def test_a_page_of_one_run_says_what_its_files_say(own_run, capsys, drawn, ended):
    report(own_run)
    page = read_page(own_run / "report.html")
    epochs = logged(own_run)
    config = json.loads((own_run / "config.json").read_text())
    best = epochs[config["best_epoch"] - 1]
    figures = dict(page.tables[0][1:])
    assert figures["best epoch"] == f"{config['best_epoch']} of {len(epochs)}"
    assert figures["validation accuracy"] == f"{best['eval_accuracy']:.4f}"
    assert figures["validation cross-entropy, nats"] == f"{best['eval_loss']:.4f}"
    assert figures["training loss, all terms"] == f"{best['loss']:.4f}"
    assert figures["training rows"] == str(config["train_rows"])
    printed = capsys.readouterr().out
    assert f"{best['eval_accuracy']:.4f}" in printed and "report.html" in printed
    assert sorted(ended) == sorted(y for y, _ in drawn if y.startswith("share"))
    curves = next(found for label, found in drawn if label == "mean, nats")
    for side, metric in (("training", "loss/ce"), ("validation", "eval_loss")):
        x, y, _, _ = curves[side]
        assert list(x) == [row["epoch"] for row in epochs]
        assert list(y) == [row[metric] for row in epochs]
    # What report.md says stands there, too.
    told = (own_run / "report.md").read_text()
    fingerprint = re.search(r"SHA-256 of the files \| (\w+)", told)[1]
    assert any(fingerprint in row for table in page.tables for row in table)
    assert {"Data", "Parameters"} <= set(page.headings)


def test_the_same_run_has_the_same_page(own_run, capsys):
    report(own_run)
    before = (own_run / "report.html").read_bytes()
    assert "report.html\n" in capsys.readouterr().out
    report(own_run)
    assert "report.html (replaced)\n" in capsys.readouterr().out
    assert (own_run / "report.html").read_bytes() == before


def test_confidence_is_drawn_in_the_bins_of_the_validation_rows(run, drawn, tmp_path):
    report(run.run.path, "--output", tmp_path / "x.html")
    ((name, (confidence, accuracy, _, _)),) = drawn[-1][1].items()
    config = run.run.config()
    rows = np.array([bin[0] for bin in config["bins"]])
    assert rows.sum() == config["val_rows"] and (rows > 0).all()
    right = run.fit.history[run.fit.best_epoch - 1]["eval_accuracy"]
    assert (rows @ accuracy) / rows.sum() == pytest.approx(right)
    gap = rows @ np.abs(accuracy - confidence) / rows.sum()
    assert name.endswith(f"ECE {gap:.3f}")


def test_runs_stand_side_by_side(own_run, noisy_run, tmp_path, drawn):
    output = tmp_path / "both.html"
    report(own_run, noisy_run, "--output", output)
    page = read_page(output)
    names = page.tables[0][0][1:]
    assert len(set(names)) == 2 and all(name.endswith("run") for name in names)
    accuracy = dict((row[0], row[1:]) for row in page.tables[0][1:])
    for path, shown in zip(
        (own_run, noisy_run), accuracy["validation accuracy"], strict=True
    ):
        best = json.loads((path / "config.json").read_text())["best_epoch"]
        assert shown == f"{logged(path)[best - 1]['eval_accuracy']:.4f}"
    # Only what differs, and all of it.
    flags = [
        json.loads((path / "config.json").read_text())["finetune"]
        for path in (own_run, noisy_run)
    ]
    differ = {name for name in flags[0] if flags[0][name] != flags[1][name]}
    shown = {row[0] for row in page.tables[1][1:]}
    assert shown == differ - {"output"} | {"SHA-256 of the data"}
    assert {"pref_noise", "pref_weight", "epochs"} <= shown
    overlaid = [curves for label, curves in drawn if label == "mean, nats"]
    assert all(set(curves) == set(names) for curves in overlaid) and len(overlaid) == 2
    assert "Not all of them were judged by the same" in output.read_text()
    assert not (own_run / "report.html").exists()


def test_runs_that_differ_in_nothing_say_so(own_run, tmp_path):
    other = shutil.copytree(own_run, tmp_path / "other")
    report(own_run, other)
    text = (own_run / "report.html").read_text()
    assert "None: the same flags" in text and "Not all of them" not in text


def test_learned_trust_is_shown_by_source_and_names_are_escaped(noisy_run, tmp_path):
    folder = shutil.copytree(noisy_run, tmp_path / "<script>x")
    report(folder)
    text = (folder / "report.html").read_text()
    page = read_page(folder / "report.html")
    trusted = json.loads((folder / "config.json").read_text())["reliability"]
    (table,) = [t for t in page.tables if t[0][0] == "source"]
    assert dict(table[1:]) == {name: f"{value:.3f}" for name, value in trusted.items()}
    assert HOSTILE in dict(table[1:]) and "<script" not in text and "<b>" not in text


def _leaderboard(rows):
    """Mean and half a Student interval of each objective and beta."""
    groups = {}
    for row in rows:
        if not row["diverged"]:
            key = row["pref_objective"], row["pref_beta"]
            groups.setdefault(key, []).append(row)
    found = {}
    for key, members in groups.items():
        for name in ("eval_accuracy", "eval_macro_f1", "eval_loss", "rewards/margins"):
            values = [float(row[name]) for row in members]
            mean, error = statistics.fmean(values), stats.sem(values)
            half = error * stats.t.ppf(0.975, len(values) - 1)
            digits = 4 if abs(mean) < 10 else 2
            text = f"{mean:.{digits}f} +- {half:.{digits}f}"
            found.setdefault(key, []).append(text)
    return found


def test_a_page_of_a_sweep_is_a_leaderboard_with_intervals(swept, capsys, drawn, ended):
    report(swept)
    with (swept / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = _leaderboard(rows)
    page = read_page(swept / "report.html")
    head, *body = page.tables[0]
    assert head[:3] == ["pref_objective", "pref_beta", "accuracy"]
    assert {tuple(row[:2]): row[2:6] for row in body} == expected
    means = [float(row[2].split()[0]) for row in body]
    assert means == sorted(means, reverse=True)
    assert sum(int(row[6]) for row in body) == 13
    assert sum(int(row[7]) for row in body) == 1
    assert page.tables[-1][1][-2:] == ["9", "loss is nan at step 3"]
    out = capsys.readouterr().out
    assert body[0][2].split()[0] in out and "best of 6 settings" in out
    assert "mean +- half of its 95 % interval" in out
    assert ended == ["validation accuracy"] * 2
    # Accuracy by the one numeric axis, a line for each objective.
    ((label, curves),) = drawn
    assert label == "validation accuracy" and set(curves) == {"sigmoid", "ipo"}
    for objective, (x, mean, low, high) in curves.items():
        assert x == [0.5, 2.0, 8.0]
        for beta, *found in zip(x, mean, low, high, strict=True):
            values = [
                float(row["eval_accuracy"])
                for row in rows
                if row["pref_objective"] == objective
                and float(row["pref_beta"]) == beta
                and not row["diverged"]
            ]
            half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
            middle = statistics.fmean(values)
            np.testing.assert_allclose(found, [middle, middle - half, middle + half])


def test_sweeps_and_runs_share_a_page(swept, own_run, tmp_path):
    other = shutil.copytree(swept, tmp_path / "t")
    output = tmp_path / "all.html"
    report(swept, own_run, other, "--output", output)
    page = read_page(output)
    assert {"Training", "Leaderboard"} <= set(page.headings)
    (board,) = [table for table in page.tables if "macro-F1" in table[0]]
    assert board[0][:3] == ["pref_objective", "pref_beta", "sweep"]
    assert {row[2] for row in board[1:]} == {"s", "t"}


def test_how_a_run_was_watched_is_no_setting_of_it():
    made = {"best_epoch": 1, "data_fingerprint": "0"}
    runs = [
        Told(name, made | {"finetune": flags}, [], "")
        for name, flags in (
            ("a", {"output": "a", "profile": False, "compile_cache": True, "lr": 1.0}),
            ("b", {"output": "b", "profile": True, "compile_cache": False, "lr": 2.0}),
        )
    ]
    assert differing(runs) == {"lr": [1.0, 2.0]}


def test_settings_that_follow_from_others_do_not_vary():
    plain = dict.fromkeys(COLUMNS, "")
    row = lambda **changes: plain | changes
    rows = [
        row(pref_objective="ipo", pref_beta="0.1", seed="0"),
        row(pref_objective="ipo", pref_beta="0.1", seed="1"),
        row(pref_objective="dpo", pref_beta="2.0", seed="0"),
    ]
    assert varying(rows) == ["pref_objective"]
    rows.append(row(pref_objective="dpo", pref_beta="0.1", seed="0"))
    assert varying(rows) == ["pref_objective", "pref_beta"]
    # What was chosen is named, not the smoothing that it takes the place of.
    chosen = [row(label_smoothing="0.05")]
    chosen.append(row(gce_q="0.7", label_smoothing="0.0"))
    assert varying(chosen) == ["gce_q"]


def test_many_lines_have_a_panel_for_each_objective(drawn):
    """And a learning rate looks the same in all of them."""
    plain = dict.fromkeys(COLUMNS, "")
    rows = [
        plain
        | {"pref_objective": objective, "pref_beta": beta, "lr": lr, "seed": seed}
        | {"eval_accuracy": f"0.{70 + number}{seed}"}
        for number, objective in enumerate(("ipo", "dpo", "cpo"))
        for beta in ("0.5", "2")
        for lr in ("0.01", "0.1")
        for seed in ("0", "1")
    ]
    body = "".join(sweep_sections(rows))
    by_beta, by_lr = drawn[:3], drawn[3:]
    assert [set(curves) for _, curves in by_beta] == [{"lr 0.01", "lr 0.1"}] * 3
    assert len(by_lr) == 3 and "Accuracy by lr" in body
    _, mean, low, high = by_beta[0][1]["lr 0.01"]
    np.testing.assert_allclose(mean, 0.7205)  # The best objective comes first.
    half = 0.0005 * stats.t.ppf(0.975, 1)
    np.testing.assert_allclose(high - low, 2 * half)
    places = [body.index(f">{name}<") for name in ("cpo", "dpo", "ipo")]
    assert places == sorted(places)


def test_a_sweep_of_which_nothing_came_through(swept, tmp_path):
    folder = shutil.copytree(swept, tmp_path / "s")
    with (folder / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["diverged"]]
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    report(folder)
    page = read_page(folder / "report.html")
    assert "Runs that diverged" in page.headings and "svg" not in page.tags


def test_a_run_tuned_on_preferences(own_run, tmp_path, drawn):
    answers = [answer for answer, _ in QUESTIONS.values()]
    rows = [
        {"prompt": f"{question} {i}", "chosen": answer, "rejected": answers[i]}
        for answer, question in QUESTIONS.values()
        for i in range(4)
        if answers[i] != answer
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = FinetuneConfig(
        preferences=str(pairs),
        weights=str(own_run),
        output=str(tmp_path / "tuned"),
        val_split=0.3,
        epochs=3,
    )
    tuned = tune_preferences(config)
    report(tuned.run.path, own_run)
    page = read_page(tuned.run.path / "report.html")
    assert {"Training", "Tuning on preferences"} <= set(page.headings)
    (table,) = [t for t in page.tables if t[0] == ["", "tuned"] and len(t) > 5]
    best = tuned.fit.history[tuned.fit.best_epoch - 1]
    shown = dict(table[1:])["pairs that rewards order, validation"]
    assert shown == f"{best['eval_reward_accuracy']:.4f}"
    shares = [curves for label, curves in drawn if label == "share of pairs"]
    assert list(shares[0]["validation"][1]) == [
        row["eval_reward_accuracy"] for row in tuned.fit.history
    ]


def _break(name, folder, run, swept):
    """A way to ask for a page that cannot be, and what is said of it."""
    if name == "nothing":
        return ["--output", "x.html"], "--runs is missing"
    if name == "no folder":
        return ["nowhere"], "nowhere: no such folder"
    if name == "neither":
        (folder / "n").mkdir()
        return ["n"], "n is neither a run (no config.json) nor a sweep"
    if name == "twice":
        return [run, f"{run}/."], "are the same: give each once"
    if name == "unfinished":
        own = shutil.copytree(run, folder / "run")
        config = json.loads((own / "config.json").read_text())
        del config["best_epoch"]
        (own / "config.json").write_text(json.dumps(config))
        return ["run"], "run is not finished"
    if name == "no log":
        own = shutil.copytree(run, folder / "run")
        (own / "metrics.jsonl").unlink()
        return ["run"], "run has no metrics.jsonl"
    if name == "short log":
        own = shutil.copytree(run, folder / "run")
        (own / "metrics.jsonl").write_text('{"summary": true, "epoch": 1}\n')
        return ["run"], "does not tell of epoch"
    if name == "in a run":
        return [run, "--output", f"{run}/x.html"], "lies in a run directory"
    if name == "no place":
        return [run, "--output", "no/x.html"], "--output no/x.html: no such folder"
    table = shutil.copytree(swept, folder / "s") / "results.csv"
    text = table.read_text()
    if name == "over a table":
        return ["s", "--output", "s/results.csv"], "would replace what is read"
    if name == "other version":
        table.write_text(text.replace("eval_macro_f1", "f1", 1))
        return ["s"], "has other columns than this version writes"
    if name == "no number":
        rows = list(csv.reader(text.splitlines()))
        rows[1][COLUMNS.index("eval_accuracy")] = "high"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return ["s"], "results.csv:2: eval_accuracy is no number: 'high'"
    table.write_text(text.splitlines()[0] + "\n")
    return ["s"], "has no run yet"


@pytest.mark.parametrize(
    "name",
    [
        "nothing",
        "no folder",
        "neither",
        "twice",
        "unfinished",
        "no log",
        "short log",
        "in a run",
        "no place",
        "over a table",
        "other version",
        "no number",
        "no row",
    ],
)
def test_bad_input_is_one_line(name, run, swept, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv, message = _break(name, tmp_path, run.run.path, swept)
    assert main(["report", *map(str, argv)]) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.rglob("x.html"))
    assert not list(tmp_path.rglob(".*"))


def test_it_imports_no_jax(run, tmp_path):
    code = (
        "import sys; from prefchat_jax.cli.main import main; "
        f"code = main(['report', {str(run.run.path)!r}, '--output', 'x.html']); "
        "assert not {'jax', 'optax', 'orbax'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "x.html").exists()


def test_markdown_of_a_report_is_html():
    text = (
        "# a <i>\n\nfirst\nsecond & third\n\n```\nx --y '<z>'\n\nw\n```\n\n"
        "| | n |\n|---|---:|\n| a\\|b | 1 |\n"
    )
    made = from_markdown(text)
    page = Page(made)
    assert page.headings == ["a <i>"] and page.tables == [[["", "n"], ["a|b", "1"]]]
    assert "<p>first second &amp; third</p>" in made
    assert "<pre><code>x --y &#x27;&lt;z&gt;&#x27;\n\nw</code></pre>" in made
