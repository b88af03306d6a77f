"""Real imagery from the shared data; tests are skipped without it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from default_tasks import road_task
from repository import SHARED
from round_trips import decode_target, vegas_labels
from satmap.data.cache import prepare_chip
from satmap.data.crops import CachedChip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.evaluation.metrics.apls import apls, score_roads
from satmap.prediction.run import predict
from satmap.prediction.vectorize import vectorize_directory
from satmap.rasters.map_files import write_maps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import StretchSettings, parse_recipe
from satmap.submissions.roads_csv import check_roads_csv, read_roads_csv
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.tasks.roads.task import truth_rows
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from tiny_trainings import road_member, road_recipe, stage

DATA = SHARED / "data"
EPFL = DATA / "roads_epfl/AOI_90_Suburb_Train"
VEGAS = DATA / "roads_sn3"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")

RECIPE = road_recipe(road_member(stages=[stage(crop=128)]))


def cached(directory: Path, cache: Path) -> list[CachedChip]:
    chips = scan_roads([directory]).chips
    return [prepare_chip(chip, cache, StretchSettings(), road_task()) for chip in chips]


def test_labels_agree_with_the_truth_file(tmp_path: Path) -> None:
    (file,) = EPFL.glob("*.csv")
    truth = read_roads_csv(file)
    chips = cached(EPFL, tmp_path)
    assert len(chips) == 80
    for chip in chips:
        ours = truth_rows(chip)
        for attribute in ("length_m", "travel_time_s"):
            total = sum(getattr(row, attribute) for row in ours)
            expected = sum(getattr(row, attribute) for row in truth[chip.image_id])
            assert total == pytest.approx(expected, rel=0.01, abs=1), chip.image_id
        score = apls(truth[chip.image_id], ours, metres_per_pixel=0.5)
        assert score.length.score > 0.99, chip.image_id


@pytest.mark.parametrize(
    ("directory", "length", "time"), [(EPFL, 0.97, 0.97), (VEGAS, 0.985, 0.98)]
)
def test_targets_vectorise_back_to_their_labels(
    tmp_path: Path, directory: Path, length: float, time: float
) -> None:
    # Through files and with neighbours, as in `satmap vectorize`.
    places = {chip.image_id: chip.image.georeference for chip in scan_roads([directory]).chips}
    chips = cached(directory, tmp_path)
    for chip in chips:
        _, target = chip.read()
        maps = ProbabilityMaps(
            ROAD_MAPS, decode_target(target) * np.uint8(255), chip.metres_per_pixel
        )
        write_maps(tmp_path / "maps" / f"{chip.image_id}.tif", maps, places[chip.image_id])
    done = vectorize_directory(tmp_path / "maps", tmp_path / "out.csv", road_task())
    assert not done.faults
    proposal = read_roads_csv(tmp_path / "out.csv")
    scores = []
    for chip in chips:
        metres = float(np.mean(chip.metres_per_pixel))
        score = apls(truth_rows(chip), proposal[chip.image_id], metres_per_pixel=metres)
        assert score.time is not None
        scores.append((score.length.score, score.time.score))
    mean = np.mean(scores, axis=0)
    assert mean[0] > length
    assert mean[1] > time


def test_vegas_labels_round_trip() -> None:
    labels = DATA.parent / "fixtures/apls/AOI_2_Vegas_Train/spacenetroads"
    scores = [trip.score() for trip in vegas_labels(labels)]
    assert len(scores) == 7
    assert np.mean([score.length.score for score in scores]) > 0.985
    assert np.mean([score.time.score for score in scores if score.time]) > 0.98


def test_older_property_names_and_rgba(tmp_path: Path) -> None:
    (chip,) = scan_roads([VEGAS]).chips
    assert (chip.image_id, chip.aoi, chip.image.bands) == ("AOI_2_Vegas_img0", "AOI_2_Vegas", 3)
    (ready,) = cached(VEGAS, tmp_path)
    assert len(ready.payload) == 38
    assert {label.speed_mph for label in ready.payload} <= {20.0, 25.0, 35.0, 45.0, 55.0, 65.0}
    # The official truth of the same chip, in pixels, as the scorer's fixture has it.
    truth = read_roads_csv(DATA.parent / "fixtures/apls/vegas_img0_truth.csv")
    score = apls(truth["AOI_2_Vegas_img0"], truth_rows(ready))
    assert score.length.score > 0.95


@pytest.mark.usefixtures("tiny_encoders")
@pytest.mark.parametrize("directory", [EPFL, VEGAS])
def test_trains_and_predicts(directory: Path, tmp_path: Path) -> None:
    recipe_file = tmp_path / "real.yaml"
    recipe_file.write_text(RECIPE)
    context = RunContext(tmp_path / "weights", torch.device("cpu"))
    options = TrainingOptions(cache=tmp_path / "cache")
    assert not train([directory], parse_recipe(RECIPE, "real"), context, options)
    images = directory
    if directory == EPFL:
        # A few of the 80 chips suffice for this test.
        images = tmp_path / "images"
        images.mkdir()
        for number in (1, 2, 3):
            for path in EPFL.glob(f"*/*_chip{number}.*"):
                (images / path.name).symlink_to(path)
    output = tmp_path / "out.csv"
    done = predict([images], output, context.weights, context.device, str(recipe_file))
    assert not done.faults
    assert check_roads_csv(output, list(done.images)) == []
    # One epoch teaches little, so the test does not check the scores.
    truth = {chip.image_id: truth_rows(chip) for chip in cached(images, tmp_path / "cache2")}
    report = score_roads(truth, read_roads_csv(output))
    assert set(report.images) == set(truth)
    assert 0 <= (report.total["apls_length"] or 0) <= 1
