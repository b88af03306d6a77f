"""Draw learning curves."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from satmap.report.panels import (
    BLUE,
    GREEN,
    INK,
    PURPLE,
    VERMILLION,
    WHITE,
    Colour,
    Picture,
    draw_text,
)

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 130, 16, 30
_GRID: Colour = (225, 225, 225)
_LINES = 4
_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)


#: Figures over the epochs, one or more (epoch, value) each, by name in the legend.
Curves = Mapping[str, Sequence[tuple[int, float]]]


def draw_curves(panels: Sequence[Curves]) -> Picture:
    """Draw panels of curves below each other, each scaled from 0 to its largest value."""
    return np.vstack([_panel(curves) for curves in panels])


def _panel(curves: Curves) -> Picture:
    picture: Picture = np.full((_HEIGHT, _WIDTH, 3), WHITE, np.uint8)
    last = max(epoch for points in curves.values() for epoch, _ in points)
    top = max(1e-9, max(value for points in curves.values() for _, value in points))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(epoch: float, value: float) -> tuple[int, int]:
        x = _LEFT + (right - _LEFT) * (epoch - 1) / max(last - 1, 1)
        return round(x), round(bottom - (bottom - _TOP) * value / top)

    for step in range(_LINES + 1):
        value = top * step / _LINES
        cv2.line(picture, place(1, value), (right, place(1, value)[1]), _GRID)
        _write(picture, f"{value:.3g}", (6, place(1, value)[1] + 4), INK)
    _write(picture, "epoch 1", (_LEFT, _HEIGHT - 8), INK)
    _write(picture, str(last), (right - 12, _HEIGHT - 8), INK)
    for index, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        line = np.array([place(*point) for point in points], np.int32)
        cv2.polylines(picture, [line], False, colour, 2, cv2.LINE_AA)
        for x, y in line.tolist():
            cv2.circle(picture, (x, y), 3, colour, -1, cv2.LINE_AA)
        text = f"{name} {points[-1][1]:.3f}"
        _write(picture, text, (right + 10, _TOP + 14 + 20 * index), colour)
    return picture


def _write(picture: Picture, text: str, place: tuple[int, int], colour: Colour) -> None:
    """Write a small text; ``place`` is about the left end of its baseline."""
    draw_text(picture, text, (place[0], place[1] - 13), colour, 13)
