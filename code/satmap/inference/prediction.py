"""Prediction: from directories of images to the submission file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from satmap.data.chip import Chip
from satmap.data.imagery import ImageInfo, read_stretched
from satmap.data.neighbours import Footprint, Neighbour, find_neighbours
from satmap.data.spacenet_roads import scan
from satmap.errors import CannotWriteError, SatmapError
from satmap.exports import GEOGRAPHIC_SUFFIXES, SUFFIXES, ImageRoads, write_roads
from satmap.exports.image_roads import in_lon_lat
from satmap.files import require_writable
from satmap.inference.ensemble import Voter, predict_planes
from satmap.inference.journal import Journal
from satmap.inference.out_of_fold import held_out_images
from satmap.inference.plane_rasters import write_planes
from satmap.inference.plane_store import PlaneStore
from satmap.inference.weights import WeightFile, choose, find_weights, load_ensemble, recipe_of
from satmap.planes import ROAD_PLANES, Planes
from satmap.progress import track
from satmap.recipe import Recipe, load_recipe
from satmap.roads.context import crop, margin_px, with_surroundings
from satmap.roads.graph import RoadGraph
from satmap.roads.rows import to_rows
from satmap.roads.vectorize import vectorize
from satmap.submissions.roads_csv import RoadRow, write_roads_csv


@dataclass(frozen=True)
class Prediction:
    """What a prediction did.

    Attributes:
        images: rows by the id that stands in the file, every image found (out of fold: held out).
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
    *,
    planes: Path | None = None,
    exports: Sequence[Path] = (),
    out_of_fold: bool = False,
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
        planes: directory for the averaged planes, a GeoTIFF an image by the id that stands in the
            file, as ``satmap.vectorizing.vectorize_directory`` takes them; an image at fault has
            none.
        exports: files for the roads in the formats of ``satmap.exports``.
        out_of_fold: predict each image only by the networks whose training held it out, and leave
            out images that none did.

    Raises:
        SatmapError: no images, no weights, no image that was held out, or an output that cannot be
            written.
    """
    _require_outputs(output, planes, exports)
    files = find_weights(weights)
    recipe = load_recipe(recipe_name) if recipe_name else recipe_of(files)
    files = choose(files, recipe)
    inventory = scan(directories)
    print(inventory.summary(), flush=True)
    print(f"ensemble of {len(files)} networks, {recipe.inference.views} views", flush=True)
    warnings = dict.fromkeys(inventory.warnings)
    held_out = None
    image_ids = list(inventory.long_ids)
    if out_of_fold:
        held_out, notes = held_out_images(files, recipe, inventory.chips)
        image_ids = _held_out_ids(image_ids, held_out)
        warnings |= dict.fromkeys(notes)
        known = set(image_ids)
        if left_out := [name for name in inventory.long_ids if name not in known]:
            note = f"held out by no network and left out: {len(left_out)} images"
            warnings[f"{note} such as {left_out[0]}"] = None
    prefixed = recipe.submission.keep_prefix
    ids = {name: inventory.long_ids[name] if prefixed else name for name in image_ids}
    chips = [chip for chip in inventory.chips if chip.image_id in ids]
    voters = load_ensemble(files, device)
    least = min(voter.network.encoder.in_channels for voter in voters)
    if chips and all(chip.channels < least for chip in chips):
        chips[0].require_channels(least)
    faults = {name: fault for name, fault in inventory.faults.items() if name in ids}
    fingerprint = _fingerprint(recipe, files, planes, held_out)
    store = PlaneStore(output, fingerprint)
    places = _places(chips, recipe)
    with Journal(output, fingerprint) as journal:
        for place in track(places, "predicting", len(places)):
            image_id = place.chip.image_id
            raster = planes / f"{ids[image_id]}.tif" if planes else None
            if (raster is None or raster.exists()) and (
                place.is_finished(journal, places) or (place.neighbours and place.key in store)
            ):
                continue
            jury = voters if held_out is None else _jury(image_id, voters, held_out)
            try:
                mean, info, notes = predict_chip_planes(place.chip, jury, recipe, device)
                if raster:
                    write_planes(raster, mean, info.georeference)
                # Planes of a stand-in on another grid cannot be laid beside the neighbours'.
                if place.neighbours and mean.values.shape[1:] == place.shape:
                    store.add(place.key, mean.values)
                else:
                    graph = vectorize(mean, recipe.roads)
                    journal.add(place.key, ImageRoads(ids[image_id], graph, info.georeference))
            except CannotWriteError:
                raise
            except SatmapError as error:
                faults[image_id] = str(error)
                continue
            # A fault that nobody has thought of still costs only one image.
            except Exception as error:
                faults[image_id] = f"{type(error).__name__}: {error}"
                continue
            warnings |= dict.fromkeys(notes)
        waiting = [p for p in places if p.key not in journal.finished and p.key in store]
        for place in track(waiting, "vectorising", len(waiting)):
            image_id = place.chip.image_id
            try:
                graph = _roads_among_neighbours(place, places, store, recipe)
                georeference = place.chip.image.georeference
                journal.add(place.key, ImageRoads(ids[image_id], graph, georeference))
            except CannotWriteError:
                raise
            except Exception as error:
                faults[image_id] = f"{type(error).__name__}: {error}"
        if planes:
            # What an earlier run knew of images that this one could not predict.
            for image_id in faults:
                (planes / f"{ids[image_id]}.tif").unlink(missing_ok=True)
        roads = [journal.finished[p.key] for p in places if p.key in journal.finished]
        rows: dict[str, list[RoadRow]] = {name: [] for name in ids.values()}
        rows.update((of_image.image_id, to_rows(of_image.graph)) for of_image in roads)
        write_roads_csv(output, rows)
        for path in exports:
            warnings |= dict.fromkeys(_export(path, roads))
        journal.remove()
        store.remove()
    return Prediction(rows, faults, tuple(warnings))


def _require_outputs(output: Path, planes: Path | None, exports: Sequence[Path]) -> None:
    """Fail before the work rather than after it if something cannot be written."""
    for path in exports:
        if path.suffix.lower() not in SUFFIXES:
            raise SatmapError(
                f"{path}: the suffix names the format, and '{path.suffix}' is none of "
                f"{', '.join(SUFFIXES)}."
            )
        if path.resolve() == output.resolve():
            raise SatmapError(f"{path} cannot be both the submission and an export.")
    require_writable(output)
    _refuse_foreign_file(output)
    for path in exports:
        require_writable(path)
    if planes:
        require_writable(planes / "planes.tif")


def _held_out_ids(image_ids: Sequence[str], held_out: Sequence[frozenset[str]]) -> list[str]:
    """The images that a network held out.

    Raises:
        SatmapError: there is none.
    """
    everything = frozenset().union(*held_out)
    known = [image_id for image_id in image_ids if image_id in everything]
    if not known:
        raise SatmapError(
            f"none of the {len(image_ids)} images, such as {image_ids[0]}, was held out by one of "
            "the networks. Give the directories that they were trained with, or leave "
            "--out-of-fold away: networks have seen no test image."
        )
    return known


def _jury(
    image_id: str, voters: Sequence[Voter], held_out: Sequence[frozenset[str]]
) -> list[Voter]:
    """The networks that held an image out."""
    pairs = zip(voters, held_out, strict=True)
    return [voter for voter, images in pairs if image_id in images]


def _export(path: Path, roads: Sequence[ImageRoads]) -> list[str]:
    """Write the roads of the images that the format can hold; gives what to know of the others."""
    if path.suffix.lower() not in GEOGRAPHIC_SUFFIXES:
        write_roads(path, roads)
        return []
    placed, faults = [], []
    for of_image in roads:
        try:
            in_lon_lat(of_image)
            placed.append(of_image)
        except SatmapError as error:
            faults.append(str(error))
    write_roads(path, placed)
    return [f"{path} lacks {len(faults)} images. {faults[0]}"] if faults else []


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

    def is_finished(self, journal: Journal, places: "Sequence[_Place]") -> bool:
        """Whether its roads are there, and those of its neighbours, which need its planes."""
        return self.key in journal.finished and all(
            places[neighbour.image].key in journal.finished for neighbour in self.neighbours
        )


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


def _roads_among_neighbours(
    place: _Place, places: Sequence[_Place], store: PlaneStore, recipe: Recipe
) -> RoadGraph:
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
    return crop(vectorize(planes, recipe.roads), box, own.metres_per_pixel)


def _stored(place: _Place, store: PlaneStore) -> Planes | None:
    georeference = place.chip.image.georeference
    values = store.read(place.key, len(ROAD_PLANES))
    if values is None or georeference is None:
        return None
    return Planes(ROAD_PLANES, values, georeference.metres_per_pixel)


def predict_chip_planes(
    chip: Chip, voters: Sequence[Voter], recipe: Recipe, device: torch.device
) -> tuple[Planes, ImageInfo, list[str]]:
    """The averaged planes of one image, what they were seen on, what the user should know of them.

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
        return Planes(fitting[0].network.plane_names, values, size), info, notes
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


def _fingerprint(
    recipe: Recipe,
    files: Sequence[WeightFile],
    planes: Path | None,
    held_out: Sequence[frozenset[str]] | None,
) -> str:
    """What must be the same for the images of a stopped run to count as finished."""
    stats = [
        (file.path.name, file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in files
    ]
    folds = None if held_out is None else [sorted(images) for images in held_out]
    return json.dumps([recipe.model_dump_json(), stats, planes and str(planes.resolve()), folds])
