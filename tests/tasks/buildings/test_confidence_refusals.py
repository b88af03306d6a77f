"""Input that `satmap confidence` refuses, with a remedy and without leaving a model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from building_recipes import undecided_weights
from satmap.cli import main
from satmap.provenance.manifest import manifest_path
from satmap.recipes.schema import load_recipe
from satmap.tasks.buildings.selection import SELECTION_FILE
from satmap.tasks.buildings.vectorizer.polygons import exact_polygons
from synthetic_blocks import made_blocks, maps_of_labels
from synthetic_chips import ring_of, write_tile

IDS = [f"AOI_9_Made_img{number}" for number in range(4)]


@dataclass(frozen=True)
class Tile:
    """Directory with images, networks and their out-of-fold predictions."""

    root: Path

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def maps(self) -> Path:
        return self.root / "maps"

    @property
    def submission(self) -> Path:
        return self.root / "out.csv"

    def draw(self, image_id: str, body: NDArray[np.uint8]) -> None:
        """Replace the maps of an image."""
        with rasterio.open(self.maps / f"{image_id}.tif", "r+") as raster:
            raster.write(np.stack([body, np.zeros_like(body)]))

    def fit(self, submission: Path | None = None) -> None:
        main(
            ["confidence", str(submission or self.submission), str(self.maps),
             "--weights", str(self.weights), "--images", str(self.root / "data")]
        )  # fmt: skip


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Tile:
    place = Tile(tmp_path_factory.mktemp("predicted"))
    for number in range(4):
        labels = made_blocks(number, 96, 17 * number, (10, 30)).labels
        rings = [[ring_of(polygon)] for polygon in exact_polygons(labels)]
        write_tile(place.root / "data", number, rings)
    undecided_weights(place.weights, held_out=json.dumps(IDS))
    with pytest.raises(SystemExit) as ended:
        main(
            ["predict", str(place.root / "data"), str(place.submission), "--out-of-fold",
             "--weights", str(place.weights), "--probabilities", str(place.maps), "--device", "cpu",
             "--workers", "0"]
        )  # fmt: skip
    assert ended.value.code == 0
    for number, image_id in enumerate(IDS):
        labels = made_blocks(number, 96, 17 * number, (10, 30)).labels
        place.draw(image_id, maps_of_labels(labels, 1.5, 0.2, number).values[0])
    return place


@pytest.fixture
def place(predicted: Tile, tmp_path: Path) -> Tile:
    """Fresh copy of ``predicted`` for every test."""
    shutil.copytree(predicted.root, tmp_path / "copy")
    return Tile(tmp_path / "copy")


def no_manifest(place: Tile) -> None:
    manifest_path(place.submission).unlink()


def other_networks(place: Tile) -> None:
    undecided_weights(place.weights, seed=2, held_out=json.dumps(IDS))


def networks_gone(place: Tile) -> None:
    (place.weights / "a.last.safetensors").rename(place.weights / "b.last.safetensors")


def masks(place: Tile) -> None:
    path = manifest_path(place.submission)
    content = json.loads(path.read_text())
    content["recipe"]["content"] = load_recipe("small-open-cities").model_dump(mode="json")
    path.write_text(json.dumps(content))


def maps_gone(place: Tile) -> None:
    for path in place.maps.iterdir():
        path.unlink()


def maps_of_another_size(place: Tile) -> None:
    for path in place.maps.iterdir():
        with rasterio.open(
            path, "w", driver="GTiff", width=40, height=50, count=2, dtype="uint8"
        ) as raster:
            raster.write(np.full((2, 50, 40), 200, np.uint8))


def nothing_shown(place: Tile) -> None:
    for image_id in IDS:
        place.draw(image_id, np.zeros((96, 96), np.uint8))


def nothing_to_do_with_houses(place: Tile) -> None:
    # All candidates are alike, whether there is a house or not.
    body = np.zeros((96, 96), np.uint8)
    rows, columns = np.indices(body.shape) % 16
    body[(rows < 11) & (columns < 11)] = 255
    for image_id in IDS:
        place.draw(image_id, body)


def no_place_for_it(place: Tile) -> None:
    (place.weights / SELECTION_FILE).mkdir()


BAD: dict[str, tuple[Callable[[Tile], None], str]] = {
    "no manifest": (no_manifest, "has no manifest"),
    "other networks": (other_networks, "is not the network that made the probability maps"),
    "networks gone": (networks_gone, "is missing, or is not the network"),
    "masks": (masks, "only roads and buildings have a confidence"),
    "no maps": (maps_gone, "0 images have labels and probability maps"),
    "other sizes": (maps_of_another_size, "has (50, 40) pixels, but its image has (96, 96)"),
    "nothing shown": (nothing_shown, "not enough data to fit"),
    "no lesson": (nothing_to_do_with_houses, "is no better than the mean"),
    "no place": (no_place_for_it, "is a directory"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_unusable_input_of_a_fit_is_explained(
    place: Tile, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spoil, message = BAD[name]
    spoil(place)
    with pytest.raises(SystemExit) as ended:
        place.fit()
    printed = capsys.readouterr().err
    assert ended.value.code == 1
    assert message in printed and "Traceback" not in printed
    assert not (place.weights / SELECTION_FILE).is_file()


def test_only_submissions_are_accepted(place: Tile, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        place.fit()
    assert ended.value.code == 0
    model = place.weights / SELECTION_FILE
    before = model.read_bytes()
    # The model also has a manifest, of the kind for weights.
    with pytest.raises(SystemExit) as ended:
        place.fit(model)
    assert ended.value.code == 1
    assert "is not a submission: its manifest is of kind" in capsys.readouterr().err
    assert model.read_bytes() == before
