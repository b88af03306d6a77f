"""Pictures of the roads, buildings or masks of one image, over the image where there is one.

Without a truth a picture shows what was found: roads coloured by speed, buildings as outlines. With
a truth it shows what is found, missed and false, as the scorer decides. Buildings then have their
intersection over union at their outline, as in the visualisers of SpaceNet and the Mapping
Challenge.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.evaluation.metrics.apls import METRES_PER_PIXEL
from satmap.evaluation.metrics.apls_diagnosis import Diagnosis, LostRoads, diagnose
from satmap.evaluation.metrics.building_f1 import Matches, best_ious, match_buildings
from satmap.evaluation.metrics.crossings import find_crossings, match_crossings
from satmap.evaluation.metrics.figures import Figures
from satmap.evaluation.metrics.turns import check_turns
from satmap.report.panels import (
    CASING,
    GREEN,
    LABEL_PX,
    SKY_BLUE,
    WHITE,
    Colour,
    Floats,
    Ground,
    Key,
    Panel,
    Picture,
    Units,
    View,
    compose,
    text_size,
)
from satmap.submissions.buildings_csv import BuildingRow
from satmap.submissions.roads_csv import RoadRow
from satmap.vectors.speeds import MPS_PER_MPH

#: Colours of objects that are found, missed and false. The last two are brighter than Okabe and
#: Ito's vermillion and yellow, for dark and reddish ground.
FOUND: Colour = SKY_BLUE
MISSED: Colour = (250, 75, 20)
FALSE: Colour = (255, 245, 110)

# In pictures of more true and proposed buildings, outlines are thinner, and those that are smaller
# than their number have none.
_CROWD = 300

_UNKNOWN: Colour = (200, 200, 200)
_DARK: Colour = (35, 35, 35)

# Colours of speeds, from blue over yellow to red, which also readers with red-green blindness can
# tell apart. All are bright enough to be seen on dark ground.
_SPEEDS_KMH = (15.0, 40.0, 60.0, 80.0, 105.0)
_SPEED_COLOURS = np.array(
    [(64, 110, 255), (100, 215, 245), (252, 240, 110), (250, 155, 45), (225, 50, 25)], np.float64
)
_MPS_PER_KMH = 1 / 3.6
# Speeds in the legend, and metres per second of the unit.
_LEGEND_SPEEDS = {
    Units.KMH: ((20, 40, 60, 80, 100), _MPS_PER_KMH),
    Units.MPH: ((10, 20, 30, 40, 50, 60), MPS_PER_MPH),
}

# Names of the figures of a score in the caption.
_FIGURES = {
    "f1": "F1", "precision": "precision", "recall": "recall",
    "ap50": "AP50", "ar50": "AR50", "ap": "AP", "jaccard": "Jaccard index",
    "crossings_f1": "crossing F1", "false_turn_rate": "false-turn rate",
}  # fmt: skip


def white_ground(points: Iterable[Floats], metres_per_pixel: float | None = None) -> Ground:
    """Return white paper that covers points, float64 (n, 2) each."""
    view = View.around(np.concatenate([np.empty((0, 2)), *points]))
    return Ground(view, None, metres_per_pixel)


def score_line(figures: Figures) -> str:
    """Return the scores of an image as a line of text; empty if there is none."""
    parts = []
    for weight in ("length", "time"):
        names = ("apls", "truth_to_proposal", "proposal_to_truth")
        score, there, back = (figures.get(f"{name}_{weight}") for name in names)
        if score is not None:
            parts.append(f"APLS by {weight} {score:.3f}")
            if there is not None and back is not None:
                parts[-1] += f" (truth to proposal {there:.3f}, back {back:.3f})"
    for key, name in _FIGURES.items():
        if (value := figures.get(key)) is not None:
            parts.append(f"{name} {value:.3f}")
    return ", ".join(parts)


# --- roads ----------------------------------------------------------------------------------------


def roads_picture(
    proposal: Sequence[RoadRow],
    truth: Sequence[RoadRow] | None = None,
    *,
    ground: Ground,
    caption: Sequence[str],
    units: Units = Units.KMH,
    metres_per_pixel: float = METRES_PER_PIXEL,
) -> Picture:
    """Draw roads by speed, beside the plain image or beside the true roads and the errors.

    Args:
        proposal: roads in pixels of the image.
        truth: true roads; None if there are none to compare with.
        ground: the image.
        caption: lines above the picture.
        units: of speeds and lengths.
        metres_per_pixel: pixel size that decides what is found, as for
            :func:`satmap.evaluation.metrics.apls.apls`.
    """
    panels = [_speed_panel(proposal, "predicted", ground, units)]
    if truth is not None:
        diagnosis = diagnose(truth, proposal, metres_per_pixel=metres_per_pixel)
        panels.append(_speed_panel(truth, "truth", ground, units))
        panels.append(_error_panel(proposal, diagnosis, ground, units))
    elif ground.image is not None:
        panels.append(Panel(ground.with_scale_bar(ground.panel(), units), "image"))
    return compose(caption, panels)


def road_errors_picture(
    truth: Sequence[RoadRow],
    proposal: Sequence[RoadRow],
    *,
    caption: Sequence[str],
    ground: Ground | None = None,
    units: Units = Units.KMH,
    metres_per_pixel: float = METRES_PER_PIXEL,
    with_crossings: bool = False,
) -> Picture:
    """Draw found, missed and false roads, and beside them the routes that break.

    Arguments are those of :func:`roads_picture`. Without a ground the roads are on white paper.
    ``with_crossings`` adds the crossings on different levels, and the places of false turns.
    """
    diagnosis = diagnose(truth, proposal, metres_per_pixel=metres_per_pixel)
    lines = [row.line for row in (*truth, *proposal) if len(row.line) > 1]
    ground = ground or white_ground(lines, metres_per_pixel)
    panels = [
        _error_panel(proposal, diagnosis, ground, units),
        _route_panel(proposal, diagnosis, ground, units, metres_per_pixel),
    ]
    if with_crossings:
        panels.append(_crossing_panel(truth, proposal, ground, units, metres_per_pixel))
    return compose(caption, panels)


def speed_colour(speed_mps: float) -> Colour:
    """Return the colour of a speed: blue up to 15 km/h, over yellow to red from 105 km/h on.

    Unknown speeds (NaN) are grey.
    """
    if not np.isfinite(speed_mps):
        return _UNKNOWN
    kmh = speed_mps / _MPS_PER_KMH
    red, green, blue = (
        round(float(np.interp(kmh, _SPEEDS_KMH, channel))) for channel in _SPEED_COLOURS.T
    )
    return red, green, blue


def _speed_panel(rows: Sequence[RoadRow], heading: str, ground: Ground, units: Units) -> Panel:
    """Draw roads by speed, with dots where they end or meet."""
    panel, view = ground.panel(), ground.view
    by_colour: dict[Colour, list[Floats]] = {}
    for row in rows:
        speed = row.length_m / row.travel_time_s if row.travel_time_s else np.nan
        by_colour.setdefault(speed_colour(speed), []).append(row.line)
    view.draw_lines(panel, [row.line for row in rows], CASING)
    for colour, lines in by_colour.items():
        view.draw_lines(panel, lines, colour, casing=False)
    ends = {tuple(row.line[end].tolist()) for row in rows for end in (0, -1)}
    view.draw_dots(panel, np.array(sorted(ends)).reshape(-1, 2), WHITE, 3)
    speeds, unit_mps = _LEGEND_SPEEDS[units]
    keys = [Key(str(speed), speed_colour(speed * unit_mps)) for speed in speeds]
    keys[-1] = Key(f"{speeds[-1]} {units}", keys[-1].colour)
    if _UNKNOWN in by_colour:
        keys.append(Key("unknown", _UNKNOWN))
    return Panel(ground.with_scale_bar(panel, units), heading, keys)


def _error_panel(
    proposal: Sequence[RoadRow], diagnosis: Diagnosis, ground: Ground, units: Units
) -> Panel:
    panel, view = ground.panel(), ground.view
    missed, false = diagnosis.missed, diagnosis.false
    view.draw_lines(panel, [row.line for row in proposal if len(row.line) > 1], FOUND)
    view.draw_lines(panel, false.pieces, FALSE, 4)
    view.draw_lines(panel, missed.pieces, MISSED, 4)
    keys = [
        Key("found", FOUND),
        Key(f"missed ({_share(missed)} of the truth)", MISSED),
        Key(f"false ({_share(false)} of the proposal)", FALSE),
    ]
    return Panel(ground.with_scale_bar(panel, units), "found, missed and false roads", keys)


def _share(losses: LostRoads) -> str:
    share = losses.lost_m / losses.roads_m if losses.roads_m else 0.0
    return "under 1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def _route_panel(
    proposal: Sequence[RoadRow],
    diagnosis: Diagnosis,
    ground: Ground,
    units: Units,
    metres_per_pixel: float,
) -> Panel:
    panel, view = ground.panel(), ground.view
    missed, false = diagnosis.missed, diagnosis.false
    view.draw_lines(panel, [row.line for row in proposal if len(row.line) > 1], WHITE, 1)
    others = [route.other for route in missed.routes if route.other is not None]
    view.draw_lines(panel, others, FOUND)
    view.draw_lines(panel, [route.path for route in missed.routes], MISSED)
    for route in missed.routes:
        view.draw_dots(panel, route.path[[0, -1]], MISSED)
    view.draw_crosses(panel, missed.lost_nodes, MISSED)
    rings = []
    for losses, colour in ((false, FALSE), (missed, MISSED)):
        rings.append(np.array([found.xy for found in losses.breaks]).reshape(-1, 2))
        view.draw_rings(panel, rings[-1], colour)
    view.draw_labels(
        panel,
        [
            (_free_place(route.path, np.concatenate(rings)), f" {number} ", WHITE)
            for number, route in enumerate(missed.routes, 1)
        ],
        20,
    )
    keys = [
        Key("route of the truth", MISSED),
        Key("the same in the proposal", FOUND),
        Key(f"gap ({len(missed.breaks)})", MISSED, "ring"),
        Key(f"false join ({len(false.breaks)})", FALSE, "ring"),
        Key(f"node not found ({len(missed.lost_nodes)} of {missed.nodes})", MISSED, "cross"),
    ]
    # Lengths fit the scale bar, also where the score takes another pixel size.
    ratio = (ground.metres_per_pixel or metres_per_pixel) / metres_per_pixel
    lengths = [
        f"{number}: {units.length(route.way_m * ratio)} to "
        + ("none" if route.other is None else units.length(route.other_m * ratio))
        for number, route in enumerate(missed.routes, 1)
    ]
    note = "length in truth and proposal  " + ",  ".join(lengths)
    return Panel(
        ground.with_scale_bar(panel, units),
        "routes that break in the proposal",
        keys,
        [note if lengths else "no route is much longer or shorter in the proposal"],
    )


def _crossing_panel(
    truth: Sequence[RoadRow],
    proposal: Sequence[RoadRow],
    ground: Ground,
    units: Units,
    metres_per_pixel: float,
) -> Panel:
    panel, view = ground.panel(), ground.view
    crossings = [find_crossings(side, metres_per_pixel) for side in (truth, proposal)]
    matches = match_crossings(crossings[0], crossings[1], metres_per_pixel)
    false, missed = check_turns(truth, proposal, metres_per_pixel)
    view.draw_lines(panel, [row.line for row in truth if len(row.line) > 1], GREEN, 1)
    view.draw_lines(panel, [row.line for row in proposal if len(row.line) > 1], WHITE, 1)
    found = matches.proposal.xy[matches.pairs[matches.counted, 1]]
    rings = (
        ("found", found, FOUND),
        ("missed", matches.truth.xy[matches.unmatched(0)], MISSED),
        ("false", matches.proposal.xy[matches.unmatched(1)], FALSE),
    )
    crosses = (
        ("false turn", false, FALSE),
        ("missed turn", missed, MISSED),
    )
    keys = [Key("truth", GREEN), Key("proposal", WHITE)]
    for name, places, colour in rings:
        view.draw_rings(panel, places, colour)
        keys.append(Key(f"{name} ({len(places)})", colour, "ring"))
    for name, routes, colour in crosses:
        view.draw_crosses(panel, routes.places, colour)
        keys.append(Key(f"{name} ({routes.wrong} of {routes.routes} routes)", colour, "cross"))
    return Panel(ground.with_scale_bar(panel, units), "crossings on different levels", keys)


def _free_place(path: Floats, rings: Floats) -> Floats:
    """Choose, of five places along a path, the one farthest from all rings, for its label."""
    line = shapely.linestrings(path)
    shares = np.array([0.5, 0.25, 0.75, 0, 1])
    places = shapely.line_interpolate_point(line, shares, normalized=True)
    distances = shapely.distance(places, shapely.multipoints(rings)) if len(rings) else 0 * shares
    free: Floats = shapely.get_coordinates(places[np.argmax(distances)])[0]
    return free


# --- buildings ------------------------------------------------------------------------------------


def buildings_picture(
    proposal: Sequence[BuildingRow],
    truth: Sequence[BuildingRow] | None = None,
    *,
    caption: Sequence[str],
    ground: Ground | None = None,
    units: Units = Units.KMH,
    matches: Matches | None = None,
) -> Picture:
    """Draw the outlines of buildings, compared with a truth if there is one, beside the image.

    Objects that do not count in the score are left out, so that the counts in the legend are the
    score's true positives, false positives and false negatives. The numbers are intersections over
    union with the matched building, or for false ones the largest with any.

    Args:
        proposal: buildings in pixels of the image.
        truth: true buildings; None if there are none to compare with.
        caption: lines above the picture.
        ground: the image; None for white paper.
        units: of lengths.
        matches: what the scorer matched; None for the rule of SpaceNet's F1.
    """
    if ground is None:
        polygons = [row.polygon for row in (*(truth or ()), *proposal)]
        ground = white_ground([shapely.get_coordinates(polygons)])
    panel, view = ground.panel(), ground.view
    if truth is None:
        view.draw_outlines(panel, [row.polygon for row in proposal], FOUND)
        keys = [Key(f"buildings ({len(proposal)})", FOUND, "area")]
    else:
        keys = _draw_matches(panel, view, proposal, truth, matches)
    panels = [Panel(ground.with_scale_bar(panel, units), "buildings", keys)]
    if ground.image is not None:
        panels.append(Panel(ground.with_scale_bar(ground.panel(), units), "image"))
    return compose(caption, panels)


def _draw_matches(
    panel: Picture,
    view: View,
    proposal: Sequence[BuildingRow],
    truth: Sequence[BuildingRow],
    matches: Matches | None,
) -> list[Key]:
    matches = matches or match_buildings(truth, proposal)
    true, proposed = (
        np.array([row.polygon for row in rows], np.object_) for rows in (truth, proposal)
    )
    is_found, is_right = np.isin(np.arange(len(truth)), matches.taken), matches.taken >= 0
    is_false = matches.counted & ~is_right
    missed = true[matches.counted_truth & ~is_found]
    is_crowded = len(true) + len(proposed) > _CROWD
    thickness = 1 if is_crowded else 2
    view.draw_outlines(panel, true[is_found], WHITE, 1)
    view.draw_outlines(panel, missed, MISSED, thickness + 1)
    view.draw_outlines(panel, proposed[is_false], FALSE, thickness)
    view.draw_outlines(panel, proposed[is_right], FOUND, thickness)
    ious = best_ious(truth, proposal, matches)
    # Those without overlap need no number.
    is_labelled = is_right | (is_false & (ious >= 0.005))
    if is_crowded:
        box = np.array(text_size(".99", LABEL_PX)) / view.scale
        left, top, right, bottom = shapely.bounds(proposed).T
        is_labelled &= (right - left > box[0]) & (bottom - top > box[1])
    labelled = np.flatnonzero(is_labelled)
    places = shapely.get_coordinates(shapely.point_on_surface(proposed[labelled]))
    view.draw_labels(
        panel,
        [
            (place, f"{ious[index]:.2f}".removeprefix("0"), WHITE)
            for index, place in zip(labelled.tolist(), places, strict=True)
        ],
    )
    return [
        Key(f"found ({int(is_right.sum())}), with IoU", FOUND, "area"),
        Key("its true outline", WHITE, "area"),
        Key(f"missed ({len(missed)})", MISSED, "area"),
        Key(f"false ({int(is_false.sum())})", FALSE, "area"),
    ]


# --- masks ----------------------------------------------------------------------------------------


def mask_picture(
    truth: NDArray[np.bool_] | None,
    proposal: NDArray[np.bool_],
    *,
    caption: Sequence[str],
    ground: Ground | None = None,
    units: Units = Units.KMH,
) -> Picture:
    """Draw the pixels of two masks, bool (h, w), that are found, missed and false.

    Without a truth, all pixels of the proposal are found. Over an image, areas of each kind have an
    outline. Without an image they are filled on dark ground; larger masks are shrunk, their colours
    mixed by area.
    """
    only_found = truth is None
    truth = proposal if truth is None else truth
    if truth.shape != proposal.shape or truth.ndim != 2 or not truth.size:
        raise ValueError(
            f"masks must have the same shape (h, w), got {truth.shape} and {proposal.shape}"
        )
    kinds = (
        ("found", truth & proposal, FOUND),
        ("missed", truth & ~proposal, MISSED),
        ("false", proposal & ~truth, FALSE),
    )[: 1 if only_found else 3]
    keys = [Key(f"{name} ({int(mask.sum())} px)", colour, "area") for name, mask, colour in kinds]
    if ground is None:
        ground = Ground(View.of_image(truth.shape))
        panels = [Panel(ground.with_scale_bar(_filled(kinds, ground.view), units), "mask", keys)]
    else:
        panel = ground.panel()
        # Areas that are found come last: those that are not may be narrow strips along them.
        for _, mask, colour in reversed(kinds):
            ground.view.draw_lines(panel, _borders(mask), colour, 2)
        plain = Panel(ground.with_scale_bar(ground.panel(), units), "image")
        panels = [Panel(ground.with_scale_bar(panel, units), "mask", keys), plain]
    return compose(caption, panels)


def _filled(kinds: Sequence[tuple[str, NDArray[np.bool_], Colour]], view: View) -> Picture:
    size = view.panel_size
    panel = np.full((size[1], size[0], 3), _DARK, np.float32)
    for _, mask, colour in kinds:
        shrink = cv2.INTER_AREA if mask.shape[1] > size[0] else cv2.INTER_NEAREST
        share = cv2.resize(mask.view(np.uint8) * np.uint8(255), size, interpolation=shrink)
        panel += (share[..., None] / np.float32(255)) * (np.array(colour, np.float32) - _DARK)
    return np.rint(panel).clip(0, 255).astype(np.uint8)


def _borders(mask: NDArray[np.bool_]) -> list[Floats]:
    """Return closed lines through the outermost pixels of each area of a mask."""
    found, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    lines = [contour.reshape(-1, 2).astype(np.float64) + 0.5 for contour in found]
    return [np.concatenate([line, line[:1]]) for line in lines]
