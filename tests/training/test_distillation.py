"""Distillation of an ensemble: soft targets, loss, student."""

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
from satmap.provenance.manifest import WeightsManifest, read_manifest
from satmap.recipes.schema import Augmentation, Recipe, load_recipe, parse_recipe
from satmap.recipes.task_settings import HeadLoss
from satmap.runtime.ranks import Ranks
from satmap.tasks.base import task_of
from satmap.tasks.dense import DenseTask, distillation_loss
from satmap.tasks.roads.losses import road_loss
from satmap.tasks.roads.settings import ROAD_MAPS, RoadHeadLoss
from satmap.tasks.roads.settings import RoadLosses as Losses
from satmap.training import teacher as teaching
from satmap.training.loading import CropDataset
from satmap.training.run_context import RunContext
from satmap.training.teacher import Teacher, find_teacher, predict_soft_targets
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import choose, find_weights
from satmap.weights.network_files import load_weights, save_weights
from tiny_trainings import road_member, road_recipe, stage

CPU = torch.device("cpu")

MEMBER = road_member(
    fold=None,
    bands=3,
    losses={
        "road": {"dice": 0.5, "focal": 2, "bce": 0.1},
        "speed": {"bce": 1},
        "junction": {"focal": 1},
        "distillation": 0.5,
    },
    stages=[stage(epochs=2, passes=2, peak=2e-3)],
)

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def student(**changes: object) -> Recipe:
    inference = {"tta": 1, "checkpoints": ["last"]}
    settings = {"name": "student", "inference": inference} | changes
    return parse_recipe(road_recipe(MEMBER, **settings), "student")


def make_teacher(directory: Path) -> Teacher:
    """Make a teacher of two untrained networks of the demo's recipe, with three and eight bands."""
    recipe = load_recipe("demo")
    for number, bands in enumerate((3, 8)):
        torch.manual_seed(number)
        network = build_network("tiny", bands, ROAD_MAPS, (16, 16, 16, 16))
        metadata = {
            "recipe": recipe.model_dump_json(), "member": str(number), "stage": "1", "epoch": "1"
        }  # fmt: skip
        save_weights(directory / f"{number}.last.safetensors", network, metadata)
    return find_teacher(directory, student())


@pytest.fixture(scope="module")
def teacher(tiny_encoders: None, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def chips(city: Path, tmp_path: Path) -> list[CachedChip]:
    recipe, found = student(), scan_roads([city / "train"]).chips
    task = task_of(recipe)
    return list(prepare_chips(found, 8, tmp_path / "cache", recipe.stretch, task).chips)


def test_the_loss_by_hand() -> None:
    teacher = torch.tensor([[[[0.5, 0.0], [1.0, 0.25]]]])
    assert distillation_loss(torch.logit(teacher, 1e-7), teacher).item() == pytest.approx(
        0, abs=1e-5
    )
    # At logit 0 the network predicts .5 everywhere: log 2 minus the teacher's entropy.
    entropies = [np.log(2), 0, 0, -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))]
    expected = np.log(2) - np.mean(entropies)
    found = distillation_loss(torch.zeros(1, 1, 2, 2), teacher)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_every_head_learns_from_the_teachers_map_of_its_name() -> None:
    torch.manual_seed(0)
    soft = torch.randint(0, 256, (2, 12, 32, 32), dtype=torch.uint8)
    label = torch.randint(0, 11, (2, 1, 32, 32), dtype=torch.uint8)
    target = label[:, 0]
    nothing = Losses(road=RoadHeadLoss(), speed=HeadLoss(), junction=HeadLoss(), distillation=0.5)
    order = torch.randperm(12)
    names = tuple(ROAD_MAPS[i] for i in order)
    agreeing = torch.logit(soft[:, order].float() / 255, 1e-6)
    assert road_loss(agreeing, names, target, nothing, soft=soft)[0].item() == pytest.approx(
        0, abs=1e-4
    )
    wrong = agreeing.clone()
    wrong[:, names.index("junction")] *= -1
    _, parts = road_loss(wrong, names, target, nothing, soft=soft)
    assert parts["junction"].item() > 0.1
    assert parts["road"].item() + parts["speed"].item() == pytest.approx(0, abs=1e-4)
    # It is one more term beside the losses of the label.
    hard = Losses(road=RoadHeadLoss(dice=1, focal=1), speed=HeadLoss(bce=1), junction=HeadLoss())
    both = hard.model_copy(update={"distillation": 0.5})
    logits = torch.randn(2, 12, 32, 32)
    sums = [
        road_loss(logits, names, target, each, soft=soft)[0].item()
        for each in (hard, nothing, both)
    ]
    assert sums[0] == road_loss(logits, names, target, hard)[0].item()
    assert sums[2] == pytest.approx(sums[0] + sums[1], rel=1e-5)


def test_soft_targets_equal_the_ensembles_maps_and_are_made_once(
    chips: list[CachedChip], teacher: Teacher, tmp_path: Path
) -> None:
    context = RunContext(tmp_path / "weights", CPU)
    assert (teacher.passes, teacher.bands) == (2 * 4, 8)
    taught = predict_soft_targets(chips, teacher, context)
    members = teacher.task.load_ensemble(teacher.files, CPU)
    image, _ = chips[1].read()
    expected = predict_maps(members, image, teacher.recipe.inference, CPU)
    soft = taught[1].soft
    assert soft is not None
    assert np.array_equal(soft.read(), expected)
    assert np.array_equal(soft.read(slice(5, 9), slice(2, 4)), expected[:, 5:9, 2:4])
    before = soft.path.stat().st_mtime_ns
    assert predict_soft_targets(chips, teacher, context) == taught
    assert soft.path.stat().st_mtime_ns == before
    # A damaged or incomplete file is rebuilt.
    soft.path.write_bytes(soft.path.read_bytes()[:100])
    with pytest.raises(SatmapError, match="computes missing maps"):
        soft.read()
    predict_soft_targets(chips, teacher, context)
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
            predict_soft_targets(chips[:1], each, context)[0].soft for each in (teacher, other)
        )
        assert before is not None and after is not None
        assert before.path != after.path
        assert not np.array_equal(before.read(), after.read())


def test_another_teacher_makes_other_files(teacher: Teacher, tmp_path: Path) -> None:
    less = replace(teacher, files=teacher.files[:1])
    assert less.digest != teacher.digest
    changes: dict[str, object] = {
        "tta": 8, "mean": "geometric", "window": 64, "overlap": 16, "padding": "replicate",
        "batch": 1, "checkpoints": ("last",),
    }  # fmt: skip
    # A new setting must be added here.
    assert changes.keys() == type(teacher.recipe.inference).model_fields.keys()
    changed = {
        name
        for name, value in changes.items()
        if with_inference(teacher, **{name: value}).digest != teacher.digest
    }
    assert changed == {"tta", "mean", "window", "overlap", "padding"}
    # Names and locations of the files do not matter.
    assert make_teacher(tmp_path).digest == teacher.digest


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
    colourful = Augmentation(colour_jitter_probability=1)
    with_soft, without = (
        CropDataset([each], 64, 3, 1, colourful, 1, task_of(student()))[0][0]
        for each in (chip, chips[0])
    )
    assert with_soft["soft"].shape == (12, 64, 64)
    # The teacher does not change image and target.
    assert with_soft.keys() - without.keys() == {"soft"}
    for name in ("image", "target"):
        assert np.array_equal(with_soft[name], without[name])


def test_a_student_trains_on_all_chips_and_predicts_alone(
    city: Path, teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = student()
    context = RunContext(tmp_path / "weights", CPU)
    given = teacher.files[0].path.parent
    options = TrainingOptions(tmp_path / "cache", teacher=given)
    assert train([city / "train"], recipe, context, options) == {}
    printed = capsys.readouterr().out
    assert "teacher: demo, 8 passes per chip (2 networks x 4 test-time augmentations)" in printed
    assert "all-tiny-3band: 6 chips, not validated" in printed
    (file,) = choose(find_weights(context.weights), recipe)
    assert file.path.name == "all-tiny-3band.last.safetensors"
    assert file.held_out == frozenset()
    described = read_manifest(file.path)
    assert isinstance(described, WeightsManifest)
    assert {each.name for each in described.starts_from} == {
        each.path.name for each in teacher.files
    }
    # Labels alone give another network.
    losses = recipe.members[0].losses.model_copy(update={"distillation": None})
    member = recipe.members[0].model_copy(update={"losses": losses})
    labels = recipe.model_copy(update={"members": (member,)})
    assert labels.training_fingerprint != recipe.training_fingerprint
    alone = RunContext(tmp_path / "labels", CPU)
    train([city / "train"], labels, alone, TrainingOptions(tmp_path / "cache"))
    weights = [load_weights(next(w.weights.glob("*.safetensors")))[0] for w in (context, alone)]
    assert not torch.equal(weights[0].head.weight, weights[1].head.weight)
    # A training with another teacher cannot resume from this one.
    other = tmp_path / "other"
    make_teacher(other)
    (other / "1.last.safetensors").unlink()
    with pytest.raises(SatmapError, match=r"another recipe or other chips.*--restart"):
        train([city / "train"], recipe, context, replace(options, teacher=other))


def test_chips_of_the_teacher_count_as_seen_by_the_student(
    city: Path, teacher: Teacher, tmp_path: Path
) -> None:
    recipe = student(members=[{**MEMBER, "fold": 0}])
    context = RunContext(tmp_path / "weights", CPU)
    options = TrainingOptions(tmp_path / "cache", teacher=teacher.files[0].path.parent)
    train([city / "train"], recipe, context, options)
    files = find_weights(context.weights)
    assert {file.checkpoint for file in files} == {"best_apls", "best_dice", "last"}
    assert {file.held_out for file in files} == {frozenset()}


def test_the_processes_of_a_machine_share_the_teachers_work(
    chips: list[CachedChip], teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "local_processes", lambda: 2)
    made = []
    for rank in range(2):
        context = RunContext(tmp_path / "weights", CPU, ranks=Ranks(local_rank=rank))
        taught = predict_soft_targets(chips, teacher, context)
        made.append([chip.soft.exists(chip.shape[:2]) for chip in taught if chip.soft])
    assert made == [[True, False] * 3, [True] * 6]


def test_unusable_teachers(teacher: Teacher, tmp_path: Path) -> None:
    context = RunContext(tmp_path / "weights", CPU)
    given = teacher.files[0].path.parent

    def run(recipe: Recipe, directory: Path | None) -> None:
        train([tmp_path], recipe, context, TrainingOptions(tmp_path / "cache", teacher=directory))

    with pytest.raises(SatmapError, match=r"student learns from a trained ensemble.*--teacher"):
        run(student(), None)
    with pytest.raises(SatmapError, match="demo has no `distillation`"):
        run(load_recipe("demo"), given)
    with pytest.raises(SatmapError, match="no weights"):
        run(student(), tmp_path)
    with pytest.raises(SatmapError, match="`stretch` and `input_px` must agree"):
        run(student(stretch={"low": 1}), given)
    # The student's own weights are no teacher, but may lie beside others.
    network = build_network("tiny", 3, ROAD_MAPS, (16, 16, 16, 16))
    own = tmp_path / "own" / "all-tiny-3band.last.safetensors"
    save_weights(own, network, {"recipe": student().model_dump_json()})
    with pytest.raises(SatmapError, match="only those of student"):
        find_teacher(own.parent, student())
    for file in teacher.files:
        (own.parent / file.path.name).write_bytes(file.path.read_bytes())
    assert find_teacher(own.parent, student()).digest == teacher.digest
    other = load_recipe("quick-roads").model_dump_json()
    save_weights(own.parent / "other.last.safetensors", network, {"recipe": other})
    with pytest.raises(SatmapError, match="those of demo, quick-roads"):
        find_teacher(own.parent, student())
