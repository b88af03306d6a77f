import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from satmap.metrics.building_f1 import group_of, match_buildings, score_buildings
from satmap.submissions.buildings_csv import BuildingRow


def box(x: float, y: float, width: float, height: float, confidence: float = 1.0) -> BuildingRow:
    return BuildingRow(shapely.box(x, y, x + width, y + height), confidence)


def found(truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow]) -> list[int]:
    """The building that each proposal takes, -1 for none."""
    return list(match_buildings(truth, proposals).taken.tolist())


# --- worked by hand -------------------------------------------------------------------------------


def test_the_surest_proposal_chooses_first() -> None:
    # Two buildings; A overlaps the first wholly, B both halves too little. C is surer than A.
    truth = [box(0, 0, 10, 10), box(20, 0, 10, 10)]
    a, b, c = box(0, 0, 10, 10, 0.5), box(15, 0, 10, 10, 0.9), box(1, 0, 10, 10, 0.7)
    assert found(truth, [a, b, c]) == [-1, -1, 0]
    assert match_buildings(truth, [a, b, c]).counts.tolist() == [1, 2, 1]


def test_of_equally_sure_proposals_the_first_in_the_file_chooses() -> None:
    truth = [box(0, 0, 10, 10)]
    assert found(truth, [box(1, 0, 10, 10), box(0, 0, 10, 10)]) == [0, -1]


def test_a_proposal_takes_the_best_of_the_free_buildings() -> None:
    # IoU with the small one 60/100, with the large one 100/150.
    truth = [box(0, 0, 6, 10), box(0, 0, 15, 10)]
    assert found(truth, [box(0, 0, 10, 10, 0.9)]) == [1]
    # The large one taken, the next proposal of the kind gets the small one.
    assert found(truth, [box(0, 0, 10, 10, 0.9), box(0, 0, 10, 10, 0.8)]) == [1, 0]


@pytest.mark.parametrize(("width", "match"), [(5.0, -1), (5.001, 0)])
def test_half_of_the_union_is_not_enough(width: float, match: int) -> None:
    assert found([box(0, 0, 10, 10)], [box(0, 0, width, 10)]) == [match]


def test_polygons_under_20_square_pixels_count_on_neither_side() -> None:
    small, large = box(0, 0, 4, 4.9), box(0, 0, 4, 5)
    assert match_buildings([small], [small]).counts.tolist() == [0, 0, 0]
    assert match_buildings([large], [small]).counts.tolist() == [0, 0, 1]
    assert match_buildings([small], [large]).counts.tolist() == [0, 1, 0]
    assert match_buildings([large], [large]).counts.tolist() == [1, 0, 0]


def test_invalid_polygons_are_repaired() -> None:
    # A square whose outline returns to a corner by a spike without area.
    spiked = shapely.Polygon([(0, 0), (10, 0), (10, 10), (10, 30), (10, 10), (0, 10)])
    assert not spiked.is_valid
    assert found([box(0, 0, 10, 10)], [BuildingRow(spiked)]) == [0]
    assert found([BuildingRow(spiked)], [box(0, 0, 10, 10)]) == [0]


def test_holes_count() -> None:
    ring = shapely.Polygon(
        [(0, 0), (20, 0), (20, 20), (0, 20)], [[(3, 3), (17, 3), (17, 17), (3, 17)]]
    )
    # 204 of 400 square pixels are ring: IoU with the full square .51.
    assert found([BuildingRow(ring)], [box(0, 0, 20, 20)]) == [0]
    assert found([BuildingRow(ring)], [box(3, 3, 14, 14)]) == [-1]


def test_empty_on_either_side() -> None:
    some = [box(0, 0, 10, 10)]
    assert match_buildings([], []).counts.tolist() == [0, 0, 0]
    assert match_buildings(some, []).counts.tolist() == [0, 0, 1]
    assert match_buildings([], some).counts.tolist() == [0, 1, 0]


def test_duplicates_of_a_proposal_are_false() -> None:
    some = [box(0, 0, 10, 10)]
    assert match_buildings(some, some * 3).counts.tolist() == [1, 2, 0]


# --- files ----------------------------------------------------------------------------------------


def test_groups_and_countings() -> None:
    # Vegas: img1 1 of 2 found; img2 only in the truth. Paris: perfect.
    one, two = box(0, 0, 10, 10), box(50, 0, 10, 10)
    truth = {
        "AOI_2_Vegas_img1": [one, two], "AOI_2_Vegas_img2": [one], "AOI_3_Paris_img1": [two],
    }  # fmt: skip
    proposal = {"AOI_2_Vegas_img1": [one], "AOI_3_Paris_img1": [two], "AOI_3_Paris_img9": [one]}
    report = score_buildings(truth, proposal)
    vegas, paris = report.aois["AOI_2_Vegas"], report.aois["AOI_3_Paris"]
    assert (vegas["tp"], vegas["fp"], vegas["fn"], vegas["images"]) == (1, 0, 1, 1)
    assert vegas["f1"] == pytest.approx(2 / 3)
    assert vegas["fair_fn"] == 2
    assert vegas["fair_f1"] == pytest.approx(0.5)
    assert paris["f1"] == 1
    assert paris["fair_f1"] == pytest.approx(2 / 3)
    assert report.total["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert (report.total["tp"], report.total["fn"], report.total["images"]) == (2, 1, 2)
    assert report.truth_only == ("AOI_2_Vegas_img2",)
    assert report.proposal_only == ("AOI_3_Paris_img9",)
    assert list(report.images) == ["AOI_2_Vegas_img1", "AOI_3_Paris_img1"]


@pytest.mark.parametrize(
    ("image_id", "group"),
    [
        ("Atlanta_nadir25_catid_10_1_2", "nadir"),
        ("Atlanta_nadir26_catid_10_1_2", "off-nadir"),
        ("Atlanta_nadir40_catid_10_1_2", "off-nadir"),
        ("Atlanta_nadir53_catid_10_1_2", "very off-nadir"),
        ("AOI_1_RIO_img7", "AOI_1_RIO"),
    ],
)
def test_spacenet_4_groups_by_the_angle(image_id: str, group: str) -> None:
    assert group_of(image_id) == group


def test_spacenet_4_is_the_mean_of_its_categories() -> None:
    one, two = box(0, 0, 10, 10), box(50, 0, 10, 10)
    ids = [f"Atlanta_nadir{angle}_catid_A_1_2" for angle in (8, 13, 30, 53)]
    truth = {image_id: [one, two] for image_id in ids}
    proposal = {ids[0]: [one, two], ids[1]: [one], ids[2]: [one, two], ids[3]: []}
    report = score_buildings(truth, proposal)
    # nadir: 3 found, 1 missed over both looks.
    assert report.aois["nadir"]["f1"] == pytest.approx(6 / 7)
    assert report.aois["off-nadir"]["f1"] == 1
    assert report.aois["very off-nadir"]["f1"] == 0
    assert report.total["f1"] == pytest.approx((6 / 7 + 1) / 3)


def test_report_of_nothing() -> None:
    assert score_buildings({}, {}).total["tp"] == 0
    empty: dict[str, list[BuildingRow]] = {"AOI_1_A_img1": []}
    assert score_buildings(empty, empty).total["f1"] == 1


# --- against a brute force, and what must change nothing ------------------------------------------


def blocks(seed: int, count: int) -> list[BuildingRow]:
    """Turned boxes that overlap each other, with confidences of which some are equal."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        x, y, turn = rng.uniform(0, 60), rng.uniform(0, 60), rng.uniform(0, 360)
        outline = shapely.box(x, y, x + rng.uniform(3, 14), y + rng.uniform(3, 14))
        rows.append(BuildingRow(shapely.affinity.rotate(outline, turn), round(rng.random(), 1)))
    return rows


def redrawn(rows: Sequence[BuildingRow], seed: int) -> list[BuildingRow]:
    rng = np.random.default_rng(seed)
    return [
        BuildingRow(
            shapely.affinity.translate(row.polygon, *rng.normal(0, 1.2, 2)), round(rng.random(), 1)
        )
        for row in rows
        if rng.random() > 0.15
    ]


def by_brute_force(truth: Sequence[BuildingRow], proposals: Sequence[BuildingRow]) -> list[int]:
    free = {i for i, row in enumerate(truth) if row.polygon.area >= 20}
    taken = [-1] * len(proposals)
    for j in sorted(range(len(proposals)), key=lambda j: -proposals[j].confidence):
        polygon = proposals[j].polygon
        if polygon.area < 20:
            continue
        best, best_iou = -1, 0.5
        for i in sorted(free):
            other = truth[i].polygon
            iou = polygon.intersection(other).area / polygon.union(other).area
            if iou > best_iou + 1e-12:
                best, best_iou = i, iou
        if best >= 0:
            taken[j] = best
            free.remove(best)
    return taken


@pytest.mark.parametrize("seed", range(15))
def test_equals_a_brute_force(seed: int) -> None:
    truth = blocks(seed, 40)
    proposals = redrawn(truth, seed) + blocks(seed + 100, 10)
    taken = found(truth, proposals)
    assert taken == by_brute_force(truth, proposals)
    assert 10 < sum(building >= 0 for building in taken) < len(proposals)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_rows_changes_nothing_where_confidences_differ(seed: int) -> None:
    truth = blocks(seed, 25)
    rng = np.random.default_rng(seed)
    proposals = [
        BuildingRow(row.polygon, confidence)
        for row, confidence in zip(redrawn(truth, seed), itertools.count(0.1, 0.01), strict=False)
    ]
    expected = match_buildings(truth, proposals).counts.tolist()
    for rows in (truth, proposals):
        rng.shuffle(rows)
    assert match_buildings(truth, proposals).counts.tolist() == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_map_equals_itself(seed: int) -> None:
    rows = {"AOI_1_A_img1": blocks(seed, 20)}
    total = score_buildings(rows, rows).total
    assert (total["f1"], total["precision"], total["recall"]) == (1, 1, 1)
    assert not math.isnan(total["f1"] or math.nan)
