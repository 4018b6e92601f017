"""Size against word error rate: what the plot shows, and the PNG of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpq.io import PathLike, atomic_path
from mpq.score.labels import Box, place_labels
from mpq.score.records import FIRST_PASS, ORACLE, RESCORED, ResultRecord
from mpq.score.table import FLOAT_BITS, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#c2410c", "#047857", "#7c3aed", "#be185d", "#0e7490", "#a16207", "#4b5563")
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Colours and marks of the methods in turn: a mark comes with another colour when both begin again."""
FLOAT = "float32"
_FEW = 12  # points of a panel that can all be labelled
_SIZE = 9  # points of the labels
_GREY = "#6b7280"


@dataclass(frozen=True, slots=True)
class Point:
    """One model: its megabytes and error rate in percent.

    Attributes:
        megabytes: size of its file.
        wer: word error rate in percent.
        name: the system.
        label: its bits.
        worse: whether it makes significantly more errors than its float32 version.
        front: whether no smaller (or equally small) compressed model of the panel has fewer errors.
    """

    megabytes: float
    wer: float
    name: str
    label: str = ""
    worse: bool = False
    front: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """The versions of one language model.

    Attributes:
        family: the language model.
        lines: compressed models of each method, by size.
        reference: the float32 model.
        interval: ends of the 95 % interval of its error rate.
    """

    family: str
    lines: dict[str, list[Point]]
    reference: Point | None = None
    interval: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        """The language model, and how well its float32 version does."""
        if self.reference is None:
            return self.family
        interval = " (95 %: {:.2f} to {:.2f})".format(*self.interval) if self.interval else ""
        return f"{self.family}: {FLOAT} {self.reference.wer:.2f} %{interval}".removeprefix(": ")

    @property
    def labelled(self) -> list[Point]:
        """Points whose labels are shown: the reference, the front, and of few points the others too."""
        points = sorted(self.points, key=lambda point: (point is not self.reference, not point.front))
        return [point for point in points if point.label and (point.front or len(points) <= _FEW)]

    @property
    def points(self) -> list[Point]:
        """All of them."""
        return [point for line in self.lines.values() for point in line] + ([self.reference] if self.reference else [])


@dataclass(frozen=True, slots=True)
class SizeWer:
    """What the plot shows.

    Attributes:
        set: name of the test set.
        panels: one for each language model.
        levels: word error rates without a size, such as the first pass's, by name.
    """

    set: str
    panels: list[Panel]
    levels: dict[str, float]

    @property
    def methods(self) -> list[str]:
        """Names of the lines of all panels; their places decide on colours and marks."""
        return list(dict.fromkeys(name for panel in self.panels for name in panel.lines))

    @property
    def sizes(self) -> tuple[float, float]:
        """Smallest and largest size, in megabytes."""
        sizes = [point.megabytes for panel in self.panels for point in panel.points]
        return min(sizes), max(sizes)

    @property
    def rates(self) -> tuple[float, float]:
        """Ends of the vertical axis: all points, and of the levels those that are not far from them."""
        rates = [point.wer for panel in self.panels for point in panel.points]
        low, high = min(rates), max(rates)
        near = [rate for rate in self.levels.values() if 2 * low - high <= rate <= 2 * high - low]
        return min([low, *near]), max([high, *near])

    @property
    def note(self) -> str:
        """The levels that are too far from the points to be drawn."""
        low, high = self.rates
        far = [(name, rate) for name, rate in self.levels.items() if not low <= rate <= high]
        return ", ".join(f"{name} {rate:.2f} %" for name, rate in far)


def size_wer(records: Sequence[ResultRecord], set_name: str) -> SizeWer:
    """Pick what the plot shows from the records of one set."""
    chosen = [record for record in records if record.set == set_name]
    levels = {record.system: record.wer for record in chosen if record.role in (FIRST_PASS, ORACLE)}
    families: dict[str, list[ResultRecord]] = {}
    for record in chosen:
        if record.role == RESCORED and record.bytes:
            families.setdefault(record.family or "", []).append(record)
    return SizeWer(set_name, [_panel(family, group, chosen) for family, group in families.items()], levels)


def _panel(family: str, group: Sequence[ResultRecord], records: Sequence[ResultRecord]) -> Panel:
    """The models of one family."""
    floats = [record for record in group if record.bits == FLOAT_BITS]
    lines: dict[str, list[Point]] = {}
    best = float("inf")
    for record in sorted((r for r in group if r.bits != FLOAT_BITS), key=lambda r: (r.bytes, r.errors)):
        bits = "" if record.bits is None else f"{record.bits:.3g} bit{'s' if record.bits != 1 else ''}"
        worse, front = verdict(record, records).startswith("worse"), record.errors < best
        best = min(best, record.errors)
        point = Point(_megabytes(record), record.wer, record.system, bits, worse, front)
        lines.setdefault(record.line or "quantized", []).append(point)
    order = dict.fromkeys(record.line or "quantized" for record in group if record.bits != FLOAT_BITS)
    if not floats:
        return Panel(family, {name: lines[name] for name in order})
    reference = Point(_megabytes(floats[0]), floats[0].wer, floats[0].system, FLOAT, front=True)
    return Panel(family, {name: lines[name] for name in order}, reference, floats[0].interval)


def _megabytes(record: ResultRecord) -> float:
    return (record.bytes or 0) / 1e6


def size_wer_plot(path: PathLike, data: SizeWer, title: str = "") -> None:
    """Draw the plot as a PNG: a panel for each language model, size on a logarithmic axis, a line for each method."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    columns = max(1, len(data.panels))
    figure = Figure(figsize=(max(8.0, 5.2 * columns), 5.4), dpi=150, layout="constrained")
    grid = figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0]
    for axes, panel in zip(grid, data.panels, strict=False):
        _draw_panel(axes, panel, data)
    if data.panels:
        _finish_axes(grid, data)
        _draw_legend(figure, data)
    grid[0].set_ylabel(f"{data.set} word error rate, %")
    far = f"beyond the axis: {data.note}" if data.panels and data.note else ""
    figure.suptitle("\n".join(text for text in (title, far) if text), x=0.01, ha="left", fontsize=11)
    figure.draw_without_rendering()  # the layout: from here on, places on the page are known
    for axes, panel in zip(grid, data.panels, strict=False):
        _draw_labels(axes, panel, data)
    with atomic_path(path) as temporary:
        # no software version in the file: the same results give the same bytes
        figure.savefig(Path(temporary), metadata={"Software": None})


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 6}


def _draw_panel(axes: Axes, panel: Panel, data: SizeWer) -> None:
    """Lines and points of one language model, and the levels."""
    low, high = data.rates
    for name, rate in data.levels.items():
        if low <= rate <= high:
            axes.axhline(rate, color=_GREY, linestyle="--", linewidth=1)
            axes.text(0.01, rate, f"{name} {rate:.2f}", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
    if panel.reference:
        x, y = panel.reference.megabytes, panel.reference.wer
        axes.axhline(y, color="black", linestyle=":", linewidth=1)
        axes.plot([x], [y], "*", color="black", markersize=11)
    for name, points in panel.lines.items():
        style, along = _style(data.methods.index(name)), _lowest(points)
        axes.plot([p.megabytes for p in along], [p.wer for p in along], color=style["color"], linewidth=1.2, alpha=0.6)
        for point in points:
            fill = "white" if point.worse else style["color"]
            axes.plot([point.megabytes], [point.wer], linestyle="none", **style, markerfacecolor=fill)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("size of the model file, MB")


def _lowest(points: Sequence[Point]) -> list[Point]:
    """Of points of a size, but for a hundredth of it, the one with the fewest errors: a line leads through these."""
    of_size = {round(math.log(p.megabytes), 2): p for p in sorted(points, key=lambda p: p.wer, reverse=True)}
    return [of_size[size] for size in sorted(of_size)]


def _finish_axes(grid: Sequence[Axes], data: SizeWer) -> None:
    """Ranges, ticks and grid lines of all panels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    grid[0].set_xscale("log")
    grid[0].set_xlim(data.sizes[0] / 1.25, data.sizes[1] * 1.5)
    low, high = data.rates
    room = 0.06 * (high - low) or 0.5
    grid[0].set_ylim(max(0.0, low - room), high + room)
    for axes in grid:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)


def _draw_legend(figure: Figure, data: SizeWer) -> None:
    """Below the panels, in as many columns as fit."""
    handles, names = _legend(data)
    for columns in range(5, 0, -1):
        legend = figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=_SIZE
        )  # fmt: skip
        figure.draw_without_rendering()
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _legend(data: SizeWer) -> tuple[list[Any], list[str]]:
    """A sign for each method, the float model and the hollow marks."""
    from matplotlib.lines import Line2D

    signs = {name: Line2D([], [], **_style(index)) for index, name in enumerate(data.methods)}
    if any(panel.reference for panel in data.panels):
        signs[FLOAT] = Line2D([], [], linestyle=":", color="black", marker="*", markersize=10)
    if any(point.worse for panel in data.panels for point in panel.points):
        hollow = Line2D([], [], linestyle="none", color=_GREY, marker="o", markerfacecolor="white")
        signs["hollow: worse than float32, p < 0.05"] = hollow
    return list(signs.values()), list(signs)


def _draw_labels(axes: Axes, panel: Panel, data: SizeWer) -> None:
    """Labels beside their points, as far as none covers another one."""
    from matplotlib.patheffects import withStroke

    unit = axes.figure.get_dpi() / 72
    colours = {p: COLOURS[data.methods.index(name) % len(COLOURS)] for name, line in panel.lines.items() for p in line}
    places: dict[Point, tuple[float, float]] = {
        point: tuple(axes.transData.transform((point.megabytes, point.wer))) for point in panel.points
    }
    labelled = panel.labelled
    height = 1.15 * _SIZE * unit
    boxes = [Box(*places[point], 0.58 * _SIZE * unit * len(point.label), height) for point in labelled]
    window = axes.get_window_extent()
    frame = Box((window.x0 + window.x1) / 2, (window.y0 + window.y1) / 2, window.width, window.height)
    marks = [Box(x, y, 9 * unit, 9 * unit) for x, y in places.values()]
    back = axes.transData.inverted()
    for point, box in zip(labelled, place_labels(boxes, marks, frame), strict=True):
        if box is not None:
            x, y = back.transform((box.x, box.y))
            text = axes.text(x, y, point.label, ha="center", va="center", fontsize=_SIZE)
            text.set(color=colours.get(point, "black"), path_effects=[withStroke(linewidth=2.5, foreground="white")])
