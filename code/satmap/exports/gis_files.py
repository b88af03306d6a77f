"""Write layers of vectors for GIS; the same content gives the same bytes.

One function writes GeoPackage, FlatGeobuf, zipped shapefile and GeoParquet, another one GeoJSON.
"""

import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.crs
import shapely
from numpy.typing import NDArray

from satmap.errors import CannotWriteError
from satmap.exports import GIS_SUFFIXES
from satmap.exports.styles import Style
from satmap.io.files import atomic_path
from satmap.io.geojson_reader import LON_LAT

#: Decimals of a degree in GeoJSON and OpenStreetMap files; the last one is about a centimetre.
DECIMALS = 7

#: Names of fields in shapefiles, where names have at most ten characters.
SHORT_NAMES = {
    "speed_source": "speed_src",
    "travel_time_s": "time_s",
    "mean_probability": "mean_prob",
    "expected_iou": "exp_iou",
    "calibration": "calibrat",
}

# A fixed date instead of the current one, so that the same roads give the same bytes.
_DATE = "1970-01-01"
# The file is temporary while it is written, so it needs no journal on disk.
_GDAL_OPTIONS = {
    "OGR_CURRENT_DATE": f"{_DATE}T00:00:00.000Z",
    "OGR_SQLITE_JOURNAL": "MEMORY",
    "OGR_SQLITE_SYNCHRONOUS": "OFF",
}

# Opening a GeoPackage takes milliseconds, so small images are written together.
_BATCH = 10_000

#: Geometries, and their attributes by field.
Features = tuple[Sequence[shapely.Geometry], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class GisLayer:
    """A layer of vectors.

    Attributes:
        name: name of the layer.
        geometry_type: OGR's name of the geometry type.
        fields: columns and their types: object (text), int64 or float64. Only numbers of type
            float64 may be None.
        style: how QGIS shows the layer of a GeoPackage.
    """

    name: str
    geometry_type: str
    fields: Mapping[str, type]
    style: Style | None = field(default=None, compare=False)

    def columns(self, rows: Sequence[Mapping[str, Any]]) -> list[NDArray[Any]]:
        """Return the attributes of features as one array per field; None as NaN."""
        return [np.array([row[name] for row in rows], kind) for name, kind in self.fields.items()]


def write_layers(
    path: Path, layers: Sequence[GisLayer], images: Iterable[Sequence[Features]], crs: str
) -> None:
    """Write the features of images, atomically.

    A GeoPackage is written image by image and GeoParquet in pieces. Other formats keep all features
    in memory.

    Args:
        path: its suffix, in upper or lower case, selects the format: one of ``GIS_SUFFIXES``.
        layers: a GeoPackage has all of them, other formats the first one.
        images: for each image the features of each layer, in coordinates of ``crs``.
        crs: LON_LAT or WKT.

    Raises:
        CannotWriteError: ``path`` cannot be written.
        ValueError: the suffix is none of these formats.
    """
    # With geopandas installed, it is imported too, which takes long.
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError

    writers = {
        ".gpkg": _write_geopackage, ".fgb": _write_flatgeobuf, ".parquet": _write_parquet,
        ".zip": _write_shapefile,
    }  # fmt: skip
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise ValueError(f"{suffix} is none of {', '.join(GIS_SUFFIXES)}")
    before = {name: pyogrio.get_gdal_config_option(name) for name in _GDAL_OPTIONS}
    with atomic_path(path) as temporary:
        pyogrio.set_gdal_config_options(_GDAL_OPTIONS)
        try:
            writers[suffix](temporary, layers, images, "EPSG:4326" if crs == LON_LAT else crs)
        except (DataSourceError, DataLayerError, FieldError, FeatureError) as error:
            raise CannotWriteError(
                f"cannot write {path}: {error}. "
                "Check that the directory exists, is writable and has space."
            ) from error
        finally:
            pyogrio.set_gdal_config_options(before)


def _write_geopackage(
    path: Path, layers: Sequence[GisLayer], images: Iterable[Sequence[Features]], crs: str
) -> None:
    from pyogrio.raw import write

    for layer in layers:
        _write(path, layer, ((), ()), "GPKG", crs, append=False)
    for batch in _batches(images, _BATCH):
        for layer, features in zip(layers, batch, strict=True):
            _write(path, layer, features, "GPKG", crs, append=True)
    styles = [(layer.name, layer.style) for layer in layers if layer.style is not None]
    if not styles:
        return
    # The table in which QGIS saves styles, and which it reads when it opens a layer.
    table: dict[str, Any] = {
        "f_table_catalog": ["" for _ in styles],
        "f_table_schema": ["" for _ in styles],
        "f_table_name": [name for name, _ in styles],
        "f_geometry_column": ["geom" for _ in styles],
        "styleName": [style.name for _, style in styles],
        "styleQML": [style.qml() for _, style in styles],
        "styleSLD": [style.sld(name) for name, style in styles],
        "useAsDefault": np.ones(len(styles), np.bool_),
        "description": [style.description for _, style in styles],
        "owner": ["" for _ in styles],
        "ui": ["" for _ in styles],
        "update_time": np.full(len(styles), np.datetime64(_DATE, "ms")),
    }
    columns = [c if isinstance(c, np.ndarray) else np.array(c, object) for c in table.values()]
    write(
        path, None, columns, list(table), layer="layer_styles", driver="GPKG", geometry_type=None,
        append=True, layer_options={"FID": "id"},
    )  # fmt: skip


def _write_flatgeobuf(
    path: Path, layers: Sequence[GisLayer], images: Iterable[Sequence[Features]], crs: str
) -> None:
    from pyogrio.errors import DataSourceError
    from pyogrio.raw import read

    features = _first_layer(images)
    _write(path, layers[0], features, "FlatGeobuf", crs, append=False)
    # The driver does not notice if the last bytes could not be written.
    count = len(features[0])
    try:
        last = read(path, columns=[], skip_features=max(count - 1, 0))[2]
    except ValueError as error:
        raise DataSourceError("the last features are missing") from error
    if len(last) != min(count, 1):
        raise DataSourceError("the last features are missing")


def _write_shapefile(
    path: Path, layers: Sequence[GisLayer], images: Iterable[Sequence[Features]], crs: str
) -> None:
    layer = layers[0]
    # The name is that of `path`, a temporary file, with other random characters. So what a killed
    # process leaves is found and removed as its temporary files are.
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=path.stem[:-8], suffix=path.suffix
    ) as name:
        file = Path(name) / f"{layer.name}.shp"
        _write(
            file, layer, _first_layer(images), "ESRI Shapefile", crs, append=False,
            names=[SHORT_NAMES.get(field, field) for field in layer.fields],
            layer_options={"ENCODING": "UTF-8", "DBF_DATE_LAST_UPDATE": _DATE},
        )  # fmt: skip
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for part in sorted(Path(name).iterdir()):
                # The earliest date of the format, instead of the current one.
                entry = zipfile.ZipInfo(part.name, (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                with archive.open(entry, "w") as target, part.open("rb") as source:
                    while piece := source.read(1 << 20):
                        target.write(piece)


def _write_parquet(
    path: Path, layers: Sequence[GisLayer], images: Iterable[Sequence[Features]], crs: str
) -> None:
    """Write GeoParquet 1.1, https://geoparquet.org: geometries as WKB, CRS as PROJJSON."""
    import pyarrow
    import pyarrow.parquet

    layer = layers[0]
    kinds: dict[type, Any] = {
        object: pyarrow.string(),
        np.int64: pyarrow.int64(),
        np.float64: pyarrow.float64(),
    }
    geometry = {
        "encoding": "WKB",
        "geometry_types": [layer.geometry_type],
        "crs": rasterio.crs.CRS.from_user_input(crs).to_dict(projjson=True),
    }
    about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
    schema = pyarrow.schema(
        [*((name, kinds[kind]) for name, kind in layer.fields.items()),
         ("geometry", pyarrow.binary())],
        metadata={"geo": json.dumps(about)},
    )  # fmt: skip
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(images, _BATCH):
            geometries, rows = batch[0]
            columns = [[row[name] for row in rows] for name in layer.fields]
            wkb = shapely.to_wkb(np.array(geometries, object)).tolist()
            arrays = [
                pyarrow.array(values, field.type)
                for values, field in zip([*columns, wkb], schema, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _batches(images: Iterable[Sequence[Features]], least: int) -> Iterator[list[Features]]:
    """Join the features of successive images, by layer, until a layer has at least ``least``."""
    joined: list[tuple[list[Any], list[Any]]] = []
    for features in images:
        joined = joined or [([], []) for _ in features]
        for (geometries, rows), (more, others) in zip(joined, features, strict=True):
            geometries.extend(more)
            rows.extend(others)
        if max(len(rows) for _, rows in joined) >= least:
            yield list(joined)
            joined = []
    if any(rows for _, rows in joined):
        yield list(joined)


def _first_layer(images: Iterable[Sequence[Features]]) -> Features:
    geometries: list[shapely.Geometry] = []
    rows: list[Mapping[str, Any]] = []
    for features in images:
        geometries += features[0][0]
        rows += features[0][1]
    return geometries, rows


def _write(
    path: Path,
    layer: GisLayer,
    features: Features,
    driver: str,
    crs: str,
    *,
    append: bool,
    names: Sequence[str] | None = None,
    layer_options: Mapping[str, str] | None = None,
) -> None:
    from pyogrio.raw import write

    geometries, rows = features
    with warnings.catch_warnings():
        # Some drivers store numbers as text and warn when they drop digits. The values are rounded
        # anyway.
        warnings.simplefilter("ignore", RuntimeWarning)
        write(
            path,
            np.array(shapely.to_wkb(np.array(geometries, object)), object),
            layer.columns(rows),
            list(names or layer.fields),
            layer=layer.name,
            driver=driver,
            geometry_type=layer.geometry_type,
            crs=crs,
            append=append,
            layer_options=layer_options,
        )


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
    """Round degrees to the decimals of GeoJSON and OpenStreetMap files."""
    # Adding zero turns -0.0 into 0.0, which prints without a sign.
    return np.round(lon_lat, DECIMALS) + 0.0
