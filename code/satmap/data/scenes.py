"""Cut scenes with labels into square tiles for training, as a recipe's ``tiles`` say.

A scene may be of any size: it is read window by window, as ``map`` reads it. The tiles of a scene
lie in a folder of the cache whose name is a hash of its inputs, so a second run finds them again. A
scene that cannot be used does not stop the others.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from affine import Affine

from satmap.data.chip import Chip
from satmap.data.chip_label import CHIP_LABEL_SUFFIX
from satmap.data.imagery import RGB, ImageInfo
from satmap.data.inventory import Inventory
from satmap.data.judgement import read_ignored
from satmap.data.label_files import read_label_file
from satmap.data.label_offsets import offset_notes
from satmap.data.layers import Layer, find_layers, stretched
from satmap.data.mosaic import Mosaic, arrange, make_mosaics
from satmap.data.own_cutting import cut_chip
from satmap.data.own_labels import Shapes
from satmap.data.own_scenes import OwnScene
from satmap.data.sources import HALF_WORLD_M, WEB_MERCATOR, read_source, state_of
from satmap.data.voids import find_voids
from satmap.errors import CannotWriteError, SatmapError, error_text
from satmap.io.files import atomic_path
from satmap.io.progress import track
from satmap.io.text import counted
from satmap.rasters.scene import Box
from satmap.recipes.schema import TileSettings
from satmap.runtime.resources import available_cores
from satmap.vectors.georeference import Georeference, georeference_from_json, georeference_of

if TYPE_CHECKING:
    from satmap.tasks.base import Task

# Increase this number when the tiles of the same inputs change.
_FORMAT = "2"
# More tiles of one scene point to a wrong pixel size: the largest scenes have 37,000 pixels a side.
_MOST_TILES = 50_000
# Scenes with fewer tiles are described together.
_FEW_TILES = 5


@dataclass(frozen=True)
class SceneGrid:
    """A scene on the pixel grid of its tiles.

    Attributes:
        mosaic: the scene.
        tiles: rectangle of each tile in the mosaic's pixels, by column and row of tiles. It may
            reach beyond the scene. Columns and rows are those of web mercator, or begin at the
            scene's upper left corner.
    """

    mosaic: Mosaic
    tiles: Mapping[tuple[int, int], Box]


def cut_scenes(inventory: Inventory, task: "Task", channels: int, cache: Path) -> Inventory:
    """Replace the labelled scenes of an inventory by their tiles, cutting those the cache lacks.

    Scenes without a label stay as they are. Those that cannot be cut become faults.

    Args:
        inventory: scenes and other chips.
        task: what the labels show; its recipe has ``tiles``.
        channels: number of channels that the networks need.
        cache: directory of prepared chips.

    Raises:
        SatmapError: no scene can be cut, the task's labels are not polygons, or the cache cannot be
            written.
    """
    settings = task.recipe.tiles
    if settings is None:
        raise ValueError(f"the recipe {task.recipe.name} has no tiles")
    if task.label_kind != "polygons":
        raise SatmapError(
            f"the recipe {task.recipe.name} has tiles, but {task.noun} are not learnt from "
            "polygons. Leave them out."
        )
    chips: list[Chip] = []
    notes: list[str] = []
    small: dict[str, list[tuple[Path, Mapping[str, Any]]]] = defaultdict(list)
    faults = dict(inventory.faults)
    scenes = [chip for chip in inventory.chips if chip.label is not None]
    for chip in track(scenes, "scenes", len(scenes)):
        try:
            directory = cache / f"tiles-{chip.image_id}-{_digest(chip, task, settings, channels)}"
            content = _read_or_cut(chip, task, settings, channels, directory)
            chips += _chips(content["tiles"], chip, directory)
            faults |= content["faults"]
            if len(content["tiles"]) < _FEW_TILES:
                small[chip.aoi].append((directory, content))
            else:
                notes += content["notes"]
        except CannotWriteError:
            raise
        # Libraries raise many kinds of errors on unusual files.
        except Exception as error:
            faults[chip.image_id] = error_text(error, chip.image.path)
    if not chips:
        reason = next(iter(faults.values()), "there is no scene with a label.")
        raise SatmapError(f"no tile can be cut: {reason}")
    size = f"zoom {settings.zoom}" if settings.zoom else f"{settings.gsd:g} m per pixel"
    notes = [
        f"tiles: {len(chips)} of {settings.size} pixels at {size}, from "
        f"{counted(len({chip.scene for chip in chips}), 'scene')}",
        *notes,
        *(note for area, found in small.items() for note in _small_notes(area, found, task)),
    ]
    return replace(
        inventory,
        chips=(*chips, *inventory.unlabelled()),
        faults=faults,
        long_ids={chip.image_id: chip.image_id for chip in chips},
        notes=(*inventory.notes, *notes),
    )


def _small_notes(
    area: str, scenes: Sequence[tuple[Path, Mapping[str, Any]]], task: "Task"
) -> list[str]:
    """Describe all small scenes of an area together; one alone shows too little for an offset."""
    if len(scenes) == 1:
        return list(scenes[0][1]["notes"])
    # Ids relative to the cache, because every scene has its own directory.
    records = [
        record | {"id": f"{directory.name}/{record['id']}", "aoi": area}
        for directory, content in scenes
        for record in content["tiles"]
    ]
    objects = sum(record["objects"] for record in records)
    note = (
        f"{area}: {counted(len(records), 'tile')} of {len(scenes)} small scenes, "
        f"{counted(objects, task.label_noun)}, counted once per tile"
    )
    return [note, *offset_notes(records, scenes[0][0].parent, advice=False)]


def make_grid(layer: Layer, settings: TileSettings) -> SceneGrid:
    """Place a scene with a georeference on the grid of its tiles.

    Raises:
        SatmapError: there would be too many tiles, or the scene lies outside of web mercator.
    """
    size = settings.size
    if settings.zoom is None:
        (mosaic,) = make_mosaics([layer], settings.gsd)
        left = top = 0
    else:
        pixel_m = 2 * HALF_WORLD_M / 2**settings.zoom / size
        corner = Affine.translation(-HALF_WORLD_M, HALF_WORLD_M)
        crs = rasterio.crs.CRS.from_user_input(WEB_MERCATOR)
        world = Georeference(
            crs.to_wkt(), corner @ Affine.scale(pixel_m, -pixel_m), (pixel_m, pixel_m)
        )
        mosaic = arrange([layer], world)
        assert mosaic.georeference is not None
        transform = mosaic.georeference.transform
        left = round((transform.c + HALF_WORLD_M) / pixel_m)
        top = round((HALF_WORLD_M - transform.f) / pixel_m)
        # Pixels of web mercator are smaller on the ground, the farther from the equator.
        placed = georeference_of(crs, transform, mosaic.width, mosaic.height)
        assert placed is not None
        mosaic = replace(mosaic, georeference=placed, metres_per_pixel=placed.metres_per_pixel)
    columns = range(left // size, -(-(left + mosaic.width) // size))
    rows = range(top // size, -(-(top + mosaic.height) // size))
    if len(columns) * len(rows) > _MOST_TILES:
        raise SatmapError(
            f"{layer.name}: would be cut into {len(columns) * len(rows):,} tiles. Check its pixel "
            "size, or give the recipe's tiles larger pixels."
        )
    tiles = {
        (column, row): box
        for row in rows
        for column in columns
        if mosaic.covered(box := Box(column * size - left, row * size - top, size, size))
    }
    return SceneGrid(mosaic, tiles)


def _digest(chip: Chip, task: "Task", settings: TileSettings, channels: int) -> str:
    """Hash everything that the tiles of a scene depend on; files by path, size and time."""
    assert chip.label is not None
    parts: list[Any] = [_FORMAT, settings.model_dump_json(), task.recipe.stretch, channels]
    parts += [*state_of(chip.image.path), *state_of(chip.label)]
    parts += state_of(chip.ignored) if chip.ignored else []
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _read_or_cut(
    chip: Chip, task: "Task", settings: TileSettings, channels: int, directory: Path
) -> Mapping[str, Any]:
    """Return the index of a scene's tiles; cut them if there is none."""
    index = directory / "tiles.json"
    if not index.is_file():
        content = _cut(chip, task, settings, channels, directory)
        with atomic_path(index) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        return content
    try:
        read: Mapping[str, Any] = json.loads(index.read_bytes())
    except (OSError, ValueError) as error:
        raise SatmapError(
            f"{index}: damaged ({error}). Delete {directory} and run the command again."
        ) from error
    return read


def _cut(
    chip: Chip, task: "Task", settings: TileSettings, channels: int, directory: Path
) -> Mapping[str, Any]:
    """Write the tiles of a scene and return their index: ``tiles``, ``faults`` and ``notes``."""
    faults: dict[str, str] = {}
    unread: dict[str, str] = {}
    layer = _read_layer(chip, task, channels, unread)
    grid = make_grid(layer, settings)
    shapes = _read_shapes(chip, task, grid.mosaic)
    black = settings.nodata == "black"
    voids = np.empty(0, np.object_) if black else find_voids(grid.mosaic, shapes, None, unread)
    if chip.ignored:
        assert grid.mosaic.georeference is not None
        voids = np.concatenate([voids, read_ignored(chip.ignored, grid.mosaic.georeference)])
    scene = OwnScene(
        chip.image_id,
        chip.image_id,
        grid.mosaic,
        grid.mosaic.metres_per_pixel,
        shapes,
        np.arange(len(shapes)),
        voids=voids,
        trains_empty=black,
    )
    prefix = f"{chip.image_id}-{settings.zoom}" if settings.zoom else chip.image_id

    def attempt(tile: tuple[tuple[int, int], Box]) -> dict[str, Any] | str:
        (column, row), box = tile
        try:
            return cut_chip(scene, box, f"{prefix}-{column}-{row}", None, task, directory)
        except CannotWriteError:
            raise
        except Exception as error:
            return error_text(error, chip.image.path)

    records, seen = [], np.zeros(4)
    with ThreadPoolExecutor(available_cores()) as pool:
        for (column, row), result in zip(
            grid.tiles, pool.map(attempt, grid.tiles.items()), strict=True
        ):
            if isinstance(result, str):
                faults[f"{prefix}-{column}-{row}"] = result
                continue
            seen += result.pop("pixels")
            unread |= result.pop("faults")
            if result["kept"]:
                records.append(result | {"aoi": f"{chip.aoi} {chip.image_id}"})
    if unread:
        faults[chip.image_id] = "; ".join(f"{name}: {why}" for name, why in unread.items())
    if not records:
        reason = next(iter(faults.values()), "no pixel holds data.")
        raise SatmapError(f"{chip.image.path}: no tile shows ground: {reason}")
    objects = sum(record["objects"] for record in records)
    empty = seen[1:].sum() / seen[0]
    without, little = "without data", "little or no data"
    if chip.ignored:
        without, little = f"{without} or ignored", f"{little}, or dropped"
    note = (
        f"{chip.aoi} {chip.image_id}: {counted(len(records), 'tile')}, {100 * empty:.0f} % of "
        f"their pixels {without}, {counted(objects, task.label_noun)}, counted once per tile"
    )
    if left_out := len(grid.tiles) - len(records):
        note += f"; {counted(left_out, 'tile')} left out with {little}"
    return {
        "tiles": records,
        "faults": faults,
        "notes": [note, *offset_notes(records, directory, advice=False)],
    }


def _read_layer(chip: Chip, task: "Task", channels: int, unread: dict[str, str]) -> Layer:
    """Read the header of a scene and compute its stretch; ``unread`` as in :func:`stretched`."""
    path = str(chip.image.path)
    layers, unusable = find_layers([read_source(path)], channels)
    if not layers:
        raise SatmapError(f"{path}: {unusable[path]}")
    (layer,) = layers
    if layer.georeference is None:
        raise SatmapError(f"{path}: no georeference, so its labels cannot be placed.")
    ready = stretched([layer], task.recipe.stretch.low, task.recipe.stretch.high, unread)
    if not ready:
        raise SatmapError(f"{path}: {unread[path]}")
    return ready[0]


def _read_shapes(chip: Chip, task: "Task", mosaic: Mosaic) -> Shapes:
    """Read the labels of a scene that lie on it, in pixels of its grid."""
    assert chip.label is not None
    assert mosaic.georeference is not None
    found = read_label_file(chip.label, "polygons", may_be_empty=True)
    if not len(found.shapes):
        return found.shapes
    try:
        pixels = mosaic.georeference.to_pixels(shapely.get_coordinates(found.shapes), found.crs)
    except ValueError as error:
        raise SatmapError(f"{chip.label}: {error}.") from error
    shapes: Shapes = shapely.set_coordinates(found.shapes.copy(), pixels)
    ground = shapely.box(0, 0, mosaic.width, mosaic.height)
    shapes = shapes[shapely.intersects(shapes, ground)]
    if not len(shapes):
        raise SatmapError(
            f"{chip.label}: none of its {len(found.shapes)} {task.label_noun}s lies on "
            f"{chip.image.path.name}. Check that label and image belong together and the label's "
            "coordinate system."
        )
    return shapes


def _chips(records: Sequence[Mapping[str, Any]], scene: Chip, directory: Path) -> list[Chip]:
    """Return the tiles of an index as chips."""
    chips = []
    for record in records:
        name = record["id"]
        info = ImageInfo(
            directory / f"{name}.tif", RGB, record["width"], record["height"], record["bands"],
            "uint8", georeference_from_json(record["georeference"]), is_stretched=True,
        )  # fmt: skip
        label = directory / f"{name}{CHIP_LABEL_SUFFIX}"
        chips.append(Chip(name, name, scene.aoi, {RGB: info}, label, scene=scene.image_id))
    return chips
