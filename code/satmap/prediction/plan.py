"""What a prediction is to do: which images by which networks, and what is done already."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from satmap.data.cache import category_of
from satmap.data.chip import Chip
from satmap.data.folds import assign_folds
from satmap.data.inventory import Inventory
from satmap.data.neighbours import Footprint, Neighbour
from satmap.data.view_angles import Look
from satmap.errors import SatmapError
from satmap.prediction.journal import Journal
from satmap.provenance.manifest import now
from satmap.rasters.map_store import PlaneStore
from satmap.recipes.schema import Recipe, load_recipe
from satmap.runtime.ranks import Ranks
from satmap.tasks.buildings.confidence import CONFIDENCE_FILE, read_confidence
from satmap.tasks.maps import Maps, maps_of
from satmap.tasks.roads.tiles import find_surroundings
from satmap.tasks.scanning import scan_for
from satmap.weights.members import WeightFile, choose, find_weights, recipe_of


@dataclass(frozen=True)
class Place:
    """A chip where it lies.

    Attributes:
        chip: the chip.
        key: says whose planes or roads something is, and with which neighbours they were made.
        neighbours: the chips around it, indices into the list of places.
    """

    chip: Chip
    key: str
    neighbours: tuple[Neighbour, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the chip's richest image."""
        return self.chip.image.height, self.chip.image.width


def places_of(chips: Sequence[Chip], neighbours: bool) -> list[Place]:
    """The chips with those around them.

    Args:
        chips: in the order of the output.
        neighbours: whether images that lie side by side help each other.
    """
    images = [chip.image for chip in chips]
    footprints = [Footprint(image.georeference, image.width, image.height) for image in images]
    around = find_surroundings(footprints) if neighbours else [[] for _ in chips]
    keys = [_key(chip) for chip in chips]
    return [
        Place(chip, _joined(key, [keys[n.image] for n in its]), tuple(its))
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
        planes: directory for the averaged planes, or None.
        exports: further files for what is found.
        out_of_fold: whether an image is predicted only by networks whose training held it out.
        workers: processes that vectorise, for each process that predicts.
        command: satmap's arguments, for the manifest; empty if it was called from Python.
        started: when, in UTC.
        look: of images whose names do not say from where they were taken.
    """

    directories: tuple[Path, ...]
    output: Path
    weights: Path
    device: str
    recipe_name: str | None = None
    planes: Path | None = None
    exports: tuple[Path, ...] = ()
    out_of_fold: bool = False
    workers: int = 0
    command: tuple[str, ...] = ()
    started: str = field(default_factory=now)
    look: Look | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be predicted, the same in all processes.

    Attributes:
        recipe: how.
        maps: what its task makes of planes.
        files: the networks of the ensemble.
        confidence: the model of these networks that rates buildings, if there is one.
        held_out: for each the images that its training held out; None where that does not count.
        ids: of every image of the output, the id that stands in the file; in its order.
        places: the images that can be read.
        faults: image id to what is wrong, for the others.
        warnings: what the user should know.
        fingerprint: what must be the same for finished images to count.
    """

    recipe: Recipe
    maps: Maps
    files: tuple[WeightFile, ...]
    confidence: Path | None
    held_out: tuple[frozenset[str], ...] | None
    ids: dict[str, str]
    places: tuple[Place, ...]
    faults: dict[str, str]
    warnings: tuple[str, ...]
    fingerprint: str

    def raster(self, index: int, planes: Path | None) -> Path | None:
        """Where the planes of a place are to be written for the user."""
        return planes / f"{self.ids[self.places[index].chip.image_id]}.tif" if planes else None


def make_plan(request: Request) -> Plan:
    """Look for networks and images, and say on stdout what there is.

    Raises:
        SatmapError: no images, no weights, no image that was held out.
    """
    files = find_weights(request.weights)
    recipe = load_recipe(request.recipe_name) if request.recipe_name else recipe_of(files)
    files = choose(files, recipe)
    confidence = _confidence_of(recipe, request)
    maps = maps_of(recipe, confidence)
    inventory = scan_for(recipe, request.directories, request.look)
    maps.require_output(request.output, request.exports, inventory.chips)
    _require_categories(inventory, recipe)
    print(inventory.summary(), flush=True)
    print(f"ensemble of {len(files)} networks, {recipe.inference.views} views", flush=True)
    if confidence:
        print(f"buildings chosen and rated by {confidence.name}", flush=True)
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
        maps,
        tuple(files),
        confidence,
        None if held_out is None else tuple(held_out),
        ids,
        tuple(_places(inventory, ids, recipe.inference.neighbours and maps.looks_around)),
        {name: fault for name, fault in inventory.faults.items() if name in ids},
        tuple(warnings),
        _fingerprint(recipe, files, confidence, request, held_out),
    )


def _confidence_of(recipe: Recipe, request: Request) -> Path | None:
    """The confidence model beside the networks.

    Out of fold it is left out: it has seen the truth of these images.

    Raises:
        SatmapError: it cannot be read.
    """
    path = request.weights / CONFIDENCE_FILE
    if recipe.task != "buildings" or request.out_of_fold or not path.exists():
        return None
    read_confidence(path)
    return path.resolve()


def _places(inventory: Inventory, ids: dict[str, str], neighbours: bool) -> list[Place]:
    chips = [chip for chip in inventory.chips if chip.image_id in ids]
    return places_of(chips, neighbours)


def _require_categories(inventory: Inventory, recipe: Recipe) -> None:
    """Fail if of no image anybody knows from where it looks; of some, they alone are at fault.

    Raises:
        SatmapError: so it is.
    """
    heads, chips = recipe.looks, inventory.chips
    if heads is None or not chips:
        return
    if not any(chip.look is not None and chip.look.category(heads) for chip in chips):
        category_of(chips[0], heads)


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
    confidence: Path | None,
    request: Request,
    held_out: Sequence[frozenset[str]] | None,
) -> str:
    """What must be the same for the images of a stopped run to count as finished."""
    paths = [file.path for file in files] + ([confidence] if confidence else [])
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    folds = None if held_out is None else [sorted(images) for images in held_out]
    planes = request.planes and str(request.planes.resolve())
    look = request.look and [request.look.angle, request.look.side]
    return json.dumps([recipe.model_dump_json(), stats, planes, folds, look])


@dataclass(frozen=True)
class Work:
    """What is left to do, as indices into the places.

    Attributes:
        to_see: images whose planes are to be predicted.
        to_trace: images whose planes are there and whose roads are not.
    """

    to_see: tuple[int, ...]
    to_trace: tuple[int, ...]

    def share(self, ranks: Ranks) -> "Work":
        """A process's part; which images that are depends on nothing but their order."""
        return Work(
            self.to_see[ranks.rank :: ranks.world], self.to_trace[ranks.rank :: ranks.world]
        )


def work_left(plan: Plan, journal: Journal, store: PlaneStore, planes: Path | None) -> Work:
    """What an earlier run has left to do.

    Args:
        plan: what is to be done in all.
        journal: the images whose roads are there.
        store: the planes that wait for their neighbours.
        planes: the directory for the averaged planes, or None.
    """
    places = plan.places

    def roads_are_there(index: int) -> bool:
        return places[index].key in journal.finished

    def needs_planes(index: int) -> bool:
        place, raster = places[index], plan.raster(index, planes)
        if raster is not None and not raster.exists():
            return True
        if place.key in store:
            return False
        # Its own roads may be there, but its neighbours' need its planes.
        return not all(map(roads_are_there, (index, *(n.image for n in place.neighbours))))

    to_see = [index for index in range(len(places)) if needs_planes(index)]
    seen = set(range(len(places))).difference(to_see)
    return Work(tuple(to_see), tuple(i for i in sorted(seen) if not roads_are_there(i)))


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
