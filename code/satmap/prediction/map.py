"""Map any rasters: cut them into blocks, predict every block once, and join the results.

A block is predicted with some pixels of its surroundings and vectorised with the probability maps
of the blocks around it. The results of the blocks are joined into one network of roads, or one list
of buildings, per map. All rasters with a georeference form one map, every other image is one.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from satmap.data.chip import Chip
from satmap.data.imagery import RGB, ImageInfo
from satmap.data.mosaic import Mosaic, Priority, make_mosaics
from satmap.data.neighbours import Neighbour
from satmap.data.sources import find_sources
from satmap.errors import SatmapError
from satmap.exports import GIS_SUFFIXES, OSM_SUFFIXES
from satmap.io.checksums import FileRecord, in_threads, record_file
from satmap.io.progress import track
from satmap.io.text import counted, printable, public_address
from satmap.networks.ensemble import EnsembleMember
from satmap.networks.windows import window_count
from satmap.prediction.journal import Journal
from satmap.prediction.map_rasters import (
    brightness_warnings,
    describe,
    layers_of_networks,
    left_out_warnings,
    named_mosaics,
    of_common_bands,
    stretched_layers,
)
from satmap.prediction.outputs import PredictionReport, found_nothing
from satmap.prediction.plan import (
    Plan,
    Request,
    Tile,
    describe_models,
    ensemble_of,
    fingerprint_of,
)
from satmap.prediction.run import run
from satmap.prediction.stretches import KeptStretches
from satmap.provenance.manifest import (
    MapManifest,
    Run,
    learning_of,
    record_recipe,
    write_manifest,
)
from satmap.rasters.map_store import MapStore
from satmap.rasters.scene import Box
from satmap.recipes.schema import Inference
from satmap.runtime.device import pick_device
from satmap.submissions.output_checks import require_any_format, require_outputs
from satmap.tasks.base import PreparedImage, Task, task_of
from satmap.tasks.dense import DenseTask
from satmap.weights.members import describe_networks, trained_gsd

# An address within a message.
_ADDRESS = re.compile(r"\w+://\S+")
# Side of a block in pixels, rounded to whole windows of the networks.
_BLOCK_PX = 2048
# Pixels around a block that the networks see, at most.
_CONTEXT_PX = 128
# Formats for maps with a georeference only, and formats that can also hold coordinates in pixels.
_PLACED_SUFFIXES = (".geojson", *GIS_SUFFIXES, *OSM_SUFFIXES)
_PIXEL_SUFFIXES = (".csv", ".graphml")


@dataclass(frozen=True)
class MapRequest(Request):
    """The arguments of :func:`map_sources`.

    Attributes:
        sources: files, directories and URLs.
        bands: numbers of the bands to read, from 1; None for those marked as red, green and blue.
        source_crs: reference system of sources that state none.
        zoom: zoom level of map tiles; None for all.
        priority: which source to use where several overlap.
        stretch: values that become black and white; None for percentiles of a sample.
        gsd: metres per pixel for the networks; None for that of their training.
        block_px: side of the blocks that the map is made of; None for about 2,000.
        views: test-time augmentation, 1, 4 or 8; None for that of the recipe.
    """

    sources: tuple[str, ...] = ()
    bands: tuple[int, ...] | None = None
    source_crs: str | None = None
    zoom: int | None = None
    priority: Priority = "finest"
    stretch: tuple[float, float] | None = None
    gsd: float | None = None
    block_px: int | None = None
    views: int | None = None


@dataclass(frozen=True)
class MapPlan(Plan):
    """Plan of a map, the same in all processes.

    Attributes:
        mosaics: the maps, by id.
        blocks: for each tile the id of its map, its rectangle, and the larger rectangle that the
            networks see.
        stretches: those of the mosaics, kept until the map is complete.
    """

    mosaics: Mapping[str, Mosaic] = field(default_factory=dict)
    blocks: tuple[tuple[str, Box, Box], ...] = ()
    stretches: KeptStretches | None = None

    def prepare(self, index: int, members: Sequence[EnsembleMember]) -> PreparedImage:
        """Read a block and its surroundings in the networks' pixel size."""
        map_id, box, seen = self.blocks[index]
        chip = self.tiles[index].chip
        faults: dict[str, str] = {}
        pixels = self.mosaics[map_id].read(seen, faults)
        # The journal keeps the notes, so they must not hold the secrets of addresses.
        notes = tuple(
            f"{printable(public_address(name))}: {_without_secrets(reason)}"
            for name, reason in faults.items()
        )
        if notes and not pixels.any():
            raise SatmapError(notes[0])
        default = self.task.default_metres_per_pixel or 1.0
        georeference = chip.image.georeference
        metres = georeference.metres_per_pixel if georeference else (default, default)
        category = self.task.category(chip)
        fitting = [member for member in members if member.network.in_channels <= chip.channels]
        if not fitting:
            chip.require_channels(min(member.network.in_channels for member in members))
        return PreparedImage(
            chip.image, pixels, fitting, metres, notes, category, inside=box.seen_from(seen)
        )

    def windows(self, index: int) -> int:
        """Return the number of windows in which the networks predict a block."""
        _, _, seen = self.blocks[index]
        settings = self.recipe.inference
        return window_count(seen.height, seen.width, settings.window, settings.overlap)

    def forget_incomplete(self, journal: Journal, store: MapStore) -> None:
        """Forget the results of blocks that must be predicted or decoded again.

        These are blocks that could not be read completely, and blocks whose neighbours have no
        stored probability maps.
        """
        assert self.stretches is not None
        self.stretches.write()
        for tile in self.tiles:
            if tile.key in journal.notes:
                journal.forget(tile.key)
                store.path(tile.key).unlink(missing_ok=True)
        stored = [store.path(tile.key).exists() for tile in self.tiles]
        for tile in self.tiles:
            if not all(stored[neighbour.image] for neighbour in tile.neighbours):
                journal.finished.pop(tile.key, None)


def map_sources(request: MapRequest) -> PredictionReport:
    """Map rasters and write the result, in one or several formats.

    A raster that cannot be read is left out and reported. If only a part of it cannot be read,
    that part is left out. The next run with the same request predicts only unfinished blocks and
    those that lack a part. The result does not depend on the number of processes and workers.

    Args:
        request: ``sources`` are files, directories and URLs; ``output`` and ``exports`` end in the
            suffixes of the formats.

    Returns:
        Number of objects of each map that was predicted at least in part, and faults by raster and
        by block.

    Raises:
        SatmapError: no raster can be read, the networks do not fit, or an output cannot be written.
    """
    require_outputs(request.output, request.exports)
    return run(request, _plan, _finish)


def _plan(request: MapRequest) -> MapPlan:
    """Find networks and rasters, compute the stretches, and print a summary on stdout."""
    files, recipe, task, models = ensemble_of(request)
    # Scenes have slanted edges, at which networks mistake black for ground.
    changes: dict[str, Any] = {"gaps": "mirror"}
    if request.views:
        changes["tta"] = request.views
    if pick_device(request.device).type == "cpu":
        # Batches take memory, but no CPU is faster with them.
        changes["batch"] = 1
    inference = recipe.inference.model_copy(update=changes)
    recipe = recipe.model_copy(update={"inference": inference})
    task = task_of(recipe)
    for path in (request.output, *request.exports):
        require_any_format(recipe.task, path)
    # A task that cannot join any blocks says so before the prediction.
    task.join_blocks("", (1, 1), (), None)
    found = find_sources(request.sources, crs=request.source_crs, zoom=request.zoom)
    channels = {file.in_channels for file in files}
    layers, faults = layers_of_networks(found.sources, channels, request.bands)
    faults = found.faults | faults
    kept = KeptStretches(request.output)
    percentiles = recipe.stretch.low, recipe.stretch.high
    sampled = track(layers, "sampling", len(layers))
    layers = stretched_layers(sampled, request.stretch, percentiles, faults, kept)
    if not layers:
        raise SatmapError("\n".join(f"{printable(name)}: {faults[name]}" for name in faults))
    gsd = request.gsd or trained_gsd(files)
    mosaics = named_mosaics(map(of_common_bands, make_mosaics(layers, gsd, request.priority)))
    warnings = describe(mosaics, trained_gsd(files)) + brightness_warnings(layers, files)
    warnings += left_out_warnings(mosaics, files)
    context = min(recipe.inference.overlap, _CONTEXT_PX)
    side = request.block_px or block_side(recipe.inference)
    names: list[tuple[str, Box, Box]] = []
    tiles: list[Tile] = []
    for map_id, mosaic in mosaics.items():
        blocks = mosaic.blocks(side)
        seen = [mosaic.covered(box.grown(context, context)) or box for box in blocks.values()]
        names += [(map_id, box, around) for box, around in zip(blocks.values(), seen, strict=True)]
        tiles += _tiles(map_id, mosaic, blocks, seen, len(tiles), request, task)
    _require_fitting_outputs(request, task, mosaics, [tile.chip for tile in tiles])
    print(f"{counted(len(tiles), 'block')}; {describe_networks(files, recipe)}", flush=True)
    if task.confidence_features():
        print("\n".join(describe_models(models, task.noun)), flush=True)
    options = [request.bands, request.priority, request.stretch, gsd, side, context]
    return MapPlan(
        recipe,
        task,
        tuple(files),
        models,
        None,
        {tile.chip.image_id: tile.chip.image_id for tile in tiles},
        tuple(tiles),
        faults,
        tuple(warnings),
        json.dumps([fingerprint_of(recipe, files, models, request, None), options]),
        mosaics,
        tuple(names),
        kept,
    )


def _require_fitting_outputs(
    request: MapRequest, task: Task, mosaics: Mapping[str, Mosaic], chips: Sequence[Chip]
) -> None:
    """Fail if the format of an output can hold none of the maps."""
    placed = any(mosaic.georeference for mosaic in mosaics.values())
    suffixes = (*task.recipe.task.submission_suffixes, *task.export_suffixes)
    in_pixels = [suffix for suffix in suffixes if suffix in _PIXEL_SUFFIXES]
    for path in (request.output, *request.exports):
        task.check_outputs(path, chips)
        if not placed and path.suffix.lower() in _PLACED_SUFFIXES:
            first = next(iter(mosaics.values())).layers[0].name
            hint = f", or write pixels ({', '.join(in_pixels)})" if in_pixels else ""
            raise SatmapError(
                f"{path}: this format needs places on the ground, but no image has a georeference, "
                f"for example {printable(first)}. Use images with one (GeoTIFF, or a world file "
                f"and --source-crs){hint}."
            )


def block_side(inference: Inference) -> int:
    """Return the side of blocks that whole windows of the networks cover, pixels."""
    step = inference.window - 2 * inference.overlap
    return max(round(_BLOCK_PX / step), 1) * step


def _tiles(
    map_id: str,
    mosaic: Mosaic,
    blocks: Mapping[tuple[int, int, int], Box],
    seen: Sequence[Box],
    first: int,
    request: MapRequest,
    task: Task,
) -> list[Tile]:
    """Return the blocks of a map with the blocks around them.

    The index of the first block is ``first``. ``seen`` holds the rectangles that the networks see.
    """
    index_of = {place: index for index, place in enumerate(blocks, first)}
    path, channels = Path(mosaic.layers[0].sources[0].name), len(mosaic.layers[0].bands)
    tiles = []
    for ((region, row, column), box), shown in zip(blocks.items(), seen, strict=True):
        around = []
        if isinstance(task, DenseTask):
            rows, columns = range(row - 1, row + 2), range(column - 1, column + 2)
            for place in product((region,), rows, columns):
                if place in index_of and place != (region, row, column):
                    shift = blocks[place].seen_from(box)
                    around.append(Neighbour(index_of[place], shift.left, shift.top))
        info = ImageInfo(
            path, RGB, box.width, box.height, channels, "uint8", mosaic.georeference_of(box)
        )
        image_id = f"{map_id}:{region}-{row}-{column}"
        digest = hashlib.sha256(f"{box} {mosaic.identity(shown)}".encode()).hexdigest()[:16]
        chip = Chip(image_id, image_id, "", {RGB: info}, None, view_angle=request.view_angle)
        tiles.append(Tile(chip, f"{image_id} {digest}", tuple(around)))
    return tiles


def _finish(
    plan: MapPlan,
    request: MapRequest,
    journal: Journal,
    found: Mapping[int, str],
    weights: tuple[FileRecord, ...],
    run_by: Run,
) -> PredictionReport:
    """Join the blocks of every map and write the outputs and the manifest."""
    faults = dict(plan.faults)
    blocks: dict[str, list[tuple[Box, Any]]] = {map_id: [] for map_id in plan.mosaics}
    for index, tile in enumerate(plan.tiles):
        map_id, box, _ = plan.blocks[index]
        for note in journal.notes.get(tile.key, ()):
            name, _, reason = note.partition(": ")
            faults.setdefault(name, reason)
        if index in found:
            faults[f"block {tile.chip.image_id}"] = found[index]
        else:
            blocks[map_id].append((box, journal.found(tile.key)))
    records = {}
    for map_id, mosaic in plan.mosaics.items():
        size = mosaic.height, mosaic.width
        joined = plan.task.join_blocks(map_id, size, blocks[map_id], mosaic.georeference)
        records[map_id] = plan.task.keep_confident(joined, request.least_confidence)
    counts = {
        map_id: plan.task.count(record) for map_id, record in records.items() if blocks[map_id]
    }
    warnings = list(plan.warnings)
    if counts and not any(counts.values()):
        warnings.append(f"{found_nothing(plan.task.noun)} (--gsd, --bands, --stretch)")
    for path in (request.output, *request.exports):
        if path.suffix.lower() in plan.recipe.task.submission_suffixes:
            plan.task.write(path, list(records), {name: name for name in records}, records.get)
        elif lacking := plan.task.export(path, lambda: iter(records.values()), request.crs):
            warnings.append(f"{path} lacks {len(lacking)} maps. {next(iter(lacking.values()))}")
    _write_manifest(plan, request, weights, faults, run_by)
    for index, reason in found.items():
        # Marks the block, so that the next run predicts those around it again, too.
        journal.add_notes(plan.tiles[index].key, (reason,))
    if not faults:
        assert plan.stretches is not None
        plan.stretches.remove()
    return PredictionReport(
        plan.task.noun, counts, faults, tuple(warnings), unfinished=bool(faults)
    )


def _write_manifest(
    plan: MapPlan,
    request: MapRequest,
    weights: tuple[FileRecord, ...],
    faults: Mapping[str, str],
    run_by: Run,
) -> None:
    layers = [layer for mosaic in plan.mosaics.values() for layer in mosaic.layers]
    sources = [source for layer in layers for source in layer.sources]
    local = [Path(source.name) for source in sources if not source.is_remote]
    records = dict(zip(map(str, local), in_threads(record_file, local), strict=True))
    facts = {
        "recipe": record_recipe(plan.recipe, content=True),
        "least_confidence": request.least_confidence,
        "weights": weights,
        "sources": records,
        "addresses": tuple(public_address(source.name) for source in sources if source.is_remote),
        "maps": {
            map_id: {
                "crs": mosaic.georeference.crs if mosaic.georeference else None,
                "transform": mosaic.georeference.transform[:6] if mosaic.georeference else None,
                "width": mosaic.width,
                "height": mosaic.height,
                "stretches": [
                    [
                        layer.name.replace(name := layer.sources[0].name, public_address(name)),
                        layer.stretch.low,
                        layer.stretch.high,
                    ]
                    for layer in mosaic.layers
                    if layer.stretch
                ],
            }
            for map_id, mosaic in plan.mosaics.items()
        },
        "skipped": {
            public_address(name): _without_secrets(reason)
            for name, reason in sorted(faults.items())
        },
        "learning": learning_of(plan.files, {record.sha256 for record in records.values()}),
        "run": run_by,
    }  # fmt: skip
    write_manifest(request.output, MapManifest, facts)


def _without_secrets(text: str) -> str:
    """Return a text whose addresses have no user, query and fragment."""
    return _ADDRESS.sub(lambda found: public_address(found[0]), text)
