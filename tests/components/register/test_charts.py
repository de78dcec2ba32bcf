import re
from xml.etree import ElementTree

import pytest

from components.register.charts import COLOURS, GREY, Axis, Bar, Series, bars, histogram, intervals, lines, ticks

X, Y = Axis("epoch"), Axis("AUC")


def texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


def numbers(svg, attribute):
    return [float(found) for found in re.findall(rf'\b{attribute}="(-?[\d.]+)"', svg)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.641, 0.726, [0.64, 0.66, 0.68, 0.7, 0.72, 0.74]),
        (-0.09, 0.05, [-0.1, -0.05, 0, 0.05]),
        (3, 3, [2.8, 2.9, 3.0, 3.1, 3.2]),
        (0, 0, [-0.06, -0.04, -0.02, 0, 0.02, 0.04, 0.06]),
        (0, 12345, [0, 2500, 5000, 7500, 10000, 12500]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_whole_ticks_are_whole():
    assert ticks(1, 3, whole=True) == [1, 2, 3]
    assert ticks(1, 1, whole=True) == [0, 1, 2]
    assert ticks(1, 1000, whole=True) == [0, 200, 400, 600, 800, 1000]


def test_a_reference_takes_no_colour_and_is_dashed():
    points = [(0, 0), (1, 1)]
    svg = lines("roc", [Series("champion", points, reference=True), Series("ctrl", points)], X, Y)
    drawn = re.findall(r'<polyline [^>]*stroke="(#\w+)"([^>]*)/>', svg)
    assert [colour for colour, _ in drawn] == [GREY, COLOURS[0]]
    assert ["dasharray" in rest for _, rest in drawn] == [True, False]


def test_every_point_of_a_line_is_inside():
    svg = lines("curves", [Series("a", [(1, 0.5), (2, 0.9)]), Series("b", [(1, 0.4), (3, 0.45)])], X, Y)
    points = [float(number) for found in re.findall(r'points="([^"]+)"', svg) for number in re.split("[ ,]", found)]
    assert len(re.findall("<polyline", svg)) == 2
    assert all(62 <= x <= 560 - 18 for x in points[::2])
    assert all(34 <= y <= 330 - 48 for y in points[1::2])
    assert {"a", "b", "epoch", "AUC"} <= set(texts(svg))


def test_a_line_without_points_is_left_out():
    svg = lines("curves", [Series("a", []), Series("b", [(1, 0.4)])], X, Y)
    assert "a" not in texts(svg)
    assert svg.count("<circle") == 1
    assert lines("curves", [], X, Y).startswith("<svg")


def test_words_are_escaped():
    svg = bars("<b>", [Bar("<script>alert(1)</script>", 1.0)], Axis("seconds & more", low=0))
    assert "<script>" not in svg
    assert "seconds & more" in texts(svg)


def test_bars_are_as_long_as_their_values():
    svg = bars("seconds", [Bar("a", 2.0), Bar("b", 4.0), Bar("c", 0.0)], Axis("seconds", low=0))
    first, second, third = (float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', svg))
    assert second == pytest.approx(2 * first, abs=0.2)
    assert third == 1.0
    assert re.findall(r'class="figure"[^>]*>([^<]*)', svg) == ["2.0", "4.0", "0.0"]


def test_the_figure_beside_the_longest_bar_has_room():
    svg = bars("seconds", [Bar("x" * 60, 123456.7)], Axis("seconds", low=0))
    right = max(
        x for x, figure in re.findall(r'<text x="([\d.]+)"[^>]*class="figure"[^>]*>([^<]*)', svg) for x in [float(x)]
    )
    assert right + 8 * 7 <= 560
    assert "x" * 29 + "…" in texts(svg)


def test_the_figure_of_a_bar_to_the_left_does_not_meet_the_rows_name():
    svg = bars("lost", [Bar("a name of thirty characters...", -0.003), Bar("b", 0.001)], Axis("lost"), digits=4)
    placed = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)" class="figure">([^<]*)', svg)
    name = float(re.search(r'<text x="([\d.]+)"[^>]*text-anchor="end" >a name', svg)[1])
    assert [(side, figure) for _, side, figure in placed] == [("start", "-0.0030"), ("start", "0.0010")]
    assert all(float(x) > name for x, *_ in placed)


def test_what_rounds_to_nothing_has_no_sign():
    assert ">0.0000</text>" in bars("lost", [Bar("a", -1e-9), Bar("b", 0.001)], Axis("lost"), digits=4)


def test_an_interval_that_holds_zero_is_grey():
    sure, unsure, bare = Bar("sure", 0.02, 0.01, 0.03), Bar("unsure", 0.01, -0.01, 0.03), Bar("bare", 0.01)
    svg = intervals("lift", [sure, unsure, bare], Axis("difference"))
    colours = re.findall(r'<circle [^>]*fill="(#\w+)"', svg)
    assert colours[0] != colours[1] == colours[2]
    assert svg.count('stroke-width="2.5"') == 2


def test_differences_of_nothing_have_a_readable_axis():
    svg = intervals("lift", [Bar("all rows", -1e-9, -2e-9, 1e-9)], Axis("difference"))
    assert "-0.0010" in texts(svg)


def test_bins_of_a_histogram_are_drawn_by_density():
    svg = histogram("tokens", [0, 1, 3], [10, 20], X, Y)
    heights = [float(found) for found in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights[0] == heights[1]
