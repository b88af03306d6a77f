"""Complete synthetic cities: scenes to paint, with their true roads and buildings."""

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
from synthcity.strokes import Building, Fill, Scene, Stroke, cast_shadow, scene_of
from synthcity.survey import Tile, extent, move_to_buildings
from synthcity.views import Skyline, skyline_of

# Minimum width and height of a city of buildings, metres. A few small tiles could otherwise fall
# between the houses. The tiles are moved to the most densely built part of the city.
_TOWN_M = 360.0


@dataclass(frozen=True)
class Land:
    """Site of a city, in metres.

    Attributes:
        width, height: extent of its chips or tiles in x and y.
        green: a rectangle in a corner to keep free of roads, or None.
        sun: (x, y), metres of shadow per metre of height.
    """

    width: float
    height: float
    green: Box | None
    sun: tuple[float, float]

    def plan_roads(self, rng: np.random.Generator) -> tuple[Plan, list[Edge]]:
        """Make the plan and the roads that are visible from the chips."""
        plan = make_plan(self.width, self.height, self.green, rng)
        edges = make_edges(plan, rng)
        return plan, [edge for edge in edges if near_city(edge, self.width, self.height)]

    def surface_strokes(
        self,
        plan: Plan,
        edges: list[Edge],
        built: Built,
        obstacles: Built,
        rng: np.random.Generator,
    ) -> tuple[list[Stroke], Trees]:
        """Make the strokes of everything flat, in painting order, and the trees.

        Args:
            plan: the city's plan.
            edges: its roads.
            built: ground covers, paint and cars around the buildings.
            obstacles: the buildings; no tree is planted inside them.
            rng: random generator for all choices.
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
    """Synthetic city of roads: metres, x eastward and y southward from the north-west corner.

    Attributes:
        edges: the true roads.
        scene: everything visible from above, in painting order.
    """

    edges: tuple[Edge, ...]
    scene: Scene


def make_scene(land: Land, rng: np.random.Generator) -> City:
    """Make a city of roads.

    Args:
        land: its site.
        rng: random generator for all choices.
    """
    plan, edges = land.plan_roads(rng)
    built = build(plan, edges, land.sun, rng)
    strokes, trees = land.surface_strokes(plan, edges, built, built, rng)
    strokes += trees.shadows
    # Paint from low to high, so that a tower's shadow falls on the house beside it.
    for building in sorted(built.buildings, key=lambda building: building.height):
        strokes += _building_strokes(building, land.sun)
    strokes += trees.crowns
    return City(tuple(edges), scene_of(strokes))


def _building_strokes(building: Building, sun: tuple[float, float]) -> list[Stroke]:
    return [cast_shadow(building.outline, building.height, sun), *building.roof]


@dataclass(frozen=True)
class Town:
    """Synthetic city of buildings: metres, x eastward and y southward from the north-west corner.

    Attributes:
        solids: the true buildings.
        ground: everything flat, in painting order.
        skyline: everything above the ground.
    """

    solids: tuple[Solid, ...]
    ground: Scene
    skyline: Skyline


def make_town(land: Land, rng: np.random.Generator) -> Town:
    """Make a city of buildings.

    Args:
        land: its site.
        rng: random generator for all choices.
    """
    plan, edges = land.plan_roads(rng)
    estates = build_estates(plan, edges, land.sun, rng)
    solids = Built(buildings=estates.outlines())
    strokes, trees = land.surface_strokes(plan, edges, estates.built, solids, rng)
    skyline = skyline_of(estates.solids, [*trees.crowns, *estates.crowns])
    return Town(tuple(estates.solids), scene_of(strokes), skyline)


@dataclass(frozen=True)
class Split:
    """Training or test split of a city of buildings.

    Attributes:
        tiles: locations of its images.
        town: its city.
        texture: seed of the ground textures, the same for all images.
        truth: tile name -> footprints.
        sun: (x, y), metres of shadow per metre of height.
    """

    tiles: list[Tile]
    town: Town
    texture: int
    truth: dict[str, list[Footprint]]
    sun: tuple[float, float]

    def sites(self) -> Iterator[tuple[Tile, Site]]:
        """Yield every tile with its painted ground and lighting."""
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


def make_split(
    tiles: list[Tile], green: Box | None, sun: tuple[float, float], seed: tuple[int, ...]
) -> Split:
    """Make the training or the test split of a city.

    Args:
        tiles: locations of its images, at least one.
        green: a rectangle in a corner to keep free of streets, or None.
        sun: (x, y), metres of shadow per metre of height.
        seed: seed of all random choices.
    """
    rng = np.random.default_rng(seed)
    width, height = extent(tiles)
    if green is None:
        town = make_town(Land(max(width, _TOWN_M), max(height, _TOWN_M), None, sun), rng)
        tiles = move_to_buildings(tiles, town.solids, (_TOWN_M - width, _TOWN_M - height))
    else:
        town = make_town(Land(width, height, green, sun), rng)
    tree = STRtree([solid.footprint for solid in town.solids])
    truth = {tile.name: tile_footprints(town.solids, tree, tile) for tile in tiles}
    return Split(tiles, town, int(rng.integers(2**31)), truth, sun)


def image_rng(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator for the noise of one image."""
    return np.random.default_rng((seed, 3, *key))


def write_csv(path: Path, rows: Sequence[str], more: str = "") -> None:
    """Write a truth CSV; ``more`` is appended to the header."""
    write_text(path, "\n".join([CSV_HEADER + more, *rows]) + "\n")
