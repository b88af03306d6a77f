import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch import Tensor, nn

from default_tasks import load_ensemble, road_task
from drawn_roads import draw
from repository import ROOT
from satmap.data.folds import assign_folds
from satmap.data.layouts.spacenet_roads import road_image_id, scan_roads
from satmap.errors import CannotWriteError, SatmapError
from satmap.networks.ensemble import (
    SYMMETRIES,
    EnsembleMember,
    predict_maps,
    predict_strips,
)
from satmap.networks.unet import UNet, build_network
from satmap.networks.windows import blend, spans
from satmap.prediction import share
from satmap.prediction.journal import Journal
from satmap.prediction.map import MapRequest, map_sources
from satmap.prediction.plan import held_out_images
from satmap.prediction.run import predict
from satmap.prediction.vectorize import vectorize_directory
from satmap.provenance.manifest import SUFFIX
from satmap.rasters.gaps import mirror_into_gaps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import (
    Inference,
    Recipe,
    StretchSettings,
    Submission,
    load_recipe,
    parse_recipe,
)
from satmap.submissions.roads_csv import check_roads_csv, read_roads_csv
from satmap.tasks.base import PendingResult, PreparedImage, task_of
from satmap.tasks.roads import tiles
from satmap.tasks.roads.settings import ROAD, ROAD_MAPS, RoadSettings, RoadTaskSettings
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.georeference import Georeference
from satmap.vectors.road_graph import ImageRoads, RoadEdge, RoadGraph
from satmap.weights.members import choose, find_weights, recipe_of
from satmap.weights.network_files import load_weights, save_weights
from synthetic_images import write_image
from tiny_trainings import road_recipe

ROADS = road_task()
CPU = torch.device("cpu")


def test_the_views_are_the_eight_symmetries_and_undo_themselves() -> None:
    x = torch.arange(2 * 5 * 7).view(2, 5, 7)
    seen = {tuple(view.apply(x).flatten().tolist()) for view in SYMMETRIES}
    assert len(SYMMETRIES) == len(seen) == 8
    for view in SYMMETRIES:
        assert torch.equal(view.undo(view.apply(x)), x)


@pytest.mark.parametrize(
    ("height", "width", "size", "overlap"),
    [
        (16, 16, 64, 8),
        (64, 65, 64, 8),
        (200, 130, 64, 8),
        (1300, 3000, 1344, 128),
        (97, 500, 96, 0),
    ],
)
def test_the_weights_of_windows_sum_to_one(
    height: int, width: int, size: int, overlap: int
) -> None:
    rows, columns = spans(height, size, overlap), spans(width, size, overlap)
    for length, its in ((height, rows), (width, columns)):
        for span in its:
            assert 0 <= span.read.start <= span.kept.start <= span.kept.stop <= span.read.stop
            assert span.read.stop - span.read.start == min(size, length) <= length
            # Pixels that are not blended lie away from the window's border.
            whole = span.kept.start + span.fade_in, span.kept.stop - span.fade_out
            assert whole[0] <= whole[1]
            assert whole[0] - span.read.start >= overlap or whole[0] == 0
            assert span.read.stop - whole[1] >= overlap or whole[1] == length
    seen: list[tuple[slice, slice]] = []

    def certain(rows: slice, columns: slice) -> Tensor:
        seen.append((rows, columns))
        return torch.full((2, rows.stop - rows.start, columns.stop - columns.start), 255.0)

    top = 0
    for first, values in blend(rows, columns, certain):
        assert first == top
        assert values.shape[::2] == (2, width)
        assert values.dtype == torch.uint8
        assert (values == 255).all()
        top += values.shape[1]
    assert top == height
    assert len(seen) == len(rows) * len(columns)


def test_windows_are_rounded_to_the_nearest_even_number() -> None:
    values = torch.arange(0, 255.01, 0.125).repeat(2, 40, 1)
    rows, columns = spans(40, 64, 2), spans(values.shape[2], 512, 8)
    strips = [strip for _, strip in blend(rows, columns, lambda r, c: values[:, r, c].clone())]
    inside = columns[0].finished
    expected = values[..., inside].round().to(torch.uint8)
    assert (torch.cat(strips, dim=1)[..., inside] == expected).all()


class BareEncoder:
    """Minimal encoder for prediction."""

    in_channels = 3

    @staticmethod
    def normalize(pixels: Tensor) -> Tensor:
        return pixels.float() / 255


class Mean(nn.Module):
    """Network whose output is the window's mean, so that windows disagree."""

    map_names = ("road",)

    encoder = BareEncoder

    def forward(self, x: Tensor) -> Tensor:
        means = (8 * x.mean(dim=(1, 2, 3)) - 4).view(-1, 1, 1, 1)
        return means.expand(-1, 1, *x.shape[2:]).contiguous()


def test_windows_have_no_seams_and_their_order_does_not_matter() -> None:
    # Brightness increases to the right and to the bottom.
    slope = np.add.outer(np.arange(300), np.arange(500)) * (254 / 800) + 1
    image = np.repeat(slope[..., None], 3, axis=2).astype(np.uint8)
    settings = Inference(tta=1, window=128, overlap=32)
    members = [EnsembleMember(Mean())]
    maps = predict_maps(members, image, settings, CPU)[0].astype(int)
    steps = [np.abs(np.diff(maps, axis=axis)).max() for axis in (0, 1)]
    hard = Inference(tta=1, window=128, overlap=0)
    cut = predict_maps(members, image, hard, CPU)[0].astype(int)
    # Without blending, neighbouring windows differ by dozens; with it, no pixel stands out.
    assert min(np.abs(np.diff(cut, axis=axis)).max() for axis in (0, 1)) > 20
    assert max(steps) <= 2
    # The order does not matter: in the mirrored image the windows come in reverse order.
    for axis in (0, 1):
        turned = predict_maps(members, np.flip(image, axis).copy(), settings, CPU)[0]
        assert np.abs(np.flip(turned, axis).astype(int) - maps).max() <= 1


def test_networks_see_mirrored_pixels_instead_of_gaps() -> None:
    torch.manual_seed(0)
    members = [EnsembleMember(build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16)).eval())]
    image = np.random.default_rng(0).integers(1, 256, (96, 128, 3), np.uint8)
    image[:, :20] = 0
    settings = Inference(tta=1, gaps="mirror")
    maps = predict_maps(members, image, settings, CPU)
    assert np.array_equal(
        maps[:, :, 20:],
        predict_maps(members, mirror_into_gaps(image), settings, CPU)[:, :, 20:],
    )
    assert not maps[:, :, :20].any()
    black = predict_maps(members, image, Inference(tta=1), CPU)
    assert not np.array_equal(maps, black)


def test_a_single_window_equals_the_whole_image() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16)).eval()
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    whole = predict_maps([EnsembleMember(network)], image, Inference(tta=1), CPU)
    exact = Inference(tta=1, window=128, overlap=16)
    assert np.array_equal(predict_maps([EnsembleMember(network)], image, exact, CPU), whole)
    strips = list(
        predict_strips([EnsembleMember(network)], image, Inference(window=64, overlap=16), CPU)
    )
    assert [strip.top for strip in strips] == [0, 32]
    assert sum(strip.get().shape[1] for strip in strips) == 96


class FirstBand(nn.Module):
    """Perfect network: logit 4 where the first band is bright, -4 elsewhere."""

    map_names = ("road",)

    encoder = BareEncoder

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :1] > 0.5).float() * 8 - 4


def test_the_category_picks_the_head() -> None:
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(1, 256, (64, 64, 3), np.uint8)
    network = build_network("resnet18", 3, ["building"], categories=["near", "far"]).eval()
    nn.init.constant_(network.head.get_parameter("bias"), 0.0)
    with torch.no_grad():
        network.head.get_parameter("bias")[1] = 30.0
    settings = Inference(tta=8)
    near, far = (
        predict_maps([EnsembleMember(network)], image, settings, CPU, category)
        for category in ("near", "far")
    )
    assert far.min() == 255
    assert near.max() < 255
    plain = build_network("resnet18", 3, ["building"]).eval()
    assert np.array_equal(
        predict_maps([EnsembleMember(plain)], image, settings, CPU, "far"),
        predict_maps([EnsembleMember(plain)], image, settings, CPU),
    )
    with pytest.raises(SatmapError, match="heads for near, far"):
        predict_maps([EnsembleMember(network)], image, settings, CPU, "further")


@pytest.mark.parametrize("shape", [(16, 16), (1, 40), (97, 130), (300, 64)])
@pytest.mark.parametrize("tta", [1, 4, 8])
def test_maps_align_with_the_image(shape: tuple[int, int], tta: int) -> None:
    image = np.random.default_rng(0).integers(1, 255, (*shape, 3)).astype(np.uint8)
    image[0, :3] = 0  # no data
    settings = Inference(tta=tta, batch=3, window=96, overlap=16)
    maps = predict_maps([EnsembleMember(FirstBand())], image, settings, CPU)
    assert maps.shape == (1, *shape)
    bright = round(255 / (1 + np.exp(-4)))
    dark = np.where(image.any(axis=2), 255 - bright, 0)
    assert np.array_equal(maps[0], np.where(image[..., 0] > 127, bright, dark))


def test_the_ensemble_is_the_mean_of_its_networks() -> None:
    torch.manual_seed(0)
    networks = [build_network("resnet18", c, ROAD_MAPS, (16, 16, 16, 16)).eval() for c in (3, 8)]
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 8)).astype(np.uint8)
    settings = Inference(tta=8)
    alone = [predict_maps([EnsembleMember(n)], image, settings, CPU).astype(int) for n in networks]
    both = predict_maps([EnsembleMember(n) for n in networks], image, settings, CPU).astype(int)
    assert np.abs(both - (alone[0] + alone[1]) / 2).max() <= 1.01
    uneven = [EnsembleMember(networks[0], votes=3), EnsembleMember(networks[1])]
    weighted = predict_maps(uneven, image, settings, CPU).astype(int)
    assert np.abs(weighted - (3 * alone[0] + alone[1]) / 4).max() <= 1.01
    assert np.abs(alone[0] - alone[1]).max() > 4


def test_a_rotated_image_gives_rotated_maps() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16)).eval()
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    maps = predict_maps([EnsembleMember(network)], image, Inference(tta=8), CPU).astype(int)
    turned = predict_maps([EnsembleMember(network)], np.rot90(image).copy(), Inference(tta=8), CPU)
    assert np.abs(np.rot90(maps, axes=(1, 2)) - turned).max() <= 1


def make_weights(
    directory: Path, name: str, recipe: Recipe | None = None, bands: int = 3, **metadata: str
) -> Path:
    torch.manual_seed(len(name))
    network = build_network("resnet18", bands, ROAD_MAPS, (16, 16, 16, 16))
    path = directory / f"{name}.safetensors"
    text = (recipe or load_recipe("demo")).model_dump_json()
    save_weights(path, network, {"recipe": text, "member": name.split(".")[0], **metadata})
    return path


def test_choosing_networks(tmp_path: Path) -> None:
    recipe = load_recipe("sn5-roads-rgb")
    make_weights(tmp_path, "a.best_apls", recipe, stage="1", epoch="3")
    for name in ("a.best_dice", "a.last", "b.last"):
        make_weights(tmp_path, name, recipe, stage="1", epoch="9")
    # A file left by a killed process is not a weight file.
    (tmp_path / ".a.last-abcd1234.safetensors").write_bytes(b"half a file")
    files = find_weights(tmp_path)
    assert recipe_of(files) == recipe
    every = choose(files, recipe)
    # a.best_dice and a.last are the same network: it computes once and votes twice.
    assert [(file.path.name.removesuffix(".safetensors"), file.votes) for file in every] == [
        ("a.best_apls", 1),
        ("a.best_dice", 2),
        ("b.last", 1),
    ]
    only_last = recipe.inference.model_copy(update={"checkpoints": ("last",)})
    assert len(choose(files, recipe.model_copy(update={"inference": only_last}))) == 2


def test_weights_of_another_recipe_are_left_out(tmp_path: Path) -> None:
    demo = load_recipe("demo")
    make_weights(tmp_path, "a.last", demo, stage="1", epoch="1")
    changed = demo.model_copy(update={"stretch": StretchSettings(low=1, high=99)})
    make_weights(tmp_path, "b.last", changed, stage="1", epoch="1")
    files = find_weights(tmp_path)
    assert [file.path.name for file in choose(files, demo)] == ["a.last.safetensors"]
    assert [file.path.name for file in choose(files, changed)] == ["b.last.safetensors"]
    with pytest.raises(SatmapError, match=r"2 different recipes: a\.last"):
        recipe_of(files)
    with pytest.raises(SatmapError, match=r"no weights of checkpoint .* recipe small-roads"):
        choose(files, load_recipe("small-roads"))
    make_weights(tmp_path, "c.last").write_bytes(
        make_weights(tmp_path, "d.last").read_bytes()[:1000]
    )
    with pytest.raises(SatmapError, match=r"c\.last\.safetensors is not a whole"):
        find_weights(tmp_path)
    with pytest.raises(SatmapError, match=r"no weights .* in"):
        find_weights(tmp_path / "absent")


def test_maps_are_averaged_by_name(tmp_path: Path) -> None:
    """Two networks with the same maps in different orders are averaged by map name."""
    recipe = load_recipe("demo")
    first = make_weights(tmp_path, "a.last", stage="1", epoch="1")
    network, metadata = load_weights(first)
    network.order_maps(ROAD_MAPS[::-1])
    metadata = {k: v for k, v in metadata.items() if k in ("recipe", "member", "stage")}
    save_weights(tmp_path / "b.last.safetensors", network, {**metadata, "epoch": "2"})
    image = np.random.default_rng(0).integers(1, 255, (32, 32, 3)).astype(np.uint8)
    alone, turned = find_weights(tmp_path)
    for files in ([turned], [alone, turned], [turned, alone]):
        members = load_ensemble(choose(files, recipe), CPU)
        assert {member.network.map_names for member in members} == {ROAD_MAPS}
        expected = predict_maps(load_ensemble([alone], CPU), image, Inference(tta=1), CPU)
        found = predict_maps(members, image, Inference(tta=1), CPU)
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert expected.std() > 0


def test_networks_that_cannot_do_roads_are_refused_before_any_work(tmp_path: Path) -> None:
    text = load_recipe("demo").model_dump_json()
    odd = tmp_path / "odd.last.safetensors"
    # There is no image either, but the networks are reported first.
    arguments = ([tmp_path / "images"], tmp_path / "out.csv", tmp_path, CPU)
    few = build_network("resnet18", 3, ["road", "junction"], (8,) * 4)
    save_weights(odd, few, {"recipe": text})
    with pytest.raises(SatmapError, match=r"maps road, junction, but roads need speed0"):
        predict(*arguments)
    # Other tasks may average them, but only with networks of the same maps.
    make_weights(tmp_path, "b.last")
    with pytest.raises(SatmapError, match=r"b\.last\S+ and \S+odd\.last\S+ cannot be averaged"):
        load_ensemble(find_weights(tmp_path), CPU)
    heads = build_network("resnet18", 3, ROAD_MAPS, (8,) * 4, categories=["nadir", "off"])
    save_weights(odd, heads, {"recipe": text})
    with pytest.raises(SatmapError, match=r"odd\.last\S+ has a head for each of nadir, off, but"):
        predict(*arguments)
    with pytest.raises(SatmapError, match=r"the second \S+.* for each of nadir, off"):
        load_ensemble(find_weights(tmp_path), CPU)
    assert not (tmp_path / "out.csv").exists()


def test_images_with_too_few_bands(city: Path, tmp_path: Path) -> None:
    make_weights(tmp_path / "weights", "b.last", bands=12)
    with pytest.raises(SatmapError, match=r"need 12 bands, but .* has only 8\. Use a recipe"):
        predict([city / "test"], tmp_path / "out.csv", tmp_path / "weights", CPU)
    (tmp_path / "weights/b.last.safetensors").unlink()
    for bands in (1, 4):
        make_weights(tmp_path / "weights", f"b{bands}.last", bands=bands)
    assert not predict([city / "test"], tmp_path / "out.csv", tmp_path / "weights", CPU).faults


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '"chip1"', "[1]"])
def test_invalid_held_out_metadata(text: str, tmp_path: Path) -> None:
    make_weights(tmp_path, "a.last", held_out=text)
    (file,) = find_weights(tmp_path)
    with pytest.raises(SatmapError, match="held_out must be a list of names"):
        _ = file.held_out


def test_eight_band_networks_are_skipped_on_three_band_images(city: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(city / "test", images)
    for path in sorted(images.glob("**/PS-MS/*.tif")):
        if "chip6" in path.name:
            path.unlink()
        else:
            # Truncated pixels after a valid header: the RGB image is used instead.
            path.write_bytes(path.read_bytes()[:-20_000])
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    make_weights(tmp_path / "weights", "b.last", bands=8, stage="1", epoch="1")
    done = predict([images], tmp_path / "out.csv", tmp_path / "weights", CPU)
    assert not done.faults
    assert any("1 of 2 networks need PS-MS" in warning for warning in done.warnings)
    assert any("PS-MS_chip7.tif" in warning for warning in done.warnings)
    shutil.rmtree(tmp_path / "weights")
    make_weights(tmp_path / "weights", "b.last", bands=8, stage="1", epoch="1")
    done = predict([images], tmp_path / "out.csv", tmp_path / "weights", CPU)
    assert "need 8 bands" in done.faults["AOI_99_Made_chip6"]
    shutil.rmtree(images / "AOI_99_Made_Test_Public/PS-MS")
    with pytest.raises(SatmapError, match="need 8 bands"):
        predict([images], tmp_path / "out.csv", tmp_path / "weights", CPU)


def test_an_unexpected_error_affects_one_image(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = vectorize_roads

    def broken(maps: ProbabilityMaps, settings: RoadSettings) -> RoadGraph:
        monkeypatch.setattr(tiles, "vectorize_roads", original)
        raise RuntimeError("a bug")

    monkeypatch.setattr(tiles, "vectorize_roads", broken)
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    output = tmp_path / "out.csv"
    done = predict([city / "test"], output, tmp_path / "weights", CPU, alone(tmp_path))
    assert done.faults == {"AOI_99_Made_chip6": "RuntimeError: a bug"}
    assert set(read_roads_csv(tmp_path / "out.csv")) == {"AOI_99_Made_chip6", "AOI_99_Made_chip7"}


def test_one_bad_image_does_not_affect_others(tmp_path: Path) -> None:
    images = tmp_path / "images"
    stem = "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip"
    write_image(images / f"{stem}1.tif")
    cut = write_image(images / f"{stem}2.tif")
    cut.write_bytes(cut.read_bytes()[:5000])
    (images / f"{stem}3.tif").write_bytes(b"nothing")
    write_image(images / f"{stem}4.tif", bands=5)
    write_image(images / f"{stem}5.tif", georeferenced=False)
    write_image(images / f"{stem}6.tif", size=(16, 16))
    write_image(images / f"{stem}10.tif", pixels=np.zeros((3, 64, 64), np.uint8))
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    output = tmp_path / "out.csv"
    done = predict([images], output, tmp_path / "weights", CPU)
    assert sorted(done.faults) == [f"AOI_7_Moscow_chip{n}" for n in (2, 3, 4)]
    assert any("0.3 m per pixel" in warning for warning in done.warnings)
    written = read_roads_csv(output)
    assert list(written) == [f"AOI_7_Moscow_chip{n}" for n in (1, 2, 3, 4, 5, 6, 10)]
    for number in (2, 3, 4, 10):
        assert written[f"AOI_7_Moscow_chip{number}"] == []
    assert check_roads_csv(output, list(written)) == []
    assert not list(tmp_path.glob(".out.csv*"))


def test_bytes_repeat_and_the_prefix_is_optional(city: Path, tmp_path: Path) -> None:
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    recipe = tmp_path / "prefix.yaml"
    text = (ROOT / "code/satmap/recipes/demo.yaml").read_text()
    recipe.write_text(text + "\nsubmission: {keep_prefix: true}\n")
    outputs = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    predict([city / "test"], outputs[0], tmp_path / "weights", CPU)
    predict([city / "test"], outputs[1], tmp_path / "weights", CPU)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    predict([city / "test"], outputs[2], tmp_path / "weights", CPU, str(recipe))
    assert all(name.startswith("SN5_roads_test_public_AOI_") for name in read_roads_csv(outputs[2]))


def some_roads(image_id: str, *lengths: float) -> ImageRoads:
    """Return roads with numbers that have no short decimal representation."""
    line = np.array([[0.1, 0.0], [1 / 3, np.pi]])
    edges = [RoadEdge((0, 1), line, length, 1 / 7, 2 / 3) for length in lengths]
    place = Georeference("EPSG:4326", Affine(2.7e-6, 0, 1 / 3, 0, -2.7e-6, 55.7), (0.1 + 0.2, 0.3))
    return ImageRoads(image_id, RoadGraph(line, tuple(edges), place) if edges else RoadGraph())


def same_roads(a: ImageRoads, b: ImageRoads) -> bool:
    return (
        (a.image_id, a.graph.georeference) == (b.image_id, b.graph.georeference)
        and np.array_equal(a.graph.nodes, b.graph.nodes)
        and len(a.graph.edges) == len(b.graph.edges)
        and all(
            np.array_equal(one.line, other.line)
            and replace(one, line=None) == replace(other, line=None)  # type: ignore[arg-type]
            for one, other in zip(a.graph.edges, b.graph.edges, strict=True)
        )
    )


def test_the_journal_resumes(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    written = {"a": some_roads("AOI_a", 0.1 + 0.2, 4.5), "b": some_roads("AOI_b")}
    with Journal(output, "settings", ROADS) as journal:
        for key, roads in written.items():
            journal.add(key, roads)
    with journal.path.open("ab") as file:
        file.write(b'["c", [[[[0, 0')  # cut off by a crash
    with Journal(output, "settings", ROADS) as journal:
        assert list(journal.finished) == ["a", "b"]
        assert all(same_roads(journal.found(key), roads) for key, roads in written.items())
        journal.add("c", some_roads("AOI_c", 1.0))
    with Journal(output, "settings", ROADS) as journal:
        assert list(journal.finished) == ["a", "b", "c"]
    with Journal(output, "other settings", ROADS) as journal:
        assert not journal.finished
        journal.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "record", ["3", "[]", '[["AOI_a", null, [], [[]]]]', '["AOI_a", 1, [], []]']
)
def test_records_of_another_format_are_ignored(tmp_path: Path, record: str) -> None:
    with Journal(tmp_path / "out.csv", "settings", ROADS) as journal:
        pass
    with journal.path.open("a") as file:
        file.write(f'["a", {record}]\n')
    with Journal(tmp_path / "out.csv", "settings", ROADS) as journal:
        assert not journal.finished


def test_two_runs_cannot_write_the_same_file(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "out.csv", "settings", ROADS),
        pytest.raises(CannotWriteError, match="is being written by another run"),
    ):
        Journal(tmp_path / "out.csv", "settings", ROADS)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        # Errors that would affect every image leave none of them empty.
        (torch.OutOfMemoryError("out of memory"), SatmapError),
    ],
)
def test_a_stopped_prediction_resumes(
    city: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    raised: type[BaseException],
) -> None:
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    predict([city / "test"], whole, tmp_path / "weights", CPU)
    predicted: list[Path] = []
    original = share.launch_networks

    def interrupted(picture: PreparedImage, *rest: Any) -> PendingResult:
        if len(predicted) == 1:
            raise fault
        predicted.append(picture.info.path)
        return original(picture, *rest)

    monkeypatch.setattr(share, "launch_networks", interrupted)
    with pytest.raises(raised):
        predict([city / "test"], resumed, tmp_path / "weights", CPU)
    assert not resumed.exists()
    again: list[Path] = []

    def counted(picture: PreparedImage, *rest: Any) -> PendingResult:
        again.append(picture.info.path)
        return original(picture, *rest)

    monkeypatch.setattr(share, "launch_networks", counted)
    predict([city / "test"], resumed, tmp_path / "weights", CPU)
    assert again
    assert predicted[0] not in again
    assert resumed.read_bytes() == whole.read_bytes()


@dataclass(frozen=True)
class Known:
    """Finished prediction."""

    maps: ProbabilityMaps

    def get(self) -> ProbabilityMaps:
        return self.maps


def test_chips_side_by_side_help_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One street over two chips, hidden at the border: each chip alone ends before it.
    street = draw([(0, 150), (800, 150)], shape=(300, 800))
    street[:, 380:420] = 0
    parts = {"chip0": street[:, :400], "chip1": street[:, 400:]}
    size = 2.7e-6
    for number in (0, 1):
        write_image(
            tmp_path / "test" / f"SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip{number}.tif",
            size=(300, 400),
            transform=Affine(size, 0, 37.6 + 400 * number * size, 0, -size, 55.7),
        )

    def maps_of(picture: PreparedImage, *_: object) -> Known:
        values = np.zeros((len(ROAD_MAPS), 300, 400), np.uint8)
        values[ROAD_MAPS.index(ROAD)] = parts[picture.info.path.stem.split("_")[-1]]
        return Known(ProbabilityMaps(ROAD_MAPS, values, picture.metres_per_pixel))

    monkeypatch.setattr(share, "launch_networks", maps_of)
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    output = tmp_path / "out" / "out.csv"
    predict([tmp_path / "test"], output, tmp_path / "weights", CPU)
    left, right = read_roads_csv(output).values()
    assert max(row.line[:, 0].max() for row in left) == 400
    assert min(row.line[:, 0].min() for row in right) == 0
    assert check_roads_csv(output) == []
    left_over = {path.name for path in output.parent.iterdir()}
    assert left_over == {"out.csv", "out.csv.manifest.json"}

    predict([tmp_path / "test"], output, tmp_path / "weights", CPU, alone(tmp_path))
    assert max(row.line[:, 0].max() for row in read_roads_csv(output)["AOI_7_Moscow_chip0"]) < 400


# --- maps and exports -----------------------------------------------------------------------------


def alone(directory: Path, *, neighbours: bool = False) -> str:
    """Write a recipe that vectorises chips without their neighbours, as for masks on disk."""
    recipe = load_recipe("demo")
    settings = {
        "inference": recipe.inference.model_copy(update={"tta": 1}),
        "task": recipe.task.model_copy(update={"neighbours": neighbours}),
    }
    path = directory / "alone.yaml"
    path.write_text(recipe.model_copy(update=settings).model_dump_json())
    return str(path)


def street_maps(picture: PreparedImage, *_: object) -> Known:
    """Simulate an ensemble that predicts a street and its speed in every image."""
    info = picture.info
    road = draw([(0, 40), (info.width, 40)], shape=(info.height, info.width))
    values = np.zeros((len(ROAD_MAPS), *road.shape), np.uint8)
    values[[ROAD_MAPS.index(name) for name in (ROAD, "speed3", "speed4")]] = road
    return Known(ProbabilityMaps(ROAD_MAPS, values, picture.metres_per_pixel))


UTM: dict[str, Any] = {
    "crs": "EPSG:32637",
    "transform": Affine(0.3, 0, 411111.15, 0, -0.3, 6177777.7),
}
TURNED: dict[str, Any] = {
    "crs": "EPSG:32637",
    "transform": Affine(0.3, 0.1, 411111.15, 0.1, -0.3, 6177777.7),
}


def street_images(directory: Path) -> Path:
    stem = "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip"
    write_image(directory / f"{stem}1.tif")
    write_image(directory / f"{stem}2.tif", georeferenced=False)
    write_image(directory / f"{stem}3.tif", georeferenced=False, size=(1300, 700), **UTM)
    write_image(directory / f"{stem}10.tif", georeferenced=False, **TURNED)
    return directory


@pytest.mark.parametrize("prefix", [False, True])
def test_maps_vectorise_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: bool
) -> None:
    monkeypatch.setattr(share, "launch_networks", street_maps)
    images, maps = street_images(tmp_path / "images"), tmp_path / "maps"
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    recipe = load_recipe(alone(tmp_path))
    recipe = recipe.model_copy(update={"submission": Submission(keep_prefix=prefix)})
    (tmp_path / "alone.yaml").write_text(recipe.model_dump_json())
    outputs = tmp_path / "out.csv", tmp_path / "again.csv"
    predict([images], outputs[0], tmp_path / "weights", CPU, str(tmp_path / "alone.yaml"),
            maps=maps)  # fmt: skip
    done = vectorize_directory(maps, outputs[1], ROADS)
    assert done.faults == {}
    assert sum(done.images.values()) == 4
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    stem = f"{'SN5_roads_test_public_' if prefix else ''}AOI_7_Moscow_chip"
    assert sorted(path.name for path in maps.iterdir()) == [
        f"{stem}{number}.tif" for number in (1, 10, 2, 3)
    ]
    with rasterio.open(maps / f"{stem}3.tif") as source:
        assert source.descriptions == ROAD_MAPS
        assert source.dtypes == ("uint8",) * 12
        assert source.compression.name == "deflate"
        assert source.crs == UTM["crs"]
        assert source.transform == UTM["transform"]
        assert source.shape == (1300, 700)


def test_maps_of_a_real_network_vectorise_to_the_same(city: Path, tmp_path: Path) -> None:
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    outputs = tmp_path / "out.csv", tmp_path / "again.csv"
    predict([city / "test"], outputs[0], tmp_path / "weights", CPU, alone(tmp_path),
            maps=tmp_path / "maps")  # fmt: skip
    vectorize_directory(tmp_path / "maps", outputs[1], ROADS, workers=0)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_faulty_images_have_no_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "launch_networks", street_maps)
    images, maps = street_images(tmp_path / "images"), tmp_path / "maps"
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    for _ in range(2):
        done = predict([images], tmp_path / "out.csv", tmp_path / "weights", CPU,
                       alone(tmp_path), maps=maps)  # fmt: skip
        assert len(list(maps.iterdir())) == 4 - len(done.faults)
        (images / "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip3.tif").write_bytes(b"nothing")
    assert list(done.faults) == ["AOI_7_Moscow_chip3"]


@pytest.mark.parametrize("neighbours", [False, True])
def test_a_stopped_run_resumes_with_maps_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neighbours: bool
) -> None:
    images = street_images(tmp_path / "images")
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    recipe = alone(tmp_path, neighbours=neighbours)
    seen: list[str] = []
    stop_at = 3

    def counted(picture: PreparedImage, *_: object) -> Known:
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        seen.append(road_image_id(picture.info.path.stem) or "")
        return street_maps(picture)

    monkeypatch.setattr(share, "launch_networks", counted)

    def run(name: str) -> dict[str, bytes]:
        place = tmp_path / name
        exports = [place / f"out{suffix}" for suffix in RoadTaskSettings.export_suffixes]
        done = predict([images], place / "out.csv", tmp_path / "weights", CPU, recipe,
                       maps=place / "maps", exports=exports)  # fmt: skip
        assert done.faults == {}
        lacking = [w for w in done.warnings if "lacks 1 images. AOI_7_Moscow_chip2 has no" in w]
        assert len(lacking) == len(exports)
        files = (path for path in sorted(place.glob("**/*.*")) if not path.name.endswith(SUFFIX))
        return {path.name: path.read_bytes() for path in files}

    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    assert not (tmp_path / "resumed" / "out.csv").exists()
    (tmp_path / "resumed" / "maps" / "AOI_7_Moscow_chip1.tif").unlink()
    before, stop_at = list(seen), 1000
    seen.clear()
    resumed = run("resumed")
    # The last image, and the one whose maps were missing.
    assert sorted(seen) == sorted({"AOI_7_Moscow_chip1", "AOI_7_Moscow_chip10"})
    assert len(before) == 3
    assert len(resumed) == 4 + 1 + len(RoadTaskSettings.export_suffixes)
    assert resumed == run("whole")
    graph = nx.read_graphml(
        tmp_path / "whole" / "out.graphml", node_type=int, force_multigraph=True
    )
    assert {of for _, of in graph.nodes(data="image_id")} == {
        f"AOI_7_Moscow_chip{number}" for number in (1, 3, 10)
    }
    features = json.loads((tmp_path / "whole" / "out.geojson").read_text())["features"]
    assert {feature["properties"]["image_id"] for feature in features} == {
        f"AOI_7_Moscow_chip{number}" for number in (1, 3, 10)
    }


def test_bad_outputs_are_refused_before_the_work(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    (tmp_path / "file").write_text("")
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"exports": [tmp_path / "file" / "a.gpkg"]}, "cannot write"),
        ({"maps": tmp_path / "file"}, "cannot write"),
    )
    for options, message in refused:
        with pytest.raises(SatmapError, match=message):
            predict([tmp_path], output, tmp_path / "weights", CPU, **options)
    twice = tmp_path / "out.geojson"
    with pytest.raises(SatmapError, match="both the submission and an export"):
        predict([tmp_path], twice, tmp_path / "weights", CPU, exports=[twice])


# --- out of fold ----------------------------------------------------------------------------------


def maps_in(directory: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(directory.glob("*.tif")):
        with rasterio.open(path) as source:
            found[path.stem] = source.read().tobytes()
    return found


def predicted_maps(city: Path, place: Path, recipe: str) -> dict[str, bytes]:
    weights, maps = place / "weights", place / "maps"
    predict([city / "train"], place / "out.csv", weights, CPU, recipe, maps=maps)
    return maps_in(maps)


def test_out_of_fold_maps_use_the_networks_that_held_the_image_out(
    city: Path, tmp_path: Path
) -> None:
    images = [f"AOI_99_Made_chip{number}" for number in range(6)]
    recipe = alone(tmp_path)
    each = []
    for name, held_out in (("a.last", images[:2]), ("bc.last", images[1:4])):
        for place in (tmp_path / name, tmp_path / "both"):
            make_weights(place / "weights", name, stage="1", epoch="1",
                         held_out=json.dumps(held_out))  # fmt: skip
        each.append(predicted_maps(city, tmp_path / name, recipe))
    both = predicted_maps(city, tmp_path / "both", recipe)
    place = tmp_path / "both"
    done = predict([city / "train"], place / "out.csv", place / "weights", CPU, recipe,
                   maps=place / "honest", out_of_fold=True)  # fmt: skip
    honest = maps_in(place / "honest")
    assert set(both) == set(images)
    assert honest == {
        images[0]: each[0][images[0]],
        images[1]: both[images[1]],
        images[2]: each[1][images[2]],
        images[3]: each[1][images[3]],
    }
    assert len({each[0][images[1]], each[1][images[1]], both[images[1]]}) == 3
    # The others are neither in the submission nor reported as faults.
    assert list(read_roads_csv(place / "out.csv")) == images[:4] == list(done.images)
    assert done.faults == {}
    warning, nothing = done.warnings
    assert nothing.startswith("the networks found no roads anywhere")
    assert warning == f"2 images, such as {images[4]}, were held out by no network and left out"


def test_images_that_no_network_held_out(city: Path, tmp_path: Path) -> None:
    make_weights(
        tmp_path / "weights", "a.last", stage="1", epoch="1", held_out='["AOI_1_Else_chip1"]'
    )
    with pytest.raises(SatmapError, match=r"none of the 2 images, such as AOI_99_Made_chip6, was"):
        predict([city / "test"], tmp_path / "out.csv", tmp_path / "weights", CPU, out_of_fold=True)


def test_missing_folds_of_weights_are_assigned_as_in_training(city: Path, tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    chips = scan_roads([city / "train"]).chips
    folds = assign_folds([(chip.image_id, chip.aoi) for chip in chips], recipe.folds, recipe.seed)
    for member in recipe.members:
        make_weights(tmp_path, f"{member.name}.last")
    files = find_weights(tmp_path)
    held_out, (note,) = held_out_images(files, recipe, chips)
    assert [sorted(images) for images in held_out] == [
        sorted(image_id for image_id, fold in folds.items() if fold == member.fold)
        for member in recipe.members
    ]
    assert sum(map(len, held_out)) == 6
    assert "2 of 2 weight files, such as fold0" in note
    # A single chip is used for training and validation, so no network held it out.
    assert held_out_images(files, recipe, chips[:1])[0] == [frozenset(), frozenset()]
    # Images without labels belong to no fold.
    assert held_out_images(files, recipe, scan_roads([city / "test"]).chips)[0] == [frozenset()] * 2


def test_metadata_is_kept(tmp_path: Path) -> None:
    path = make_weights(tmp_path, "a.last", scores=json.dumps({"apls": 0.5}))
    (file,) = find_weights(tmp_path)
    assert file.path == path
    assert file.checkpoint == "last"
    assert json.loads(file.metadata["scores"]) == {"apls": 0.5}


@pytest.mark.usefixtures("tiny_encoders")
def test_images_unlike_those_of_the_training(city: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(road_recipe(), "test")
    weights = tmp_path / "weights"

    def warnings(**described: str) -> tuple[str, str]:
        """Return the warnings of predict and of map, with these metadata of the weights."""
        torch.manual_seed(0)
        network = task_of(recipe).build_network(recipe.members[0])
        assert isinstance(network, UNet)
        metadata = {"recipe": recipe.model_dump_json(), "member": recipe.members[0].name}
        save_weights(weights / "a.last.safetensors", network, metadata | described)
        report = predict([city / "test"], tmp_path / "out.csv", weights, "cpu")
        (image, *_) = (city / "test").rglob("*PS-RGB*.tif")
        request = MapRequest((), tmp_path / "out.gpkg", weights, "cpu", sources=(str(image),))
        return "\n".join(report.warnings), "\n".join(map_sources(request).warnings)

    weights.mkdir()
    predicted, mapped = warnings(gsd_m="0.13")
    assert "have pixels of another size (0.27 m) than the training (0.13 m)" in predicted
    assert "trained with 0.13 m per pixel, and some images have 0.27 m" in mapped
    for found in (predicted, mapped):
        assert "the networks found no roads anywhere. Check that the images are like" in found
    statistics = {"band_mean": "[120, 120, 250]", "band_std": "[40, 40, 40]"}
    predicted, mapped = warnings(gsd_m="0.3", **statistics)
    assert "pixels of another size" not in predicted
    assert "m per pixel" not in mapped
    assert re.search(r"unlike that of the training images \(band 3 has the mean \d+ inst", mapped)
    assert "band 1" not in mapped
