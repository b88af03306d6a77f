"""The 27 looks of SpaceNet 4: one satellite passed Atlanta and turned its head all the way.

Angles, directions and resolutions are those of the collects' published list; catalogue ids are
made, but for one that readers know. The satellite flew from north to south, so that it first looked
southward, then northward.
"""

from dataclasses import dataclass

import numpy as np

from synthcity.files import CityError

# Off-nadir angle and target azimuth (degrees), resolution of the panchromatic band (metres). The
# list has 31.0, 37.0 and 54.0 degrees where names say 30, 36 and 53: it was rounded up there.
_COLLECTS = (
    (7.8, 118.4, 0.48), (8.3, 78.4, 0.49), (10.5, 148.6, 0.49), (10.6, 57.6, 0.48),
    (13.9, 162.0, 0.49), (14.8, 43.0, 0.49), (16.9, 168.7, 0.52), (19.3, 35.1, 0.52),
    (21.3, 174.7, 0.54), (23.5, 30.7, 0.54), (25.4, 178.4, 0.57), (27.4, 27.7, 0.58),
    (29.1, 181.0, 0.61), (30.97, 25.5, 0.62), (32.5, 182.8, 0.65), (34.0, 23.8, 0.68),
    (36.97, 22.6, 0.74), (39.6, 21.5, 0.80), (42.0, 20.7, 0.87), (44.2, 20.0, 0.95),
    (46.1, 19.5, 1.03), (47.8, 19.0, 1.13), (49.3, 18.5, 1.23), (50.9, 18.0, 1.36),
    (52.2, 17.7, 1.48), (53.4, 17.4, 1.63), (53.97, 17.4, 1.67),
)  # fmt: skip

# Two looks have the name's 10 degrees: what tells which of them faces south is this id alone.
_REAL_IDS = {10.5: "1030010003993E00"}

#: How many looks there are.
VIEW_ANGLES = len(_COLLECTS)


@dataclass(frozen=True)
class ViewAngle:
    """One collect.

    Attributes:
        angle: off-nadir angle, degrees.
        azimuth: direction from the satellite to the target, degrees clockwise from north; what is
            high leans that way.
        resolution_m: size of a native pixel, the geometric mean of both sides, metres.
        catalogue: id of the collect.
    """

    angle: float
    azimuth: float
    resolution_m: float
    catalogue: str = ""

    @property
    def name(self) -> str:
        """As SpaceNet 4 names its directories; the angle loses its fraction."""
        return f"Atlanta_nadir{int(self.angle)}_catid_{self.catalogue}"

    @property
    def shift(self) -> tuple[float, float]:
        """Eastward and southward metres that the image of a metre of height is moved."""
        slope, heading = np.tan(np.radians(self.angle)), np.radians(self.azimuth)
        return float(slope * np.sin(heading)), float(-slope * np.cos(heading))


def write_view_angles(count: int, rng: np.random.Generator) -> tuple[ViewAngle, ...]:
    """``count`` of the 27 looks, the least and the most oblique first of all, by angle.

    Raises:
        CityError: there are not so many, or it is none.
    """
    if not 1 <= count <= VIEW_ANGLES:
        raise CityError(f"cannot make {count} looks; give a number from 1 to {VIEW_ANGLES}.")
    serials = rng.choice(0xFFFFF, VIEW_ANGLES, replace=False)
    chosen = np.unique(np.rint(np.linspace(0, VIEW_ANGLES - 1, count)).astype(int))
    return tuple(
        ViewAngle(*_COLLECTS[i], _REAL_IDS.get(_COLLECTS[i][0], f"103001009{serials[i]:05X}00"))
        for i in chosen
    )
