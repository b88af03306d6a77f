import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import satmap
from repository import ROOT
from satmap.errors import SatmapError
from satmap.networks.encoders import ENCODERS
from satmap.recipes.encoder_names import ENCODER_NAMES
from satmap.recipes.schedules import CyclicSchedule
from satmap.recipes.schema import (
    DecoderSettings,
    TileSettings,
    load_recipe,
    parse_recipe,
    recipe_from_json,
    recipe_names,
)
from satmap.tasks.raster.settings import FootprintLoss
from satmap.tasks.roads.settings import RoadLosses as Losses

RECIPES = ROOT / "code/satmap/recipes"
DEMO = """\
format: 1
name: demo
description: "two small ResNet18 UNets"
task: roads
folds: 2

x-losses: &losses
  road: {dice: 0.5, focal: 2, bce: 0.1}
  speed: {dice: 0.1, focal: 2, bce: 1}
  junction: {dice: 0.1, focal: 1, bce: 0}

x-stages: &stages
  - crop: 256
    batch: 8
    epochs: 8
    passes: 8
    validate_every: 8
    schedule: {kind: cosine, peak: 2.0e-3, final: 2.0e-5, warmup: 0.1}

x-member: &member
  pretrained: false
  decoder: [128, 96, 64, 32]
  losses: *losses
  stages: *stages

members:
  - {fold: 0, encoder: resnet18, bands: 3, <<: *member}
  - {fold: 1, encoder: resnet18, bands: 8, <<: *member}

inference:
  tta: 4
  checkpoints: [last]
"""


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert {member.encoder for member in recipe.members} <= ENCODERS.keys()


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_state_their_format(name: str) -> None:
    assert yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["format"] == 1


def test_the_format_number_does_not_change_a_recipe() -> None:
    with_number, without = parse_recipe(DEMO, "x"), parse_recipe(DEMO.replace("format: 1", ""), "x")
    assert with_number == without
    assert with_number.model_dump_json() == without.model_dump_json()
    assert "format" not in with_number.model_dump()


@pytest.mark.parametrize("number", ["2", "0", "1.0", "'1'", "true", "null", "[1]"])
def test_other_format_numbers_are_refused(number: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DEMO.replace("format: 1", f"format: {number}\nkey_of_format_2: 0"))
    with pytest.raises(SatmapError) as caught:
        load_recipe(str(path))
    found = repr(yaml.safe_load(number))
    expected = (
        f"recipe {path}: its format is {found}, but satmap {satmap.__version__} reads recipes"
    )
    assert str(caught.value).startswith(f"{expected} of format 1. Use the version of satmap")


def test_the_reference_recipe_has_the_reference_constants() -> None:
    recipe = load_recipe("sn5-roads")
    assert [(m.encoder, m.bands) for m in recipe.members] == [
        ("inception_resnet_v2", 3),
        ("inception_resnet_v2", 3),
        ("dpn92", 8),
        ("dpn92", 3),
    ]
    assert recipe.inference.tta == 8
    assert recipe.checkpoints == ("best_apls", "best_dice", "last")
    first, second = recipe.members[0].stages
    assert (first.crop, first.batch, first.epochs, first.passes) == (384, 10, 38, 8)
    assert (second.crop, second.batch, second.epochs) == (512, 4, 14)
    assert second.sync_batch_norm
    assert recipe.members[2].stages[0].freeze_encoder_epochs == 0
    losses = recipe.members[2].losses
    assert isinstance(losses, Losses)
    assert losses.speed.dice == 0.12


def test_the_open_cities_recipe_has_the_constants_of_the_second_place() -> None:
    recipe = load_recipe("open-cities")
    assert (recipe.folds, recipe.folds_by, recipe.sampling) == (5, "tile", "equal_scenes")
    assert recipe.tiles == TileSettings(zoom=19, size=1024, nodata="black")
    assert [
        [(m.encoder, m.fold, m.stages[0].epochs) for m in members]
        for members in recipe.members_by_round
    ] == [
        [("efficientnet_b4", fold, 60) for fold in range(3)],
        [("dpn92", 3, 60), ("densenet161", 4, 60)],
        [("inception_v4", 3, 27), ("senet154", 4, 27), ("se_resnext50_32x4d", 3, 27),
         ("densenet161", 1, 27), ("efficientnet_b4", 0, 27)],
    ]  # fmt: skip
    for member in recipe.all_members:
        assert member.decoder.widths == (256, 128, 64, 32, 16)
        # Cross entropy, and Lovasz from the 25th epoch on.
        assert member.losses_of(0, 23).building == FootprintLoss(bce=1)
        assert member.losses_of(0, 24).building == FootprintLoss(lovasz_softmax=1)
        (stage,) = member.stages
        assert stage.schedule == CyclicSchedule(high=1e-4, low=1e-6, half_period=5, shape="cosine")
    assert [(r.labels, r.share, r.start) for r in recipe.rounds] == [("hard", 0.03, "anew")] * 2
    assert (recipe.optimizer.name, recipe.optimizer.weight_decay) == ("adamw", 1e-4)
    assert (recipe.task.threshold, recipe.inference.tta) == (0.5, 4)


@pytest.mark.parametrize("name", ["open-cities", "open-cities-best"])
def test_the_open_cities_recipes_learn_from_test_images(name: str) -> None:
    recipe = load_recipe(name)
    assert all(each.test_images and each.share for each in recipe.rounds)
    with pytest.raises(SatmapError, match="--unlabelled"):
        recipe.require_unlabelled(False)


def test_a_single_network_learns_from_an_ensemble_on_all_chips() -> None:
    for name, teacher in (
        ("sn5-roads-single", "sn5-roads-cosine"),
        ("quick-roads-single", "quick-roads"),
    ):
        recipe = load_recipe(name)
        assert recipe.members == load_recipe(teacher).members
        (member,) = recipe.ensemble
        (distillation,) = recipe.rounds
        assert (member.fold, recipe.inference.tta) == (None, 1)
        assert (distillation.labelled, distillation.share) == (True, 0)
        assert distillation.tta == load_recipe(teacher).inference.tta
        assert member.name == f"all-{member.encoder}-3band-light"
        # A weight file holds the recipe as JSON.
        again = recipe_from_json(recipe.model_dump_json())
        assert again.training_fingerprint == recipe.training_fingerprint
    with pytest.raises(SatmapError, match=r"members.0.fold: this key is missing"):
        parse_recipe(DEMO.replace("fold: 0, ", ""), "x")


def test_a_custom_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(DEMO.replace("name: demo", "name: mine"))
    assert load_recipe(str(path)).name == "mine"


def test_decoders_are_widths_or_a_kind_with_widths() -> None:
    old = "decoder: [128, 96, 64, 32]"
    recipe = parse_recipe(DEMO, "x")
    assert recipe.members[0].decoder.kind == "plain"
    assert recipe.members[0].decoder.widths == (128, 96, 64, 32)
    spelled = DEMO.replace(old, "decoder: {kind: plain, widths: [128, 96, 64, 32]}")
    assert parse_recipe(spelled, "x").training_fingerprint == recipe.training_fingerprint
    # Form used by weight files of the first version.
    assert '"decoder":[128,96,64,32]' in recipe.model_dump_json()
    light = parse_recipe(DEMO.replace(old, "decoder: {kind: light}"), "x")
    assert light.members[0].decoder == DecoderSettings(kind="light", widths=(256, 256, 128, 64))
    assert light.training_fingerprint != recipe.training_fingerprint
    again = recipe_from_json(light.model_dump_json())
    assert again.training_fingerprint == light.training_fingerprint
    for wrong, message in (
        ("{kind: heavy}", "decoder.kind"),
        ("[128, 96, 64]", r"decoder.widths"),
        ("[128, 96, 64, 0]", r"decoder.widths.3"),
        ("{width: [1, 1, 1, 1]}", "decoder.width: unknown key"),
        ("light", "decoder"),
    ):
        with pytest.raises(SatmapError, match=message):
            parse_recipe(DEMO.replace(old, f"decoder: {wrong}"), "x")


@pytest.mark.parametrize("bands", [1, 4, 12])
def test_any_number_of_bands(bands: int) -> None:
    recipe = parse_recipe(DEMO.replace("bands: 8", f"bands: {bands}"), "x")
    assert recipe.members[1].bands == bands
    assert recipe.members[1].name == f"fold1-resnet18-{bands}band"


def test_encoders_are_known_without_torch() -> None:
    assert tuple(ENCODERS) == ENCODER_NAMES
    code = "import satmap.recipes.schema, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_members_that_differ_only_in_the_decoder_have_different_names() -> None:
    content = yaml.safe_load(DEMO)
    first = content["members"][0]
    content["members"] = [first, {**first, "decoder": {"kind": "light"}}]
    recipe = parse_recipe(yaml.safe_dump(content), "x")
    assert [member.name for member in recipe.members] == [
        "fold0-resnet18-3band", "fold0-resnet18-3band-light",
    ]  # fmt: skip
    content["members"][1] = {**first, "decoder": [1, 1, 1, 1]}
    with pytest.raises(SatmapError, match="same fold, encoder, bands, kind of decoder and area"):
        parse_recipe(yaml.safe_dump(content), "x")


def test_settings_of_prediction_do_not_affect_training() -> None:
    recipe = load_recipe("demo")
    views = recipe.model_copy(update={"inference": recipe.inference.model_copy(update={"tta": 8})})
    assert views.training_fingerprint == recipe.training_fingerprint
    seed = parse_recipe(DEMO + "\nseed: 1\n", "x")
    assert seed.training_fingerprint != recipe.training_fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour: unknown key"),
        ({"inference": {"view": 8}}, "inference.view: unknown key"),
        ({"inference": {"tta": 6}}, "inference.tta"),
        ({"roads": {}}, "roads: unknown key"),
        (
            {"task": {"name": "roads", "vectorizer": {"no_such": 1}}},
            "task.vectorizer.no_such: unknown key",
        ),
        ({"folds": 1}, "folds: .*got 1"),
        ({"folds": None}, "folds"),
        ({"task": "clouds"}, "task"),
        ({"members": []}, "members"),
        ({"inference": {"window": 256, "overlap": 128}}, "window must be more than twice"),
    ],
)
def test_faults_are_named(change: dict[str, object], message: str) -> None:
    content = yaml.safe_load(DEMO) | change
    with pytest.raises(SatmapError, match=message):
        parse_recipe(yaml.safe_dump(content), "x")


def test_faults_inside_members_are_named() -> None:
    for old, new, message in (
        ("epochs: 8", "epoch: 8", "members.0.stages.0.epoch: unknown key"),
        ("fold: 1", "fold: 2", "a member's fold must be below folds = 2"),
        ("crop: 256", "crop: 250", "multiple of 32"),
        ("kind: cosine", "kind: step", "schedule"),
        ("bands: 8", "bands: 0", "members.1.bands"),
        ("bands: 8", "bands: 2000", "members.1.bands"),
        ("bands: 8", "bands: true", "members.1.bands"),
        ("bands: 8", "bands: 4.5", "members.1.bands"),
        ("fold: 1, encoder: resnet18", "fold: 1, encoder: resnet81", "mean resnet18 or"),
        ("fold: 1, encoder: resnet18", "fold: 1, encoder: unet", "'unet'; known are .*dpn92"),
        ("epochs: 8", "epochs: 8\n    freeze_encoder_stages: 2", "needs freeze_encoder_epochs"),
        ("peak: 2.0e-3", "peak: .inf", "peak"),
        ("checkpoints: [last]", "checkpoints: []", "inference.checkpoints"),
        ("dice: 0.5, focal: 2, bce: 0.1", "dice: -1", "dice"),
    ):
        assert old in DEMO
        with pytest.raises(SatmapError, match=message):
            parse_recipe(DEMO.replace(old, new), "x")


def test_one_fault_is_one_line() -> None:
    with pytest.raises(SatmapError) as caught:
        parse_recipe(DEMO.replace("crop: 256", "crops: 256"), "x")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].split(".")[-1] for line in lines[1:]] == [
        "crop", "crops", "crop", "crops",
    ]  # fmt: skip


def test_invalid_recipe_files(tmp_path: Path) -> None:
    with pytest.raises(SatmapError, match=r"no recipe is called 'sn6'.*sn5-roads"):
        load_recipe("sn6")
    with pytest.raises(SatmapError, match="cannot be read"):
        load_recipe(str(tmp_path / "absent.yaml"))
    with pytest.raises(SatmapError, match="not YAML"):
        parse_recipe("a: [", "x")
    with pytest.raises(SatmapError, match="must be a mapping"):
        parse_recipe("- a", "x")
