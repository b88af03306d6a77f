"""Road graphs as GeoPackage, the file that QGIS and other GIS open: layers of roads and junctions.

Coordinates are longitude and latitude on WGS 84 (EPSG:4326) even where all images share another
system: what a file holds then never depends on which images happened to be in it.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from satmap.errors import CannotWriteError
from satmap.exports.image_roads import (
    ImageRoads,
    edge_attributes,
    in_lon_lat,
    numbered,
)
from satmap.files import atomic_path


@dataclass(frozen=True)
class _Layer:
    """A table of the file: its geometries, and its columns with their types."""

    name: str
    geometry_type: str
    fields: Mapping[str, type]


_ROADS = _Layer(
    "roads",
    "LineString",
    {
        "image_id": object,
        "u": np.int64,
        "v": np.int64,
        "highway": object,
        "maxspeed": object,
        "speed_mps": np.float64,
        "length_m": np.float64,
        "travel_time_s": np.float64,
        "confidence": np.float64,
    },
)
_JUNCTIONS = _Layer(
    "junctions", "Point", {"image_id": object, "node": np.int64, "degree": np.int64}
)

# GDAL writes the time of day into every table; the same roads are to give the same bytes. What is
# written is a temporary file, which needs no second one to recover from.
_GDAL_OPTIONS = {
    "OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z",
    "OGR_SQLITE_JOURNAL": "MEMORY",
    "OGR_SQLITE_SYNCHRONOUS": "OFF",
}


def write_geopackage(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write the roads of one or many images, atomically; the same roads give the same bytes.

    Layer ``roads``: a LineString an edge, with the attributes of
    :func:`satmap.exports.image_roads.edge_attributes`. Layer ``junctions``: a Point a node, dead
    ends included, with its ``image_id``, its number ``node``, which ``u`` and ``v`` of the roads
    refer to, and its ``degree``, the number of road ends there. The images are asked for one after
    another and none is kept.

    Raises:
        SatmapError: an image has no usable georeference.
        CannotWriteError: ``path`` cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        _gdal_options(_GDAL_OPTIONS),
        _as_cannot_write(path),
    ):
        # Even without a single road both layers are there.
        _write(temporary, _ROADS, [], [], append=False)
        _write(temporary, _JUNCTIONS, [], [], append=False)
        for first_node, roads in numbered(graphs):
            lon_lat = in_lon_lat(roads)
            _write(
                temporary,
                _ROADS,
                [shapely.LineString(line) for line in lon_lat.lines],
                [edge_attributes(roads.image_id, edge, first_node) for edge in roads.graph.edges],
            )
            _write(
                temporary,
                _JUNCTIONS,
                shapely.points(lon_lat.nodes).tolist(),
                _junction_rows(roads, first_node),
            )


def _junction_rows(roads: ImageRoads, first_node: int) -> list[dict[str, Any]]:
    ends = np.array([edge.nodes for edge in roads.graph.edges], np.int64).ravel()
    degrees = np.bincount(ends, minlength=len(roads.graph.nodes)).tolist()
    return [
        {"image_id": roads.image_id, "node": first_node + index, "degree": degree}
        for index, degree in enumerate(degrees)
    ]


def _write(
    path: Path,
    layer: _Layer,
    geometries: Sequence[shapely.Geometry],
    rows: Sequence[Mapping[str, Any]],
    *,
    append: bool = True,
) -> None:
    pyogrio.raw.write(
        path,
        np.array(shapely.to_wkb(geometries), object),
        [np.array([row[name] for row in rows], kind) for name, kind in layer.fields.items()],
        list(layer.fields),
        layer=layer.name,
        driver="GPKG",
        geometry_type=layer.geometry_type,
        crs="EPSG:4326",
        append=append,
    )


@contextlib.contextmanager
def _gdal_options(options: dict[str, str]) -> Iterator[None]:
    """Options of pyogrio's GDAL, put back in the end."""
    before = {name: pyogrio.get_gdal_config_option(name) for name in options}
    pyogrio.set_gdal_config_options(options)
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)


@contextlib.contextmanager
def _as_cannot_write(path: Path) -> Iterator[None]:
    try:
        yield
    except (DataSourceError, DataLayerError) as error:
        raise CannotWriteError(
            f"cannot write {path}: {error}. "
            "Check that the directory exists, is writable and has space."
        ) from error
