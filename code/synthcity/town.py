"""A city of buildings, put together: its truth (the solids) and its looks."""

from dataclasses import dataclass

import numpy as np

from synthcity.blocks import Built
from synthcity.estates import build_estates
from synthcity.solids import Solid
from synthcity.strokes import Scene, scene_of
from synthcity.surface import Land
from synthcity.views import Skyline, skyline_of


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
