"""Scores of the outlines of buildings, beside the F1 that only counts buildings.

- IoU of an image: all its buildings together. C-IoU multiplies it by one minus the difference of
  N predicted and M true vertices over N + M. It penalises outlines that are too simple or too
  detailed (Zorzi et al. 2022, "PolyWorld", https://arxiv.org/abs/2111.15491). The N-ratio is N / M.
- MTA, the maximum tangent angle error of a building: the largest angle between its outline and the
  true one along it (Girard et al. 2021, https://arxiv.org/abs/2004.14875).
- PoLiS distance of two outlines: the mean distance of the vertices of each to the other outline,
  averaged over both directions (Avbelj et al. 2015, https://doi.org/10.1109/LGRS.2014.2330695).
- Boundary AP: average precision over IoU 0.50 to 0.95, where the IoU of two buildings is the
  smaller of that of their areas and that of strips along their outlines (Cheng et al. 2021,
  https://arxiv.org/abs/2103.16562). The published strip is 2 % of the image's diagonal wide, more
  than most buildings; here it is 3 pixels wide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.evaluation.metrics.building_f1 import group_of, match_buildings, measure
from satmap.evaluation.metrics.coco_ap import ImageMatches, average_precision
from satmap.evaluation.metrics.figures import Figures, Report
from satmap.submissions.buildings_csv import BuildingRow

# Longest step along an outline for MTA, pixels. Steps whose projection is shorter or longer by more
# than this factor do not count: they jump between sides of the true outline.
_STEP_PX, _MOST_STRETCH = 2.0, 2.0

# Width of the strips of boundary AP, pixels.
_STRIP_PX = 3.0

# IoU thresholds of boundary AP.
_THRESHOLDS = np.linspace(0.5, 0.95, 10)

_NO_AREA = 1e-9

Polygons = NDArray[np.object_]


@dataclass(frozen=True)
class PolygonScore:
    """Sums over images, from which the figures follow.

    Attributes:
        images: number of images.
        iou, c_iou: summed over the images.
        found_vertices, true_vertices: numbers of vertices of all buildings.
        matched: number of matched buildings.
        mta: summed over the matched buildings, degrees.
        polis: summed over the matched buildings, pixels.
        matches: of each image, for each threshold of boundary AP.
    """

    images: int = 0
    iou: float = 0.0
    c_iou: float = 0.0
    found_vertices: int = 0
    true_vertices: int = 0
    matched: int = 0
    mta: float = 0.0
    polis: float = 0.0
    matches: tuple[tuple[ImageMatches, ...], ...] = ()

    def __add__(self, other: "PolygonScore") -> "PolygonScore":
        return PolygonScore(
            self.images + other.images,
            self.iou + other.iou,
            self.c_iou + other.c_iou,
            self.found_vertices + other.found_vertices,
            self.true_vertices + other.true_vertices,
            self.matched + other.matched,
            self.mta + other.mta,
            self.polis + other.polis,
            self.matches + other.matches,
        )

    @property
    def figures(self) -> Figures:
        """The means, by name; None where there is nothing to average."""
        by_threshold = list(zip(*self.matches, strict=True))
        has_buildings = any(image[0].buildings for image in self.matches)
        aps = [average_precision(images) for images in by_threshold] if has_buildings else []
        return {
            "iou": self.iou / self.images if self.images else None,
            "c_iou": self.c_iou / self.images if self.images else None,
            "n_ratio": self.found_vertices / self.true_vertices if self.true_vertices else None,
            "mta": self.mta / self.matched if self.matched else None,
            "polis": self.polis / self.matched if self.matched else None,
            "boundary_ap": float(np.mean(aps)) if aps else None,
        }


def with_polygon_scores(
    report: Report,
    truth: Mapping[str, Sequence[BuildingRow]],
    proposal: Mapping[str, Sequence[BuildingRow]],
) -> Report:
    """Add the scores of outlines to a report of :func:`building_f1.score_buildings`.

    IoU and C-IoU are means over the images that are in both files, MTA and PoLiS over the matched
    buildings; the others are computed from all buildings together.
    """
    scores = {name: score_polygons(truth[name], proposal[name]) for name in report.images}
    images = {name: {**figures, **scores[name].figures} for name, figures in report.images.items()}
    aois = {
        group: {
            **figures,
            **sum(
                (score for name, score in scores.items() if group_of(name) == group),
                PolygonScore(),
            ).figures,
        }
        for group, figures in report.aois.items()
    }
    total = {**report.total, **sum(scores.values(), PolygonScore()).figures}
    return replace(report, total=total, aois=aois, images=images)


def score_polygons(truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow]) -> PolygonScore:
    """Score the outlines of one image. Buildings under 20 square pixels do not count."""
    (all_buildings, _, counted_truth), (all_polygons, _, counted) = map(measure, (truth, proposals))
    buildings, polygons = all_buildings[counted_truth], all_polygons[counted]
    confidences = np.array([row.score for row in proposals])[counted]
    taken = match_buildings(truth, proposals).taken
    matched = taken >= 0
    pairs = list(zip(all_polygons[matched], all_buildings[taken[matched]], strict=True))
    all_true, all_found = shapely.union_all(buildings), shapely.union_all(polygons)
    shared = shapely.area(shapely.intersection(all_true, all_found))
    either = shapely.area(shapely.union(all_true, all_found))
    iou = float(shared / either) if either > _NO_AREA else 1.0
    found, true = (int(_vertices(shapes).sum()) for shapes in (polygons, buildings))
    likeness = 1 - abs(found - true) / (found + true) if found + true else 1.0
    return PolygonScore(
        images=1,
        iou=iou,
        c_iou=iou * likeness,
        found_vertices=found,
        true_vertices=true,
        matched=len(pairs),
        mta=sum(tangent_angle_error(a, b) for a, b in pairs),
        polis=sum(polis_distance(a, b) for a, b in pairs),
        matches=(_boundary_matches(buildings, polygons, confidences),),
    )


def tangent_angle_error(found: shapely.Geometry, true: shapely.Geometry) -> float:
    """Return the largest angle between an outline and its projection on the true one, degrees.

    The sides of the outline are cut into steps of at most 2 pixels, and the ends of every step are
    projected to the nearest points of the true outline. The angle of a step with its projection is
    between 0 and 90. Where the outline cuts a corner off, it is large.
    """
    outline, largest = shapely.boundary(true), 0.0
    for ring in _rings(np.array([found]))[0]:
        ends = shapely.points(shapely.get_coordinates(shapely.segmentize(ring, _STEP_PX)))
        projected = shapely.get_point(shapely.shortest_line(ends, outline), 1)
        steps, others = (
            np.diff(shapely.get_coordinates(points), axis=0) for points in (ends, projected)
        )
        lengths, other_lengths = np.hypot(*steps.T), np.hypot(*others.T)
        counted = (other_lengths * _MOST_STRETCH >= lengths) & (lengths > 0)
        counted &= other_lengths <= _MOST_STRETCH * lengths
        if counted.any():
            products = np.abs((steps * others).sum(axis=1))[counted]
            cosine = products / (lengths * other_lengths)[counted]
            largest = max(largest, float(np.degrees(np.arccos(min(cosine.min(), 1.0)))))
    return largest


def polis_distance(a: shapely.Geometry, b: shapely.Geometry) -> float:
    """Return the PoLiS distance of two polygons in pixels; holes count like outer rings."""
    return (_one_way(a, b) + _one_way(b, a)) / 2


def _one_way(a: shapely.Geometry, b: shapely.Geometry) -> float:
    """Return the mean distance of the vertices of ``a``, each once, to the outline of ``b``."""
    rings, _ = _rings(np.array([a]))
    corners = np.concatenate([shapely.get_coordinates(ring)[:-1] for ring in rings])
    return float(shapely.distance(shapely.points(corners), shapely.boundary(b)).mean())


def _boundary_matches(
    buildings: Polygons, polygons: Polygons, confidences: NDArray[np.float64]
) -> tuple[ImageMatches, ...]:
    """Match the proposals of an image at every threshold, as COCO does: best ones choose first."""
    order = np.argsort(-confidences, kind="stable")
    polygons, confidences = polygons[order], confidences[order]
    i, j = np.empty((2, 0), np.intp)
    if len(buildings) and len(polygons):
        i, j = shapely.STRtree(buildings).query(polygons)
    whole = _ious(polygons[i], buildings[j])
    near = whole >= _THRESHOLDS[0]
    i, j, whole = i[near], j[near], whole[near]
    ious = np.minimum(whole, _ious(_strips(polygons)[i], _strips(buildings)[j]))
    ranked = np.lexsort((j, -ious, i))
    matches = []
    for threshold in _THRESHOLDS:
        right, free = np.zeros(len(polygons), bool), np.ones(len(buildings), bool)
        for pair in ranked[ious[ranked] >= threshold].tolist():
            if free[j[pair]] and not right[i[pair]]:
                right[i[pair]], free[j[pair]] = True, False
        matches.append(ImageMatches(confidences, right, len(buildings)))
    return tuple(matches)


def _strips(polygons: Polygons) -> Polygons:
    """Return the parts of polygons within ``_STRIP_PX`` of their outlines."""
    strips: Polygons = shapely.difference(polygons, shapely.buffer(polygons, -_STRIP_PX))
    return strips


def _ious(a: Polygons, b: Polygons) -> NDArray[np.float64]:
    shared = shapely.area(shapely.intersection(a, b))
    ious: NDArray[np.float64] = shared / np.maximum(
        shapely.area(a) + shapely.area(b) - shared, _NO_AREA
    )
    return ious


def _rings(polygons: Polygons) -> tuple[Polygons, NDArray[np.int64]]:
    """Return the rings of polygons and multi-polygons, and the index of the polygon of each."""
    parts, owner = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    return rings, owner[part]


def _vertices(polygons: Polygons) -> NDArray[np.int64]:
    """Return the number of vertices of each polygon; the last of a ring is the first again."""
    rings, owner = _rings(polygons)
    counts = shapely.get_num_coordinates(rings) - 1
    return np.bincount(owner, counts, len(polygons)).astype(np.int64)
