"""What a prediction is to do: which images by which networks, and what is done already."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from satmap.confidence_files import CONFIDENCE_FILE, read_confidence
from satmap.data.cache import category_of
from satmap.data.inventory import Inventory
from satmap.data.looks import Look
from satmap.errors import SatmapError
from satmap.inference.journal import Journal
from satmap.inference.maps import Maps, maps_of
from satmap.inference.out_of_fold import held_out_images
from satmap.inference.place import Place, places_of
from satmap.inference.plane_store import PlaneStore
from satmap.inference.weights import WeightFile, choose, find_weights, recipe_of
from satmap.provenance.manifest import now
from satmap.recipe import Recipe, load_recipe
from satmap.runtime.ranks import Ranks
from satmap.scanning import scan_for


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
