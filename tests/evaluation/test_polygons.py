"""Scores of outlines, on cases that were worked out by hand. Sizes are pixels."""

import math
from pathlib import Path

import numpy as np
import pytest
import shapely

from satmap.errors import SatmapError
from satmap.evaluation.metrics.polygons import (
    polis_distance,
    score_polygons,
    tangent_angle_error,
)
from satmap.evaluation.score import score_files
from satmap.report.table import score_table
from satmap.submissions.buildings_csv import BuildingRow

SQUARE = shapely.box(0, 0, 20, 20)


def row(shape: shapely.Polygon, confidence: float = 1.0) -> BuildingRow:
    return BuildingRow(shape, confidence)


def test_an_exact_outline() -> None:
    figures = score_polygons([row(SQUARE)], [row(SQUARE)]).figures
    assert figures["mta"] == pytest.approx(0, abs=1e-3)
    assert [figures[name] for name in ("iou", "c_iou", "n_ratio", "boundary_ap")] == [1] * 4
    assert figures["polis"] == 0


def test_iou_and_vertices_of_an_image() -> None:
    """Two buildings of 400; one is found as a hexagon with 380, the other is missed."""
    cut = shapely.Polygon([(0, 0), (20, 0), (20, 20), (10, 20), (10, 18), (0, 18)])
    figures = score_polygons([row(SQUARE), row(shapely.box(40, 0, 60, 20))], [row(cut)]).figures
    assert figures["iou"] == pytest.approx(380 / 800)
    # 6 predicted and 8 true vertices.
    assert figures["n_ratio"] == pytest.approx(6 / 8)
    assert figures["c_iou"] == pytest.approx(380 / 800 * (1 - 2 / 14))


def test_holes_and_parts_count_as_vertices() -> None:
    ring = shapely.Polygon(SQUARE.exterior, [shapely.box(5, 5, 15, 15).exterior])
    both = shapely.MultiPolygon([ring, shapely.box(30, 0, 40, 10)])
    score = score_polygons([row(both)], [row(both)])
    assert score.true_vertices == score.found_vertices == 12
    assert score.figures["polis"] == 0 and score.figures["iou"] == 1


def test_polis_distance_of_a_moved_square() -> None:
    """Moved by 2 to the right: the left corners are 2 away, or 0; see the comments."""
    moved = shapely.box(2, 0, 22, 20)
    # Of the moved square the left corners lie on the outline, the right ones 2 beside it, and of
    # the original it is the other way round.
    assert polis_distance(moved, SQUARE) == pytest.approx((0 + 2 + 2 + 0) / 4)
    larger = shapely.box(-3, -3, 23, 23)
    # Its corners are 3 root 2 away, those of the original 3.
    assert polis_distance(larger, SQUARE) == pytest.approx((3 * math.sqrt(2) + 3) / 2)


def test_tangent_angle_of_a_bevelled_corner() -> None:
    """A corner cut off at 45 degrees differs by 45 degrees from both sides."""
    bevelled = shapely.Polygon([(0, 0), (20, 0), (20, 14), (14, 20), (0, 20)])
    assert tangent_angle_error(bevelled, SQUARE) == pytest.approx(45, abs=1)
    turned = shapely.affinity.rotate(SQUARE, 10)
    # Its sides; steps near the corners of the original are projected to two of its sides.
    assert 10 <= tangent_angle_error(turned, SQUARE) < 60
    assert tangent_angle_error(shapely.box(0, 0, 20, 21), SQUARE) < 1


def test_boundary_ap() -> None:
    """The areas agree by 0.81, the strips less, so fewer thresholds are met than by area."""
    smaller = shapely.box(1, 1, 19, 19)
    # Strips 3 wide: 400 - 14^2 = 204 and 324 - 12^2 = 180. They share 18^2 - 14^2 = 128.
    strip_iou = 128 / (204 + 180 - 128)
    assert strip_iou == 0.5
    figures = score_polygons([row(SQUARE)], [row(smaller)]).figures
    # Only the first of ten thresholds is met.
    assert figures["boundary_ap"] == pytest.approx(0.1)
    # A more confident false building before it halves the precision.
    false = row(shapely.box(50, 50, 70, 70), 2.0)
    figures = score_polygons([row(SQUARE)], [row(smaller), false]).figures
    assert figures["boundary_ap"] == pytest.approx(0.05)


def test_nothing_to_average() -> None:
    figures = score_polygons([], []).figures
    assert figures["iou"] == 1
    assert all(figures[name] is None for name in ("n_ratio", "mta", "polis", "boundary_ap"))
    missed = score_polygons([row(SQUARE)], []).figures
    assert (missed["iou"], missed["n_ratio"], missed["boundary_ap"]) == (0, 0, 0)
    # Buildings under 20 square pixels do not count.
    assert score_polygons([row(shapely.box(0, 0, 4, 4))], []).figures["iou"] == 1


def test_invalid_outlines_are_repaired() -> None:
    bow = shapely.Polygon([(0, 0), (20, 20), (20, 0), (0, 20)])
    figures = score_polygons([row(SQUARE)], [row(bow)]).figures
    assert figures["iou"] is not None and np.isfinite(figures["iou"])


def test_files(tmp_path: Path) -> None:
    truth, found = tmp_path / "truth.csv", tmp_path / "found.csv"
    header = "ImageId,BuildingId,PolygonWKT_Pix,Confidence"
    moved = "POLYGON ((2 0, 22 0, 22 20, 2 20, 2 0))"
    exact = "POLYGON ((0 0, 20 0, 20 20, 0 20, 0 0))"
    rows = [f'AOI_2_Vegas_img{n},1,"{exact}",1' for n in (1, 2)]
    truth.write_text("\n".join([header, *rows]) + "\n")
    rows = [f'AOI_2_Vegas_img1,1,"{moved}",1', f'AOI_2_Vegas_img2,1,"{exact}",1']
    found.write_text("\n".join([header, *rows]) + "\n")
    report = score_files(truth, found, with_polygons=True).report
    iou = 18 / 22
    assert report.images["AOI_2_Vegas_img1"]["polis"] == pytest.approx(1)
    for figures in (report.total, report.aois["AOI_2_Vegas"]):
        assert figures["polis"] == pytest.approx(0.5)
        assert figures["iou"] == pytest.approx((1 + iou) / 2)
    assert "boundary AP" in score_table(report)
    assert "polis" not in score_files(truth, found).report.total
    roads = tmp_path / "roads.csv"
    roads.write_text("ImageId,WKT_Pix,length_m,travel_time_s\na_b_c_1,LINESTRING EMPTY,0,0\n")
    with pytest.raises(SatmapError, match="--polygons is for outlines of buildings"):
        score_files(roads, roads, with_polygons=True)
