"""What a prediction is to do: which images by which networks, and what is done already."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satmap.data.chip import Chip
from satmap.data.folds import assign_folds
from satmap.data.inventory import Inventory
from satmap.data.neighbours import ImageFootprint, Neighbour
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.prediction.journal import Journal
from satmap.provenance.manifest import now
from satmap.rasters.map_store import MapStore
from satmap.recipes.schema import Recipe, load_recipe
from satmap.runtime.ranks import Ranks
from satmap.tasks.base import Task, task_of
from satmap.tasks.dense import DenseTask
from satmap.weights.members import WeightFile, choose, find_weights, recipe_of


@dataclass(frozen=True)
class Tile:
    """A chip where it lies.

    Attributes:
        chip: the chip.
        key: says whose planes or roads something is, and with which neighbours they were made.
        neighbours: the chips around it, indices into the list of tiles.
    """

    chip: Chip
    key: str
    neighbours: tuple[Neighbour, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the chip's richest image."""
        return self.chip.image.height, self.chip.image.width


def find_tiles(chips: Sequence[Chip], task: Task) -> list[Tile]:
    """The chips with the chips that they are decoded with.

    Args:
        chips: in the order of the output.
        task: says which images are decoded together.
    """
    images = [chip.image for chip in chips]
    footprints = [ImageFootprint(image.georeference, image.width, image.height) for image in images]
    around = task.find_neighbours(footprints)
    keys = [_key(chip) for chip in chips]
    return [
        Tile(chip, _joined(key, [keys[n.image] for n in its]), tuple(its))
        for chip, key, its in zip(chips, keys, around, strict=True)
    ]


def _joined(key: str, around: Sequence[str]) -> str:
    """A key that is another one when something around is: of the many, a digest."""
    if not around:
        return key
    return f"{key} {hashlib.sha256(chr(10).join(sorted(around)).encode()).hexdigest()}"


def _key(chip: Chip) -> str:
    stat = chip.image.path.stat()
    return f"{chip.image_id} {chip.image.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        directories: areas, or roots of many.
        output: the submission.
        weights: directory of trained weights.
        device: where networks run, by name.
        recipe_name: None for that of the weights.
        maps: directory for the averaged planes, or None.
        exports: further files for what is found.
        out_of_fold: whether an image is predicted only by networks whose training held it out.
        workers: processes that vectorise, for each process that predicts.
        command: satmap's arguments, for the manifest; empty if it was called from Python.
        started: when, in UTC.
        view_angle: of images whose names do not say from where they were taken.
    """

    directories: tuple[Path, ...]
    output: Path
    weights: Path
    device: str
    recipe_name: str | None = None
    maps: Path | None = None
    exports: tuple[Path, ...] = ()
    out_of_fold: bool = False
    workers: int = 0
    command: tuple[str, ...] = ()
    started: str = field(default_factory=now)
    view_angle: ViewAngle | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be predicted, the same in all processes.

    Attributes:
        recipe: how.
        task: of the recipe.
        files: the networks of the ensemble.
        rating_model: the second-level model of these networks, if there is one.
        held_out: for each the images that its training held out; None where that does not count.
        ids: of every image of the output, the id that stands in the file; in its order.
        tiles: the images that can be read.
        faults: image id to what is wrong, for the others.
        warnings: what the user should know.
        fingerprint: what must be the same for finished images to count.
    """

    recipe: Recipe
    task: Task
    files: tuple[WeightFile, ...]
    rating_model: Path | None
    held_out: tuple[frozenset[str], ...] | None
    ids: dict[str, str]
    tiles: tuple[Tile, ...]
    faults: dict[str, str]
    warnings: tuple[str, ...]
    fingerprint: str

    def decoder(self, tile: Tile) -> Any:
        """What turns the prediction of an image into its result."""
        return self.task.decoder(tile.chip, self.rating_model)

    def raster(self, index: int, maps: Path | None) -> Path | None:
        """Where the planes of a tile are to be written for the user."""
        return maps / f"{self.ids[self.tiles[index].chip.image_id]}.tif" if maps else None


def make_plan(request: Request) -> Plan:
    """Look for networks and images, and say on stdout what there is.

    Raises:
        SatmapError: no images, no weights, no image that was held out.
    """
    files = find_weights(request.weights)
    recipe = load_recipe(request.recipe_name) if request.recipe_name else recipe_of(files)
    files = choose(files, recipe)
    task = task_of(recipe)
    for file in files:
        task.check_weights(file)
    if request.maps and not isinstance(task, DenseTask):
        raise SatmapError(
            f"--probabilities: networks for {task.noun} have no probability maps. Leave it out."
        )
    # Out of fold the model does not count: it has seen the truth of these images.
    rating_model = None if request.out_of_fold else task.find_rating_model(request.weights)
    inventory = task.find_images(request.directories, request.view_angle)
    task.check_outputs(request.output, request.exports, inventory.chips)
    _require_categories(inventory, task)
    print(inventory.summary(), flush=True)
    print(
        f"ensemble of {len(files)} networks, {recipe.inference.tta} test-time augmentations",
        flush=True,
    )
    if rating_model:
        print(f"{task.noun} chosen and rated by {rating_model.name}", flush=True)
    warnings = list(inventory.warnings)
    held_out = None
    image_ids = list(inventory.long_ids)
    if request.out_of_fold:
        held_out, notes = held_out_images(files, recipe, inventory.chips)
        image_ids, left_out = _held_out_ids(image_ids, held_out)
        warnings += [*notes, *left_out]
    prefixed = recipe.submission.keep_prefix
    ids = {name: inventory.long_ids[name] if prefixed else name for name in image_ids}
    return Plan(
        recipe,
        task,
        tuple(files),
        rating_model,
        None if held_out is None else tuple(held_out),
        ids,
        tuple(find_tiles([chip for chip in inventory.chips if chip.image_id in ids], task)),
        {name: fault for name, fault in inventory.faults.items() if name in ids},
        tuple(warnings),
        _fingerprint(recipe, files, rating_model, request, held_out),
    )


def _require_categories(inventory: Inventory, task: Task) -> None:
    """Fail if the category of no image is known; if only some are unknown, those are left out.

    Raises:
        SatmapError: all categories are unknown.
    """
    fault: SatmapError | None = None
    for chip in inventory.chips:
        try:
            task.category(chip)
            return
        except SatmapError as error:
            fault = fault or error
    if fault is not None:
        raise fault


def _held_out_ids(
    image_ids: Sequence[str], held_out: Sequence[frozenset[str]]
) -> tuple[list[str], list[str]]:
    """The images that a network held out, and what to say of the others.

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
    others = [image_id for image_id in image_ids if image_id not in everything]
    if not others:
        return known, []
    note = f"held out by no network and left out: {len(others)} images such as {others[0]}"
    return known, [note]


def _fingerprint(
    recipe: Recipe,
    files: Sequence[WeightFile],
    rating_model: Path | None,
    request: Request,
    held_out: Sequence[frozenset[str]] | None,
) -> str:
    """What must be the same for the images of a stopped run to count as finished."""
    paths = [file.path for file in files] + ([rating_model] if rating_model else [])
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    folds = None if held_out is None else [sorted(images) for images in held_out]
    maps = request.maps and str(request.maps.resolve())
    view_angle = request.view_angle and [request.view_angle.angle, request.view_angle.side]
    return json.dumps([recipe.model_dump_json(), stats, maps, folds, view_angle])


@dataclass(frozen=True)
class Work:
    """What is left to do, as indices into the tiles.

    Attributes:
        to_predict: images whose planes are to be predicted.
        to_decode: images whose planes are there and whose roads are not.
    """

    to_predict: tuple[int, ...]
    to_decode: tuple[int, ...]

    def share(self, ranks: Ranks) -> "Work":
        """A process's part; which images that are depends on nothing but their order."""
        return Work(
            self.to_predict[ranks.rank :: ranks.world], self.to_decode[ranks.rank :: ranks.world]
        )


def work_left(plan: Plan, journal: Journal, store: MapStore, maps: Path | None) -> Work:
    """What an earlier run has left to do.

    Args:
        plan: what is to be done in all.
        journal: the images whose roads are there.
        store: the planes that wait for their neighbours.
        maps: the directory for the averaged planes, or None.
    """
    tiles = plan.tiles

    def roads_are_there(index: int) -> bool:
        return tiles[index].key in journal.finished

    def needs_maps(index: int) -> bool:
        tile, raster = tiles[index], plan.raster(index, maps)
        if raster is not None and not raster.exists():
            return True
        if tile.key in store:
            return False
        # Its own roads may be there, but its neighbours' need its planes.
        return not all(map(roads_are_there, (index, *(n.image for n in tile.neighbours))))

    to_predict = [index for index in range(len(tiles)) if needs_maps(index)]
    seen = set(range(len(tiles))).difference(to_predict)
    return Work(tuple(to_predict), tuple(i for i in sorted(seen) if not roads_are_there(i)))


def held_out_images(
    files: Sequence[WeightFile], recipe: Recipe, chips: Sequence[Chip]
) -> tuple[list[frozenset[str]], list[str]]:
    """For each file the ids of the images that its training held out.

    The files say it. For those of earlier versions, which do not, the folds are dealt anew over the
    labelled chips: the same as in training only if these are the chips of the training.

    Args:
        files: an ensemble of the recipe's.
        recipe: the recipe that they were trained with.
        chips: what the given directories hold.

    Returns:
        A set a file, and what the user should know of them.
    """
    labelled = [chip for chip in chips if chip.label is not None]
    sites = assign_folds({c.site: c.aoi for c in labelled}.items(), recipe.folds, recipe.seed)
    folds = {chip.image_id: sites[chip.site] for chip in labelled}
    fold_of = {member.name: member.fold for member in recipe.members}
    held_out, silent = [], []
    for file in files:
        images = file.held_out
        if images is None:
            silent.append(file.path.name)
            fold = fold_of.get(file.metadata.get("member", ""))
            images = frozenset(image_id for image_id, its in folds.items() if its == fold)
            # Where all chips are of one fold, training has to take them too.
            if len(images) == len(folds):
                images = frozenset()
        held_out.append(images)
    if not silent:
        return held_out, []
    note = (
        f"{len(silent)} of {len(files)} weight files, such as {silent[0]}, do not say which images "
        f"they held out; taken for those of their fold among the {len(labelled)} labelled images "
        "here, which is right only if these are the images of the training"
    )
    return held_out, [note]
