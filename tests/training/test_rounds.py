"""Rounds of a training: pseudo-labels of an ensemble or of a network's own average; resuming."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from forked_ranks import finish, kill_one, start_command, start_ranks, wait_until
from repository import SHARED
from satmap.data.cache import prepare_chips
from satmap.data.crops import CachedChip, Geometry, SoftTarget, read_crop, read_soft_crop
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.data.own_data import OwnData
from satmap.errors import SatmapError
from satmap.networks.ensemble import predict_maps
from satmap.networks.unet import build_network
from satmap.prediction.run import predict
from satmap.provenance.manifest import SubmissionManifest, WeightsManifest, read_manifest
from satmap.recipes.pseudo_labels import PseudoLabels
from satmap.recipes.schema import Augmentation, Recipe, parse_recipe
from satmap.runtime.ranks import Ranks
from satmap.tasks.base import task_of
from satmap.tasks.dense import DenseTask, pseudo_label_loss
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.training import pseudo_labels as labelling
from satmap.training.loading import CropDataset
from satmap.training.pseudo_labels import Teacher, find_teacher, predict_by_ensemble
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import choose, find_weights
from satmap.weights.network_files import load_weights, save_weights
from tiny_trainings import road_member, road_recipe, stage

CPU = torch.device("cpu")
WIDTHS = (16, 16, 16, 16)

FIRST = road_member(bands=3, decoder=WIDTHS)
#: A network that learns from the others, with its own name.
STUDENT = road_member(bands=3, fold=None, decoder=WIDTHS, stages=[stage(epochs=2, passes=2)])

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def rounds_recipe(*rounds: dict[str, object], **changes: object) -> Recipe:
    settings = {"rounds": [*rounds], "inference": {"tta": 1, "checkpoints": ["last"]}} | changes
    members = settings.pop("members", [FIRST])
    assert isinstance(members, list)
    return parse_recipe(road_recipe(*members, **settings), "test")


def three_rounds(**last: object) -> Recipe:
    """Three trainings and two pseudo-labellings, as the reference of Open Cities."""
    hard = {"labels": "hard", "share": 0.25, "test_images": True}
    return rounds_recipe(
        {**hard, "members": [{**FIRST, "fold": 1}]},
        {**hard, "members": [STUDENT], **last},
        members=[FIRST, {**FIRST, "bands": 8}],
    )


def probability_file(path: Path, seed: int, bands: int) -> None:
    torch.manual_seed(seed)
    network = build_network("tiny", bands, ROAD_MAPS, WIDTHS)
    member = FIRST | {"bands": bands}
    recipe = rounds_recipe(members=[member])
    metadata = {
        "recipe": recipe.model_dump_json(), "member": str(seed), "stage": "1", "epoch": "1"
    }  # fmt: skip
    save_weights(path, network, metadata)


def make_teacher(directory: Path, seeds: tuple[int, ...] = (0, 1)) -> Teacher:
    """Make a teacher of untrained networks."""
    recipe = rounds_recipe()
    for seed in seeds:
        probability_file(directory / f"{seed}.last.safetensors", seed, 3)
    return find_teacher(directory, recipe, 4)


@pytest.fixture(scope="module")
def teacher(tiny_encoders: None, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def chips(city: Path, tmp_path: Path) -> list[CachedChip]:
    recipe, found = rounds_recipe(), scan_roads([city / "train"]).chips
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


# Recipes


def test_rounds_of_a_recipe() -> None:
    three = three_rounds()
    assert [[m.name for m in members] for members in three.members_by_round] == [
        ["fold0-tiny-3band", "fold0-tiny-8band"], ["fold1-tiny-3band"], ["all-tiny-3band"]
    ]  # fmt: skip
    first = rounds_recipe(members=[FIRST, {**FIRST, "bands": 8}])
    assert three.up_to_round(0).training_fingerprint == first.training_fingerprint
    fingerprints = {three.up_to_round(n).training_fingerprint for n in range(3)}
    assert len(fingerprints) == 3
    # Without members a round has those of the round before.
    again = rounds_recipe({"share": 0.5, "start": "previous", "ignore": 0.9})
    assert again.ensemble == again.members
    assert again.rounds[0].ignore == pytest.approx((0.1, 0.9))
    average = {"teacher": "average", "start": "previous"}
    for rounds, message in (
        ({"share": 0}, "nothing to learn"),
        ({"share": 1}, r"rounds.0.share"),
        ({"ignore": 0.3}, "confidence above .5"),
        ({"ignore": [0.6, 0.4]}, "two rising probabilities"),
        ({"teacher": "average"}, "needs `start: previous`"),
        (average, "needs optimizer.ema_decay"),
        ({"start": "previous", "members": [{**FIRST, "bands": 8}]}, "cannot start from the round"),
        ({"members": [FIRST, FIRST]}, "two members have the same fold"),
        ({"members": [{**FIRST, "fold": 5}]}, "below folds = 2"),
    ):
        with pytest.raises(SatmapError, match=message):
            rounds_recipe(rounds)
    assert rounds_recipe(average, optimizer={"ema_decay": 0.9}).rounds[0].teacher == "average"


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
    task = task_of(rounds_recipe())
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
        chips, 64, 3, 20, None, 1, task_of(rounds_recipe()),
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


# Trainings


def run(city: Path, context: RunContext, recipe: Recipe, unlabelled: Path | None = None) -> None:
    options = TrainingOptions(
        city.parent / "rounds-cache", unlabelled=(unlabelled,) if unlabelled else ()
    )
    assert train([city / "train"], recipe, context, options) == {}


def weights_in(directory: Path) -> dict[str, bytes]:
    """The tensors of all weight files below a directory; the files also hold times."""
    return {
        str(path.relative_to(directory)): b"".join(
            value.numpy().tobytes() for value in load_weights(path)[0].state_dict().values()
        )
        for path in sorted(directory.rglob("*.safetensors"))
    }


@pytest.fixture(scope="module")
def three(city: Path, tiny_encoders: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of three trainings and two labellings of the test images."""
    weights = tmp_path_factory.mktemp("three")
    run(city, RunContext(weights, CPU), three_rounds(), city / "test")
    return weights


def test_three_rounds_leave_an_ensemble_that_predicts(
    city: Path, three: Path, tmp_path: Path
) -> None:
    names = {name for name in weights_in(three) if ".last." in name}
    assert names == {
        "all-tiny-3band.last.safetensors",
        "round1/fold0-tiny-3band.last.safetensors",
        "round1/fold0-tiny-8band.last.safetensors",
        "round2/fold1-tiny-3band.last.safetensors",
    }
    (file,) = choose(find_weights(three), three_rounds())
    last, second, first = (
        read_manifest(three / name)
        for name in (
            file.path.name,
            "round2/fold1-tiny-3band.last.safetensors",
            "round1/fold0-tiny-3band.last.safetensors",
        )
    )
    assert isinstance(last, WeightsManifest)
    assert isinstance(second, WeightsManifest)
    assert isinstance(first, WeightsManifest)
    assert [each.learning for each in (first, second, last)] == [
        "inductive", "transductive", "transductive"
    ]  # fmt: skip
    assert first.unlabelled is None
    assert last.unlabelled is not None and last.unlabelled.list is not None
    listed = json.loads((three / last.unlabelled.list).read_text())
    assert len(listed) == last.unlabelled.chips == 2
    assert [each.name for each in last.starts_from] == ["fold1-tiny-3band.last.safetensors"]
    assert {each.name for each in second.starts_from} == {
        "fold0-tiny-3band.last.safetensors", "fold0-tiny-8band.last.safetensors"
    }  # fmt: skip
    assert "pseudo_labels" in (three / "all-tiny-3band.log.csv").read_text().splitlines()[0]
    output = tmp_path / "out.csv"
    report = predict([city / "test"], output, three, "cpu")
    assert len(report.images) == 2
    submission = read_manifest(output)
    assert isinstance(submission, SubmissionManifest)
    assert submission.learning == "transductive"


def test_pseudo_labels_change_the_network(city: Path, tmp_path: Path) -> None:
    found = set()
    for name, rounds in {
        "labels alone": [],
        "soft": [{"test_images": True, "members": [STUDENT]}],
        "distilled": [{"labelled": True, "share": 0, "members": [STUDENT]}],
    }.items():
        recipe = rounds_recipe(*rounds, members=[FIRST if rounds else STUDENT])
        unlabelled = city / "test" if name == "soft" else None
        run(city, RunContext(tmp_path / name, CPU), recipe, unlabelled)
        found.add(weights_in(tmp_path / name)["all-tiny-3band.last.safetensors"])
    assert len(found) == 3


def test_a_round_starts_from_the_round_before_and_learns_from_its_own_average(
    city: Path, tmp_path: Path
) -> None:
    slow = {**FIRST, "stages": [stage(peak=1e-9)]}
    recipe = rounds_recipe(
        {"teacher": "average", "start": "previous", "test_images": True, "members": [slow]},
        optimizer={"ema_decay": 0.9},
    )
    run(city, RunContext(tmp_path, CPU), recipe, city / "test")
    name = "fold0-tiny-3band.last.safetensors"
    before, after = (load_weights(path / name)[0] for path in (tmp_path / "round1", tmp_path))
    torch.testing.assert_close(after.head.weight, before.head.weight, atol=1e-6, rtol=0)
    manifest = read_manifest(tmp_path / name)
    assert isinstance(manifest, WeightsManifest)
    (start,) = manifest.starts_from
    assert start.sha256 == read_manifest(tmp_path / "round1" / name).file.sha256
    # Validation chips of the same fold stay held out.
    (file,) = choose(find_weights(tmp_path), recipe)
    assert file.held_out


def test_chips_that_the_teacher_labels_count_as_seen(city: Path, tmp_path: Path) -> None:
    recipe = rounds_recipe({"labelled": True, "share": 0})
    run(city, RunContext(tmp_path, CPU), recipe)
    files = find_weights(tmp_path)
    assert {file.checkpoint for file in files} == {"best_apls", "best_dice", "last"}
    assert {file.held_out for file in files} == {frozenset()}
    assert {file.metadata["learning"] for file in files} == {"inductive"}


def test_a_changed_round_keeps_the_earlier_ones(
    city: Path, three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(three, weights)
    changed = three_rounds(weight=0.5)
    with pytest.raises(SatmapError, match=r"another recipe or other chips.*--restart"):
        run(city, RunContext(weights, CPU), changed, city / "test")
    assert "fold1-tiny-3band: already trained" in capsys.readouterr().out
    (weights / "all-tiny-3band.state.pt").unlink()
    run(city, RunContext(weights, CPU), changed, city / "test")
    before, after = weights_in(three), weights_in(weights)
    name = "all-tiny-3band.last.safetensors"
    assert before.pop(name) != after.pop(name)
    assert before == after


# Interruptions


def command(city: Path, directory: Path) -> list[str]:
    (directory / "rounds.yaml").write_text(yaml.safe_dump(three_rounds().model_dump(mode="json")))
    return [
        "train", str(city / "train"), "--recipe", str(directory / "rounds.yaml"),
        "--unlabelled", str(city / "test"), "--weights", str(directory / "weights"),
        "--cache", str(directory / "cache"), "--device", "cpu", "--workers", "0",
        "--save-minutes", "0.001",
    ]  # fmt: skip


def test_a_training_that_is_killed_anywhere_ends_with_the_same_weights(
    city: Path, three: Path, tmp_path: Path
) -> None:
    arguments = command(city, tmp_path)
    weights, cache = tmp_path / "weights", tmp_path / "cache"
    # In the first round, while the first labels are predicted, in the second and in the third.
    for reached in (
        lambda: any((weights / "round1").glob("*8band.state.pt")),
        lambda: any(cache.glob("*.soft-*")),
        lambda: any((weights / "round2").glob("*.state.pt")),
        lambda: any(weights.glob("*.state.pt")),
    ):
        process = start_command(arguments, tmp_path / "log.txt")
        assert wait_until(reached, process.is_alive)
        process.kill()
        process.join()
    assert finish([start_command(arguments, tmp_path / "log.txt")]) == [0]
    assert weights_in(weights) == weights_in(three)


def test_two_processes_share_the_rounds_and_resume_after_kills(city: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for directory in (whole, broken):
        directory.mkdir()
    assert finish(start_ranks(command(city, whole), whole)) == [0, 0]
    log = (whole / "rank0.txt").read_text()
    assert log.count("predicting pseudo-labels") or "round 2 of test" in log
    arguments, moments = command(city, broken), random.Random(1)
    markers = ("round1/*.state.pt", "round2/*.state.pt", "all*.state.pt")
    for marker in markers:
        processes = start_ranks(arguments, broken)
        assert wait_until(
            lambda marker=marker: any((broken / "weights").glob(marker)),
            lambda processes=processes: all(p.is_alive() for p in processes),
        )
        kill_one(processes, moments, broken)
    assert finish(start_ranks(arguments, broken)) == [0, 0]
    assert weights_in(broken / "weights") == weights_in(whole / "weights")


# Options and unlabelled images


def test_unusable_combinations_are_refused_before_the_training(city: Path, tmp_path: Path) -> None:
    context = RunContext(tmp_path / "weights", CPU)
    learning = rounds_recipe({"share": 0.5})

    def refused(recipe: Recipe, message: str, *places: Path, **options: object) -> None:
        given = TrainingOptions(city.parent / "rounds-cache", unlabelled=places, **options)
        with pytest.raises(SatmapError, match=message):
            train([city / "train"], recipe, context, given)

    refused(learning, "give their directories with --unlabelled")
    refused(rounds_recipe(), "does not use --unlabelled", city / "test")
    refused(learning, "Leave --fold out", city / "test", folds=(0,))
    refused(learning, r"rounds.0 of recipe test must not use test images", city / "test")
    refused(learning, "all images there are labelled ones", city / "train")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    refused(learning, "holds a raster that satmap can read", nothing)
    (nothing / "broken.tif").write_bytes(b"II*\0 and no more")
    refused(learning, "broken.tif", nothing)
    assert not list((tmp_path / "weights").rglob("*.pt"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data")
def test_real_images_with_few_masks_learn_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Buildings: any rasters, a few of them with masks, and a broken one among the others."""
    source, images, masks = SHARED / "data/buildings_barnarp", tmp_path / "few", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    many = tmp_path / "many"
    many.mkdir()
    # The largest masks show buildings.
    by_size = sorted((source / "masks").iterdir(), key=lambda path: -path.stat().st_size)
    for number, mask in enumerate(by_size[:8]):
        (path,) = (source / "images").glob(f"{mask.stem}.*")
        (many / path.name).symlink_to(path)
        if number < 3:
            (images / path.name).symlink_to(path)
            (masks / mask.name).symlink_to(mask)
    (many / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    member = {
        **FIRST, "losses": {"building": {"dice": 1, "bce": 1}, "border": {"bce": 1}}, "fold": None
    }  # fmt: skip
    recipe = rounds_recipe({"share": 0.5}, members=[member], task="buildings")
    options = TrainingOptions(
        tmp_path / "cache", unlabelled=(many,), own=OwnData((str(images),), masks)
    )
    context = RunContext(tmp_path / "weights", CPU)
    faults = train([], recipe, context, options)
    assert [Path(name).name for name in faults] == ["broken.jpg"]
    manifest = read_manifest(tmp_path / "weights/all-tiny-3band.last.safetensors")
    assert isinstance(manifest, WeightsManifest)
    assert manifest.learning == "inductive"
    assert manifest.unlabelled is not None and manifest.unlabelled.chips == 5
    assert "5 unlabelled chips; 1 images cannot be used" in capsys.readouterr().out
