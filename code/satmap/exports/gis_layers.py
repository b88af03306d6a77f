"""Write GeoPackage layers image by image; the same content gives the same bytes."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from satmap.errors import CannotWriteError
from satmap.io.files import atomic_path


@dataclass(frozen=True)
class Layer:
    """A layer of a GeoPackage.

    Attributes:
        name: name of the layer.
        geometry_type: OGR's name of the geometry type.
        fields: columns and their types.
        crs: reference system of the coordinates, x or longitude first.
    """

    name: str
    geometry_type: str
    fields: Mapping[str, type]
    crs: str = "EPSG:4326"


# A fixed date instead of GDAL's current time, so that the same roads give the same bytes. The file
# is temporary while it is written, so it needs no journal on disk.
_GDAL_OPTIONS = {
    "OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z",
    "OGR_SQLITE_JOURNAL": "MEMORY",
    "OGR_SQLITE_SYNCHRONOUS": "OFF",
}


@contextlib.contextmanager
def new_geopackage(path: Path, layers: Sequence[Layer]) -> Iterator[Path]:
    """Create a GeoPackage with empty layers; it is renamed to ``path`` when the block succeeds.

    Yields:
        The temporary path, for :func:`append`.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        _gdal_options(_GDAL_OPTIONS),
        _as_cannot_write(path),
    ):
        for layer in layers:
            _write(temporary, layer, [], [], append=False)
        yield temporary


def append(
    path: Path,
    layer: Layer,
    geometries: Sequence[shapely.Geometry],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Add geometries with their attributes to a layer of a :func:`new_geopackage`."""
    _write(path, layer, geometries, rows, append=True)


def _write(
    path: Path,
    layer: Layer,
    geometries: Sequence[shapely.Geometry],
    rows: Sequence[Mapping[str, Any]],
    *,
    append: bool,
) -> None:
    pyogrio.raw.write(
        path,
        np.array(shapely.to_wkb(geometries), object),
        [np.array([row[name] for row in rows], kind) for name, kind in layer.fields.items()],
        list(layer.fields),
        layer=layer.name,
        driver="GPKG",
        geometry_type=layer.geometry_type,
        crs=layer.crs,
        append=append,
    )


@contextlib.contextmanager
def _gdal_options(options: dict[str, str]) -> Iterator[None]:
    """Set options of pyogrio's GDAL and restore them at the end."""
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
