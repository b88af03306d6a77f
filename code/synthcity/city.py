"""One city for both renderers: painted surfaces, what stands on them, and the true roads."""

from dataclasses import dataclass, replace
from functools import cached_property

from synthcity.decks import deck_faces
from synthcity.estates import build_estates
from synthcity.landcover import ground_strokes, plant
from synthcity.network import Edge, make_edges
from synthcity.plan import LEVEL_M, Box, Overpasses, Rng, make_plan
from synthcity.roads import car, road_strokes
from synthcity.solids import Face, Solid, from_above
from synthcity.strokes import Crown, Fill, Scene, Shadow, Stroke, Sun, scene_of
from synthcity.views import CROWN_LIFT, Skyline, skyline_of


@dataclass(frozen=True)
class Land:
    """Site of a city, in metres."""

    width: float  # extent of its chips or tiles in x and y
    height: float
    green: Box | None  # a rectangle in a corner to keep free of roads, or None
    sun: Sun  # (x, y), metres of shadow per metre of height
    overpasses: Overpasses = Overpasses.FEW  # how many roads cross on different levels


@dataclass(frozen=True)
class City:
    """Synthetic city: metres, x eastward and y southward from the north-west corner."""

    edges: tuple[Edge, ...]  # its roads, railways and footbridges
    solids: tuple[Solid, ...]  # its buildings
    # number of the deck and faces of each raised piece of road
    bridges: tuple[tuple[int, list[Face]], ...]
    crowns: tuple[Crown, ...]  # its trees
    # strokes of the ground, then of the roads on each deck, in painting order
    surfaces: tuple[Scene, ...]
    sun: Sun  # (x, y), metres of shadow per metre of height
    texture: int = 0  # seed of the ground textures, the same for all images

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
        bodies = [(solid.height, from_above(solid.faces, self.sun)) for solid in self.solids]
        for deck, scene in enumerate(self.surfaces[1:], 1):
            faces = [f for number, body in self.bridges if number == deck for f in body]
            # The carriageways come first, so that no deck covers the parapet of another one.
            drawn = from_above(sorted(faces, key=lambda f: not f.deck), self.sun)
            if deck < 3:
                # Banks and the bridges that continue them do not shade each other.
                strokes += [stroke for stroke in drawn if isinstance(stroke, Shadow)]
                drawn = [stroke for stroke in drawn if not isinstance(stroke, Shadow)]
            bodies.append(((deck - 0.5) * LEVEL_M, [*drawn, *scene.strokes]))
        # Paint from low to high, so that a tower's shadow falls on the house beside it.
        for _, body in sorted(bodies, key=lambda body: body[0]):
            strokes += body
        return scene_of([*strokes, *self.crowns])

    def _shadow(self, crown: Crown) -> Crown:
        lift = CROWN_LIFT * crown.radius
        x, y = crown.x + self.sun[0] * lift, crown.y + self.sun[1] * lift
        return replace(crown, x=x, y=y, material=None)


def build_city(land: Land, rng: Rng) -> City:
    """Make a city on its site."""
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
