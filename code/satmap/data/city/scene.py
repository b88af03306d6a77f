"""A city, put together: its truth (the edges) and its looks (the scene)."""

from dataclasses import dataclass

import numpy as np

from satmap.data.city.blocks import build
from satmap.data.city.ground import ground_strokes
from satmap.data.city.network import Edge, make_edges
from satmap.data.city.plan import Box, make_plan
from satmap.data.city.roads import car, near_city, road_strokes
from satmap.data.city.strokes import Building, Fill, Scene, Stroke, cast, scene_of
from satmap.data.city.trees import plant


@dataclass(frozen=True)
class City:
    """A made city in metres, x eastward and y southward from its north-west chip's corner.

    Attributes:
        edges: the true roads.
        scene: what an aeroplane would see, in painting order.
    """

    edges: tuple[Edge, ...]
    scene: Scene


def make_scene(
    width: float,
    height: float,
    green: Box | None,
    sun: tuple[float, float],
    rng: np.random.Generator,
) -> City:
    """Make a city.

    Args:
        width: extent of its chips in x, metres.
        height: extent of its chips in y, metres.
        green: a rectangle in a corner to keep free of roads, or None.
        sun: (x, y), metres of shadow for a metre of height.
        rng: source of all choices.
    """
    plan = make_plan(width, height, green, rng)
    edges = [edge for edge in make_edges(plan, rng) if near_city(edge, width, height)]
    built = build(plan, edges, sun, rng)
    land = ground_strokes(plan, rng)
    strokes: list[Stroke] = [*land, *built.ground]
    strokes += built.stripes
    for place, along in built.cars:
        strokes += car(place, along, sun, rng)
    strokes += road_strokes(edges, sun, rng)
    covers = [stroke for stroke in (*land, *built.ground) if isinstance(stroke, Fill)]
    trees = plant(plan, edges, built, covers, sun, rng)
    strokes += trees.shadows
    # From low to high: a tower throws its shadow over the house beside it, not the reverse.
    for building in sorted(built.buildings, key=lambda building: building.height):
        strokes += _raise(building, sun)
    strokes += trees.crowns
    return City(tuple(edges), scene_of(strokes))


def _raise(building: Building, sun: tuple[float, float]) -> list[Stroke]:
    return [cast(building.outline, building.height, sun), *building.roof]
