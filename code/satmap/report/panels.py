"""Building blocks of score pictures: views of an image, panels, captions and legends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.io.files import atomic_path

#: uint8 (h, w, 3), red, green, blue.
Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Floats = NDArray[np.float64]

INK: Colour = (40, 40, 40)
WHITE: Colour = (255, 255, 255)

#: Colour of the border of lines that are drawn over an image.
CASING: Colour = (25, 25, 25)

#: Longer side of a panel, in pixels of the picture.
PANEL_PX = 700

_GAP_PX = 10
_LINE_PX = 24
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Lines are drawn on a grid of 1/16 pixel.
_SHIFT = 4
# Coordinates are clipped to this distance, which is out of sight, to avoid overflow.
_FAR = 2.0**24


@dataclass(frozen=True)
class View:
    """The part of an image that a panel shows.

    Attributes:
        left, top: upper left corner, in pixels of the image.
        width, height: size, in pixels of the image.
    """

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of_image(cls, shape: Sequence[int]) -> "View":
        """Return a view of a whole image of shape (height, width, ...)."""
        return cls(0, 0, shape[1], shape[0])

    @classmethod
    def around(cls, points: Floats) -> "View":
        """Return a view around points, float64 (n, 2), with limits at round numbers.

        Without points the view is 100 x 100 px.
        """
        if not len(points):
            return cls(0, 0, 100, 100)
        low, high = points.min(axis=0), points.max(axis=0)
        longest = max(float((high - low).max()), 1.0)
        step = 10.0 ** floor(log10(longest))
        step = step / 10 if longest < 5 * step else step / 2
        # Keep the view of a single straight road at least a third as wide as the road is long.
        spare = np.maximum(longest / 3 - (high - low), 0) / 2
        # A small excess, such as 1300.1, does not add another step.
        left, top = (floor(v / step + 0.02) * step for v in low - spare)
        right, bottom = (ceil(v / step - 0.02) * step for v in high + spare)
        return cls(left, top, max(right - left, step), max(bottom - top, step))

    @property
    def scale(self) -> float:
        """Pixels of the picture per pixel of the image."""
        return PANEL_PX / max(self.width, self.height)

    def ground(self, image: Picture | None = None) -> Picture:
        """Return an empty panel, white or the image."""
        width, height = (max(1, round(side * self.scale)) for side in (self.width, self.height))
        if image is None:
            return np.full((height, width, 3), 255, np.uint8)
        shrink = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_NEAREST
        return np.asarray(cv2.resize(image, (width, height), interpolation=shrink), np.uint8)

    def draw_lines(
        self, panel: Picture, lines: Iterable[Floats], colour: Colour, thickness: int = 2
    ) -> None:
        """Draw lines with a white border; float64 (n, 2) each, x, y in pixels of the image."""
        grid = [self._grid(line) for line in lines]
        cv2.polylines(panel, grid, False, WHITE, thickness + 2, cv2.LINE_AA, _SHIFT)
        cv2.polylines(panel, grid, False, colour, thickness, cv2.LINE_AA, _SHIFT)

    def draw_dots(self, panel: Picture, points: Floats, colour: Colour) -> None:
        """Draw filled dots with a white rim at points, float64 (n, 2)."""
        for x, y in self._grid(points).reshape(-1, 2).tolist():
            for radius, fill in ((5, WHITE), (4, colour)):
                cv2.circle(panel, (x, y), radius << _SHIFT, fill, -1, cv2.LINE_AA, _SHIFT)

    def draw_rings(self, panel: Picture, points: Floats, colour: Colour, radius: int = 11) -> None:
        """Draw circles around points, float64 (n, 2)."""
        for x, y in self._grid(points).reshape(-1, 2).tolist():
            cv2.circle(panel, (x, y), radius << _SHIFT, WHITE, 5, cv2.LINE_AA, _SHIFT)
            cv2.circle(panel, (x, y), radius << _SHIFT, colour, 2, cv2.LINE_AA, _SHIFT)

    def draw_crosses(self, panel: Picture, points: Floats, colour: Colour) -> None:
        """Draw small crosses at points, float64 (n, 2)."""
        arm = 4 / self.scale
        for x, y in points.tolist():
            strokes = [
                [[x - arm, y - arm], [x + arm, y + arm]],
                [[x - arm, y + arm], [x + arm, y - arm]],
            ]
            self.draw_lines(panel, [np.array(stroke) for stroke in strokes], colour, 2)

    def draw_label(self, panel: Picture, point: Floats, text: str, colour: Colour) -> None:
        """Write a short text beside a point, float64 (2,), within the panel."""
        x, y = (self._grid(point[None]).reshape(2) / 2**_SHIFT).astype(int).tolist()
        (width, height), _ = cv2.getTextSize(text, _FONT, 0.6, 2)
        place = (
            min(max(x + 8, 2), panel.shape[1] - width - 2),
            min(max(y - 8, height + 2), panel.shape[0] - 4),
        )
        cv2.putText(panel, text, place, _FONT, 0.6, WHITE, 5, cv2.LINE_AA)
        cv2.putText(panel, text, place, _FONT, 0.6, colour, 2, cv2.LINE_AA)

    def draw_polygons(
        self,
        panel: Picture,
        polygons: Iterable[shapely.Geometry],
        colour: Colour,
        *,
        filling: float = 0.0,
        thickness: int = 1,
        casing: bool = False,
    ) -> None:
        """Draw outlines of polygons with holes, and fill them with an opacity of 0..1.

        A casing is a thin dark border, which sets outlines off from an image.
        """
        parts = shapely.get_parts(list(polygons)).tolist()
        rings = [
            [self._grid(shapely.get_coordinates(ring)) for ring in shapely.get_rings(part)]
            for part in parts
            if not part.is_empty
        ]
        if filling:
            filled = panel.copy()
            for of_polygon in rings:
                cv2.fillPoly(filled, of_polygon, colour, cv2.LINE_AA, _SHIFT)
            cv2.addWeighted(filled, filling, panel, 1 - filling, 0, panel)
        for of_polygon in rings if casing else ():
            cv2.polylines(panel, of_polygon, True, CASING, thickness + 2, cv2.LINE_AA, _SHIFT)
        for of_polygon in rings:
            cv2.polylines(panel, of_polygon, True, colour, thickness, cv2.LINE_AA, _SHIFT)

    def _grid(self, points: Floats) -> NDArray[np.int32]:
        """Convert points to the panel's fine grid; pixel centres of the image are at halves."""
        place = (points - (self.left, self.top)) * self.scale - 0.5
        grid: NDArray[np.int32] = np.rint(np.clip(place * 2**_SHIFT, -_FAR, _FAR)).astype(np.int32)
        return grid


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a text behind a coloured sign."""

    text: str
    colour: Colour
    sign: Literal["line", "ring", "cross", "area"] = "line"


@dataclass(frozen=True)
class Panel:
    """A drawn panel with its heading above, and its legend and notes below."""

    drawing: Picture
    heading: str
    keys: Sequence[Key] = ()
    notes: Sequence[str] = ()


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture; the suffix selects the format.

    Raises:
        SatmapError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        done, content = cv2.imencode(path.suffix, np.ascontiguousarray(picture[..., ::-1]))
        if not done:
            raise SatmapError(f"cannot write the picture {path}; check its suffix (.png, .jpg).")
        temporary.write_bytes(content.tobytes())


def compose(caption: Sequence[str], panels: Sequence[Panel]) -> Picture:
    """Combine panels of the same size side by side, with captions above and their own texts."""
    height, width = panels[0].drawing.shape[:2]
    columns_width = max(width, 340)
    columns: list[Picture] = []
    legends = [_legend(panel.keys, panel.notes, columns_width) for panel in panels]
    tallest = max(len(legend) for legend in legends)
    for panel, legend in zip(panels, legends, strict=True):
        framed = np.pad(panel.drawing, ((1, 1), (1, 1), (0, 0)), constant_values=190)
        body = np.full((height + 2, columns_width + 2, 3), 255, np.uint8)
        body[:, : width + 2] = framed
        below = np.full((tallest, columns_width + 2, 3), 255, np.uint8)
        below[: len(legend), :columns_width] = legend
        columns.append(np.vstack([_text(panel.heading, columns_width + 2, 0.6), body, below]))
        columns.append(np.full((len(columns[0]), _GAP_PX, 3), 255, np.uint8))
    row = np.hstack(columns[:-1])
    head = [_text(line, row.shape[1], 0.65 if i == 0 else 0.5) for i, line in enumerate(caption)]
    picture = np.vstack([*head, row])
    return np.pad(picture, ((_GAP_PX, _GAP_PX), (_GAP_PX, _GAP_PX), (0, 0)), constant_values=255)


def _text(text: str, width: int, size: float) -> Picture:
    """Draw a line of text, reduced in size or cut off if it is too long."""
    line = np.full((_LINE_PX, width, 3), 255, np.uint8)
    while size > 0.4 and cv2.getTextSize(text, _FONT, size, 1)[0][0] > width - 4:
        size -= 0.05
    while len(text) > 4 and cv2.getTextSize(text, _FONT, size, 1)[0][0] > width - 4:
        text = text[:-4] + "..."
    cv2.putText(line, text, (2, 17), _FONT, size, INK, 1, cv2.LINE_AA)
    return line


def _legend(keys: Sequence[Key], notes: Sequence[str], width: int) -> Picture:
    """Draw the keys, as many per line as fit, then the notes, one per line."""
    lines = [np.full((_LINE_PX, width, 3), 255, np.uint8)] if keys else []
    x = 4
    for key in keys:
        needed = 32 + cv2.getTextSize(key.text, _FONT, 0.5, 1)[0][0]
        if x > 4 and x + needed > width:
            lines.append(np.full((_LINE_PX, width, 3), 255, np.uint8))
            x = 4
        _sign(lines[-1], x, key)
        cv2.putText(lines[-1], key.text, (x + 28, 17), _FONT, 0.5, INK, 1, cv2.LINE_AA)
        x += needed + 16
    lines += [_text(note, width, 0.5) for note in notes]
    return np.vstack(lines) if lines else np.empty((0, width, 3), np.uint8)


def _sign(line: Picture, x: int, key: Key) -> None:
    sign = View(0, 0, PANEL_PX, PANEL_PX)
    middle = np.array([[x + 11.0, 13.0]])
    if key.sign == "line":
        sign.draw_lines(line, [middle + np.array([[-10, 0], [10, 0]])], key.colour, 4)
    elif key.sign == "ring":
        sign.draw_rings(line, middle, key.colour, 7)
    elif key.sign == "cross":
        sign.draw_crosses(line, middle, key.colour)
    else:
        cv2.rectangle(line, (x + 1, 6), (x + 21, 19), key.colour, -1)
        cv2.rectangle(line, (x + 1, 6), (x + 21, 19), (120, 120, 120), 1)
