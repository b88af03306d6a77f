"""Read a user's labels: vector files of the whole area, or one mask per image."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from satmap.data.label_files import LABEL_SUFFIXES, Kind, read_label_file
from satmap.data.sources import Source, opened
from satmap.errors import SatmapError
from satmap.io.gdal import DRIVERS
from satmap.io.geojson_reader import LON_LAT, project
from satmap.io.text import listing, printable
from satmap.io.walk import walk
from satmap.rasters.scene import Box
from satmap.vectors.georeference import Georeference
from satmap.vectors.levels import road_level
from satmap.vectors.speeds import label_speed_mph

# A polygon of which this share lies in one of another file is the same building again.
_SAME_BUILDING = 0.8
# Logarithm of the ratio of two areas that count as equal.
_SAME_AREA = 0.02
# Parts of a building in two files lie this close to each other, degrees: 2 cm.
_TOUCHING = 2e-7
# They touch over at least this length, degrees: half a metre.
_SEAM = 5e-6

_WIDTH = re.compile(r"(\d+(?:\.\d+)?)\s*(m|ft|')?")
_METRES = {"m": 1.0, "ft": 0.3048, "'": 0.3048}
_WIDEST_M = 100.0

Shapes = NDArray[np.object_]


@dataclass(frozen=True)
class OwnShapes:
    """Labels from vector files.

    Attributes:
        files: the files.
        shapes: LineStrings or Polygons in longitude and latitude, (n,).
        speeds_mph: of each line; 0 for polygons.
        widths_m: of each line, NaN if not stated.
        levels: vertical order of each line, from :func:`satmap.vectors.levels.road_level`; 0 for
            polygons.
        faults: error message by name, for files that cannot be read.
        systems: number of different reference systems of the files.
        repeated: number of objects that other files hold as well, or parts of one object.
    """

    files: tuple[Path, ...]
    shapes: Shapes
    speeds_mph: NDArray[np.float64]
    widths_m: NDArray[np.float64]
    levels: NDArray[np.float64]
    faults: Mapping[str, str]
    systems: int = 1
    repeated: int = 0

    def near(
        self, georeference: Georeference, width: int, height: int
    ) -> tuple[Shapes, NDArray[np.int64]]:
        """Return the shapes near an image, in its pixels, and their indices."""
        return shapes_near(self.shapes, georeference, width, height)


def shapes_near(
    shapes: Shapes, georeference: Georeference, width: int, height: int
) -> tuple[Shapes, NDArray[np.int64]]:
    """Return the shapes, in longitude and latitude, near an image: in its pixels, and indices."""
    border = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    corners = project(georeference.to_map(border), georeference.crs, LON_LAT)
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    margin = 0.05 * max(right - left, top - bottom) + 1e-4
    bounds = shapely.bounds(shapes)
    near = (bounds[:, 2] > left - margin) & (bounds[:, 0] < right + margin)
    near &= (bounds[:, 3] > bottom - margin) & (bounds[:, 1] < top + margin)
    index = np.flatnonzero(near)
    return _in_pixels(shapes[index], georeference), index


def find_label_files(labels: Path) -> tuple[list[Path], list[Path]]:
    """Return the vector files and the rasters among the labels; only one kind is to be used.

    Raises:
        SatmapError: there are none.
    """
    if not labels.exists():
        raise SatmapError(f"--labels {printable(labels)} does not exist. Check the name.")
    if not labels.is_dir():
        if labels.suffix.lower() in DRIVERS:
            return [], [labels]
        return [labels], []
    files = list(walk([labels]))
    vectors = [file for file in files if file.suffix.lower() in LABEL_SUFFIXES]
    # Catalogues lie beside labels as .json.
    sure = [file for file in vectors if file.suffix.lower() != ".json"]
    masks = [file for file in files if file.suffix.lower() in DRIVERS]
    if not vectors and not masks:
        raise SatmapError(
            f"--labels {printable(labels)} holds no labels: neither vector files "
            f"({', '.join(LABEL_SUFFIXES)}) nor masks ({', '.join(sorted(DRIVERS))})."
        )
    return (sure, masks) if sure or masks else (vectors, masks)


def labelled_files(images: Sequence[Source], labels: Path) -> list[Path]:
    """Return the images that have labels: all for vector labels, else those with a mask."""
    vectors, masks = find_label_files(labels)
    stems = {mask.stem for mask in masks}
    paths = [Path(image.name) for image in images]
    return [path for path in paths if vectors or path.stem in stems]


def read_own_shapes(files: Sequence[Path], kind: Kind) -> OwnShapes:
    """Read vector labels; objects that several files hold, whole or in part, become one.

    Raises:
        SatmapError: no file can be read, or they hold no objects of this kind.
    """
    shapes: list[shapely.Geometry] = []
    rows: list[Mapping[str, Any]] = []
    numbers: list[int] = []
    faults: dict[str, str] = {}
    systems = set()
    for number, path in enumerate(files):
        try:
            found = read_label_file(path, kind, may_be_empty=len(files) > 1)
            placed = in_lon_lat(found.shapes, found.crs)
        except (SatmapError, ValueError) as error:
            if len(files) == 1:
                raise SatmapError(str(error)) from error
            faults[str(path)] = str(error)
            continue
        systems.add(found.crs)
        shapes += placed.tolist()
        rows += found.properties
        numbers += [number] * len(placed)
    things = "roads" if kind == "lines" else "buildings"
    if not shapes:
        reason = f" The first reason: {next(iter(faults.values()))}" if faults else ""
        raise SatmapError(
            f"none of the {len(files)} label files holds {things}, for example {files[0]}. Check "
            f"that these are the labels.{reason}"
        )
    known = np.array(shapes, np.object_)
    kept = np.arange(len(known))
    if len(set(numbers)) > 1:
        known, kept = _once(known, np.array(numbers), kind)
    speeds = [label_speed_mph(rows[index]) if kind == "lines" else 0.0 for index in kept.tolist()]
    widths = [width_m(rows[index].get("width")) for index in kept.tolist()]
    levels = [road_level(rows[index]) if kind == "lines" else 0 for index in kept.tolist()]
    return OwnShapes(
        tuple(files), known, np.array(speeds), np.array(widths), np.array(levels), faults,
        len(systems), len(shapes) - len(known),
    )  # fmt: skip


def width_m(text: Any) -> float:
    """Return OpenStreetMap's ``width`` in metres; NaN if it states none.

    Source: https://wiki.openstreetmap.org/wiki/Key:width.
    """
    match = _WIDTH.fullmatch(str(text).strip().lower())
    width = float(match[1]) * _METRES[match[2] or "m"] if match else math.nan
    return width if 1 <= width <= _WIDEST_M else math.nan


def read_area(path: Path, georeferences: Sequence[Georeference]) -> list[Shapes]:
    """Read the polygons within which labels are complete, in the pixels of each image.

    Raises:
        SatmapError: the file cannot be read, or holds no polygon.
    """
    try:
        found = read_label_file(path, "polygons")
        placed = in_lon_lat(found.shapes, found.crs)
    except (SatmapError, ValueError) as error:
        raise SatmapError(f"--area: {error}") from error
    valid = shapely.make_valid(placed)
    return [_in_pixels(valid, georeference) for georeference in georeferences]


def read_mask_label(source: Source, box: Box) -> NDArray[np.bool_]:
    """Read a rectangle of a mask, bool (height, width).

    Raises:
        SatmapError: the mask cannot be read, or has other values than 0 and 1, or 0 and 255.
    """
    window = Window(box.left, box.top, box.width, box.height)
    with opened(source) as file:
        bands = file.read([1] if source.palette else list(source.bands), window=window)
    values = np.unique(bands)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        shown = listing([f"{value:g}" for value in values.tolist()])
        raise SatmapError(
            f"{printable(source.name)}: a mask holds 0 and 1, or 0 and 255, but this one holds "
            f"{shown}. Convert it, and save it as PNG or GeoTIFF, because JPEG changes values."
        )
    if (bands != bands[0]).any():
        raise SatmapError(
            f"{printable(source.name)}: its bands differ, but a mask says one thing per pixel. "
            "Save it with one band."
        )
    mask: NDArray[np.bool_] = bands[0] > 0
    return mask


def pair_masks(
    images: Sequence[Source], masks: Sequence[Path]
) -> tuple[dict[str, Path], list[Path]]:
    """Find the mask of each image: the file with the same name before the suffix.

    Returns:
        The mask by the image's name, and the masks without an image.

    Raises:
        SatmapError: no mask belongs to an image, or two belong to the same one.
    """
    by_stem: dict[str, Path] = {}
    for path in masks:
        if other := by_stem.get(path.stem):
            raise SatmapError(
                f"two masks have the same name:\n  {other}\n  {path}\nGive a folder with one mask "
                "per image."
            )
        by_stem[path.stem] = path
    owner: dict[str, str] = {}
    pairs = {}
    for image in images:
        stem = Path(image.name).stem
        if stem not in by_stem:
            continue
        if stem in owner:
            raise SatmapError(
                f"two images have the name of the mask {by_stem[stem]}:\n  {owner[stem]}\n  "
                f"{image.name}\nGive a folder with one image per mask."
            )
        owner[stem] = image.name
        pairs[image.name] = by_stem[stem]
    if not pairs:
        raise SatmapError(
            f"none of the {len(masks)} masks has the name of an image: masks are named, for "
            f"example, {masks[0].name}, and images {Path(images[0].name).name}. Image and mask "
            "must have the same name before the suffix."
        )
    return pairs, [path for stem, path in by_stem.items() if stem not in owner]


def rasterize_polygons(shapes: Shapes, box: Box, reduce: int = 1) -> NDArray[np.bool_]:
    """Rasterize polygons in pixels of a mosaic on every ``reduce``-th pixel of a rectangle."""
    drawn = np.zeros((-(-box.height // reduce), -(-box.width // reduce)), np.uint8)
    near = shapes[shapely.intersects(shapes, shapely.box(*box.bounds))] if len(shapes) else shapes
    if len(near):
        moved = Affine.translation(box.left, box.top) @ Affine.scale(reduce)
        rasterio.features.rasterize([(shape, 1) for shape in near], out=drawn, transform=moved)
    return drawn > 0


def in_lon_lat(shapes: Shapes, crs: str) -> Shapes:
    """Project shapes to longitude and latitude.

    Raises:
        ValueError: they cannot be projected, or lie outside the Earth.
    """
    if not len(shapes):
        return shapes
    placed = project(shapely.get_coordinates(shapes), crs, LON_LAT)
    if (np.abs(placed) > (180.0, 90.0)).any():
        raise ValueError("has coordinates outside the Earth; check its reference system")
    moved: Shapes = shapely.set_coordinates(shapes.copy(), placed)
    return moved


def _in_pixels(shapes: Shapes, georeference: Georeference) -> Shapes:
    if not len(shapes):
        return shapes
    pixels = georeference.to_pixels(shapely.get_coordinates(shapes))
    placed: Shapes = shapely.set_coordinates(shapes.copy(), pixels)
    return placed


def _once(shapes: Shapes, files: NDArray[np.int64], kind: Kind) -> tuple[Shapes, NDArray[np.int64]]:
    """Return every object once, and the index of a feature of each.

    Labels that were cut at map tiles hold the parts of an object in neighbouring tiles, and the
    same object at every zoom level.
    """
    if kind == "lines":
        _, first = np.unique(shapely.to_wkb(shapely.normalize(shapes)), return_index=True)
        kept = np.sort(first)
        return shapes[kept], kept
    valid = shapely.make_valid(shapes)
    tree = shapely.STRtree(valid)
    one, other = tree.query(valid, predicate="intersects")
    foreign = files[one] != files[other]
    one, other = one[foreign], other[foreign]
    areas = shapely.area(valid)
    # Which of two copies stays: the larger one, then that of the larger map tile, then the first.
    _, files = np.unique(files, return_inverse=True)
    order = np.argsort(files, kind="stable")
    groups = shapely.geometrycollections(valid[order], indices=files[order])
    hulls = shapely.convex_hull(groups)
    sizes = shapely.area(hulls)[files]
    steps = np.round(np.log(np.maximum(areas, 1e-30)) / _SAME_AREA)
    rank = np.empty(len(valid), np.int64)
    rank[np.lexsort((-np.arange(len(valid)), sizes, steps))] = np.arange(len(valid))
    shared = shapely.area(shapely.intersection(valid[one], valid[other]))
    within = shared >= _SAME_BUILDING * areas[one]
    repeated = np.zeros(len(valid), np.bool_)
    repeated[one[within & (rank[one] < rank[other])]] = True
    kept = np.flatnonzero(~repeated)
    parts, files = valid[kept], files[kept]
    tree = shapely.STRtree(parts)
    one, other = tree.query(parts, predicate="dwithin", distance=_TOUCHING)
    foreign = (files[one] != files[other]) & (one < other)
    one, other = one[foreign], other[foreign]
    # An object that was cut reaches the edges of both map tiles; houses side by side do not.
    edges = shapely.buffer(shapely.boundary(hulls), _TOUCHING)
    seam = shapely.intersection(
        shapely.boundary(parts[one]), shapely.buffer(parts[other], _TOUCHING)
    )
    seam = shapely.intersection(seam, edges[files[one]])
    seam = shapely.intersection(seam, edges[files[other]])
    touching = shapely.length(seam) >= _SEAM
    pairs = (np.ones(int(touching.sum())), (one[touching], other[touching]))
    graph = sparse.coo_array(pairs, shape=2 * (len(parts),))
    count, group = connected_components(graph, directed=False)
    members: list[list[int]] = [[] for _ in range(count)]
    for index, number in enumerate(group.tolist()):
        members[number].append(index)
    whole = [
        parts[of[0]]
        if len(of) == 1
        else shapely.union_all(shapely.buffer(parts[of], _TOUCHING, join_style="mitre")).buffer(
            -_TOUCHING, join_style="mitre"
        )
        for of in members
    ]
    return np.array(whole, np.object_), kept[[of[0] for of in members]]
