"""Prediction: from directories of images to the submission file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from satmap.data.chip import Chip
from satmap.data.imagery import read_stretched
from satmap.data.neighbours import Footprint, Neighbour, find_neighbours
from satmap.data.spacenet_roads import scan
from satmap.errors import CannotWriteError, SatmapError
from satmap.files import require_writable
from satmap.inference.ensemble import Voter, predict_planes
from satmap.inference.journal import Journal
from satmap.inference.plane_store import PlaneStore
from satmap.inference.weights import WeightFile, choose, find_weights, load_ensemble, recipe_of
from satmap.planes import ROAD_PLANES, Planes
from satmap.progress import track
from satmap.recipe import Recipe, load_recipe
from satmap.roads.context import crop, margin_px, with_surroundings
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
    fingerprint = _fingerprint(recipe, files)
    store = PlaneStore(output, fingerprint)
    places = _places(inventory.chips, recipe)
    with Journal(output, fingerprint) as journal:
        for place in track(places, "predicting", len(places)):
            if place.key in journal.finished and all(
                places[n.image].key in journal.finished for n in place.neighbours
            ):
                continue
            if place.neighbours and place.key in store:
                continue
            try:
                planes, notes = predict_chip_planes(place.chip, voters, recipe, device)
                # Planes of a stand-in on another grid cannot be laid beside the neighbours'.
                if place.neighbours and planes.values.shape[1:] == place.shape:
                    store.add(place.key, planes.values)
                else:
                    journal.add(place.key, to_rows(vectorize(planes, recipe.roads)))
            except CannotWriteError:
                raise
            except SatmapError as error:
                faults[place.chip.image_id] = str(error)
                continue
            # A fault that nobody has thought of still costs only one image.
            except Exception as error:
                faults[place.chip.image_id] = f"{type(error).__name__}: {error}"
                continue
            warnings |= dict.fromkeys(notes)
        waiting = [p for p in places if p.key not in journal.finished and p.key in store]
        for place in track(waiting, "vectorising", len(waiting)):
            try:
                journal.add(place.key, _rows_among_neighbours(place, places, store, recipe))
            except CannotWriteError:
                raise
            except Exception as error:
                faults[place.chip.image_id] = f"{type(error).__name__}: {error}"
        for place in places:
            if place.key in journal.finished:
                rows[ids[place.chip.image_id]] = journal.finished[place.key]
        write_roads_csv(output, rows)
        journal.remove()
        store.remove()
    return Prediction(rows, faults, tuple(warnings))


@dataclass(frozen=True)
class _Place:
    """A chip where it lies.

    Attributes:
        chip: the chip.
        key: says whose planes or rows something is, and with which neighbours they were made.
        neighbours: the chips around it, indices into the list of places.
    """

    chip: Chip
    key: str
    neighbours: Sequence[Neighbour]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the chip's richest image."""
        return self.chip.image.height, self.chip.image.width


def _places(chips: Sequence[Chip], recipe: Recipe) -> list[_Place]:
    footprints = [
        Footprint(chip.image.georeference, chip.image.width, chip.image.height) for chip in chips
    ]
    around: list[list[Neighbour]] = [[] for _ in chips]
    sizes = [f.georeference.metres_per_pixel for f in footprints if f.georeference is not None]
    if recipe.inference.neighbours and sizes:
        around = find_neighbours(footprints, margin_px(min(sizes)))
    keys = [_key(chip) for chip in chips]
    return [
        _Place(chip, " ".join([key, *sorted(keys[n.image] for n in neighbours)]), neighbours)
        for chip, key, neighbours in zip(chips, keys, around, strict=True)
    ]


def _rows_among_neighbours(
    place: _Place, places: Sequence[_Place], store: PlaneStore, recipe: Recipe
) -> list[RoadRow]:
    """The roads of an image, vectorised with what lies around it."""
    own = _stored(place, store)
    if own is None:
        raise OSError(f"the planes in {store.directory} have vanished")
    around = [
        (planes, neighbour.column, neighbour.row)
        for neighbour in place.neighbours
        if (planes := _stored(places[neighbour.image], store)) is not None
    ]
    planes, box = with_surroundings(own, around)
    return to_rows(crop(vectorize(planes, recipe.roads), box, own.metres_per_pixel))


def _stored(place: _Place, store: PlaneStore) -> Planes | None:
    georeference = place.chip.image.georeference
    values = store.read(place.key, len(ROAD_PLANES))
    if values is None or georeference is None:
        return None
    return Planes(ROAD_PLANES, values, georeference.metres_per_pixel)


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
