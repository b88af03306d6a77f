"""Complete cities: land, roads and buildings put together into scenes that can be painted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shapely import STRtree

from synthcity.blocks import Built, build
from synthcity.estates import build_estates
from synthcity.files import write_text
from synthcity.footprints import CSV_HEADER, Footprint, tile_footprints
from synthcity.landcover import Trees, ground_strokes, plant
from synthcity.network import Edge, make_edges
from synthcity.oblique import Site
from synthcity.plan import Box, Plan, make_plan
from synthcity.roads import car, near_city, road_strokes
from synthcity.solids import Solid
from synthcity.strokes import Building, Fill, Scene, Stroke, cast, scene_of
from synthcity.survey import Tile, extent, finished_with
from synthcity.views import Skyline, skyline_of

# Few small tiles could fall between the houses: their city is at least so wide and high, metres,
# and they lie where most is built.
_TOWN_M = 360.0


@dataclass(frozen=True)
class Land:
    """Where a city is to stand, in metres.

    Attributes:
        width, height: extent of its chips or tiles in x and y.
        green: a rectangle in a corner to keep free of roads, or None.
        sun: (x, y), metres of shadow for a metre of height.
    """

    width: float
    height: float
    green: Box | None
    sun: tuple[float, float]

    def settle(self, rng: np.random.Generator) -> tuple[Plan, list[Edge]]:
        """The plan of a city, and its roads as far as they can be seen from it."""
        plan = make_plan(self.width, self.height, self.green, rng)
        edges = make_edges(plan, rng)
        return plan, [edge for edge in edges if near_city(edge, self.width, self.height)]

    def surface(
        self,
        plan: Plan,
        edges: list[Edge],
        built: Built,
        obstacles: Built,
        rng: np.random.Generator,
    ) -> tuple[list[Stroke], Trees]:
        """The strokes of all that is flat, in painting order, and the trees around it.

        Args:
            plan: the city's plan.
            edges: its roads.
            built: what belongs to buildings and lies on the ground.
            obstacles: the buildings, in which no tree can stand.
            rng: source of all choices.
        """
        land = ground_strokes(plan, rng)
        strokes: list[Stroke] = [*land, *built.ground, *built.stripes]
        for place, along in built.cars:
            strokes += car(place, along, self.sun, rng)
        strokes += road_strokes(edges, self.sun, rng)
        covers = [stroke for stroke in (*land, *built.ground) if isinstance(stroke, Fill)]
        return strokes, plant(plan, edges, obstacles, covers, self.sun, rng)


@dataclass(frozen=True)
class City:
    """A made city in metres, x eastward and y southward from its north-west chip's corner.

    Attributes:
        edges: the true roads.
        scene: what an aeroplane would see, in painting order.
    """

    edges: tuple[Edge, ...]
    scene: Scene


def make_scene(land: Land, rng: np.random.Generator) -> City:
    """Make a city.

    Args:
        land: where.
        rng: source of all choices.
    """
    plan, edges = land.settle(rng)
    built = build(plan, edges, land.sun, rng)
    strokes, trees = land.surface(plan, edges, built, built, rng)
    strokes += trees.shadows
    # From low to high: a tower throws its shadow over the house beside it, not the reverse.
    for building in sorted(built.buildings, key=lambda building: building.height):
        strokes += _raise(building, land.sun)
    strokes += trees.crowns
    return City(tuple(edges), scene_of(strokes))


def _raise(building: Building, sun: tuple[float, float]) -> list[Stroke]:
    return [cast(building.outline, building.height, sun), *building.roof]


@dataclass(frozen=True)
class Town:
    """A made city of buildings in metres, x eastward and y southward from its north-west corner.

    Attributes:
        solids: the true buildings.
        ground: all that is flat, in painting order.
        skyline: all that is not.
    """

    solids: tuple[Solid, ...]
    ground: Scene
    skyline: Skyline


def make_town(land: Land, rng: np.random.Generator) -> Town:
    """Make a city of buildings.

    Args:
        land: where.
        rng: source of all choices.
    """
    plan, edges = land.settle(rng)
    estates = build_estates(plan, edges, land.sun, rng)
    solids = Built(buildings=estates.outlines())
    strokes, trees = land.surface(plan, edges, estates.built, solids, rng)
    skyline = skyline_of(estates.solids, [*trees.crowns, *estates.crowns])
    return Town(tuple(estates.solids), scene_of(strokes), skyline)


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
