"""Building vectoriser as a whole: windows, splits, right angles, round trips of real labels."""

import json
from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import dilation

from repository import SHARED
from satmap.evaluation.metrics.building_f1 import match_buildings
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Scene
from satmap.submissions.buildings_csv import BuildingRow
from satmap.tasks.buildings.settings import (
    BORDER,
    BUILDING,
    BuildingSettings,
    BuildingSettingsByCategory,
)
from satmap.tasks.buildings.vectorizer.find_instances import (
    find_basins,
    find_boundaries,
    find_instances,
)
from satmap.tasks.buildings.vectorizer.polygons import dilated, exact_polygons, simplify_outlines
from satmap.tasks.buildings.vectorizer.right_angles import squared_outlines
from satmap.tasks.buildings.vectorizer.tracing import at_least, connected
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tasks.buildings.vectorizer.windowed import blob_crops
from synthetic_blocks import made_blocks, maps_of_labels, share_apart
from vegas_buildings import vegas_truth

VEGAS = SHARED / "buildings_sn2/AOI_2_Vegas_Train"
MAPPING = SHARED / "buildings_mapping_challenge"
EVERYTHING = BuildingSettings(least_px=0, seed_px=0)

Labels = NDArray[np.int32]


def body_maps(body: NDArray[np.uint8], border: NDArray[np.uint8] | None = None) -> ProbabilityMaps:
    maps = {BUILDING: body} if border is None else {BUILDING: body, BORDER: border}
    return ProbabilityMaps(tuple(maps), np.stack(list(maps.values())), (0.5, 0.5))


def noisy_body(seed: int, size: int) -> NDArray[np.uint8]:
    """Return blots of all sizes and strengths."""
    rough = np.random.default_rng(seed).standard_normal((size, size))
    smooth = ndimage.gaussian_filter(rough, 2.5)
    return np.asarray(np.clip(127 + smooth / smooth.std() * 80, 0, 255), np.uint8)


def test_a_building_has_its_outline_and_confidence() -> None:
    body = np.zeros((60, 80), np.uint8)
    body[10:30, 20:50] = 204
    body[15:20, 30:36] = 0
    (building,) = vectorize_buildings(body_maps(body), BuildingSettings(hole_px=5))
    assert building.polygon.equals(shapely.box(20, 10, 50, 30) - shapely.box(30, 15, 36, 20))
    # Mean probability .8, 570 pixels.
    assert building.score == pytest.approx(0.8 * np.sqrt(570))
    assert vectorize_buildings(body_maps(np.zeros((5, 7), np.uint8)), BuildingSettings()) == []
    sure = BuildingSettings(hole_px=5, least_confidence=19.2)
    assert vectorize_buildings(body_maps(body), sure) == []


@pytest.mark.parametrize("right_angles", [False, True])
def test_windows_do_not_matter(right_angles: bool) -> None:
    blocks = made_blocks(1, 220, 17, (12, 40))
    maps = maps_of_labels(blocks.labels, 1.0, 0.25)
    chosen = BuildingSettings(least_px=15, seed_px=3, low=0.15, right_angles=right_angles)
    at_once = vectorize_buildings(maps, chosen)
    assert len(at_once) > 40
    scene = Scene.of(maps)
    for window in (32, 128):
        in_windows = vectorize_buildings(scene, chosen, window=window)
        assert [b.polygon.wkb for b in in_windows] == [b.polygon.wkb for b in at_once]
        assert [b.score for b in in_windows] == [b.score for b in at_once]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([4, 8, 16]))
def test_every_blob_belongs_to_one_window(seed: int, window: int) -> None:
    mask = noisy_body(seed, 48)[:, :41] > 110
    whole = connected(mask)
    seen = np.zeros(mask.shape, np.int64)
    for crop in blob_crops(lambda box: mask[box.pixels].copy(), mask.shape, window, 48):
        owned = crop.owned[crop.blobs.labels]
        seen[crop.box.pixels] += owned
        for blob in np.flatnonzero(crop.owned).tolist():
            # The same pixels as without windows, not a part of them.
            (number,) = np.unique(whole.labels[crop.box.pixels][crop.blobs.labels == blob])
            assert (crop.blobs.labels == blob).sum() == whole.areas[number]
    assert (seen == mask).all()


def test_oversized_regions_are_cut_at_the_same_lines() -> None:
    mask = np.ones((40, 100), np.bool_)

    def pieces(window: int) -> set[tuple[int, int]]:
        crops = blob_crops(lambda box: mask[box.pixels].copy(), mask.shape, window, 32)
        return {
            (
                c.box.left + int(np.flatnonzero((c.blobs.labels == blob).any(0))[0]),
                c.blobs.areas[blob],
            )
            for c in crops
            for blob in np.flatnonzero(c.owned).tolist()
        }

    assert pieces(8) == pieces(16) == pieces(32)
    assert sum(area for _, area in pieces(8)) <= mask.size
    with pytest.raises(ValueError, match="divide"):
        list(blob_crops(lambda box: mask[box.pixels], mask.shape, 5, 32))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_basins_follow_strength(seed: int) -> None:
    strength = noisy_body(seed, 40)
    blobs = connected(at_least(strength, 0.35))
    markers = connected(at_least(strength, 0.7)).labels
    pairs = np.unique(np.stack([blobs.labels[markers > 0], markers[markers > 0]]), axis=1)
    split = np.bincount(pairs[0], minlength=blobs.count) > 1
    if not split.any():
        return
    markers[~split[blobs.labels]] = 0
    markers = np.unique(markers, return_inverse=True)[1].reshape(markers.shape).astype(np.int32)
    basins = find_basins(strength, markers, blobs, split)
    mask = split[blobs.labels]
    assert ((basins > 0) == mask).all()
    assert (basins[markers > 0] == markers[markers > 0]).all()
    # A region of strong pixels with one marker belongs to that marker as a whole.
    for level in range(0, 256, 16):
        regions = connected(mask & (strength >= level)).labels
        for region in range(1, int(regions.max()) + 1):
            inside = set(np.unique(markers[regions == region])) - {0}
            if len(inside) == 1:
                assert set(np.unique(basins[regions == region])) == inside
    seams = defaultdict(list)
    for row, column in np.ndindex(*basins.shape):
        for other in ((row + 1, column), (row, column + 1)):
            if max(other) < len(basins) and blobs.labels[row, column] == blobs.labels[other]:
                pair = tuple(sorted((int(basins[row, column]), int(basins[other]))))
                if pair[0] and pair[0] != pair[1]:
                    seams[pair].append((float(strength[row, column]) + strength[other]) / 2)
    found = find_boundaries(strength, basins, blobs)
    assert list(zip(*found.pairs.tolist(), strict=True)) == sorted(seams)
    assert found.length.tolist() == [len(seams[pair]) for pair in sorted(seams)]
    assert found.strength == pytest.approx([np.mean(seams[pair]) for pair in sorted(seams)])


def test_many_buildings_are_numbered_by_first_pixel() -> None:
    body = noisy_body(5, 300)
    found = find_instances(body_maps(body), EVERYTHING)
    first = np.unique(found, return_index=True)[1][1:]
    assert len(first) > 50
    assert (np.diff(first) > 0).all()


@pytest.mark.parametrize("sides", [(9, 14), (14, 30), (30, 70)])
@pytest.mark.parametrize("degrees", [0, 17, 45])
def test_attached_houses_stay_separate(sides: tuple[int, int], degrees: int) -> None:
    blocks = made_blocks(degrees, 500, degrees, sides)
    chosen = BuildingSettings(least_px=30)
    assert len(blocks.pairs) > 15
    assert share_apart(blocks, find_instances(maps_of_labels(blocks.labels), chosen)) >= 0.98
    if sides[0] >= 14:
        for noise in (0.0, 0.07):
            maps = maps_of_labels(blocks.labels, 1.0, noise)
            assert share_apart(blocks, find_instances(maps, chosen)) >= 0.98


def test_enclosed_and_tiny_parts_are_not_split_off() -> None:
    body = np.full((80, 80), 255, np.uint8)
    border = np.zeros((80, 80), np.uint8)
    cv2.rectangle(border, (20, 20), (40, 40), 255, 2)
    assert find_instances(body_maps(body, border), BuildingSettings()).max() == 1
    parted = BuildingSettings(seam=10)
    assert find_instances(body_maps(body, border), parted).max() == 2
    border[:] = 0
    border[:, 12:14] = 255
    assert find_instances(body_maps(body, border), BuildingSettings()).max() == 2
    # 80 x 13 pixels are fewer than the minimum.
    assert find_instances(body_maps(body, border), BuildingSettings(least_px=1100)).max() == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_outlines_equal_those_of_gdal(seed: int) -> None:
    found = find_instances(body_maps(noisy_body(seed, 40)), EVERYTHING)
    outlines = exact_polygons(found)
    assert shapely.is_valid(outlines).all()
    theirs = rasterio.features.shapes(found, found > 0, connectivity=4)
    seen = 0
    for geometry, number in theirs:
        rings = geometry["coordinates"]
        assert outlines[int(number) - 1].equals(shapely.Polygon(rings[0], rings[1:]))
        seen += 1
    assert seen == len(outlines)


def test_simplified_outlines_of_irregular_shapes_keep_area_and_position() -> None:
    found = find_instances(body_maps(noisy_body(8, 300)), BuildingSettings(least_px=100))
    exact = exact_polygons(found)
    simple = simplify_outlines(exact, 1.0)
    assert len(exact) > 20
    assert shapely.is_valid(simple).all()
    np.testing.assert_allclose(shapely.area(simple), shapely.area(exact), rtol=0.01)
    shared = shapely.area(shapely.intersection(simple, exact))
    # The estimate that avoids an intersection may be off by a few thousandths.
    assert (shared / shapely.area(shapely.union(simple, exact))).min() >= 0.945


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4))
def test_dilated_outlines_equal_dilated_masks(seed: int, side: int) -> None:
    labels = connected(at_least(noisy_body(seed, 40), 0.5)).labels
    grown = dilated(exact_polygons(labels), side, labels.shape)
    for number, polygon in enumerate(grown, 1):
        mask = (labels == number).astype(np.uint8)
        expected = dilation(mask, np.ones((side, side))) if side else mask
        assert polygon.geom_type == "Polygon"
        assert (rasterio.features.rasterize([polygon], labels.shape) == expected).all()


def test_right_angles_fit_and_shared_walls_stay_shared() -> None:
    blocks = made_blocks(2, 300, 17, (25, 60))
    exact = exact_polygons(blocks.labels)
    plain = simplify_outlines(exact, 1.0)
    squared = squared_outlines(exact, plain, 1.0, (300, 300))
    assert shapely.is_valid(squared).all()
    shared = shapely.area(shapely.intersection(squared, exact))
    assert (shared / shapely.area(shapely.union(squared, exact))).min() >= 0.9
    for a, b in blocks.pairs:
        one, other = squared[a - 1], squared[b - 1]
        assert one.intersection(other).area < 0.5
        # No gap and no overlap: the shared wall keeps nearly all of its length.
        wall = exact[a - 1].intersection(exact[b - 1]).length
        if wall > 20:
            assert one.buffer(0.05).intersection(other.boundary).length > 0.5 * wall
    # Nearly all walls run at 17 degrees or perpendicular to it.
    points = [shapely.get_coordinates(p.exterior) for p in squared]
    along = np.concatenate([np.diff(p, axis=0) for p in points])
    length = np.hypot(along[:, 0], along[:, 1])
    off = np.abs((np.degrees(np.arctan2(along[:, 1], along[:, 0])) - 17 + 45) % 90 - 45)
    # Walls cut by the edge of the image run along it.
    inside = np.concatenate([((p[:-1] > 1) & (p[:-1] < 299)).all(axis=1) for p in points])
    assert length[inside & (off < 5)].sum() > 0.85 * length[inside].sum()


@pytest.mark.parametrize("right_angles", [True, False])
def test_outlines_end_at_the_edge_of_the_image(right_angles: bool) -> None:
    shape = (300, 300)
    maps = maps_of_labels(made_blocks(3, 300, 17, (9, 40)).labels, blur=1.5, noise=0.15, seed=3)
    settings = BuildingSettings(right_angles=right_angles)
    found = [building.polygon for building in vectorize_buildings(maps, settings)]
    image = shapely.box(0, 0, *shape)
    at_edge = [polygon for polygon in found if polygon.intersects(image.exterior)]
    assert len(at_edge) > 5
    assert all(polygon.is_valid and image.covers(polygon) for polygon in found)
    # Without the clipping some of them leave the image.
    exact = exact_polygons(find_instances(maps, settings))
    free = simplify_outlines(exact, settings.simplify_px)
    if right_angles:
        free = squared_outlines(exact, free, settings.simplify_px, shape)
    assert not shapely.covers(image, free).all()


def test_right_angles_are_right_on_the_ground() -> None:
    """Pixels as in Paris: .197 m wide and .298 m high."""
    metres = np.array([0.197, 0.298])
    house = shapely.affinity.rotate(shapely.box(0, 0, 24, 14), 25, origin=(12, 7))
    pixels = shapely.transform(house, lambda xy: (xy + 10) / metres)
    labels = rasterio.features.rasterize([pixels], (150, 200)).astype(np.int32)
    exact = exact_polygons(labels)
    plain = simplify_outlines(exact, 1.0)
    maps = ProbabilityMaps(
        ("building", "border"), np.stack([labels * 255, labels * 0]).astype(np.uint8), tuple(metres)
    )
    (building,) = vectorize_buildings(maps, BuildingSettings(right_angles=True))
    assert building.polygon.equals(
        squared_outlines(exact, plain, 1.0, (150, 200), tuple(metres))[0]
    )

    def skew(polygon: shapely.Polygon) -> float:
        """Return by how many degrees the angles between the long walls differ from right ones."""
        along = np.diff(shapely.get_coordinates(polygon.exterior) * metres, axis=0)
        along = along[np.hypot(*along.T) > 5]
        assert len(along) >= 3
        directions = np.degrees(np.arctan2(along[:, 1], along[:, 0])) % 90
        off = np.abs(directions - directions[0])
        return float(np.minimum(off, 90 - off).max())

    assert skew(building.polygon) < 0.1
    # Taken for square pixels, the corners would be skewed.
    assert skew(squared_outlines(exact, plain, 1.0, (150, 200))[0]) > 5


def test_settings_by_category() -> None:
    by_view_angle = BuildingSettingsByCategory(
        low=0.2, categories={"very off-nadir": {"least_px": 250}}
    )
    assert by_view_angle.of("very off-nadir") == BuildingSettings(low=0.2, least_px=250)
    assert by_view_angle.of("nadir") == by_view_angle.of(None) == BuildingSettings(low=0.2)
    for wrong in ({"low": 0.9}, {"lowest": 0.1}):
        with pytest.raises(ValueError, match="low"):
            BuildingSettingsByCategory(categories={"nadir": wrong})


@pytest.mark.skipif(not VEGAS.is_dir(), reason="no shared data here")
def test_vegas_labels_round_trip() -> None:
    check_round_trip([chip for chip in vegas_truth(VEGAS) if chip[0]])


@pytest.mark.skipif(not MAPPING.is_dir(), reason="no shared data here")
def test_mapping_challenge_labels_round_trip() -> None:
    chips = []
    for part in ("train", "val"):
        content = json.loads((MAPPING / part / "annotation.json").read_text())
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        truth: dict[int, list[shapely.Polygon]] = {}
        for building in content["annotations"]:
            (ring,) = building["segmentation"]
            polygon = shapely.Polygon(np.reshape(ring, (-1, 2)))
            if polygon.area >= 20:
                truth.setdefault(building["image_id"], []).append(polygon)
        chips += [(polygons, sizes[image_id]) for image_id, polygons in truth.items()]
    check_round_trip(chips)


def check_round_trip(chips: Sequence[tuple[list[shapely.Polygon], tuple[int, int]]]) -> None:
    """Draw and vectorise the truth; require all buildings, no others and a mean IoU of .97."""
    ious: list[float] = []
    for truth, shape in chips:
        numbered = [(polygon, number) for number, polygon in enumerate(truth, 1)]
        labels = rasterio.features.rasterize(numbered, out_shape=shape, dtype="int32")
        found = vectorize_buildings(maps_of_labels(labels), EVERYTHING)
        counts = match_buildings(
            [BuildingRow(polygon) for polygon in truth],
            [BuildingRow(building.polygon, building.score) for building in found],
        ).counts
        assert (counts.fp, counts.fn) == (0, 0)
        outlines = np.array([building.polygon for building in found])
        shared = shapely.area(shapely.intersection(np.array(truth)[:, None], outlines))
        union = shapely.area(np.array(truth))[:, None] + shapely.area(outlines) - shared
        ious += (shared / union).max(axis=1).tolist()
    assert len(ious) > 100
    assert np.mean(ious) >= 0.97
