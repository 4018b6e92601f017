"""Size against word error rate: what the plot shows, and the PNG of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpq.io import PathLike, atomic_path
from mpq.score.records import FIRST_PASS, ORACLE, RESCORED, ResultRecord

LIGHT_COLOURS = ("#2563eb", "#c2410c", "#047857", "#7c3aed", "#be185d", "#0e7490", "#a16207", "#4b5563")


@dataclass(frozen=True, slots=True)
class Point:
    """One system of a family: megabytes, error rate and its interval in percent, and a label."""

    megabytes: float
    wer: float
    interval: tuple[float, float] | None
    label: str


@dataclass(frozen=True, slots=True)
class SizeWer:
    """What the plot shows.

    Attributes:
        set: name of the test set.
        families: points of each model family, by size.
        levels: word error rates without a size, such as the first pass's, by name.
    """

    set: str
    families: dict[str, list[Point]]
    levels: dict[str, float]


def size_wer(records: Sequence[ResultRecord], set_name: str) -> SizeWer:
    """Pick what the plot shows from the records of one set."""
    families: dict[str, list[Point]] = {}
    levels: dict[str, float] = {}
    for record in records:
        if record.set != set_name:
            continue
        if record.role == RESCORED and record.bytes:
            label = "" if record.bits is None else f"{record.bits:.3g} bit{'s' if record.bits != 1 else ''}"
            point = Point(record.bytes / 1e6, record.wer, record.interval, label)
            families.setdefault(record.line or record.family or record.system, []).append(point)
        elif record.role in (FIRST_PASS, ORACLE):
            levels[record.system] = record.wer
    for points in families.values():
        points.sort(key=lambda point: point.megabytes)
    return SizeWer(set_name, families, levels)


def size_wer_plot(path: PathLike, data: SizeWer, title: str = "") -> None:
    """Draw the plot as a PNG: size on a logarithmic axis, a line for each family, bars for 95 % intervals."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, (family, points) in enumerate(data.families.items()):
        colour = LIGHT_COLOURS[index % len(LIGHT_COLOURS)]
        sizes, rates = [point.megabytes for point in points], [point.wer for point in points]
        axes.plot(sizes, rates, "o-", color=colour, label=family, linewidth=2)
        for point in points:
            if point.interval is not None:
                axes.vlines(point.megabytes, *point.interval, colors=colour, alpha=0.35, linewidth=3)
            # labels of every other line go below it, so that lines close together stay readable
            shift, place = (6, 5 if index % 2 == 0 else -12), (point.megabytes, point.wer)
            axes.annotate(point.label, place, shift, textcoords="offset points", fontsize=8, color=colour)
    for name, rate in data.levels.items():
        axes.axhline(rate, color="#6b7280", linestyle="--", linewidth=1)
        axes.text(0.995, rate, name, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    if data.families:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
    axes.set_xlabel("size of the model file, MB")
    axes.set_ylabel(f"{data.set} word error rate, %")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        # no software version in the file: the same results give the same bytes
        figure.savefig(Path(temporary), metadata={"Software": None})
