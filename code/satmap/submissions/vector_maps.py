"""Maps as vector files: roads as lines, buildings as polygons.

A map is a directory with one GeoJSON per image, or one file of any common vector format, for one
image or with the property ``image_id``. These are also satmap's own exports.

Scores are measured in pixels, which GeoJSON does not have. Truth and proposal of an image are
therefore projected to a common pixel grid: that of its UTM zone, with pixels of a given size and
rows from north to south.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from satmap.data.label_files import VECTOR_SUFFIXES, read_lines_and_polygons
from satmap.errors import SatmapError
from satmap.exports.osm_files import CONFIDENCE_TAG
from satmap.io.geojson_reader import (
    LON_LAT,
    FeatureCollection,
    GeoLine,
    Surface,
    project,
)
from satmap.io.text import natural_key
from satmap.submissions.buildings_csv import BuildingRow
from satmap.submissions.roads_csv import RoadRow
from satmap.submissions.rows import Row
from satmap.vectors.georeference import Georeference
from satmap.vectors.levels import road_level
from satmap.vectors.road_graph import line_length_m
from satmap.vectors.speeds import MPS_PER_MPH, label_speed_mph

Floats: TypeAlias = NDArray[np.float64]

# Converts coordinates (n, 2) of a file to pixels (n, 2).
ToPixels: TypeAlias = Callable[[Floats], Floats]

GEOJSON_SUFFIXES = (".geojson", ".json")

#: Suffixes of single files with a map.
MAP_SUFFIXES = VECTOR_SUFFIXES

#: One side of a comparison: image id to the function that reads its features.
Side: TypeAlias = dict[str, Callable[[], FeatureCollection]]

# Parts of file names around the image id: SN5_roads_train_AOI_7_Moscow_geojson_roads_speed_chip23,
# SN3_roads_train_AOI_2_Vegas_geojson_roads_img272_speed, buildings_AOI_2_Vegas_img1, Geo_AOI_1_...,
# 013022223130_Public_img1_Geo.
_WORDS = re.compile(
    r"^(?:SN\d_(?:roads|buildings)_.*?(?=AOI_)|spacenetroads_|osm_|buildings_|Geo_)"
    r"|geojson_(?:roads|buildings)_(?:speed_)?|_speed$|_Geo$",
    re.IGNORECASE,
)

# Width and height that no image of a challenge exceeds.
_LARGEST_KM = 200.0

# Properties that give a speed; without any of them, the travel time is unknown.
_SPEED_PROPERTIES = frozenset(
    {
        "inferred_speed_mph", "inferred_speed_mps", "speed_mph", "speed_m/s", "highway",
        "road_type", "maxspeed",
    }
)  # fmt: skip


def read_map(path: Path, least_confidence: float | None = None) -> FeatureCollection:
    """Read the roads and buildings of a vector file: the same ones that trainings read.

    Files with unknown suffixes are read as GeoJSON. Objects with a lower confidence than
    ``least_confidence`` are left out.

    Raises:
        SatmapError: the file is damaged or has no reference system, or an object has no confidence
            to compare.
    """
    lines, polygons = read_lines_and_polygons(path)
    whole = FeatureCollection(
        lines.crs,
        tuple(
            GeoLine(shapely.get_coordinates(line), properties)
            for line, properties in zip(lines.shapes, lines.properties, strict=True)
        ),
        tuple(map(Surface, polygons.shapes, polygons.properties)),
        len(lines.shapes) + len(polygons.shapes),
    )
    return keep_confident(whole, least_confidence, path)


def confidence_of(properties: Mapping[str, Any]) -> float:
    """Return the calibrated confidence that the properties of a road or building state, 0..1.

    It is the property ``confidence``, or the tag of satmap's OpenStreetMap files. NaN means that
    the object is uncalibrated: without a value, or with one that is no probability.
    """
    names = {str(name).lower(): value for name, value in properties.items()}
    value = names.get("confidence", names.get(CONFIDENCE_TAG))
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return number if 0 <= number <= 1 else math.nan


def keep_confident(
    collection: FeatureCollection, least: float | None, path: Path
) -> FeatureCollection:
    """Return the roads and buildings whose confidence is at least ``least``; None for all.

    Raises:
        SatmapError: one of them is uncalibrated; ``path`` is the file to name.
    """
    if least is None:
        return collection
    objects = [line.properties for line in collection.lines]
    objects += [surface.properties for surface in collection.surfaces]
    without = sum(math.isnan(confidence_of(each)) for each in objects)
    if without:
        raise SatmapError(
            f"--least-confidence: {without} of the {len(objects)} roads and buildings in {path} "
            "are uncalibrated: they state no `confidence` from 0 to 1. Map them with networks that "
            "have a calibration (`satmap confidence`), or leave the option out."
        )
    lines = tuple(line for line in collection.lines if confidence_of(line.properties) >= least)
    surfaces = tuple(
        each for each in collection.surfaces if confidence_of(each.properties) >= least
    )
    return FeatureCollection(collection.crs, lines, surfaces, len(lines) + len(surfaces))


def in_degrees(collection: FeatureCollection) -> FeatureCollection:
    """Return a map in longitude and latitude.

    Raises:
        ValueError: its coordinates cannot be converted.
    """
    if collection.crs == LON_LAT:
        return collection
    surfaces = np.array([surface.polygon for surface in collection.surfaces], np.object_)
    corners = shapely.get_coordinates(surfaces)
    # One call for all: each call sets up the projection again.
    parts = [*(line.xy for line in collection.lines), corners]
    placed = project(np.concatenate(parts), collection.crs, LON_LAT)
    *lines, corners = np.split(placed, np.cumsum([len(part) for part in parts])[:-1])
    shapely.set_coordinates(surfaces, corners)
    return FeatureCollection(
        LON_LAT,
        tuple(GeoLine(xy, old.properties) for xy, old in zip(lines, collection.lines, strict=True)),
        tuple(
            Surface(polygon, old.properties)
            for polygon, old in zip(surfaces.tolist(), collection.surfaces, strict=True)
        ),
        collection.geometries,
    )


def find_maps(path: Path) -> dict[str, Path]:
    """Find GeoJSON files by image id: a single file, or all files under a directory.

    Raises:
        SatmapError: two files belong to the same image, or a name is not UTF-8.
    """
    paths = [path] if path.is_file() else sorted(path.rglob("*"))
    found: dict[str, Path] = {}
    for file in paths:
        hidden = file.name.startswith(".") or file.suffix.lower() not in GEOJSON_SUFFIXES
        if file != path and (hidden or not file.is_file()):
            continue
        image_id = _WORDS.sub("", file.stem)
        try:
            image_id.encode()
        except UnicodeEncodeError as error:
            raise SatmapError(f"{file!r}: rename it; file names must be UTF-8.") from error
        if image_id in found:
            raise SatmapError(
                f"{found[image_id]} and {file} are both of the image {image_id}; "
                "give a directory that holds one of them."
            )
        found[image_id] = file
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def read_road_maps(
    truth: Path, proposal: Path, metres_per_pixel: float, least_confidence: float | None = None
) -> tuple[dict[str, list[RoadRow]], dict[str, list[RoadRow]], dict[str, Georeference]]:
    """Read the roads of a truth and a proposal by image id, in common pixels of a given size.

    Also returns the position of these pixels, by image id.

    Truth and proposal are files or directories. The travel time is the property ``travel_time_s``
    if present. Otherwise it follows from the length and the feature's speed or road class
    (:func:`satmap.vectors.speeds.label_speed_mph`); without these it is NaN. The level is that of
    :func:`satmap.vectors.levels.road_level`. Roads of the proposal with a lower confidence than
    ``least_confidence`` are left out.

    Raises:
        SatmapError: a file cannot be read, two files belong to the same image, or a road has no
            confidence to compare.
    """

    def rows_of(_: str, collection: FeatureCollection, to_pixels: ToPixels) -> list[RoadRow]:
        rows = []
        for line in collection.lines:
            pixels = to_pixels(line.xy)
            length_m = float(np.hypot(*np.diff(pixels, axis=0).T).sum()) * metres_per_pixel
            rows.append(
                RoadRow(
                    pixels,
                    length_m,
                    travel_time_s(line.properties, length_m),
                    level=road_level(line.properties),
                    confidence=confidence_of(line.properties),
                    road_class=str(line.properties.get("highway") or ""),
                )
            )
        return rows

    return _read_sides(truth, proposal, metres_per_pixel, rows_of, least_confidence)


def read_building_maps(
    truth: Path, proposal: Path, metres_per_pixel: float, least_confidence: float | None = None
) -> tuple[dict[str, list[BuildingRow]], dict[str, list[BuildingRow]], dict[str, Georeference]]:
    """Read the buildings of a truth and a proposal, as :func:`read_road_maps` reads roads.

    The score of a building, which the scorers rank by, is what satmap's exports state
    (``expected_iou``, or ``mean_probability`` times the square root of ``area_m2``); else its
    property ``confidence``, in upper or lower case, or 1.
    """

    def rows_of(
        image_id: str, collection: FeatureCollection, to_pixels: ToPixels
    ) -> list[BuildingRow]:
        return [
            BuildingRow(
                shapely.transform(surface.polygon, to_pixels),
                _score(surface.properties, f"image {image_id}, polygon {number}"),
                str(number),
                confidence_of(surface.properties),
            )
            for number, surface in enumerate(collection.surfaces)
        ]

    return _read_sides(truth, proposal, metres_per_pixel, rows_of, least_confidence)


def _read_sides(
    truth: Path,
    proposal: Path,
    metres_per_pixel: float,
    rows_of: Callable[[str, FeatureCollection, ToPixels], list[Row]],
    least_confidence: float | None,
) -> tuple[dict[str, list[Row]], dict[str, list[Row]], dict[str, Georeference]]:
    """Read the rows of both sides by image id, in common pixels, and the place of these pixels."""
    sides = sides_of(truth, proposal, least_confidence)
    rows: tuple[dict[str, list[Row]], dict[str, list[Row]]] = ({}, {})
    grids = {}
    for image_id in sorted({*sides[0], *sides[1]}, key=natural_key):
        present = [side for side in (0, 1) if image_id in sides[side]]
        collections = [sides[side][image_id]() for side in present]
        try:
            utm, origin = _pixel_grid(collections)
            metres = metres_per_pixel
            transform = Affine(metres, 0, origin[0], 0, -metres, origin[1])
            grids[image_id] = Georeference(utm, transform, (metres, metres))
            for side, collection in zip(present, collections, strict=True):
                to_pixels = partial(_to_pixels, collection.crs, utm, origin, metres_per_pixel)
                rows[side][image_id] = rows_of(image_id, collection, to_pixels)
        except ValueError as error:
            files = [(truth, proposal)[side] for side in present]
            raise SatmapError(f"{' or '.join(map(str, files))}, {image_id}: {error}.") from error
    return *rows, grids


def sides_of(
    truth: Path, proposal: Path, least_confidence: float | None = None
) -> tuple[Side, Side]:
    """Return the images of a truth and a proposal.

    Objects of the proposal with a lower confidence than ``least_confidence`` are left out.

    Two single files are one image, whatever their names. If one side is a directory, the other
    side's single file is split by the property ``image_id``.
    """
    if truth.is_file() and proposal.is_file():
        name = next(iter(find_maps(truth)))
        kept = partial(read_map, proposal, least_confidence)
        return {name: partial(read_map, truth)}, {name: kept}
    return by_image(truth), by_image(proposal, least_confidence)


def by_image(path: Path, least_confidence: float | None = None) -> Side:
    """Return the images of a map: those of a directory's files, or of ``image_id`` in one file.

    Features without ``image_id`` belong to an image with the name of the file. Images stay, even if
    all of their objects have a lower confidence than ``least_confidence``.
    """
    if path.is_dir():
        return {
            image_id: partial(read_map, file, least_confidence)
            for image_id, file in find_maps(path).items()
        }
    whole = read_map(path)
    lines: dict[str, list[GeoLine]] = {}
    surfaces: dict[str, list[Surface]] = {}
    (name,) = find_maps(path)
    for line in whole.lines:
        lines.setdefault(_WORDS.sub("", str(line.properties.get("image_id", name))), []).append(
            line
        )
    for surface in whole.surfaces:
        image_id = _WORDS.sub("", str(surface.properties.get("image_id", name)))
        surfaces.setdefault(image_id, []).append(surface)
    images = {
        image_id: FeatureCollection(
            whole.crs,
            tuple(lines.get(image_id, ())),
            tuple(surfaces.get(image_id, ())),
            len(lines.get(image_id, ())) + len(surfaces.get(image_id, ())),
        )
        for image_id in sorted({*lines, *surfaces}, key=natural_key)
    }
    return {
        image_id: partial(keep_confident, collection, least_confidence, path)
        for image_id, collection in images.items()
    }


def roads_in(
    collection: FeatureCollection, georeference: Georeference, size: tuple[int, int]
) -> list[RoadRow]:
    """Return the roads of a map in the pixels of an image, cut at its border.

    ``size`` is the height and width of the image. Travel times are those of the pieces.

    Raises:
        SatmapError: the coordinates cannot be converted to the image's reference system.
    """
    rows = []
    for line in collection.lines:
        whole = shapely.LineString(_pixels(georeference, line.xy, collection.crs))
        for piece in shapely.get_parts(shapely.clip_by_rect(whole, 0, 0, *size[::-1])).tolist():
            if piece.geom_type != "LineString" or not piece.length:
                continue
            xy = shapely.get_coordinates(piece)
            length = line_length_m(xy, georeference.metres_per_pixel)
            stated = travel_time_s(line.properties, length)
            if "travel_time_s" in line.properties:
                stated *= piece.length / whole.length
            rows.append(RoadRow(xy, length, stated))
    return rows


def buildings_in(
    collection: FeatureCollection, georeference: Georeference, size: tuple[int, int]
) -> list[BuildingRow]:
    """Return the buildings of a map in the pixels of an image, as :func:`roads_in` does."""
    frame = shapely.box(0, 0, size[1], size[0])
    rows = []
    for number, surface in enumerate(collection.surfaces):
        pixels = shapely.transform(
            surface.polygon, lambda xy: _pixels(georeference, xy, collection.crs)
        )
        if not pixels.intersects(frame):
            continue
        inside = shapely.make_valid(pixels).intersection(frame)
        score = _score(surface.properties, f"polygon {number}")
        rows += [
            BuildingRow(part, score)
            for part in shapely.get_parts(inside).tolist()
            if part.geom_type == "Polygon"
        ]
    return rows


def _pixels(georeference: Georeference, xy: Floats, crs: str) -> Floats:
    try:
        return georeference.to_pixels(xy, crs)
    except ValueError as error:
        raise SatmapError(f"the map's coordinates {error}.") from error


def _pixel_grid(collections: list[FeatureCollection]) -> tuple[str, Floats]:
    """Return the UTM zone of an image, and easting and northing of its corner (0, 0) in metres."""
    places = [
        (xy, collection.crs)
        for collection in collections
        for xy in (
            *(line.xy for line in collection.lines),
            *(shapely.get_coordinates(surface.polygon) for surface in collection.surfaces),
        )
    ]
    if not places:
        return "EPSG:32631", np.zeros(2)
    longitude, latitude = project(places[0][0][:1], places[0][1], LON_LAT)[0].tolist()
    zone = min(int((longitude + 180) // 6) + 1, 60)
    crs = f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"
    metres = np.concatenate([project(xy, source, crs) for xy, source in places])
    origin = np.array((metres[:, 0].min(), metres[:, 1].max()))
    span_km = float(np.abs(metres - origin).max()) / 1000
    if span_km > _LARGEST_KM:
        raise ValueError(
            f"the image would be {span_km:.0f} km wide or high; check for coordinates in pixels, a "
            "stray vertex or a wrong 'crs'"
        )
    return crs, origin


def _to_pixels(crs: str, utm: str, origin: Floats, metres_per_pixel: float, xy: Floats) -> Floats:
    pixels: Floats = (project(xy, crs, utm) - origin) * (1, -1) / metres_per_pixel
    return pixels


def travel_time_s(properties: Mapping[str, Any], length_m: float) -> float:
    """Return a road's ``travel_time_s``, or that by its speed or class; NaN without any of them."""
    stated = _number(properties.get("travel_time_s"))
    if stated is not None:
        return stated
    if not _SPEED_PROPERTIES & {key for key, value in properties.items() if value is not None}:
        return math.nan
    return length_m / (label_speed_mph(properties) * MPS_PER_MPH)


def _score(properties: Mapping[str, Any], where: str) -> float:
    names = {str(name).lower(): value for name, value in properties.items()}
    value = names.get("expected_iou")
    if value is None and names.get("mean_probability") is not None:
        # What satmap ranks buildings by (:class:`satmap.vectors.buildings.Building`), in metres.
        value = names["mean_probability"] * math.sqrt(names.get("area_m2") or 1.0)
    if value is None:
        value = names.get("confidence")
    if value is None and (stated := confidence_of(properties)) == stated:
        value = stated
    if value is None:
        value = 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SatmapError(f"{where}: the confidence is not a finite number: {value!r:.60}.")
    return float(value)


def _number(value: Any) -> float | None:
    """Convert a property to a number >= 0; None if it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
