"""Predictions of chips without georeference use the chips beside them as context."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from numpy.typing import NDArray

from building_recipes import with_task
from satmap.data.imagery import RGB, read_info, read_stretched
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import SatmapError
from satmap.networks.ensemble import EnsembleMember, predict_maps
from satmap.networks.unet import UNet, build_network
from satmap.prediction.images import prepare_image
from satmap.prediction.plan import find_tiles
from satmap.prediction.run import predict
from satmap.rasters.scene import Box
from satmap.recipes.schema import Recipe, StretchSettings, load_recipe, parse_recipe
from satmap.tasks.base import task_of
from satmap.tasks.buildings.settings import BUILDING_MAPS
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights.network_files import save_weights
from synthetic_images import write_image

CPU = torch.device("cpu")
STEM = "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip"


def recipe(join_chips: bool) -> Recipe:
    demo = load_recipe("demo")
    inference = demo.inference.model_copy(
        update={"tta": 1, "overlap": 96, "window": 256, "join_chips": join_chips}
    )
    # With the whole range of values, all chips and the scene have the same stretch.
    stretch = StretchSettings(low=0, high=100)
    return demo.model_copy(update={"inference": inference, "stretch": stretch})


def save_network(path: Path, network: UNet, text: str) -> UNet:
    save_weights(path, network, {"recipe": text, "member": "a", "stage": "1", "epoch": "1"})
    return network.eval()


def write_chips(directory: Path) -> NDArray[np.uint8]:
    """Write the quarters of a scene of 192 px, and return the scene (192, 192, 3)."""
    scene = np.random.default_rng(0).integers(1, 256, (39, 39, 3)).astype(np.uint8)
    # The cuts go through squares of 5 px.
    scene = scene.repeat(5, axis=0).repeat(5, axis=1)[:192, :192]
    for number, (top, left) in enumerate(((96, 96), (0, 96), (96, 0), (0, 0))):
        chip = scene[top : top + 96, left : left + 96]
        chip[40, 40], chip[40, 41] = 1, 255
        pixels = chip.transpose(2, 0, 1)
        write_image(directory / f"{STEM}{number}.tif", pixels=pixels, georeferenced=False)
    return scene


def read_maps(directory: Path) -> NDArray[np.uint8]:
    """Read the maps of the four chips as one (maps, 192, 192)."""
    chips = []
    for number in range(4):
        with rasterio.open(directory / f"AOI_7_Moscow_chip{number}.tif") as source:
            chips.append(source.read())
    # Chips 3 and 1 are the upper ones, 2 and 0 the lower ones.
    rows = [np.concatenate((chips[left], chips[right]), axis=2) for left, right in ((3, 1), (2, 0))]
    return np.concatenate(rows, axis=1)


def test_joined_chips_are_predicted_like_their_scene(tmp_path: Path) -> None:
    scene = write_chips(tmp_path / "images")
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ROAD_MAPS, (8,) * 4)
    with torch.no_grad():
        network.head.weight *= 20
    maps = {}
    for join in (False, True):
        settings = recipe(join)
        weights = tmp_path / f"weights{join}"
        save_network(weights / "a.last.safetensors", network, settings.model_dump_json())
        output = tmp_path / f"{join}.csv"
        done = predict([tmp_path / "images"], output, weights, CPU, maps=tmp_path / f"maps{join}")
        assert not done.faults
        maps[join] = read_maps(tmp_path / f"maps{join}")
    whole = write_image(tmp_path / "scene.tif", pixels=scene.transpose(2, 0, 1))
    image = read_stretched(read_info(whole, RGB), 0, 100)
    expected = predict_maps([EnsembleMember(network.eval())], image, settings.inference, CPU)
    assert np.array_equal(maps[True], expected)
    assert np.abs(maps[False].astype(int) - expected).mean() > 1


def test_chips_that_are_stretched_already_keep_their_values(tmp_path: Path) -> None:
    """Own chips and tiles of scenes are stretched when they are cut."""
    scene = write_chips(tmp_path)
    chips = [
        replace(chip, images={RGB: replace(chip.image, is_stretched=True)})
        for chip in scan_roads([tmp_path]).chips
    ]
    settings = recipe(join_chips=True)
    task = task_of(settings.model_copy(update={"stretch": StretchSettings(low=20, high=80)}))
    member = EnsembleMember(build_network("resnet18", 3, ROAD_MAPS, (8,) * 4))
    by_id = {chip.image_id: chip.image for chip in chips}
    upper_left = next(chip for chip in chips if chip.image_id.endswith("chip3"))
    (right,) = (image for name, image in by_id.items() if name.endswith("chip1"))
    image = prepare_image(upper_left, [member], task, [(right, 96, 0)])
    assert image.inside == Box(0, 0, 96, 96)
    assert np.array_equal(image.pixels[:96, :192], scene[:96])


def test_the_chips_around_a_chip_are_part_of_its_key(tmp_path: Path) -> None:
    write_chips(tmp_path)
    chips = scan_roads([tmp_path]).chips
    apart, joined = (find_tiles(chips, task_of(recipe(join))) for join in (False, True))
    assert [len(tile.context) for tile in apart] == [0] * 4
    assert [len(tile.context) for tile in joined] == [3] * 4
    assert not {tile.key for tile in apart} & {tile.key for tile in joined}
    # The road task vectorises joined chips together.
    assert [len(tile.neighbours) for tile in joined] == [3] * 4


def test_networks_without_room_for_context_are_refused(tmp_path: Path) -> None:
    content = with_task(input_px=64) | {"inference": {"join_chips": True}}
    text = parse_recipe(yaml.safe_dump(content), "test").model_dump_json()
    network = build_network("resnet18", 3, BUILDING_MAPS[:2], (8,) * 4)
    save_network(tmp_path / "a.last.safetensors", network, text)
    with pytest.raises(SatmapError, match=r"join_chips: true.* own size\. Leave it out"):
        predict([tmp_path], tmp_path / "out.csv", tmp_path, CPU)
