import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patchword.html.page import number, percent, table
from patchword.reports.curves import Curve, Panel, curve_figure, save_panels, thinned, ticks


def lines(figure):
    found = re.findall(r'polyline[^>]*points="([^"]*)"', figure)
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]


def test_points_stand_where_their_values_say():
    [line] = lines(curve_figure("t", [Curve("a", [0, 1, 2], [0.0, 10.0, 5.0])], "step"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 > y2 > y1
    assert y0 - y2 == pytest.approx(y2 - y1, abs=0.2), "5 is in the middle of 0 and 10, and up is more"


def test_a_gap_interrupts_the_line(parse):
    figure = curve_figure(
        "t", [Curve("a", range(5), [1.0, 2.0, math.nan, 2.0, 1.0]), Curve("b", [0], [math.inf])], "step"
    )
    assert [len(line) for line in lines(figure)] == [2, 2]
    assert "b" not in "".join(parse(figure).text).split(), "a curve without a finite value is left out"
    assert curve_figure("t", [Curve("b", [0], [math.nan])], "step") == ""


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(allow_nan=True)), min_size=1, max_size=12))
def test_any_values_can_be_drawn(points):
    figure = curve_figure("t", [Curve("a", [x for x, _ in points], [y for _, y in points])], "x")
    for line in lines(figure):
        for x, y in line:
            assert -1 <= x <= 461 and -1 <= y <= 231


def test_thinning_keeps_means_and_ends():
    curve = thinned(Curve("a", range(1000), [float(i) for i in range(1000)]), 100)
    assert len(curve.x) == 100 and curve.x == curve.y and curve.x[0] == 4.5


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (97, 103, [98, 100, 102]), (-2e-7, 1e-7, None)],
)
def test_ticks_are_round(low, high, expected):
    found = ticks(low, high)
    assert expected is None or found == pytest.approx(expected)
    assert all(low <= tick <= high for tick in found) and 3 <= len(found) <= 7


def test_figures_for_papers(tmp_path):
    curves = [Curve("$\\frac{", [0, 1, 2], [1, math.nan, 2]), Curve("b", [0, 2], [2, 1])]
    save_panels(tmp_path / "a.png", [Panel("a $title", curves, "loss")], "step")
    with Image.open(tmp_path / "a.png") as figure:
        assert figure.size == (1040, 640)


def test_numbers_read_well():
    shown = [number(value) for value in (0, 3, 1234567, 0.0004, 1e-5, 0.123456, 2.5e12, math.nan)]
    assert shown == ["0", "3", "1,234,567", "0.0004", "1e-05", "0.1235", "2.500e+12", "not finite"]
    assert [percent(value) for value in (0, 0.004, 0.0996, 0.5)] == ["0 %", "0.4 %", "10 %", "50 %"]
    assert 'class="number">1.5<' in table(["a"], [[1.5], [None]]) and "–" in table(["a"], [[1.5], [None]])
