"""Find and open the rasters that users want mapped: files, folders, map tiles, MBTiles and URLs.

GDAL would choose among all its drivers by content, run Python code in virtual rasters, and follow
references to other files and servers. So every raster is opened by one driver of a short list, and
a virtual raster may only refer to rasters in its own folder. Only URLs that users typed are read.
"""

import contextlib
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioError

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.io.text import printable

#: GDAL's driver by lower-case suffix.
DRIVERS = {
    ".tif": "GTiff", ".tiff": "GTiff", ".vrt": "VRT", ".jpg": "JPEG", ".jpeg": "JPEG",
    ".png": "PNG", ".webp": "WEBP", ".jp2": "JP2OpenJPEG", ".j2k": "JP2OpenJPEG",
    ".mbtiles": "MBTiles",
}  # fmt: skip

# First bytes of image files; map servers save tiles of one format under the suffix of another.
_SIGNATURES = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP", b"II*\0": "GTiff",
    b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
}  # fmt: skip
_DTYPES = ("uint8", "uint16", "int16", "float32")
_LOSSY = ("JPEG", "WEBP", "MBTiles")
_SCHEMES = {"https": "/vsicurl/", "http": "/vsicurl/", "s3": "/vsis3/"}

# Elements and subclasses of virtual rasters that run code or read raw bytes of any file.
_REFUSED_IN_VRT = re.compile(
    r"PixelFunction|VRTDerivedRasterBand|VRTRawRasterBand|VRTPansharpened|VRTProcessed|OpenOptions",
    re.IGNORECASE,
)
_REFERENCES_IN_VRT = ("SourceFilename", "SourceDataset")
_LONGEST_VRT = 50_000_000

# Map tiles: {z}/{x}/{y}.png, or {name-}{x}-{y}-{z}.png in one folder. Sizes in pixels.
_FLAT_TILE = re.compile(r"(?:.*-)?(\d+)-(\d+)-(\d+)")
_TILE_SIZES = (256, 512)
_DEEPEST_ZOOM = 26
_WEB_MERCATOR = "EPSG:3857"
# Half the width of the world in web mercator, metres.
_HALF_WORLD_M = math.pi * 6378137.0

# Requests only what the user named: no directory listings, no sidecar files, no credentials of
# other machines, and an end to servers that hang.
_REMOTE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_CONNECTTIMEOUT": "20", "GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "1",
    "AWS_EC2_METADATA_DISABLED": "YES",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Header of a raster.

    Attributes:
        name: the user's name of it, for messages: a path or a URL.
        path: name for GDAL.
        driver: the only driver of GDAL that may open it.
        width: columns.
        height: rows.
        bands: numbers of its spectral bands, from 1, in the order of the file.
        colours: of these the bands that are red, green and blue; empty if the file does not say.
        palette: whether its only band holds indices of colours.
        has_mask: whether an alpha band, a mask or a nodata value says where it has data.
        dtype: type of its pixels.
        crs: its reference system as WKT, "" without one.
        transform: pixel to coordinates of ``crs``; the identity without georeference.
        zoom: zoom level, for map tiles; None otherwise.
    """

    name: str
    path: str
    driver: str
    width: int
    height: int
    bands: tuple[int, ...]
    colours: tuple[int, ...]
    palette: bool
    has_mask: bool
    dtype: str
    crs: str
    transform: Affine
    zoom: int | None = None

    @property
    def is_lossy(self) -> bool:
        """Whether black pixels may be dark rather than without data."""
        return self.driver in _LOSSY

    @property
    def is_remote(self) -> bool:
        """Whether the raster is read over the network."""
        return self.path.startswith(tuple(_SCHEMES.values()))


@dataclass(frozen=True)
class Found:
    """Rasters that can be read, and reasons why others cannot, by name."""

    sources: tuple[Source, ...]
    faults: dict[str, str]


def find_sources(
    names: Sequence[str | Path], *, crs: str | None = None, zoom: int | None = None
) -> Found:
    """Open the headers of all rasters.

    Args:
        names: files, directories (searched to any depth) and URLs (``https://``, ``http://``,
            ``s3://``).
        crs: reference system of rasters that have a transform but no reference system, such as
            JPEG files with a world file.
        zoom: zoom level of map tiles and MBTiles; None for all levels of map tiles, and the finest
            of MBTiles.

    Raises:
        SatmapError: a name does not exist, or there is no readable raster.
    """
    sources, faults = [], {}
    for name in dict.fromkeys(map(str, names)):
        for each, root in _expand(name):
            try:
                source = read_source(each, crs=crs, zoom=zoom, root=root)
            except SatmapError as error:
                faults[each] = str(error)
                continue
            if source.zoom is None or zoom is None or source.zoom == zoom:
                sources.append(source)
    if not sources:
        reason = next(iter(faults.values()), "")
        more = f" The first reason: {reason}" if reason else ""
        at_zoom = f" at zoom {zoom}" if zoom is not None else ""
        raise SatmapError(
            f"none of {', '.join(printable(str(name), 200) for name in names)} is or holds a "
            f"raster that satmap can read{at_zoom} ({', '.join(sorted(DRIVERS))}).{more}"
        )
    return Found(tuple(sources), faults)


def _expand(name: str) -> list[tuple[str, Path | None]]:
    """Return the rasters of a name, each with the folder that map tiles are named from."""
    if "://" in name:
        return [(name, None)]
    path = Path(name)
    if not path.exists():
        raise SatmapError(f"{printable(name)} does not exist. Check the name.")
    if not path.is_dir():
        return [(name, None)]
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in DRIVERS)
    return [(str(file), path) for file in files if file.is_file()]


def read_source(
    name: str, *, crs: str | None = None, zoom: int | None = None, root: Path | None = None
) -> Source:
    """Read the header of one raster.

    Args:
        name: a file or a URL.
        crs: as for :func:`find_sources`.
        zoom: zoom level of an MBTiles file; None for the finest.
        root: the folder that the user named, if any. Below it, ``z/x/y`` names a map tile.

    Raises:
        SatmapError: the raster is not allowed, cannot be read, or has pixels of a type that satmap
            does not read.
    """
    path, driver = _allowed(name)
    try:
        with _environment(path), rasterio.open(path, driver=driver, **_options(driver, zoom)) as f:
            colours = [
                [index for index, colour in zip(f.indexes, f.colorinterp, strict=True)
                 if colour == wanted]
                for wanted in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
            ]  # fmt: skip
            bands = tuple(
                index
                for index, colour in zip(f.indexes, f.colorinterp, strict=True)
                if colour != ColorInterp.alpha
            )
            masked = any(flags != [MaskFlags.all_valid] for flags in f.mask_flag_enums)
            source = Source(
                name, path, driver, f.width, f.height, bands,
                tuple(found[0] for found in colours) if all(colours) else (),
                f.colorinterp[0] == ColorInterp.palette, masked, f.dtypes[0],
                f.crs.to_wkt() if f.crs else "", f.transform,
            )  # fmt: skip
            same_type = len(set(f.dtypes)) == 1
    except (RasterioError, CRSError, OSError) as error:
        raise SatmapError(f"{printable(name)}: {_reason(error, path)}") from error
    if source.dtype not in _DTYPES or not same_type:
        raise SatmapError(
            f"{printable(name)}: pixels of type {source.dtype}, but satmap reads "
            f"{', '.join(_DTYPES)}. Convert the raster, for example with `gdal_translate -ot "
            "Float32`."
        )
    if not source.crs and not source.transform.is_identity and crs:
        source = replace(source, crs=rasterio.crs.CRS.from_user_input(crs).to_wkt())
    if not source.crs and source.transform.is_identity:
        source = _placed_tile(source, root)
    if source.transform.is_degenerate:
        raise SatmapError(
            f"{printable(name)}: its transform maps all pixels onto a line. Assign the right one "
            "with `rio edit-info --transform`."
        )
    return source


@contextlib.contextmanager
def opened(source: Source, zoom: int | None = None) -> Iterator[rasterio.DatasetReader]:
    """Open a raster for reading.

    Raises:
        SatmapError: it cannot be opened or read any more.
    """
    options = _options(source.driver, zoom)
    try:
        with (
            _environment(source.path),
            rasterio.open(source.path, driver=source.driver, **options) as file,
        ):
            yield file
    except (RasterioError, OSError) as error:
        raise SatmapError(f"{printable(source.name)}: {_reason(error, source.path)}") from error


def _allowed(name: str) -> tuple[str, str]:
    """Return GDAL's path and driver of a raster.

    Raises:
        SatmapError: the suffix, the scheme or the content is not allowed.
    """
    scheme, separator, rest = name.partition("://")
    if separator:
        prefix = _SCHEMES.get(scheme.lower())
        if prefix is None:
            raise SatmapError(
                f"{printable(name)}: satmap reads https://, http:// and s3:// addresses."
            )
        return prefix + (rest if prefix == "/vsis3/" else name), "GTiff"
    path = Path(name)
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise SatmapError(
            f"{printable(name)}: satmap reads {', '.join(sorted(DRIVERS))}. Convert the raster, "
            "for example with `gdal_translate`."
        )
    refuse_pipe(path)
    if driver == "VRT":
        _require_harmless_vrt(path)
    else:
        driver = _driver_by_content(path) or driver
    # An absolute path cannot be taken for one of GDAL's own prefixes.
    return str(path.absolute()), driver


def _driver_by_content(path: Path) -> str | None:
    """Return the driver that the first bytes of a file name, None if they name none of the list."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        # Opening it as a raster reports the error.
        return None
    return next((d for signature, d in _SIGNATURES.items() if start.startswith(signature)), None)


def _require_harmless_vrt(path: Path) -> None:
    """Check that a virtual raster only refers to rasters in its own folder.

    Raises:
        SatmapError: it refers to anything else or runs code.
    """
    folder = path.absolute().parent.resolve()
    try:
        if path.stat().st_size > _LONGEST_VRT:
            raise SatmapError(f"{path} is larger than {_LONGEST_VRT} bytes. Split it.")
        text = path.read_text(encoding="utf-8")
        tree = ET.fromstring(text)
    except (OSError, ValueError, ET.ParseError) as error:
        raise SatmapError(f"{path} is not a virtual raster: {printable(error, 200)}.") from error
    if refused := _REFUSED_IN_VRT.search(text) or re.search("<!(DOCTYPE|ENTITY)", text):
        raise SatmapError(
            f"{path} holds {printable(refused[0], 40)}, which satmap does not allow because it can "
            "run code or read other files. Convert it first: gdal_translate IN.vrt OUT.tif."
        )
    for element in tree.iter():
        if element.tag not in _REFERENCES_IN_VRT:
            continue
        named = Path(element.text or "")
        target = (folder / named).resolve()
        driver = DRIVERS.get(target.suffix.lower(), "VRT")
        if driver != "VRT":
            driver = _driver_by_content(target) or driver
        if not target.is_relative_to(folder) or driver == "VRT":
            raise SatmapError(
                f"{path} refers to {printable(named, 200)}. A virtual raster may only refer to "
                f"rasters under its own folder, with a suffix of {', '.join(sorted(DRIVERS))} "
                "except .vrt."
            )
        # GDAL opens it by content, so make sure that the content is what the suffix says.
        try:
            with rasterio.open(target, driver=driver):
                pass
        except (RasterioError, OSError) as error:
            raise SatmapError(
                f"{path} refers to {printable(named, 200)}: {_reason(error, str(target))}"
            ) from error


def _options(driver: str, zoom: int | None) -> dict[str, int]:
    return {"ZOOM_LEVEL": zoom} if driver == "MBTiles" and zoom is not None else {}


def _environment(path: str) -> rasterio.Env:
    return rasterio.Env(**(_REMOTE if path.startswith(tuple(_SCHEMES.values())) else {}))


def _reason(error: Exception, path: str) -> str:
    # Rasterio keeps GDAL's own message in the cause.
    text = printable(str(error.__cause__ or error).strip().rstrip("."), 300)
    if path.startswith(tuple(_SCHEMES.values())):
        return f"cannot be read ({text}). Check the address, its permissions and the network."
    return f"not a readable raster ({text}). Check that the file is complete."


def _placed_tile(source: Source, root: Path | None) -> Source:
    """Return a map tile with the georeference that its name gives; others unchanged."""
    size = source.width
    if source.height != size or size not in _TILE_SIZES or "://" in source.name:
        return source
    path = Path(source.name)
    match = _FLAT_TILE.fullmatch(path.stem)
    if match:
        x, y, zoom = map(int, match.groups())
    else:
        parts = path.relative_to(root).with_suffix("").parts if root else ()
        # The user may have named the folder of one zoom level or one column.
        parts = (*(root.absolute().parts[-2:] if root else ()), *parts)[-3:]
        if len(parts) < 3 or not all(part.isdecimal() for part in parts):
            return source
        zoom, x, y = map(int, parts)
    if zoom > _DEEPEST_ZOOM or x >= 2**zoom or y >= 2**zoom:
        return source
    metres = 2 * _HALF_WORLD_M / 2**zoom
    corner = Affine.translation(x * metres - _HALF_WORLD_M, _HALF_WORLD_M - y * metres)
    transform = corner @ Affine.scale(metres / size, -metres / size)
    crs = rasterio.crs.CRS.from_user_input(_WEB_MERCATOR).to_wkt()
    return replace(source, crs=crs, transform=transform, zoom=zoom)
