"""`satmap map`: from any rasters to one map, in blocks, with kills, damage and full disks."""

import json
import random
import re
from collections.abc import Iterator
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import cv2
import networkx as nx
import numpy as np
import pytest
import torch
from affine import Affine
from numpy.typing import NDArray

from building_recipes import undecided_weights
from forked_ranks import all_alive, finish, kill_one, start_ranks, wait_until
from full_disks import full_disk
from http_servers import http_server
from satmap import cli
from satmap.errors import CannotWriteError, SatmapError
from satmap.io.text import public_address
from satmap.networks.ensemble import Strip
from satmap.networks.unet import build_network
from satmap.prediction.map import MapPlan, MapRequest, block_side, map_sources
from satmap.prediction.outputs import PredictionReport
from satmap.provenance.manifest import SUFFIX, MapManifest, read_manifest
from satmap.recipes.schema import Inference, Recipe, parse_recipe
from satmap.tasks.base import Task
from satmap.tasks.roads.settings import ROAD, ROAD_MAPS
from satmap.weights.network_files import save_weights
from synthetic_images import write_image
from tiny_trainings import road_recipe

UTM = "EPSG:32633"
PLACE = Affine(0.5, 0, 500000, 0, -0.5, 5000000)
SIZE = 200

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def recipe() -> Recipe:
    text = road_recipe(inference={"tta": 1, "window": 96, "overlap": 16})
    return parse_recipe(text, "test")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_encoders: None) -> Path:
    directory = tmp_path_factory.mktemp("weights")
    torch.manual_seed(3)
    network = build_network("tiny", 3, ROAD_MAPS, (16, 16, 16, 16))
    with torch.no_grad():
        # An untrained network would be undecided everywhere.
        network.head.weight *= 50
    metadata = {"recipe": recipe().model_dump_json(), "member": "a", "stage": "1", "epoch": "1"}
    save_weights(directory / "a.last.safetensors", network, metadata)
    return directory


@pytest.fixture
def red_is_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the network by one that finds a road where the first band is bright."""

    def strips(_: Any, image: NDArray[np.uint8], *__: Any) -> Iterator[Strip]:
        maps = np.zeros((len(ROAD_MAPS), *image.shape[:2]), np.uint8)
        maps[ROAD_MAPS.index(ROAD)] = np.where(image[..., 0] > 128, 255, 0)
        yield Strip(0, torch.from_numpy(maps))

    monkeypatch.setattr("satmap.tasks.dense.predict_strips", strips)


def town(size: int = SIZE) -> NDArray[np.uint8]:
    """Return a picture of red streets on grey ground, uint8 (3, size, size)."""
    picture: NDArray[np.uint8] = np.full((size, size, 3), 60, np.uint8)
    for offset in range(-size, 2 * size, 90):
        for line in (((0, offset), (size, offset + 50)), ((offset, 0), (offset - 45, size))):
            cv2.line(picture, *line, (255, 60, 60), 9)
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def write(path: Path, pixels: NDArray[Any], **profile: Any) -> Path:
    place: dict[str, Any] = {"crs": UTM, "transform": PLACE}
    return write_image(path, pixels=pixels, **(place | profile))


def quarters(directory: Path, pixels: NDArray[Any]) -> list[Path]:
    half = pixels.shape[1] // 2
    return [
        write(directory / f"{name}.tif", pixels[:, top : top + half, left : left + half],
              transform=PLACE @ Affine.translation(left, top))
        for name, left, top in (("nw", 0, 0), ("ne", half, 0), ("sw", 0, half), ("se", half, half))
    ]  # fmt: skip


def request(weights: Path, output: Path, *sources: Path | str, **options: Any) -> MapRequest:
    defaults: dict[str, Any] = {"stretch": (0, 255), "block_px": 100}
    names = tuple(map(str, sources))
    return MapRequest((), output, weights, "cpu", sources=names, **(defaults | options))


def run(weights: Path, output: Path, *sources: Path | str, **options: Any) -> PredictionReport:
    return map_sources(request(weights, output, *sources, **options))


def network_of(path: Path) -> nx.MultiGraph:
    features = json.loads(path.read_text())["features"]
    return nx.MultiGraph([(f["properties"]["u"], f["properties"]["v"]) for f in features])


# --- one map --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("red_is_road")
def test_blocks_and_quarters_give_the_map_of_the_whole(weights: Path, tmp_path: Path) -> None:
    picture = town()
    scene = write(tmp_path / "my town, 2023 (α).tif", picture)
    parts = quarters(tmp_path / "parts", picture)
    whole = tmp_path / "whole.geojson"
    done = run(weights, whole, scene, block_px=1000)
    assert done.noun == "roads" and not done.faults and not done.warnings
    assert done.images["map"] > 10
    expected = network_of(whole)
    assert nx.number_connected_components(expected) == 1
    run(weights, tmp_path / "blocks.geojson", scene)
    run(weights, tmp_path / "quarters.geojson", tmp_path / "parts")
    run(weights, tmp_path / "shuffled.geojson", *parts[::-1])
    blocks = tmp_path / "blocks.geojson"
    for other in ("quarters", "shuffled"):
        assert (tmp_path / f"{other}.geojson").read_bytes() == blocks.read_bytes()
    found = network_of(blocks)
    assert nx.number_connected_components(found) == 1
    assert abs(found.number_of_edges() - expected.number_of_edges()) <= 2
    # Nothing is left but outputs and manifests.
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith(SUFFIX)}
    assert left == {"my town, 2023 (α).tif", "parts", "whole.geojson", "blocks.geojson",
                    "quarters.geojson", "shuffled.geojson"}  # fmt: skip


@pytest.mark.usefixtures("red_is_road")
def test_overlapping_sources_are_mapped_once(weights: Path, tmp_path: Path) -> None:
    picture = town()
    scene = write(tmp_path / "a.tif", picture)
    run(weights, tmp_path / "one.geojson", scene)
    again = write(tmp_path / "b.tif", picture[:, 50:, 80:],
                  transform=PLACE @ Affine.translation(80, 50))  # fmt: skip
    run(weights, tmp_path / "two.geojson", scene, again)
    assert (tmp_path / "one.geojson").read_bytes() == (tmp_path / "two.geojson").read_bytes()
    # A coarse one without roads below, or above with its priority.
    coarse = write(tmp_path / "c.tif", np.full((3, 100, 100), 60, np.uint8),
                   transform=PLACE @ Affine.scale(2))  # fmt: skip
    run(weights, tmp_path / "finest.geojson", scene, coarse)
    assert (tmp_path / "one.geojson").read_bytes() == (tmp_path / "finest.geojson").read_bytes()
    done = run(weights, tmp_path / "first.geojson", coarse, scene, priority="first", gsd=0.5)
    assert done.images == {"map": 0}


@pytest.mark.usefixtures("red_is_road")
def test_the_manifest_describes_the_map(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write(tmp_path / "a.tif", town())
    output = tmp_path / "out.gpkg"
    run(weights, output, scene, stretch=None, exports=(tmp_path / "out.csv",))
    manifest = read_manifest(output)
    assert isinstance(manifest, MapManifest)
    assert [*manifest.sources] == [str(scene)]
    entry = manifest.maps["map"]
    assert (entry["width"], entry["height"]) == (SIZE, SIZE)
    assert entry["stretches"] == [[str(scene), [60, 60, 60], [255, 61, 61]]]
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", str(output)])
    assert caught.value.code == 1
    assert "maps are not computed again" in capsys.readouterr().err


@pytest.mark.usefixtures("red_is_road")
def test_secrets_of_addresses_are_not_recorded(weights: Path, tmp_path: Path) -> None:
    photo = write_image(tmp_path / "photo.tif", pixels=town(100), georeferenced=False)
    secret = "?X-Amz-Signature=s3cr.et#fragment"
    with http_server() as server:
        for name in ("/a.tif", "/photo.tif"):
            server.files[name + secret.partition("#")[0]] = photo.read_bytes()
        server.redirects["/b.tif?sig=s3cr.et"] = f"{server.url}/c.tif?sig=s3cr.et"
        urls = [server.url + name + secret for name in ("/a.tif", "/photo.tif")]
        moved = f"{server.url}/b.tif?sig=s3cr.et"
        done = run(weights, tmp_path / "out.csv", *urls, moved, stretch=None,
                   command=("map", *urls, "what? no address"))  # fmt: skip
    assert done.faults.keys() == {moved}
    assert done.images.keys() == {"a", "photo"}
    manifest = read_manifest(tmp_path / "out.csv")
    assert isinstance(manifest, MapManifest)
    plain = (f"{server.url}/a.tif", f"{server.url}/photo.tif")
    assert manifest.addresses == plain
    assert manifest.run.command == ("map", *plain, "what? no address")
    assert [entry["stretches"][0][0] for entry in manifest.maps.values()] == [*plain]
    assert f"redirects to {server.url}/c.tif" in manifest.skipped[f"{server.url}/b.tif"]
    for path in tmp_path.iterdir():
        assert b"s3cr.et" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("s3://bucket/key.tif", "s3://bucket/key.tif"),
        ("https://me:word@host/a@b.tif?sas=1", "https://host/a@b.tif"),
        ("https://host?a/b", "https://host"),
        ("folder/a?b#c.tif", "folder/a?b#c.tif"),
    ],
)
def test_recorded_addresses(name: str, recorded: str) -> None:
    assert public_address(name) == recorded


def test_blocks_fit_the_windows_of_the_networks() -> None:
    assert block_side(Inference()) == 2 * (1344 - 256)
    assert block_side(Inference(window=4096)) == 4096 - 256
    assert block_side(Inference(window=96, overlap=16)) == 2048


def test_networks_see_no_black_edges_and_nothing_is_mapped_there(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[NDArray[np.uint8]] = []

    def strips(_: Any, image: NDArray[np.uint8], *__: Any) -> Iterator[Strip]:
        seen.append(image)
        maps = np.zeros((len(ROAD_MAPS), *image.shape[:2]), np.uint8)
        # A road across the picture, also where it is black.
        maps[ROAD_MAPS.index(ROAD), 50:59] = 255
        yield Strip(0, torch.from_numpy(maps))

    monkeypatch.setattr("satmap.tasks.dense.predict_strips", strips)
    picture = town(120)
    picture[:, :, :40] = 0
    write_image(tmp_path / "town.tif", pixels=picture, georeferenced=False)
    run(weights, tmp_path / "out.csv", tmp_path / "town.tif", block_px=1000)
    (image,) = seen
    assert image.any(axis=2).all()
    (line,) = re.findall(r"LINESTRING \((.*?)\)", (tmp_path / "out.csv").read_text())
    columns = [float(point.split()[0]) for point in line.split(",")]
    assert 38 <= min(columns) <= 48 and max(columns) >= 116


# --- images without a place -----------------------------------------------------------------------


@pytest.mark.usefixtures("red_is_road")
def test_images_without_a_place_are_maps_of_their_own(weights: Path, tmp_path: Path) -> None:
    picture = town(100)
    placed = write(tmp_path / "placed.tif", picture)
    for folder in ("a", "b"):
        for number in range(3):
            write_image(tmp_path / f"{folder}/{number}.tif", pixels=picture, georeferenced=False)
    done = run(weights, tmp_path / "out.csv", placed, tmp_path / "a", tmp_path / "b",
               exports=(tmp_path / "out.geojson", tmp_path / "out.graphml"))  # fmt: skip
    names = {"map"} | {str(number) for number in range(3)} | {f"b-{i}" for i in range(3)}
    assert done.images.keys() == names and min(done.images.values()) > 0
    for warning, suffix in zip(done.warnings, ("geojson", "graphml"), strict=True):
        assert f"out.{suffix} lacks 6 maps" in warning and "has no georeference" in warning
    rows = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == names
    images = {f["properties"]["image_id"] for f in
              json.loads((tmp_path / "out.geojson").read_text())["features"]}  # fmt: skip
    assert images == {"map"}


@pytest.mark.parametrize("name", ["out.gpkg", "out.geojson", "out.osm"])
def test_formats_without_pixels_are_refused_before_the_prediction(
    weights: Path, tmp_path: Path, name: str
) -> None:
    photo = write_image(tmp_path / "photo.tif", pixels=town(100), georeferenced=False)
    with pytest.raises(SatmapError, match=r"no image has a georeference.*photo.*\(.csv, .graphml"):
        run(weights, tmp_path / name, photo)
    with pytest.raises(SatmapError, match="no image has a georeference"):
        run(weights, tmp_path / "out.csv", photo, exports=(tmp_path / name,))
    assert {path.name for path in tmp_path.iterdir()} == {"photo.tif"}


def test_tasks_that_cannot_map_are_refused_before_the_prediction(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satmap.tasks.roads.task.RoadTask.join_blocks", Task.join_blocks)
    with pytest.raises(SatmapError, match=r"cannot map whole scenes. Use `satmap predict`"):
        run(weights, tmp_path / "out.csv", write(tmp_path / "a.tif", town(100)))


def test_coco_results_are_refused_before_the_prediction(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    undecided_weights(tmp_path / "weights")
    scene = write(tmp_path / "7.tif", town(100))
    with pytest.raises(SatmapError, match=r"COCO results need images with numbers"):
        run(tmp_path / "weights", tmp_path / "out.json", scene)
    with pytest.raises(SatmapError, match=r"COCO results need images with numbers"):
        run(tmp_path / "weights", tmp_path / "out.gpkg", scene, exports=(tmp_path / "o.json",))


@pytest.mark.usefixtures("red_is_road")
def test_names_that_a_csv_cannot_hold(weights: Path, tmp_path: Path) -> None:
    odd = write_image(tmp_path / 'my "town", 2023.tif', pixels=town(120), georeferenced=False)
    done = run(weights, tmp_path / "out.graphml", odd)
    assert len(done.images) == 1
    assert [*done.images] == ["my _town__ 2023"]
    done = run(weights, tmp_path / "out.csv", odd)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + sum(done.images.values())


@pytest.mark.usefixtures("red_is_road")
def test_nothing_found_is_a_warning(weights: Path, tmp_path: Path) -> None:
    for name, value in (("blank", 0), ("grey", 60)):
        scene = write(tmp_path / f"{name}.tif", np.full((3, 120, 130), value, np.uint8))
        done = run(weights, tmp_path / f"{name}.geojson", scene, stretch=None)
        assert done.images == {"map": 0}
        (warning,) = done.warnings
        assert "the networks found no roads anywhere" in warning and "--bands" in warning


# --- networks for different bands -----------------------------------------------------------------


@pytest.mark.usefixtures("red_is_road")
def test_maps_use_the_networks_that_their_bands_allow(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = recipe().model_copy(
        update={
            "members": (
                *recipe().members,
                recipe().members[0].model_copy(update={"name": "b", "bands": 8}),
            )
        }
    )
    text = both.model_dump_json()
    torch.manual_seed(0)
    for name, bands in (("a", 3), ("b", 8)):
        network = build_network("tiny", bands, ROAD_MAPS, (16, 16, 16, 16))
        save_weights(
            tmp_path / f"weights/{name}.last.safetensors",
            network,
            {"recipe": text, "member": name, "stage": "1", "epoch": "1"},
        )
    used: list[tuple[int, list[int]]] = []
    prepare = MapPlan.prepare

    def noted(plan: MapPlan, index: int, members: Any) -> Any:
        image = prepare(plan, index, members)
        networks = [member.network.in_channels for member in image.members]
        used.append((image.pixels.shape[2], networks))
        return image

    monkeypatch.setattr(MapPlan, "prepare", noted)
    picture = town(100)
    rgb = write(tmp_path / "rgb.tif", picture)
    eight = write(tmp_path / "eight.tif", np.concatenate([picture, picture, picture[:2]]))
    far = write(tmp_path / "far.tif", picture, transform=PLACE @ Affine.translation(100, 0))
    output = tmp_path / "out.geojson"

    def mapped(*sources: Path) -> list[str]:
        """Return the warnings about networks; what untrained networks find does not matter."""
        used.clear()
        done = run(tmp_path / "weights", output, *sources)
        assert not done.faults
        return [text for text in done.warnings if "left out" in text]

    assert not mapped(eight) and used == [(8, [3, 8])]
    (warning,) = mapped(rgb)
    assert "1 of 2 networks need 8 bands and were left out for map" in warning
    assert used == [(3, [3])]
    # All of a map has the same networks.
    assert len(mapped(eight, far)) == 1 and used == [(3, [3])] * 2


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("red_is_road")
def test_a_source_that_becomes_unreadable_is_left_out_and_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = town()
    parts = quarters(tmp_path / "parts", picture)
    prepare = MapPlan.prepare
    calls = []

    def losing(plan: MapPlan, index: int, members: Any) -> Any:
        calls.append(index)
        if len(calls) == 2:
            parts[1].unlink()
        return prepare(plan, index, members)

    monkeypatch.setattr(MapPlan, "prepare", losing)
    # The record of sources is made at the end, so the file comes back for it.
    content = parts[1].read_bytes()
    finish_map = MapPlan.result_decoder

    def found_again(plan: MapPlan, tile: Any) -> Any:
        if len(calls) == len(plan.tiles):
            parts[1].write_bytes(content)
        return finish_map(plan, tile)

    monkeypatch.setattr(MapPlan, "result_decoder", found_again)
    done = run(weights, tmp_path / "out.geojson", tmp_path / "parts")
    assert str(parts[1]) in done.faults
    assert done.images["map"] > 5
    assert {name for name in done.faults if not name.startswith("block map:")} == {str(parts[1])}


@pytest.mark.usefixtures("red_is_road")
def test_unreadable_sources_are_named_and_the_others_mapped(weights: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.tif", town())
    wide = write(tmp_path / "wide.tif", town().astype(np.float64))
    two = write(tmp_path / "two.tif", town()[:2])
    broken = tmp_path / "broken.tif"
    broken.write_bytes(good.read_bytes()[:3000])
    done = run(weights, tmp_path / "out.geojson", good, wide, two, broken)
    assert done.images["map"] > 10
    assert done.faults.keys() == {str(wide), str(two), str(broken)}
    assert "float64" in done.faults[str(wide)] and "2 bands" in done.faults[str(two)]
    with pytest.raises(SatmapError) as caught:
        run(weights, tmp_path / "none.geojson", wide, two, broken, stretch=None)
    for name in (wide, two, broken):
        assert f"{name}: " in str(caught.value)


@pytest.mark.usefixtures("red_is_road")
def test_the_exit_status_says_whether_anything_was_mapped(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene = write(tmp_path / "a.tif", town(120))

    def status(*options: str) -> tuple[int, str]:
        arguments = ["map", str(scene), str(tmp_path / "out.geojson"), "--weights", str(weights),
                     "--device", "cpu", "--workers", "0", *options]  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err

    assert status() == (0, "")
    code, error = status("--source-crs", "EPSG:0")
    assert code == 2 and "'EPSG:0' is not a usable reference system" in error
    code, error = status("--bands", "1,2,9")
    assert code == 1 and "bands 1, 2, 9 do not fit" in error

    def fail(*_: Any) -> None:
        raise SatmapError("the disk is gone")

    monkeypatch.setattr(MapPlan, "prepare", fail)
    code, error = status()
    assert code == 1 and "block map:0-0-0: the disk is gone" in error
    assert "1 rasters or blocks were not or only partly mapped:" in error
    assert error.endswith("run the same command again. It maps everything anew.\n")


@pytest.mark.usefixtures("red_is_road")
def test_outputs_that_cannot_be_written(weights: Path, tmp_path: Path) -> None:
    scene = write(tmp_path / "a.tif", town())
    with pytest.raises(CannotWriteError, match=r"cannot write .*Choose another place"):
        run(weights, scene / "out.geojson", scene)
    with pytest.raises(CannotWriteError, match="not overwritten"):
        run(weights, scene, scene)
    output = tmp_path / "out.geojson"
    for size in (200, 4000):
        with full_disk(size), pytest.raises(CannotWriteError, match=r"space|another place"):
            run(weights, output, scene)
        assert not output.exists()
    run(weights, output, scene)
    run(weights, tmp_path / "again.geojson", scene)
    assert output.read_bytes() == (tmp_path / "again.geojson").read_bytes()


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of four blocks of 128 pixels."""
    coarse = np.random.default_rng(0).integers(1, 255, (30, 30, 3)).astype(np.uint8)
    pixels = cv2.resize(coarse, (250, 230)).transpose(2, 0, 1)
    return write(tmp_path_factory.mktemp("scene") / "a.tif", np.maximum(pixels, 1))


@pytest.fixture(scope="module")
def expected(weights: Path, scene: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("whole") / "out.geojson"
    done = run(weights, output, scene, stretch=None, block_px=128)
    assert done.images["map"] > 3
    return output.read_bytes()


def start(weights: Path, place: Path, scene: Path, *options: str) -> list[ForkServerProcess]:
    """Start two processes of `satmap map`; their output goes to ``place``."""
    arguments = ["map", str(scene), str(place / "out.geojson"), "--weights", str(weights),
                 "--device", "cpu", *options]  # fmt: skip
    return start_ranks(arguments, place, "blocks")


def test_workers_and_processes_do_not_change_the_bytes(
    weights: Path, scene: Path, expected: bytes, tmp_path: Path
) -> None:
    run(weights, tmp_path / "workers.geojson", scene, stretch=None, block_px=128, workers=2)
    assert (tmp_path / "workers.geojson").read_bytes() == expected
    assert finish(start(weights, tmp_path, scene, "--workers", "1")) == [0, 0]
    assert (tmp_path / "out.geojson").read_bytes() == expected


def test_a_killed_map_resumes(
    weights: Path, scene: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = start(weights, tmp_path, scene, "--workers", "0")

    def begun() -> bool:
        return len([*tmp_path.glob(".out.geojson.maps/[!.]*")]) >= 2

    assert wait_until(begun, partial(all_alive, processes))
    kill_one(processes, random.Random(0), tmp_path)
    if (tmp_path / "out.geojson").exists():
        pytest.skip("the map was finished before the kill")
    prepared = []
    prepare = MapPlan.prepare

    def counted(plan: MapPlan, index: int, members: Any) -> Any:
        prepared.append(index)
        return prepare(plan, index, members)

    monkeypatch.setattr(MapPlan, "prepare", counted)
    run(weights, tmp_path / "out.geojson", scene, stretch=None, block_px=128)
    assert len(prepared) < 4
    assert (tmp_path / "out.geojson").read_bytes() == expected
