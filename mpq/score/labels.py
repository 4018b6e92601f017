"""Labels of points in a drawing, placed so that none covers another one or a point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a drawing by its centre and size, in the drawing's units."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        across = (self.width + other.width) / 2 - abs(self.x - other.x)
        along = (self.height + other.height) / 2 - abs(self.y - other.y)
        return max(0.0, across) * max(0.0, along)

    def within(self, frame: Box) -> bool:
        """Whether all of it lies in `frame`."""
        across, along = (frame.width - self.width) / 2, (frame.height - self.height) / 2
        return abs(self.x - frame.x) <= across and abs(self.y - frame.y) <= along


def place_labels(labels: Sequence[Box], points: Iterable[Box], frame: Box) -> list[Box | None]:
    """Where labels go, the first ones first.

    Args:
        labels: each at the centre of its point, with the size of its text.
        points: what is better not covered.
        frame: what no label may leave.

    Returns:
        Each label beside its point, where it covers least; None where it would cover another label.
    """
    points, placed = list(points), list[Box | None]()
    for label in labels:
        free = [
            box
            for box in _places(label)
            if box.within(frame) and not any(other is not None and box.overlap(other) for other in placed)
        ]
        placed.append(min(free, key=lambda box: sum(map(box.overlap, points)), default=None))
    return placed


def _places(label: Box) -> list[Box]:
    """Above, below, right, left and at the corners of the point, near and then farther away."""
    places = []
    for gap in (0.55, 1.1):
        up, side = label.height * (0.5 + gap), label.width / 2 + label.height * gap
        for x, y in ((0, -up), (0, up), (side, 0), (-side, 0), (side, -up), (-side, -up), (side, up), (-side, up)):
            places.append(Box(label.x + x, label.y + y, label.width, label.height))
    return places
