import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling.charts import (
    Whisker,
    accuracy_plot,
    histogram,
    nice_ticks,
    percent,
    plain,
    reliability_plot,
    risk_coverage_plot,
    share_bar,
)


@pytest.mark.parametrize(
    ("share", "written"),
    [
        (0, "0 %"),
        (0.034, "3.4 %"),
        (0.05, "5 %"),
        (0.634, "63 %"),
        (0.9962, "99.6 %"),
        (1, "100 %"),
        (-0.2, "-20 %"),
    ],
)
def test_shares_are_written_as_people_read_them(share: float, written: str) -> None:
    assert percent(share) == written


@pytest.mark.parametrize(
    ("value", "written"), [(0, "0"), (12, "12"), (3.26, "3.3"), (0.04512, "0.045"), (1234, "1,234")]
)
def test_numbers_are_written_without_needless_digits(value: float, written: str) -> None:
    assert plain(value) == written


@settings(deadline=None)
@given(st.floats(-1000, 1000), st.floats(0.001, 1e6), st.integers(3, 15))
def test_ticks_cover_the_range_evenly_and_are_few(low: float, span: float, at_most: int) -> None:
    ticks = nice_ticks(low, low + span, at_most=at_most)
    assert 2 <= len(ticks) <= at_most + 2
    assert ticks[0] <= low + 1e-6 * span and ticks[-1] >= low + span - 1e-6 * span
    steps = [b - a for a, b in pairwise(ticks)]
    assert max(steps) - min(steps) <= 1e-6 * max(steps) + 1e-9


def test_a_calibrated_point_lies_on_the_diagonal() -> None:
    svg = reliability_plot([Whisker(0.6, 0.6, 0.5, 0.7, 40)])
    (line,) = re.findall(r'class="reference" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', svg)
    x1, y1, x2, y2 = map(float, line)
    (point,) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    x, y = map(float, point)
    assert (x - x1) / (x2 - x1) == pytest.approx(0.6, abs=1e-3)
    assert (y - y1) / (y2 - y1) == pytest.approx(0.6, abs=1e-3)
    assert "60 % right, n = 40" in svg


def test_every_value_is_in_one_bar_of_the_histogram() -> None:
    values = [float(v) for v in range(100)] + [1000.0]
    svg = histogram(values, unit="s", name="time")
    counts = [int(count) for count in re.findall(r"<title>[^<]*: (\d+)</title>", svg)]
    assert sum(counts) == 101
    assert "to more s" in svg and "median 50 s" in svg


def test_the_allowed_risk_is_drawn_where_it_is_given() -> None:
    points = [(0.5, 0.01), (1.0, 0.2)]
    assert "5 % allowed" in risk_coverage_plot(points, limit=0.05)
    assert "allowed" not in risk_coverage_plot(points)


def test_rounds_show_value_and_n() -> None:
    svg = accuracy_plot(
        [Whisker(0, 0.72, 0.6, 0.8, 50), Whisker(1, 0.9, None, None, 60)], ["round 1", "round 2"]
    )
    assert ">72 %<" in svg and ">n = 60<" in svg and svg.count('class="whisker"') == 1


def test_a_stacked_bar_places_its_parts_side_by_side() -> None:
    svg = share_bar([(0.25, "people"), (0.5, "automatic")])
    assert 'class="automatic" x="25.00" y="0" width="50.00"' in svg
