"""Read labels from vector files of any common format: roads as lines, buildings as polygons.

GDAL would choose a driver by content, and some of its drivers follow references to other files and
servers. So a file must begin as files of its format do.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.exports.gis_files import SHORT_NAMES
from satmap.io.files import refuse_pipe
from satmap.io.geojson_reader import LON_LAT, read_geojson
from satmap.io.text import printable

Kind = Literal["lines", "polygons"]

# First bytes of each format, by lower-case suffix; None where the text of the file varies.
_SIGNATURES: Mapping[str, bytes | None] = {
    ".gpkg": b"SQLite format 3\0", ".shp": b"\0\0\x27\x0a", ".fgb": b"fgb", ".parquet": b"PAR1",
    ".pbf": b"\0\0\0", ".osm": b"<?xml", ".geojson": None, ".json": None,
    ".zip": b"PK\x03\x04",
}  # fmt: skip

#: Suffixes of the vector files that satmap reads: zipped shapefiles too.
VECTOR_SUFFIXES = tuple(_SIGNATURES)

#: Suffixes of the label files that satmap looks for in directories, where archives may be anything.
LABEL_SUFFIXES = tuple(suffix for suffix in VECTOR_SUFFIXES if suffix != ".zip")

# Geometries and table of a shapefile have at most 2 GiB each. A small archive can claim any size.
_MOST_UNZIPPED = 4 << 30

_FULL_NAMES = {short: name for name, short in SHORT_NAMES.items()}

# GDAL's layers of OpenStreetMap data.
_OSM_LAYERS = {"lines": "lines", "polygons": "multipolygons"}
_HSTORE = re.compile(r'"((?:[^"\\]|\\.)*)"=>"((?:[^"\\]|\\.)*)"')

_TYPES = {"lines": shapely.GeometryType.LINESTRING, "polygons": shapely.GeometryType.POLYGON}

# Ways that nobody drives on, areas of them, and lines across roads.
_NOT_ROADS = {
    "footway", "path", "steps", "cycleway", "bridleway", "pedestrian", "corridor", "elevator",
    "platform", "proposed", "construction", "abandoned", "razed", "rest_area", "services",
    "raceway", "stopline",
}  # fmt: skip


@dataclass(frozen=True)
class VectorLabels:
    """Lines or polygons of a file.

    Attributes:
        path: the file.
        shapes: LineStrings or Polygons, (n,), in the coordinates of ``crs``, x or longitude first.
        properties: attributes of each.
        crs: reference system, in a form that rasterio accepts.
    """

    path: Path
    shapes: NDArray[np.object_]
    properties: tuple[Mapping[str, Any], ...]
    crs: str


def read_label_file(path: Path, kind: Kind, *, may_be_empty: bool = False) -> VectorLabels:
    """Read the roads or buildings of a vector file; geometries of other kinds are left out.

    From OpenStreetMap data it takes ways with ``highway`` that cars use, or areas with
    ``building``. Of files with several layers it reads all with the right kind of geometry.

    Raises:
        SatmapError: the file is of another format, is damaged, has no reference system, or has no
            such geometry although it must not be empty.
    """
    found = _read(path, kind)
    kept = _of_kind(found, kind)
    if not len(kept.shapes) and not may_be_empty:
        total = len(found.shapes)
        reason = (
            f"none of its {total} features is a {'line' if kind == 'lines' else 'polygon'} that "
            "satmap uses"
            if total
            else "it has no features"
        )
        raise SatmapError(
            f"{path} holds no {'roads' if kind == 'lines' else 'buildings'}: {reason}. Check that "
            "it is the right file."
        )
    return kept


def read_lines_and_polygons(path: Path) -> tuple[VectorLabels, VectorLabels]:
    """Read the roads and the buildings of a vector file, as :func:`read_label_file` does.

    Files with other suffixes are read as GeoJSON.

    Raises:
        SatmapError: as there, but the file may lack either or both.
    """
    found = _read(path, None) if path.suffix.lower() in _SIGNATURES else _read_geojson(path)
    return _of_kind(found, "lines"), _of_kind(found, "polygons")


def _read(path: Path, kind: Kind | None) -> VectorLabels:
    refuse_pipe(path)
    suffix = path.suffix.lower()
    if suffix not in _SIGNATURES:
        raise SatmapError(
            f"{printable(path)}: satmap reads labels from {', '.join(VECTOR_SUFFIXES)}. Convert "
            "the file, for example with `ogr2ogr OUT.gpkg IN`."
        )
    _require_signature(path, _SIGNATURES[suffix])
    if suffix in (".geojson", ".json"):
        return _read_geojson(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix == ".zip":
        # Braces mark where the path of the archive ends.
        inside = f"/vsizip/{{{path.resolve()}}}/{_zipped_shapefile(path)}"
        return _read_layers(path, kind, inside=inside)
    return _read_layers(path, kind, is_osm=suffix in (".osm", ".pbf"))


def _zipped_shapefile(path: Path) -> str:
    """Return the name of the only shapefile in an archive, which is checked first."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for name in (member.filename for member in members):
                place = PurePosixPath(name)
                if place.is_absolute() or ".." in place.parts or set(name) & set("\\{}"):
                    raise SatmapError(
                        f"{path} holds a file named {printable(name, 200)}, which satmap does not "
                        "unpack. Zip the shapefile again."
                    )
            if sum(member.file_size for member in members) > _MOST_UNZIPPED:
                raise SatmapError(
                    f"{path} would be larger than {_MOST_UNZIPPED >> 30} GiB unpacked. Convert the "
                    "shapefile, for example with `ogr2ogr OUT.gpkg IN.shp`."
                )
            # macOS adds files of its own, such as __MACOSX/._roads.shp.
            found = [
                member.filename for member in members
                if member.filename.lower().endswith(".shp")
                and not PurePosixPath(member.filename).name.startswith(".")
            ]  # fmt: skip
            if len(found) != 1:
                raise SatmapError(
                    f"{path} holds {len(found)} shapefiles (.shp), not one. Unpack it and give the "
                    "file that you mean."
                )
            with archive.open(found[0]) as file:
                is_shapefile = file.read(4) == _SIGNATURES[".shp"]
            # GDAL does not verify checksums.
            if not is_shapefile or archive.testzip() is not None:
                raise zipfile.BadZipFile("a file in it is not what it should be")
    # Of unknown compressions, passwords, and damage.
    except (
        zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError
    ) as error:  # fmt: skip
        raise SatmapError(
            f"{path}: cannot be unpacked ({printable(error, 200)}). Zip or download it again."
        ) from error
    return found[0]


def _require_signature(path: Path, signature: bytes | None) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise SatmapError(f"{path}: cannot be read ({error.strerror}).") from error
    if signature is not None and not start.lstrip(b"\xef\xbb\xbf").startswith(signature):
        raise SatmapError(
            f"{path} does not begin as files with the suffix {path.suffix} do. Check that it is "
            "complete and has the right suffix."
        )


def _read_geojson(path: Path) -> VectorLabels:
    collection = read_geojson(path)
    shapes = [shapely.LineString(line.xy) for line in collection.lines]
    shapes += [surface.polygon for surface in collection.surfaces]
    properties = [line.properties for line in collection.lines]
    properties += [surface.properties for surface in collection.surfaces]
    return _labels(path, shapes, properties, collection.crs)


def _read_parquet(path: Path) -> VectorLabels:
    """Read GeoParquet, https://geoparquet.org: WKB in the column that its metadata name."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SatmapError(
            f"{path}: GeoParquet needs pyarrow, which is not installed: pip install 'satmap[gis]'."
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
        described = json.loads(table.schema.metadata[b"geo"])
        column = described["primary_column"]
        # Without a reference system, GeoParquet is in longitude and latitude.
        crs = described["columns"][column].get("crs", "unset")
        shapes = _from_wkb(np.array(table.column(column).to_pylist(), object))
        rows = table.drop_columns([column]).to_pylist()
    except Exception as error:
        raise SatmapError(
            f"{path} is not GeoParquet with WKB geometries ({printable(error, 200)})."
        ) from error
    system = LON_LAT if crs == "unset" else json.dumps(crs) if crs else ""
    return _labels(path, shapes, rows, _usable(path, system))


def _read_layers(
    path: Path, kind: Kind | None, *, is_osm: bool = False, inside: str | None = None
) -> VectorLabels:
    """Read layers with GDAL; ``inside`` is GDAL's path of a file in the archive ``path``."""
    # With geopandas installed, it is imported too, which takes long.
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

    source = inside or path
    is_shapefile = inside is not None or path.suffix.lower() == ".shp"
    shapes: list[shapely.Geometry] = []
    rows: list[Mapping[str, Any]] = []
    systems = set()
    # New objects of JOSM, and those that satmap writes, have negative ids.
    pyogrio.set_gdal_config_options({"OSM_USE_CUSTOM_INDEXING": "NO"})
    try:
        layers = [
            (name, "")
            for of_kind, name in _OSM_LAYERS.items()
            if is_osm and kind in (None, of_kind)
        ]
        for name, geometry_type in layers or pyogrio.list_layers(source):
            # A layer without a declared type may hold anything; tables have none at all.
            if geometry_type is None:
                continue
            meta, _, geometry, columns = pyogrio.raw.read(source, layer=name)
            if geometry is None or not len(geometry):
                continue
            shapes += _from_wkb(geometry).tolist()
            names = list(meta["fields"])
            if is_shapefile:
                names = [_FULL_NAMES.get(name, name) for name in names]
            rows += (
                [
                    _plain(dict(zip(names, values, strict=True)), is_osm)
                    for values in zip(*(column.tolist() for column in columns), strict=True)
                ]
                if names
                else [{}] * len(geometry)
            )
            systems.add(meta["crs"] or "")
    except (DataSourceError, DataLayerError, FeatureError, shapely.errors.ShapelyError) as error:
        raise SatmapError(
            f"{path}: cannot be read ({printable(error, 200)}). Check that it is complete."
        ) from error
    if len(systems) > 1:
        raise SatmapError(
            f"{path} has layers in {len(systems)} reference systems. Keep one layer, for example "
            "with `ogr2ogr OUT.gpkg IN LAYER`."
        )
    return _labels(path, shapes, rows, _usable(path, systems.pop() if systems else LON_LAT))


def _from_wkb(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return shapes; open rings are closed, and what has no two points becomes None."""
    shapes: NDArray[np.object_] = shapely.from_wkb(geometry, on_invalid="fix")
    return shapes


def _plain(row: dict[str, Any], is_osm: bool) -> dict[str, Any]:
    """Return attributes without missing values; OpenStreetMap's further tags are unpacked."""
    tags = row.pop("other_tags", None) if is_osm else None
    kept = {name: value for name, value in row.items() if value is not None and value == value}
    if tags:
        kept |= {
            key.replace('\\"', '"'): value.replace('\\"', '"')
            for key, value in _HSTORE.findall(tags)
        }
    return kept


def _usable(path: Path, crs: str) -> str:
    if not crs:
        raise SatmapError(
            f"{path} states no reference system. Assign one, for example with `ogr2ogr -a_srs "
            f"EPSG:4326 OUT.gpkg {path.name}`; a shapefile needs its .prj file."
        )
    return LON_LAT if crs == "EPSG:4326" else crs


def _labels(path: Path, shapes: Any, rows: Any, crs: str) -> VectorLabels:
    return VectorLabels(path, np.array(list(shapes), np.object_), tuple(rows), crs)


def _of_kind(labels: VectorLabels, kind: Kind) -> VectorLabels:
    """Return the single-part shapes of one kind that are roads or buildings."""
    key = "highway" if kind == "lines" else "building"
    # Files of roads or buildings only often keep the ids of OpenStreetMap but not its tags.
    is_mixed = labels.path.suffix.lower() in (".osm", ".pbf") or any(
        _is_osm(row) and key in row for row in labels.properties
    )
    wanted = np.array([_is_wanted(row, kind, is_mixed) for row in labels.properties], np.bool_)
    parts, index = shapely.get_parts(shapely.force_2d(labels.shapes), return_index=True)
    kept = (shapely.get_type_id(parts) == _TYPES[kind]) & (shapely.length(parts) > 0)
    kept &= wanted[index]
    rows = [labels.properties[number] for number in index[kept].tolist()]
    return _labels(labels.path, parts[kept], rows, labels.crs)


def _is_wanted(row: Mapping[str, Any], kind: Kind, is_mixed: bool) -> bool:
    """Return whether OpenStreetMap's tags, if there are any, say that a shape is wanted."""
    if kind == "polygons":
        return row.get("building") != "no" and not (
            is_mixed and _is_osm(row) and "building" not in row
        )
    highway = row.get("highway")
    if highway is None:
        return not (is_mixed and _is_osm(row))
    return str(highway) not in _NOT_ROADS and row.get("area") != "yes"


def _is_osm(row: Mapping[str, Any]) -> bool:
    return "osm_id" in row or "osm_way_id" in row
