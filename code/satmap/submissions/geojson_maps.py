"""Maps as GeoJSON, one file per image: roads as lines, buildings as polygons.

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

from satmap.errors import SatmapError
from satmap.io.geojson_reader import LON_LAT, FeatureCollection, project, read_geojson
from satmap.io.text import natural_key
from satmap.submissions.buildings_csv import BuildingRow
from satmap.submissions.roads_csv import RoadRow
from satmap.submissions.rows import Row
from satmap.vectors.georeference import Georeference
from satmap.vectors.speeds import MPS_PER_MPH, label_speed_mph

Floats: TypeAlias = NDArray[np.float64]

# Converts coordinates (n, 2) of a file to pixels (n, 2).
ToPixels: TypeAlias = Callable[[Floats], Floats]

GEOJSON_SUFFIXES = (".geojson", ".json")

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
        "road_type",
    }
)  # fmt: skip


def find_geojson(path: Path) -> dict[str, Path]:
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


def read_roads_geojson(
    truth: Path, proposal: Path, metres_per_pixel: float
) -> tuple[dict[str, list[RoadRow]], dict[str, list[RoadRow]], dict[str, Georeference]]:
    """Read the roads of a truth and a proposal by image id, in common pixels of a given size.

    Also returns the position of these pixels, by image id.

    Truth and proposal are files or directories. The travel time is the property ``travel_time_s``
    if present. Otherwise it follows from the length and the feature's speed or road class
    (:func:`satmap.vectors.speeds.label_speed_mph`); without these it is NaN.

    Raises:
        SatmapError: a file cannot be read, or two files belong to the same image.
    """

    def rows_of(_: str, collection: FeatureCollection, to_pixels: ToPixels) -> list[RoadRow]:
        rows = []
        for line in collection.lines:
            pixels = to_pixels(line.xy)
            length_m = float(np.hypot(*np.diff(pixels, axis=0).T).sum()) * metres_per_pixel
            rows.append(RoadRow(pixels, length_m, _travel_time_s(line.properties, length_m)))
        return rows

    return _read_sides(truth, proposal, metres_per_pixel, rows_of)


def read_buildings_geojson(
    truth: Path, proposal: Path, metres_per_pixel: float
) -> tuple[dict[str, list[BuildingRow]], dict[str, list[BuildingRow]], dict[str, Georeference]]:
    """Read the buildings of a truth and a proposal, as :func:`read_roads_geojson` reads roads.

    The confidence of a building is its property ``confidence``, in upper or lower case; 1 if it is
    missing.
    """

    def rows_of(
        image_id: str, collection: FeatureCollection, to_pixels: ToPixels
    ) -> list[BuildingRow]:
        return [
            BuildingRow(
                shapely.transform(surface.polygon, to_pixels),
                _confidence(surface.properties, f"image {image_id}, polygon {number}"),
                str(number),
            )
            for number, surface in enumerate(collection.surfaces)
        ]

    return _read_sides(truth, proposal, metres_per_pixel, rows_of)


def _read_sides(
    truth: Path,
    proposal: Path,
    metres_per_pixel: float,
    rows_of: Callable[[str, FeatureCollection, ToPixels], list[Row]],
) -> tuple[dict[str, list[Row]], dict[str, list[Row]], dict[str, Georeference]]:
    """Read the rows of both sides by image id, in common pixels, and the place of these pixels."""
    sides = [find_geojson(truth), find_geojson(proposal)]
    if truth.is_file() and proposal.is_file():
        # Two single files are one image, whatever their names.
        sides[1] = dict(zip(sides[0], sides[1].values(), strict=False))
    rows: tuple[dict[str, list[Row]], dict[str, list[Row]]] = ({}, {})
    grids = {}
    for image_id in sorted({*sides[0], *sides[1]}, key=natural_key):
        files = [(side, paths[image_id]) for side, paths in enumerate(sides) if image_id in paths]
        collections = [read_geojson(path) for _, path in files]
        try:
            utm, origin = _pixel_grid(collections)
            metres = metres_per_pixel
            transform = Affine(metres, 0, origin[0], 0, -metres, origin[1])
            grids[image_id] = Georeference(utm, transform, (metres, metres))
            for (side, _), collection in zip(files, collections, strict=True):
                to_pixels = partial(_to_pixels, collection.crs, utm, origin, metres_per_pixel)
                rows[side][image_id] = rows_of(image_id, collection, to_pixels)
        except ValueError as error:
            raise SatmapError(f"{' or '.join(str(path) for _, path in files)}: {error}.") from error
    return *rows, grids


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


def _travel_time_s(properties: Mapping[str, Any], length_m: float) -> float:
    stated = _number(properties.get("travel_time_s"))
    if stated is not None:
        return stated
    if not _SPEED_PROPERTIES & {key for key, value in properties.items() if value is not None}:
        return math.nan
    return length_m / (label_speed_mph(properties) * MPS_PER_MPH)


def _confidence(properties: Mapping[str, Any], where: str) -> float:
    names = {str(name).lower(): value for name, value in properties.items()}
    value = names.get("confidence", 1.0)
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
