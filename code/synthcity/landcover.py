"""Land cover: lawns, fields, the park with its pond, and all trees."""

import numpy as np
from shapely import LineString, Polygon, STRtree, box, points

from synthcity.decks import deck_width
from synthcity.network import CARRIAGEWAY_M, Edge
from synthcity.plan import CORRIDOR_M, Box, Cell, District, FloatArray, Plan, dense
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

_BASE = {
    District.GRID: Material.LAWN,
    District.LOOPS: Material.LAWN,
    District.SHOPS: Material.DRY_GRASS,
    District.FIELDS: Material.DRY_GRASS,
    District.PARK: Material.LAWN,
}

_STREETS = {"residential", "tertiary", "secondary", "primary"}

# Trees per hectare of free ground.
_DENSITY = {District.GRID: 42, District.LOOPS: 62, District.SHOPS: 14, District.FIELDS: 2,
            District.PARK: 75}  # fmt: skip


def ground_strokes(plan: Plan, rng: np.random.Generator) -> list[Stroke]:
    """Make the land cover under roads and buildings."""
    around = plan.bounds
    strokes: list[Stroke] = [Fill(around.shrunk(-200, -200).ring(), Material.DRY_GRASS)]
    for cell in plan.cells:
        tone = rng.uniform(0.9, 1.1)
        # Neighbouring cells overlap a little, so that no seam shows under the street between them.
        land = cell.box.shrunk(-8, -8).ring()
        strokes.append(Fill(plan.warp(land), _BASE[cell.district], tone))
    for cell in plan.cells:
        match cell.district:
            case District.FIELDS:
                strokes += _fields(cell, plan, rng)
            case District.PARK:
                strokes += _park(cell, plan, rng)
            case _:
                pass
    return strokes + _motorway_strip(plan)


def _motorway_strip(plan: Plan) -> list[Stroke]:
    if plan.motorway is None:
        return []
    around, y = plan.bounds, plan.motorway.place
    strip = Box(around.x0, y - CORRIDOR_M, around.x1, y + CORRIDOR_M)
    strokes: list[Stroke] = [Fill(plan.warp(strip.ring()), Material.DRY_GRASS, 0.95)]
    if not plan.motorway.height:
        middle = LineString(plan.warp(dense((around.x0, y), (around.x1, y))))
        strokes += [
            Fill(ribbon(middle, 2 * CARRIAGEWAY_M), Material.GRAVEL, 0.9),
            Fill(ribbon(middle, 0.7), Material.CONCRETE, 1.2),
        ]
    return strokes


def _fields(cell: Cell, plan: Plan, rng: np.random.Generator) -> list[Stroke]:
    """Split a cell into fields, each with a crop and a direction of ploughing."""
    crops = (Material.CROP, Material.STUBBLE, Material.SOIL, Material.DRY_GRASS, Material.CROP)
    strokes: list[Stroke] = []
    columns = max(1, round(cell.box.width / rng.uniform(90, 150)))
    rows = max(1, round(cell.box.height / rng.uniform(70, 120)))
    for i in range(columns):
        for j in range(rows):
            field = Box(
                cell.box.x0 + cell.box.width * i / columns,
                cell.box.y0 + cell.box.height * j / rows,
                cell.box.x0 + cell.box.width * (i + 1) / columns,
                cell.box.y0 + cell.box.height * (j + 1) / rows,
            ).shrunk(2, 2)
            crop = crops[int(rng.integers(len(crops)))]
            tone = rng.uniform(0.85, 1.15)
            strokes.append(Fill(plan.warp(field.ring()), crop, tone))
            strokes += _furrows(field, plan, crop, tone, rng)
    return strokes


def _furrows(
    field: Box, plan: Plan, crop: Material, tone: float, rng: np.random.Generator
) -> list[Stroke]:
    """Make lighter and darker strips along one side of a field."""
    pitch = rng.uniform(3.0, 5.0)
    depth = rng.uniform(0.06, 0.16)
    level = bool(rng.random() < 0.5)
    length = field.height if level else field.width
    strips: list[Stroke] = []
    for offset in np.arange(pitch, length - pitch, 2 * pitch):
        strip = (
            Box(field.x0, field.y0 + offset, field.x1, field.y0 + offset + pitch)
            if level
            else Box(field.x0 + offset, field.y0, field.x0 + offset + pitch, field.y1)
        )
        strips.append(Fill(plan.warp(strip.ring(20.0)), crop, tone * (1 - depth)))
    return strips


def _park(cell: Cell, plan: Plan, rng: np.random.Generator) -> list[Stroke]:
    """Make a park: a pond, a playing field, and gravel paths, which do not count as roads."""
    box = cell.box
    strokes: list[Stroke] = []
    for start, end in (
        ((box.x0, box.y0 + 0.3 * box.height), (box.x1, box.y0 + 0.75 * box.height)),
        ((box.x0 + 0.7 * box.width, box.y0), (box.x0 + 0.3 * box.width, box.y1)),
    ):
        path = dense(start, end)
        swing = 0.08 * min(box.width, box.height) * np.sin(np.linspace(0, 7, len(path)))
        path[:, 0] += swing
        path[:, 1] -= swing
        strokes.append(Fill(ribbon(LineString(plan.warp(path)), 2.4), Material.GRAVEL, 1.1))
    strokes += _pitch(box, plan, rng)
    strokes += _pond(box, plan, rng)
    return strokes


def _pitch(box: Box, plan: Plan, rng: np.random.Generator) -> list[Stroke]:
    length = min(70.0, 0.35 * box.width)
    centre = np.array((box.x0 + 0.75 * box.width, box.y0 + 0.8 * box.height))
    turn = rng.uniform(-0.4, 0.4)
    along = np.array((np.cos(turn), np.sin(turn)))
    grass = plan.warp(rectangle(centre, along, length, 0.6 * length))
    lines = plan.warp(rectangle(centre, along, 0.93 * length, 0.52 * length))
    return [
        Fill(grass, Material.LAWN, 1.15),
        Stripe(np.concatenate([lines, lines[:1]]), 0.5),
    ]


def _pond(box: Box, plan: Plan, rng: np.random.Generator) -> list[Stroke]:
    size = 0.2 * min(box.width, box.height)
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = size * (
        1
        + 0.22 * np.sin(2 * angle + rng.uniform(0, 6))
        + 0.12 * np.sin(3 * angle + rng.uniform(0, 6))
    )
    centre = np.array((box.x0 + 0.36 * box.width, box.y0 + 0.52 * box.height))
    boundary: FloatArray = np.stack([1.35 * radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    water = Polygon(plan.warp(centre + boundary))
    return [
        Fill(outline(water.buffer(2.0)), Material.SOIL, 0.9),
        Fill(outline(water), Material.WATER),
    ]


def plant(
    plan: Plan,
    edges: list[Edge],
    solids: list[Solid],
    ground: list[Fill],
    rng: np.random.Generator,
) -> list[Crown]:
    """Plant trees whose trunks stand neither on a road nor in a house, water or paving.

    Crowns may overhang roads and roofs, because overhanging trees also hide real roads.
    """
    places = [_street_trees(edges, rng), _motorway_trees(edges, rng)]
    for cell in plan.cells:
        places.append(_district_trees(cell, plan, rng))
        if cell.district is District.FIELDS:
            places.append(_hedge(cell, plan, rng))
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
    return [_crown(*tree, rng) for tree in np.delete(candidates, blocked, axis=0).tolist()]


def _bare_width(edge: Edge) -> float:
    """Return the width without trunks: the carriageway, or a deck, which taller trees overhang."""
    return deck_width(edge) + 2.0 if edge.deck else edge.street.width_m


def _crown(x: float, y: float, radius: float, rng: np.random.Generator) -> Crown:
    material = Material.DRY_TREE if rng.random() < 0.25 else Material.TREE
    variant = int(rng.integers(CROWN_VARIANTS))
    return Crown(x, y, radius, variant, material, rng.uniform(0.75, 1.25))


def _street_trees(edges: list[Edge], rng: np.random.Generator) -> FloatArray:
    """Place rows of trees along streets, dense or sparse: float64 (n, 3), x, y, radius."""
    trees = []
    for edge in edges:
        if edge.street.highway not in _STREETS or not edge.level:
            continue
        leafy = rng.choice((0.08, 0.4, 0.85))
        grown = rng.uniform(2.4, 4.2) + 2.6 * leafy
        for side in (-1, 1):
            for distance in np.arange(rng.uniform(2, 8), edge.line.length - 2, rng.uniform(8, 13)):
                if rng.random() > leafy:
                    continue
                here, along = point_at(edge.line, distance + rng.uniform(-1.5, 1.5))
                aside = side * (edge.street.width_m / 2 + rng.uniform(0.6, 2.0))
                x, y = here + across(along) * aside
                trees.append((x, y, grown * rng.uniform(0.7, 1.25)))
    return _rows(trees)


def _motorway_trees(edges: list[Edge], rng: np.random.Generator) -> FloatArray:
    """Place loose rows of trees beside the motorway."""
    trees = []
    for edge in edges:
        if edge.street.highway != "motorway":
            continue
        for distance in np.arange(5, edge.line.length, 9.0):
            if rng.random() < 0.3:
                here, along = point_at(edge.line, distance)
                aside = rng.choice((-1, 1)) * (edge.street.width_m / 2 + rng.uniform(12, 24))
                x, y = here + across(along) * aside
                trees.append((x, y, rng.uniform(1.8, 4.0)))
    return _rows(trees)


def _district_trees(cell: Cell, plan: Plan, rng: np.random.Generator) -> FloatArray:
    """Place trees all over a cell; in parks they stand in clumps."""
    land = cell.box
    around = plan.bounds
    near = box(land.x0, land.y0, land.x1, land.y1).intersection(
        box(around.x0, around.y0, around.x1, around.y1)
    )
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


def _hedge(cell: Cell, plan: Plan, rng: np.random.Generator) -> FloatArray:
    """Place a hedgerow across the fields."""
    x = cell.box.x0 + cell.box.width * rng.uniform(0.3, 0.7)
    places = dense((x, cell.box.y0 + 8), (x, cell.box.y1 - 8), 4.0)
    places = plan.warp(places + rng.normal(0, 0.8, places.shape))
    return np.column_stack([places, rng.uniform(1.2, 3.2, len(places))])


def _rows(trees: list[tuple[float, float, float]]) -> FloatArray:
    return np.array(trees, dtype=np.float64).reshape(-1, 3)
