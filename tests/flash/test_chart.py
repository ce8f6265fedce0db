"""Charts read back as XML: points where arithmetic puts them, ticks, legend, escapes."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from edgellm.flash.chart import PLOT_HEIGHT, PLOT_WIDTH, Axis, Series, line_chart

SVG = "{http://www.w3.org/2000/svg}"
X, Y = Axis("bytes", log=True, ticks=(10, 100, 1000)), Axis("MB/s", log=True)


def parse(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    return root


def points(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    lines = (line.get("points", "") for line in root.iter(f"{SVG}polyline"))
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def texts(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_points_lie_where_their_logarithms_are():
    root = parse(line_chart("t", [("p", [Series("a", [10, 100, 1000], [1, 10, 10_000])])], X, Y))
    assert points(root) == [
        [(0, PLOT_HEIGHT), (PLOT_WIDTH / 2, PLOT_HEIGHT * 3 / 4), (PLOT_WIDTH, 0)],
    ]
    assert len(list(root.iter(f"{SVG}circle"))) == 3 + 1  # and one in the legend


def test_points_on_linear_axes_lie_in_proportion():
    root = parse(line_chart("t", [("p", [Series("a", [0, 5, 10], [0, 2, 8])])], Axis("x"), Axis("y")))
    assert points(root) == [[(0, PLOT_HEIGHT), (PLOT_WIDTH / 2, PLOT_HEIGHT * 0.75), (PLOT_WIDTH, 0)]]
    assert {"0", "2", "4", "6", "8", "10"} <= set(texts(root))


def test_panels_share_their_scales_and_each_has_its_legend():
    series = [[Series(f"depth {d}", [10, 1000], [d, 100 * d]) for d in (1, 2)] for _ in range(2)]
    series[1][0] = Series("low", [10, 100], [0.1, 1])
    root = parse(line_chart("t", [("above", series[0]), ("below", series[1])], X, Y))
    lines = points(root)
    assert len(lines) == 4
    assert lines[1] == lines[3]
    assert texts(root).count("depth 2") == 2
    assert {"t", "above", "below", "depth 1", "low", "bytes", "MB/s"} <= set(texts(root))


def test_lines_of_a_panel_differ_in_colour():
    series = [Series(str(i), [1, 2], [i, i]) for i in range(1, 9)]
    root = parse(line_chart("t", [("p", series)], Axis("x"), Axis("y")))
    assert len({line.get("stroke") for line in root.iter(f"{SVG}polyline")}) == 8


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([20, 2400], ["20", "50", "100", "200", "500", "1000", "2000", "5000"]),
        ([3, 3], ["2", "5"]),
        ([1, 1e9], [f"{10.0**i:g}" for i in range(10)]),
        ([0.5, 0.9], ["0.5", "1"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round_and_few(values, ticks):
    root = parse(line_chart("t", [("p", [Series("a", [10, 1000], values)])], X, Y))
    numbers = [text for text in texts(root) if re.fullmatch(r"[\d.e+]+", text)]
    assert numbers == [*ticks, "10", "100", "1000"]
    for line in points(root):
        assert all(0 <= x <= PLOT_WIDTH and 0 <= y <= PLOT_HEIGHT for x, y in line)


def test_ticks_are_written_as_the_axis_says():
    x = Axis("bytes", log=True, write=lambda v: f"{v / 1024:g}K", ticks=(4096, 8192))
    root = parse(line_chart("t", [("p", [Series("a", [4096, 8192], [1, 2])])], x, Y))
    assert {"4K", "8K"} <= set(texts(root))


def test_names_are_escaped():
    root = parse(line_chart("<t> & co", [("a<b", [Series('"q"', [10, 20], [1, 2])])], X, Y))
    assert {"<t> & co", "a<b", '"q"'} <= set(texts(root))


def test_it_follows_the_readers_colour_scheme():
    style = parse(line_chart("t", [("p", [Series("a", [10], [1])])], X, Y)).find(f"{SVG}style")
    assert "prefers-color-scheme:dark" in (style.text or "")


@pytest.mark.parametrize("values", [[0, 1], [-1, 1], [math.nan, 1], [math.inf, 1]])
def test_what_an_axis_does_not_have_is_refused(values):
    with pytest.raises(ValueError, match="the axis 'MB/s' needs finite values"):
        line_chart("t", [("p", [Series("a", [10, 20], values)])], X, Y)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="axis 'bytes'"):
        line_chart("t", [("p", [])], X, Y)
