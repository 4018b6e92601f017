"""Small charts as inline SVG, coloured by the style sheet of the page that holds them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mark:
    """A point of a line: place, ends of an interval bar, a label beside it, and words for the pointer."""

    x: float
    y: float
    interval: tuple[float, float] | None = None
    label: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart.

    Attributes:
        x_title: what the horizontal axis shows.
        y_title: what the vertical axis shows.
        lines: marks of each line, by name, from left to right.
        levels: horizontal reference lines, by name.
        log_x: logarithmic horizontal axis.
        width: of the drawing; it is scaled to the page.
        height: of the drawing.
    """

    x_title: str
    y_title: str
    lines: dict[str, list[Mark]]
    levels: dict[str, float] = field(default_factory=dict)
    log_x: bool = False
    width: int = 860
    height: int = 440


_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 18, 50


def render_chart(chart: Chart) -> str:
    """The chart as an ``<svg>`` element; its lines have the classes ``s0``, ``s1`` ... for colours."""
    marks = [mark for line in chart.lines.values() for mark in line]
    if not marks:
        return ""
    ends = [end for mark in marks for end in (mark.interval or (mark.y,))]
    x_axis = _Axis([mark.x for mark in marks], _LEFT, chart.width - _RIGHT, chart.log_x)
    y_axis = _Axis([*ends, *chart.levels.values()], chart.height - _BOTTOM, _TOP, log=False)
    label = html.escape(f"{chart.y_title} against {chart.x_title}", quote=True)
    parts = [
        f'<svg class="chart" viewBox="0 0 {chart.width} {chart.height}" role="img" aria-label="{label}">',
        *_grid(chart, x_axis, y_axis),
        *_levels(chart, y_axis),
    ]
    for index, line in enumerate(chart.lines.values()):
        parts += _line(line, index, x_axis.at, y_axis.at)
    return "\n".join([*parts, "</svg>"])


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
    marks: Sequence[Mark], index: int, x_at: Callable[[float], float], y_at: Callable[[float], float]
) -> list[str]:
    """One line with its interval bars, points and labels."""
    style = f"s{index % 8}"
    parts = []
    for mark in marks:
        if mark.interval is not None:
            low, high = map(y_at, mark.interval)
            parts.append(f'<path class="bar {style}" d="M{x_at(mark.x):.1f} {low:.1f}V{high:.1f}"/>')
    places = " ".join(f"{x_at(mark.x):.1f},{y_at(mark.y):.1f}" for mark in marks)
    parts.append(f'<polyline class="line {style}" points="{places}"/>')
    for mark in marks:
        x, y = x_at(mark.x), y_at(mark.y)
        if mark.hint or mark.label:
            hint = f"<title>{html.escape(mark.hint)}</title>" if mark.hint else ""
            parts.append(f'<circle class="point {style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{hint}</circle>')
        if mark.label:
            # labels of every other line go below it, so that lines close together stay readable
            anchor, shift = ("end", -7) if mark is marks[-1] and len(marks) > 1 else ("start", 7)
            place = f'x="{x + shift:.1f}" y="{y - 8 if index % 2 == 0 else y + 18:.1f}" text-anchor="{anchor}"'
            parts.append(f'<text class="label {style}" {place}>{html.escape(mark.label)}</text>')
    return parts
