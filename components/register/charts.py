"""Charts as inline SVG: no script, no font, nothing from the network. Sizes are in CSS pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import cycle

COLOURS = ("#1d5ea8", "#c4511a", "#2f7d4f", "#7b4aa3", "#8a6d00", "#5b6770")
GREY = "#5b6770"
WIDTH, HEIGHT = 560, 330
TOP, RIGHT, BOTTOM, LEFT = 34, 18, 48, 62
ROW = 26
LEAST_REACH = 0.001
CHARACTER = 6.7  # mean width of a character of the label font

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line: its name, points in the order of x, and the point to mark if there is one.

    A line for reference is grey and dashed, so that one that lies under it still shows.
    """

    name: str
    points: Sequence[Point]
    marked: Point | None = None
    dots: bool = False
    reference: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis: its title, its range where it is fixed, and whether it counts in whole numbers."""

    title: str
    low: float | None = None
    high: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: a value, and the interval around it where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class _Frame:
    """The plotting area, and the way from values to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    top: float = TOP
    bottom: float = BOTTOM
    right: float = RIGHT
    parts: list[str] = field(default_factory=list)

    def px(self, value: float) -> float:
        return self.left + _share(value, self.x) * (self.width - self.left - self.right)

    def py(self, value: float) -> float:
        return self.height - self.bottom - _share(value, self.y) * (self.height - self.top - self.bottom)

    def line(self, start: Point, end: Point, style: str) -> None:
        (x1, y1), (x2, y2) = start, end
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>')

    def text(self, x: float, y: float, words: str, anchor: str = "middle", style: str = "") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(words)}</text>')

    def svg(self, label: str) -> str:
        head = f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(label)}"'
        return f'{head} width="{self.width:g}" height="{self.height:g}">' + "".join(self.parts) + "</svg>"


def lines(label: str, series: Sequence[Series], x: Axis, y: Axis, diagonal: bool = False) -> str:
    """A chart of one or more lines; `diagonal` draws y = x for reference.

    Args:
        label: What the chart shows, for those who do not see it.
        series: Lines; those without a point are left out.
        x: Horizontal axis.
        y: Vertical axis.
        diagonal: Whether the line y = x is drawn.
    """
    drawn = [one for one in series if one.points]
    xs, ys = ([point[place] for one in drawn for point in one.points] for place in (0, 1))
    x_ticks, y_ticks = (ticks(*_range(values, axis), whole=axis.whole) for values, axis in ((xs, x), (ys, y)))
    frame = _Frame((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    _axes(frame, x, y, x_ticks, y_ticks)
    if diagonal:
        start, end = max(frame.x[0], frame.y[0]), min(frame.x[1], frame.y[1])
        dashes = f'stroke="{GREY}" stroke-dasharray="4 4"'
        frame.line((frame.px(start), frame.py(start)), (frame.px(end), frame.py(end)), dashes)
    for one, style in zip(drawn, _styles(drawn), strict=True):
        _line(frame, one, *style)
    _legend(frame, drawn)
    return frame.svg(label)


def histogram(label: str, edges: Sequence[float], counts: Sequence[float], x: Axis, y: Axis, colour: int = 0) -> str:
    """A histogram: counts [n] of the bins between edges [n + 1], drawn per unit of x as bins may differ in width."""
    density = [count / (high - low) for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)]
    x_ticks, y_ticks = ticks(edges[0], edges[-1], whole=x.whole), ticks(0, max([*density, 1e-9]))
    frame = _Frame((min(edges[0], x_ticks[0]), max(edges[-1], x_ticks[-1])), (0, y_ticks[-1]))
    _axes(frame, x, y, x_ticks, y_ticks)
    for height, low, high in zip(density, edges[:-1], edges[1:], strict=True):
        left, right, top = frame.px(low), frame.px(high), frame.py(height)
        size = f'width="{max(right - left - 1, 0.5):.1f}" height="{frame.py(0) - top:.1f}"'
        frame.parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{COLOURS[colour]}"/>')
    return frame.svg(label)


def bars(label: str, rows: Sequence[Bar], x: Axis, digits: int = 1, width: float = WIDTH) -> str:
    """Horizontal bars from zero, one a row, each with its value written beside it."""
    frame, x_ticks = _rows_frame([row.name for row in rows], [0, *(row.value for row in rows)], x, width)
    frame.right = 64  # room for the figure beside the longest bar
    _row_axis(frame, x, x_ticks, len(rows))
    for place, row in enumerate(rows):
        y, zero, end = frame.top + place * ROW, frame.px(0), frame.px(row.value)
        box = f'x="{min(zero, end):.1f}" y="{y + 5:.1f}" width="{max(abs(end - zero), 1):.1f}" height="{ROW - 10}"'
        frame.parts.append(f'<rect {box} fill="{COLOURS[0]}"/>')
        _row_label(frame, row.name, y)
        # To the right of a bar to the left, too: on its left stands the row's name.
        figure = f"{round(row.value, digits) + 0.0:.{digits}f}"
        frame.text(max(zero, end) + 5, y + 17, figure, "start", 'class="figure"')
    return frame.svg(label)


def intervals(label: str, rows: Sequence[Bar], x: Axis, width: float = WIDTH) -> str:
    """Values with their intervals, one a row, around a line at zero; nothing finer than LEAST_REACH is drawn."""
    reach = [bound for row in rows for bound in (row.value, row.low, row.high) if bound is not None]
    frame, x_ticks = _rows_frame([row.name for row in rows], [-LEAST_REACH, LEAST_REACH, *reach], x, width)
    _row_axis(frame, x, x_ticks, len(rows))
    bottom = frame.height - frame.bottom
    frame.line((frame.px(0), frame.top), (frame.px(0), bottom), f'stroke="{GREY}" stroke-width="1.5"')
    for place, row in enumerate(rows):
        y = frame.top + place * ROW + ROW / 2
        colour = GREY if row.low is None or row.high is None or row.low <= 0 <= row.high else _sign_colour(row.value)
        if row.low is not None and row.high is not None:
            frame.line((frame.px(row.low), y), (frame.px(row.high), y), f'stroke="{colour}" stroke-width="2.5"')
        frame.parts.append(f'<circle cx="{frame.px(row.value):.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>')
        _row_label(frame, row.name, frame.top + place * ROW)
    return frame.svg(label)


def ticks(low: float, high: float, wanted: int = 5, whole: bool = False) -> list[float]:
    """Round numbers that enclose low and high, evenly spaced, about as many as wanted; at least 1 apart if whole."""
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    raw = max((high - low) / wanted, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _range(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    low = min(values, default=0.0) if axis.low is None else axis.low
    high = max(values, default=1.0) if axis.high is None else axis.high
    return low, high


def _share(value: float, bounds: tuple[float, float]) -> float:
    return (value - bounds[0]) / ((bounds[1] - bounds[0]) or 1)


def _tick_words(values: Sequence[float]) -> list[str]:
    """The ticks in words, with as many decimals as their distance needs."""
    step = values[1] - values[0] if len(values) > 1 else 1
    needed = [digits for digits in range(7) if abs(round(step, digits) - step) < step * 1e-6]
    digits = needed[0] if needed else 6
    return [f"{value if abs(value) > step * 1e-6 else 0:,.{digits}f}" for value in values]


def _axes(frame: _Frame, x: Axis, y: Axis, x_ticks: list[float], y_ticks: list[float]) -> None:
    floor, right = frame.height - frame.bottom, frame.width - frame.right
    for value, words in zip(y_ticks, _tick_words(y_ticks), strict=True):
        frame.line((frame.left, frame.py(value)), (right, frame.py(value)), 'class="grid"')
        frame.text(frame.left - 8, frame.py(value) + 4, words, "end")
    for value, words in zip(x_ticks, _tick_words(x_ticks), strict=True):
        frame.line((frame.px(value), floor), (frame.px(value), floor + 5), 'class="axis"')
        frame.text(frame.px(value), floor + 20, words)
    frame.line((frame.left, floor), (right, floor), 'class="axis"')
    frame.text((frame.left + right) / 2, frame.height - 8, x.title, style='class="chart-title"')
    middle = (frame.top + floor) / 2
    frame.text(15, middle, y.title, style=f'class="chart-title" transform="rotate(-90 15 {middle:.1f})"')


def _line(frame: _Frame, series: Series, colour: str, dashes: str) -> None:
    points = [(frame.px(x), frame.py(y)) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    frame.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {dashes}/>')
    if series.dots or len(points) == 1:
        frame.parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    if series.marked is not None:
        x, y = frame.px(series.marked[0]), frame.py(series.marked[1])
        ring = f'r="6" fill="#fff" stroke="{colour}" stroke-width="2.5"'
        frame.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {ring}/>')


def _legend(frame: _Frame, series: Sequence[Series]) -> None:
    at = frame.left
    for one, (colour, dashes) in zip(series, _styles(series), strict=True):
        frame.line((at, 14), (at + 18, 14), f'stroke="{colour}" stroke-width="3" {dashes}')
        frame.text(at + 24, 18, one.name, "start")
        at += 24 + len(one.name) * CHARACTER + 20


def _styles(series: Sequence[Series]) -> list[tuple[str, str]]:
    """Colour and dashes of each line."""
    colours = cycle(COLOURS)
    return [(GREY, 'stroke-dasharray="6 4"') if one.reference else (next(colours), "") for one in series]


def _sign_colour(value: float) -> str:
    return COLOURS[2] if value > 0 else COLOURS[1]


def _rows_frame(names: Sequence[str], values: Sequence[float], x: Axis, width: float) -> tuple[_Frame, list[float]]:
    """A frame with one row for each name, its left margin as wide as the longest of them."""
    marks = ticks(min(values) if x.low is None else x.low, max(values) if x.high is None else x.high)
    left = 16 + min(max((len(name) for name in names), default=0), 30) * CHARACTER
    height = 8 + len(names) * ROW + BOTTOM
    return _Frame((marks[0], marks[-1]), (0, 1), width=width, height=height, left=left, top=8, right=28), marks


def _row_axis(frame: _Frame, x: Axis, x_ticks: list[float], rows: int) -> None:
    floor = frame.top + rows * ROW
    for value, words in zip(x_ticks, _tick_words(x_ticks), strict=True):
        frame.line((frame.px(value), frame.top), (frame.px(value), floor), 'class="grid"')
        frame.text(frame.px(value), floor + 18, words)
    frame.text((frame.left + frame.width - frame.right) / 2, frame.height - 8, x.title, style='class="chart-title"')


def _row_label(frame: _Frame, name: str, y: float) -> None:
    shown = name if len(name) <= 30 else name[:29] + "…"
    frame.text(frame.left - 8, y + ROW / 2 + 4, shown, "end")
