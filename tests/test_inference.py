import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from made_files import write_image
from satmap.data.cache import StretchSettings
from satmap.errors import CannotWriteError, SatmapError
from satmap.inference import prediction
from satmap.inference.ensemble import Voter, predict_planes
from satmap.inference.journal import Journal
from satmap.inference.prediction import predict
from satmap.inference.views import VIEWS
from satmap.inference.weights import choose, find_weights, recipe_of
from satmap.inference.windows import windows
from satmap.models.unet import build_network
from satmap.models.weights import save_weights
from satmap.planes import ROAD_PLANES
from satmap.recipe import Inference, Recipe, load_recipe
from satmap.roads.graph import RoadGraph
from satmap.roads.rows import to_rows
from satmap.submissions.roads_csv import RoadRow, check_roads_csv, read_roads_csv

CPU = torch.device("cpu")


def test_the_views_are_the_eight_symmetries_and_undo_themselves() -> None:
    x = torch.arange(2 * 5 * 7).view(2, 5, 7)
    seen = {tuple(view.apply(x).flatten().tolist()) for view in VIEWS}
    assert len(VIEWS) == len(seen) == 8
    for view in VIEWS:
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
def test_windows_tile_the_image(height: int, width: int, size: int, overlap: int) -> None:
    covered = np.zeros((height, width), int)
    for window in windows(height, width, size, overlap):
        covered[window.core] += 1
        for read, core, inside, length in zip(
            window.read, window.core, window.core_in_read, (height, width), strict=True
        ):
            assert 0 <= read.start <= core.start < core.stop <= read.stop <= length
            assert read.stop - read.start == min(size, length)
            assert core.start - read.start >= overlap or core.start == 0
            assert read.stop - core.stop >= overlap or core.stop == length
            assert inside.stop - inside.start == core.stop - core.start
    assert (covered == 1).all()


class FirstBand(nn.Module):
    """Stands for a network that knows: logit 4 where the first band is bright, else -4."""

    plane_names = ("road",)

    class encoder:  # noqa: N801 - the network's attribute
        in_channels = 3

        @staticmethod
        def normalize(pixels: Tensor) -> Tensor:
            return pixels.float() / 255

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :1] > 0.5).float() * 8 - 4


def test_the_category_picks_the_head() -> None:
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(1, 256, (64, 64, 3), np.uint8)
    network = build_network("resnet18", 3, ["building"], categories=["near", "far"]).eval()
    nn.init.constant_(network.head.get_parameter("bias"), 0.0)
    with torch.no_grad():
        network.head.get_parameter("bias")[1] = 30.0
    settings = Inference(views=8)
    near, far = (
        predict_planes([Voter(network)], image, settings, CPU, category)
        for category in ("near", "far")
    )
    assert far.min() == 255
    assert near.max() < 255
    plain = build_network("resnet18", 3, ["building"]).eval()
    assert np.array_equal(
        predict_planes([Voter(plain)], image, settings, CPU, "far"),
        predict_planes([Voter(plain)], image, settings, CPU),
    )
    with pytest.raises(SatmapError, match="heads for near, far"):
        predict_planes([Voter(network)], image, settings, CPU, "further")


@pytest.mark.parametrize("shape", [(16, 16), (1, 40), (97, 130), (300, 64)])
@pytest.mark.parametrize("views", [1, 4, 8])
def test_planes_lie_where_the_image_does(shape: tuple[int, int], views: int) -> None:
    image = np.random.default_rng(0).integers(1, 255, (*shape, 3)).astype(np.uint8)
    image[0, :3] = 0  # no data
    settings = Inference(views=views, batch=3, window=96, overlap=16)
    planes = predict_planes([Voter(FirstBand())], image, settings, CPU)  # type: ignore[arg-type]
    assert planes.shape == (1, *shape)
    bright = round(255 / (1 + np.exp(-4)))
    dark = np.where(image.any(axis=2), 255 - bright, 0)
    assert np.array_equal(planes[0], np.where(image[..., 0] > 127, bright, dark))


def test_the_ensemble_is_the_mean_of_its_networks() -> None:
    torch.manual_seed(0)
    networks = [build_network("resnet18", c, ROAD_PLANES, (16, 16, 16, 16)).eval() for c in (3, 8)]
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 8)).astype(np.uint8)
    settings = Inference(views=8)
    alone = [predict_planes([Voter(n)], image, settings, CPU).astype(int) for n in networks]
    both = predict_planes([Voter(n) for n in networks], image, settings, CPU).astype(int)
    assert np.abs(both - (alone[0] + alone[1]) / 2).max() <= 1.01
    uneven = [Voter(networks[0], votes=3), Voter(networks[1])]
    weighted = predict_planes(uneven, image, settings, CPU).astype(int)
    assert np.abs(weighted - (3 * alone[0] + alone[1]) / 4).max() <= 1.01
    assert np.abs(alone[0] - alone[1]).max() > 4


def test_a_turned_image_gives_turned_planes() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 3, ROAD_PLANES, (16, 16, 16, 16)).eval()
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    planes = predict_planes([Voter(network)], image, Inference(views=8), CPU).astype(int)
    turned = predict_planes([Voter(network)], np.rot90(image).copy(), Inference(views=8), CPU)
    assert np.abs(np.rot90(planes, axes=(1, 2)) - turned).max() <= 1


def make_weights(
    directory: Path, name: str, recipe: Recipe | None = None, bands: int = 3, **metadata: str
) -> Path:
    torch.manual_seed(len(name))
    network = build_network("resnet18", bands, ROAD_PLANES, (16, 16, 16, 16))
    path = directory / f"{name}.safetensors"
    text = (recipe or load_recipe("demo")).model_dump_json()
    save_weights(path, network, {"recipe": text, "member": name.split(".")[0], **metadata})
    return path


def test_choosing_networks(tmp_path: Path) -> None:
    recipe = load_recipe("sn5-roads-rgb")
    make_weights(tmp_path, "a.best_apls", recipe, stage="1", epoch="3")
    for name in ("a.best_dice", "a.last", "b.last"):
        make_weights(tmp_path, name, recipe, stage="1", epoch="9")
    # What a killed process may leave is no weight file.
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
    with pytest.raises(SatmapError, match=r"no weights that recipe small-roads"):
        choose(files, load_recipe("small-roads"))
    make_weights(tmp_path, "c.last").write_bytes(
        make_weights(tmp_path, "d.last").read_bytes()[:1000]
    )
    with pytest.raises(SatmapError, match=r"c\.last\.safetensors is not a whole"):
        find_weights(tmp_path)
    with pytest.raises(SatmapError, match=r"no weights .* in"):
        find_weights(tmp_path / "absent")


def test_networks_of_eight_bands_sit_out_where_there_are_three(city: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(city / "test", images)
    for path in sorted(images.glob("**/PS-MS/*.tif")):
        if "chip6" in path.name:
            path.unlink()
        else:
            # Truncated pixels under a good header: the RGB image must serve.
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
    assert "want 8 bands" in done.faults["AOI_99_Made_chip6"]
    shutil.rmtree(images / "AOI_99_Made_Test_Public/PS-MS")
    with pytest.raises(SatmapError, match="want 8 bands"):
        predict([images], tmp_path / "out.csv", tmp_path / "weights", CPU)


def test_an_unthought_of_fault_costs_one_image(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = to_rows

    def broken(graph: RoadGraph) -> list[RoadRow]:
        monkeypatch.setattr(prediction, "to_rows", original)
        raise RuntimeError("a bug")

    monkeypatch.setattr(prediction, "to_rows", broken)
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    done = predict([city / "test"], tmp_path / "out.csv", tmp_path / "weights", CPU)
    assert done.faults == {"AOI_99_Made_chip6": "RuntimeError: a bug"}
    assert set(read_roads_csv(tmp_path / "out.csv")) == {"AOI_99_Made_chip6", "AOI_99_Made_chip7"}


def test_one_bad_image_costs_only_itself(tmp_path: Path) -> None:
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
    assert any("0.3 m a pixel" in warning for warning in done.warnings)
    written = read_roads_csv(output)
    assert list(written) == [f"AOI_7_Moscow_chip{n}" for n in (1, 2, 3, 4, 5, 6, 10)]
    for number in (2, 3, 4, 10):
        assert written[f"AOI_7_Moscow_chip{number}"] == []
    assert check_roads_csv(output, list(written)) == []
    assert not list(tmp_path.glob(".out.csv*"))


def test_the_same_bytes_again_and_the_prefix_on_request(city: Path, tmp_path: Path) -> None:
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    recipe = tmp_path / "prefix.yaml"
    text = (Path(__file__).parents[1] / "code/satmap/recipes/demo.yaml").read_text()
    recipe.write_text(text + "\nsubmission: {keep_prefix: true}\n")
    outputs = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    predict([city / "test"], outputs[0], tmp_path / "weights", CPU)
    predict([city / "test"], outputs[1], tmp_path / "weights", CPU)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    predict([city / "test"], outputs[2], tmp_path / "weights", CPU, str(recipe))
    assert all(name.startswith("SN5_roads_test_public_AOI_") for name in read_roads_csv(outputs[2]))


def rows(*lengths: float) -> list[RoadRow]:
    return [RoadRow(np.array([[0.0, 0.0], [x, 0.0]]), x, x / 10) for x in lengths]


def test_the_journal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with Journal(output, "settings") as journal:
        journal.add("a", rows(3.0, 4.5))
        journal.add("b", [])
    with journal.path.open("ab") as file:
        file.write(b'["c", [[[[0, 0')  # cut off by a crash
    with Journal(output, "settings") as journal:
        assert list(journal.finished) == ["a", "b"]
        assert [row.length_m for row in journal.finished["a"]] == [3.0, 4.5]
        journal.add("c", rows(1.0))
    with Journal(output, "settings") as journal:
        assert list(journal.finished) == ["a", "b", "c"]
    with Journal(output, "other settings") as journal:
        assert not journal.finished
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "out.csv", "settings"),
        pytest.raises(CannotWriteError, match="is being written by another run"),
    ):
        Journal(tmp_path / "out.csv", "settings")


def test_a_stopped_prediction_goes_on(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_weights(tmp_path / "weights", "a.last", stage="1", epoch="1")
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    predict([city / "test"], whole, tmp_path / "weights", CPU)
    predicted: list[str] = []
    original = prediction.predict_chip

    def interrupted(chip, *rest):  # type: ignore[no-untyped-def]
        if len(predicted) == 1:
            raise KeyboardInterrupt
        predicted.append(chip.image_id)
        return original(chip, *rest)

    monkeypatch.setattr(prediction, "predict_chip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict([city / "test"], resumed, tmp_path / "weights", CPU)
    assert not resumed.exists()
    again: list[str] = []

    def counted(chip, *rest):  # type: ignore[no-untyped-def]
        again.append(chip.image_id)
        return original(chip, *rest)

    monkeypatch.setattr(prediction, "predict_chip", counted)
    predict([city / "test"], resumed, tmp_path / "weights", CPU)
    assert again
    assert predicted[0] not in again
    assert resumed.read_bytes() == whole.read_bytes()


def test_metadata_is_kept(tmp_path: Path) -> None:
    path = make_weights(tmp_path, "a.last", scores=json.dumps({"apls": 0.5}))
    (file,) = find_weights(tmp_path)
    assert file.path == path
    assert file.checkpoint == "last"
    assert json.loads(file.metadata["scores"]) == {"apls": 0.5}
