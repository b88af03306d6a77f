"""Put a user's images and labels together: one mosaic per place, or one image with its mask.

Images with a georeference and vector labels become one mosaic per place, at one pixel size. Images
with masks stay as they are.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from satmap.data.judgement import read_ignored
from satmap.data.layers import Layer, find_layers, stretched
from satmap.data.mosaic import Mosaic, make_mosaics
from satmap.data.own_data import OwnData
from satmap.data.own_labels import OwnShapes, Shapes, pair_masks, read_area, read_own_shapes
from satmap.data.sources import Source, read_source
from satmap.data.voids import find_voids
from satmap.errors import SatmapError
from satmap.io.geojson_reader import LON_LAT, project
from satmap.io.text import counted, printable
from satmap.vectors.georeference import Georeference

if TYPE_CHECKING:
    from satmap.tasks.base import Task

# Rasters closer than this share of their size belong to one place.
_SAME_PLACE = 0.1
# Of the pixel sizes that cover this share of a place, the finest is used.
_COVERED = 0.5


@dataclass(frozen=True)
class OwnScene:
    """A mosaic or an image with its labels in pixels.

    Attributes:
        name: beginning of the ids of its chips.
        place: rasters that touch each other or nearly do; "" without georeference.
        mosaic: the pixels.
        metres: size of a pixel; None if unknown and not needed.
        shapes, index: vector labels near it, and the index of each among all labels.
        mask: raster with the labels; None for vector labels.
        area: polygons in which labels are complete; None for everywhere.
        voids: white or black parts without image.
        trains_empty: whether pixels without data are trained as empty ground, not ignored.
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
    trains_empty: bool = False


@dataclass(frozen=True)
class OwnPlan:
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

    scenes: tuple[OwnScene, ...]
    faults: dict[str, str]
    unread: dict[str, str]
    notes: tuple[str, ...]
    labels: OwnShapes | None = None
    unlabelled: tuple[Source, ...] = ()
    unused_labels: tuple[Path, ...] = ()


def plan_vectors(
    data: OwnData, images: Sequence[Source], files: Sequence[Path], task: "Task", channels: int
) -> OwnPlan:
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
    count = counted(len(labels.shapes), task.label_noun)
    notes = [f"labels: {count} in {counted(len(files), 'file')}"]
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
                OwnScene(name, name, mosaic, mosaic.metres_per_pixel)
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
        shapes = shapes[inside]
        voids = find_voids(mosaic, shapes, None, unread)
        if data.ignored:
            voids = np.concatenate([voids, read_ignored(data.ignored, georeference)])
        labelled.append(replace(scene, shapes=shapes, index=index[inside], voids=voids))
    _require_overlap(labelled, labels, task)
    places = {scene.place for scene in labelled}
    if empty := len(places - {scene.place for scene in labelled if len(scene.shapes)}):
        notes.append(
            f"{empty} of {len(places)} places hold no {task.label_noun}s and count as empty "
            "ground; leave them out with --area"
        )
    return OwnPlan(tuple(labelled), faults, unread, tuple(notes), labels)


def plan_masks(
    data: OwnData, images: Sequence[Source], files: Sequence[Path], task: "Task", channels: int
) -> OwnPlan:
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
    scenes: list[OwnScene] = []
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
            voids = find_voids(mosaic, np.empty(0, np.object_), mask, unread)
            of = place.get(image.name, "")
            scenes.append(OwnScene(name, of, mosaic, metres, mask=mask, voids=voids))
    if not scenes:
        raise SatmapError(next(iter((faults | unread).values())))
    notes = [f"labels: {counted(len(pairs), 'mask')}"]
    unplaced = sum(scene.mosaic.georeference is None for scene in scenes)
    if unplaced and (size := data.metres_per_pixel or task.default_metres_per_pixel):
        advice = "" if data.metres_per_pixel else "; --metres-per-pixel states another size"
        notes.append(
            f"images without georeference: {unplaced}, taken as {size:g} m per pixel{advice}"
        )
    unlabelled = tuple(image for image in images if image.name not in pairs)
    scenes = _with_area(_uniquely_named(scenes), data)
    return OwnPlan(tuple(scenes), faults, unread, tuple(notes), None, unlabelled, tuple(unused))


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


def _uniquely_named(scenes: Sequence[OwnScene]) -> list[OwnScene]:
    """Give every scene a name that fits a file name, each once."""
    taken: Counter[str] = Counter()
    named = []
    for scene in scenes:
        name = re.sub(r"[^\w.-]+", "_", scene.name) or "image"
        taken[name] += 1
        named.append(replace(scene, name=name if taken[name] == 1 else f"{name}~{taken[name]}"))
    return named


def _with_area(scenes: Sequence[OwnScene], data: OwnData) -> list[OwnScene]:
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


def _require_overlap(scenes: Sequence[OwnScene], labels: OwnShapes, task: "Task") -> None:
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
        f"none of the {len(labels.shapes)} labelled {task.label_noun}s lies on an image. The "
        f"images lie between longitude {west:.5f} and {east:.5f}, latitude {south:.5f} and "
        f"{north:.5f}; the labels between {bounds[0]:.5f} and {bounds[2]:.5f}, {bounds[1]:.5f} and "
        f"{bounds[3]:.5f}. "
        "Check that they show the same place and state the right reference system."
    )
