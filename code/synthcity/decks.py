"""Bridges, viaducts, embankments and tunnel portals: the bodies that carry raised roads."""

import numpy as np
from numpy.typing import NDArray
from shapely import STRtree, points

from synthcity.network import Edge
from synthcity.plan import LEVEL_M, FloatArray
from synthcity.solids import Face, quad
from synthcity.spectra import Material
from synthcity.strokes import Fill, Shadow, Stroke, Sun, point_at, rectangle, ribbon

# Height of a parapet above the road, its width, and depth of a deck below the road, metres.
_PARAPET_M, _RIM_M, _DEPTH_M = 0.9, 0.4, 1.2
# Distance between piers, metres.
_SPAN_M = 24.0


def deck_width(edge: Edge) -> float:
    """Return the width of a bridge or embankment from parapet to parapet, metres."""
    return edge.street.width_m + (0.8 if edge.street.highway == "footway" else 3.0)


def deck_faces(edges: list[Edge]) -> list[tuple[int, list[Face]]]:
    """Return the bodies of all raised edges, each with its deck number.

    Open decks stand on piers, embankments on walls. Where two carriageways of the same height
    join, there is no parapet between them.
    """
    raised = [edge for edge in edges if edge.deck]
    roads = [edge.line.buffer(edge.street.width_m / 2 + 0.3, cap_style="flat") for edge in edges]
    tree = STRtree(roads)
    return [(edge.deck, _body(edge, edges, tree)) for edge in raised]


def _body(edge: Edge, edges: list[Edge], tree: STRtree) -> list[Face]:
    xy, z = np.asarray(edge.line.coords), edge.heights
    half, lift = deck_width(edge) / 2, np.array((0.0, 0.0, _PARAPET_M))
    bottom = np.zeros_like(z) if edge.layer == 0 else np.maximum(z - _DEPTH_M, 0.0)
    normal = _normals(xy)
    rim = {side: np.column_stack([xy + normal * half * side, z]) for side in (-1, 1)}
    inner = {side: np.column_stack([xy + normal * (half - _RIM_M) * side, z]) for side in (-1, 1)}
    concrete = (Material.CONCRETE, 1.1)
    faces = []
    for i in range(len(xy) - 1):
        top = np.array((rim[-1][i], rim[-1][i + 1], rim[1][i + 1], rim[1][i]))
        faces.append(quad(top, Material.CONCRETE, 0.9, deck=edge.deck))
    for side in (-1, 1):
        middles = (rim[side][1:] + rim[side][:-1]) / 2
        for k in np.flatnonzero(~_joined(middles, edge, edges, tree)).tolist():
            ends = [k, k + 1] if side < 0 else [k + 1, k]
            (a, b), (c, d) = rim[side][ends], inner[side][ends]
            low = [np.append(place[:2], bottom[n]) for place, n in zip((a, b), ends, strict=True)]
            faces += [
                quad(np.array((*low, b + lift, a + lift)), *concrete),
                quad(np.array((d, c, c + lift, d + lift)), *concrete),
                quad(np.array((a + lift, b + lift, d + lift, c + lift)), *concrete),
            ]
    if edge.layer > 0:
        faces += _piers(edge, edges, tree)
    return faces


def _normals(xy: FloatArray) -> FloatArray:
    """Return the directions to the right of a line at its vertices, lengthened at bends."""
    steps = np.diff(xy, axis=0)
    steps /= np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-9)[:, None]
    right = np.column_stack([-steps[:, 1], steps[:, 0]])
    mean = np.concatenate([right[:1], (right[1:] + right[:-1]) / 2, right[-1:]])
    return np.asarray(mean / np.maximum((mean**2).sum(axis=1), 0.5)[:, None], dtype=np.float64)


def _joined(places: FloatArray, edge: Edge, edges: list[Edge], tree: STRtree) -> NDArray[np.bool_]:
    """Return which places (n, 3) on the rim lie on another carriageway of about their height."""
    joined = np.zeros(len(places), dtype=bool)
    for i, j in tree.query(points(places[:, :2]), predicate="within").T:
        other = edges[j]
        if other.number != edge.number:
            at = other.line.project(points(places[i, :2]))
            joined[i] |= abs(float(other.height_at(at)) - places[i, 2]) < 1.5
    return joined


def _piers(edge: Edge, edges: list[Edge], tree: STRtree) -> list[Face]:
    """Return piers under a deck, none of them on a road."""
    faces = []
    for distance in np.arange(_SPAN_M / 2, edge.line.length, _SPAN_M):
        centre, along = point_at(edge.line, distance)
        top = float(edge.height_at(distance)) - _DEPTH_M
        below = tree.query(points(centre).buffer(2.0), predicate="intersects")
        if top > 1 and all(edges[j].heights.min() > top - 1 for j in below):
            ring = rectangle(centre, along, 1.2, 0.5 * edge.street.width_m)[::-1]
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                wall = np.array(((x0, y0, 0.0), (x1, y1, 0.0), (x1, y1, top), (x0, y0, top)))
                faces.append(quad(wall, Material.CONCRETE, 1.0))
    return faces


def cutting_strokes(edge: Edge, sun: Sun) -> tuple[list[Stroke], list[Stroke]]:
    """Make an open approach to a tunnel: its floor, and the shadows and the portal over it."""
    xy, depth = np.asarray(edge.line.coords), -edge.heights
    half = deck_width(edge) / 2
    floor = Fill(ribbon(edge.line, 2 * half, flat=True), Material.CONCRETE, 1.05)
    normal = _normals(xy)
    side = -1.0 if float(normal.mean(axis=0) @ sun) > 0 else 1.0
    # The wall towards the sun shades a strip of the floor.
    rim = xy + normal * (half - _RIM_M) * side
    foot = rim + depth[:, None] * sun
    over: list[Stroke] = [
        Shadow(np.array((rim[i], rim[i + 1], foot[i + 1], foot[i]))) for i in range(len(xy) - 1)
    ]
    if depth.max() > 0.4 * LEVEL_M:
        mouth = edge.line.length if depth[-1] > depth[0] else 0.0
        inward = 2.0 if mouth else -2.0
        here, along = point_at(edge.line, mouth - inward)
        over.append(Shadow(rectangle(here, along, 4.0, 2 * half - 1)))
        here, _ = point_at(edge.line, mouth)
        over.append(Fill(rectangle(here, along, 1.4, 2 * half + 3), Material.CONCRETE, 1.25, True))
    return [floor], over
