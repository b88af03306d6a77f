"""Land cover: lawns, fields, the park with its pond, and all trees."""

import numpy as np
from shapely import LineString, Polygon, STRtree, box, clip_by_rect, points

from synthcity.decks import deck_width
from synthcity.network import CARRIAGEWAY_M, Edge
from synthcity.plan import CORRIDOR_M, Box, Cell, District, FloatArray, Plan, Rng, dense
from synthcity.solids import Solid
from synthcity.spectra import Material
from synthcity.strokes import (
    CROWN_VARIANTS,
    Crown,
    Fill,
    Stripe,
    Stroke,
    across,
    outline,
    point_at,
    rectangle,
    ribbon,
)

# Land without lawns between the houses.
_BARE = {District.SHOPS, District.FIELDS}
_STREETS = {"residential", "tertiary", "secondary", "primary"}
# Relative height and number of the waves in a pond's shore.
_LOBES = ((0.22, 2), (0.12, 3))
# Trees per hectare of free ground.
_DENSITY = {District.GRID: 42, District.LOOPS: 62, District.SHOPS: 14, District.FIELDS: 2,
            District.PARK: 75}  # fmt: skip


def ground_strokes(plan: Plan, rng: Rng) -> list[Stroke]:
    """Make the land cover under roads and buildings."""
    around = plan.bounds
    strokes: list[Stroke] = [Fill(around.shrunk(-200, -200).ring(), Material.DRY_GRASS)]
    for cell in plan.cells:
        # Neighbouring cells overlap a little, so that no seam shows under the street between them.
        land = plan.warp(cell.box.shrunk(-8, -8).ring())
        base = Material.DRY_GRASS if cell.district in _BARE else Material.LAWN
        strokes.append(Fill(land, base, rng.uniform(0.9, 1.1)))
    for cell in plan.cells:
        if cell.district is District.FIELDS:
            strokes += _fields(cell.box, plan, rng)
        elif cell.district is District.PARK:
            strokes += _park(cell.box, plan, rng)
    if plan.motorway is not None:
        y = plan.motorway.place
        strip = Box(around.x0, y - CORRIDOR_M, around.x1, y + CORRIDOR_M)
        strokes.append(Fill(plan.warp(strip.ring()), Material.DRY_GRASS, 0.95))
        if not plan.motorway.height:
            middle = LineString(plan.warp(dense((around.x0, y), (around.x1, y))))
            strokes.append(Fill(ribbon(middle, 2 * CARRIAGEWAY_M), Material.GRAVEL, 0.9))
            strokes.append(Fill(ribbon(middle, 0.7), Material.CONCRETE, 1.2))
    return strokes


def _fields(box: Box, plan: Plan, rng: Rng) -> list[Stroke]:
    """Split a cell into fields, each with a crop and lighter and darker furrows along one side."""
    crops = (Material.CROP, Material.STUBBLE, Material.SOIL, Material.DRY_GRASS, Material.CROP)
    strokes: list[Stroke] = []
    columns = max(1, round(box.width / rng.uniform(90, 150)))
    rows = max(1, round(box.height / rng.uniform(70, 120)))
    width, height = box.width / columns, box.height / rows
    for x in box.x0 + width * np.arange(columns):
        for y in box.y0 + height * np.arange(rows):
            field = Box(x, y, x + width, y + height).shrunk(2, 2)
            crop, tone = crops[int(rng.integers(len(crops)))], rng.uniform(0.85, 1.15)
            strokes.append(Fill(plan.warp(field.ring()), crop, tone))
            pitch, darker, level = rng.uniform(3, 5), rng.uniform(0.84, 0.94), rng.random() < 0.5
            for start in np.arange(pitch, (height if level else width) - 4 - pitch, 2 * pitch):
                left, top = (0.0, start) if level else (start, 0.0)
                right, bottom = (
                    (field.width, top + pitch) if level else (left + pitch, field.height)
                )
                strip = Box(field.x0 + left, field.y0 + top, field.x0 + right, field.y0 + bottom)
                strokes.append(Fill(plan.warp(strip.ring(20.0)), crop, tone * darker))
    return strokes


def _park(box: Box, plan: Plan, rng: Rng) -> list[Stroke]:
    """Make a park: gravel paths, which do not count as roads, a playing field and a pond."""
    strokes: list[Stroke] = []
    corner, size = np.array((box.x0, box.y0)), np.array((box.width, box.height))
    for start, end in (((0, 0.3), (1, 0.75)), ((0.7, 0), (0.3, 1))):
        path = dense(tuple(corner + start * size), tuple(corner + end * size))
        swing = 0.08 * size.min() * np.sin(np.linspace(0, 7, len(path)))
        path += swing[:, None] * (1, -1)
        strokes.append(Fill(ribbon(LineString(plan.warp(path)), 2.4), Material.GRAVEL, 1.1))
    length, turn = min(70.0, 0.35 * box.width), rng.uniform(-0.4, 0.4)
    place = corner + np.array((0.75, 0.8)) * size, np.array((np.cos(turn), np.sin(turn)))
    lines = plan.warp(rectangle(*place, 0.93 * length, 0.52 * length))
    grass = plan.warp(rectangle(*place, length, 0.6 * length))
    strokes.append(Fill(grass, Material.LAWN, 1.15))
    strokes.append(Stripe(np.concatenate([lines, lines[:1]]), 0.5))
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    lobes = [share * np.sin(count * angle + rng.uniform(0, 6)) for share, count in _LOBES]
    radius = 0.2 * size.min() * (1 + np.sum(lobes, axis=0))
    shore = np.stack([1.35 * radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    water = Polygon(plan.warp(corner + np.array((0.36, 0.52)) * size + shore))
    strokes.append(Fill(outline(water.buffer(2.0)), Material.SOIL, 0.9))
    strokes.append(Fill(outline(water), Material.WATER))
    return strokes


def plant(
    plan: Plan, edges: list[Edge], solids: list[Solid], ground: list[Fill], rng: Rng
) -> list[Crown]:
    """Plant trees whose trunks stand neither on a road nor in a house, water or paving.

    Crowns may overhang roads and roofs, because overhanging trees also hide real roads.
    """
    places = [_street_trees(edges, rng)]
    for cell in plan.cells:
        places.append(_district_trees(cell, plan, rng))
        if cell.district is District.FIELDS:
            middle = cell.box.x0 + cell.box.width * rng.uniform(0.3, 0.7)
            hedge = dense((middle, cell.box.y0 + 8), (middle, cell.box.y1 - 8), 4.0)
            hedge = plan.warp(hedge + rng.normal(0, 0.8, hedge.shape))
            places.append(np.column_stack([hedge, rng.uniform(1.2, 3.2, len(hedge))]))
    candidates = np.concatenate(places)
    around = plan.bounds
    x, y = candidates[:, 0], candidates[:, 1]
    inside = (x > around.x0) & (x < around.x1) & (y > around.y0) & (y < around.y1)
    candidates = candidates[inside]
    hard = [edge.line.buffer(_bare_width(edge) / 2 + 0.7, quad_segs=2)
            for edge in edges if edge.layer >= 0]  # fmt: skip
    hard += [Polygon(solid.footprint.exterior) for solid in solids]
    wet_or_paved = {Material.ASPHALT, Material.CONCRETE, Material.POOL, Material.WATER}
    hard += [Polygon(fill.points) for fill in ground if fill.material in wet_or_paved]
    trunks = points(candidates[:, :2])
    blocked = STRtree(hard).query(trunks, predicate="dwithin", distance=0.6)[0]
    kept = np.delete(candidates, blocked, axis=0).tolist()
    return [_crown(x, y, radius, rng) for x, y, radius in kept]


def _bare_width(edge: Edge) -> float:
    """Return the width without trunks: the carriageway, or a deck, which taller trees overhang."""
    return deck_width(edge) + 2.0 if edge.deck else edge.street.width_m


def _crown(x: float, y: float, radius: float, rng: Rng) -> Crown:
    material = Material.DRY_TREE if rng.random() < 0.25 else Material.TREE
    variant = int(rng.integers(CROWN_VARIANTS))
    return Crown(x, y, radius, variant, material, rng.uniform(0.75, 1.25))


def _street_trees(edges: list[Edge], rng: Rng) -> FloatArray:
    """Place trees along streets, in dense or sparse rows, and loosely along the motorway.

    Returns x, y and radius in metres, float64 (n, 3).
    """
    trees = []
    for edge in edges:
        motorway = edge.street.highway == "motorway"
        if not motorway and (edge.street.highway not in _STREETS or not edge.level):
            continue
        leafy = 0.15 if motorway else rng.choice((0.08, 0.4, 0.85))
        grown = rng.uniform(2.4, 4.2) + 2.6 * leafy
        reach = (12.0, 24.0) if motorway else (0.6, 2.0)
        for side in (-1, 1):
            for distance in np.arange(rng.uniform(2, 8), edge.line.length - 2, rng.uniform(8, 13)):
                if rng.random() < leafy:
                    here, along = point_at(edge.line, distance + rng.uniform(-1.5, 1.5))
                    aside = side * (edge.street.width_m / 2 + rng.uniform(*reach))
                    x, y = here + across(along) * aside
                    trees.append((x, y, grown * rng.uniform(0.7, 1.25)))
    return np.array(trees, dtype=np.float64).reshape(-1, 3)


def _district_trees(cell: Cell, plan: Plan, rng: Rng) -> FloatArray:
    """Place trees all over a cell; in parks they stand in clumps."""
    land, around = cell.box, plan.bounds
    near = clip_by_rect(box(land.x0, land.y0, land.x1, land.y1), *vars(around).values())
    count = int(rng.poisson(_DENSITY[cell.district] * near.area / 1e4))
    if cell.district is District.PARK:
        clumps = rng.uniform((land.x0, land.y0), (land.x1, land.y1), (max(1, count // 14), 2))
        middle = clumps[rng.integers(len(clumps), size=count)]
        places = middle + rng.normal(0, 11, (count, 2))
        places = np.clip(places, (land.x0, land.y0), (land.x1, land.y1))
    else:
        x0, y0, x1, y1 = near.bounds if count else (0.0, 0.0, 1.0, 1.0)
        places = rng.uniform((x0, y0), (x1, y1), (count, 2))
    radius = rng.gamma(7, 0.42, count).clip(1.0, 6.5)
    return np.column_stack([plan.warp(places), radius])
