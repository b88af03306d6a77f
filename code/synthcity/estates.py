"""All buildings of a city of buildings: towers, perimeter blocks, rows, houses, sheds.

Buildings are the truth here, so they have whole footprints and heights, and touch only at shared
walls. In the city of roads, buildings are only clutter beside the streets.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from shapely import Polygon, STRtree, area, intersection, points, polygonize, unary_union

from synthcity.blocks import KERB_M, Built, shops
from synthcity.centre import block_lots, halls
from synthcity.housing import PITCHED, PITCHED_SHARES, Lot, house, row
from synthcity.network import Edge
from synthcity.plan import Cell, District, FloatArray, Plan
from synthcity.solids import Solid
from synthcity.strokes import Building, Crown, outline, point_at

_HOUSED = {"residential", "tertiary", "secondary"}

# Overlaps up to this area are rounding errors, square metres.
_TOUCH_M2 = 0.05


class _Quarter(StrEnum):
    """Kind of building development of a cell."""

    CENTRE = "centre"
    INNER = "inner"
    HOUSES = "houses"
    SHOPS = "shops"
    OPEN = "open"


@dataclass
class Estates:
    """All buildings of a city, with their surroundings.

    Attributes:
        solids: the buildings, without overlaps.
        built: ground covers, paint and cars around them; ``built.buildings`` is empty.
        crowns: trees in courtyards.
    """

    solids: list[Solid] = field(default_factory=list)
    built: Built = field(default_factory=Built)
    crowns: list[Crown] = field(default_factory=list)

    def outlines(self) -> list[Building]:
        """Return the buildings as obstacles, with filled courtyards."""
        return [Building(outline(solid.footprint), solid.height, ()) for solid in self.solids]


def build_estates(
    plan: Plan, edges: list[Edge], sun: tuple[float, float], rng: np.random.Generator
) -> Estates:
    """Make all buildings of a city.

    Args:
        plan: the city's plan.
        edges: its roads.
        sun: (x, y), metres of shadow per metre of height.
        rng: random generator for all choices.
    """
    quarters = _quarters(plan, rng)
    land = [Polygon(plan.warp(cell.box.ring())) for cell in plan.cells]
    lots: list[Lot] = []
    estates = Estates()
    for cell, quarter in zip(plan.cells, quarters, strict=True):
        if quarter is _Quarter.SHOPS:
            built = shops(cell.box, plan, sun, rng)
            lots += halls(built.buildings, rng)
            built.buildings = []
            estates.built.add(built)
    tree = STRtree(land)
    for block in _blocks(edges):
        within = tree.query(block.representative_point(), predicate="within")
        quarter = quarters[int(within[0])] if len(within) else _Quarter.OPEN
        if quarter is _Quarter.CENTRE or (quarter is _Quarter.INNER and rng.random() < 0.55):
            lots += block_lots(block, quarter is _Quarter.CENTRE, estates.built.ground, rng)
    lots += _street_lots(plan, edges, tree, quarters, rng)
    roads = [edge.line.buffer(edge.street.width_m / 2 + 1.0) for edge in edges]
    for lot in _without_collisions(lots, roads):
        estates.solids += lot.solids
        estates.built.add(lot.built)
        estates.crowns += lot.crowns
    return estates


def _quarters(plan: Plan, rng: np.random.Generator) -> list[_Quarter]:
    """Choose the development of each cell; the densest is near the middle of the city."""
    middle = np.array((plan.width, plan.height)) / 2
    quarters = []
    for cell in plan.cells:
        match cell.district:
            case District.SHOPS:
                quarters.append(_Quarter.SHOPS)
            case District.GRID:
                quarters.append(_Quarter.INNER if rng.random() < 0.5 else _Quarter.HOUSES)
            case District.LOOPS:
                quarters.append(_Quarter.HOUSES)
            case _:
                quarters.append(_Quarter.OPEN)
    grids = [i for i, cell in enumerate(plan.cells) if cell.district is District.GRID]
    if grids:
        nearest = min(grids, key=lambda i: float(np.hypot(*(_middle(plan.cells[i]) - middle))))
        quarters[nearest] = _Quarter.CENTRE
    return quarters


def _middle(cell: Cell) -> FloatArray:
    return np.array((cell.box.x0 + cell.box.x1, cell.box.y0 + cell.box.y1)) / 2


def _blocks(edges: list[Edge]) -> list[Polygon]:
    """Return the land between streets, without sidewalks."""
    lines = [edge.line for edge in edges]
    if not lines:
        return []
    paved = unary_union([edge.line.buffer(edge.street.width_m / 2 + KERB_M) for edge in edges])
    blocks = []
    for whole in polygonize([unary_union(lines)]).geoms:
        left = whole.difference(paved)
        blocks += [part for part in getattr(left, "geoms", [left]) if part.area > 250]
    return blocks


def _street_lots(
    plan: Plan,
    edges: list[Edge],
    land: STRtree,
    quarters: list[_Quarter],
    rng: np.random.Generator,
) -> list[Lot]:
    """Make houses and rows of houses on both sides of residential streets."""
    around = plan.bounds
    lots: list[Lot] = []
    for edge in edges:
        if edge.bridge or edge.street.highway not in _HOUSED:
            continue
        street_roof = int(rng.choice(len(PITCHED), p=PITCHED_SHARES))
        lawn = rng.random()
        for side in (-1, 1):
            distance = rng.uniform(5, 14)
            while distance < edge.line.length - 12:
                here, along = point_at(edge.line, distance + 8)
                out = np.array((-along[1], along[0])) * side
                beside = points(here + out * (edge.street.width_m / 2 + 14))
                inside = around.x0 < here[0] < around.x1 and around.y0 < here[1] < around.y1
                within = land.query(beside, predicate="within") if inside else []
                quarter = quarters[int(within[0])] if len(within) else _Quarter.OPEN
                if quarter is _Quarter.INNER and rng.random() < 0.8:
                    used, lot = row(edge, side, distance, rng)
                    lots += lot
                elif quarter in {_Quarter.INNER, _Quarter.HOUSES}:
                    used = rng.uniform(13.5, 20)
                    kerb = (
                        point_at(edge.line, distance + used / 2)[0] + out * edge.street.width_m / 2
                    )
                    if rng.random() > 0.06:
                        choice = street_roof if rng.random() < 0.4 else None
                        lots.append(house(kerb, along, out, used, choice, lawn, rng))
                else:
                    used = 20.0
                distance += used
    return lots


def _without_collisions(lots: list[Lot], roads: list[Polygon]) -> list[Lot]:
    """Drop lots that overlap a road or an earlier lot; walls may touch within a lot."""
    if not lots:
        return []
    shapes = np.array([lot.ground for lot in lots])
    bad = set(STRtree(roads).query(shapes, predicate="intersects")[0].tolist()) if roads else set()
    near = np.array([shape.buffer(0.7) for shape in shapes])
    for i, j in sorted((int(i), int(j)) for i, j in STRtree(near).query(near).T if i < j):
        if i not in bad and j not in bad and area(intersection(shapes[i], near[j])) > _TOUCH_M2:
            bad.add(j)
    return [lot for i, lot in enumerate(lots) if i not in bad]
