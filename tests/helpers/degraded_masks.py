"""Degraded road probability maps of synthetic cities, with their true lines.

The maps imitate a poor network. Roads are 13 pixels wide and blurred, with frayed edges and faint
patches. Empty discs on the roads imitate trees. Sharp blots beside the roads, less certain than a
road, imitate car parks. Widths, blur, noise, gaps and blots were measured on the eight shared masks
(mean profile across a road, spread at its middle, share of gaps, areas of blots) and imitate their
statistics, not single masks.

There are two kinds of layout. An even seed draws a rotated grid with missing streets, curved main
roads, a ring and dead ends, all joined where they cross. An odd seed takes a window of the
package's own synthetic city. A seed always gives the same mask.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.submissions.roads_csv import RoadRow
from synthcity.network import make_roads

#: Metres per pixel of the official scorer, along both axes.
METRES_PER_PIXEL = 0.31

Floats = NDArray[np.float64]

_WIDTH_PX = 13
_SHORTEST_PX = 2.0


@dataclass(frozen=True)
class DegradedMask:
    """Degraded mask and its true roads.

    Attributes:
        road: uint8 (size, size), 0..255.
        truth: its roads in pixels, cut at every junction.
    """

    road: NDArray[np.uint8]
    truth: tuple[RoadRow, ...]


def degraded_mask(seed: int, size: int = 1300) -> DegradedMask:
    """Return the mask of a seed, at least 0."""
    rng = np.random.default_rng(seed)
    lines = _grid(size, rng) if seed % 2 == 0 else _city(size, rng)
    noded = shapely.line_merge(shapely.node(shapely.multilinestrings(lines)))
    inside = shapely.intersection(noded, shapely.box(0, 0, size, size))
    parts = [
        shapely.get_coordinates(part)
        for part in shapely.get_parts(inside)
        if part.geom_type == "LineString" and part.length >= _SHORTEST_PX
    ]
    truth = tuple(RoadRow(part, _length(part) * METRES_PER_PIXEL, float("nan")) for part in parts)
    return DegradedMask(_degrade(parts, size, rng), truth)


def _length(line: Floats) -> float:
    steps = np.diff(line, axis=0)
    return float(np.hypot(steps[:, 0], steps[:, 1]).sum())


def _grid(size: int, rng: np.random.Generator) -> list[shapely.LineString]:
    """Draw a rotated grid with missing streets, two curves, dead ends and sometimes a ring."""
    turn = rng.uniform(0, np.pi / 2)
    along, across = _axis(size, rng), _axis(size, rng)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    lines = []
    for i, x in enumerate(along):
        for j, y in enumerate(across):
            here = np.array((x, y))
            for ahead in ((i + 1, j), (i, j + 1)):
                if ahead[0] < len(along) and ahead[1] < len(across) and rng.random() < 0.68:
                    there = np.array((along[ahead[0]], across[ahead[1]]))
                    if rng.random() < 0.06:
                        # A dead end.
                        there = here + (there - here) * rng.uniform(0.3, 0.8)
                    lines.append(np.array((here, there)) @ rotation + size / 2)
    for _ in range(int(rng.integers(0, 4))):
        heading = rng.uniform(0, np.pi)
        way = np.linspace(-size, size, 60)
        aside = rng.uniform(60, 160) * np.sin(way / rng.uniform(180, 400) + rng.uniform(0, 6))
        curve = np.stack([way, aside + rng.uniform(-0.35, 0.35) * size], axis=1)
        spin = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        lines.append(curve @ spin + size / 2)
    if rng.random() < 0.4:
        angles = np.linspace(0, 2 * np.pi, 40)
        centre = rng.uniform(0.2, 0.8, 2) * size
        lines.append(centre + 45 * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return [shapely.LineString(line) for line in lines]


def _axis(size: int, rng: np.random.Generator) -> Floats:
    pitch = rng.uniform(110, 330, 24)
    places: Floats = np.cumsum(pitch) - rng.uniform(0, 200) - 0.8 * size
    return places[places < 0.8 * size]


def _city(size: int, rng: np.random.Generator) -> list[shapely.LineString]:
    """Cut a window from a synthetic city; bridges over a motorway become junctions."""
    side = 2.2 * size * METRES_PER_PIXEL
    corner = rng.uniform(0, 1.2, 2) * size
    return [
        shapely.transform(edge.line, lambda xy: xy / METRES_PER_PIXEL - corner)
        for edge in make_roads(side, side, rng)
    ]


def _degrade(lines: list[Floats], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    drawn = np.zeros((size, size), np.uint8)
    for line in lines:
        # Sixteenths of a pixel; OpenCV counts from pixel centres.
        points = np.round((line - 0.5) * 16).astype(np.int32)
        cv2.polylines(drawn, [points], False, 255, _WIDTH_PX, shift=4)
    frayed = cv2.GaussianBlur(drawn, (0, 0), 2).astype(np.float32) / 255
    road = ((frayed + 0.11 * _field(size, 2.5, rng)) > 0.5).astype(np.float32)
    road *= 1 - 0.35 * (_field(size, 3.0, rng) > 1.5)
    for x, y in _places_on(lines, 1 / 900, rng):
        cv2.circle(road, (round(x), round(y)), int(rng.integers(4, 16)), 0.0, -1)
    mask = np.clip(cv2.GaussianBlur(road, (0, 0), 3) * 252, 0, 255)
    blots = np.zeros((size, size), np.float32)
    count = int(rng.integers(8, 15))
    near = _places_on(lines, 1 / 2000, rng) + rng.normal(0, 22, (1, 2))
    for x, y in [*rng.uniform(0, size, (count, 2)), *near]:
        axes = int(rng.integers(8, 29)), int(rng.integers(4, 13))
        place = (round(float(x)), round(float(y)))
        cv2.ellipse(blots, place, axes, float(rng.uniform(0, 180)), 0, 360, 165.0, -1)
    return np.asarray(np.maximum(mask, cv2.GaussianBlur(blots, (0, 0), 1)), np.uint8)


def _field(size: int, sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth noise of mean 0 and standard deviation 1."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), sigma)
    return np.asarray(noise / noise.std(), np.float32)


def _places_on(lines: list[Floats], rate: float, rng: np.random.Generator) -> Floats:
    """Return random points along lines, ``rate`` per pixel, (n, 2)."""
    places = [np.empty((0, 2))]
    for line in lines:
        whole = shapely.LineString(line)
        ways = rng.uniform(0, whole.length, int(rng.poisson(rate * whole.length)))
        places.append(shapely.get_coordinates(shapely.line_interpolate_point(whole, ways)))
    return np.concatenate(places)
