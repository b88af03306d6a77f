import json
import random
from collections.abc import Sequence

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity

from repository import SHARED
from satmap.evaluation.metrics import building_f1
from satmap.evaluation.metrics.building_f1 import group_of, match_buildings, score_buildings
from satmap.evaluation.metrics.figures import Counts
from satmap.submissions.buildings_csv import BuildingRow, read_buildings_csv

FIXTURES = SHARED / "fixtures" / "building_f1"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no shared fixtures here")


def box(x: float, y: float, width: float, height: float, confidence: float = 1.0) -> BuildingRow:
    return BuildingRow(shapely.box(x, y, x + width, y + height), confidence)


def found(truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow]) -> list[int]:
    """Return the index of the building matched by each proposal, -1 for none."""
    taken: list[int] = match_buildings(truth, proposals).taken.tolist()
    return taken


def counts(truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow]) -> tuple[int, int, int]:
    record = match_buildings(truth, proposals).counts
    return record.tp, record.fp, record.fn


# --- computed by hand -----------------------------------------------------------------------------


def test_the_most_confident_proposal_matches_first() -> None:
    # A fits the first building exactly, but C, with an IoU of 9/11, is more confident. B, the most
    # confident, overlaps the second by only a third.
    truth = [box(0, 0, 10, 10), box(20, 0, 10, 10)]
    a, b, c = box(0, 0, 10, 10, 0.5), box(15, 0, 10, 10, 0.9), box(1, 0, 10, 10, 0.7)
    assert found(truth, [a, b, c]) == [-1, -1, 0]
    assert counts(truth, [a, b, c]) == (1, 2, 1)


def test_equal_confidences_match_in_file_order() -> None:
    truth = [box(0, 0, 10, 10)]
    assert found(truth, [box(1, 0, 10, 10), box(0, 0, 10, 10)]) == [0, -1]


def test_a_proposal_matches_the_best_unmatched_building() -> None:
    # IoU with the small one 60/100, with the large one 100/150.
    truth = [box(0, 0, 6, 10), box(0, 0, 15, 10)]
    assert found(truth, [box(0, 0, 10, 10, 0.9)]) == [1]
    # Once the large one is matched, the next such proposal gets the small one, in any row order.
    assert found(truth, [box(0, 0, 10, 10, 0.8), box(0, 0, 10, 10, 0.9)]) == [0, 1]
    assert found(truth, [box(0, 0, 10, 10)] * 3) == [1, 0, -1]


def test_equal_overlaps_match_the_first_building() -> None:
    truth = [box(-3, 0, 10, 10), box(3, 0, 10, 10)]  # 70/130 each
    assert found(truth, [box(0, 0, 10, 10)]) == [0]


@pytest.mark.parametrize(("width", "match"), [(5.0, -1), (5.001, 0), (20.0, -1), (19.999, 0)])
def test_an_iou_of_exactly_half_is_no_match(width: float, match: int) -> None:
    assert found([box(0, 0, 10, 10)], [box(0, 0, width, 10)]) == [match]
    # 12 x 9 of 12 x 18 px is half; the sides share 2/3.
    assert found([box(0, 0, 12, 13.5)], [box(0, 4.5, 12, 13.5)]) == [-1]


def test_polygons_under_20_square_pixels_are_ignored() -> None:
    small, large = box(0, 0, 4, 4.9), box(0, 0, 4, 5)
    assert counts([small], [small]) == (0, 0, 0)
    assert counts([large], [small]) == (0, 0, 1)
    assert counts([small], [large]) == (0, 1, 0)
    assert counts([large], [large]) == (1, 0, 0)
    matches = match_buildings([small, large], [large, small, large])
    assert matches.counted_truth.tolist() == [False, True]
    assert matches.counted.tolist() == [True, False, True]


def test_invalid_polygons_are_repaired_on_both_sides() -> None:
    # A square whose outline has a detour without area.
    spiked = shapely.Polygon([(0, 0), (10, 0), (10, 10), (10, 30), (10, 10), (0, 10)])
    assert not spiked.is_valid
    assert found([box(0, 0, 10, 10)], [BuildingRow(spiked)]) == [0]
    assert found([BuildingRow(spiked)], [box(0, 0, 10, 10)]) == [0]


@pytest.mark.parametrize(("left", "expected"), [(4.0, (1, 0, 0)), (11.5, (0, 0, 1))])
def test_area_is_measured_before_the_repair(left: float, expected: tuple[int, int, int]) -> None:
    # A bow-tie whose triangles, 144 px^2 right of the knot and left^2 left of it, run in opposite
    # directions. The difference of their areas counts, 128 or 11.75 px^2, and the zero buffer keeps
    # the larger one.
    bow_tie = shapely.Polygon([(-left, -left), (12, 12), (12, -12), (-left, left)])
    triangle = shapely.Polygon([(0, 0), (12, 12), (12, -12)])
    assert counts([BuildingRow(triangle)], [BuildingRow(bow_tie)]) == expected


def test_the_union_uses_the_repaired_polygons() -> None:
    # The bow-tie above: 68 px^2 within its larger triangle are .53 of 128 px^2, but .47 of 144.
    bow_tie = shapely.Polygon([(-4, -4), (12, 12), (12, -12), (-4, 4)])
    part = box(6, -34 / 6, 6, 68 / 6)
    assert part.polygon.area == pytest.approx(68)
    assert found([part], [BuildingRow(bow_tie)]) == [-1]
    assert found([BuildingRow(bow_tie)], [part]) == [-1]


def test_holes_count() -> None:
    ring = shapely.Polygon(
        [(0, 0), (20, 0), (20, 20), (0, 20)], [[(3, 3), (17, 3), (17, 17), (3, 17)]]
    )
    # 204 of 400 square pixels are ring: IoU with the full square .51.
    assert found([BuildingRow(ring)], [box(0, 0, 20, 20)]) == [0]
    assert found([BuildingRow(ring)], [box(3, 3, 14, 14)]) == [-1]


def test_a_multi_part_building_counts_once() -> None:
    parts = shapely.MultiPolygon([shapely.box(0, 0, 10, 10), shapely.box(20, 0, 25, 10)])
    assert found([BuildingRow(parts)], [box(0, 0, 10, 10, 0.9), box(20, 0, 5, 10, 0.8)]) == [0, -1]


def test_empty_on_either_side() -> None:
    some = [box(0, 0, 10, 10)]
    assert counts([], []) == (0, 0, 0)
    assert counts(some, []) == (0, 0, 1)
    assert counts([], some) == (0, 1, 0)
    assert match_buildings(some, []).taken.shape == (0,)


def test_duplicate_proposals_are_false_positives() -> None:
    some = [box(0, 0, 10, 10)]
    assert counts(some, some * 3) == (1, 2, 0)


# --- files ----------------------------------------------------------------------------------------


def test_groups_and_totals() -> None:
    # Vegas: 1 of 2 found in img1; img2 only in the truth. Paris: img1 perfect; img9 only proposed.
    # Rio: only in the truth, so without a scored image.
    one, two, small = box(0, 0, 10, 10), box(50, 0, 10, 10), box(0, 0, 4, 4)
    truth = {
        "AOI_2_Vegas_img1": [one, two], "AOI_2_Vegas_img2": [one, small],
        "AOI_3_Paris_img1": [two], "AOI_1_Rio_img1": [one],
    }  # fmt: skip
    proposal = {"AOI_2_Vegas_img1": [one], "AOI_3_Paris_img1": [two], "AOI_3_Paris_img9": [one]}
    report = score_buildings(truth, proposal)
    assert report.metric == "building_f1"
    assert list(report.aois) == ["AOI_1_Rio", "AOI_2_Vegas", "AOI_3_Paris"]
    assert report.aois["AOI_2_Vegas"] == {
        "tp": 1, "fp": 0, "fn": 1, "precision": 1, "recall": 0.5, "f1": pytest.approx(2 / 3),
        "fair_tp": 1, "fair_fp": 0, "fair_fn": 2, "fair_precision": 1,
        "fair_recall": pytest.approx(1 / 3), "fair_f1": pytest.approx(1 / 2), "images": 1,
    }  # fmt: skip
    paris, rio = report.aois["AOI_3_Paris"], report.aois["AOI_1_Rio"]
    assert (paris["f1"], paris["fp"], paris["fair_fp"], paris["fair_f1"]) == (1, 0, 1, 2 / 3)
    assert (rio["f1"], rio["fn"], rio["fair_fn"], rio["fair_f1"], rio["images"]) == (0, 0, 1, 0, 0)
    assert report.total == {
        "tp": 2, "fp": 0, "fn": 1, "images": 2,
        "precision": pytest.approx(2 / 3), "recall": pytest.approx((1 / 2 + 1) / 3),
        "f1": pytest.approx((2 / 3 + 1) / 3),
        "fair_tp": 2, "fair_fp": 1, "fair_fn": 3,
        "fair_precision": pytest.approx((1 + 1 / 2) / 3),
        "fair_recall": pytest.approx((1 / 3 + 1) / 3),
        "fair_f1": pytest.approx((1 / 2 + 2 / 3) / 3),
    }  # fmt: skip
    assert report.truth_only == ("AOI_1_Rio_img1", "AOI_2_Vegas_img2")
    assert report.proposal_only == ("AOI_3_Paris_img9",)
    assert list(report.images) == ["AOI_2_Vegas_img1", "AOI_3_Paris_img1"]
    assert set(report.images["AOI_3_Paris_img1"]) == {"tp", "fp", "fn", "precision", "recall", "f1"}


@pytest.mark.parametrize(
    ("image_id", "group"),
    [
        ("Atlanta_nadir7_catid_10_1_2", "nadir"),
        ("Atlanta_nadir25_catid_10_1_2", "nadir"),
        ("Atlanta_nadir25.4_catid_10_1_2", "nadir"),
        ("Atlanta_nadir26_catid_10_1_2", "off-nadir"),
        ("Atlanta_nadir40_catid_10_1_2", "off-nadir"),
        ("Atlanta_nadir41_catid_10_1_2", "very off-nadir"),
        ("SN4_buildings_train_AOI_6_Atlanta_nadir53_catid_10_1_2", "very off-nadir"),
        ("AOI_1_RIO_img7", "AOI_1_RIO"),
        ("AOI_2_Vegas_part_7", "AOI_2_Vegas"),
        ("013022223130_Public_img7", "013022223130_Public"),
        ("img7", "all"),
    ],
)
def test_groups_of_images(image_id: str, group: str) -> None:
    assert group_of(image_id) == group


def test_spacenet_4_is_the_mean_of_its_categories() -> None:
    one, two = box(0, 0, 10, 10), box(50, 0, 10, 10)
    ids = [f"Atlanta_nadir{angle}_catid_A_1_2" for angle in (8, 13, 30, 53)]
    truth = {image_id: [one, two] for image_id in ids}
    proposal = {ids[0]: [one, two], ids[1]: [one], ids[2]: [one, two], ids[3]: []}
    report = score_buildings(truth, proposal)
    # nadir: 3 found, 1 missed over both view angles.
    assert report.aois["nadir"]["f1"] == pytest.approx(6 / 7)
    assert report.aois["off-nadir"]["f1"] == 1
    assert report.aois["very off-nadir"]["f1"] == 0
    assert list(report.aois) == ["nadir", "off-nadir", "very off-nadir"]
    assert report.total["f1"] == pytest.approx((6 / 7 + 1) / 3)
    # With two categories, the total is the mean of both.
    near = {image_id: truth[image_id] for image_id in ids[:3]}
    assert score_buildings(near, proposal).total["f1"] == pytest.approx((6 / 7 + 1) / 3)
    some = {image_id: proposal[image_id] for image_id in ids[:3]}
    assert score_buildings(near, some).total["f1"] == pytest.approx((6 / 7 + 1) / 2)


def test_scores_without_buildings() -> None:
    assert score_buildings({}, {}).total["f1"] == 0
    some = [box(0, 0, 10, 10)]
    truth = {"AOI_1_A_img1": [], "AOI_1_A_img2": some, "AOI_1_B_img1": []}
    report = score_buildings(truth, truth)
    # As in the official scorers, an AOI without buildings has no score.
    assert (report.aois["AOI_1_A"]["f1"], report.aois["AOI_1_B"]["f1"]) == (1, 0)
    assert report.total["f1"] == 0.5
    assert report.images["AOI_1_A_img1"]["f1"] == 1
    wrong = score_buildings({"AOI_1_A_img1": []}, {"AOI_1_A_img1": some}).images["AOI_1_A_img1"]
    assert (wrong["precision"], wrong["recall"], wrong["f1"]) == (0, 0, 0)


@needs_fixtures
def test_official_scores() -> None:
    truth = read_buildings_csv(FIXTURES / "SN2_sample_truth.csv")
    report = score_buildings(truth, read_buildings_csv(FIXTURES / "SN2_sample_preds.csv"))
    vegas, khartoum = report.aois["AOI_2_Vegas"], report.aois["AOI_5_Khartoum"]
    assert (vegas["tp"], vegas["fp"], vegas["fn"]) == (35, 2, 7)
    assert vegas["f1"] == 0.8860759493670887
    assert (khartoum["tp"], khartoum["fp"], khartoum["fn"]) == (52, 55, 75)
    assert khartoum["f1"] == 0.4444444444444444
    assert report.total["f1"] == (0.8860759493670887 + 0.4444444444444444) / 2
    assert json.loads(json.dumps(report.to_json()))["total"] == report.total
    assert score_buildings(truth, truth).total["f1"] == 1


# --- brute force, and invariances -----------------------------------------------------------------


def blocks(seed: int, count: int) -> list[BuildingRow]:
    """Return rotated, overlapping boxes, some of them with equal confidences."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        x, y, turn = rng.uniform(0, 60), rng.uniform(0, 60), rng.uniform(0, 360)
        outline = shapely.box(x, y, x + rng.uniform(3, 14), y + rng.uniform(3, 14))
        rows.append(BuildingRow(affinity.rotate(outline, turn), round(rng.random(), 1)))
    return rows


def redrawn(rows: Sequence[BuildingRow], seed: int) -> list[BuildingRow]:
    """Return most of the buildings, slightly shifted, some of them with equal confidences."""
    rng = np.random.default_rng(seed)
    return [
        BuildingRow(affinity.translate(row.polygon, *rng.normal(0, 1.2, 2)), round(rng.random(), 1))
        for row in rows
        if rng.random() > 0.15
    ]


def by_brute_force(truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow]) -> list[int]:
    free = [i for i, row in enumerate(truth) if row.polygon.area >= 20]
    taken = [-1] * len(proposals)
    for j in sorted(range(len(proposals)), key=lambda j: -proposals[j].score):
        polygon = proposals[j].polygon
        if polygon.area < 20:
            continue
        best, best_iou = -1, 0.5
        for i in free:
            other = truth[i].polygon
            iou = polygon.intersection(other).area / polygon.union(other).area
            if iou > best_iou + 1e-12:
                best, best_iou = i, iou
        if best >= 0:
            taken[j] = best
            free.remove(best)
    return taken


@pytest.mark.parametrize("seed", range(15))
def test_equals_a_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building_f1, "_PAIRS", 7)
    truth = blocks(seed, 40)
    proposals = redrawn(truth, seed) + blocks(seed + 100, 10)
    taken = found(truth, proposals)
    assert taken == by_brute_force(truth, proposals)
    assert 10 < sum(building >= 0 for building in taken) < len(proposals)


# Whole pixels: equal overlaps, exact halves, copies and boxes of exactly 20 px^2.
small = st.integers(0, 6)
drawn_boxes = st.lists(
    st.builds(box, small, small, st.integers(2, 8), st.integers(2, 8), st.sampled_from((0.1, 0.9))),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(truth=drawn_boxes, proposals=drawn_boxes)
def test_equals_a_brute_force_with_many_ties(
    truth: list[BuildingRow], proposals: list[BuildingRow]
) -> None:
    assert found(truth, proposals) == by_brute_force(truth, proposals)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_row_order_does_not_matter_for_distinct_confidences(seed: int) -> None:
    shuffle = random.Random(seed)
    truth = blocks(seed, 25)
    proposals = [
        BuildingRow(row.polygon, number / 100) for number, row in enumerate(redrawn(truth, seed))
    ]
    expected = match_buildings(truth, proposals).counts
    assert expected != Counts()
    truth, proposals = (shuffle.sample(rows, len(rows)) for rows in (truth, proposals))
    assert match_buildings(truth, proposals).counts == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_map_compared_with_itself_scores_one(seed: int) -> None:
    rows = {"AOI_1_A_img1": blocks(seed, 20)}
    total = score_buildings(rows, rows).total
    assert (total["f1"], total["precision"], total["recall"]) == (1, 1, 1)
