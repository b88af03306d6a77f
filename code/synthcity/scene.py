"""A city, put together: its truth (the edges) and its looks (the scene)."""

from dataclasses import dataclass

import numpy as np

from synthcity.blocks import build
from synthcity.network import Edge
from synthcity.strokes import Building, Scene, Stroke, cast, scene_of
from synthcity.surface import Land


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
