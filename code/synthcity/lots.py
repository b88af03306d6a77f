"""Lots: buildings that are kept or dropped together, and what they are clad with."""

from dataclasses import dataclass, field

import numpy as np
from shapely import Polygon, get_coordinates, union_all

from synthcity.blocks import Built
from synthcity.plan import FloatArray
from synthcity.solids import Coat, Solid
from synthcity.spectra import Material
from synthcity.strokes import Crown

#: Materials of pitched roofs, and how frequent they are.
PITCHED = (Material.ROOF_GREY, Material.ROOF_BROWN, Material.ROOF_TILE)
PITCHED_SHARES = (0.46, 0.30, 0.24)
_FLAT = (Material.ROOF_GREY, Material.GRAVEL, Material.ROOF_WHITE, Material.ROOF_METAL,
         Material.ROOF_BROWN)  # fmt: skip
_FLAT_SHARES = (0.36, 0.26, 0.18, 0.10, 0.10)

#: Materials of walls: houses have the first two, halls the last two.
WALLS = (Material.BRICK, Material.STUCCO, Material.CONCRETE)


@dataclass(frozen=True)
class Lot:
    """A candidate.

    Attributes:
        solids: buildings, which may touch.
        built: what lies on the ground around them.
        crowns: trees in courtyards.
    """

    solids: tuple[Solid, ...]
    built: Built = field(default_factory=Built)
    crowns: tuple[Crown, ...] = ()

    @property
    def ground(self) -> Polygon:
        """What it covers."""
        return union_all([solid.footprint for solid in self.solids])


def block_coat(rng: np.random.Generator, *, bay_m: float = 3.2, glazing: float = 0.45) -> Coat:
    """The materials of a block of flats or of offices, by chance."""
    return Coat(
        wall=WALLS[int(rng.integers(len(WALLS)))],
        wall_tone=rng.uniform(0.75, 1.2),
        roof=_FLAT[int(rng.choice(len(_FLAT), p=_FLAT_SHARES))],
        roof_tone=rng.uniform(0.75, 1.2),
        bay_m=bay_m,
        glazing=glazing,
    )


def house_coat(liked: int | None, rng: np.random.Generator) -> Coat:
    """The materials of a house; ``liked`` is the roof of its street, None for any."""
    kind = int(rng.choice(len(PITCHED), p=PITCHED_SHARES)) if liked is None else liked
    return Coat(
        wall=WALLS[int(rng.integers(2))],
        wall_tone=rng.uniform(0.85, 1.3),
        roof=PITCHED[kind],
        roof_tone=rng.uniform(0.7, 1.3),
        bay_m=3.4,
        glazing=0.3,
    )


def frame(lot: Polygon) -> tuple[FloatArray, FloatArray, float, float]:
    """Centre, direction of the longer side, length and width of a lot's least rectangle."""
    corners = get_coordinates(lot.minimum_rotated_rectangle)[:4]
    sides = np.diff(corners[:3], axis=0)
    lengths = np.hypot(sides[:, 0], sides[:, 1])
    longer = int(np.argmax(lengths))
    return (
        corners.mean(axis=0),
        sides[longer] / lengths[longer],
        float(lengths[longer]),
        float(lengths[1 - longer]),
    )
