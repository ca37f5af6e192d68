"""Charts as SVG: axes, numbers, and where a curve's points stand."""

import re

from hypothesis import given
from hypothesis import strategies as st

from gadjax.evaluation import svg
from gadjax.evaluation.results import Histogram

numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)


@given(st.lists(numbers, min_size=1, max_size=5))
def test_an_axis_holds_its_values_in_few_round_ticks(values):
    axis = svg.axis(values)
    slack = 1e-12 + 1e-6 * max(map(abs, values))  # far below what can be seen
    assert axis.low <= min(values) + slack and axis.high >= max(values) - slack
    assert 2 <= len(axis.ticks) <= 8
    labels = [axis.label(tick) for tick in axis.ticks]
    assert len(set(labels)) == len(labels)
    assert all(0 <= axis.share(value) <= 1 for value in values)


def test_numbers_as_people_read_them():
    shown = {0: "0.000", 1234.5: "1,234", 12.34: "12.3", -0.25: "−0.250", 1e-5: "1.00e−05", -0.0004: "−4.00e−04"}
    assert {value: svg.number(value) for value in shown} == shown
    assert svg.number(-0.001, 2) == "0.00"


def test_a_curve_places_steps_in_their_stage():
    stages = {"seqkd": (0, 1000), "gad": (1000, 1010)}
    points = {"before": [svg.Point(0, 4.0)], "seqkd": [svg.Point(500, 3.0, 2.5, 3.5)], "gad": [svg.Point(1010, 2.0)]}
    drawing = svg.curve("label", points, stages, {"gad": "GAD"})
    assert ">1,000<" in drawing and ">1,010<" in drawing and ">GAD<" in drawing
    titles = re.findall("<title>(.*?)</title>", drawing)
    assert titles == ["before, step 0: 4.00", "seqkd, step 500: 3.00 (2.50 to 3.50)", "GAD, step 1,010: 2.00"]
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawing)]
    assert places[0] == 44 and places[0] < places[1] < places[2] == svg.WIDTH - 12


def test_histograms_of_other_bins_compare():
    assert svg.shares_of(Histogram([0, 10, 20], [1, 3]), 10) == [25, 75]
    assert svg.shares_of(Histogram([0, 5, 10, 20], [1, 1, 2]), 10) == [50, 50, 50]
