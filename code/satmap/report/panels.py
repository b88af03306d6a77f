"""Drawing primitives of all pictures: views of an image, lines, outlines, texts and legends.

Pictures are for papers and for readers with any colour vision. Most colours are those of Okabe and
Ito (2008, "Color Universal Design"). Every line, sign and text on an image has a dark casing, so
that it is visible on bright and on dark ground, and the image itself keeps its contrast. Panels
have one size, whatever the size of the image, so that texts are readable in all of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from math import ceil, floor, log10
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from satmap.errors import SatmapError
from satmap.io.files import atomic_path

#: uint8 (h, w, 3), red, green, blue.
Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Floats = NDArray[np.float64]

#: Okabe and Ito's palette.
SKY_BLUE: Colour = (86, 180, 233)
GREEN: Colour = (0, 158, 115)
BLUE: Colour = (0, 114, 178)
VERMILLION: Colour = (213, 94, 0)
PURPLE: Colour = (204, 121, 167)

INK: Colour = (40, 40, 40)
WHITE: Colour = (255, 255, 255)

#: Colour of the border of everything that is drawn over an image.
CASING: Colour = (25, 25, 25)

#: Longer side of a panel, in pixels of the picture.
PANEL_PX = 900

#: Heights of texts, in pixels of the picture.
TITLE_PX, TEXT_PX, LABEL_PX = 22, 17, 14

_FRAME: Colour = (190, 190, 190)
_GAP_PX = 12
_LINE_PX = 28
# Lines are drawn on a grid of 1/16 pixel.
_SHIFT = 4
# Coordinates are clipped to this distance, which is out of sight, to avoid overflow.
_FAR = 2.0**24
_FEET_PER_METRE = 1 / 0.3048
_FEET_PER_MILE = 5280


class Units(StrEnum):
    """Units of speeds in a picture; the value is the name. Lengths are metric or imperial too."""

    KMH = "km/h"
    MPH = "mph"

    def length(self, metres: float) -> str:
        """Format a length in metres or kilometres, or in feet or miles."""
        value, small, large, per_large = metres, "m", "km", 1000
        if self is Units.MPH:
            value, small, large, per_large = metres * _FEET_PER_METRE, "ft", "mi", _FEET_PER_MILE
        if round(value) >= per_large:
            return f"{value / per_large:.3g} {large}"
        return f"{value:.0f} {small}" if value >= 9.5 else f"{value:.2g} {small}"

    def round_length(self, most_m: float) -> float:
        """Return the longest length of at most ``most_m`` metres that is 1, 2 or 5 times 10^n."""
        unit_m = 1.0
        if self is Units.MPH:
            unit_m = 1 / _FEET_PER_METRE
            if most_m >= _FEET_PER_MILE * unit_m:
                unit_m *= _FEET_PER_MILE
        return _round_number(most_m / unit_m) * unit_m


def _round_number(most: float) -> float:
    """Return the largest number of at most ``most`` that is 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(most))
    return float(max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)) * power)


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

    @property
    def panel_size(self) -> tuple[int, int]:
        """Width and height of the panel, pixels of the picture."""
        width, height = (max(1, round(side * self.scale)) for side in (self.width, self.height))
        return width, height

    def ground(self, image: Picture | None = None) -> Picture:
        """Return a panel that is white, or shows the image of this view, which may be reduced.

        Of an image (h, w, channels) with fewer than three channels the last one is repeated.
        """
        width, height = self.panel_size
        if image is None:
            return np.full((height, width, 3), 255, np.uint8)
        mode = cv2.INTER_AREA if image.shape[1] > width else cv2.INTER_CUBIC
        image = image[..., np.minimum(np.arange(3), image.shape[2] - 1)]
        resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=mode)
        return np.asarray(resized, np.uint8)

    def draw_lines(
        self,
        panel: Picture,
        lines: Iterable[Floats],
        colour: Colour,
        thickness: int = 3,
        *,
        casing: bool = True,
    ) -> None:
        """Draw lines; float64 (n, 2) each, x, y in pixels of the image.

        To draw lines of several colours, draw all in the colour of the casing first and then each
        without a casing. Otherwise casings cut through other lines.
        """
        grid = [self._grid(line) for line in lines]
        self._stroke(panel, grid, colour, thickness, closed=False, casing=casing)

    def draw_outlines(
        self,
        panel: Picture,
        polygons: Iterable[shapely.Geometry],
        colour: Colour,
        thickness: int = 2,
    ) -> None:
        """Draw outlines of polygons, also of their holes."""
        parts = shapely.get_parts(list(polygons)).tolist()
        rings = [
            self._grid(shapely.get_coordinates(ring))
            for part in parts
            if not part.is_empty
            for ring in shapely.get_rings(part)
        ]
        self._stroke(panel, rings, colour, thickness, closed=True, casing=True)

    def draw_dots(self, panel: Picture, points: Floats, colour: Colour, radius: int = 4) -> None:
        """Draw filled dots at points, float64 (n, 2)."""
        for extra, fill in ((1, CASING), (0, colour)):
            for x, y in self._grid(points).reshape(-1, 2).tolist():
                size = (radius + extra) << _SHIFT
                cv2.circle(panel, (x, y), size, fill, -1, cv2.LINE_AA, _SHIFT)

    def draw_rings(self, panel: Picture, points: Floats, colour: Colour, radius: int = 13) -> None:
        """Draw circles around points, float64 (n, 2)."""
        for thickness, fill in ((5, CASING), (3, colour)):
            for x, y in self._grid(points).reshape(-1, 2).tolist():
                cv2.circle(panel, (x, y), radius << _SHIFT, fill, thickness, cv2.LINE_AA, _SHIFT)

    def draw_crosses(self, panel: Picture, points: Floats, colour: Colour) -> None:
        """Draw small crosses at points, float64 (n, 2)."""
        arm = 5 / self.scale
        arms = np.array([[[-arm, -arm], [arm, arm]], [[-arm, arm], [arm, -arm]]])
        self.draw_lines(panel, [point + stroke for point in points for stroke in arms], colour, 2)

    def draw_labels(
        self, panel: Picture, labels: Iterable[tuple[Floats, str, Colour]], size: int = LABEL_PX
    ) -> None:
        """Write short texts at points, float64 (2,), with a casing and without covering each other.

        A text without room at its point moves beside it. If there is no room either, it is left
        out.
        """
        height, width = panel.shape[:2]
        used = np.zeros((height, width), np.bool_)
        for point, text, colour in labels:
            x, y = (self._grid(point[None]).reshape(2) / 2**_SHIFT).tolist()
            w, h = text_size(text, size)
            for right, down in ((0, 0), (0, -1), (0, 1), (1, 0), (-1, 0)):
                left = round(min(max(x - w / 2 + right * w, 2), max(width - w - 2, 2)))
                top = round(min(max(y - h / 2 + down * h, 2), max(height - h - 2, 2)))
                place = used[top : top + h, left : left + w]
                if not place.any():
                    place[...] = True
                    draw_text(panel, text, (left, top), colour, size, casing=True)
                    break

    def scale_bar(self, metres_per_pixel: float | None, units: Units) -> Picture:
        """Return a strip with a scale bar, as wide as the panel, to be put below it.

        The scale bar is in pixels of the image if their size is not known.
        """
        strip = np.full((_LINE_PX, self.panel_size[0], 3), 255, np.uint8)
        longest_px = max(self.panel_size[0] / 4, _LINE_PX) / self.scale
        if metres_per_pixel is None:
            length_px = _round_number(longest_px)
            text = f"{length_px:g} px"
        else:
            metres = units.round_length(longest_px * metres_per_pixel)
            length_px, text = metres / metres_per_pixel, units.length(metres)
        right, top, bottom = round(length_px * self.scale), 10, 18
        ends = [(1, top), (1, bottom), (right, bottom), (right, top)]
        cv2.polylines(strip, [np.array(ends, np.int32)], False, INK, 2)
        draw_text(strip, text, (right + 6, 3), INK)
        return strip

    def _stroke(
        self,
        panel: Picture,
        lines: Sequence[NDArray[np.int32]],
        colour: Colour,
        thickness: int,
        *,
        closed: bool,
        casing: bool,
    ) -> None:
        if casing:
            cv2.polylines(panel, lines, closed, CASING, thickness + 2, cv2.LINE_AA, _SHIFT)
        cv2.polylines(panel, lines, closed, colour, thickness, cv2.LINE_AA, _SHIFT)

    def _grid(self, points: Floats) -> NDArray[np.int32]:
        """Convert points to the panel's fine grid; pixel centres of the image are at halves."""
        place = (points - (self.left, self.top)) * self.scale - 0.5
        grid: NDArray[np.int32] = np.rint(np.clip(place * 2**_SHIFT, -_FAR, _FAR)).astype(np.int32)
        return grid


@dataclass(frozen=True, eq=False)
class Ground:
    """What objects are drawn on: an image, or white paper.

    Attributes:
        view: the part of the image's pixel grid to show.
        image: its pixels, also at a reduced size; None for white paper.
        metres_per_pixel: size of a pixel of the grid; None if not known.
    """

    view: View
    image: Picture | None = None
    metres_per_pixel: float | None = None

    @classmethod
    def of_image(cls, image: Picture, metres_per_pixel: float | None = None) -> "Ground":
        """Return a ground that shows a whole image, uint8 (h, w, 3)."""
        return cls(View.of_image(image.shape), image, metres_per_pixel)

    def panel(self) -> Picture:
        """Return a new panel to draw on."""
        return self.view.ground(self.image)

    def with_scale_bar(self, panel: Picture, units: Units) -> Picture:
        """Return a panel with a scale bar below it; white paper gets a frame."""
        if self.image is None:
            cv2.rectangle(panel, (0, 0), (panel.shape[1] - 1, panel.shape[0] - 1), _FRAME)
        return np.vstack([panel, self.view.scale_bar(self.metres_per_pixel, units)])


# --- texts and legends ----------------------------------------------------------------------------


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
    notes: Sequence[str] = field(default=())


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


def text_size(text: str, size: int) -> tuple[int, int]:
    """Return width and height of the box of a line of text, in pixels."""
    return ceil(_font(size).getlength(text)) + 4, round(size * 1.3)


def draw_text(
    picture: Picture,
    text: str,
    place: tuple[int, int],
    colour: Colour,
    size: int = TEXT_PX,
    *,
    casing: bool = False,
) -> None:
    """Write a line of text into a picture; ``place`` is the upper left corner of its box."""
    (x, y), (width, height) = place, text_size(text, size)
    part = picture[max(y, 0) : y + height, max(x, 0) : x + width]
    if not part.size:
        return
    canvas = Image.fromarray(np.ascontiguousarray(part))
    # "ls": the place is the left end of the baseline.
    ImageDraw.Draw(canvas).text(
        (2, round(size * 0.98)), text, colour, _font(size), "ls",
        stroke_width=2 if casing else 0, stroke_fill=CASING,
    )  # fmt: skip
    part[...] = np.asarray(canvas)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def compose(caption: Sequence[str], panels: Sequence[Panel]) -> Picture:
    """Combine panels of the same size side by side, with captions above and their own texts."""
    height, width = panels[0].drawing.shape[:2]
    columns_width = max(width, 420)
    columns: list[Picture] = []
    legends = [_legend(panel.keys, panel.notes, columns_width) for panel in panels]
    tallest = max(len(legend) for legend in legends)
    for panel, legend in zip(panels, legends, strict=True):
        body = np.full((height, columns_width, 3), 255, np.uint8)
        body[:, :width] = panel.drawing
        below = np.full((tallest, columns_width, 3), 255, np.uint8)
        below[: len(legend)] = legend
        columns.append(np.vstack([_line(panel.heading, columns_width), body, below]))
        columns.append(np.full((len(columns[0]), _GAP_PX, 3), 255, np.uint8))
    row = np.hstack(columns[:-1])
    sizes = [TITLE_PX, *[TEXT_PX] * len(caption)]
    head = [_line(line, row.shape[1], size) for line, size in zip(caption, sizes, strict=False)]
    picture = np.vstack([*head, row])
    return np.pad(picture, ((_GAP_PX, _GAP_PX), (_GAP_PX, _GAP_PX), (0, 0)), constant_values=255)


def _line(text: str, width: int, size: int = TEXT_PX) -> Picture:
    """Draw a line of text, reduced in size or cut off if it is too long."""
    line = np.full((_LINE_PX, width, 3), 255, np.uint8)
    # Longer texts do not fit in any case, and measuring them takes long.
    text = text[:width]
    while (longest := len(text) * width // text_size(text, size)[0]) < len(
        text
    ) and size > LABEL_PX:
        size -= 1
    while text_size(text, size)[0] > width:
        text = text[: longest - 3].rstrip() + "..."
        longest -= 1
    draw_text(line, text, (0, (_LINE_PX - text_size(text, size)[1]) // 2), INK, size)
    return line


def _legend(keys: Sequence[Key], notes: Sequence[str], width: int) -> Picture:
    """Draw the keys, as many per line as fit, then the notes, one per line."""
    lines = [np.full((_LINE_PX, width, 3), 255, np.uint8)] if keys else []
    x = 2
    for key in keys:
        needed = 34 + text_size(key.text, TEXT_PX)[0]
        if x > 2 and x + needed > width:
            lines.append(np.full((_LINE_PX, width, 3), 255, np.uint8))
            x = 2
        _sign(lines[-1], x, key)
        draw_text(lines[-1], key.text, (x + 32, 3), INK)
        x += needed + 14
    lines += [_line(note, width) for note in notes]
    return np.vstack(lines) if lines else np.empty((0, width, 3), np.uint8)


def _sign(line: Picture, x: int, key: Key) -> None:
    sign = View(0, 0, PANEL_PX, PANEL_PX)
    middle = np.array([[x + 14.0, _LINE_PX / 2]])
    if key.sign == "line":
        sign.draw_lines(line, [middle + np.array([[-12, 0], [12, 0]])], key.colour, 4)
    elif key.sign == "ring":
        sign.draw_rings(line, middle, key.colour, 8)
    elif key.sign == "cross":
        sign.draw_crosses(line, middle, key.colour)
    else:
        sign.draw_outlines(line, [shapely.box(x + 3, 7, x + 25, 21)], key.colour, 3)
