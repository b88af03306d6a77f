"""Prediction of buildings: files, resuming, views, masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from building_recipes import with_task
from satmap.cli import main
from satmap.data.imagery import RGB, read_info, read_resized
from satmap.errors import SatmapError
from satmap.networks.ensemble import EnsembleMember, predict_maps
from satmap.networks.unet import UNet, build_network
from satmap.prediction.journal import Journal
from satmap.prediction.run import predict
from satmap.rasters.probability_maps import resize_maps
from satmap.recipes.schema import Inference, parse_recipe
from satmap.submissions.buildings_csv import check_buildings_csv, read_buildings_csv
from satmap.submissions.coco_json import check_coco_results, read_coco_results
from satmap.tasks.base import default_task
from satmap.tasks.buildings.settings import BUILDING_MAPS
from satmap.tasks.buildings.targets import draw_instances
from satmap.vectors.buildings import Building, ImageBuildings
from satmap.weights.network_files import save_weights
from synthetic_chips import square, write_coco, write_tile

CPU = torch.device("cpu")


def all_is_building() -> UNet:
    """Return a network that predicts a building without border everywhere."""
    network = build_network("resnet18", 3, BUILDING_MAPS[:2], (8,) * 4)
    with torch.no_grad():
        network.head.weight.zero_()
        assert network.head.bias is not None
        network.head.bias.fill_(-9)
        network.head.bias[0] = 9
    return network


def make_weights(directory: Path, **settings: object) -> None:
    recipe = parse_recipe(yaml.safe_dump(with_task(**settings)), "test")
    metadata = {"recipe": recipe.model_dump_json(), "member": "a", "stage": "1", "epoch": "1"}
    save_weights(directory / "a.last.safetensors", all_is_building(), metadata)


def test_every_image_is_in_the_csv(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write_tile(tmp_path / "data", number, [square(10, 10, 20)])
    damaged = next((tmp_path / "data").rglob("*img10.tif"))
    damaged.write_bytes(b"II*\0" + bytes(40))
    make_weights(tmp_path / "weights", vectorizer={"simplify_px": 0})
    out = tmp_path / "out.csv"
    done = predict([tmp_path / "data"], out, tmp_path / "weights", CPU)
    assert done.images == {"AOI_9_Made_img1": 1, "AOI_9_Made_img2": 1, "AOI_9_Made_img10": 0}
    assert list(done.faults) == ["AOI_9_Made_img10"]
    assert done.noun == "buildings"
    assert check_buildings_csv(out, done.images) == []
    rows = read_buildings_csv(out)
    (row,) = rows["AOI_9_Made_img1"]
    assert row.polygon.area == 96 * 96
    # Probability 1 - 1 / (1 + e^9), area 96 x 96.
    assert row.score == pytest.approx(96, rel=0.005)
    assert rows["AOI_9_Made_img10"] == []
    assert "AOI_9_Made_img10,-1,POLYGON EMPTY,1" in out.read_text()
    # GraphML is only for roads, and COCO results need the Mapping Challenge's image numbers.
    with pytest.raises(
        SatmapError, match=r"a\.graphml: .*'\.graphml' is none of \.geojson, \.gpkg"
    ):
        predict(
            [tmp_path / "data"], out, tmp_path / "weights", CPU, exports=[tmp_path / "a.graphml"]
        )
    with pytest.raises(SatmapError, match="need images with numbers"):
        predict([tmp_path / "data"], tmp_path / "out.json", tmp_path / "weights", CPU)


def test_coco_results_have_the_ids_of_the_file_and_the_size_of_the_images(tmp_path: Path) -> None:
    write_coco(tmp_path / "data", {12: [square(10, 10, 30)], 7: []}, size=100)
    make_weights(tmp_path / "weights", input_px=64)
    out = tmp_path / "out.json"
    done = predict([tmp_path / "data"], out, tmp_path / "weights", CPU, maps=tmp_path / "maps")
    assert done.images == {"7": 1, "12": 1}
    assert check_coco_results(out, {7: (100, 100), 12: (100, 100)}) == []
    found = read_coco_results(out)
    assert list(found) == [7, 12]
    with rasterio.open(tmp_path / "maps/12.tif") as maps:
        assert (maps.count, maps.height, maps.width) == (2, 100, 100)
    # Without annotations, the id is the number in the name. A CSV is possible too.
    (tmp_path / "data/annotation.json").unlink()
    again = tmp_path / "again.json"
    predict([tmp_path / "data"], again, tmp_path / "weights", CPU)
    assert again.read_bytes() == out.read_bytes()
    predict([tmp_path / "data"], tmp_path / "out.csv", tmp_path / "weights", CPU)
    assert list(read_buildings_csv(tmp_path / "out.csv")) == ["7", "12"]


def test_the_journal_restores_buildings_exactly(tmp_path: Path) -> None:
    yard = shapely.Polygon(square(0.1, 1 / 3, 20)[0], square(5, 5, 6))
    image = ImageBuildings("a", 3, (40, 50), (Building(yard, 0.1 + 0.2),))
    task = default_task("buildings")
    with Journal(tmp_path / "out.csv", "settings", task) as journal:
        journal.add("key", image)
    path = tmp_path / ".out.csv.partial"
    with path.open("a") as file:
        file.write(json.dumps(["other", ["b", None, [1, 1], [["00ff", 1]], None]]) + "\n")
    with Journal(tmp_path / "out.csv", "settings", task) as journal:
        # Everything after a damaged line is predicted again.
        assert list(journal.finished) == ["key"]
        back = journal.found("key")
    assert (back.image_id, back.number, back.size) == ("a", 3, (40, 50))
    (building,) = back.buildings
    assert (building.polygon.wkb, building.score) == (yard.wkb, 0.1 + 0.2)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 100), bias=st.floats(-3, 3))
def test_the_geometric_mean_of_views(seed: int, bias: float) -> None:
    torch.manual_seed(seed)
    network = build_network("resnet18", 3, ["building"], (8,) * 4).eval()
    with torch.no_grad():
        assert network.head.bias is not None
        network.head.bias.fill_(bias)
        network.head.weight.mul_(8)
    image = np.random.default_rng(seed).integers(1, 255, (32, 32, 3)).astype(np.uint8)
    views = [
        predict_maps([EnsembleMember(network)], turned, Inference(tta=1), CPU)[0]
        for turned in (np.rot90(image, phases).copy() for phases in range(4))
    ]
    single = [np.rot90(view, -phases) / 255 for phases, view in enumerate(views)]
    both = {
        mean: predict_maps([EnsembleMember(network)], image, Inference(tta=4, mean=mean), CPU)[0]
        / 255
        for mean in ("arithmetic", "geometric")
    }
    # Each view was rounded to 1/255 before.
    assert np.allclose(both["arithmetic"], np.mean(single, axis=0), atol=0.005)
    geometric = np.exp(np.mean(np.log(np.maximum(single, 1e-9)), axis=0))
    large = np.min(single, axis=0) > 0.05
    assert np.allclose(both["geometric"][large], geometric[large], atol=0.02)
    assert (both["geometric"] <= both["arithmetic"] + 0.005).all()


def test_padding_follows_the_recipe() -> None:
    seen: list[torch.Tensor] = []
    network = build_network("resnet18", 3, ["building"], (8,) * 4).eval()
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = np.random.default_rng(0).integers(1, 255, (32, 40, 3)).astype(np.uint8)
    for padding in ("reflect", "replicate"):
        predict_maps([EnsembleMember(network)], image, Inference(tta=1, padding=padding), CPU)
    mirrored, repeated = (x[0] for x in seen)
    top, left = (repeated.shape[1] - 32) // 2, (repeated.shape[2] - 40) // 2
    assert top > 1 and left > 1
    inside = (slice(None), slice(top, top + 32), slice(left, left + 40))
    assert torch.equal(mirrored[inside], repeated[inside])
    above = repeated[:, :top, left : left + 40]
    assert torch.equal(above, repeated[:, top : top + 1, left : left + 40].expand_as(above))
    assert torch.equal(mirrored[:, top - 1], mirrored[:, top + 1])
    assert not torch.equal(mirrored, repeated)


def test_resized_maps_keep_their_positions() -> None:
    values = np.zeros((2, 32, 32), np.uint8)
    values[0, 8:16, 4:12], values[1] = 255, 100
    large = resize_maps(values, (64, 96))
    assert large.shape == (2, 64, 96)
    rows, columns = np.nonzero(large[0] > 127)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (16, 32, 12, 36)
    assert (large[1] == 100).all()
    assert resize_maps(values, (32, 32)) is values


def test_masks_on_disk_to_buildings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outlines = np.array([shapely.box(5, 5, 25, 25), shapely.box(25, 5, 45, 25)], np.object_)
    labels = draw_instances(outlines, (64, 64))
    body = ((labels > 0) * 255).astype(np.uint8)
    border = np.zeros_like(body)
    border[5:25, 24:26] = 255
    masks = tmp_path / "masks"
    masks.mkdir()
    for number, bands in ((1, [body]), (2, [body, border])):
        profile = {"driver": "GTiff", "height": 64, "width": 64, "dtype": "uint8"}
        name = f"RGB-PanSharpen_AOI_9_Made_img{number}.tif"
        with rasterio.open(masks / name, "w", count=len(bands), **profile) as target:
            target.write(np.stack(bands))
    (masks / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out.csv"

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["vectorize", str(masks), *arguments, "--task", "buildings", "--workers", "0"])
        return int(ended.value.code or 0)

    assert run(str(out)) == 0
    rows = read_buildings_csv(out)
    assert {name: len(found) for name, found in rows.items()} == {
        "AOI_9_Made_img1": 1, "AOI_9_Made_img2": 2, "broken": 0,
    }  # fmt: skip
    printed = capsys.readouterr()
    assert "broken.png: cannot be read" in printed.err
    assert "3 images, 3 buildings" in printed.out
    assert run(str(tmp_path / "out.json")) == 1
    assert "COCO results need images with numbers as names" in capsys.readouterr().err
    assert run(str(tmp_path / "out.graphml")) == 1
    assert "none of .csv, .json" in capsys.readouterr().err
    for path in masks.iterdir():
        path.unlink()
    with rasterio.open(masks / "000000000012.png", "w", driver="PNG", height=64, width=64, count=1,
                       dtype="uint8") as target:  # fmt: skip
        target.write(body[None])
    assert run(str(tmp_path / "out.json")) == 0
    assert "1 images, 1 buildings" in capsys.readouterr().out
    assert list(read_coco_results(tmp_path / "out.json")) == [12]


def test_black_is_data_in_a_jpeg(tmp_path: Path) -> None:
    write_coco(tmp_path, {1: []})
    info = read_info(next(tmp_path.rglob("*.jpg")), RGB)
    assert (read_resized(info, 0, 100, None) > 0).all()
