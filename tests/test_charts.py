import builtins
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from scipy import stats

from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.metrics import mean_interval
from prefchat_jax.reporting import charts

pytest.importorskip("matplotlib")

X = np.arange(1, 6)


def _curves(count):
    return {
        f"name {i}": (X, X * 0.1 + i, X * 0.1 + i - 0.2, X * 0.1 + i + 0.3)
        for i in range(count)
    }


def test_looks_differ_and_none_by_colour_alone():
    looks = [tuple(charts.look(i).values()) for i in range(56)]
    assert len(set(looks)) == 56
    assert len({look[1:] for look in looks[:7]}) == 7


def test_curves_have_bands_where_they_have_intervals():
    axes = charts.new_figure().subplots()
    charts.lines(axes, _curves(1) | {"bare": (X, -X, None, None)}, "step", "loss")
    assert [line.get_ydata().tolist() for line in axes.lines] == [
        (X * 0.1).tolist(),
        (-X).tolist(),
    ]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(-0.1) and corners.max() == pytest.approx(0.8)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss")


@pytest.mark.parametrize("accuracy", [[0.9, 0.99, 1.0], [1.0, 1.0], [0.0, 0.02]])
def test_an_axis_of_shares_ends_where_shares_do(accuracy):
    x, share = np.arange(len(accuracy)), np.array(accuracy)
    axes = charts.new_figure().subplots()
    charts.lines(axes, {"a": (x, share, share - 0.2, share + 0.2)}, "epoch", "share")
    charts.end_shares(axes, "y")
    low, high = axes.get_ylim()
    assert 0 <= low <= share.min() and share.max() <= high <= 1 and low < high
    assert not any(line.get_clip_on() for line in axes.lines)
    assert axes.get_xlim()[0] < 0  # The other axis is as it was.
    charts.leaderboard(axes, ["a"] * len(x), share, share - 1, share + 1, "share")
    charts.end_shares(axes, "x")
    assert axes.get_xlim() == (0, 1)


def test_a_power_is_fitted_on_logarithmic_axes(rng):
    x = np.array([10, 100, 1000, 10_000])
    y = 3 * x**0.7
    assert charts.exponent(x, y) == pytest.approx(0.7)
    assert charts.exponent(x, y * [1, 2, 2, 1]) == pytest.approx(0.7)
    axes = charts.new_figure().subplots()
    charts.powers(axes, {"a": (x, y), "b": (x, y * x)}, "rows", "seconds")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    points, line, *_ = axes.lines
    np.testing.assert_array_equal(points.get_ydata(), y)
    np.testing.assert_allclose(line.get_ydata(), y)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["a: exponent 0.70", "b: exponent 1.70"]


def test_many_names_stand_once_below_the_panels():
    figure = charts.new_figure(2)
    before = figure.get_figheight()
    for axes in figure.subplots(1, 2):
        charts.lines(axes, _curves(9), "step", "loss")
        assert axes.get_legend() is None
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(_curves(9))
    assert figure.get_figheight() > before


def test_the_first_name_of_a_leaderboard_is_on_top():
    axes = charts.new_figure().subplots()
    charts.leaderboard(
        axes, ["a", "b"], [0.9, 0.8], [0.85, np.nan], [0.95, np.nan], "right", 0.7
    )
    places = axes.transData.transform([(0, tick) for tick in axes.get_yticks()])[:, 1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert places[0] > places[1]
    assert axes.lines[1].get_xdata().tolist() == [0.9, 0.8]
    segments = axes.collections[0].get_segments()
    assert segments[0][:, 0].tolist() == [0.85, 0.95]


def _figure(names=("a", "b")):
    figure = charts.new_figure()
    curves = {name: (X, X * i, X * i - 1, X * i + 1) for i, name in enumerate(names)}
    charts.lines(figure.subplots(), curves, "step", "loss")
    return figure


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_figure_has_the_same_bytes(ending, tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.{ending}" for i in range(2)]
    for year, path in enumerate(paths):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(10**9 + 10**8 * year))
        charts.save(_figure(), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second and len(first) < 40_000


def test_an_svg_is_an_element_with_ids_of_its_own():
    names = ("<script>$x$</script>", "_hidden & $y$")
    found = [charts.svg(_figure(names)), charts.svg(_figure())]
    assert found[0] == charts.svg(_figure(names))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in found]
    assert ids[0] and not ids[0] & ids[1]
    for text, own in zip(found, ids, strict=True):
        root = ET.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        assert used and used <= own
    words = [e.text.strip("\u2009") for e in ET.fromstring(found[0]).iter() if e.text]
    assert "loss" in words and set(names) <= set(words)


def test_without_matplotlib_it_is_one_line(monkeypatch):
    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'prefchat-jax\[report\]'"):
        charts.new_figure()


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_interval_over_runs_is_students(count, rng):
    values = rng.normal(size=count)
    mean, low, high = mean_interval(values)
    expected = stats.t.interval(
        0.95, count - 1, loc=values.mean(), scale=stats.sem(values)
    )
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)
    assert mean == pytest.approx(values.mean())


def test_of_one_run_there_is_no_interval():
    assert mean_interval([0.5])[0] == 0.5 and np.isnan(mean_interval([0.5])[1:]).all()
    assert np.isnan(mean_interval([])).all()
