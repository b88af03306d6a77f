"""The Python library and its example script."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import rasterio
import torch
import yaml
from affine import Affine

import satmap
from default_tasks import building_task
from repository import ROOT
from satmap.data.imagery import RGB, read_info, read_stretched
from satmap.errors import SatmapError
from satmap.evaluation.metrics.apls import score_roads
from satmap.io.checksums import record_file
from satmap.networks.unet import build_network
from satmap.provenance.manifest import WeightsManifest, write_manifest
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import load_recipe
from satmap.submissions.roads_csv import rows_of_graph
from satmap.tasks.base import Task
from satmap.tasks.buildings.selection import (
    SELECTION_FILE,
    CandidateSample,
    fit_selection,
)
from satmap.tasks.buildings.settings import BUILDING_MAPS
from satmap.tasks.buildings.task import BuildingTask
from satmap.tasks.buildings.vectorizer.candidates import FEATURES
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.vectors.buildings import Buildings
from satmap.vectors.road_graph import RoadGraph
from satmap.weights.network_files import save_weights

RECIPES = Path(satmap.__file__).parent / "recipes"
EXAMPLE = ROOT / "examples" / "map_image.py"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with an untrained road network."""
    directory = tmp_path_factory.mktemp("weights")
    network = build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16))
    recipe = load_recipe("demo")
    metadata = {"recipe": recipe.model_dump_json(), "member": "fold0", "stage": "1", "epoch": "1"}
    save_weights(directory / "fold0.last.safetensors", network, metadata)
    return directory


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "my town 2023.tif"
    transform = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
    profile = {"driver": "GTiff", "width": 96, "height": 64, "count": 3, "dtype": "uint8"}
    values = np.random.default_rng(0).integers(1, 255, (3, 64, 96), np.uint8)
    with rasterio.open(path, "w", crs="EPSG:32631", transform=transform, **profile) as target:
        target.write(values)
    return path


def cross() -> np.ndarray:
    """Return road probabilities of a crossing, 0.5 m per pixel."""
    values = np.zeros((200, 200), np.uint8)
    values[96:104] = values[:, 96:104] = 255
    return values


def test_a_predictor_maps_files_and_arrays(weights: Path, image: Path) -> None:
    predictor = satmap.load(weights, device="cpu")
    found = predictor(image)
    assert isinstance(found, RoadGraph)
    assert found.georeference is not None
    maps = predictor.probabilities(image)
    assert maps.names == ROAD_MAPS
    assert maps.shape == (64, 96)
    assert maps.metres_per_pixel == pytest.approx((0.5, 0.5), rel=1e-3)
    with rasterio.open(image) as source:
        array = source.read().transpose(1, 2, 0)
    from_array = predictor.probabilities(array, metres_per_pixel=0.5)
    assert from_array.shape == (64, 96)
    one = satmap.load(weights / "fold0.last.safetensors", device="cpu")
    assert np.array_equal(one.probabilities(image).values, maps.values)


def test_roads_become_a_networkx_graph_and_a_table() -> None:
    graph = satmap.vectorize(cross(), metres_per_pixel=0.5)
    roads = graph.to_networkx()
    assert isinstance(roads, networkx.MultiGraph)
    assert roads.number_of_edges() == 4
    assert sorted(dict(roads.degree()).values()) == [1, 1, 1, 1, 4]
    lengths = [length for *_, length in roads.edges(data="length_m")]
    assert sum(lengths) == pytest.approx(200, abs=6)
    table = graph.to_geodataframe()
    assert len(table) == 4
    assert table.crs is None
    assert table.geometry.length.sum() * 0.5 == pytest.approx(sum(lengths), rel=1e-6)
    # The command's vectoriser gives the same.
    rows = rows_of_graph(graph)
    assert score_roads({"a": rows}, {"a": rows}).total["fair_apls_length"] == 1


def test_tables_use_the_georeference_of_the_image(tmp_path: Path) -> None:
    path = tmp_path / "cross.tif"
    transform = Affine(0.5, 0, 500_000, 0, -0.5, 4_000_000)
    profile = {"driver": "GTiff", "width": 200, "height": 200, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", crs="EPSG:32631", transform=transform, **profile) as target:
        target.write(cross(), 1)
    table = satmap.vectorize(path).to_geodataframe()
    assert table.crs.to_epsg() == 32631
    assert table.total_bounds == pytest.approx([500_000, 3_999_900, 500_100, 4_000_000], abs=2)


def test_buildings_become_a_table() -> None:
    values = np.zeros((1, 60, 60), np.uint8)
    values[0, 10:30, 10:40] = 255
    found = satmap.vectorize(values, task="buildings")
    assert isinstance(found, Buildings)
    table = found.to_geodataframe()
    assert len(table) == 1
    assert table.geometry.area.iloc[0] == pytest.approx(600, rel=0.05)
    named = ProbabilityMaps(BUILDING_MAPS[:1], values, (1.0, 1.0))
    assert len(satmap.vectorize(named, task="buildings")) == 1


def building_weights(path: Path, recipe_name: str) -> Path:
    """Write the weights of an untrained building network for a shipped recipe."""
    recipe = load_recipe(recipe_name)
    task = BuildingTask(recipe)
    torch.manual_seed(0)
    network = build_network("resnet18", 3, recipe.map_names, (8,) * 4, categories=task.categories)
    with torch.no_grad():
        network.head.weight *= 50
    save_weights(path, network, {"recipe": recipe.model_dump_json(), "member": "a", "stage": "1"})
    return path


@pytest.mark.parametrize("size", [(40, 60), (300, 200)])
def test_an_array_is_resized_like_its_file(tmp_path: Path, size: tuple[int, int]) -> None:
    predictor = satmap.load(
        building_weights(tmp_path / "a.safetensors", "mapping-challenge"), device="cpu"
    )
    values = np.random.default_rng(0).integers(1, 256, (3, *size), np.uint8)
    path = tmp_path / "image.png"
    with rasterio.open(
        path, "w", driver="PNG", width=size[1], height=size[0], count=3, dtype="uint8"
    ) as target:
        target.write(values)
    array = read_stretched(read_info(path, RGB), 0, 100)
    from_file, from_array = (predictor.probabilities(image) for image in (path, array))
    assert from_file.values.std() > 10
    assert from_file.shape == size
    assert np.array_equal(from_file.values, from_array.values)
    found = [[each.polygon.wkb for each in predictor(image)] for image in (path, array)]
    assert found[0] == found[1]


def test_the_view_angle_is_that_of_the_name_or_given(tmp_path: Path) -> None:
    predictor = satmap.load(
        building_weights(tmp_path / "a.safetensors", "sn4-buildings"), device="cpu"
    )
    image = np.random.default_rng(0).integers(1, 256, (32, 32, 3), np.uint8)
    with pytest.raises(SatmapError, match="nadir"):
        predictor(image)
    with pytest.raises(SatmapError, match="view_angle: 'up'"):
        predictor(image, view_angle="up")
    assert isinstance(predictor(image, view_angle="10south"), Buildings)
    maps = {angle: predictor.probabilities(image, view_angle=angle) for angle in (10, 32.5, 53)}
    assert not np.array_equal(maps[10].values, maps[53].values)
    path = tmp_path / "Atlanta_nadir53_catid_1030010003193300_732701_3730989.png"
    with rasterio.open(path, "w", driver="PNG", width=32, height=32, count=3, dtype="uint8") as to:
        to.write(image.transpose(2, 0, 1))
    with_name = predictor.probabilities(path)
    # An angle in the name takes precedence.
    assert np.array_equal(with_name.values, predictor.probabilities(path, view_angle=10).values)

    options: dict[str, Any] = {"task": "buildings", "recipe": "sn4-buildings"}
    with pytest.raises(SatmapError, match="nadir"):
        satmap.vectorize(maps[10], **options)
    assert isinstance(satmap.vectorize(maps[10], view_angle="10", **options), Buildings)
    with rasterio.open(path, "w", driver="PNG", width=32, height=32, count=3, dtype="uint8") as to:
        to.write(np.stack([with_name.values[0]] * 3))
    assert isinstance(satmap.vectorize(path, **options), Buildings)


def test_a_confidence_model_of_other_networks_is_refused(tmp_path: Path) -> None:
    file = building_weights(tmp_path / "fold0.best_f1.safetensors", "small-buildings")
    random = np.random.default_rng(0)
    samples = [
        CandidateSample(fold, random.random((50, len(FEATURES))), random.random(50))
        for fold in range(2)
    ]
    model = tmp_path / SELECTION_FILE
    model.write_text(fit_selection(samples).model.text)
    facts = dict.fromkeys(("recipe", "member", "stage", "epoch", "data"))
    facts |= {"seeds": {}, "scores": {}, "skipped": {}, "runs": ()}
    write_manifest(model, WeightsManifest, {**facts, "starts_from": (record_file(file),)})
    assert satmap.load(tmp_path, device="cpu").models.selection == model.resolve()
    write_manifest(model, WeightsManifest, {**facts, "starts_from": (record_file(model),)})
    with pytest.raises(SatmapError, match="was fitted to the probability maps of other networks"):
        satmap.load(tmp_path, device="cpu")


def test_a_result_gets_its_position_from_the_task() -> None:
    class OtherTask(BuildingTask):
        with_georeference = Task.with_georeference

    for task, found in ((building_task(), Buildings), (OtherTask(building_task().recipe), list)):
        assert type(task.with_georeference([], None)) is found


def test_the_recipe_says_how_large_pixels_are(tmp_path: Path) -> None:
    content = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    content["task"] = {"name": "roads", "default_metres_per_pixel": 2.0}
    recipe = tmp_path / "coarse.yaml"
    recipe.write_text(yaml.safe_dump(content))

    def metres(**options: Any) -> float:
        return float(sum(edge.length_m for edge in satmap.vectorize(cross(), **options).edges))

    assert metres(recipe=str(recipe)) == pytest.approx(800, abs=24)
    assert metres() == pytest.approx(120, abs=4)
    assert metres(recipe=str(recipe), metres_per_pixel=0.5) == pytest.approx(200, abs=6)


def test_scores_equal_those_of_the_command(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    header = "ImageId,WKT_Pix,length_m,travel_time_s\n"
    truth.write_text(f'{header}a,"LINESTRING (0 0, 100 0)",30,3\n')
    report = satmap.score(truth, truth)
    assert report.to_json()["metric"] == "apls"
    assert report.total["apls_length"] == 1


def test_bad_input_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(SatmapError, match="no weights"):
        satmap.load(tmp_path)
    predictor = satmap.load(weights, device="cpu")
    with pytest.raises(SatmapError, match="uint8"):
        predictor(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(SatmapError, match="3 bands"):
        predictor(np.zeros((64, 64, 1), np.uint8))
    with pytest.raises(SatmapError, match="5 probability maps"):
        satmap.vectorize(np.zeros((5, 8, 8), np.uint8))
    with pytest.raises(SatmapError, match="no task is called 'rivers'"):
        satmap.vectorize(np.zeros((8, 8), np.uint8), task="rivers")


def test_the_example_maps_an_image(weights: Path, image: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gpkg"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(weights), str(image), str(output)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "road: mean probability" in done.stdout
    assert output.exists()


@pytest.mark.parametrize(
    ("statement", "heavy", "seconds"),
    [
        ("import satmap", ["pydantic", "numpy", "torch", "cv2", "rasterio"], 0.1),
        (
            "from satmap.recipes import load_recipe; load_recipe('sn5-roads')",
            ["torch", "cv2", "rasterio"], 0.3,
        ),
    ],
)  # fmt: skip
def test_imports_are_light(statement: str, heavy: list[str], seconds: float) -> None:
    check = (
        f"import sys, time; start = time.process_time(); {statement}; "
        f"print(time.process_time() - start, [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    taken, _, loaded = done.stdout.partition(" ")
    assert loaded.strip() == "[]"
    # CPU time, because a busy machine takes longer by the clock. The limit suits slow machines.
    assert float(taken) < 3 * seconds
