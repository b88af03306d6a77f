"""Draw reliability diagrams and the precision by coverage.

A point of a reliability diagram shows, for one bin, the mean confidence (to the right) and the
share of the objects that is right (upwards). Calibrated points lie on the diagonal. The area of a
point is the number of its objects.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from satmap.evaluation.metrics.reliability import Reliability
from satmap.report.panels import (
    BLUE,
    GREEN,
    INK,
    LABEL_PX,
    PURPLE,
    SKY_BLUE,
    TEXT_PX,
    VERMILLION,
    WHITE,
    Colour,
    Picture,
    draw_text,
)

#: File name of the picture that ``satmap score --plot`` writes.
RELIABILITY_PICTURE = "reliability.png"

_SIDE_PX, _LEFT_PX, _TOP_PX, _BOTTOM_PX = 300, 56, 40, 44
_LEGEND_PX, _LINE_PX = 290, 22
_GRID: Colour = (225, 225, 225)
# Of all objects, and of the groups.
_COLOURS = (INK, BLUE, VERMILLION, GREEN, PURPLE, SKY_BLUE, (230, 159, 0))
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# Radius of the point of a bin with all objects.
_RADIUS_PX = 14.0

# Curves of a panel: points (x, y, share of the objects), 0..1.
_Curves = Mapping[str, Sequence[tuple[float, float, float]]]


def draw_reliability(found: Reliability) -> Picture:
    """Draw three panels: the reliability of all objects, that by group, and the precision."""
    groups = dict(list(found.groups.items())[: len(_COLOURS) - 1])
    whole: _Curves = {f"all: error {found.error:.3f}": _points(found)}
    by_group: _Curves = {"": []} | {
        f"{name}: error {its.error:.3f}": _points(its) for name, its in groups.items()
    }
    kept: _Curves = {
        name: [(each.coverage, each.precision, 0.0) for each in its.coverage]
        for name, its in {"all": found, **groups}.items()
    }
    panels = [
        _panel("Right by confidence", whole, diagonal=True),
        _panel("Right by confidence: by size and class", by_group, diagonal=True),
        _panel("Precision by coverage", kept, diagonal=False),
    ]
    return np.hstack(panels)


def _points(found: Reliability) -> list[tuple[float, float, float]]:
    return [(each.confidence, each.right, each.count / found.count) for each in found.bins]


def _panel(title: str, curves: _Curves, *, diagonal: bool) -> Picture:
    height = _TOP_PX + _SIDE_PX + _BOTTOM_PX + _LINE_PX * len(_COLOURS)
    picture: Picture = np.full((height, _LEFT_PX + _LEGEND_PX + 30, 3), WHITE, np.uint8)

    def place(x: float, y: float) -> tuple[int, int]:
        return round(_LEFT_PX + x * _SIDE_PX), round(_TOP_PX + (1 - y) * _SIDE_PX)

    for tick in _TICKS:
        cv2.line(picture, place(tick, 0), place(tick, 1), _GRID)
        cv2.line(picture, place(0, tick), place(1, tick), _GRID)
        (x, bottom), (_, y) = place(tick, 0), place(0, tick)
        draw_text(picture, f"{tick:.1f}", (x - 11, bottom + 5), INK, LABEL_PX)
        draw_text(picture, f"{tick:.1f}", (_LEFT_PX - 28, y - 9), INK, LABEL_PX)
    if diagonal:
        cv2.line(picture, place(0, 0), place(1, 1), INK, 1, cv2.LINE_AA)
    draw_text(picture, title, (8, 8), INK, TEXT_PX)
    for number, (name, points) in enumerate(curves.items()):
        if not points:
            continue
        colour = _COLOURS[number]
        places = np.array([place(x, y) for x, y, _ in points], np.int32)
        cv2.polylines(picture, [places], False, colour, 2, cv2.LINE_AA)
        for at, (_, _, share) in zip(places.tolist(), points, strict=True):
            radius = max(round(_RADIUS_PX * share**0.5), 3)
            cv2.circle(picture, at, radius, colour, -1, cv2.LINE_AA)
        at = 8, _TOP_PX + _SIDE_PX + _BOTTOM_PX - 12 + _LINE_PX * number
        draw_text(picture, name, at, colour, LABEL_PX)
    return picture
