"""Draw the errors behind a score: what is missed, what is false, and where routes break."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from satmap.errors import SatmapError
from satmap.evaluation.metrics.apls import METRES_PER_PIXEL
from satmap.evaluation.metrics.apls_diagnosis import Diagnosis, LostRoads, Route, diagnose
from satmap.evaluation.metrics.building_f1 import match_buildings
from satmap.evaluation.metrics.figures import Figures
from satmap.evaluation.score import Scoring, Sides
from satmap.io.progress import track
from satmap.io.text import natural_key
from satmap.report.panels import (
    PANEL_PX,
    WHITE,
    Colour,
    Key,
    Panel,
    Picture,
    View,
    compose,
    write_picture,
)
from satmap.submissions.buildings_csv import BuildingRow
from satmap.submissions.coco_json import CocoResult, CocoTruth
from satmap.submissions.mask_rasters import read_mask
from satmap.submissions.roads_csv import RoadRow

# File systems allow 255 bytes; the names of temporary files are longer than the final ones.
_LONGEST_NAME = 200

_RIGHT: Colour = (50, 150, 80)
_MISSED: Colour = (215, 25, 40)
_FALSE: Colour = (250, 135, 0)
_DETOUR: Colour = (40, 90, 215)
_FAINT: Colour = (140, 140, 140)
_DARK: Colour = (35, 35, 35)

# Colours of found, missed, false and proposed buildings, on white and (brighter) on an image.
_ON_WHITE = (_RIGHT, _MISSED, _FALSE, _DETOUR)
_ON_IMAGE: tuple[Colour, ...] = ((70, 205, 105), (245, 45, 60), (255, 150, 20), (70, 180, 255))


def write_misses(directory: Path, scoring: Scoring, worst: int = 10) -> list[Path]:
    """Draw the images with the lowest scores, and return the PNG files, worst image first.

    The files are named like the images. Names that are too long are cut off and end in a checksum.
    Images without the figure that ranks them are left out.

    Raises:
        SatmapError: a file cannot be written, or results of this kind cannot be drawn.
    """
    ranks = [
        (score, natural_key(image_id), image_id)
        for image_id, record in scoring.report.images.items()
        if (score := record.get(scoring.rank_by)) is not None
    ]
    chosen = [image_id for _, _, image_id in sorted(ranks)[:worst]]
    written = []
    for image_id in track(chosen, "drawing misses", len(chosen)):
        path = directory / f"{_file_name(image_id)}.png"
        write_picture(path, draw_image(scoring, image_id))
        written.append(path)
    return written


def draw_image(scoring: Scoring, image_id: str) -> Picture:
    """Draw what is missed and what is false in an image.

    Raises:
        SatmapError: results of this kind cannot be drawn.
    """
    figures = scoring.report.images[image_id]
    title = f"{image_id}: {scoring.rank_by} {figures[scoring.rank_by]:.3f}"
    match scoring.report.metric, scoring.sides:
        case "apls", Sides(truth, proposal, metres_per_pixel):
            return roads_picture(
                truth[image_id],
                proposal[image_id],
                title=image_id,
                figures=figures,
                metres_per_pixel=metres_per_pixel,
            )
        case "building_f1", Sides(truth, proposal):
            return buildings_picture(truth[image_id], proposal[image_id], title=title)
        case "coco_ap", Sides(truth, proposal):
            return _draw_coco(truth, proposal, int(image_id), title)
        case "jaccard", Sides(truth, proposal):
            return mask_picture(
                read_mask(truth[image_id]), read_mask(proposal[image_id]), title=title
            )
    raise SatmapError("results of this kind cannot be drawn; leave --plot out.")


def _draw_coco(
    truth: CocoTruth, results: Mapping[int, Sequence[CocoResult]], image: int, title: str
) -> Picture:
    width, height = truth.sizes[image]
    drawn = []
    for entries in (truth.buildings.get(image, ()), results.get(image, ())):
        masks = [entry.mask.for_library() for entry in entries]
        merged = np.zeros((height, width), np.bool_)
        if masks:
            union = coco_mask.merge(masks)  # type: ignore[arg-type]
            merged = coco_mask.decode(union).astype(np.bool_)
        drawn.append(merged)
    return mask_picture(*drawn, title=title)


def _file_name(image_id: str) -> str:
    """Return a valid file name for an id, which may contain slashes and have any length."""
    name = quote(image_id, safe=" ")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(image_id.encode()).hexdigest()[:16]
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"


# --- roads ----------------------------------------------------------------------------------------


def roads_picture(
    truth: Sequence[RoadRow],
    proposal: Sequence[RoadRow],
    *,
    title: str,
    figures: Figures,
    metres_per_pixel: float = METRES_PER_PIXEL,
) -> Picture:
    """Draw the truth with missed roads, the proposal with false roads, and the broken routes.

    The three panels are 700 px wide or high and cover the roads, which are in pixels of the image.
    ``figures`` are the image's APLS, for the caption.
    """
    diagnosis = diagnose(truth, proposal, metres_per_pixel=metres_per_pixel)
    lines, proposal_lines = (
        [r.line for r in rows if len(r.line) > 1] for rows in (truth, proposal)
    )
    view = View.around(np.concatenate([np.empty((0, 2)), *lines, *proposal_lines]))

    def roads(lines: Sequence[NDArray[np.float64]], losses: LostRoads, colour: Colour) -> Picture:
        panel = view.ground()
        view.draw_lines(panel, lines, _RIGHT, 2)
        view.draw_lines(panel, losses.pieces, colour, 4)
        return panel

    missed, false = diagnosis.missed, diagnosis.false
    routes = view.ground()
    view.draw_lines(routes, proposal_lines, _FAINT, 1)
    _draw_routes(routes, view, diagnosis)
    return compose(
        [title, _apls_line(figures)],
        [
            Panel(
                roads(lines, missed, _MISSED),
                "truth",
                [Key("found", _RIGHT), Key(f"missed {_share(missed)}", _MISSED)],
                [_extent(view, metres_per_pixel)],
            ),
            Panel(
                roads(proposal_lines, false, _FALSE),
                "proposal",
                [Key("right", _RIGHT), Key(f"false {_share(false)}", _FALSE)],
            ),
            Panel(
                routes,
                "routes of the truth that break in the proposal",
                [
                    Key("route", _MISSED),
                    Key("in the proposal", _DETOUR),
                    Key(f"gap ({len(missed.breaks)})", _MISSED, "ring"),
                    Key(f"false join ({len(false.breaks)})", _FALSE, "ring"),
                    Key(
                        f"node not found ({len(missed.lost_nodes)} of {missed.nodes})",
                        _MISSED,
                        "cross",
                    ),
                ],
                [_route_lengths(missed.routes)],
            ),
        ],
    )


def _draw_routes(panel: Picture, view: View, diagnosis: Diagnosis) -> None:
    missed, false = diagnosis.missed, diagnosis.false
    for route in missed.routes:
        if route.other is not None:
            view.draw_lines(panel, [route.other], _DETOUR, 3)
    for route in missed.routes:
        view.draw_lines(panel, [route.path], _MISSED, 3)
        view.draw_dots(panel, route.path[[0, -1]], _MISSED)
    view.draw_crosses(panel, missed.lost_nodes, _MISSED)
    rings = []
    for losses, colour in ((false, _FALSE), (missed, _MISSED)):
        rings.append(np.array([found.xy for found in losses.breaks]).reshape(-1, 2))
        view.draw_rings(panel, rings[-1], colour)
    for number, route in enumerate(missed.routes, 1):
        place = _free_place(route.path, np.concatenate(rings))
        view.draw_label(panel, place, str(number), _MISSED)


def _free_place(path: NDArray[np.float64], rings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose, of five places along a path, the one farthest from all rings, for its label."""
    line = shapely.linestrings(path)
    shares = np.array([0.5, 0.25, 0.75, 0, 1])
    places = shapely.line_interpolate_point(line, shares, normalized=True)
    distances = shapely.distance(places, shapely.multipoints(rings)) if len(rings) else 0 * shares
    free: NDArray[np.float64] = shapely.get_coordinates(places[np.argmax(distances)])[0]
    return free


def _apls_line(figures: Figures) -> str:
    """Format APLS by length and time with both directions, as far as available."""
    parts = []
    for weight in ("length", "time"):
        names = ("apls", "truth_to_proposal", "proposal_to_truth")
        score, there, back = (figures.get(f"{name}_{weight}") for name in names)
        if score is not None:
            parts.append(f"APLS {weight} {score:.3f}")
        if there is not None and back is not None:
            parts[-1] += f" (truth to proposal {there:.3f}, back {back:.3f})"
    return ",  ".join(parts)


def _share(losses: LostRoads) -> str:
    return f"{losses.lost_m:.0f} of {losses.roads_m:.0f} m"


def _route_lengths(routes: Sequence[Route]) -> str:
    if not routes:
        return "no route is much longer or shorter in the proposal"
    texts = [
        f"{number}: {route.way_m:.0f} m -> "
        + ("none" if route.other is None else f"{route.other_m:.0f} m")
        for number, route in enumerate(routes, 1)
    ]
    return "truth -> proposal  " + ",  ".join(texts)


def _extent(view: View, metres_per_pixel: float) -> str:
    right, bottom = view.left + view.width, view.top + view.height
    across = view.width * metres_per_pixel
    return (
        f"x {view.left:g} to {right:g} px, y {view.top:g} to {bottom:g} px; {across:.0f} m across"
    )


# --- buildings ------------------------------------------------------------------------------------


def buildings_picture(
    truth: Sequence[BuildingRow],
    proposal: Sequence[BuildingRow],
    *,
    title: str,
    image: Picture | None = None,
) -> Picture:
    """Draw the buildings of one image that are found, missed and false, in one panel.

    Polygons that are too small to be scored are left out, so that the counts in the legend are the
    score's true positives, false positives and false negatives. Buildings are in pixels of
    ``image``, which is drawn below them. Without an image the background is white and the view
    covers the buildings.
    """
    matches = match_buildings(truth, proposal)
    true, proposed = (
        np.array([row.polygon for row in rows], np.object_) for rows in (truth, proposal)
    )
    is_found, is_right = np.isin(np.arange(len(truth)), matches.taken), matches.taken >= 0
    found, missed = true[is_found], true[matches.counted_truth & ~is_found]
    right, false = proposed[is_right], proposed[matches.counted & ~is_right]
    if image is None:
        drawn = np.concatenate([found, missed, right, false])
        view = View.around(shapely.get_coordinates(drawn))
    else:
        view = View.of_image(image.shape)
    panel = view.ground(image)
    on_image = image is not None
    green, red, orange, blue = _ON_IMAGE if on_image else _ON_WHITE
    view.draw_polygons(panel, found, green, filling=0.35)
    view.draw_polygons(panel, missed, red, filling=0.5, casing=on_image)
    view.draw_polygons(panel, false, orange, filling=0.4, thickness=2, casing=on_image)
    view.draw_polygons(panel, right, blue, casing=on_image)
    keys = [
        Key(f"found ({len(found)})", green, "area"),
        Key("as proposed", blue),
        Key(f"missed ({len(missed)})", red, "area"),
        Key(f"false ({len(false)})", orange, "area"),
    ]
    return compose([title], [Panel(panel, "buildings", keys)])


# --- masks ----------------------------------------------------------------------------------------


def mask_picture(truth: NDArray[np.bool_], proposal: NDArray[np.bool_], *, title: str) -> Picture:
    """Draw the pixels of two masks, bool (h, w), that are hit, missed and false, on dark ground.

    Larger masks are shrunk to 700 px, their colours mixed by area.
    """
    if truth.shape != proposal.shape or truth.ndim != 2 or not truth.size:
        raise ValueError(
            f"masks must have the same shape (h, w), got {truth.shape} and {proposal.shape}"
        )
    view = View.of_image(truth.shape)
    height, width = view.ground().shape[:2]
    panel = np.full((height, width, 3), _DARK, np.float32)
    kinds = (
        ("hit", truth & proposal, WHITE),
        ("missed", truth & ~proposal, _MISSED),
        ("false", proposal & ~truth, _FALSE),
    )
    keys = []
    for name, pixels, colour in kinds:
        shrink = cv2.INTER_AREA if max(truth.shape) > PANEL_PX else cv2.INTER_NEAREST
        share = cv2.resize(
            pixels.view(np.uint8) * np.uint8(255), (width, height), interpolation=shrink
        )
        panel += (share[..., None] / np.float32(255)) * (np.array(colour, np.float32) - _DARK)
        keys.append(Key(f"{name} ({int(pixels.sum())} px)", colour, "area"))
    drawing = np.rint(panel).clip(0, 255).astype(np.uint8)
    return compose([title], [Panel(drawing, "mask", keys)])
