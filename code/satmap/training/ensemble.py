"""Training a recipe: from directories to the weights of every member."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from satmap.data.folds import assign_folds
from satmap.data.preparation import Preparation, prepare
from satmap.data.spacenet_roads import scan
from satmap.errors import SatmapError
from satmap.files import remove_left_over, require_writable
from satmap.models.encoders import require_encoder
from satmap.models.pretrained import find_encoder_file, how_to_get
from satmap.models.unet import build_network
from satmap.models.weights import load_pretrained_encoder
from satmap.planes import ROAD_PLANES
from satmap.recipe import Member, Recipe
from satmap.training.loop import Workplace, member_seed, train_member


@dataclass(frozen=True)
class TrainingOptions:
    """What the user may choose beside the recipe.

    Attributes:
        cache: directory of prepared chips.
        from_scratch: start from random encoders instead of ImageNet's.
        skip_unlabelled: leave images without labels out instead of stopping.
        folds: train only the members of these folds; all if empty.
    """

    cache: Path
    from_scratch: bool = False
    skip_unlabelled: bool = False
    folds: tuple[int, ...] = ()


def train(
    directories: Sequence[Path], recipe: Recipe, place: Workplace, options: TrainingOptions
) -> dict[str, str]:
    """Train the recipe's members on the chips found in the directories.

    Returns:
        Image id to fault, for the chips that were left out.

    Raises:
        SatmapError: no usable chips, labels missing, or somewhere that cannot be written.
    """
    require_writable(place.weights / "weights.safetensors")
    require_writable(options.cache / "chip.safetensors")
    members = [m for m in recipe.members if not options.folds or m.fold in options.folds]
    if not members:
        raise SatmapError(f"recipe {recipe.name} has no member of fold {list(options.folds)}.")
    for member in members:
        require_encoder(member.encoder)
    encoder_files = {member.name: _encoder_file(member, place, options) for member in members}
    remove_left_over(place.weights)
    remove_left_over(options.cache)
    inventory = scan(directories)
    print(inventory.summary(), flush=True)
    labelled = [chip for chip in inventory.chips if chip.label is not None]
    if not options.skip_unlabelled or not labelled:
        inventory.require_labels()
    preparation = prepare(
        labelled,
        max(member.bands for member in members),
        options.cache,
        recipe.stretch,
        recipe.targets,
    )
    faults = inventory.faults | preparation.faults
    chips = preparation.chips
    Preparation(chips, faults).require_enough()
    if not any(chip.labels for chip in chips):
        raise SatmapError(
            f"none of the {len(chips)} chips has a road in its label, so there is nothing to "
            "learn. Check that these are road labels."
        )
    folds = assign_folds([(chip.image_id, chip.aoi) for chip in chips], recipe.folds, recipe.seed)
    for member in members:
        held_out = [chip for chip in chips if folds[chip.image_id] == member.fold]
        others = [chip for chip in chips if folds[chip.image_id] != member.fold]
        if not others:
            # One chip alone: train and validate on it rather than not at all.
            print(f"{member.name}: too few chips for folds; validation sees training chips")
            others = held_out
        print(f"{member.name}: {len(others)} chips, validated on {len(held_out)}", flush=True)
        # One seed a member, whatever was trained before it.
        torch.manual_seed(member_seed(recipe, member, 0))
        network = build_network(
            member.encoder, member.bands, ROAD_PLANES, member.decoder.widths, member.decoder.kind
        )
        file = encoder_files[member.name]
        if file is not None:
            load_pretrained_encoder(network, file)
        pretrained = file is not None
        train_member(network, member, recipe, others, held_out, place, pretrained=pretrained)
    return faults


def _encoder_file(member: Member, place: Workplace, options: TrainingOptions) -> Path | None:
    """Where the member's ImageNet weights lie, checked before any work is done."""
    if options.from_scratch or not member.pretrained:
        return None
    file = find_encoder_file(place.weights, member.encoder)
    if file.exists():
        return file
    if place.state_file(member).exists() and not place.restart:
        # The state holds the whole network; if it does not fit, train_member says so.
        return None
    raise SatmapError(
        f"recipe member {member.name} starts from ImageNet weights, but {file} does not exist. "
        f"{how_to_get(member.encoder)}"
    )
