"""Cut a user's images and labels into chips on disk, from which satmap trains as usual.

Images with a georeference and vector labels become one mosaic per place, at one pixel size. Images
with masks are cut one by one. The chips lie in a folder of the cache whose name is a hash of the
inputs, so a second run finds them again.
"""

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from affine import Affine
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from satmap.data.audit import audit_images
from satmap.data.chip import Chip
from satmap.data.chip_label import CHIP_LABEL_SUFFIX, ChipLabel
from satmap.data.imagery import RGB, ImageInfo
from satmap.data.inventory import Inventory
from satmap.data.mosaic import (
    Layer,
    Mosaic,
    find_layers,
    make_mosaics,
    state_of,
    states_of,
    stretched,
)
from satmap.data.own_labels import (
    OwnShapes,
    find_label_files,
    pair_masks,
    read_area,
    read_mask_label,
    read_own_shapes,
)
from satmap.data.registration import measure_offset
from satmap.data.sources import Source, find_sources, opened, read_source
from satmap.errors import CannotWriteError, SatmapError, error_text
from satmap.io.files import atomic_path
from satmap.io.geojson_reader import LON_LAT, project
from satmap.io.progress import track
from satmap.io.text import printable
from satmap.rasters.scene import Box
from satmap.runtime.resources import available_cores
from satmap.vectors.georeference import (
    Georeference,
    georeference_as_json,
    georeference_from_json,
    metres_per_degree,
)

if TYPE_CHECKING:
    from satmap.tasks.base import Task

# Increase this number when the chips of the same inputs change.
_FORMAT = "2"
# Chips have about this width and height. Images up to one and a half of it stay whole.
_CHIP_PX = 512
# Pixels around a chip from which masks are traced, and into which lines continue.
_MARGIN_PX = 64
# Chips with less ground that counts are left out.
_LEAST_SEEN = 0.05
# A void is a white part of an image that reaches its border: at least this bright, this share of
# the image, and this wide in pixels of an overview with sides of at most _OVERVIEW_PX.
_WHITE, _VOID_SHARE, _VOID_PX, _OVERVIEW_PX = 252, 0.03, 5, 1024
# At least this share of it has the value 255; compression changes the edges.
_PURE = 0.95
# If labels cover more of it, it is a roof.
_LABELLED = 0.5
# Rasters closer than this share of their size belong to one place.
_SAME_PLACE = 0.1
# Of the pixel sizes that cover this share of a place, the finest is used.
_COVERED = 0.5
# Blocks that are held out together: sides in chips, and the least number of blocks per fold.
_BLOCK_SIDES, _BLOCKS_PER_FOLD = (8, 4, 2), 4
# Up to this number, places are areas of their own.
_MOST_AREAS = 20
# Chips from which the offset of labels is measured, per place.
_MEASURED = 60
# With fewer chips, a place is measured together with others.
_FEW_CHIPS = 5
# Smallest offset that is worth a warning, metres and pixels.
_FAR_M, _FAR_PX = 0.75, 2.0

Shapes = NDArray[np.object_]


@dataclass(frozen=True)
class OwnData:
    """Images and labels that the user names.

    Attributes:
        sources: files, directories and addresses of images.
        labels: a vector file, a directory of vector files, or a directory of masks.
        area: vector file with polygons within which labels are complete; None for everywhere.
        bands: numbers of the bands for the networks' channels, from 1; None for the usual ones.
        source_crs: reference system of images that state none.
        zoom: zoom level of map tiles.
        gsd: metres per pixel of the chips; None for that of the images.
        metres_per_pixel: pixel size of images without georeference; None for the task's default.
        shift: metres to the east and to the north by which vector labels are moved.
    """

    sources: tuple[str, ...]
    labels: Path
    area: Path | None = None
    bands: tuple[int, ...] | None = None
    source_crs: str | None = None
    zoom: int | None = None
    gsd: float | None = None
    metres_per_pixel: float | None = None
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class _Scene:
    """A mosaic or an image with its labels in pixels.

    Attributes:
        name: beginning of the ids of its chips.
        place: rasters that touch each other or nearly do; "" without georeference.
        mosaic: the pixels.
        metres: size of a pixel; None if unknown and not needed.
        shapes, index: vector labels near it, and the index of each among all labels.
        mask: raster with the labels; None for vector labels.
        area: polygons in which labels are complete; None for everywhere.
        voids: white parts without image.
    """

    name: str
    place: str
    mosaic: Mosaic
    metres: tuple[float, float] | None
    shapes: Shapes = field(default_factory=lambda: np.empty(0, np.object_))
    index: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    mask: Source | None = None
    area: Shapes | None = None
    voids: Shapes = field(default_factory=lambda: np.empty(0, np.object_))


@dataclass(frozen=True)
class _Plan:
    """All scenes, and what could not be used.

    Attributes:
        scenes: what to cut.
        faults: reasons of images and labels that do not fit, by name.
        unread: reasons of rasters whose pixels could not be read, by name.
        notes: for the user.
        labels: vector labels.
        unlabelled: images without mask.
        unused_labels: masks without image.
    """

    scenes: tuple[_Scene, ...]
    faults: dict[str, str]
    unread: dict[str, str]
    notes: tuple[str, ...]
    labels: OwnShapes | None = None
    unlabelled: tuple[Source, ...] = ()
    unused_labels: tuple[Path, ...] = ()


def find_own_chips(data: OwnData, task: "Task", channels: int, cache: Path) -> Inventory:
    """Cut images and labels into chips, unless the cache has them, and list them.

    Args:
        data: the user's images and labels.
        task: what the labels show.
        channels: number of channels that the networks need.
        cache: directory of prepared chips.

    Raises:
        SatmapError: no image or no label can be read, they do not belong together, or the cache
            cannot be written.
    """
    if task.label_kind is None:
        raise SatmapError(f"--labels: {task.noun} are not learnt from lines, polygons or masks.")
    vectors, masks = find_label_files(data.labels)
    folder = data.labels.resolve()
    found = find_sources(data.sources, crs=data.source_crs, zoom=data.zoom)
    images = found.sources
    if not vectors:
        images = tuple(
            image for image in images
            if image.is_remote or not Path(image.name).resolve().is_relative_to(folder)
        )  # fmt: skip
        if not images:
            raise SatmapError(
                f"all images lie in {data.labels}, where the masks are. Give --labels the folder "
                "that holds only the masks."
            )
    directory = cache / f"own-{_digest(data, images, vectors or masks, task, channels)}"
    index = directory / "chips.json"
    if not index.is_file():
        plan = (
            _plan_vectors(data, images, vectors, task, channels)
            if vectors
            else _plan_masks(data, images, masks, task, channels)
        )
        plan.faults.update(found.faults)
        content = _make_chips(plan, task, directory)
        # The network may work again, so the next run tries again.
        if any("://" in name for name in plan.unread):
            return _inventory(content, directory, data, task)
        with atomic_path(index) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
    try:
        return _inventory(json.loads(index.read_bytes()), directory, data, task)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SatmapError(
            f"{index}: damaged ({error}). Delete {directory} and run the command again."
        ) from error


def _digest(
    data: OwnData, images: Sequence[Source], labels: Sequence[Path], task: "Task", channels: int
) -> str:
    """Hash everything that the chips depend on; files by path, size and time."""
    parts: list[Any] = [_FORMAT, astuple(data), task.recipe.task.name, channels]
    parts += [task.recipe.stretch, task.default_metres_per_pixel, *images]
    try:
        for image in images:
            parts += [] if image.is_remote else states_of(image)
        for path in (*labels, *([data.area] if data.area else [])):
            parts += state_of(path)
    except OSError as error:
        raise SatmapError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


# Scenes


def _plan_vectors(
    data: OwnData, images: Sequence[Source], files: Sequence[Path], task: "Task", channels: int
) -> _Plan:
    """Make one mosaic per place."""
    assert task.label_kind is not None
    placed = [image for image in images if _is_placed(image)]
    if not placed:
        raise SatmapError(
            f"the labels have a georeference, but none of the {len(images)} images has one, for "
            f"example {images[0].name}: satmap cannot tell where the labels lie. Use images with a "
            "georeference (GeoTIFF, or a world file and --source-crs), or masks with the names of "
            "the images."
        )
    labels = read_own_shapes(files, task.label_kind)
    faults = dict(labels.faults)
    faults |= {
        image.name: f"{image.name}: no georeference, so the labels cannot be placed on it."
        for image in images
        if not _is_placed(image)
    }
    count = _counted(len(labels.shapes), task.label_noun)
    notes = [f"labels: {count} in {_counted(len(files), 'file')}"]
    if labels.repeated:
        notes[0] += f", after {labels.repeated} parts or copies in other files were joined"
    if labels.systems > 1:
        notes.append(f"the label files are in {labels.systems} reference systems")
    if (systems := len({image.crs for image in placed})) > 1:
        notes.append(f"the images are in {systems} reference systems; each place gets one")
    scenes, unread = [], dict[str, str]()
    for number, members in enumerate(_places(placed), 1):
        layers, unused = find_layers(members, channels, data.bands)
        faults |= unused
        layers = stretched(layers, task.recipe.stretch.low, task.recipe.stretch.high, unread)
        if layers:
            name = Path(members[0].name).stem if len(members) == 1 else f"place{number}"
            # A place so large that its scale varies has several.
            scenes += [
                _Scene(name, name, mosaic, mosaic.metres_per_pixel)
                for mosaic in make_mosaics(_finest_first(layers), data.gsd)
            ]
    if not scenes:
        raise SatmapError(next(iter((faults | unread).values())))
    scenes = _with_area(_uniquely_named(scenes), data)
    labelled = []
    for scene in scenes:
        mosaic, georeference = scene.mosaic, scene.mosaic.georeference
        assert georeference is not None
        shapes, index = labels.near(georeference, mosaic.width, mosaic.height)
        shapes = _shifted(shapes, data.shift, georeference)
        ground = shapely.box(0, 0, mosaic.width, mosaic.height)
        inside = shapely.intersects(shapes, ground)
        scene = replace(scene, shapes=shapes[inside], index=index[inside])
        labelled.append(replace(scene, voids=_voids(scene, unread)))
    _require_overlap(labelled, labels, task)
    places = {scene.place for scene in labelled}
    if empty := len(places - {scene.place for scene in labelled if len(scene.shapes)}):
        notes.append(
            f"{empty} of {len(places)} places hold no {task.noun} and count as empty ground; "
            "leave them out with --area"
        )
    return _Plan(tuple(labelled), faults, unread, tuple(notes), labels)


def _plan_masks(
    data: OwnData, images: Sequence[Source], files: Sequence[Path], task: "Task", channels: int
) -> _Plan:
    """Pair images with masks."""
    if data.shift != (0.0, 0.0):
        raise SatmapError("--shift moves vector labels, but --labels holds masks.")
    pairs, unused = pair_masks(images, files)
    placed = [image for image in images if image.name in pairs and _is_placed(image)]
    place = {
        image.name: f"place{number}"
        for number, members in enumerate(_places(placed), 1)
        for image in members
    }
    scenes: list[_Scene] = []
    faults: dict[str, str] = {}
    unread: dict[str, str] = {}
    for image in images:
        if image.name not in pairs:
            continue
        try:
            mask = read_source(str(pairs[image.name]))
            _require_same_pixels(image, mask)
            layers, unusable = find_layers([image], channels, data.bands)
            faults |= unusable
            layers = stretched(layers, task.recipe.stretch.low, task.recipe.stretch.high, unread)
        except SatmapError as error:
            faults[image.name] = str(error)
            continue
        for layer in layers:
            # The chips keep the pixels of the mask, whatever the direction of the image.
            mosaic = Mosaic(
                (layer,), layer.georeference, layer.width, layer.height,
                layer.georeference.metres_per_pixel if layer.georeference else None,
            )  # fmt: skip
            default = data.metres_per_pixel or task.default_metres_per_pixel
            metres = mosaic.metres_per_pixel or ((default, default) if default else None)
            name = Path(image.name).stem
            scene = _Scene(name, place.get(image.name, ""), mosaic, metres, mask=mask)
            scenes.append(replace(scene, voids=_voids(scene, unread)))
    if not scenes:
        raise SatmapError(next(iter((faults | unread).values())))
    notes = [f"labels: {_counted(len(pairs), 'mask')}"]
    unplaced = sum(scene.mosaic.georeference is None for scene in scenes)
    if unplaced and task.default_metres_per_pixel:
        size = data.metres_per_pixel
        notes.append(
            f"images without georeference: {unplaced}, taken as {size:g} m per pixel"
            if size
            else f"images without georeference: {unplaced}, taken as "
            f"{task.default_metres_per_pixel:g} m per pixel; --metres-per-pixel states another size"
        )
    unlabelled = tuple(image for image in images if image.name not in pairs)
    scenes = _with_area(_uniquely_named(scenes), data)
    return _Plan(tuple(scenes), faults, unread, tuple(notes), None, unlabelled, tuple(unused))


def _is_placed(source: Source) -> bool:
    return bool(source.crs) and not source.transform.is_identity


def _require_same_pixels(image: Source, mask: Source) -> None:
    if (image.width, image.height) != (mask.width, mask.height):
        raise SatmapError(
            f"{printable(mask.name)}: a mask of {mask.width} x {mask.height} pixels, but the image "
            f"{Path(image.name).name} has {image.width} x {image.height}. Make the mask from this "
            "image, pixel by pixel."
        )
    if not (_is_placed(image) and _is_placed(mask)):
        return
    if rasterio.crs.CRS.from_wkt(image.crs) != rasterio.crs.CRS.from_wkt(mask.crs):
        raise SatmapError(
            f"{printable(mask.name)}: another reference system than its image "
            f"{Path(image.name).name}. Reproject one of them with `gdalwarp -t_srs`."
        )
    corners = np.array([(0, 0), (image.width, image.height)], float)
    shift = max(
        math.dist(~image.transform @ (mask.transform @ tuple(corner)), corner)
        for corner in corners.tolist()
    )
    if shift > 1:
        raise SatmapError(
            f"{printable(mask.name)}: lies {shift:.0f} pixels from its image "
            f"{Path(image.name).name}. Cut both from the same place."
        )


def _places(sources: Sequence[Source]) -> list[list[Source]]:
    """Sort rasters into groups that touch each other or nearly do."""
    if not sources:
        return []
    boxes = []
    for source in sources:
        corners = [source.transform @ (x, y) for x in (0, source.width) for y in (0, source.height)]
        try:
            lon_lat = project(np.array(corners), source.crs, LON_LAT)
        except ValueError as error:
            raise SatmapError(f"{printable(source.name)}: its position {error}.") from error
        low, high = lon_lat.min(axis=0), lon_lat.max(axis=0)
        margin = _SAME_PLACE / 2 * (high - low)
        boxes.append(shapely.box(*(low - margin), *(high + margin)))
    pairs = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    graph = sparse.coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=2 * (len(boxes),))
    _, group = connected_components(graph, directed=False)
    groups: dict[int, list[Source]] = defaultdict(list)
    for source, number in zip(sources, group.tolist(), strict=True):
        groups[number].append(source)
    return list(groups.values())


def _finest_first(layers: Sequence[Layer]) -> list[Layer]:
    """Put the layer first whose pixel size the chips get.

    Map tiles often hold the same ground at several zoom levels, and a finer level of a small part.
    """
    sizes, ground = [], []
    for layer in layers:
        assert layer.georeference is not None
        pixel = math.prod(layer.georeference.metres_per_pixel)
        sizes.append(pixel)
        ground.append(pixel * sum(box.width * box.height for box in layer.boxes))
    wide = [i for i in range(len(layers)) if ground[i] >= _COVERED * max(ground)]
    first = min(wide, key=lambda i: sizes[i])
    return [layers[first], *(layer for i, layer in enumerate(layers) if i != first)]


def _uniquely_named(scenes: Sequence[_Scene]) -> list[_Scene]:
    """Give every scene a name that fits a file name, each once."""
    taken: Counter[str] = Counter()
    named = []
    for scene in scenes:
        name = re.sub(r"[^\w.-]+", "_", scene.name) or "image"
        taken[name] += 1
        named.append(replace(scene, name=name if taken[name] == 1 else f"{name}~{taken[name]}"))
    return named


def _with_area(scenes: Sequence[_Scene], data: OwnData) -> list[_Scene]:
    """Add the polygons of --area to scenes with a georeference."""
    if data.area is None:
        return list(scenes)
    located = [s.mosaic.georeference for s in scenes if s.mosaic.georeference is not None]
    if len(located) < len(scenes):
        raise SatmapError(
            f"--area {data.area} needs images with a georeference, but "
            f"{len(scenes) - len(located)} of {len(scenes)} have none."
        )
    areas = read_area(data.area, located)
    with_area = [replace(s, area=area) for s, area in zip(scenes, areas, strict=True)]
    if not any(
        shapely.intersects(s.area, shapely.box(0, 0, s.mosaic.width, s.mosaic.height)).any()
        for s in with_area
        if s.area is not None
    ):
        raise SatmapError(f"--area {data.area}: none of its polygons lies on an image.")
    return with_area


def _shifted(shapes: Shapes, shift: tuple[float, float], georeference: Georeference) -> Shapes:
    """Move shapes (n,), in pixels of a north-up grid, by metres to the east and north."""
    if shift == (0.0, 0.0) or not len(shapes):
        return shapes
    pixels = np.array([shift[0], -shift[1]]) / georeference.metres_per_pixel
    moved: Shapes = shapely.transform(shapes, lambda xy: xy + pixels)
    return moved


def _require_overlap(scenes: Sequence[_Scene], labels: OwnShapes, task: "Task") -> None:
    """Raise SatmapError if no label lies on an image, with the positions of both."""
    if any(len(scene.shapes) for scene in scenes):
        return
    corners = []
    for scene in scenes:
        georeference = scene.mosaic.georeference
        assert georeference is not None
        size = np.array([(0, 0), (scene.mosaic.width, scene.mosaic.height)], np.float64)
        corners.append(project(georeference.to_map(size), georeference.crs, LON_LAT))
    west, south = np.concatenate(corners).min(axis=0)
    east, north = np.concatenate(corners).max(axis=0)
    bounds = shapely.total_bounds(labels.shapes)
    raise SatmapError(
        f"none of the {len(labels.shapes)} labelled {task.noun} lies on an image. The images lie "
        f"between longitude {west:.5f} and {east:.5f}, latitude {south:.5f} and {north:.5f}; the "
        f"labels between {bounds[0]:.5f} and {bounds[2]:.5f}, {bounds[1]:.5f} and {bounds[3]:.5f}. "
        "Check that they show the same place and state the right reference system."
    )


def _voids(scene: _Scene, unread: dict[str, str]) -> Shapes:
    """Find large white parts at the border of the rasters: polygons in pixels of the mosaic.

    ``unread`` gets the reasons of :meth:`Layer.read`.
    """
    mosaic = scene.mosaic
    found: list[shapely.Geometry] = []
    for layer in mosaic.layers:
        if layer.sources[0].dtype != "uint8":
            continue
        reduce = math.ceil(max(layer.width, layer.height) / _OVERVIEW_PX)
        bands, valid = layer.read(Box(0, 0, layer.width, layer.height), unread, reduce)
        white = (bands >= _WHITE).all(axis=0) & valid
        least = _VOID_SHARE * valid.sum()
        if white.sum() < max(least, 1):
            continue
        kernel = np.ones((_VOID_PX, _VOID_PX), np.uint8)
        # Beyond the border, the void continues.
        solid = cv2.morphologyEx(
            np.pad(white.astype(np.uint8), _VOID_PX, mode="edge"), cv2.MORPH_OPEN, kernel
        )[_VOID_PX:-_VOID_PX, _VOID_PX:-_VOID_PX]
        _, parts, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=4)
        outside = np.pad(~valid, 1, constant_values=True).astype(np.uint8)
        beside = cv2.dilate(outside, np.ones((3, 3), np.uint8))[1:-1, 1:-1] > 0
        areas = stats[:, cv2.CC_STAT_AREA]
        pure = np.bincount(parts[(bands == 255).all(axis=0)], minlength=len(areas))
        large = (areas >= least) & (pure >= _PURE * areas)
        wanted = np.flatnonzero(large & np.isin(np.arange(len(stats)), parts[beside]))
        # Blurred pixels at its edge belong to it.
        void = np.asarray(
            cv2.dilate(
                np.isin(parts, wanted[wanted > 0]).astype(np.uint8), np.ones((9, 9), np.uint8)
            ),
            np.uint8,
        )
        outlines = [
            shapely.transform(shapely.geometry.shape(outline), lambda xy, r=reduce: xy * r)
            for outline, _ in rasterio.features.shapes(void, mask=void > 0)
        ]
        if layer.georeference is not None and mosaic.georeference is not None:
            source, grid = layer.georeference, mosaic.georeference
            outlines = [
                shapely.transform(
                    outline, lambda xy, s=source, g=grid: g.to_pixels(s.to_map(xy), s.crs)
                )
                for outline in outlines
            ]
        found += [each for each in outlines if _labelled_share(scene, each) <= _LABELLED]
    return np.array(found, np.object_)


def _labelled_share(scene: _Scene, outline: shapely.Geometry) -> float:
    """Return the share of a polygon, in pixels of the mosaic, that labels cover; 0 for lines."""
    left, top, right, bottom = np.rint(outline.bounds).astype(int).tolist()
    whole = Box(0, 0, scene.mosaic.width, scene.mosaic.height)
    box = Box(left, top, right - left, bottom - top).overlap(whole)
    polygons = scene.shapes[shapely.get_dimensions(scene.shapes) == 2]
    if box is None or (scene.mask is None and not len(polygons)):
        return 0.0
    reduce = math.ceil(max(box.width, box.height) / _OVERVIEW_PX)
    shape = -(-box.height // reduce), -(-box.width // reduce)
    if scene.mask is None:
        labelled = _rasterized(polygons, box, reduce)
    else:
        window = Window(box.left, box.top, box.width, box.height)
        try:
            with opened(scene.mask) as file:
                labelled = file.read(scene.mask.bands[0], window=window, out_shape=shape) > 0
        except SatmapError:
            # Cutting the chips reports it.
            return 0.0
    inside = _rasterized(np.array([outline], np.object_), box, reduce)
    return float(labelled[inside].mean()) if inside.any() else 0.0


# Chips


def _make_chips(plan: _Plan, task: "Task", directory: Path) -> dict[str, Any]:
    """Write all chips and return the content of the index; adds to the plan's ``unread``."""
    jobs = []
    for scene in plan.scenes:
        width, height = scene.mosaic.width, scene.mosaic.height
        tiles = Box(0, 0, width, height).tiles(_even(width), _even(height))
        boxes = [box for box in tiles if scene.mosaic.covered(box) is not None]
        for number, box in enumerate(boxes):
            jobs.append((scene, box, scene.name if len(boxes) == 1 else f"{scene.name}_{number}"))

    def attempt(job: tuple[_Scene, Box, str]) -> dict[str, Any] | str:
        scene, box, image_id = job
        try:
            return _cut(scene, box, image_id, plan.labels, task, directory)
        except CannotWriteError:
            raise
        except Exception as error:
            return error_text(error, Path(scene.mosaic.layers[0].sources[0].name))

    records, faults, seen, left_out = [], dict(plan.faults), np.zeros(4), 0
    with ThreadPoolExecutor(available_cores()) as pool:
        results = track(pool.map(attempt, jobs), "cutting chips", len(jobs))
        for (_, _, image_id), result in zip(jobs, results, strict=True):
            if isinstance(result, str):
                faults[image_id] = result
                continue
            seen += result.pop("pixels")
            plan.unread.update(result.pop("faults"))
            if result["kept"]:
                records.append(result)
            else:
                left_out += 1
    faults |= plan.unread
    if not records:
        reason = next(iter(faults.values()), "no image shows ground that counts.")
        raise SatmapError(f"no chip can be cut from the images: {reason}")
    notes = [*plan.notes, _ignored_note(seen, left_out)]
    places = {record["place"] for record in records}
    for record in records:
        # Many places, such as one per image, are one area.
        few = len(places) <= _MOST_AREAS
        record["aoi"] = (few and record["place"]) or record["folder"]
    notes += _offset_notes(records, directory)
    return {
        "chips": records,
        "faults": faults,
        "notes": [note for note in notes if note],
        "unlabelled": [[s.name, s.width, s.height, len(s.bands), s.dtype] for s in plan.unlabelled],
        "labels_without_image": list(map(str, plan.unused_labels)),
        "duplicates": _duplicates(records, directory),
    }


def _even(side: int) -> int:
    """Return the side of equal chips of about the usual size."""
    return math.ceil(side / max(1, round(side / _CHIP_PX)))


def _cut(
    scene: _Scene, box: Box, image_id: str, labels: OwnShapes | None, task: "Task", directory: Path
) -> dict[str, Any]:
    """Write a chip and its label; return its facts for the index."""
    mosaic = scene.mosaic
    unreadable: dict[str, str] = {}
    pixels = mosaic.read(box, unreadable)
    shape = pixels.shape[:2]
    empty = ~pixels.any(axis=2)
    void = _rasterized(scene.voids, box) & ~empty
    outside = np.zeros(shape, np.bool_)
    if scene.area is not None:
        outside = ~_rasterized(scene.area, box) & ~empty & ~void
    ignored = empty | void | outside
    counts = [int(part.sum()) for part in (empty, void, outside)]
    facts: dict[str, Any] = {
        "pixels": [ignored.size, *counts], "kept": False, "faults": unreadable,
    }  # fmt: skip
    if ignored.mean() > 1 - _LEAST_SEEN:
        return facts
    label = _label(scene, box, ignored, labels, task)
    georeference = mosaic.georeference_of(box)
    _write_image(directory / f"{image_id}.tif", pixels, georeference)
    label.write(directory / f"{image_id}{CHIP_LABEL_SUFFIX}")
    return facts | {
        "kept": True,
        "id": image_id,
        "scene": scene.name,
        "place": scene.place,
        "corner": (box.left, box.top),
        "folder": Path(mosaic.layers[0].sources[0].name).parent.name or "images",
        "width": box.width,
        "height": box.height,
        "bands": pixels.shape[2],
        "objects": len(label.shapes),
        "georeference": georeference_as_json(georeference),
        "metres": scene.metres,
    }


def _rasterized(shapes: Shapes, box: Box, reduce: int = 1) -> NDArray[np.bool_]:
    """Rasterize polygons in pixels of a mosaic on every ``reduce``-th pixel of a rectangle."""
    drawn = np.zeros((-(-box.height // reduce), -(-box.width // reduce)), np.uint8)
    near = shapes[shapely.intersects(shapes, shapely.box(*_bounds(box)))] if len(shapes) else shapes
    if len(near):
        moved = Affine.translation(box.left, box.top) @ Affine.scale(reduce)
        rasterio.features.rasterize([(shape, 1) for shape in near], out=drawn, transform=moved)
    return drawn > 0


def _bounds(box: Box) -> tuple[int, int, int, int]:
    return box.left, box.top, box.right, box.bottom


def _label(
    scene: _Scene,
    box: Box,
    ignored: NDArray[np.bool_],
    labels: OwnShapes | None,
    task: "Task",
) -> ChipLabel:
    """Return the label of a rectangle of a scene, in its pixels."""
    is_lines = task.label_kind == "lines"
    margin = _MARGIN_PX if is_lines else 0
    mask = index = None
    if scene.mask is not None:
        around = box.grown(margin, margin).overlap(Box(0, 0, scene.mask.width, scene.mask.height))
        assert around is not None
        wide = read_mask_label(scene.mask, around)
        mask = wide[box.within(around)]
        metres = scene.metres or (1.0, 1.0)
        found = np.array(task.trace_mask(wide, metres), np.object_)
        corner = np.array([around.left, around.top])
        found = shapely.transform(found, lambda xy: xy + corner)
    else:
        near = np.flatnonzero(
            shapely.intersects(scene.shapes, shapely.box(*_bounds(box.grown(margin, margin))))
        )
        found = scene.shapes[near]
        if not is_lines:
            found = shapely.make_valid(found)
        index = scene.index[near]
    found = shapely.transform(found, lambda xy: xy - (box.left, box.top))
    ground = shapely.box(-margin, -margin, box.width + margin, box.height + margin)
    clipped = shapely.intersection(found, ground)
    if ignored.any():
        raster = ignored.astype(np.uint8)
        hidden = [
            shapely.geometry.shape(outline)
            for outline, _ in rasterio.features.shapes(raster, mask=ignored)
        ]
        clipped = shapely.difference(clipped, shapely.union_all(hidden))
    kinds = ("LineString",) if is_lines else ("Polygon",)
    parts, owners = shapely.get_parts(clipped, return_index=True)
    # An intersection of touching shapes may be a collection.
    parts, inner = shapely.get_parts(parts, return_index=True)
    owners = owners[inner]
    right = np.isin([part.geom_type for part in parts], kinds)
    right &= (shapely.length(parts) >= 1) if is_lines else (shapely.area(parts) >= 1)
    parts, owners = parts[right], owners[right]
    return ChipLabel(
        parts,
        ignored,
        None if mask is None or not is_lines else mask,
        scene.metres,
        *(
            ()
            if labels is None or index is None or not is_lines
            else (
                tuple(labels.speeds_mph[index[owners]].tolist()),
                tuple(labels.widths_m[index[owners]].tolist()),
            )
        ),
    )


def _write_image(path: Path, pixels: NDArray[np.uint8], georeference: Georeference | None) -> None:
    height, width, bands = pixels.shape
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8",
        "compress": "deflate", "nodata": 0,
    }  # fmt: skip
    if georeference is not None:
        profile |= {"crs": georeference.crs, "transform": georeference.transform}
    try:
        with atomic_path(path) as temporary, rasterio.open(temporary, "w", **profile) as file:
            file.write(pixels.transpose(2, 0, 1))
    except RasterioError as error:
        raise CannotWriteError(f"{path}: cannot be written ({error}).") from error


# Reports


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _ignored_note(pixels: NDArray[np.float64], left_out: int) -> str:
    total, *parts = pixels.tolist()
    names = ("no data", "white voids", "outside --area")
    shares = [
        f"{name} {100 * part / total:.1f} %"
        for name, part in zip(names, parts, strict=True)
        if part
    ]
    note = f"ignored by training: {', '.join(shares)}" if shares else ""
    if left_out:
        note += "; " if note else ""
        note += f"{_counted(left_out, 'chip')} left out, because training would ignore nearly all"
    return note


def _offset_notes(records: Sequence[Mapping[str, Any]], directory: Path) -> list[str]:
    """Measure the offset between labels and images at every place."""
    places: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["objects"]:
            places[record["aoi"]].append(record)
    # Single chips tell little, so those of small places are measured together.
    together: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for aoi, members in places.items():
        place = members[0]["georeference"]
        size = f"{math.sqrt(math.prod(place[2])):.1g} m per pixel" if place else "their size"
        few = len(members) < _FEW_CHIPS and len(places) > 1
        together[f"the small places with {size}" if few else aoi] += members
    notes, fitting, unclear = [], [], []
    for aoi, members in together.items():
        chosen = sorted(members, key=lambda r: (-r["objects"], r["id"]))[:_MEASURED]
        chips = []
        for record in chosen:
            label = ChipLabel.read(directory / f"{record['id']}{CHIP_LABEL_SUFFIX}")
            with rasterio.open(directory / f"{record['id']}.tif", driver="GTiff") as file:
                chips.append((file.read().transpose(1, 2, 0), label.shapes))
        georeference = chosen[0]["georeference"]
        metres = math.sqrt(math.prod(georeference[2])) if georeference else None
        offset = measure_offset(chips, metres)
        if offset is None or not offset.is_certain:
            unclear.append(aoi)
            continue
        far = math.hypot(offset.right, offset.down)
        if far * (metres or 1.0) < (_FAR_M if metres else _FAR_PX):
            fitting.append(aoi)
        elif metres:
            east, north = offset.right * metres, -offset.down * metres
            notes.append(
                f"offset at {aoi}: the labels lie {_direction(east, north)} of what the images "
                f"show ({offset.chips} chips). If you agree: --shift={-east:.1f},{-north:.1f}"
            )
        else:
            notes.append(
                f"offset in {aoi}: the labels lie {offset.right:+.1f} pixels to the right and "
                f"{offset.down:+.1f} down of what the images show ({offset.chips} chips)"
            )
    if fitting:
        notes.append(f"offset at {_some(fitting)}: the labels fit the images")
    if unclear:
        notes.append(f"offset at {_some(unclear)}: not measurable")
    return notes


def _direction(east: float, north: float) -> str:
    sides = []
    if abs(east) >= 0.05:
        sides.append(f"{abs(east):.1f} m {'east' if east > 0 else 'west'}")
    if abs(north) >= 0.05:
        sides.append(f"{abs(north):.1f} m {'north' if north > 0 else 'south'}")
    return " and ".join(sides)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} places such as {names[0]}"


def _duplicates(records: Sequence[Mapping[str, Any]], directory: Path) -> list[list[str]]:
    """Find near-duplicates among chips without position; returns groups of ids."""
    ids = {record["id"] for record in records if record["georeference"] is None}
    if not ids:
        return []
    groups = [
        sorted({path.stem for path in group} & ids) for group in audit_images([directory]).groups
    ]
    return [group for group in groups if len(group) > 1]


def _inventory(
    content: Mapping[str, Any], directory: Path, data: OwnData, task: "Task"
) -> Inventory:
    """Return the chips of the index, with the blocks in which they are held out together."""
    records = content["chips"]
    folds = task.recipe.folds
    sites, held_out = _sites(records, folds)
    chips = []
    for record in records:
        georeference = georeference_from_json(record["georeference"])
        info = ImageInfo(
            directory / f"{record['id']}.tif", RGB, record["width"], record["height"],
            record["bands"], "uint8", georeference, is_stretched=True,
        )  # fmt: skip
        label = directory / f"{record['id']}{CHIP_LABEL_SUFFIX}"
        chips.append(
            Chip(record["id"], record["id"], record["aoi"], {RGB: info}, label, sites[record["id"]])
        )
    names = {}
    for name, width, height, bands, dtype in content["unlabelled"]:
        info = ImageInfo(Path(name), RGB, width, height, bands, dtype, None)
        chips.append(Chip(name, name, Path(name).parent.name, {RGB: info}, None))
        names[name] = [f"{Path(name).stem} with the suffix of a raster"]
    groups = [sorted({sites[name] for name in group}) for group in content["duplicates"]]
    duplicates = _merged([group for group in groups if len(group) > 1])
    notes = [*content["notes"], f"chips: {directory}", *held_out]
    if duplicates:
        found = _counted(len(duplicates), "group")
        notes.append(f"{found} of near-duplicates, each in one fold")
    total = sum(record["objects"] for record in records)
    empty = sum(not record["objects"] for record in records)
    notes.append(
        f"{_counted(len(records), 'chip')}, {empty} of them without {task.noun}; the others show "
        f"{total} {task.noun}, counted once per chip"
    )
    return Inventory(
        chips=tuple(chips),
        faults=dict(content["faults"]),
        warnings=(),
        labels_without_image=tuple(map(Path, content["labels_without_image"])),
        long_ids={chip.image_id: chip.image_id for chip in chips},
        ignored=(),
        directories=(data.labels,),
        label_names=names,
        notes=tuple(notes),
        duplicates=tuple(map(tuple, duplicates)),
    )


def _merged(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Merge groups that share a member."""
    of: dict[str, set[str]] = {}
    for group in groups:
        joined = set(group).union(*(of.get(name, ()) for name in group))
        of.update(dict.fromkeys(joined, joined))
    return [sorted(group) for group in {id(group): group for group in of.values()}.values()]


def _sites(records: Sequence[Mapping[str, Any]], folds: int) -> tuple[dict[str, str], list[str]]:
    """Return the unit of each chip that is held out as a whole, and notes on these units.

    Chips are grouped into square blocks, as large as there are enough of them: on the ground, or
    without position in pixels of their image, which may be one block as a whole.
    """
    placed: dict[str, tuple[str, float, float]] = {}
    unplaced: dict[str, tuple[str, float, float]] = {}
    metres, pixels = [], []
    scales: dict[str, tuple[float, float]] = {}
    for record in records:
        georeference = georeference_from_json(record["georeference"])
        if georeference is None:
            # A slash keeps it apart from the places.
            unplaced[record["id"]] = f"{record['scene']}/", *record["corner"]
            pixels.append(record["width"])
            continue
        middle = np.array([[record["width"] / 2, record["height"] / 2]])
        ((longitude, latitude),) = project(georeference.to_map(middle), georeference.crs, LON_LAT)
        # The chips of a place have the same scale.
        along_x, along_y = scales.setdefault(record["place"], metres_per_degree(float(latitude)))
        placed[record["id"]] = record["place"], longitude * along_x, latitude * along_y
        metres.append(georeference.gsd_m * record["width"])
    sites: dict[str, str] = {}
    notes: list[str] = []
    if placed:
        sides = [float(np.median(metres)) * count for count in (*_BLOCK_SIDES, 1)]
        blocks, side = _blocks(placed, sides, _BLOCKS_PER_FOLD * folds)
        sites |= blocks
        count = len(set(blocks.values()))
        notes.append(f"validation holds out blocks of {side:.0f} m: {count} blocks")
    if unplaced:
        sides = [math.inf, *(float(np.median(pixels)) * count for count in (*_BLOCK_SIDES, 1))]
        blocks, side = _blocks(unplaced, sides, _BLOCKS_PER_FOLD * folds)
        sites |= blocks
        count, images = len(set(blocks.values())), len({place for place, _, _ in unplaced.values()})
        notes.append(
            f"validation holds out whole images: {count}"
            if count == images
            else f"validation holds out blocks of {side:.0f} pixels: {count} blocks"
        )
    return sites, notes


def _blocks(
    places: Mapping[str, tuple[str, float, float]], sides: Sequence[float], least: int
) -> tuple[dict[str, str], float]:
    """Group positions (place, x, y) by squares of the first side that gives ``least`` of them.

    Returns:
        The square of each, and its side; the last side if none gives enough.
    """
    # Blocks begin at the first chips of their place.
    first: dict[str, tuple[float, float]] = {}
    for place, x, y in places.values():
        left, bottom = first.get(place, (x, y))
        first[place] = min(left, x), min(bottom, y)
    blocks: dict[str, str] = {}
    side = math.inf
    for side in sides:
        blocks = {
            name: f"{place} {int((x - first[place][0]) / side + 0.01)} "
            f"{int((y - first[place][1]) / side + 0.01)}"
            for name, (place, x, y) in places.items()
        }
        if len(set(blocks.values())) >= least:
            break
    return blocks, side
