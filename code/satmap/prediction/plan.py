"""Plan of a prediction: which images, by which networks, and what is already done."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satmap.data.cache import default_cache
from satmap.data.chip import Chip
from satmap.data.chip_borders import join_chips
from satmap.data.folds import assign_folds
from satmap.data.inventory import Inventory
from satmap.data.neighbours import ImageFootprint, Neighbour, find_neighbours
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.networks.ensemble import EnsembleMember
from satmap.networks.windows import window_count
from satmap.prediction.images import prepare_image
from satmap.prediction.journal import Journal
from satmap.provenance.manifest import now
from satmap.rasters.map_store import MapStore
from satmap.recipes.schema import Recipe, load_recipe
from satmap.submissions.output_checks import require_formats
from satmap.tasks.base import PreparedImage, Task, task_of
from satmap.tasks.calibration import require_calibration
from satmap.tasks.dense import DenseTask
from satmap.tasks.result_decoders import NO_MODELS, FittedModels
from satmap.vectors.buildings import UNCALIBRATED
from satmap.weights.members import (
    WeightFile,
    choose,
    describe_networks,
    find_weights,
    recipe_of,
    trained_gsd,
)

# Warn if pixels are larger or smaller than those of the training by more than this factor.
_FAR_SIZE = 1.5


@dataclass(frozen=True)
class Tile:
    """A chip and the chips around it.

    Attributes:
        chip: the chip.
        key: identifies the stored maps and the result of this chip with these neighbours.
        neighbours: the chips that it is decoded with, as indices into the list of tiles.
        context: the chips whose pixels the networks see around it, as such indices.
    """

    chip: Chip
    key: str
    neighbours: tuple[Neighbour, ...]
    context: tuple[Neighbour, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the chip's richest image."""
        return self.chip.image.height, self.chip.image.width


def find_tiles(chips: Sequence[Chip], task: Task) -> list[Tile]:
    """Find for each chip the chips that it is predicted and decoded with.

    The task decides about the latter, the recipe's ``join_chips`` about the former.
    """
    images = [chip.image for chip in chips]
    footprints = [ImageFootprint(image.georeference, image.width, image.height) for image in images]
    context: list[list[Neighbour]] = [[] for _ in chips]
    settings = task.recipe.inference
    if settings.join_chips:
        stretch = task.recipe.stretch
        gsd_m = task.default_metres_per_pixel or 1.0
        footprints = join_chips(images, stretch.low, stretch.high, gsd_m)
        context = find_neighbours(footprints, (settings.overlap, settings.overlap))
    keys = [_key(chip) for chip in chips]
    neighbours = task.find_neighbours(footprints)
    tiles = []
    for index, (chip, around, near) in enumerate(zip(chips, neighbours, context, strict=True)):
        # Other views of a place do not continue this one.
        seen = [n for n in near if chips[n.image].view_angle == chip.view_angle]
        key = _joint_key(index, keys, [*around, *seen])
        tiles.append(Tile(chip, key, tuple(around), tuple(seen)))
    return tiles


def _joint_key(index: int, keys: Sequence[str], around: Sequence[Neighbour]) -> str:
    """Return the key of a chip, which changes with the chips around it."""
    if not around:
        return keys[index]
    others = sorted(keys[neighbour.image] for neighbour in around)
    return f"{keys[index]} {hashlib.sha256(chr(10).join(others).encode()).hexdigest()}"


def _key(chip: Chip) -> str:
    stat = chip.image.path.stat()
    return f"{chip.image_id} {chip.image.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True)
class Request:
    """The arguments of :func:`satmap.prediction.run.predict`, and when it was called (UTC)."""

    directories: tuple[Path, ...]
    output: Path
    weights: Path
    device: str
    recipe_name: str | None = None
    maps: Path | None = None
    exports: tuple[Path, ...] = ()
    out_of_fold: bool = False
    cache: Path | None = None
    workers: int = 0
    command: tuple[str, ...] = ()
    started: str = field(default_factory=now)
    view_angle: ViewAngle | None = None
    crs: str | None = None
    least_confidence: float | None = None


@dataclass(frozen=True)
class Plan:
    """Plan of a prediction, the same in all processes.

    Attributes:
        recipe: the recipe to predict with.
        task: the task of the recipe.
        files: weight files of the ensemble.
        models: the models that were fitted to these networks' mistakes.
        held_out: for each file the images that its training held out; None if not out of fold.
        ids: image id to the id in the output file, for every image, in the order of the file.
        tiles: the images that can be read.
        faults: image id to the reason, for images that cannot be read.
        warnings: messages for the user.
        fingerprint: must match to reuse the finished images of an earlier run.
    """

    recipe: Recipe
    task: Task
    files: tuple[WeightFile, ...]
    models: FittedModels
    held_out: tuple[frozenset[str], ...] | None
    ids: dict[str, str]
    tiles: tuple[Tile, ...]
    faults: dict[str, str]
    warnings: tuple[str, ...]
    fingerprint: str

    def prepare(self, index: int, members: Sequence[EnsembleMember]) -> PreparedImage:
        """Read the image of a tile for the networks.

        Raises:
            SatmapError: the image cannot be read, or its view angle category is unknown.
        """
        tile = self.tiles[index]
        around = [(self.tiles[n.image].chip.image, n.column, n.row) for n in tile.context]
        return prepare_image(tile.chip, members, self.task, around)

    def windows(self, index: int) -> int:
        """Return the number of windows in which the networks predict a tile."""
        settings, shape = self.recipe.inference, self.tiles[index].shape
        longest = self.task.input_px or max(shape)
        height, width = (min(side, longest) for side in shape)
        return window_count(height, width, settings.window, settings.overlap)

    def forget_incomplete(self, journal: Journal, store: MapStore) -> None:
        """Forget finished images that may have become readable since an earlier run."""
        return

    def result_decoder(self, tile: Tile) -> Any:
        """Return the decoder that turns the prediction of an image into its result."""
        return self.task.result_decoder(tile.chip, self.models)

    def rasters(self, index: int, maps: Path | None) -> list[Path]:
        """Return the file for a tile's probability maps in ``maps``; none if ``maps`` is None."""
        return [maps / f"{self.ids[self.tiles[index].chip.image_id]}.tif"] if maps else []


def ensemble_of(request: Request) -> tuple[list[WeightFile], Recipe, Task, FittedModels]:
    """Choose the networks of a request.

    Returns:
        The weight files, the recipe, its task, and the models that were fitted to these networks.

    Raises:
        SatmapError: there are no weights, they do not fit together or to the recipe, or a least
            confidence is asked of uncalibrated networks.
    """
    files = find_weights(request.weights)
    recipe = load_recipe(request.recipe_name) if request.recipe_name else recipe_of(files)
    files = choose(files, recipe)
    task = task_of(recipe)
    for file in files:
        task.check_weights(file)
    # The models have seen the truth of training images, so out of fold they are not used.
    models = NO_MODELS if request.out_of_fold else task.find_models(request.weights)
    require_calibration(request.least_confidence, request.weights, request.out_of_fold)
    return list(files), recipe, task, models


def describe_models(models: FittedModels, noun: str) -> list[str]:
    """Return what the fitted models do, for the user, one line each."""
    lines = [f"{noun} chosen and rated by {models.selection.name}"] if models.selection else []
    by = f"calibrated by {models.calibration.name}" if models.calibration else UNCALIBRATED
    return [*lines, f"confidence: {by}"]


def make_plan(request: Request) -> Plan:
    """Find networks and images, and print a summary on stdout.

    Raises:
        SatmapError: there are no images, no weights, or no image that was held out, or an output
            has an unknown suffix.
    """
    files, recipe, task, models = ensemble_of(request)
    require_formats(recipe.task, request.output, request.exports)
    if request.maps and not task.map_names:
        raise SatmapError(
            f"--probabilities: networks for {task.noun} have no probability maps. Leave it out."
        )
    _require_maps_to_join(recipe, task)
    # Training held out tiles, not scenes.
    cache = (request.cache or default_cache()) if request.out_of_fold else None
    inventory = task.find_images(request.directories, request.view_angle, cache=cache)
    task.check_outputs(request.output, inventory.chips)
    _require_categories(inventory, task)
    print(inventory.summary(), flush=True)
    print(describe_networks(files, recipe), flush=True)
    if task.confidence_features():
        print("\n".join(describe_models(models, task.noun)), flush=True)
    warnings = [*inventory.warnings, *_pixel_size_warnings(inventory.chips, task, files)]
    held_out = None
    image_ids = list(inventory.long_ids)
    if request.out_of_fold:
        held_out, notes = held_out_images(files, recipe, inventory.chips)
        image_ids, left_out = _held_out_ids(image_ids, held_out)
        warnings += [*notes, *left_out]
    wanted = set(image_ids)
    tiles = find_tiles([chip for chip in inventory.chips if chip.image_id in wanted], task)
    if recipe.inference.join_chips:
        joined = sum(bool(tile.context) for tile in tiles)
        print(f"{joined} of {len(tiles)} images are predicted with others around them", flush=True)
    prefixed = recipe.submission.keep_prefix
    ids = {name: inventory.long_ids[name] if prefixed else name for name in image_ids}
    return Plan(
        recipe,
        task,
        tuple(files),
        models,
        None if held_out is None else tuple(held_out),
        ids,
        tuple(tiles),
        {name: fault for name, fault in inventory.faults.items() if name in ids},
        tuple(warnings),
        fingerprint_of(recipe, files, models, request, held_out),
    )


def _require_maps_to_join(recipe: Recipe, task: Task) -> None:
    """Fail if chips are to be joined, but the networks cannot use pixels around an image."""
    if not recipe.inference.join_chips or (isinstance(task, DenseTask) and task.input_px is None):
        return
    raise SatmapError(
        f"recipe {recipe.name}: `inference: {{join_chips: true}}` needs networks that predict "
        "probability maps in the images' own size. Leave it out."
    )


def _pixel_size_warnings(
    chips: Sequence[Chip], task: Task, files: Sequence[WeightFile]
) -> list[str]:
    """Warn about images whose pixels are much larger or smaller than those of the training."""
    trained = trained_gsd(files)
    if trained is None:
        return []
    sizes = {chip.image_id: chip.image.gsd_m(task.input_px) for chip in chips}
    far = {
        name: size
        for name, size in sizes.items()
        if size and not 1 / _FAR_SIZE < size / trained < _FAR_SIZE
    }
    if not far:
        return []
    name, size = next(iter(far.items()))
    return [
        f"{len(far)} images, such as {name}, have pixels of another size ({size:.2g} m) than the "
        f"training ({trained:.2g} m): expect poor results there. `satmap map` resamples images"
    ]


def _require_categories(inventory: Inventory, task: Task) -> None:
    """Fail if no image has a known category. If only some have none, they are left out later."""
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
    """Return the images that a network held out, and a warning about the others."""
    any_held_out = frozenset().union(*held_out)
    known = [image_id for image_id in image_ids if image_id in any_held_out]
    if not known:
        raise SatmapError(
            f"none of the {len(image_ids)} images, such as {image_ids[0]}, was held out by one of "
            "the networks. Give the directories that they were trained with. For test images, "
            "which no network has seen, leave --out-of-fold out."
        )
    others = [image_id for image_id in image_ids if image_id not in any_held_out]
    if not others:
        return known, []
    note = f"{len(others)} images, such as {others[0]}, were held out by no network and left out"
    return known, [note]


def fingerprint_of(
    recipe: Recipe,
    files: Sequence[WeightFile],
    models: FittedModels,
    request: Request,
    held_out: Sequence[frozenset[str]] | None,
) -> str:
    """Return a text that must match to reuse the finished images of a stopped run."""
    paths = [*(file.path for file in files), *models.files]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    folds = None if held_out is None else [sorted(images) for images in held_out]
    maps = request.maps and str(request.maps.resolve())
    view_angle = request.view_angle and [request.view_angle.angle, request.view_angle.side]
    return json.dumps([recipe.model_dump_json(), stats, maps, folds, view_angle])


@dataclass(frozen=True)
class Work:
    """Remaining work, as indices into the tiles.

    Attributes:
        to_predict: images without probability maps.
        to_decode: images with stored probability maps but without a result.
    """

    to_predict: tuple[int, ...]
    to_decode: tuple[int, ...]


def work_left(plan: Plan, journal: Journal, store: MapStore, maps: Path | None) -> Work:
    """Return what an earlier run has left to do. ``maps`` is the directory of probability maps."""
    tiles = plan.tiles
    decoded = [tile.key in journal.finished for tile in tiles]

    def needs_maps(index: int) -> bool:
        if not all(raster.exists() for raster in plan.rasters(index, maps)):
            return True
        if tiles[index].key in store:
            return False
        # Even if this image is decoded, its neighbours may need its maps.
        return not all(decoded[i] for i in (index, *(n.image for n in tiles[index].neighbours)))

    to_predict = [index for index in range(len(tiles)) if needs_maps(index)]
    predicted = sorted(set(range(len(tiles))).difference(to_predict))
    return Work(tuple(to_predict), tuple(index for index in predicted if not decoded[index]))


def held_out_images(
    files: Sequence[WeightFile], recipe: Recipe, chips: Sequence[Chip]
) -> tuple[list[frozenset[str]], list[str]]:
    """Return for each weight file the ids of the images that its training held out.

    Weight files hold these ids, except those of earlier versions. For them the folds are assigned
    again over the labelled chips, which is right only if these are the chips of the training. The
    second result are warnings for the user.
    """
    labelled = [chip for chip in chips if chip.label is not None]
    sites = assign_folds({c.site: c.aoi for c in labelled}.items(), recipe.folds, recipe.seed)
    folds = {chip.image_id: sites[chip.site] for chip in labelled}
    fold_of = {member.name: member.fold for member in recipe.ensemble}
    held_out, without_ids = [], []
    for file in files:
        images = file.held_out
        if images is None:
            without_ids.append(file.path.name)
            fold = fold_of.get(file.metadata.get("member", ""))
            images = frozenset(image_id for image_id, held_in in folds.items() if held_in == fold)
            # If all chips are in one fold, the training had to use them.
            if len(images) == len(folds):
                images = frozenset()
        held_out.append(images)
    if not without_ids:
        return held_out, []
    note = (
        f"{len(without_ids)} of {len(files)} weight files, such as {without_ids[0]}, do not say "
        f"which images they held out. satmap uses the images of their fold among the "
        f"{len(labelled)} labelled images here, which is right only if these are the images of "
        "the training."
    )
    return held_out, [note]
