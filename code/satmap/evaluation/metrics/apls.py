"""APLS, the score of the SpaceNet road challenges: do routes on two road maps have equal length?

Average path length similarity (Van Etten, Lindenbaum, Bacastow 2018, "SpaceNet: A Remote Sensing
Dataset and Challenge Series"), as the challenge's own scorer computes it: in pixels, for every pair
of nodes that one map connects. ``length`` is measured on the lines in pixels, whatever the files'
``length_m`` says; ``time`` is each row's ``travel_time_s`` spread evenly along its line.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import numpy as np

from satmap.evaluation.metrics.apls_graph import LENGTH, TIME, AplsGraph, Ways, build_graph
from satmap.evaluation.metrics.figures import Report
from satmap.evaluation.metrics.road_samples import Roads, road_rows
from satmap.io.text import natural_key
from satmap.submissions.roads_csv import RoadRow

MIDPOINT_M = 50.0
SNAP_M = 4.0

#: The scale that the official scorer takes for granted.
METRES_PER_PIXEL = 0.31

# Rows and columns of the distance matrix in work at once: a few tiles fit into a core's cache.
_TILE = 256

# Shorter than any way of which a share can be told, longer than 0.
_NO_WAY = 1e-200


@dataclass(frozen=True)
class RouteScore:
    """Similarity of routes under one weight, each 0..1.

    Attributes:
        truth_to_proposal: routes of the truth, found again in the proposal.
        proposal_to_truth: routes of the proposal, found again in the truth.
        score: of one image their harmonic mean; of many the mean of the images' scores.
    """

    truth_to_proposal: float
    proposal_to_truth: float
    score: float


@dataclass(frozen=True)
class AplsScore:
    """APLS of one image, or a mean over many.

    Attributes:
        length: weight length.
        time: weight travel time; None if a row of either side has no travel time.
    """

    length: RouteScore
    time: RouteScore | None


@dataclass(frozen=True)
class AplsTotal:
    """A mean over images, or over AOIs, by both countings.

    Attributes:
        official: images in only one of the files are left out, as the official scorer does.
        fair: those images count as 0.
        images: how many images are in both files, and so scored.
    """

    official: AplsScore
    fair: AplsScore
    images: int


@dataclass(frozen=True)
class RoadsReport:
    """Scores of a proposal file against a truth file, ids in natural order.

    Attributes:
        total: mean of the AOIs' means.
        aois: per area of interest.
        images: per image that both files have.
        truth_only: images that the proposal lacks.
        proposal_only: images that the truth lacks.
    """

    total: AplsTotal
    aois: Mapping[str, AplsTotal]
    images: Mapping[str, AplsScore]
    truth_only: tuple[str, ...]
    proposal_only: tuple[str, ...]

    def report(self) -> Report:
        """The same as named figures.

        They stand under ``apls_length``, ``truth_to_proposal_length``,
        ``proposal_to_truth_length`` and the same with ``_time``; those are None when a file lacks
        travel times. ``total`` and ``aois`` hold the official counting, beside it
        ``fair_apls_length``, ``fair_apls_time`` and the number of images scored.
        """
        return Report(
            "apls",
            _total_figures(self.total),
            {aoi: _total_figures(total) for aoi, total in self.aois.items()},
            {image_id: _figures(score) for image_id, score in self.images.items()},
            self.truth_only,
            self.proposal_only,
        )


def apls(truth: Roads, proposal: Roads, *, metres_per_pixel: float = METRES_PER_PIXEL) -> AplsScore:
    """APLS of one image.

    Lines of fewer than two points are no roads. Two empty maps are equal (1); an empty and a drawn
    one have nothing in common (0).

    Args:
        truth: roads in pixels of the image: rows, arrays (n, 2), or a road graph.
        proposal: the same.
        metres_per_pixel: scale, for the 50 m between midpoints and the 4 m of snapping.

    Raises:
        ValueError: a line or a travel time makes no sense, or ``metres_per_pixel`` is not positive.
    """
    rows = road_rows(truth), road_rows(proposal)
    return _apls(*rows, metres_per_pixel, _have_times([*rows[0], *rows[1]]))


def score_roads(
    truth: Mapping[str, Sequence[RoadRow]],
    proposal: Mapping[str, Sequence[RoadRow]],
    *,
    metres_per_pixel: float = METRES_PER_PIXEL,
) -> RoadsReport:
    """Score a whole file: per image, per AOI (mean of its images), total (mean of the AOIs).

    The AOI of an image is the first three ``_``-separated parts of its id. As in the official
    scorer an AOI without a single scored image counts as 0 in the total. Time is scored only if
    every row of both files has a travel time.
    """
    ids = sorted(truth.keys() | proposal.keys(), key=natural_key)
    timed = all(_have_times(rows) for file in (truth, proposal) for rows in file.values())
    images = {
        image_id: _apls(truth[image_id], proposal[image_id], metres_per_pixel, timed)
        for image_id in ids
        if image_id in truth and image_id in proposal
    }
    nothing = RouteScore(0.0, 0.0, 0.0)
    zero = AplsScore(nothing, nothing if timed else None)

    members: dict[str, list[str]] = {}
    for image_id in ids:
        members.setdefault(aoi_of(image_id), []).append(image_id)
    aois = {}
    for aoi, of_aoi in members.items():
        scored = [images[image_id] for image_id in of_aoi if image_id in images]
        fair = [images.get(image_id, zero) for image_id in of_aoi]
        aois[aoi] = AplsTotal(_mean(scored or [zero]), _mean(fair), len(scored))
    total = AplsTotal(
        _mean([of_aoi.official for of_aoi in aois.values()] or [zero]),
        _mean([of_aoi.fair for of_aoi in aois.values()] or [zero]),
        len(images),
    )
    return RoadsReport(
        total=total,
        aois=aois,
        images=images,
        truth_only=tuple(image_id for image_id in ids if image_id not in proposal),
        proposal_only=tuple(image_id for image_id in ids if image_id not in truth),
    )


def aoi_of(image_id: str) -> str:
    """Area of interest of an image: the first three parts of its id, as in the official scorer."""
    return "_".join(image_id.split("_")[:3])


def _apls(
    truth: Sequence[RoadRow], proposal: Sequence[RoadRow], metres_per_pixel: float, timed: bool
) -> AplsScore:
    if not metres_per_pixel > 0:
        raise ValueError(f"metres_per_pixel must be positive, got {metres_per_pixel}")
    a = build_graph(truth, MIDPOINT_M / metres_per_pixel)
    b = build_graph(proposal, MIDPOINT_M / metres_per_pixel)
    weights = [LENGTH, TIME] if timed else [LENGTH]
    if a is None or b is None:
        same = float(a is None and b is None)
        scores = [RouteScore(same, same, same) for _ in weights]
    else:
        there = _one_way(a, b, SNAP_M / metres_per_pixel, weights)
        back = _one_way(b, a, SNAP_M / metres_per_pixel, weights)
        scores = [
            RouteScore(s, t, 2 * s * t / (s + t) if s + t > 0 else 0.0)
            for s, t in zip(there, back, strict=True)
        ]
    return AplsScore(scores[0], scores[1] if timed else None)


def _one_way(a: AplsGraph, b: AplsGraph, snap_px: float, weights: Sequence[int]) -> list[float]:
    """Under each weight, 1 minus the mean difference of the routes of ``a`` in ``b``."""
    # With the nodes of a connected part in a row, all pairs within it have a route in ``a``.
    order = np.argsort(a.component, kind="stable")
    nodes = a.nodes.take(order)
    controls = b.locate(a.node_xy, snap_px).take(order)
    sizes = np.bincount(a.component)
    routes = int((sizes * (sizes - 1)).sum())
    if not routes:
        return [1.0] * len(weights)
    parts = list(pairwise([0, *np.cumsum(sizes).tolist()]))
    # A node without a control differs by 1 from itself too, which is no route.
    no_routes = int((controls.edge < 0).sum())
    scores = []
    for weight in weights:
        there, back = a.ways(nodes, weight), b.ways(controls, weight)
        difference = sum(_differences(there, back, *part) for part in parts) - no_routes
        scores.append(1 - difference / routes)
    return scores


def _differences(there: Ways, back: Ways, begin: int, end: int) -> float:
    """Sum of the differences of all routes within a connected part, nodes ``begin`` to ``end``."""
    total = 0.0
    for top in range(begin, end, _TILE):
        rows = slice(top, min(top + _TILE, end))
        for left in range(top, end, _TILE):
            columns = slice(left, min(left + _TILE, end))
            way, error = there[rows, columns], back[rows, columns]
            error -= way
            np.abs(error, out=error)
            # Where the way is zero so must be the other; where that is infinite this gives 1.
            error /= np.maximum(way, _NO_WAY, out=way)
            np.minimum(error, 1, out=error)
            # Ways are equally long in both directions: what lies beside the diagonal counts twice.
            total += float(error.sum()) * (1 if left == top else 2)
    return total


def _have_times(rows: Sequence[RoadRow]) -> bool:
    return all(isfinite(row.travel_time_s) for row in rows)


def _mean(scores: Collection[AplsScore]) -> AplsScore:
    times = [score.time for score in scores if score.time is not None]
    return AplsScore(
        _mean_route([score.length for score in scores]), _mean_route(times) if times else None
    )


def _mean_route(scores: Collection[RouteScore]) -> RouteScore:
    return RouteScore(
        sum(score.truth_to_proposal for score in scores) / len(scores),
        sum(score.proposal_to_truth for score in scores) / len(scores),
        sum(score.score for score in scores) / len(scores),
    )


def _figures(score: AplsScore) -> dict[str, float | int | None]:
    figures: dict[str, float | int | None] = {}
    for name, route in (("length", score.length), ("time", score.time)):
        figures[f"apls_{name}"] = route.score if route else None
        figures[f"truth_to_proposal_{name}"] = route.truth_to_proposal if route else None
        figures[f"proposal_to_truth_{name}"] = route.proposal_to_truth if route else None
    return figures


def _total_figures(total: AplsTotal) -> dict[str, float | int | None]:
    return {
        **_figures(total.official),
        "fair_apls_length": total.fair.length.score,
        "fair_apls_time": total.fair.time.score if total.fair.time else None,
        "images": total.images,
    }
