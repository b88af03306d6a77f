"""The ground of a made city before anything is built: lawns, fields, a park with its pond."""

import numpy as np
from shapely import LineString, Polygon

from synthcity.plan import Box, Cell, District, FloatArray, Plan, dense
from synthcity.spectra import Material
from synthcity.streets import CARRIAGEWAY_M, corridor
from synthcity.strokes import Fill, Stripe, Stroke, outline, rectangle, ribbon

_BASE = {
    District.GRID: Material.LAWN,
    District.LOOPS: Material.LAWN,
    District.SHOPS: Material.DRY_GRASS,
    District.FIELDS: Material.DRY_GRASS,
    District.PARK: Material.LAWN,
}


def ground_strokes(plan: Plan, rng: np.random.Generator) -> list[Stroke]:
    """Everything that lies under roads and buildings."""
    around = plan.bounds
    strokes: list[Stroke] = [Fill(around.shrunk(-200, -200).ring(), Material.DRY_GRASS)]
    for cell in plan.cells:
        tone = rng.uniform(0.9, 1.1)
        # The land of neighbours overlaps a little: no seams under the streets between them.
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
    strip = corridor(plan)
    if strip is None:
        return []
    around = plan.bounds
    (y,) = [row.place for row in plan.rows if row.highway == "motorway"]
    middle = LineString(plan.warp(dense((around.x0, y), (around.x1, y))))
    return [
        Fill(strip, Material.DRY_GRASS, 0.95),
        Fill(ribbon(middle, 2 * CARRIAGEWAY_M), Material.GRAVEL, 0.9),
        Fill(ribbon(middle, 0.7), Material.CONCRETE, 1.2),
    ]


def _fields(cell: Cell, plan: Plan, rng: np.random.Generator) -> list[Stroke]:
    """Split the land into fields, each with a crop and a direction of ploughing."""
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
    """Lighter and darker strips along one side of a field."""
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
    """A pond, gravel paths (which are no roads) and a playing field."""
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
