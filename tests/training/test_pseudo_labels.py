"""Pseudo-labels: their loss, the ensemble that predicts them, and the crops that hold them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from satmap.data.cache import prepare_chips
from satmap.data.crops import CachedChip, Geometry, SoftTarget, read_crop, read_soft_crop
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import SatmapError
from satmap.networks.ensemble import predict_maps
from satmap.networks.unet import build_network
from satmap.recipes.pseudo_labels import PseudoLabels
from satmap.recipes.schema import Augmentation, Recipe, parse_recipe
from satmap.runtime.ranks import Ranks
from satmap.tasks.base import task_of
from satmap.tasks.dense import DenseTask
from satmap.tasks.losses import pseudo_label_loss
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.training import pseudo_labels as labelling
from satmap.training.loading import CropDataset
from satmap.training.pseudo_labels import Teacher, find_teacher, predict_by_ensemble
from satmap.training.run_context import RunContext
from satmap.weights.network_files import save_weights
from tiny_trainings import road_member, road_recipe

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def plain_recipe() -> Recipe:
    member = road_member(bands=3)
    return parse_recipe(road_recipe(member, inference={"tta": 1, "checkpoints": ["last"]}), "test")


def make_teacher(directory: Path, seeds: tuple[int, ...] = (0, 1)) -> Teacher:
    """Make a teacher of untrained networks."""
    recipe = plain_recipe()
    for seed in seeds:
        torch.manual_seed(seed)
        network = build_network("tiny", 3, ROAD_MAPS, (16, 16, 16, 16))
        metadata = {
            "recipe": recipe.model_dump_json(), "member": str(seed), "stage": "1", "epoch": "1"
        }  # fmt: skip
        save_weights(directory / f"{seed}.last.safetensors", network, metadata)
    return find_teacher(directory, recipe, 4)


@pytest.fixture(scope="module")
def teacher(tiny_encoders: None, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def chips(city: Path, tmp_path: Path) -> list[CachedChip]:
    recipe, found = plain_recipe(), scan_roads([city / "train"]).chips
    task = task_of(recipe)
    return list(prepare_chips(found, 8, tmp_path / "cache", recipe.stretch, task).chips)


# The loss


def loss_of(logits: torch.Tensor, probabilities: torch.Tensor, **settings: object) -> float:
    taught = torch.ones(len(logits), *logits.shape[2:], dtype=torch.bool)
    given = PseudoLabels.model_validate(settings)
    return pseudo_label_loss(logits, probabilities, taught, given).item()


def test_the_loss_by_hand() -> None:
    teacher = torch.tensor([[[[128, 0], [255, 64]]]], dtype=torch.uint8)
    p = teacher.double() / 255
    agreeing = torch.logit(p, 1e-7).float()
    assert loss_of(agreeing, teacher) == pytest.approx(0, abs=1e-5)
    # At logit 0 the network predicts .5 everywhere: log 2 minus the teacher's entropy.
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
    divergences = np.log(2) - entropy
    zero = torch.zeros(1, 1, 2, 2)
    assert loss_of(zero, teacher) == pytest.approx(divergences.mean().item(), rel=1e-5)
    assert loss_of(zero, teacher, labels="hard") == pytest.approx(np.log(2), rel=1e-5)
    # Ignored pixels stay in the mean: here the first and the last.
    for ignore in (0.8, (0.2, 0.8)):
        expected = divergences.flatten()[1:3].sum().item() / 4
        assert loss_of(zero, teacher, ignore=ignore) == pytest.approx(expected, rel=1e-5)
    weighted = (divergences * (2 * p - 1).abs()).mean().item()
    assert loss_of(zero, teacher, confidence_weights=True) == pytest.approx(weighted, rel=1e-5)


def test_a_temperature_softens_both_sides() -> None:
    torch.manual_seed(0)
    teacher = torch.randint(1, 255, (1, 2, 8, 8), dtype=torch.uint8)
    logits = torch.logit(teacher.float() / 255, 1e-7)
    assert loss_of(logits, teacher, temperature=5) == pytest.approx(0, abs=1e-4)
    # The gradient of a high temperature is that of half the squared difference of the logits.
    other = (logits + 0.1).requires_grad_()
    taught = torch.ones(1, 8, 8, dtype=torch.bool)
    settings = PseudoLabels(temperature=200)
    (gradient,) = torch.autograd.grad(pseudo_label_loss(other, teacher, taught, settings), other)
    assert gradient.numpy() == pytest.approx(0.1 / 4 / other.numel(), rel=0.05)


def test_only_taught_pixels_count_and_all_ranks_share_them() -> None:
    torch.manual_seed(0)
    teacher = torch.randint(0, 256, (3, 2, 8, 8), dtype=torch.uint8)
    logits = torch.randn(3, 2, 8, 8, requires_grad=True)
    taught = torch.zeros(3, 8, 8, dtype=torch.bool)
    taught[0], taught[1, :4] = True, True
    loss = pseudo_label_loss(logits, teacher, taught, PseudoLabels())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient.abs().sum(1) > 0, taught)
    # Two ranks with one image of it each, and one with the third.
    pieces = [(logits[i : i + 1], teacher[i : i + 1], taught[i : i + 1]) for i in range(3)]
    sums = torch.stack([torch.tensor([2.0 * 64, 2.0 * piece[2].sum()]) for piece in pieces]).sum(0)
    parts = [pseudo_label_loss(*piece, PseudoLabels(), lambda _: sums).item() for piece in pieces]
    assert np.mean(parts) == pytest.approx(loss.item(), rel=1e-5)
    assert parts[2] == 0
    nothing = pseudo_label_loss(logits, teacher, torch.zeros_like(taught), PseudoLabels())
    assert nothing.item() == 0


# Predictions of the ensemble


def test_soft_targets_equal_the_ensembles_maps_and_are_made_once(
    chips: list[CachedChip], teacher: Teacher, tmp_path: Path
) -> None:
    context = RunContext(tmp_path / "weights", CPU)
    assert teacher.passes == 2 * 4
    taught = predict_by_ensemble(chips, teacher, context)
    members = teacher.task.load_ensemble(teacher.files, CPU)
    image, _ = chips[1].read()
    expected = predict_maps(members, image, teacher.recipe.inference, CPU)
    soft = taught[1].soft
    assert soft is not None
    assert np.array_equal(soft.read(), expected)
    assert np.array_equal(soft.read(slice(5, 9), slice(2, 4)), expected[:, 5:9, 2:4])
    before = soft.path.stat().st_mtime_ns
    assert predict_by_ensemble(chips, teacher, context) == taught
    assert soft.path.stat().st_mtime_ns == before
    # A damaged or incomplete file is rebuilt.
    soft.path.write_bytes(soft.path.read_bytes()[:100])
    with pytest.raises(SatmapError, match="computes missing maps"):
        soft.read()
    predict_by_ensemble(chips, teacher, context)
    assert np.array_equal(soft.read(), expected)


def with_inference(teacher: Teacher, **settings: object) -> Teacher:
    inference = teacher.recipe.inference.model_copy(update=settings)
    recipe = teacher.recipe.model_copy(update={"inference": inference})
    task = task_of(recipe)
    assert isinstance(task, DenseTask)
    return replace(teacher, task=task)


def test_settings_of_inference_that_change_maps_make_other_soft_targets(
    chips: list[CachedChip], teacher: Teacher, tmp_path: Path
) -> None:
    context = RunContext(tmp_path / "weights", CPU)
    for settings in ({"mean": "geometric"}, {"padding": "replicate"}):
        other = with_inference(teacher, **settings)
        before, after = (
            predict_by_ensemble(chips[:1], each, context)[0].soft for each in (teacher, other)
        )
        assert before is not None and after is not None
        assert before.path != after.path
        assert not np.array_equal(before.read(), after.read())


def test_another_teacher_makes_other_files(teacher: Teacher, tmp_path: Path) -> None:
    less = replace(teacher, files=teacher.files[:1])
    assert less.digest != teacher.digest
    changes: dict[str, object] = {
        "tta": 8, "mean": "geometric", "window": 64, "overlap": 16, "padding": "replicate",
        "batch": 1, "checkpoints": ("last",), "gaps": "mirror", "join_chips": True,
    }  # fmt: skip
    # A new setting must be added here.
    assert changes.keys() == type(teacher.recipe.inference).model_fields.keys()
    changed = {
        name
        for name, value in changes.items()
        if with_inference(teacher, **{name: value}).digest != teacher.digest
    }
    assert changed == {"tta", "mean", "window", "overlap", "padding", "gaps"}
    # Names and locations of the files do not matter.
    assert make_teacher(tmp_path).digest == teacher.digest


def test_the_processes_of_a_machine_share_the_teachers_work(
    chips: list[CachedChip], teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "local_processes", lambda: 2)
    made = []
    for rank in range(2):
        context = RunContext(tmp_path / "weights", CPU, ranks=Ranks(local_rank=rank))
        taught = predict_by_ensemble(chips, teacher, context)
        made.append([chip.soft.exists(chip.shape[:2]) for chip in taught if chip.soft])
    assert made == [[True, False] * 3, [True] * 6]


# Crops


def test_soft_targets_turn_with_the_crop(chips: list[CachedChip], tmp_path: Path) -> None:
    # Soft targets equal to the image must stay equal to it in every crop.
    image, _ = chips[0].read()
    soft = SoftTarget(tmp_path / "soft.safetensors", "ab")
    soft.write(np.concatenate([image, image[..., :4]], axis=2).transpose(2, 0, 1))
    chip = replace(chips[0], soft=soft)
    geometry = Geometry((85.0, 75.0), scale=1.2, angle=17, quarter_turns=1, mirrored=True)
    crop, _ = read_crop(chip, geometry, 96, 8)
    expected = np.concatenate([crop, crop[:4]])
    assert np.array_equal(read_soft_crop(chip, geometry, 96), expected)
    with pytest.raises(ValueError, match="no soft target"):
        read_soft_crop(chips[0], geometry, 96)


def test_samples_hold_what_the_teacher_needs(
    chips: list[CachedChip], teacher: Teacher, tmp_path: Path
) -> None:
    taught = predict_by_ensemble(chips[:2], teacher, RunContext(tmp_path, CPU))
    unlabelled = [replace(chip, sources={}) for chip in taught]
    task = task_of(plain_recipe())
    colourful = Augmentation(colour_jitter_probability=1)

    def sample(index: int, **settings: object) -> dict[str, np.ndarray]:
        how = PseudoLabels.model_validate(settings) if settings else None
        crops = CropDataset(
            taught, 64, 3, 1, colourful, 1, task, unlabelled=unlabelled, pseudo_labels=how
        )
        return crops[index][0]

    plain = sample(0)
    assert plain.keys() == {"image", "target"}
    labelled, other = (sample(index, share=0.5) for index in (0, 2))
    # The teacher does not change image and target.
    for name in ("image", "target"):
        assert np.array_equal(labelled[name], plain[name])
    assert not labelled["taught"].any() and not labelled["soft"].any()
    assert other["taught"].any() and other["soft"].any()
    assert other["soft"].shape == (12, 64, 64)
    distilled = sample(0, share=0, labelled=True)
    assert distilled["taught"].any() and distilled["soft"].any()
    own = sample(2, teacher="average", share=0.5)
    assert "soft" not in own
    # The average sees the crop before its colours are changed.
    assert own["clean"].shape == own["image"].shape
    assert not np.array_equal(own["clean"], own["image"])
    assert np.array_equal(own["taught"], own["clean"].any(axis=0))


@pytest.mark.parametrize("share", [0.03, 0.25, 0.5, 0.8])
def test_unlabelled_chips_have_their_share_of_every_batch(
    chips: list[CachedChip], share: float
) -> None:
    unlabelled = [replace(chip, image_id=f"u{i}", sources={}) for i, chip in enumerate(chips[:5])]
    crops = CropDataset(
        chips, 64, 3, 20, None, 1, task_of(plain_recipe()),
        unlabelled=unlabelled, pseudo_labels=PseudoLabels(share=share),
    )  # fmt: skip
    seen: Counter[str] = Counter()
    for epoch in range(3):
        crops.epoch = epoch
        order = crops.order()
        assert sorted(order) == list(range(len(crops)))
        shown = [crops.chip(crops.chip_of(index)) for index in order]
        assert Counter(chip.image_id for chip in shown if chip.is_labelled) == {
            chip.image_id: 20 for chip in chips
        }
        others = [not chip.is_labelled for chip in shown]
        assert np.mean(others) == pytest.approx(share, abs=0.01)
        for start in range(0, len(order) - 8, 8):
            assert abs(sum(others[start : start + 8]) - 8 * share) < 1
        seen.update(chip.image_id for chip in shown if not chip.is_labelled)
    # They take turns over the epochs.
    assert max(seen.values()) - min(seen.values()) <= 1
