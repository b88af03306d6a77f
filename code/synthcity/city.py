"""One city for both renderers: painted surfaces, what stands on them, and the true roads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from synthcity.decks import deck_faces
from synthcity.estates import build_estates
from synthcity.landcover import ground_strokes, plant
from synthcity.network import Edge, make_edges
from synthcity.plan import LEVEL_M, Box, Overpasses, make_plan
from synthcity.roads import car, road_strokes
from synthcity.solids import Face, Solid, from_above
from synthcity.strokes import Crown, Fill, Scene, Stroke, Sun, scene_of
from synthcity.views import CROWN_LIFT, Skyline, skyline_of


@dataclass(frozen=True)
class Land:
    """Site of a city, in metres.

    Attributes:
        width, height: extent of its chips or tiles in x and y.
        green: a rectangle in a corner to keep free of roads, or None.
        sun: (x, y), metres of shadow per metre of height.
        overpasses: how many roads cross on different levels.
    """

    width: float
    height: float
    green: Box | None
    sun: Sun
    overpasses: Overpasses = Overpasses.FEW


@dataclass(frozen=True)
class City:
    """Synthetic city: metres, x eastward and y southward from the north-west corner.

    Attributes:
        edges: its roads, railways and footbridges.
        solids: its buildings.
        bridges: number of the deck and faces of each raised piece of road.
        crowns: its trees.
        surfaces: strokes of the ground, then of the roads on each deck, in painting order.
        sun: (x, y), metres of shadow per metre of height.
        texture: seed of the ground textures, the same for all images.
    """

    edges: tuple[Edge, ...]
    solids: tuple[Solid, ...]
    bridges: tuple[tuple[int, list[Face]], ...]
    crowns: tuple[Crown, ...]
    surfaces: tuple[Scene, ...]
    sun: Sun
    texture: int = 0

    @property
    def roads(self) -> tuple[Edge, ...]:
        """The roads that have labels."""
        return tuple(edge for edge in self.edges if edge.street.is_road)

    @cached_property
    def skyline(self) -> Skyline:
        """Everything above the ground, for the oblique renderer."""
        return skyline_of(self.solids, self.crowns, [f for _, faces in self.bridges for f in faces])

    @cached_property
    def from_above(self) -> Scene:
        """Everything visible from above, for the flat painter."""
        strokes: list[Stroke] = [*self.surfaces[0].strokes, *map(self._shadow, self.crowns)]
        # Paint from low to high, so that a tower's shadow falls on the house beside it.
        bodies: list[tuple[float, Sequence[Face], Sequence[Stroke]]] = [
            (solid.height, solid.faces, ()) for solid in self.solids
        ]
        for deck, scene in enumerate(self.surfaces[1:], 1):
            faces = [f for number, body in self.bridges if number == deck for f in body]
            # The carriageways come first, so that no deck covers the parapet of another one.
            faces.sort(key=lambda f: not f.deck)
            bodies.append((deck * LEVEL_M, faces, scene.strokes))
        for _, faces, paint in sorted(bodies, key=lambda body: body[0]):
            strokes += [*from_above(faces, self.sun), *paint]
        return scene_of([*strokes, *self.crowns])

    def _shadow(self, crown: Crown) -> Crown:
        lift = CROWN_LIFT * crown.radius
        x, y = crown.x + self.sun[0] * lift, crown.y + self.sun[1] * lift
        return replace(crown, x=x, y=y, material=None)


def build_city(land: Land, rng: np.random.Generator) -> City:
    """Make a city.

    Args:
        land: its site.
        rng: random generator for all choices.
    """
    plan = make_plan(land.width, land.height, land.green, rng, land.overpasses)
    edges = [edge for edge in make_edges(plan, rng) if edge.touches(land.width, land.height)]
    estates = build_estates(plan, edges, rng)
    cover = ground_strokes(plan, rng)
    ground: list[Stroke] = [*cover, *estates.ground, *estates.stripes]
    for place, along in estates.cars:
        ground += car(place, along, land.sun, rng)
    surfaces = road_strokes(edges, land.sun, rng)
    surfaces[0] = ground + surfaces[0]
    fills = [stroke for stroke in (*cover, *estates.ground) if isinstance(stroke, Fill)]
    crowns = plant(plan, edges, estates.solids, fills, rng)
    return City(
        tuple(edges),
        tuple(estates.solids),
        tuple(deck_faces(edges)),
        (*crowns, *estates.crowns),
        tuple(scene_of(strokes) for strokes in surfaces),
        land.sun,
        int(rng.integers(2**31)),
    )
