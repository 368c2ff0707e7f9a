"""Small SVG charts for the report: plain functions from numbers to markup, coloured by CSS classes of the
page.

No chart carries a script, a link or a style of its own, so the page decides about light, dark and print.
Everything that comes from outside is escaped. Charts say what they show in `aria-label` and repeat single
values in `<title>`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 48, 24, 18, 46


@dataclass(frozen=True)
class Whisker:
    """A share with its interval, at a position or in a category.

    Attributes:
        x: position in [0, 1], or the index of a category.
        value: the share, in [0, 1].
        low: lower end; None for no whisker.
        high: upper end; None for no whisker.
        n: records behind it.
    """

    x: float
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class _Frame:
    """Maps data to the drawing: x from [x_low, x_high] and y from [y_low, y_high] into the plot area."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def reliability_plot(bins: Sequence[Whisker]) -> str:
    """Promised against observed share of right suggestions; the diagonal is a perfectly calibrated model.

    Args:
        bins: x is the mean confidence of the bin, value the share that was right.
    """
    frame = _Frame(0.0, 1.0, 0.0, 1.0)
    diagonal = _line(frame, (0.0, 0.0), (1.0, 1.0), "reference")
    marks = "".join(
        _whisker(frame, bin_, f"confidence {percent(bin_.x)}: {percent(bin_.value)} right, n = {bin_.n}")
        for bin_ in bins
    )
    return _chart(
        "Reliability: share of right suggestions against confidence",
        _grid(frame, x_ticks=_FIFTHS, y_ticks=_FIFTHS, x_name="confidence shown", y_name="really right")
        + diagonal
        + marks,
    )


def risk_coverage_plot(points: Sequence[tuple[float, float]], *, limit: float | None = None) -> str:
    """Share of wrong labels among the most confident records, against the share of records kept.

    Args:
        points: (coverage, risk), coverage increasing.
        limit: allowed share of wrong labels, drawn as a line; None for none.
    """
    highest = max([risk for _, risk in points] + [limit or 0.0, 0.01])
    ticks = nice_ticks(0.0, highest)
    frame = _Frame(0.0, 1.0, 0.0, ticks[-1])
    path = "".join(
        f"{'M' if index == 0 else 'L'}{frame.x(coverage):.1f} {frame.y(risk):.1f}"
        for index, (coverage, risk) in enumerate(points)
    )
    last = f"L{frame.x(points[-1][0]):.1f} {frame.y(0):.1f}L{frame.x(points[0][0]):.1f} {frame.y(0):.1f}Z"
    allowed = ""
    if limit is not None:
        allowed = _line(frame, (0.0, limit), (1.0, limit), "limit") + _text(
            LEFT + 6, frame.y(limit) - 5, f"{percent(limit)} allowed", css="note"
        )
    return _chart(
        "Risk and coverage: share of wrong labels among the most confident records",
        _grid(
            frame, x_ticks=_FIFTHS, y_ticks=ticks, x_name="records kept, most confident first", y_name="wrong"
        )
        + f'<path class="area" d="{path}{last}"/><path class="curve" d="{path}"/>'
        + allowed,
    )


def accuracy_plot(rounds: Sequence[Whisker], names: Sequence[str]) -> str:
    """Accuracy of each round with its interval.

    Args:
        rounds: x is 0, 1, 2, ...
        names: what to write under each round.
    """
    lowest = min(mark.value if mark.low is None else mark.low for mark in rounds)
    floor = max(0.0, math.floor((lowest - 0.02) * 10) / 10)
    floor = min(floor, 0.8)
    ticks = [tick for tick in nice_ticks(floor, 1.0) if tick <= 1.0]
    frame = _Frame(-0.5, len(rounds) - 0.5, floor, 1.0)
    curve = "".join(
        f"{'M' if index == 0 else 'L'}{frame.x(mark.x):.1f} {frame.y(mark.value):.1f}"
        for index, mark in enumerate(rounds)
    )
    marks = "".join(
        _whisker(frame, mark, f"{name}: {percent(mark.value)}, n = {mark.n}")
        + _text(frame.x(mark.x) + 10, frame.y(mark.value) + 4, percent(mark.value), css="value")
        + _text(frame.x(mark.x), HEIGHT - BOTTOM + 17, name, css="tick middle")
        + _text(frame.x(mark.x), HEIGHT - BOTTOM + 32, f"n = {mark.n}", css="note middle")
        for mark, name in zip(rounds, names, strict=True)
    )
    return _chart(
        "Accuracy of each round with its interval",
        _grid(frame, x_ticks=(), y_ticks=ticks, x_name="", y_name="right")
        + f'<path class="curve faint" d="{curve}"/>'
        + marks,
    )


def histogram(values: Sequence[float], *, unit: str, name: str) -> str:
    """Counts of a duration in at most 14 bins; what exceeds the 97 % quantile is gathered in the last bin.

    Args:
        values: at least one, 0 or more.
        unit: written on the axis, e.g. "s".
        name: what is counted, for the description.
    """
    ordered = sorted(values)
    median = quantile(ordered, 0.5)
    cut = max(quantile(ordered, 0.97), 1e-9)
    ticks = nice_ticks(0.0, cut, at_most=14)
    step = ticks[1] - ticks[0]
    bins = len(ticks) - 1
    counts = [0] * bins
    for value in ordered:
        counts[min(int(value / step), bins - 1)] += 1
    y_ticks = nice_ticks(0.0, float(max(counts)))
    frame = _Frame(0.0, ticks[-1], 0.0, y_ticks[-1])
    bars = "".join(
        f'<rect class="bar" x="{frame.x(ticks[index]) + 1:.1f}" y="{frame.y(count):.1f}" '
        f'width="{frame.x(step) - frame.x(0) - 2:.1f}" height="{frame.y(0) - frame.y(count):.1f}">'
        f"<title>{_bin_name(ticks, index, unit, ordered[-1])}: {count}</title></rect>"
        for index, count in enumerate(counts)
    )
    shown = [tick for index, tick in enumerate(ticks) if index % max(1, bins // 6) == 0]
    middle = _line(frame, (median, 0.0), (median, y_ticks[-1]), "reference") + _text(
        frame.x(median) + 5, TOP + 10, f"median {plain(median)} {unit}", css="note"
    )
    return _chart(
        f"Histogram: {name}",
        _grid(
            frame, x_ticks=shown, y_ticks=y_ticks, x_name=f"{name} ({unit})", y_name="records", as_share=False
        )
        + bars
        + middle,
    )


def share_bar(parts: Sequence[tuple[float, str]]) -> str:
    """A horizontal stacked bar for a table cell.

    Args:
        parts: (share of the full width in [0, 1], CSS class), left to right.
    """
    rects = []
    start = 0.0
    for share, css in parts:
        rects.append(
            f'<rect class="{escape(css)}" x="{100 * start:.2f}" y="0" width="{100 * share:.2f}" height="10"/>'
        )
        start += share
    return (
        '<svg class="sharebar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" x="0" y="0" width="100" height="10"/>{"".join(rects)}</svg>'
    )


def interval_bar(mark: Whisker, *, low: float, high: float) -> str:
    """A point with its whisker on a small scale, for a table cell.

    Args:
        mark: the value; `x` is not used.
        low: left end of the scale.
        high: right end of the scale; 0 is marked where it lies in between.
    """

    def x(value: float) -> float:
        return 6 + 188 * (min(max(value, low), high) - low) / (high - low)

    zero = f'<line class="axis" x1="{x(0):.1f}" y1="2" x2="{x(0):.1f}" y2="22"/>' if low < 0 < high else ""
    whisker = ""
    if mark.low is not None and mark.high is not None:
        whisker = f'<line class="whisker" x1="{x(mark.low):.1f}" y1="12" x2="{x(mark.high):.1f}" y2="12"/>'
    return (
        '<svg class="intervalbar" viewBox="0 0 200 24" aria-hidden="true">'
        f'<line class="axis" x1="6" y1="12" x2="194" y2="12"/>{zero}{whisker}'
        f'<circle class="point" cx="{x(mark.value):.1f}" cy="12" r="4.5"/></svg>'
    )


def nice_ticks(low: float, high: float, *, at_most: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, in steps of 1, 2 or 5 times a power of ten.

    >>> nice_ticks(0.0, 0.13)
    [0.0, 0.05, 0.1, 0.15]
    """
    span = max(high - low, 1e-9)
    magnitude = 10.0 ** math.floor(math.log10(span / at_most))
    step = next(
        magnitude * factor for factor in (1, 2, 5, 10, 20) if span / (magnitude * factor) <= at_most - 0.999
    )
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def percent(share: float) -> str:
    """A share as people read it: 0.634 is "63 %", 0.034 "3.4 %", 0.9962 "99.6 %"."""
    value = 100 * share
    fine = 0 < abs(value) < 9.95 or 99 < value < 100
    written = f"{value:.1f}" if fine else f"{value:.0f}"
    return f"{written.removesuffix('.0')} %"


def plain(value: float) -> str:
    """A number without needless digits: 12.0 is "12", 3.26 is "3.3", 0.04512 is "0.045"."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def quantile(ordered: Sequence[float], share: float) -> float:
    """Quantile of sorted values by linear interpolation; at least one value."""
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


_FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def _chart(description: str, inside: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(description)}">{inside}</svg>'
    )


def _grid(
    frame: _Frame,
    *,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_name: str,
    y_name: str,
    as_share: bool = True,
) -> str:
    write: Callable[[float], str] = percent if as_share else plain
    parts = []
    for tick in y_ticks:
        css = "axis" if tick == frame.y_low else "grid"
        parts.append(_line(frame, (frame.x_low, tick), (frame.x_high, tick), css))
        parts.append(_text(LEFT - 7, frame.y(tick) + 4, write(tick), css="tick end"))
    for tick in x_ticks:
        parts.append(_text(frame.x(tick), HEIGHT - BOTTOM + 17, write(tick), css="tick middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, css="name middle"))
    parts.append(_text(LEFT + 6, TOP - 5, y_name, css="name"))
    return "".join(parts)


def _whisker(frame: _Frame, mark: Whisker, title: str) -> str:
    x = frame.x(mark.x)
    whisker = ""
    if mark.low is not None and mark.high is not None:
        low, high = frame.y(max(mark.low, frame.y_low)), frame.y(min(mark.high, frame.y_high))
        whisker = (
            f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}'
            f'M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"/>'
        )
    point = f'<circle class="point" cx="{x:.1f}" cy="{frame.y(mark.value):.1f}" r="4.5"/>'
    return f"<g><title>{escape(title)}</title>{whisker}{point}</g>"


def _line(frame: _Frame, start: tuple[float, float], end: tuple[float, float], css: str) -> str:
    return (
        f'<line class="{css}" x1="{frame.x(start[0]):.1f}" y1="{frame.y(start[1]):.1f}" '
        f'x2="{frame.x(end[0]):.1f}" y2="{frame.y(end[1]):.1f}"/>'
    )


def _text(x: float, y: float, text: str, *, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>' if text else ""


def _bin_name(ticks: Sequence[float], index: int, unit: str, largest: float) -> str:
    last = index == len(ticks) - 2 and largest > ticks[-1]
    upper = "more" if last else plain(ticks[index + 1])
    return escape(f"{plain(ticks[index])} to {upper} {unit}")
