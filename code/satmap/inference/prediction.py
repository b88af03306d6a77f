"""Prediction: from directories of images to the submission file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from satmap.data.chip import Chip
from satmap.data.imagery import read_stretched
from satmap.data.spacenet_roads import scan
from satmap.errors import CannotWriteError, SatmapError
from satmap.files import require_writable
from satmap.inference.ensemble import Voter, predict_planes
from satmap.inference.journal import Journal
from satmap.inference.weights import WeightFile, choose, find_weights, load_ensemble, recipe_of
from satmap.planes import Planes
from satmap.progress import track
from satmap.recipe import Recipe, load_recipe
from satmap.roads.rows import to_rows
from satmap.roads.vectorize import vectorize
from satmap.submissions.roads_csv import RoadRow, write_roads_csv


@dataclass(frozen=True)
class Prediction:
    """What a prediction did.

    Attributes:
        images: rows by the id that stands in the file, every image found.
        faults: image id to what was wrong, for the images that could not be predicted and are
            empty in the file.
        warnings: what the user should know of the others.
    """

    images: dict[str, list[RoadRow]]
    faults: dict[str, str]
    warnings: tuple[str, ...]


def predict(
    directories: Sequence[Path],
    output: Path,
    weights: Path,
    device: torch.device,
    recipe_name: str | None = None,
) -> Prediction:
    """Predict every image of the directories and write the submission.

    An image that cannot be read or predicted is reported and has an empty row. A run that was
    stopped goes on with the images that it had not finished.

    Args:
        directories: areas, or roots of many.
        output: the CSV file.
        weights: directory of trained weights; all of the recipe's are averaged.
        device: where networks run.
        recipe_name: by default that of the weights.

    Raises:
        SatmapError: no images, no weights, or an output that cannot be written.
    """
    require_writable(output)
    _refuse_foreign_file(output)
    files = find_weights(weights)
    recipe = load_recipe(recipe_name) if recipe_name else recipe_of(files)
    files = choose(files, recipe)
    inventory = scan(directories)
    print(inventory.summary(), flush=True)
    print(f"ensemble of {len(files)} networks, {recipe.inference.views} views", flush=True)
    voters = load_ensemble(files, device)
    least = min(voter.network.encoder.in_channels for voter in voters)
    if inventory.chips and all(chip.channels < least for chip in inventory.chips):
        inventory.chips[0].require_channels(least)
    prefixed = recipe.submission.keep_prefix
    ids = {short: long if prefixed else short for short, long in inventory.long_ids.items()}
    rows: dict[str, list[RoadRow]] = {name: [] for name in ids.values()}
    faults = dict(inventory.faults)
    warnings = dict.fromkeys(inventory.warnings)
    with Journal(output, _fingerprint(recipe, files)) as journal:
        for chip in track(inventory.chips, "predicting", len(inventory.chips)):
            key = _key(chip)
            if key not in journal.finished:
                try:
                    done, notes = predict_chip(chip, voters, recipe, device)
                except SatmapError as error:
                    faults[chip.image_id] = str(error)
                    continue
                # A fault that nobody has thought of still costs only one image.
                except Exception as error:
                    faults[chip.image_id] = f"{type(error).__name__}: {error}"
                    continue
                warnings |= dict.fromkeys(notes)
                journal.add(key, done)
            rows[ids[chip.image_id]] = journal.finished[key]
        write_roads_csv(output, rows)
        journal.remove()
    return Prediction(rows, faults, tuple(warnings))


def predict_chip(
    chip: Chip, voters: Sequence[Voter], recipe: Recipe, device: torch.device
) -> tuple[list[RoadRow], list[str]]:
    """The roads of one image as submission rows, and what the user should know of them.

    Raises:
        SatmapError: no product of the image can be read.
    """
    planes, notes = predict_chip_planes(chip, voters, recipe, device)
    return to_rows(vectorize(planes, recipe.roads)), notes


def predict_chip_planes(
    chip: Chip, voters: Sequence[Voter], recipe: Recipe, device: torch.device
) -> tuple[Planes, list[str]]:
    """The averaged planes of one image, and what the user should know of them.

    Where the multispectral image cannot be read, the RGB image serves.

    Raises:
        SatmapError: no product of the image can be read.
    """
    notes: list[str] = []
    for info in (chip.image, *(i for i in chip.images.values() if i is not chip.image)):
        fitting = [voter for voter in voters if voter.network.encoder.in_channels <= info.bands]
        if not fitting:
            chip.require_channels(min(voter.network.encoder.in_channels for voter in voters))
            continue
        channels = max(voter.network.encoder.in_channels for voter in fitting)
        try:
            image = read_stretched(info, recipe.stretch.low, recipe.stretch.high, channels)
        except SatmapError as error:
            notes.append(str(error))
            continue
        if len(fitting) < len(voters):
            notes.append(
                f"{len(voters) - len(fitting)} of {len(voters)} networks need PS-MS images and "
                "were left out where there is only PS-RGB"
            )
        size = recipe.inference.default_metres_per_pixel, recipe.inference.default_metres_per_pixel
        if info.georeference is None:
            notes.append(f"images without georeference are taken to have {size[0]} m a pixel")
        else:
            size = info.georeference.metres_per_pixel
        values = predict_planes(fitting, image, recipe.inference, device)
        return Planes(fitting[0].network.plane_names, values, size), notes
    raise SatmapError(" ".join(notes))


def _refuse_foreign_file(output: Path) -> None:
    """A forgotten last argument must not cost an image: only a roads CSV is ever replaced."""
    if output.is_file() and output.stat().st_size:
        with output.open("rb") as file:
            start = file.read(64)
        if b"imageid" not in start.lower():
            raise CannotWriteError(
                f"{output} exists and is no roads CSV. The last argument is the file to write: "
                "give another name."
            )


def _key(chip: Chip) -> str:
    stat = chip.image.path.stat()
    return f"{chip.image_id} {chip.image.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def _fingerprint(recipe: Recipe, files: Sequence[WeightFile]) -> str:
    stats = [
        (file.path.name, file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in files
    ]
    return json.dumps([recipe.model_dump_json(), stats])
