"""Off-nadir angles of SpaceNet 4 images and the view-angle categories derived from them.

A view angle has a number of degrees off nadir and a side: the target lies to the north or to the
south of the satellite's track. The side decides which way roofs lean and whether the sunlit or the
shaded side of objects is visible. The image names of SpaceNet 4's 27 collects hold the integer part
of the angle and a catalogue number. There are two collects of 10 degrees, one per side; the
catalogue number distinguishes them.
"""

import re
from dataclasses import dataclass
from typing import Literal

from satmap.errors import SatmapError

_NAME = re.compile(r"_nadir(?P<angle>\d{1,2})_catid_(?P<catalogue>[0-9A-Z]+)", re.I)

# Collects with a target azimuth above 90 degrees: 7.8, 10.5, 13.9, 16.9, 21.3, 25.4, 29.1, 32.5.
_SOUTH = {7, 13, 16, 21, 25, 29, 32}
_TEN_SOUTH = "1030010003993E00"
_NORTH = {8, 14, 19, 23, 27, 30, 34, 36, 39, 42, 44, 46, 47, 49, 50, 52, 53}

# Names of the metric.
_NADIR, _OFF, _VERY_OFF = "nadir", "off-nadir", "very off-nadir"

#: Largest angles, integer part in degrees, of the categories nadir and off-nadir. Larger angles are
#: very off-nadir.
NADIR_UP_TO, OFF_NADIR_UP_TO = 25, 40

#: View-angle categories by their number.
CATEGORIES: dict[int, tuple[str, ...]] = {
    3: (_NADIR, _OFF, _VERY_OFF),
    5: (f"{_NADIR} north", f"{_NADIR} south", f"{_OFF} north", f"{_OFF} south", _VERY_OFF),
}


@dataclass(frozen=True)
class ViewAngle:
    """Off-nadir angle of an image.

    Attributes:
        angle: integer part of the degrees off nadir.
        side: side of the target; None if unknown.
    """

    angle: int
    side: Literal["north", "south"] | None = None

    def __str__(self) -> str:
        return f"{self.angle}{self.side or ''}"

    def category(self, heads: int) -> str | None:
        """Return one of ``CATEGORIES[heads]``; None if it depends on an unknown side."""
        if self.angle > OFF_NADIR_UP_TO:
            return _VERY_OFF
        kind = _NADIR if self.angle <= NADIR_UP_TO else _OFF
        if heads == len(CATEGORIES[3]):
            return kind
        return f"{kind} {self.side}" if self.side else None


def view_angle_of_name(name: str) -> ViewAngle | None:
    """Parse the off-nadir angle in an image name; None if the name lacks it."""
    match = _NAME.search(name)
    if match is None:
        return None
    angle = int(match["angle"])
    if angle == 10:
        south = match["catalogue"].upper() == _TEN_SOUTH
    elif angle in _SOUTH | _NORTH:
        south = angle in _SOUTH
    else:
        return ViewAngle(angle)
    return ViewAngle(angle, "south" if south else "north")


def require_category(name: str, view_angle: ViewAngle | None, heads: int) -> str:
    """Return the view-angle category of an image of this name, one of ``CATEGORIES[heads]``.

    Raises:
        SatmapError: the angle or its side is unknown.
    """
    category = view_angle.category(heads) if view_angle else None
    if category is None:
        what = "degrees off nadir, such as 32" + ("" if heads == len(CATEGORIES[3]) else "south")
        raise SatmapError(
            f"{name}: the file name does not give the off-nadir angle (_nadir32_catid_...), but "
            f"the networks have heads for {', '.join(CATEGORIES[heads])}. Give --nadir {what}; it "
            "applies to all images whose names lack the angle."
        )
    return category


def parse_view_angle(text: str) -> ViewAngle:
    """Parse an off-nadir angle as a user writes it: ``32``, ``32.5south``, ``12 north``.

    Raises:
        ValueError: the text is not an off-nadir angle.
    """
    match = re.fullmatch(r"(\d{1,2})(?:\.\d*)?\s*,?\s*(north|south)?", text.strip(), re.I)
    if match is None:
        raise ValueError(
            f"{text!r} is not an off-nadir angle; write degrees off nadir, such as 32 or 32south"
        )
    sides: dict[str | None, Literal["north", "south"]] = {"north": "north", "south": "south"}
    return ViewAngle(int(match[1]), sides.get(match[2].lower() if match[2] else None))
