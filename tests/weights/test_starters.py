"""The starter networks that come with satmap, used as a new user would."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio.features
import shapely
import shapely.geometry
from numpy.typing import NDArray

from repository import ROOT, SHARED
from satmap.cli import main
from satmap.errors import SatmapError
from satmap.io.checksums import record_file
from satmap.io.geojson_reader import LON_LAT, project
from satmap.submissions.vector_maps import read_map
from satmap.weights import starters
from satmap.weights.members import find_weights, trained_gsd
from satmap.weights.starters import PICTURES, starter_tasks, starter_weights

PICTURE, FLATS = PICTURES / "natick.tif", PICTURES / "nairobi.tif"

# The part of the tile that the first picture shows.
TILE, TOP = "void-21328975_15", 640

# The map tiles that the second picture shows, and by how many metres their labels are off to the
# east and to the north.
PLACE, ZOOM, COLUMNS, ROWS = "place5", 19, (315892, 315893), (264046, 264047)
OFFSET = 1.0, -1.2

OPTIONS = ["--views", "1", "--device", "cpu", "--workers", "0"]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's first picture, mapped without --weights."""
    output = tmp_path_factory.mktemp("natick") / "roads.gpkg"
    assert run("map", PICTURE, output, "--task", "roads", *OPTIONS) == 0
    return output


def test_every_starter_is_small_described_and_has_a_card() -> None:
    for task in starter_tasks():
        (file,) = find_weights(starter_weights(task))
        assert file.path.stat().st_size < 25e6
        assert file.recipe.task.name == task and file.scores and file.held_out
        assert trained_gsd([file]) and file.band_statistics
        card = (ROOT / f"docs/models/{file.recipe.name}.md").read_text()
        (digest,) = re.findall(r"SHA-256 `([0-9a-f]{64})`", card)
        assert record_file(file.path).sha256 == digest
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 2e6


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data")
def test_the_roads_of_a_real_place_are_found(roads: Path) -> None:
    collection = read_map(roads)
    with rasterio.open(PICTURE) as file:
        inverse, shape, crs = ~file.transform, file.shape, file.crs
    assert collection.crs and crs.to_epsg() == 26986
    lines = [
        np.stack(inverse @ (line.xy[:, 0], line.xy[:, 1]), axis=1) for line in collection.lines
    ]
    found = rasterio.features.rasterize(
        [shapely.LineString(line) for line in lines], shape, dtype=np.uint8
    )
    mask = cv2.imread(str(SHARED / f"data/roads_massachusetts/masks/{TILE}.png"), 0)
    assert mask is not None
    truth = (mask[TOP : TOP + shape[0]] > 0).astype(np.uint8)
    near = cv2.dilate(truth, np.ones((9, 9), np.uint8))
    # The share of the found lines on roads, and of the roads with a line.
    assert (near[found > 0] > 0).mean() > 0.7
    reached = cv2.dilate(found, np.ones((15, 15), np.uint8))
    assert (reached[truth > 0] > 0).mean() > 0.5


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data")
def test_the_buildings_of_a_real_place_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "buildings.gpkg"
    assert run("map", FLATS, output, "--task", "buildings", *OPTIONS) == 0
    printed = capsys.readouterr().out
    assert "1 network of recipe starter-buildings, 1 view of each image" in printed
    assert re.search(r"on held-out images: .*iou 0\.\d\d", printed)
    with rasterio.open(FLATS) as file:
        inverse, shape, crs = ~file.transform, file.shape, file.crs
    collection = read_map(output)
    assert collection.crs and rasterio.CRS.from_user_input(collection.crs) == crs

    def drawn(polygons: Sequence[shapely.Geometry]) -> NDArray[np.bool_]:
        pixels = shapely.transform(
            polygons, lambda xy: np.stack(inverse @ (xy[:, 0], xy[:, 1]), axis=1)
        )
        mask: NDArray[np.bool_] = rasterio.features.rasterize(list(pixels), shape) > 0
        return mask

    labels = SHARED / f"data/buildings_openaerialmap/{PLACE}/labels"
    true = [
        shapely.geometry.shape(feature["geometry"])
        for column in COLUMNS
        for row in ROWS
        for feature in json.loads((labels / f"OAM-{column}-{row}-{ZOOM}.geojson").read_text())[
            "features"
        ]
    ]
    moved = shapely.transform(true, lambda xy: project(xy, LON_LAT, crs.to_wkt()) - OFFSET)
    found, truth = drawn([surface.polygon for surface in collection.surfaces]), drawn(list(moved))
    assert (found & truth).sum() / (found | truth).sum() > 0.7


def test_the_map_says_which_network_made_it(
    roads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("map", PICTURE, roads, "--task", "roads", *OPTIONS) == 0
    printed = capsys.readouterr().out
    assert "1 network of recipe starter-roads, 1 view of each image" in printed
    assert re.search(r"on held-out images: apls 0\.\d\d, .*iou 0\.\d\d", printed)
    assert "1500 x 860 pixels of 1 m" in printed


def test_a_task_is_needed_to_choose_a_starter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("map", PICTURE, tmp_path / "out.gpkg") == 1
    assert "say what to map: --task buildings or --task roads" in capsys.readouterr().err
    with pytest.raises(SatmapError, match="no starter network for trees"):
        starter_weights("trees")


def test_a_missing_or_altered_starter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(starters, "_STARTERS", tmp_path / "starters")
    arguments = ["map", PICTURE, tmp_path / "out.gpkg", "--task", "roads", "--device", "cpu"]
    assert run(*arguments) == 1
    assert "starter networks are missing from this installation" in capsys.readouterr().err
    (file,) = PICTURES.parent.glob("roads/*.safetensors")
    copy = tmp_path / "starters/roads" / file.name
    copy.parent.mkdir(parents=True)
    shutil.copy(file, copy)
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    copy.write_bytes(content)
    assert run(*arguments) == 1
    assert f"{copy} is damaged" in capsys.readouterr().err
    copy.write_bytes(file.read_bytes()[:-1000])
    assert run(*arguments) == 1
    assert "not a whole safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "out.gpkg").exists()
