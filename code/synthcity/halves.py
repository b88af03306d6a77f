"""The training and the test half of a city of buildings: what its layouts have in common."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shapely import STRtree

from synthcity.files import write_text
from synthcity.footprints import CSV_HEADER, Footprint, tile_footprints
from synthcity.oblique import Site
from synthcity.plan import Box
from synthcity.surface import Land
from synthcity.tiles import Tile, extent, finished_with
from synthcity.town import Town, make_town

# Few small tiles could fall between the houses: their city is at least so wide and high, metres,
# and they lie where most is built.
_TOWN_M = 360.0


@dataclass(frozen=True)
class Half:
    """One half.

    Attributes:
        tiles: its images' places.
        town: what stands there.
        texture: seed of textures that belong to the place.
        truth: by the name of a tile, its footprints.
        sun: (x, y), metres of shadow for a metre of height.
    """

    tiles: list[Tile]
    town: Town
    texture: int
    truth: dict[str, list[Footprint]]
    sun: tuple[float, float]

    def sites(self) -> Iterator[tuple[Tile, Site]]:
        """Every tile with its ground and light, one at a time."""
        for tile in self.tiles:
            yield (
                tile,
                Site.of(
                    self.town.ground,
                    self.town.skyline,
                    tile.window,
                    tile.grid,
                    self.sun,
                    self.texture,
                ),
            )


def make_half(
    tiles: list[Tile], green: Box | None, sun: tuple[float, float], seed: tuple[int, ...]
) -> Half:
    """Make one half of a city.

    Args:
        tiles: its images' places, at least one.
        green: a rectangle in a corner to keep free of streets, or None.
        sun: (x, y), metres of shadow for a metre of height.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    width, height = extent(tiles)
    if green is None:
        town = make_town(Land(max(width, _TOWN_M), max(height, _TOWN_M), None, sun), rng)
        tiles = finished_with(tiles, town.solids, (_TOWN_M - width, _TOWN_M - height))
    else:
        town = make_town(Land(width, height, green, sun), rng)
    tree = STRtree([solid.footprint for solid in town.solids])
    truth = {tile.name: tile_footprints(town.solids, tree, tile) for tile in tiles}
    return Half(tiles, town, int(rng.integers(2**31)), truth, sun)


def noise(seed: int, *key: int) -> np.random.Generator:
    """Source of one image's noise."""
    return np.random.default_rng((seed, 3, *key))


def write_csv(path: Path, rows: Sequence[str], more: str = "") -> None:
    """Write a truth CSV; ``more`` is what its header has besides."""
    write_text(path, "\n".join([CSV_HEADER + more, *rows]) + "\n")
