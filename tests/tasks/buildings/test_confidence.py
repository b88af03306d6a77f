"""The confidence of buildings: features, and a fit to real images that the network has not seen."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely

from default_tasks import building_task
from repository import SHARED
from satmap.cli import main
from satmap.data.own_chips import find_own_chips
from satmap.data.own_data import OwnData
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Scene
from satmap.submissions.vector_maps import confidence_of, read_map
from satmap.tasks.buildings.measures import building_features, measure_buildings
from satmap.tasks.buildings.settings import BUILDING
from satmap.tasks.calibration import CALIBRATION_FILE
from satmap.vectors.buildings import Building
from satmap.weights.members import find_weights
from satmap.weights.starters import PICTURES, starter_weights
from satmap.weights.tensor_file import read_tensors, write_tensors

DATA = SHARED / "data" / "buildings_barnarp"
CPU = ["--device", "cpu", "--workers", "0"]
FEATURES = building_features((BUILDING,))


def log_odds(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def test_features_of_buildings_worked_out_by_hand() -> None:
    body = np.zeros((1, 60, 80), np.uint8)
    body[0, 10:30, 10:40] = 204
    # Half of the building at the left edge is less certain.
    body[0, 40:50, :10], body[0, 40:50, 10:20] = 230, 128
    house, cut = shapely.box(10, 10, 40, 30), shapely.box(0, 40, 20, 50)
    found = [Building(house, 1.0), Building(cut, 1.0)]
    maps = ProbabilityMaps((BUILDING,), body, (1.0, 1.0))
    values = measure_buildings(found, maps, FEATURES)
    first, second = (dict(zip(FEATURES, row.tolist(), strict=True)) for row in values)
    assert first["area"] == pytest.approx(np.log(600)) and first["box_fill"] == 1
    assert first["mean"] == pytest.approx(log_odds(0.8))
    # Nothing is around it; log odds end at those of .01.
    assert first["around"] == pytest.approx(log_odds(0.01))
    assert (first["agreement"], first["at_border"]) == (1, 0)
    assert second["mean"] == pytest.approx(log_odds((230 + 128) / 2 / 255))
    # Of 200 px above .35, 100 are above .65.
    assert (second["agreement"], second["at_border"]) == (0.5, 1)
    # A footprint that is too small has building around it.
    small = measure_buildings([Building(shapely.box(14, 14, 36, 26), 1.0)], maps, FEATURES)[0]
    assert small[FEATURES.index("around")] == pytest.approx(log_odds(0.8))


def test_each_building_is_measured_alone_wherever_it_lies() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (5000, 90)).astype(np.uint8)
    body = np.asarray(cv2.GaussianBlur(noise, (0, 0), 3), np.uint8)
    maps = ProbabilityMaps((BUILDING,), body[None], (1.0, 1.0))
    boxes = [shapely.box(x, y, x + 20, y + 15) for x, y in ((5, 5), (20, 2040), (40, 4984))]
    buildings = [Building(box, 1.0) for box in boxes]
    together = measure_buildings(buildings, Scene.of(maps), FEATURES)
    for building, row in zip(buildings, together, strict=True):
        np.testing.assert_array_equal(measure_buildings([building], maps, FEATURES)[0], row)
    assert measure_buildings([], maps, FEATURES).shape == (0, len(FEATURES))


def run(capfd: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = "".join(capfd.readouterr())
    assert int(ended.value.code or 0) == status, printed
    return printed


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
def test_a_fit_to_real_images_reaches_every_result(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for path in sorted((DATA / folder).iterdir())[:48:8]:
            shutil.copy(path, tmp_path / folder)
    data = OwnData((str(tmp_path / "images"),), tmp_path / "masks", metres_per_pixel=0.16)
    chips = find_own_chips(data, building_task(), 3, tmp_path / "cache").chips
    # The starter has not learned from these images, so it has held them out.
    (file,) = find_weights(starter_weights("buildings"))
    weights = tmp_path / "weights"
    weights.mkdir()
    held_out = json.dumps([chip.image_id for chip in chips])
    metadata = {**file.metadata, "held_out": held_out}
    write_tensors(weights / file.path.name, read_tensors(file.path), metadata)
    place = chips[0].image.path.parent
    fold, maps = tmp_path / "fold.csv", tmp_path / "maps"
    common = ["--weights", weights, *CPU]
    printed = run(
        capfd, "predict", place, fold, "--out-of-fold", "--probabilities", maps, *common
    )  # fmt: skip
    assert "confidence: uncalibrated" in printed
    printed = run(capfd, "confidence", fold, maps, "--weights", weights, "--no-selection")
    assert "% right; calibration error on left-out places" in printed
    assert not (weights / "building-selection.txt").exists()

    picture, output = PICTURES / "nairobi.tif", tmp_path / "buildings.gpkg"
    mapping = ["map", picture, output, "--views", 1, "--export", tmp_path / "buildings.osm"]
    mapping += ["--export", tmp_path / "all.csv", *common]
    assert f"calibrated by {CALIBRATION_FILE}" in run(capfd, *mapping)
    found = read_map(output).surfaces
    values = [confidence_of(each.properties) for each in found]
    assert len(found) > 5 and all(0 < value < 1 for value in values)
    tagged = [confidence_of(s.properties) for s in read_map(tmp_path / "buildings.osm").surfaces]
    assert sorted(tagged) == pytest.approx(sorted(values), abs=5e-4)
    everything = (tmp_path / "all.csv").read_text().splitlines()
    # The challenge's format is as before: the score that the scorers rank by.
    assert everything[0] == "ImageId,BuildingId,PolygonWKT_Pix,Confidence"
    scores = [float(line.rsplit(",", 1)[1]) for line in everything[1:]]
    assert max(scores) > 1 and scores == sorted(scores, reverse=True)
    least = float(np.median(values)) + 1e-4
    run(capfd, *mapping, "--least-confidence", least)
    kept = [confidence_of(each.properties) for each in read_map(output).surfaces]
    assert sorted(kept) == sorted(value for value in values if value >= least)
    assert len((tmp_path / "all.csv").read_text().splitlines()) == len(kept) + 1
    report = json.loads(run(capfd, "score", output, output, "--json"))["confidence"]
    assert report["count"] == len(kept) and report["right"] == 1
    assert report["coverage"][3]["coverage"] == 0.8
