"""Task ``instances``: symmetries, windows, whole predictions, settings, recipes, optimizers."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import shapely
import torch
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage
from torch import Tensor, nn

from satmap.data.imagery import RGB, ImageInfo
from satmap.errors import SatmapError
from satmap.networks.cascade import CascadeNetwork, Detections
from satmap.networks.cascade_settings import CascadeSettings
from satmap.networks.encoders import Encoder
from satmap.networks.ensemble import SYMMETRIES, EnsembleMember, Symmetry
from satmap.networks.layers import without_values
from satmap.networks.unet import UNet
from satmap.rasters.scene import Box
from satmap.recipes.schema import load_recipe, parse_recipe
from satmap.tasks.base import Batch, PreparedImage, default_task, task_of
from satmap.tasks.building_instances.merge import Candidates, InstanceDecoder
from satmap.tasks.building_instances.settings import InstanceLosses
from satmap.tasks.building_instances.task import BuildingInstanceTask
from satmap.training.job import Job, make_optimizer
from satmap.training.run_context import RunContext
from satmap.vectors.buildings import Building
from tiny_trainings import road_recipe, stage

pytestmark = pytest.mark.usefixtures("tiny_encoders")

NETWORK = {
    "anchors": [[12, 20]], "warp_px": 14, "feature_px": 7, "mask_px": 7, "mask_width": 8,
    "box_width": 8,
}  # fmt: skip


def recipe_text(
    network: dict[str, Any] | None = None, member: dict[str, Any] | None = None, **changes: Any
) -> str:
    """Return the text of a recipe with one tiny network."""
    content = {
        "name": "test", "description": "seconds long", "folds": 2,
        "task": {"name": "instances", "network": NETWORK if network is None else network},
        "members": [
            {"fold": 0, "encoder": "tiny", "pretrained": False, "bands": 3, "losses": {},
             "stages": [stage()]} | (member or {})
        ],
        "inference": {"tta": 1, "window": 96, "overlap": 16},
    } | changes  # fmt: skip
    return yaml.safe_dump(content)


def task_from(text: str) -> BuildingInstanceTask:
    task = task_of(parse_recipe(text, "test"))
    assert isinstance(task, BuildingInstanceTask)
    return task


# Symmetries and windows


def cells(image: NDArray[np.float32], side: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return the box of what is not 0, and its means on a grid over the box, 0..255."""
    rows, columns = np.nonzero(image)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    part = image[top:bottom, left:right]
    high, wide = part.shape[0] // side, part.shape[1] // side
    grid = part.reshape(side, high, side, wide).mean((1, 3))
    return np.array([left, top, right, bottom], np.float64), grid.round().astype(np.uint8)


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
def test_symmetries_are_undone(symmetry: Symmetry) -> None:
    random = np.random.default_rng(0)
    # Two buildings of different probabilities in each cell of 2 x 3 pixels, in a window that is
    # not square.
    height, width = 24, 40
    images = np.zeros((2, height, width), np.float32)
    for image, (left, top) in zip(images, ((5, 3), (27, 15)), strict=True):
        grid = random.integers(1, 256, (4, 4)).astype(np.float32)
        image[top : top + 8, left : left + 12] = np.kron(grid, np.ones((2, 3), np.float32))
    turned = symmetry.apply(torch.from_numpy(images)).numpy()
    boxes, masks = zip(*(cells(image, 4) for image in turned), strict=True)
    scores, is_cut = np.array([0.4, 0.7]), np.array([True, False])
    found = Candidates(np.stack(boxes), scores, np.stack(masks), is_cut)
    task = task_from(recipe_text())
    restored = task.restore(found, symmetry, (height, width))
    expected = [cells(image, 4) for image in images]
    assert np.array_equal(restored.boxes, np.stack([box for box, _ in expected]))
    assert np.array_equal(restored.masks, np.stack([mask for _, mask in expected]))
    assert np.array_equal(restored.scores, scores)
    none = Candidates.join([], 4)
    assert task.restore(none, symmetry, (height, width)).boxes.shape == (0, 4)


def test_boxes_move_to_pixels_of_the_image() -> None:
    found = Candidates(
        np.array([[1.0, 2.0, 5.0, 8.0]]), np.array([0.5]), np.zeros((1, 4, 4), np.uint8),
        np.array([False]),
    )  # fmt: skip
    placed = task_from(recipe_text()).place(found, np.array([2.0, 3.0]), np.array([100.0, 10.0]))
    assert placed.boxes.tolist() == [[102, 16, 110, 34]]


# Whole predictions


class Unchanged(nn.Module):
    """Encoder that does not normalise."""

    in_channels = 3

    def normalize(self, pixels: Tensor) -> Tensor:
        return pixels.float()


class Bright(CascadeNetwork):
    """Network that finds every bright region of a window exactly.

    It is surer of small ones, so that parts of buildings have better scores than whole ones.
    """

    def __init__(self, side: int) -> None:
        nn.Module.__init__(self)
        self.side = side
        self.encoder = cast(Encoder, Unchanged())

    def forward(self, images: Tensor, *others: Any) -> list[Detections]:
        labels, _ = ndimage.label(images[0, 0].numpy() > 128)
        boxes, masks, scores = [], [], []
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            part = (labels[rows, columns] == number).astype(np.float32)
            at = [
                ((np.arange(self.side) + 0.5) * length / self.side).astype(int)
                for length in part.shape
            ]
            masks.append(part[np.ix_(*at)])
            boxes.append([columns.start, rows.start, columns.stop, rows.stop])
            scores.append(0.6 + 0.3 / (1 + part.sum() / 1000))
        return [
            Detections(
                torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                torch.tensor(scores, dtype=torch.float32),
                torch.from_numpy(np.array(masks, np.float32).reshape(-1, self.side, self.side)),
            )
        ]


def predicted(
    task: BuildingInstanceTask,
    image: NDArray[np.uint8],
    file: tuple[int, int] | None = None,
    inside: Box | None = None,
) -> list[Building]:
    """Predict an image with a network that finds bright regions; ``file`` is its original size."""
    height, width = file or image.shape[:2]
    info = ImageInfo(Path("none.tif"), RGB, width, height, 3, "uint8", None)
    member = EnsembleMember(Bright(task.recipe.task.network.drawn_px))
    prepared = PreparedImage(info, image, [member], (1.0, 1.0), (), inside=inside)
    found = task.predict(prepared, torch.device("cpu")).get()
    return InstanceDecoder(task.recipe.task.vectorizer, (height, width), (1.0, 1.0)).decode(found)


def lit(shape: tuple[int, int], shapes: list[shapely.Polygon]) -> NDArray[np.uint8]:
    """Draw buildings of whole pixels on dark ground."""
    image = np.full((*shape, 3), 20, np.uint8)
    rows, columns = np.indices(shape) + 0.5
    for each in shapes:
        image[shapely.contains_xy(each, columns, rows)] = 200
    return image


def assert_found(found: list[Building], truth: list[shapely.Polygon], least: float) -> None:
    """Check that every building was found once and nothing else."""
    assert len(found) == len(truth)
    for each in truth:
        shapes = [building.polygon for building in found]
        ious = [shape.intersection(each).area / shape.union(each).area for shape in shapes]
        assert max(ious) >= least


@pytest.mark.parametrize("tta", [1, 4, 8])
def test_every_building_is_found_once_in_any_window(tta: int) -> None:
    random = np.random.default_rng(1)
    # Blocks of 26 pixels with a house each, of which windows cut many.
    truth = []
    for x in range(0, 234, 26):
        for y in range(0, 156, 26):
            left, top = (random.integers(1, 6, 2) + np.array([x, y])).tolist()
            wide, high = random.integers(9, 20, 2).tolist()
            truth.append(shapely.box(left, top, left + wide, top + high))
    image = lit((160, 240), truth)
    inference = {"tta": tta, "window": 96, "overlap": 16}
    found = predicted(task_from(recipe_text(inference=inference)), image)
    assert_found(found, truth, 0.9)


@pytest.mark.parametrize(
    "shape",
    [
        shapely.box(60, 10, 90, 50),
        shapely.box(10, 10, 58, 50),
        shapely.box(30, 10, 92, 50),
        shapely.box(30, 10, 100, 50),
        shapely.box(30, 10, 145, 50),
        shapely.box(10, 10, 190, 22),
        shapely.box(40, 20, 160, 140) - shapely.box(60, 50, 140, 110),
        shapely.box(8, 40, 75, 90) - shapely.box(8, 60, 55, 90),
    ],
    ids=["whole in two", "sliver", "half", "cut in two", "cut in three", "long", "courtyard", "L"],
)
def test_a_building_at_a_seam_is_found_once(shape: shapely.Polygon) -> None:
    # Windows of 96 px from 0, 52 and 104 along x, and from 0 and 64 along y.
    found = predicted(task_from(recipe_text()), lit((160, 200), [shape]))
    assert_found(found, [shape], 0.8)


def test_neighbours_at_a_seam_stay_apart() -> None:
    truth = [
        shapely.box(30, 20, 55, 50), shapely.box(58, 20, 90, 50), shapely.box(99, 20, 130, 50),
        shapely.box(30, 66, 50, 90), shapely.box(70, 66, 92, 90), shapely.box(110, 66, 140, 90),
    ]  # fmt: skip
    found = predicted(task_from(recipe_text()), lit((96, 200), truth))
    assert_found(found, truth, 0.8)


def test_input_of_another_size_and_surroundings() -> None:
    truth = [shapely.box(20, 20, 50, 44), shapely.box(60, 70, 90, 96)]
    task = task_from(recipe_text(inference={"tta": 8, "window": 256, "overlap": 16}))
    # The networks see half the pixels of the file along x, and twice those along y.
    small = [shapely.transform(each, lambda xy: xy * (0.5, 2)) for each in truth]
    found = predicted(task, lit((200, 60), small), (100, 120))
    assert_found(found, truth, 0.9)
    # A block of a map within its surroundings.
    moved = [shapely.transform(each, lambda xy: xy + np.array([30, 10])) for each in truth]
    found = predicted(task, lit((140, 180), moved), (100, 120), Box(30, 10, 120, 100))
    assert_found(found, truth, 0.95)


def test_images_without_buildings_or_data() -> None:
    task = task_from(recipe_text())
    assert predicted(task, np.full((50, 70, 3), 20, np.uint8)) == []
    assert predicted(task, np.zeros((50, 70, 3), np.uint8)) == []


# Settings and recipes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"warp_px": 20, "feature_px": 14}, "warp_px must be a multiple of feature_px"),
        ({"warp_px": 7, "feature_px": 14}, "warp_px must be a multiple of feature_px"),
        ({"mask": "convolutional", "mask_px": 21}, "mask_px of twice feature_px"),
        ({"anchors": [[8], [16]]}, "without a pyramid there is one level"),
        ({"pyramid": 8, "anchors": [[8], [16, 24]]}, "same number of anchors"),
        ({"anchors": []}, "at least 1 item"),
        ({"anchors": [[]]}, "anchors"),
        ({"ratios": []}, "at least 1 item"),
        ({"anchors": [[-8]]}, "greater than 0"),
        ({"rounds": 0}, "greater than or equal to 1"),
        ({"threshold": 1}, "less than 1"),
        ({"masks": 28}, "masks"),
        ({"proposals": {"negative_iou": 0.8}}, "negative_iou"),
        ({"sampling": {"near_iou": 0.6}}, "near_iou"),
    ],
)
def test_wrong_networks_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CascadeSettings.model_validate(wrong)
    with pytest.raises(SatmapError, match=message):
        parse_recipe(recipe_text(NETWORK | wrong), "test")


def test_wrong_numbers_of_levels_are_refused_as_a_fault_of_the_recipe() -> None:
    network = NETWORK | {"pyramid": 8, "anchors": [[8], [16], [32]]}
    with pytest.raises(SatmapError, match=r"4 levels.*not 3"):
        task = task_from(recipe_text(network))
        task.build_network(task.recipe.members[0])


def test_defaults_are_those_of_the_reference() -> None:
    settings, losses = CascadeSettings(), InstanceLosses()
    proposals = settings.proposals
    assert [*settings.anchors] == [(128, 256, 512)]
    assert [proposals.train, proposals.test] == [(12000, 300), (6000, 300)]
    assert [proposals.suppression, proposals.positive_iou, proposals.negative_iou] == [
        0.7,
        0.7,
        0.3,
    ]
    assert [proposals.batch, proposals.least_px, proposals.inside_only] == [256, 16, True]
    # The original had one sample per cell.
    assert settings.samples > 1
    assert (settings.warp_px, settings.feature_px, settings.mask_px) == (28, 14, 21)
    assert (settings.mask_width, settings.box_width, settings.rounds) == (256, 4096, 2)
    assert settings.loss_parts == (
        "proposal", "proposal_box", "mask", "building", "mask_building", "box"
    )  # fmt: skip
    assert [getattr(losses, name) for name in settings.loss_parts] == [1, 1, 2, 1, 1, 1]
    more = CascadeSettings(refine=True, quality=True)
    assert (*settings.loss_parts, "refined", "quality") == more.loss_parts
    assert (settings.drawn_px, more.drawn_px) == (21, 42)


def test_mixup_and_rounds_are_refused() -> None:
    with pytest.raises(SatmapError, match="MixUp cannot mix boxes"):
        task_from(recipe_text(augmentation={"mixup": 0.4}))
    with pytest.raises(SatmapError, match=r"rounds need probability maps.*instances lacks"):
        parse_recipe(recipe_text(rounds=[{"share": 0.5}]), "test")


@pytest.mark.parametrize(
    "name", ["mnc-buildings", "cascade-buildings", "small-mnc", "small-cascade"]
)
def test_shipped_recipes_build_their_networks(name: str) -> None:
    recipe = load_recipe(name)
    task = task_of(recipe)
    assert isinstance(task, BuildingInstanceTask)
    for member in recipe.members:
        with without_values():
            network = task.build_network(member)
        assert network.in_channels == member.bands
    assert set(task.loss_parts) <= set(InstanceLosses.model_fields)


def test_the_reference_is_trained_as_described() -> None:
    recipe = load_recipe("mnc-buildings")
    assert recipe.task.network == CascadeSettings()
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.weight_decay, optimizer.bias_rate) == ("sgd", 5e-4, 2)
    assert not recipe.augmentation.flips
    for member in recipe.members:
        (only,) = member.stages
        assert (member.encoder, only.freeze_encoder_stages) == ("vgg16", 2)
        assert only.freeze_encoder_epochs == only.epochs
        assert (only.batch, only.accumulation) == (1, 8)
        assert member.losses == InstanceLosses()


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    task = task_from(recipe_text())
    names = task.loss_parts
    outputs = {name: torch.tensor(10.0**k, requires_grad=True) for k, name in enumerate(names)}
    losses = InstanceLosses(proposal=3, building=0)
    whole, parts = task.loss(outputs, Batch({}, []), losses, lambda value: value)
    # In the order of the parts: 3, 1, 2, 0, 1 and 1.
    assert whole.item() == 110213
    assert {name: value.item() for name, value in parts.items()} == dict(
        zip(names, [3, 10, 200, 0, 10_000, 100_000], strict=True)
    )
    assert not any(value.requires_grad for value in parts.values())
    whole.backward()  # type: ignore[no-untyped-call]
    assert [value.grad for value in outputs.values()] == [3, 1, 2, 0, 1, 1]


def test_a_window_keeps_the_best_candidates() -> None:
    task = default_task("instances", vectorizer={"most": 3})
    assert isinstance(task, BuildingInstanceTask)
    # Of 40 pixels and more; the smallest have the best scores.
    truth = [shapely.box(20 * k, 10, 20 * k + 10, 18 - k) for k in range(5)]
    pixels = torch.from_numpy(lit((40, 110), truth).transpose(2, 0, 1).copy())
    found = task.predict_window(Bright(21), pixels, None)
    assert found.scores.tolist() == pytest.approx(
        [0.6 + 0.3 / (1 + area / 1000) for area in (40, 50, 60)]
    )
    assert found.boxes.tolist() == [[20 * k, 10, 20 * k + 10, 18 - k] for k in (4, 3, 2)]
    assert found.masks.dtype == np.uint8
    assert (found.masks == 255).all()


# Optimizers


def optimizer_of(
    text: str, tmp_path: Path, index: int = 0
) -> tuple[nn.Module, torch.optim.Optimizer]:
    recipe = parse_recipe(text, "test")
    task = task_of(recipe)
    job = Job(task, recipe.members[0], [], [], RunContext(tmp_path, torch.device("cpu")))
    network = task.build_network(recipe.members[0])
    return network, make_optimizer(network, job, index)


def rates_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the factor of the learning rate of every parameter; each must occur once."""
    names = {id(value): name for name, value in network.named_parameters()}
    found = [
        (names[id(value)], group.get("rate", 1.0))
        for group in optimizer.param_groups
        for value in group["params"]
    ]
    assert len(found) == len(names) == len(dict(found))
    return dict(found)


def test_sgd_with_a_rate_of_biases(tmp_path: Path) -> None:
    chosen = {"name": "sgd", "bias_rate": 2, "weight_decay": 5e-4}
    network, optimizer = optimizer_of(recipe_text(optimizer=chosen), tmp_path)
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)
    assert all(group["weight_decay"] == 5e-4 for group in optimizer.param_groups)
    rates = rates_of(network, optimizer)
    assert {rate for name, rate in rates.items() if name.endswith(".bias")} == {2}
    assert {rate for name, rate in rates.items() if not name.endswith(".bias")} == {1}
    # One step by hand: biases move by twice the rate.
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.1 * group.get("rate", 1), 0
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for value in network.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    moved = {
        name: (before[name] - value).abs().mean().item()
        for name, value in network.named_parameters()
    }
    assert moved["move.bias"] == pytest.approx(0.2)
    assert moved["move.weight"] == pytest.approx(0.1)


def test_rates_of_biases_and_encoders_multiply(tmp_path: Path) -> None:
    text = recipe_text(
        member={"stages": [stage(encoder_rate=0.5), stage()]},
        optimizer={"name": "sgd", "bias_rate": 2},
    )
    network, optimizer = optimizer_of(text, tmp_path)
    rates = rates_of(network, optimizer)
    expected = {
        name: (0.5 if name.startswith("encoder.") else 1) * (2 if name.endswith(".bias") else 1)
        for name in rates
    }
    assert rates == expected
    assert set(rates.values()) == {0.5, 1, 2}
    _, later = optimizer_of(text, tmp_path, 1)
    assert {group.get("rate", 1) for group in later.param_groups} == {1, 2}
    # A saved state can be loaded.
    _, again = optimizer_of(text, tmp_path)
    again.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_other_tasks_have_the_same_optimizers(name: str, tmp_path: Path) -> None:
    network, optimizer = optimizer_of(road_recipe(optimizer={"name": name}), tmp_path)
    assert isinstance(network, UNet)
    assert type(optimizer).__name__.lower() == name
    assert len(optimizer.param_groups) == 1
    assert set(rates_of(network, optimizer).values()) == {1}
    both = road_recipe(optimizer={"name": name, "bias_rate": 2})
    assert set(rates_of(*optimizer_of(both, tmp_path)).values()) == {1, 2}
