"""APLS, the score of the SpaceNet road challenges: compares route lengths on two road maps.

Average path length similarity (Van Etten, Lindenbaum, Bacastow 2018, "SpaceNet: A Remote Sensing
Dataset and Challenge Series") is computed like in the challenge's own scorer: in pixels, over all
pairs of nodes that are connected in one map. ``length`` is measured on the lines in pixels and
ignores the files' ``length_m``. ``time`` is each row's ``travel_time_s``, spread evenly along its
line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import numpy as np

from satmap.evaluation.metrics.apls_graph import LENGTH, TIME, AplsGraph, Ways, build_graph
from satmap.evaluation.metrics.figures import Figures, Report
from satmap.evaluation.metrics.road_samples import Roads, road_rows
from satmap.io.text import natural_key
from satmap.submissions.roads_csv import RoadRow

MIDPOINT_M = 50.0
SNAP_M = 4.0

#: The scale that the official scorer assumes.
METRES_PER_PIXEL = 0.31

# Rows and columns of the distance matrix processed at a time: a few tiles fit into a core's cache.
_TILE = 256

# Shortest path length to divide by; avoids division by zero.
_MIN_PATH = 1e-200


@dataclass(frozen=True)
class RouteScore:
    """Similarity of routes under one weight; all values 0..1.

    Attributes:
        truth_to_proposal: similarity of the truth's routes to their counterparts in the proposal.
        proposal_to_truth: similarity of the proposal's routes to their counterparts in the truth.
        score: harmonic mean of both.
    """

    truth_to_proposal: float
    proposal_to_truth: float
    score: float


@dataclass(frozen=True)
class AplsScore:
    """APLS of one image.

    Attributes:
        length: routes compared by length.
        time: routes compared by travel time; None if a row of either side has no travel time.
    """

    length: RouteScore
    time: RouteScore | None


def apls(truth: Roads, proposal: Roads, *, metres_per_pixel: float = METRES_PER_PIXEL) -> AplsScore:
    """Compute the APLS of one image, of roads in pixels: rows, arrays (n, 2), or a road graph.

    Lines of fewer than two points are ignored. Two empty maps score 1; an empty and a non-empty
    map score 0. ``metres_per_pixel`` converts the 50 m between midpoints and the snapping distance
    of 4 m to pixels.

    Raises:
        ValueError: a line or a travel time is invalid, or ``metres_per_pixel`` is not positive.
    """
    rows = road_rows(truth), road_rows(proposal)
    return _apls(*rows, metres_per_pixel, _have_times([*rows[0], *rows[1]]))


def score_roads(
    truth: Mapping[str, Sequence[RoadRow]],
    proposal: Mapping[str, Sequence[RoadRow]],
    *,
    metres_per_pixel: float = METRES_PER_PIXEL,
) -> Report:
    """Score a whole file: per image, per AOI (mean of its images), total (mean of the AOIs).

    The figures are ``apls_length``, ``truth_to_proposal_length``, ``proposal_to_truth_length`` and
    the same with ``_time``, which are None unless every row of both files has a travel time. AOIs
    and total also have ``images``, the number of images scored. Their figures leave out images that
    are in only one file, like the official scorer; ``fair_apls_length`` and ``fair_apls_time``
    count those images as 0. The AOI of an image is the first three ``_``-separated parts of its id.
    As in the official scorer, an AOI without any scored image counts as 0 in the total.
    """
    ids = sorted(truth.keys() | proposal.keys(), key=natural_key)
    timed = all(_have_times(rows) for file in (truth, proposal) for rows in file.values())
    images = {
        image_id: _figures(_apls(truth[image_id], proposal[image_id], metres_per_pixel, timed))
        for image_id in ids
        if image_id in truth and image_id in proposal
    }
    nothing = RouteScore(0.0, 0.0, 0.0)
    zero = _figures(AplsScore(nothing, nothing if timed else None))

    def summary(of_aoi: Sequence[str]) -> Figures:
        scored = [images[image_id] for image_id in of_aoi if image_id in images]
        fair = _mean([images.get(image_id, zero) for image_id in of_aoi] or [zero])
        return {
            **_mean(scored or [zero]),
            **{f"fair_{name}": fair[name] for name in ("apls_length", "apls_time")},
            "images": len(scored),
        }

    members: dict[str, list[str]] = {}
    for image_id in ids:
        members.setdefault(aoi_of(image_id), []).append(image_id)
    aois = {aoi: summary(of_aoi) for aoi, of_aoi in members.items()}
    return Report(
        metric="apls",
        total={**_mean([*aois.values()] or [summary([])]), "images": len(images)},
        aois=aois,
        images=images,
        truth_only=tuple(image_id for image_id in ids if image_id not in proposal),
        proposal_only=tuple(image_id for image_id in ids if image_id not in truth),
    )


def aoi_of(image_id: str) -> str:
    """Return an image's area of interest: the first three parts of its id (official rule)."""
    return "_".join(image_id.split("_")[:3])


def build_graphs(
    truth: Sequence[RoadRow], proposal: Sequence[RoadRow], metres_per_pixel: float
) -> tuple[AplsGraph | None, AplsGraph | None]:
    """Return the graphs of both maps, with midpoints every 50 m; None for one without roads."""
    if not metres_per_pixel > 0:
        raise ValueError(f"metres_per_pixel must be positive, got {metres_per_pixel}")
    midpoint_px = MIDPOINT_M / metres_per_pixel
    return build_graph(truth, midpoint_px), build_graph(proposal, midpoint_px)


def _apls(
    truth: Sequence[RoadRow], proposal: Sequence[RoadRow], metres_per_pixel: float, timed: bool
) -> AplsScore:
    a, b = build_graphs(truth, proposal, metres_per_pixel)
    weights = [LENGTH, TIME] if timed else [LENGTH]
    if a is None or b is None:
        same = float(a is None and b is None)
        scores = [RouteScore(same, same, same) for _ in weights]
    else:
        forward = _one_way(a, b, SNAP_M / metres_per_pixel, weights)
        backward = _one_way(b, a, SNAP_M / metres_per_pixel, weights)
        scores = [
            RouteScore(s, t, 2 * s * t / (s + t) if s + t > 0 else 0.0)
            for s, t in zip(forward, backward, strict=True)
        ]
    return AplsScore(scores[0], scores[1] if timed else None)


def _one_way(a: AplsGraph, b: AplsGraph, snap_px: float, weights: Sequence[int]) -> list[float]:
    """Return, per weight, 1 minus the mean difference between routes of ``a`` and ``b``."""
    # Sort nodes by connected component: all pairs within a component have a route in ``a``.
    order = np.argsort(a.component, kind="stable")
    nodes = a.nodes.take(order)
    controls = b.locate(a.node_xy, snap_px).take(order)
    sizes = np.bincount(a.component)
    routes = int((sizes * (sizes - 1)).sum())
    if not routes:
        return [1.0] * len(weights)
    parts = list(pairwise([0, *np.cumsum(sizes).tolist()]))
    # A node without a control point adds 1 on the diagonal, which is not a route.
    no_routes = int((controls.edge < 0).sum())
    scores = []
    for weight in weights:
        ways_a, ways_b = Ways(a, nodes, weight), Ways(b, controls, weight)
        difference = sum(_differences(ways_a, ways_b, *part) for part in parts) - no_routes
        scores.append(1 - difference / routes)
    return scores


def _differences(ways_a: Ways, ways_b: Ways, begin: int, end: int) -> float:
    """Sum the route differences within one connected component, nodes ``begin`` to ``end``."""
    total = 0.0
    for top in range(begin, end, _TILE):
        rows = slice(top, min(top + _TILE, end))
        for left in range(top, end, _TILE):
            columns = slice(left, min(left + _TILE, end))
            way, error = ways_a[rows, columns], ways_b[rows, columns]
            error -= way
            np.abs(error, out=error)
            # Length zero only matches length zero; a missing (infinite) path gives 1.
            error /= np.maximum(way, _MIN_PATH, out=way)
            np.minimum(error, 1, out=error)
            # The matrix is symmetric: off-diagonal tiles count twice.
            total += float(error.sum()) * (1 if left == top else 2)
    return total


def _have_times(rows: Sequence[RoadRow]) -> bool:
    return all(isfinite(row.travel_time_s) for row in rows)


def _figures(score: AplsScore) -> Figures:
    figures: dict[str, float | int | None] = {}
    for name, route in (("length", score.length), ("time", score.time)):
        figures[f"apls_{name}"] = route.score if route else None
        figures[f"truth_to_proposal_{name}"] = route.truth_to_proposal if route else None
        figures[f"proposal_to_truth_{name}"] = route.proposal_to_truth if route else None
    return figures


def _mean(records: Sequence[Figures]) -> Figures:
    means: dict[str, float | int | None] = {}
    for name in records[0]:
        values = [value for record in records if (value := record[name]) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means
