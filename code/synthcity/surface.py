"""What lies flat in a made city, of roads or of buildings: land, streets, all that is on them."""

from dataclasses import dataclass

import numpy as np

from synthcity.blocks import Built
from synthcity.ground import ground_strokes
from synthcity.network import Edge, make_edges
from synthcity.plan import Box, Plan, make_plan
from synthcity.roads import car, near_city, road_strokes
from synthcity.strokes import Fill, Stroke
from synthcity.trees import Trees, plant


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
