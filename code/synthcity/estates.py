"""All buildings of a city: towers, perimeter blocks, rows, houses, garages, halls.

Buildings have whole footprints and heights, and touch only at shared walls.
"""

from enum import StrEnum

import numpy as np
from shapely import Polygon, STRtree, area, intersection, points, polygonize, unary_union

from synthcity.blocks import block_lots, shops
from synthcity.decks import deck_width
from synthcity.lots import KERB_M, PITCHED, PITCHED_SHARES, Lot, garage, house, row
from synthcity.network import Edge
from synthcity.plan import District, Plan, Rng
from synthcity.strokes import across, point_at

_HOUSED = {"residential", "tertiary", "secondary", "primary"}
# Overlaps up to this area are rounding errors, square metres.
_TOUCH_M2 = 0.05


class _Quarter(StrEnum):
    """Kind of building development of a cell."""

    CENTRE = "centre"
    INNER = "inner"
    HOUSES = "houses"
    SHOPS = "shops"
    OPEN = "open"


def build_estates(plan: Plan, edges: list[Edge], rng: Rng) -> Lot:
    """Make all buildings of a city, without overlaps, and what lies around them."""
    quarters = _quarters(plan, rng)
    land = STRtree([Polygon(plan.warp(cell.box.ring())) for cell in plan.cells])
    city, lots = Lot(), list[Lot]()
    for cell, quarter in zip(plan.cells, quarters, strict=True):
        if quarter is _Quarter.SHOPS:
            parking, halls = shops(cell.box, plan, rng)
            city.add(parking)
            lots += halls
    for block in _blocks(edges):
        within = land.query(block.representative_point(), predicate="within")
        quarter = quarters[int(within[0])] if len(within) else _Quarter.OPEN
        if quarter is _Quarter.CENTRE or (quarter is _Quarter.INNER and rng.random() < 0.55):
            lots += block_lots(block, quarter is _Quarter.CENTRE, city.ground, rng)
    lots += _street_lots(plan, edges, land, quarters, rng)
    for lot in _without_collisions(lots, edges):
        city.add(lot)
    return city


def _quarters(plan: Plan, rng: Rng) -> list[_Quarter]:
    """Choose the development of each cell; the densest is near the middle of the city."""
    kinds = {District.SHOPS: _Quarter.SHOPS, District.LOOPS: _Quarter.HOUSES}
    quarters, grids = [], {}
    for i, cell in enumerate(plan.cells):
        quarters.append(kinds.get(cell.district, _Quarter.OPEN))
        if cell.district is District.GRID:
            quarters[-1] = _Quarter.INNER if rng.random() < 0.5 else _Quarter.HOUSES
            x, y = cell.box.x0 + cell.box.x1 - plan.width, cell.box.y0 + cell.box.y1 - plan.height
            grids[i] = float(np.hypot(x, y))
    if grids:
        quarters[min(grids, key=lambda i: grids[i])] = _Quarter.CENTRE
    return quarters


def _blocks(edges: list[Edge]) -> list[Polygon]:
    """Return the land between streets, without sidewalks."""
    seen = [edge for edge in edges if edge.layer >= 0]
    if not seen:
        return []
    paved = unary_union([edge.line.buffer(edge.street.width_m / 2 + KERB_M) for edge in seen])
    blocks = []
    for whole in polygonize([unary_union([edge.line for edge in seen])]).geoms:
        left = whole.difference(paved)
        blocks += [part for part in getattr(left, "geoms", [left]) if part.area > 250]
    return blocks


def _street_lots(
    plan: Plan, edges: list[Edge], land: STRtree, quarters: list[_Quarter], rng: Rng
) -> list[Lot]:
    """Make houses and rows of houses beside residential streets, and garages beside alleys."""
    around = plan.bounds
    lots: list[Lot] = []
    for edge in edges:
        alley, width = edge.street.highway == "service", edge.street.width_m
        if not edge.level or not (alley or edge.street.highway in _HOUSED):
            continue
        street_roof = int(rng.choice(len(PITCHED), p=PITCHED_SHARES))
        lawn = rng.random()
        for side in (-1, 1):
            distance = rng.uniform(5, 14)
            while distance < edge.line.length - 12:
                here, along = point_at(edge.line, distance + 8)
                out = across(along) * side
                inside = around.x0 < here[0] < around.x1 and around.y0 < here[1] < around.y1
                beside = points(here + out * (width / 2 + 14))
                within = land.query(beside, predicate="within") if inside else []
                quarter = quarters[int(within[0])] if len(within) else _Quarter.OPEN
                used = 20.0
                if quarter is _Quarter.INNER and not alley and rng.random() < 0.8:
                    used, lot = row(edge, side, distance, rng)
                    lots += lot
                elif quarter in {_Quarter.INNER, _Quarter.HOUSES}:
                    used = rng.uniform(9, 16) if alley else rng.uniform(13.5, 20)
                    kerb = point_at(edge.line, distance + used / 2)[0] + out * width / 2
                    if rng.random() < (0.5 if alley else 0.94):
                        roof = street_roof if rng.random() < 0.4 else None
                        if alley:
                            lots.append(garage(kerb, along, out, rng))
                        else:
                            lots.append(house(kerb, along, out, used, roof, lawn, rng))
                distance += used
    return lots


def _without_collisions(lots: list[Lot], edges: list[Edge]) -> list[Lot]:
    """Drop lots that overlap a road or an earlier lot; walls may touch within a lot."""
    if not lots:
        return []
    roads = [edge.line.buffer((deck_width(edge) if edge.deck else edge.street.width_m) / 2 + 1.0)
             for edge in edges]  # fmt: skip
    shapes = np.array([unary_union([solid.footprint for solid in lot.solids]) for lot in lots])
    bad = set(STRtree(roads).query(shapes, predicate="intersects")[0].tolist())
    near = np.array([shape.buffer(0.7, quad_segs=2) for shape in shapes])
    for i, j in sorted((int(i), int(j)) for i, j in STRtree(near).query(near).T if i < j):
        if i not in bad and j not in bad and area(intersection(shapes[i], near[j])) > _TOUCH_M2:
            bad.add(j)
    return [lot for i, lot in enumerate(lots) if i not in bad]
