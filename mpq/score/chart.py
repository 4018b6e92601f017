"""Small charts as inline SVG, coloured by the style sheet of the page that holds them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from mpq.score.labels import Box, place_labels


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a line: place, a label beside it, words for the pointer, and whether it is drawn hollow."""

    x: float
    y: float
    label: str = ""
    hint: str = ""
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart.

    Attributes:
        x_title: what the horizontal axis shows.
        y_title: what the vertical axis shows.
        lines: marks of each line, by name, from left to right.
        levels: horizontal reference lines, by name.
        reference: a point with a horizontal line of its own.
        log_x: logarithmic horizontal axis.
        x_ends: values that the horizontal axis reaches at least, where several charts are to be compared.
        y_ends: the same of the vertical axis.
        styles: colour and shape of each line by number, in place of one colour after the other and round points.
        width: of the drawing; it is scaled to the page.
        height: of the drawing.
    """

    x_title: str
    y_title: str
    lines: dict[str, list[Mark]]
    levels: dict[str, float] = field(default_factory=dict)
    reference: Mark | None = None
    log_x: bool = False
    x_ends: tuple[float, ...] = ()
    y_ends: tuple[float, ...] = ()
    styles: tuple[int, ...] = ()
    width: int = 860
    height: int = 440


_SHAPES = (
    "",  # a circle
    "-.85,-.85 .85,-.85 .85,.85 -.85,.85",
    "0,-1.1 1.05,.8 -1.05,.8",
    "0,-1.2 1.2,0 0,1.2 -1.2,0",
    "0,1.1 1.05,-.8 -1.05,-.8",
    "-.4,-1.1 .4,-1.1 .4,-.4 1.1,-.4 1.1,.4 .4,.4 .4,1.1 -.4,1.1 -.4,.4 -1.1,.4 -1.1,-.4 -.4,-.4",
)
_STAR = "0,-1.5 .37,-.51 1.43,-.46 .6,.19 .88,1.21 0,.63 -.88,1.21 -.6,.19 -1.43,-.46 -.37,-.51"
_RADIUS, _LETTER, _LINE = 5.2, 7.2, 15.0  # of points; width and height of a label's letters
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 18, 50


def render_chart(chart: Chart) -> str:
    """The chart as an ``<svg>`` element; its lines have the classes ``s0``, ``s1`` ... for colours."""
    marks = [mark for line in chart.lines.values() for mark in line] + ([chart.reference] if chart.reference else [])
    if not marks:
        return ""
    x_axis = _Axis([*chart.x_ends, *(mark.x for mark in marks)], _LEFT, chart.width - _RIGHT, chart.log_x)
    rates = [*chart.y_ends, *chart.levels.values(), *(mark.y for mark in marks)]
    y_axis = _Axis(rates, chart.height - _BOTTOM, _TOP, log=False)
    label = html.escape(f"{chart.y_title} against {chart.x_title}", quote=True)
    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{label}">',
        *_grid(chart, x_axis, y_axis),
        *_levels(chart, y_axis),
    ]
    styles = dict(zip(chart.lines, chart.styles or count(), strict=False))
    for name, line in chart.lines.items():
        parts += _line(line, styles[name], bool(chart.styles), x_axis.at, y_axis.at)
    if chart.reference:
        mark = chart.reference
        parts.append(f'<path class="reference" d="M{_LEFT} {y_axis.at(mark.y):.1f}H{chart.width - _RIGHT}"/>')
        parts.append(_point("ref", _STAR, x_axis.at(mark.x), y_axis.at(mark.y), mark))
    classes = [(f"s{styles[name] % 8}", mark) for name, line in chart.lines.items() for mark in line]
    parts += _labels([("ref", chart.reference), *classes] if chart.reference else classes, chart, x_axis.at, y_axis.at)
    return "\n".join([*parts, "</svg>"])


def render_key(style: int | None) -> str:
    """A line with a point, for legends: of the line with this number among `styles`; None: of the reference."""
    name, shape = ("ref", _STAR) if style is None else (f"s{style % 8}", _SHAPES[style % len(_SHAPES)])
    line = f'<path class="{"reference" if style is None else "line"} {name}" d="M1 8H29"/>'
    return f'<svg class="chart key" viewBox="0 0 30 16" aria-hidden="true">{line}{_point(name, shape, 15, 8)}</svg>'


class _Axis:
    """Maps values to places on the drawing, and chooses round values to mark."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = (self._scale(value) for value in (min(values), max(values)))
        room = 0.07 * (high - low) or 0.5
        self.low, self.high = low - room, high + room
        if not log and min(values) >= 0:
            self.low = max(self.low, 0.0)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        return self.start + (self._scale(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis: 1, 2, 5 times powers of ten, about six of them."""
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            steps = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
            ticks = [step * 10.0**decade for decade in decades for step in steps]
            return [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]
        raw = (self.high - self.low) / 6
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [count * step for count in range(first, last + 1)]


def _grid(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    """Grid lines, values and titles of both axes."""
    right, bottom = chart.width - _RIGHT, chart.height - _BOTTOM
    parts = []
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in x_axis.ticks():
        x = x_axis.at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:.6g}</text>')
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    title = f'<text class="axis" text-anchor="middle" x="{middle_x:.0f}" y="{chart.height - 10}">'
    parts.append(f"{title}{html.escape(chart.x_title)}</text>")
    turned = f'<text class="axis" text-anchor="middle" transform="translate(16 {middle_y:.0f}) rotate(-90)">'
    parts.append(f"{turned}{html.escape(chart.y_title)}</text>")
    return parts


def _levels(chart: Chart, y_axis: _Axis) -> list[str]:
    """Horizontal reference lines with their names at the right end."""
    right = chart.width - _RIGHT
    parts = []
    for name, value in chart.levels.items():
        y = y_axis.at(value)
        parts.append(f'<path class="level" d="M{_LEFT} {y:.1f}H{right}"/>')
        text = html.escape(f"{name} {value:.2f}")
        parts.append(f'<text class="level-name" x="{right - 4}" y="{y - 6:.1f}" text-anchor="end">{text}</text>')
    return parts


def _line(
    marks: Sequence[Mark], style: int, shaped: bool, x_at: Callable[[float], float], y_at: Callable[[float], float]
) -> list[str]:
    """One line with its points."""
    name, shape = f"s{style % 8}", _SHAPES[style % len(_SHAPES)] if shaped else ""
    places = " ".join(f"{x_at(mark.x):.1f},{y_at(mark.y):.1f}" for mark in marks)
    line = f'<polyline class="line {name}" points="{places}"/>'
    return [line, *(_point(name, shape, x_at(mark.x), y_at(mark.y), mark) for mark in marks if mark.hint or mark.label)]


def _point(name: str, shape: str, x: float, y: float, mark: Mark | None = None) -> str:
    """A point of a shape (none: a circle) and class, and what it says when pointed at."""
    hint = f"<title>{html.escape(mark.hint)}</title>" if mark and mark.hint else ""
    look = f'class="point {name}{" hollow" if mark and mark.hollow else ""}"'
    if not shape:
        return f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}">{hint}</circle>'
    pairs = (map(float, pair.split(",")) for pair in shape.split())
    corners = " ".join(f"{x + _RADIUS * right:.1f},{y + _RADIUS * down:.1f}" for right, down in pairs)
    return f'<polygon {look} points="{corners}">{hint}</polygon>'


def _labels(
    marks: Sequence[tuple[str, Mark]], chart: Chart, x_at: Callable[[float], float], y_at: Callable[[float], float]
) -> list[str]:
    """Labels beside their points, as far as none covers another one, in the order of their marks."""
    points = [Box(x_at(mark.x), y_at(mark.y), 2 * _RADIUS, 2 * _RADIUS) for _, mark in marks]
    labelled = [(name, mark) for name, mark in marks if mark.label]
    boxes = [Box(x_at(mark.x), y_at(mark.y), _LETTER * len(mark.label), _LINE) for _, mark in labelled]
    width, height = chart.width - _LEFT - _RIGHT, chart.height - _TOP - _BOTTOM
    frame = Box(_LEFT + width / 2, _TOP + height / 2, width, height)
    middle = 'text-anchor="middle"'
    return [
        f'<text class="label {name}" {middle} x="{box.x:.1f}" y="{box.y + 4:.1f}">{html.escape(mark.label)}</text>'
        for (name, mark), box in zip(labelled, place_labels(boxes, points, frame), strict=True)
        if box is not None
    ]
