"""Compare a result with a truth for the map: what is found, missed and false, and the worst places.

Scores and errors are those of ``satmap score``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.evaluation.metrics.apls_diagnosis import LostRoads, diagnose
from satmap.evaluation.metrics.building_f1 import match_buildings
from satmap.evaluation.metrics.figures import Figures
from satmap.evaluation.score import Scoring, score_files
from satmap.io.geojson_reader import LON_LAT, project
from satmap.submissions.buildings_csv import BuildingRow
from satmap.submissions.roads_csv import RoadRow
from satmap.vectors.georeference import Georeference
from satmap.viewer.data import Comparison, MapData, Shapes, Spot, read_results

Floats = NDArray[np.float64]

_FOUND, _MISSED, _FALSE = 0, 1, 2

# Most entries of each kind in the list of worst places.
_MOST_SPOTS = 8


def compared(
    data: MapData, truth: Path, result: Path, least_confidence: float | None = None
) -> MapData:
    """Return a map with its comparison with a truth.

    Args:
        data: what the map shows.
        truth: as for :func:`satmap.evaluation.score.score_files`.
        result: the file or directory that ``data`` was read from.
        least_confidence: that of ``data``.

    Raises:
        SatmapError: the truth cannot be read, is of another kind, or has no image in common.
    """
    true = read_results([truth])
    scoring = score_files(truth, result, least_confidence=least_confidence)
    if scoring.report.metric == "apls":
        return replace(data, comparison=_roads(true, scoring))
    return replace(data, comparison=_buildings(true, scoring))


def _roads(truth: MapData, scoring: Scoring) -> Comparison:
    assert scoring.sides is not None, "vector files can be drawn"
    missed: list[Floats] = []
    false: list[Floats] = []
    routes: list[tuple[float, Spot]] = []
    breaks: list[tuple[float, Spot]] = []
    sides, metres = scoring.sides, [0.0, 0.0, 0.0]
    for image_id, grid in sides.grids.items():
        true, found = (side.get(image_id, ()) for side in (sides.truth, sides.proposal))
        errors = diagnose(
            [row.line for row in true],
            [row.line for row in found],
            metres_per_pixel=sides.metres_per_pixel,
        )
        missed += [_degrees(grid, piece) for piece in errors.missed.pieces]
        false += [_degrees(grid, piece) for piece in errors.false.pieces]
        metres[0] += errors.missed.roads_m - errors.missed.lost_m
        metres[1] += errors.missed.lost_m
        metres[2] += errors.false.lost_m
        for lost, gap, broken, names in (
            (errors.missed, "Gap", "Broken route", ("truth", "result")),
            (errors.false, "False join", "False route", ("result", "truth")),
        ):
            breaks += _breaks(grid, lost, gap)
            routes += _routes(grid, lost, broken, names)
    total = scoring.report.total
    score = (
        f"APLS {_share(total, 'apls_length')} by length, {_share(total, 'apls_time')} by travel "
        "time"
    )
    worst = _worst_images(scoring, "apls_length", "APLS")
    found_km, missed_km, false_km = (f"{length / 1000:.1f} km" for length in metres)
    return Comparison(
        truth, score, found_km, missed_km, false_km, _lines(missed), _lines(false), Shapes((), ()),
        np.empty(0, np.int8), (*worst, *_first(routes), *_first(breaks)),
    )  # fmt: skip


def _first(spots: Iterable[tuple[float, Spot]]) -> list[Spot]:
    """Return the spots with the highest ranks."""
    return [spot for _, spot in sorted(spots, key=lambda each: -each[0])[:_MOST_SPOTS]]


def _breaks(grid: Georeference, lost: LostRoads, words: str) -> list[tuple[float, Spot]]:
    spots = []
    for each in lost.breaks:
        longer = each.other_m - each.way_m
        detail = f"detour of {longer:.0f} m" if isfinite(longer) else "not connected"
        at = _degrees(grid, np.array([each.xy]))
        spots.append((min(each.other_m - each.way_m, 1e6), Spot(words, detail, at)))
    return spots


def _routes(
    grid: Georeference, lost: LostRoads, words: str, sides: tuple[str, str]
) -> list[tuple[float, Spot]]:
    """Return routes that are longer or missing on the other side; ``sides`` names both."""
    spots = []
    for each in lost.routes:
        other = f"{each.other_m:.0f} m" if isfinite(each.other_m) else "none"
        line = _degrees(grid, each.path)
        rank = abs(each.other_m - each.way_m) if isfinite(each.other_m) else inf
        spots.append(
            (
                rank,
                Spot(
                    words,
                    f"{each.way_m:.0f} m in the {sides[0]}, {other} in the {sides[1]}",
                    line,
                    (line,),
                ),
            )
        )
    return spots


def _buildings(truth: MapData, scoring: Scoring) -> Comparison:
    assert scoring.sides is not None, "vector files can be drawn"
    parts: list[tuple[Floats, ...]] = []
    kinds: list[int] = []
    sides = scoring.sides
    for image_id, grid in sides.grids.items():
        true, found = (side.get(image_id, ()) for side in (sides.truth, sides.proposal))
        matches = match_buildings(true, found)
        taken = matches.taken
        was_found = np.zeros(len(true), np.bool_)
        was_found[taken[taken >= 0]] = True
        for row, other in zip(found, taken.tolist(), strict=True):
            parts.append(_polygon(grid, row.polygon))
            kinds.append(_FOUND if other >= 0 else _FALSE)
        for row, seen in zip(true, was_found.tolist(), strict=True):
            if not seen:
                parts.append(_polygon(grid, row.polygon))
                kinds.append(_MISSED)
    counts = [f"{count:,}" for count in np.bincount(np.array(kinds, np.int64), minlength=3)]
    total = scoring.report.total
    score = (
        f"F1 {_share(total, 'f1')}, precision {_share(total, 'precision')}, "
        f"recall {_share(total, 'recall')}"
    )
    none = Shapes((), ())
    return Comparison(
        truth, score, counts[_FOUND], counts[_MISSED], counts[_FALSE], none, none,
        Shapes(tuple(parts), ({},) * len(parts)), np.array(kinds, np.int8),
        tuple(_worst_images(scoring, "f1", "F1")),
    )  # fmt: skip


def _worst_images(scoring: Scoring, key: str, name: str) -> list[Spot]:
    """Return the images with the lowest scores; none if there is only one image."""
    assert scoring.sides is not None
    sides = scoring.sides
    ranked = sorted(
        (value, image_id)
        for image_id, figures in scoring.report.images.items()
        if (value := figures.get(key)) is not None and image_id in sides.grids
    )
    spots: list[Spot] = []
    for value, image_id in ranked[:_MOST_SPOTS] if len(ranked) > 1 else ():
        rows = [*sides.truth.get(image_id, ()), *sides.proposal.get(image_id, ())]
        if rows:
            points = _degrees(sides.grids[image_id], np.concatenate([*map(_points, rows)]))
            spots.append(Spot(image_id, f"{name} {value:.2f}", points))
    return spots


def _points(row: RoadRow | BuildingRow) -> Floats:
    return row.line if isinstance(row, RoadRow) else shapely.get_coordinates(row.polygon)


def _share(figures: Figures, key: str) -> str:
    value: Any = figures.get(f"fair_{key}", figures.get(key))
    return "unknown" if value is None else f"{value:.3f}"


def _lines(lines: Sequence[Floats]) -> Shapes:
    return Shapes(tuple((line,) for line in lines), ({},) * len(lines))


def _polygon(
    grid: Georeference, polygon: shapely.Polygon | shapely.MultiPolygon
) -> tuple[Floats, ...]:
    rings = [
        ring
        for part in shapely.get_parts(polygon).tolist()
        for ring in (part.exterior, *part.interiors)
    ]
    return tuple(_degrees(grid, shapely.get_coordinates(ring)) for ring in rings)


def _degrees(grid: Georeference, pixels: Floats) -> Floats:
    return project(grid.to_map(np.asarray(pixels, np.float64)), grid.crs, LON_LAT)
