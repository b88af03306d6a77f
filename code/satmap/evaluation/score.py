"""Score result files; their content selects the metric."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import numpy as np

from satmap.errors import SatmapError
from satmap.evaluation.metrics.apls import METRES_PER_PIXEL, aoi_of, score_roads
from satmap.evaluation.metrics.building_f1 import group_of, match_buildings, score_buildings
from satmap.evaluation.metrics.coco_ap import score_coco
from satmap.evaluation.metrics.crossings import CrossingScore, score_crossings
from satmap.evaluation.metrics.figures import Figures, Report
from satmap.evaluation.metrics.jaccard import score_masks
from satmap.evaluation.metrics.polygons import with_polygon_scores
from satmap.evaluation.metrics.reliability import Rated, Reliability, reliability
from satmap.evaluation.metrics.right_roads import right_roads
from satmap.evaluation.metrics.topo import TopoScore, topo
from satmap.evaluation.metrics.turns import TurnScore, score_turns
from satmap.submissions.buildings_csv import read_buildings_csv
from satmap.submissions.coco_json import read_coco_results, read_coco_truth
from satmap.submissions.formats import Format, detect
from satmap.submissions.mask_rasters import find_masks
from satmap.submissions.result_format import find_format
from satmap.submissions.roads_csv import RoadRow, read_roads_csv
from satmap.submissions.vector_maps import (
    find_maps,
    read_building_maps,
    read_map,
    read_road_maps,
)
from satmap.vectors.buildings import UNCALIBRATED
from satmap.vectors.georeference import Georeference


@dataclass(frozen=True)
class Sides:
    """What was compared, for drawing (:mod:`satmap.report.overlay`).

    Attributes:
        truth, proposal: roads, buildings or mask rasters by image id; of COCO files the annotations
            and the results by image number.
        metres_per_pixel: pixel size of roads.
        grids: position of the pixels by image id, for vector files; empty if they are pixels of
            images.
    """

    truth: Any
    proposal: Any
    metres_per_pixel: float = METRES_PER_PIXEL
    grids: Mapping[str, Georeference] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """A score, and the data needed to draw its errors.

    Attributes:
        report: the figures.
        rank_by: name of the figure that ranks the images.
        sides: the data compared; None for formats of other packages.
        warnings: problems that the figures do not show.
    """

    report: Report
    rank_by: str
    sides: Sides | None = None
    warnings: tuple[str, ...] = ()


def score_files(
    truth: Path,
    proposal: Path,
    *,
    metres_per_pixel: float = METRES_PER_PIXEL,
    with_topo: bool = False,
    with_crossings: bool = False,
    with_polygons: bool = False,
    least_confidence: float | None = None,
) -> Scoring:
    """Score a proposal with the metric of its challenge.

    Roads (CSV, vector files) are scored by APLS, buildings (CSV, vector files) by SpaceNet's F1,
    COCO results by average precision, and mask rasters by the Jaccard index.

    Args:
        truth: file or directory.
        proposal: the same kind.
        metres_per_pixel: pixel size, for all distances between roads. Vector files are
            converted to pixels of this size.
        with_topo: also score roads by TOPO.
        with_crossings: also score crossings of roads on different levels, and false turns.
        with_polygons: also score the outlines of buildings.
        least_confidence: leave out objects of the proposal with a lower confidence; None to keep
            all.

    Raises:
        SatmapError: the files cannot be read, are of different kinds or have no image in common, or
            the proposal states no confidences to compare.
    """
    require_vectors(proposal, least_confidence)
    if added := find_format(truth):
        scoring: Scoring = added.score(truth, proposal)
        return scoring
    files = truth, proposal
    kinds = detect(truth), detect(proposal)
    if with_polygons and not _have_outlines(*files, kinds):
        both_vectors = kinds == (Format.VECTORS, Format.VECTORS)
        what = "holds roads" if both_vectors else f"is {kinds[0]}"
        raise SatmapError(
            f"--polygons is for outlines of buildings, but {truth} {what}. Compare CSV or vector "
            "files of buildings; `satmap predict --export` writes them."
        )
    if (with_crossings or with_topo) and not _have_roads(*files, kinds):
        both_vectors = kinds == (Format.VECTORS, Format.VECTORS)
        what = "holds buildings" if both_vectors else f"is {kinds[0]}"
        option = "--crossings" if with_crossings else "--topo"
        raise SatmapError(
            f"{option} is for roads, but {truth} {what}. Compare CSV or vector files of roads; "
            "`satmap predict --export` writes them."
        )
    match kinds:
        case Format.ROADS_CSV, Format.ROADS_CSV:
            sides = Sides(read_roads_csv(truth), read_roads_csv(proposal), metres_per_pixel)
            return _roads(files, sides, with_topo, with_crossings)
        case Format.BUILDINGS_CSV, Format.BUILDINGS_CSV:
            sides = Sides(read_buildings_csv(truth), read_buildings_csv(proposal))
            return _buildings(files, sides, with_polygons)
        case Format.VECTORS, Format.VECTORS if are_roads(truth, proposal):
            true, found, grids = read_road_maps(truth, proposal, metres_per_pixel, least_confidence)
            sides = Sides(true, found, metres_per_pixel, grids)
            return _roads(files, sides, with_topo, with_crossings)
        case Format.VECTORS, Format.VECTORS:
            houses = read_building_maps(truth, proposal, metres_per_pixel, least_confidence)
            sides = Sides(*houses[:2], metres_per_pixel, houses[2])
            return _buildings(files, sides, with_polygons)
        case Format.COCO_ANNOTATIONS, Format.COCO_RESULTS:
            return _coco(truth, proposal)
        case Format.MASKS, Format.MASKS:
            sides = Sides(find_masks(truth), find_masks(proposal))
            return Scoring(score_masks(truth, proposal), "jaccard", sides)
    raise SatmapError(
        f"{truth} is {kinds[0]} and {proposal} {kinds[1]}; they cannot be compared. "
        "Both must be of the same kind; COCO results need COCO annotations as truth."
    )


def require_vectors(path: Path, least_confidence: float | None) -> None:
    """Check that a least confidence is only asked of a vector file.

    Raises:
        SatmapError: it is asked of another file.
    """
    if least_confidence is None:
        return
    kind = "another format" if find_format(path) else detect(path)
    if kind != Format.VECTORS:
        raise SatmapError(
            f"--least-confidence: {path} is {kind}, which is uncalibrated: the challenges' formats "
            "hold no probabilities that objects are right. Give an export of the same roads or "
            "buildings, such as .gpkg or .geojson."
        )


def _have_outlines(truth: Path, proposal: Path, kinds: tuple[Format, Format]) -> bool:
    """Return whether two files hold polygons of buildings."""
    if kinds == (Format.VECTORS, Format.VECTORS):
        return not are_roads(truth, proposal)
    return kinds == (Format.BUILDINGS_CSV, Format.BUILDINGS_CSV)


def _have_roads(truth: Path, proposal: Path, kinds: tuple[Format, Format]) -> bool:
    """Return whether two files hold roads."""
    if kinds == (Format.VECTORS, Format.VECTORS):
        return are_roads(truth, proposal)
    return kinds == (Format.ROADS_CSV, Format.ROADS_CSV)


def _require_common_image(
    files: tuple[Path, Path], truth: Mapping[str, object], proposal: Mapping[str, object]
) -> None:
    if not truth.keys() & proposal.keys():
        raise SatmapError(
            f"{files[0]} and {files[1]} have no image in common, for example "
            f"{next(iter(truth), 'none')} and {next(iter(proposal), 'none')}. "
            "Check that they belong together. If the ids of only one file have the challenge's "
            "prefix, remove it."
        )


def are_roads(truth: Path, proposal: Path) -> bool:
    """Return whether vector files hold roads rather than buildings."""
    kinds = []
    for side in (truth, proposal):
        for path in find_maps(side).values():
            collection = read_map(path)
            if collection.lines or collection.surfaces:
                kinds.append(bool(collection.lines))
                break
    if not kinds:
        raise SatmapError(f"neither {truth} nor {proposal} contains a line or polygon.")
    if len(set(kinds)) > 1:
        what = ("lines", "polygons") if kinds[0] else ("polygons", "lines")
        raise SatmapError(
            f"{truth} holds {what[0]} and {proposal} {what[1]}; they cannot be compared."
        )
    return kinds[0]


def _roads(
    files: tuple[Path, Path], sides: Sides, with_topo: bool, with_crossings: bool
) -> Scoring:
    truth, proposal = sides.truth, sides.proposal
    _require_common_image(files, truth, proposal)
    report = score_roads(truth, proposal, metres_per_pixel=sides.metres_per_pixel)
    if with_topo:
        report = _with_topo(report, truth, proposal, sides.metres_per_pixel)
    if with_crossings:
        report = _with_crossings(report, truth, proposal, sides.metres_per_pixel)
    report = replace(report, confidence=rate_roads(sides))
    warnings = [_untimed(side, rows) for side, rows in (("truth", truth), ("proposal", proposal))]
    return Scoring(report, "apls_length", sides, tuple(filter(None, warnings)))


def _untimed(side: str, roads: Mapping[str, Sequence[RoadRow]]) -> str:
    """Return a warning if only some roads of a file have a travel time, else an empty string."""
    timed = {i: [isfinite(row.travel_time_s) for row in rows] for i, rows in roads.items()}
    without = [image_id for image_id, rows in timed.items() if not all(rows)]
    if not without or not any(map(any, timed.values())):
        return ""
    return (
        f"{len(without)} images of the {side} have roads without a travel time, for example "
        f"{without[0]}; the score by time is left out"
    )


def _buildings(files: tuple[Path, Path], sides: Sides, with_polygons: bool) -> Scoring:
    _require_common_image(files, sides.truth, sides.proposal)
    report = score_buildings(sides.truth, sides.proposal)
    if with_polygons:
        report = with_polygon_scores(report, sides.truth, sides.proposal)
    report = replace(report, confidence=rate_buildings(sides))
    return Scoring(report, "f1", sides)


#: Names of the groups by size: of roads by length, of buildings by area.
ROAD_SIZES = ("under 50 m", "50 to 150 m", "from 150 m")
BUILDING_SIZES = ("under 50 m2", "50 to 200 m2", "from 200 m2")
_ROAD_LIMITS_M, _BUILDING_LIMITS_M2 = (50.0, 150.0), (50.0, 200.0)


def rate_roads(sides: Sides) -> Reliability | str:
    """Return the reliability of the confidences of roads, in total, by length and by class.

    Only images that are on both sides count. Without a confidence for every road, the result is
    the word ``uncalibrated``.
    """
    confidences: list[float] = []
    right: list[bool] = []
    groups: list[tuple[str, ...]] = []
    for image_id in sides.truth.keys() & sides.proposal.keys():
        rows = sides.proposal[image_id]
        confidences += [row.confidence for row in rows]
        if not rows or isnan(sum(confidences)):
            continue
        true = [row.line for row in sides.truth[image_id]]
        metres = sides.metres_per_pixel
        right += right_roads(true, [row.line for row in rows], metres).tolist()
        for row in rows:
            length = float(np.hypot(*np.diff(row.line, axis=0).T).sum()) * metres
            size = ROAD_SIZES[bisect_right(_ROAD_LIMITS_M, length)]
            groups.append((size, *([f"class {row.road_class}"] if row.road_class else [])))
    return _rated(confidences, right, groups, ROAD_SIZES)


def rate_buildings(sides: Sides) -> Reliability | str:
    """Return the reliability of the confidences of buildings, in total, by size and by area.

    As for :func:`rate_roads`. Buildings that are too small for the score do not count.
    """
    confidences: list[float] = []
    right: list[bool] = []
    groups: list[tuple[str, ...]] = []
    common = sides.truth.keys() & sides.proposal.keys()
    areas = {group_of(image_id) for image_id in common}
    for image_id in common:
        rows = sides.proposal[image_id]
        if isnan(sum(row.confidence for row in rows)):
            return UNCALIBRATED
        matches = match_buildings(sides.truth[image_id], rows)
        for row, taken, counted in zip(
            rows, matches.taken.tolist(), matches.counted.tolist(), strict=True
        ):
            if not counted:
                continue
            confidences.append(row.confidence)
            right.append(taken >= 0)
            size = bisect_right(_BUILDING_LIMITS_M2, row.polygon.area * sides.metres_per_pixel**2)
            own = [group_of(image_id)] if len(areas) > 1 else []
            groups.append((BUILDING_SIZES[size], *own))
    return _rated(confidences, right, groups, BUILDING_SIZES)


def _rated(
    confidences: Sequence[float],
    right: Sequence[bool],
    groups: Sequence[Sequence[str]],
    sizes: Sequence[str],
) -> Reliability | str:
    if not confidences or isnan(sum(confidences)):
        return UNCALIBRATED
    return reliability(Rated(np.array(confidences), np.array(right), groups), sizes)


def _coco(truth: Path, results: Path) -> Scoring:
    report = score_coco(truth, results)
    annotations, found = read_coco_truth(truth), read_coco_results(results)
    if found and not found.keys() & annotations.sizes.keys():
        raise SatmapError(
            f"{truth} and {results} have no image in common, for example "
            f"{next(iter(annotations.sizes), 'none')} and {next(iter(found))}. An image_id is the "
            "id in the annotations or the number in the file's name."
        )
    return Scoring(report, "ap50", Sides(annotations, found))


def _with_topo(
    report: Report,
    truth: Mapping[str, Sequence[RoadRow]],
    proposal: Mapping[str, Sequence[RoadRow]],
    metres_per_pixel: float,
) -> Report:
    """Add TOPO to an APLS report: AOIs sum the counts, the total is the mean of the AOIs."""
    scores = {
        image_id: topo(truth[image_id], proposal[image_id], metres_per_pixel=metres_per_pixel)
        for image_id in report.images
    }
    aois = {}
    for aoi, figures in report.aois.items():
        of_aoi = [score for image_id, score in scores.items() if aoi_of(image_id) == aoi]
        aois[aoi] = {**figures, **_topo_figures(sum(of_aoi, TopoScore()))}
    means = {
        name: float(np.mean([figures[name] for figures in aois.values()]))
        for name in _topo_figures(TopoScore())
    }
    images = {
        image_id: {**figures, **_topo_figures(scores[image_id])}
        for image_id, figures in report.images.items()
    }
    return replace(report, total={**report.total, **means}, aois=aois, images=images)


def _with_crossings(
    report: Report,
    truth: Mapping[str, Sequence[RoadRow]],
    proposal: Mapping[str, Sequence[RoadRow]],
    metres_per_pixel: float,
) -> Report:
    """Add crossings and false turns to an APLS report: AOIs and the total sum the counts."""
    scores = {}
    for image_id in report.images:
        sides = truth[image_id], proposal[image_id]
        crossings = score_crossings(*sides, metres_per_pixel=metres_per_pixel)
        scores[image_id] = crossings, score_turns(*sides, metres_per_pixel=metres_per_pixel)

    def added(figures: Figures, image_ids: Iterable[str]) -> Figures:
        pairs = [scores[image_id] for image_id in image_ids]
        crossings = sum((pair[0] for pair in pairs), CrossingScore())
        turns = sum((pair[1] for pair in pairs), TurnScore())
        return {**figures, **crossings.figures(), **turns.figures()}

    return replace(
        report,
        total=added(report.total, scores),
        aois={
            aoi: added(figures, [each for each in scores if aoi_of(each) == aoi])
            for aoi, figures in report.aois.items()
        },
        images={each: added(figures, [each]) for each, figures in report.images.items()},
    )


def _topo_figures(score: TopoScore) -> Figures:
    return {"topo_precision": score.precision, "topo_recall": score.recall, "topo_f1": score.f1}
