"""A city of buildings, put together: its truth (the solids) and its looks."""

from dataclasses import dataclass

import numpy as np

from satmap.data.city.blocks import Built
from satmap.data.city.estates import build_estates
from satmap.data.city.ground import ground_strokes
from satmap.data.city.network import make_edges
from satmap.data.city.plan import Box, make_plan
from satmap.data.city.roads import car, near_city, road_strokes
from satmap.data.city.solids import Solid
from satmap.data.city.strokes import Fill, Scene, Stroke, scene_of
from satmap.data.city.trees import plant
from satmap.data.city.views import Skyline, skyline_of


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


def make_town(
    width: float,
    height: float,
    green: Box | None,
    sun: tuple[float, float],
    rng: np.random.Generator,
) -> Town:
    """Make a city of buildings.

    Args:
        width: extent of its tiles in x, metres.
        height: extent of its tiles in y, metres.
        green: a rectangle in a corner to keep free of buildings, or None.
        sun: (x, y), metres of shadow for a metre of height.
        rng: source of all choices.
    """
    plan = make_plan(width, height, green, rng)
    edges = [edge for edge in make_edges(plan, rng) if near_city(edge, width, height)]
    estates = build_estates(plan, edges, sun, rng)
    land = ground_strokes(plan, rng)
    built = estates.built
    strokes: list[Stroke] = [*land, *built.ground, *built.stripes]
    for place, along in built.cars:
        strokes += car(place, along, sun, rng)
    strokes += road_strokes(edges, sun, rng)
    covers = [stroke for stroke in (*land, *built.ground) if isinstance(stroke, Fill)]
    trees = plant(plan, edges, Built(buildings=estates.outlines()), covers, sun, rng)
    skyline = skyline_of(estates.solids, [*trees.crowns, *estates.crowns])
    return Town(tuple(estates.solids), scene_of(strokes), skyline)
