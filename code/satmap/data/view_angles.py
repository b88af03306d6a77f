"""From where an image looks at the ground, as SpaceNet 4 has it, and the category that follows.

A look is so many degrees off nadir, and its target lies to the north or to the south of the
satellite's track: roofs lean one way, and shadows fall on the sunny or on the dark side. The names
of SpaceNet 4's 27 collects hold the angle's integer part and a catalogue number; the two of 10
degrees, one of either side, are told apart by the latter.
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

# As the metric calls them.
_NADIR, _OFF, _VERY_OFF = "nadir", "off-nadir", "very off-nadir"

#: Up to these angles, integer parts, a look is nadir and off-nadir; beyond it is very off-nadir.
NADIR_UP_TO, OFF_NADIR_UP_TO = 25, 40

#: Categories of looks, by how many are told apart.
CATEGORIES: dict[int, tuple[str, ...]] = {
    3: (_NADIR, _OFF, _VERY_OFF),
    5: (f"{_NADIR} north", f"{_NADIR} south", f"{_OFF} north", f"{_OFF} south", _VERY_OFF),
}


@dataclass(frozen=True)
class ViewAngle:
    """From where an image was taken.

    Attributes:
        angle: degrees off nadir, the integer part.
        side: of the target, None where nobody knows.
    """

    angle: int
    side: Literal["north", "south"] | None = None

    def __str__(self) -> str:
        return f"{self.angle}{self.side or ''}"

    def category(self, heads: int) -> str | None:
        """One of ``CATEGORIES[heads]``; None if it takes the side, which nobody knows."""
        if self.angle > OFF_NADIR_UP_TO:
            return _VERY_OFF
        kind = _NADIR if self.angle <= NADIR_UP_TO else _OFF
        if heads == len(CATEGORIES[3]):
            return kind
        return f"{kind} {self.side}" if self.side else None


def view_angle_of_name(name: str) -> ViewAngle | None:
    """The look that stands in the name of an image, None where none does."""
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
    """The category of an image's look, one of ``CATEGORIES[heads]``.

    Args:
        name: of the image's file, for the message.
        view_angle: None where nobody knows.
        heads: how many categories are told apart.

    Raises:
        SatmapError: nobody knows the look, or its side.
    """
    category = view_angle.category(heads) if view_angle else None
    if category is None:
        what = "degrees off nadir, such as 32" + ("" if heads == len(CATEGORIES[3]) else "south")
        raise SatmapError(
            f"{name}: its name does not say from where it looks at the ground "
            f"(_nadir32_catid_...), and the networks have heads for {', '.join(CATEGORIES[heads])}."
            f" Give --nadir {what}, which holds for all images that do not say it."
        )
    return category


def parse_view_angle(text: str) -> ViewAngle:
    """A look as a user writes it: ``32``, ``32.5south``, ``12 north``.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d{1,2})(?:\.\d*)?\s*,?\s*(north|south)?", text.strip(), re.I)
    if match is None:
        raise ValueError(f"{text!r} is no look; write degrees off nadir, such as 32 or 32south")
    sides: dict[str | None, Literal["north", "south"]] = {"north": "north", "south": "south"}
    return ViewAngle(int(match[1]), sides.get(match[2].lower() if match[2] else None))
