"""Files with pictures of a submission over its images."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from satmap.errors import SatmapError
from satmap.evaluation.metrics.coco_ap import match_masks
from satmap.evaluation.metrics.figures import Counts
from satmap.evaluation.score import score_files
from satmap.report import pictures
from satmap.report.overlay import draw_image, write_misses, write_overlays
from satmap.report.panels import Panel, Picture, compose
from satmap.submissions.buildings_csv import BuildingRow, write_buildings_csv
from satmap.submissions.coco_json import (
    CocoBuilding,
    CocoResult,
    Detection,
    write_coco_results,
)
from satmap.submissions.coco_masks import CocoMask
from satmap.tasks.base import default_task
from satmap.tasks.buildings.outputs import BuildingScore
from synthetic_chips import square, write_coco, write_tile
from synthetic_images import write_image, write_labels

NAME = "AOI_9_Made_img1"


def differing(one: Path, other: Path) -> NDArray[np.bool_]:
    pictures = [cv2.imread(str(path)) for path in (one, other)]
    assert pictures[0] is not None and pictures[1] is not None
    assert pictures[0].shape == pictures[1].shape
    changed: NDArray[np.bool_] = (pictures[0] != pictures[1]).any(axis=2)
    return changed


def test_buildings_are_drawn_where_they_are(tmp_path: Path) -> None:
    write_tile(tmp_path / "data", 1, [square(10, 10, 20)])
    write_tile(tmp_path / "data", 2, [])
    next((tmp_path / "data").rglob("*img2.tif")).write_bytes(b"II*\0")
    house, shed = shapely.box(10, 10, 30, 30), shapely.box(60, 70, 72, 82)
    rows = {
        "both": [BuildingRow(house, 0.9), BuildingRow(shed, 0.4)],
        "one": [BuildingRow(house, 0.9)],
        "truth": [BuildingRow(house, 1.0)],
    }
    for name, its in rows.items():
        write_buildings_csv(tmp_path / f"{name}.csv", {NAME: its})
    for name in ("both", "one"):
        written = write_overlays(tmp_path / f"{name}.csv", [tmp_path / "data"], tmp_path / name)
        # The broken image is skipped.
        assert written == [tmp_path / name / f"{NAME}.png"]
    changed = differing(tmp_path / "both" / f"{NAME}.png", tmp_path / "one" / f"{NAME}.png")
    # Only the shed and the legend's count; the shed is wider than high by nothing.
    rows_of, columns = np.nonzero(changed[:-60])
    high, wide = np.ptp(rows_of) + 1, np.ptp(columns) + 1
    assert 0 < high < changed.shape[0] / 3 and wide == pytest.approx(high, abs=2)
    true = write_overlays(
        tmp_path / "both.csv", [tmp_path / "data"], tmp_path / "true", tmp_path / "truth.csv"
    )
    assert true[0].stat().st_size > 0


def test_the_legend_counts_what_the_scorer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def composed(caption: Sequence[str], panels: Sequence[Panel]) -> Picture:
        texts.extend(key.text for panel in panels for key in panel.keys)
        return compose(caption, panels)

    monkeypatch.setattr(pictures, "compose", composed)
    write_tile(tmp_path / "data", 1, [])
    house, other, wrong = box(5, 5, 20), box(60, 60, 12), box(5, 60, 15)
    # 19.4 square pixels, a match that does not count, and 9 square pixels.
    shed, speck = box(40, 5, 4.4), box(70, 20, 3)
    truth = [BuildingRow(polygon) for polygon in (house, shed, other)]
    proposal = [BuildingRow(polygon, 0.5) for polygon in (speck, shed, wrong, house)]
    files = tmp_path / "truth.csv", tmp_path / "proposal.csv"
    for path, rows in zip(files, (truth, proposal), strict=True):
        write_buildings_csv(path, {NAME: rows})
    scoring = score_files(*files)
    figures = scoring.report.images[NAME]
    assert [figures[name] for name in ("tp", "fp", "fn")] == [1, 1, 1]
    expected = ["found (1), with IoU", "its true outline", "missed (1)", "false (1)"]
    write_overlays(files[1], [tmp_path / "data"], tmp_path / "pictures", files[0])
    assert texts == expected
    texts.clear()
    draw_image(scoring, NAME)
    assert texts == expected
    # And the pictures of a training.
    texts.clear()
    outlines = np.array([row.polygon for row in truth], np.object_)
    image = np.zeros((3, 96, 96), np.uint8)
    chip: Any = SimpleNamespace(
        image_id=NAME, size=(96, 96), payload=outlines, read_image=lambda *_: image,
        metres_per_pixel=(0.3, 0.3), shape=(96, 96, 3),
    )  # fmt: skip
    default_task("buildings").draw(chip, BuildingScore(Counts(1, 1, 1), proposal))
    assert texts == expected


def box(x: float, y: float, size: float) -> shapely.Polygon:
    return shapely.box(x, y, x + size, y + size)


def test_the_image_keeps_its_contrast(tmp_path: Path) -> None:
    write_tile(tmp_path / "data", 1, [square(10, 10, 20)])
    write_buildings_csv(tmp_path / "out.csv", {NAME: []})
    (path,) = write_overlays(tmp_path / "out.csv", [tmp_path / "data"], tmp_path / "p")
    picture = cv2.imread(str(path))
    assert picture is not None
    # Bright buildings on dark ground, which is not brightened.
    panel = picture[100:-100, 100:700]
    assert np.median(panel) < 60 and panel.max() > 200


def test_coco_masks_are_drawn(tmp_path: Path) -> None:
    annotation = write_coco(tmp_path / "data", {7: [square(10, 10, 30)]})
    house = Detection(np.ones((30, 30), np.uint8), (10, 10), 0.9)
    # A mask may be in several parts.
    parts = np.zeros((20, 20), np.uint8)
    parts[:8, :8] = parts[12:, 12:] = 1
    other = Detection(parts, (60, 60), 0.5)
    for name, detections in (("both", [house, other]), ("one", [house])):
        results = tmp_path / f"{name}.json"
        write_coco_results(results, {7: detections}, {7: (96, 96)})
        write_overlays(results, [tmp_path / "data"], tmp_path / name, annotation)
    changed = differing(tmp_path / "both" / "7.png", tmp_path / "one" / "7.png")
    assert 0 < changed[:-60].mean() < 0.1


def test_coco_masks_match_as_in_the_score() -> None:
    """A crowd, a match that is too small for SpaceNet's rule, and the better of two detections."""

    def mask(x: int, y: int, side: int) -> CocoMask:
        drawn = np.zeros((60, 60), np.uint8, order="F")
        drawn[y : y + side, x : x + side] = 1
        return CocoMask((60, 60), coco_mask.encode(drawn)["counts"])  # type: ignore[arg-type]

    truth = [
        CocoBuilding(mask(0, 0, 20), crowd=True),
        CocoBuilding(mask(30, 30, 3), crowd=False),
        CocoBuilding(mask(40, 0, 10), crowd=False),
    ]
    found = [
        CocoResult(mask(2, 2, 10), 0.9),
        CocoResult(mask(41, 0, 10), 0.3),
        CocoResult(mask(40, 0, 10), 0.7),
        CocoResult(mask(30, 30, 3), 0.5),
    ]
    matches = match_masks(truth, found)
    assert matches.taken.tolist() == [-1, -1, 2, 1]
    assert matches.counted.tolist() == [False, True, True, True]
    assert matches.counted_truth.tolist() == [False, True, True]
    assert match_masks([], []).counts == Counts()


def test_undrawable_input_is_reported(tmp_path: Path) -> None:
    write_tile(tmp_path / "data", 1, [])
    write_buildings_csv(tmp_path / "other.csv", {"AOI_9_Made_img5": []})
    with pytest.raises(SatmapError, match="has none of the images"):
        write_overlays(tmp_path / "other.csv", [tmp_path / "data"], tmp_path / "p")
    roads = tmp_path / "roads.csv"
    roads.write_text(f"ImageId,WKT_Pix,length_m,travel_time_s\n{NAME},LINESTRING EMPTY,0,0\n")
    with pytest.raises(SatmapError, match="they cannot be compared"):
        write_overlays(tmp_path / "other.csv", [tmp_path / "data"], tmp_path / "p", roads)


def test_misses_are_drawn_over_images_of_any_name_and_bands(tmp_path: Path) -> None:
    """GeoJSON by its place, from an image with eight bands of 16 bits."""
    pixels = np.random.default_rng(0).integers(200, 900, (8, 160, 200)).astype(np.uint16)
    # A bright red square: band 5 of WorldView is red.
    pixels[4, 40:80, 50:90] = 4000
    image = write_image(tmp_path / "my town.tif", pixels=pixels)
    truth = write_labels(tmp_path / "truth.geojson", [[(0, 20), (200, 20)], [(0, 140), (200, 140)]])
    proposal = write_labels(tmp_path / "out.geojson", [[(0, 20), (200, 20)]])
    scoring = score_files(truth, proposal, metres_per_pixel=0.3)
    (path,) = write_misses(tmp_path / "p", scoring, images=[image])
    (white,) = write_misses(tmp_path / "w", scoring)
    picture, plain = (cv2.imread(str(each)) for each in (path, white))
    assert picture is not None and plain is not None
    blue, green, red = picture[300:-300, 20:900].transpose(2, 0, 1).astype(int)
    is_red = (red > 200) & (blue < 150) & (green < 150)
    assert 0.01 < is_red.mean() < 0.2
    assert (plain[100:-100] == 255).all(axis=2).mean() > 0.8
    with pytest.raises(SatmapError, match="has none of the images in"):
        write_tile(tmp_path / "other", 1, [])
        write_buildings_csv(tmp_path / "a.csv", {"x": [BuildingRow(box(0, 0, 9))]})
        scores = score_files(tmp_path / "a.csv", tmp_path / "a.csv")
        write_misses(tmp_path / "p", scores, images=[tmp_path / "other"])
    with pytest.raises(SatmapError, match="no raster under"):
        write_misses(tmp_path / "p", scoring, images=[truth])


def test_geojson_is_drawn_without_a_truth(tmp_path: Path) -> None:
    image = write_image(tmp_path / "my town.tif")
    for name, lines in (("two", [[(0, 20), (90, 20)], [(9, 70), (90, 70)]]), ("empty", [])):
        submission = write_labels(tmp_path / f"{name}.geojson", lines)
        if lines:
            (path,) = write_overlays(submission, [image], tmp_path / "p")
            assert path == tmp_path / "p" / "two.png"
        else:
            with pytest.raises(SatmapError, match="contains a line or polygon"):
                write_overlays(submission, [image], tmp_path / "p")
    masks = tmp_path / "masks"
    write_image(masks / "my town.tif", pixels=np.ones((1, 96, 128), np.uint8))
    (alone,) = write_overlays(masks, [image], tmp_path / "alone")
    (path,) = write_overlays(masks, [image], tmp_path / "p", masks)
    assert alone.read_bytes() != path.read_bytes()


def test_large_maps_are_drawn_in_parts(tmp_path: Path) -> None:
    image = write_image(tmp_path / "town.tif", size=(200, 300))
    # Pixels of the file are about 0.24 x 0.3 m; the map is about 700 m wide.
    lines = [[(0, 20), (900, 20)], [(2000, 100), (2900, 100)]]
    submission = write_labels(tmp_path / "map.geojson", lines)
    truth = write_labels(tmp_path / "truth.geojson", lines[1:])
    for true, names in (
        (None, ["map-0-0.png", "map-0-1.png"]),
        (truth, ["truth-0-0.png", "truth-0-1.png"]),
    ):
        written = write_overlays(submission, [image], tmp_path / "p", true)
        assert [path.name for path in written] == names
    left, right = (cv2.imread(str(tmp_path / "p" / f"map-0-{i}.png")) for i in (0, 1))
    assert left is not None and right is not None
    # There is no image at the right end.
    assert (right == 255).mean() > (left == 255).mean() + 0.02
