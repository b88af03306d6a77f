"""Draw roads over their image, coloured by speed."""

from collections.abc import Sequence

import cv2
import numpy as np

from satmap.report.panels import CASING, WHITE, Picture
from satmap.submissions.roads_csv import RoadRow
from satmap.vectors.speeds import MPS_PER_MPH

_SLOWEST_MPH, _FASTEST_MPH = 10.0, 65.0
_FIRST_COLOUR, _LAST_COLOUR = 25, 235
_CAPTION_HEIGHT = 34
_GAP = 8
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Lines are drawn on a grid of 1/16 pixel.
_SHIFT = 4


def draw_roads(image: Picture, rows: Sequence[RoadRow], thickness: int = 2) -> Picture:
    """Draw roads over a copy of an image, slow ones blue, fast ones red, with dots at their ends.

    A thin dark casing sets lines and dots off from the image, which keeps its contrast. The
    thickness is in pixels.
    """
    canvas = np.array(image, np.uint8, order="C")
    lines = [np.rint((row.line - 0.5) * 2**_SHIFT).astype(np.int32) for row in rows]
    # Draw all casings first, so that no casing covers another road.
    cv2.polylines(canvas, lines, False, CASING, thickness + 2, cv2.LINE_AA, _SHIFT)
    for row, line in zip(rows, lines, strict=True):
        colour = speed_colour(row.length_m / row.travel_time_s if row.travel_time_s else np.nan)
        cv2.polylines(canvas, [line], False, colour, thickness, cv2.LINE_AA, _SHIFT)
    ends = {tuple(end) for line in lines for end in (line[0].tolist(), line[-1].tolist())}
    for colour, radius in ((CASING, thickness + 1), (WHITE, thickness)):
        for end in ends:
            cv2.circle(canvas, end, radius << _SHIFT, colour, -1, cv2.LINE_AA, _SHIFT)
    return canvas


def speed_colour(speed_mps: float) -> tuple[int, int, int]:
    """Return red, green, blue of a speed: blue at 10 mph over green and yellow to red at 65 mph.

    Unknown speeds (NaN) are white.
    """
    if not np.isfinite(speed_mps):
        return 255, 255, 255
    share = (speed_mps / MPS_PER_MPH - _SLOWEST_MPH) / (_FASTEST_MPH - _SLOWEST_MPH)
    # The ends of the colour map are too dark to be visible on an image.
    index = np.uint8(round(_FIRST_COLOUR + (_LAST_COLOUR - _FIRST_COLOUR) * np.clip(share, 0, 1)))
    blue, green, red = cv2.applyColorMap(np.array([[index]]), cv2.COLORMAP_TURBO)[0, 0].tolist()
    return red, green, blue


def side_by_side(image: Picture, panels: Sequence[tuple[str, Sequence[RoadRow]]]) -> Picture:
    """Draw the image once per panel, (caption, roads) each, with a speed scale below."""
    height = image.shape[0]
    thickness = max(2, height // 250)
    drawn = []
    for caption, rows in panels:
        head = np.full((_CAPTION_HEIGHT, image.shape[1], 3), 255, np.uint8)
        cv2.putText(head, caption, (6, 23), _FONT, 0.55, (30, 30, 30), 1, cv2.LINE_AA)
        drawn.append(np.vstack([head, draw_roads(image, rows, thickness)]))
        drawn.append(np.full((height + _CAPTION_HEIGHT, _GAP, 3), 255, np.uint8))
    picture = np.hstack(drawn[:-1])
    return np.vstack([picture, _legend(picture.shape[1])])


def _legend(width: int) -> Picture:
    """Draw a colour scale with speeds in miles per hour."""
    legend = np.full((_CAPTION_HEIGHT, width, 3), 255, np.uint8)
    cv2.putText(legend, "mph", (6, 22), _FONT, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    speeds = np.arange(_SLOWEST_MPH, _FASTEST_MPH + 1, 5)
    step = min(60, (width - 60) // len(speeds))
    for index, speed in enumerate(speeds):
        left = 50 + index * step
        colour = speed_colour(float(speed) * MPS_PER_MPH)
        cv2.rectangle(legend, (left, 8), (left + step - 24, 26), colour, -1)
        text = (left + step - 21, 22)
        cv2.putText(legend, f"{speed:.0f}", text, _FONT, 0.42, (30, 30, 30), 1, cv2.LINE_AA)
    return legend
