"""Rounds of a training: pseudo-labels of an ensemble or of a network's own average; resuming."""

import json
import random
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from forked_ranks import all_alive, finish, kill_one, start_command, start_ranks, wait_until
from repository import SHARED
from satmap.data.own_data import OwnData
from satmap.errors import SatmapError
from satmap.prediction.run import predict
from satmap.provenance.manifest import SubmissionManifest, WeightsManifest, read_manifest
from satmap.recipes.schema import Recipe, parse_recipe
from satmap.training import train_ensemble
from satmap.training.rounds import Lesson, TrainingRound, prepare_lesson
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from satmap.weights.members import choose, find_weights
from satmap.weights.network_files import load_weights
from tiny_trainings import road_member, road_recipe, stage

CPU = torch.device("cpu")
WIDTHS = (16, 16, 16, 16)

FIRST = road_member(bands=3, decoder=WIDTHS)
#: A network that learns from the others, with its own name.
STUDENT = road_member(bands=3, fold=None, decoder=WIDTHS, stages=[stage(epochs=2, passes=2)])

pytestmark = pytest.mark.usefixtures("tiny_encoders")


def rounds_recipe(*rounds: Mapping[str, object], **changes: object) -> Recipe:
    settings: dict[str, object] = {
        "rounds": [dict(each) for each in rounds],
        "inference": {"tta": 1, "checkpoints": ["last"]},
    } | changes
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


def command(city: Path, directory: Path, recipe: Recipe | None = None) -> list[str]:
    content = (recipe or three_rounds()).model_dump(mode="json")
    (directory / "rounds.yaml").write_text(yaml.safe_dump(content))
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


def test_pseudo_labels_take_their_time_from_the_rounds_after_them(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def slow(this: TrainingRound, *others: Any) -> Lesson:
        time.sleep(1.0 if this.number else 0.0)
        return prepare_lesson(this, None, *others[1:])

    def not_trained(*arguments: Any) -> None:
        found.append(sum(sum(stages) for stages in arguments[-1].values()))

    monkeypatch.setattr(train_ensemble, "prepare_lesson", slow)
    monkeypatch.setattr(train_ensemble, "_train_round", not_trained)
    options = TrainingOptions(
        city.parent / "rounds-cache", unlabelled=(city / "test",), time_limit=1000.0
    )
    student = {**STUDENT, "stages": [stage()]}
    recipe = rounds_recipe({"share": 0.5, "test_images": True, "members": [student]})
    train([city / "train"], recipe, RunContext(tmp_path, CPU), options)
    # The second round has twice the labelled chips, and half of its crops are unlabelled.
    first, second = found
    assert 1.0 <= 4 * first - second < 100


def test_a_time_limit_is_shared_by_the_rounds_also_after_a_kill(city: Path, tmp_path: Path) -> None:
    """Without the limit the rounds would train for hours."""
    endless = [stage(epochs=1000, passes=50)]
    recipe = rounds_recipe(
        {"share": 0.5, "test_images": True, "members": [{**STUDENT, "stages": endless}]},
        members=[{**FIRST, "stages": endless}],
    )
    arguments = [*command(city, tmp_path, recipe), "--time-limit", "6s"]
    weights = tmp_path / "weights"
    process = start_command(arguments, tmp_path / "log.txt")
    assert wait_until(lambda: any(weights.glob("*.state.pt")), process.is_alive)
    process.kill()
    process.join()
    (first,) = (path.read_bytes() for path in (weights / "round1").glob("*.last.safetensors"))
    assert finish([start_command(arguments, tmp_path / "log.txt")]) == [0]
    log = (tmp_path / "log.txt").read_text()
    assert "fold0-tiny-3band: already trained" in log and "all-tiny-3band: resuming after" in log
    assert [path.read_bytes() for path in (weights / "round1").glob("*.last.safetensors")] == [
        first
    ]
    assert not predict([city / "test"], tmp_path / "out.csv", weights, "cpu").faults


def exists_in(directory: Path, pattern: str) -> bool:
    return any(directory.glob(pattern))


def test_two_processes_share_the_rounds_and_resume_after_kills(city: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for directory in (whole, broken):
        directory.mkdir()
    assert finish(start_ranks(command(city, whole), whole)) == [0, 0]
    assert "round 2 of test" in (whole / "rank0.txt").read_text()
    arguments, moments = command(city, broken), random.Random(1)
    markers = ("round1/*.state.pt", "round2/*.state.pt", "all*.state.pt")
    for marker in markers:
        processes = start_ranks(arguments, broken)
        found = partial(exists_in, broken / "weights", marker)
        assert wait_until(found, partial(all_alive, processes))
        kill_one(processes, moments, broken)
    assert finish(start_ranks(arguments, broken)) == [0, 0]
    assert weights_in(broken / "weights") == weights_in(whole / "weights")


# Options and unlabelled images


def test_unusable_combinations_are_refused_before_the_training(city: Path, tmp_path: Path) -> None:
    context = RunContext(tmp_path / "weights", CPU)
    learning = rounds_recipe({"share": 0.5})

    def refused(recipe: Recipe, message: str, *places: Path, folds: tuple[int, ...] = ()) -> None:
        given = TrainingOptions(city.parent / "rounds-cache", unlabelled=places, folds=folds)
        with pytest.raises(SatmapError, match=message):
            train([city / "train"], recipe, context, given)

    refused(learning, "give their directories with --unlabelled")
    refused(rounds_recipe(), "does not use --unlabelled", city / "test")
    refused(learning, "Leave --fold out", city / "test", folds=(0,))
    refused(learning, r"rounds.0 of recipe test must not use test images", city / "test")
    refused(learning, "all images there are among the labelled ones", city / "train")
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
    expected = "5 unlabelled chips; 3 images left out that are labelled; 1 images cannot be used"
    assert expected in capsys.readouterr().out
