"""Write GeoJSON and GeoPackage files image by image; the same content gives the same bytes."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError

from satmap.errors import CannotWriteError
from satmap.io.files import atomic_path

#: Decimals of a degree in GeoJSON; the last one is about a centimetre.
DECIMALS = 7

# A fixed date instead of GDAL's current time, so that the same roads give the same bytes. The file
# is temporary while it is written, so it needs no journal on disk.
_GDAL_OPTIONS = {
    "OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z",
    "OGR_SQLITE_JOURNAL": "MEMORY",
    "OGR_SQLITE_SYNCHRONOUS": "OFF",
}


def write_features(
    path: Path, features: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> None:
    """Write pairs of properties and geometry as GeoJSON, atomically, one feature per line.

    Raises:
        CannotWriteError: ``path`` cannot be written.
        ValueError: a number is not finite.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for properties, geometry in features:
            feature = {"type": "Feature", "properties": properties, "geometry": geometry}
            line = json.dumps(feature, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            file.write(separator + line)
            separator = ",\n"
        file.write("\n]}\n")


def rounded_degrees(lon_lat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round degrees to the decimals of GeoJSON."""
    # Adding zero turns -0.0 into 0.0, which prints without a sign.
    return np.round(lon_lat, DECIMALS) + 0.0


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

    def write(
        self,
        path: Path,
        geometries: Sequence[shapely.Geometry] = (),
        rows: Sequence[Mapping[str, Any]] = (),
        *,
        append: bool = True,
    ) -> None:
        """Add geometries and their attributes to the layer, or create it with ``append=False``."""
        pyogrio.raw.write(
            path,
            np.array(shapely.to_wkb(geometries), object),
            [np.array([row[name] for row in rows], kind) for name, kind in self.fields.items()],
            list(self.fields),
            layer=self.name,
            driver="GPKG",
            geometry_type=self.geometry_type,
            crs=self.crs,
            append=append,
        )


@contextlib.contextmanager
def new_geopackage(path: Path, *layers: Layer) -> Iterator[Path]:
    """Create a GeoPackage with empty layers; it is renamed to ``path`` when the block succeeds.

    Yields:
        The temporary path, for :meth:`Layer.write`.

    Raises:
        CannotWriteError: ``path`` cannot be written.
    """
    before = {name: pyogrio.get_gdal_config_option(name) for name in _GDAL_OPTIONS}
    with atomic_path(path) as temporary:
        pyogrio.set_gdal_config_options(_GDAL_OPTIONS)
        try:
            for layer in layers:
                layer.write(temporary, append=False)
            yield temporary
        except (DataSourceError, DataLayerError) as error:
            raise CannotWriteError(
                f"cannot write {path}: {error}. "
                "Check that the directory exists, is writable and has space."
            ) from error
        finally:
            pyogrio.set_gdal_config_options(before)
