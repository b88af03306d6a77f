"""Prediction: from directories of images to the submission file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from satmap.data.chip import Chip
from satmap.data.imagery import read_stretched
from satmap.data.spacenet_roads import scan
from satmap.errors import SatmapError
from satmap.files import require_writable
from satmap.inference.ensemble import predict_planes
from satmap.inference.journal import Journal
from satmap.inference.weights import WeightFile, choose, find_weights, load_ensemble, recipe_of
from satmap.models.unet import UNet
from satmap.planes import Planes
from satmap.recipe import Recipe, load_recipe
from satmap.roads.rows import to_rows
from satmap.roads.vectorize import vectorize
from satmap.submissions.roads_csv import RoadRow, write_roads_csv


@dataclass(frozen=True)
class Prediction:
    """What a prediction did.

    Attributes:
        images: rows by the id that stands in the file, every image found.
        faults: image id to what was wrong; these have no roads in the file.
        warnings: what the user should know but cost nothing.
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
    files = find_weights(weights)
    recipe = load_recipe(recipe_name or recipe_of(files))
    files = choose(files, recipe.name, recipe.inference.checkpoints)
    inventory = scan(directories)
    print(inventory.summary(), flush=True)
    print(f"ensemble of {len(files)} networks, {recipe.inference.views} views", flush=True)
    networks = load_ensemble(files)
    for network in networks:
        network.to(device).to(memory_format=torch.channels_last)
    ids = {
        i: long if recipe.submission.keep_prefix else i for i, long in inventory.long_ids.items()
    }
    rows: dict[str, list[RoadRow]] = {name: [] for name in ids.values()}
    faults = dict(inventory.faults)
    warnings: dict[str, None] = {}
    with Journal(output, _fingerprint(recipe, files)) as journal:
        for chip in tqdm(inventory.chips, desc="predicting", disable=None):
            key = _key(chip)
            if key not in journal.finished:
                try:
                    fitting, warning = _fitting(networks, chip)
                    found = predict_chip(chip, fitting, recipe, device)
                except SatmapError as error:
                    faults[chip.image_id] = str(error)
                    continue
                if warning:
                    warnings[warning] = None
                journal.add(key, found)
            rows[ids[chip.image_id]] = journal.finished[key]
            if chip.image.georeference is None:
                size = recipe.inference.default_metres_per_pixel
                warnings[f"images without georeference are taken to have {size} m a pixel"] = None
        write_roads_csv(output, rows)
        journal.remove()
    return Prediction(rows, faults, tuple(warnings))


def predict_chip(
    chip: Chip, networks: Sequence[UNet], recipe: Recipe, device: torch.device
) -> list[RoadRow]:
    """The roads of one image as submission rows.

    Raises:
        SatmapError: the image cannot be read.
    """
    planes = predict_chip_planes(chip, networks, recipe, device)
    return to_rows(vectorize(planes, recipe.roads))


def predict_chip_planes(
    chip: Chip, networks: Sequence[UNet], recipe: Recipe, device: torch.device
) -> Planes:
    """The averaged planes of one image."""
    channels = max(network.encoder.in_channels for network in networks)
    image = read_stretched(chip.image, recipe.stretch.low, recipe.stretch.high, channels)
    values = predict_planes(networks, image, recipe.inference, device)
    # Where there is no picture there is no road, whatever the networks make of the black.
    values[:, ~image.any(axis=2)] = 0
    georeference = chip.image.georeference
    default = recipe.inference.default_metres_per_pixel
    size = georeference.metres_per_pixel if georeference else (default, default)
    return Planes(networks[0].plane_names, values, size)


def _fitting(networks: Sequence[UNet], chip: Chip) -> tuple[list[UNet], str]:
    """The networks that the chip has enough bands for, and a warning if that is not all."""
    fitting = [n for n in networks if n.encoder.in_channels <= chip.channels]
    if not fitting:
        chip.require_channels(min(network.encoder.in_channels for network in networks))
    if len(fitting) == len(networks):
        return fitting, ""
    return fitting, (
        f"{len(networks) - len(fitting)} of {len(networks)} networks need PS-MS images and were "
        "left out where there is only PS-RGB"
    )


def _key(chip: Chip) -> str:
    stat = chip.image.path.stat()
    return f"{chip.image_id} {chip.image.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def _fingerprint(recipe: Recipe, files: Sequence[WeightFile]) -> str:
    stats = [
        (file.path.name, file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in files
    ]
    return json.dumps([recipe.model_dump_json(), stats])
