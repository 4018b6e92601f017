"""Labels of points that lie close together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpq.score.labels import Box, place_labels

FRAME = Box(100, 100, 200, 200)
PLACES = st.lists(st.tuples(st.floats(0, 200), st.floats(0, 200)), max_size=40)


@given(PLACES)
def test_labels_stay_in_the_frame_and_cover_no_other(places: list[tuple[float, float]]) -> None:
    labels = [Box(x, y, 30, 10) for x, y in places]
    placed = [box for box in place_labels(labels, [Box(x, y, 8, 8) for x, y in places], FRAME) if box]
    assert all(box.within(FRAME) for box in placed)
    assert not any(a.overlap(b) for i, a in enumerate(placed) for b in placed[:i])


def test_the_first_label_has_the_first_choice_and_points_stay_free() -> None:
    alone, point, above = Box(100, 100, 30, 10), Box(100, 100, 8, 8), Box(100, 89.5, 30, 10)
    assert place_labels([alone], [point], FRAME) == [above]
    (moved,) = place_labels([alone], [point, Box(100, 88, 8, 8)], FRAME)
    assert moved is not None and moved != above and not moved.overlap(Box(100, 88, 8, 8))
    placed = place_labels([alone] * 30, [], FRAME)
    assert placed[0] == above and None in placed
