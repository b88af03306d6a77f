"""Find and open the rasters that users want mapped: files, folders, map tiles, MBTiles and URLs.

Only rasters that :mod:`satmap.data.allowed_rasters` lets through are opened. Redirects are refused,
and only URLs that users typed are read.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioError

from satmap.data.allowed_rasters import (
    is_lossy,
    is_plain_crs,
    is_remote_path,
    refuse_overview_files,
    require_allowed,
    why_unreadable,
)
from satmap.data.random_access import open_copy
from satmap.data.raster_lists import is_raster_list, read_raster_list
from satmap.data.remote import Opener
from satmap.errors import SatmapError
from satmap.io.gdal import DRIVERS, require_possible_size
from satmap.io.text import printable
from satmap.io.walk import walk

_DTYPES = ("uint8", "uint16", "int16", "float32")

# Map tiles: {z}/{x}/{y}.png, or {name-}{x}-{y}-{z}.png in one folder. Sizes in pixels.
_FLAT_TILE = re.compile(r"(?:.*-)?(\d+)-(\d+)-(\d+)")
_TILE_SIZES = (256, 512)
_DEEPEST_ZOOM = 26

#: Reference system of map tiles.
WEB_MERCATOR = "EPSG:3857"
#: Half the width of the world in that system, metres.
HALF_WORLD_M = math.pi * 6378137.0

# Bytes of decoded pixels that GDAL keeps; the default is 5 % of the machine's memory.
_CACHE_BYTES = 64_000_000
# GDAL must not request other files beside a file on a server.
_REMOTE = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_CACHEMAX": _CACHE_BYTES,
}  # fmt: skip
# GDAL looks up files beside a raster by their exact name, as `allowed_rasters` does. In a listing
# of the folder it would ignore case. It may request only addresses named "none", that is, none.
_LOCAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_CACHEMAX": _CACHE_BYTES,
}  # fmt: skip

# Suffixes of the files beside a raster or shapefile that GDAL reads with it; the last ones are also
# added to its whole name.
_SIDECARS = (
    ".tfw", ".jgw", ".pgw", ".wld", ".prj", ".dbf", ".shx", ".cpg", ".aux.xml", ".ovr", ".msk",
)  # fmt: skip
_ADDED_SIDECARS = _SIDECARS[-3:]


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
        is_lossy: whether it, or a raster of a mosaic, is compressed with loss, so that black pixels
            may be dark rather than without data.
        zoom: zoom level of a map tile, or that to read of MBTiles; None otherwise.
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
    is_lossy: bool
    zoom: int | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the raster is read over the network."""
        return is_remote_path(self.path)


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
        names: files, directories (searched to any depth), URLs (``https://``, ``http://``,
            ``s3://``), and lists of rasters (:func:`satmap.data.raster_lists.read_raster_list`).
        crs: reference system of rasters that have a transform but no reference system, such as
            JPEG files with a world file.
        zoom: zoom level of map tiles and MBTiles; None for all levels of map tiles, and the finest
            of MBTiles.

    Raises:
        SatmapError: a name does not exist, ``crs`` is unknown, or there is no readable raster.
    """
    if crs is not None:
        crs = _known_crs(crs)
    sources: list[Source] = []
    faults: dict[str, str] = {}
    for name in dict.fromkeys(map(str, names)):
        for each, root in _expand(name, faults):
            try:
                source = read_source(each, crs=crs, zoom=zoom, root=root)
            except SatmapError as error:
                faults[each] = reason_of(each, error)
                continue
            if source.zoom is None or zoom is None or source.zoom == zoom:
                sources.append(source)
    if not sources:
        more = "".join(f" {printable(each)}: {faults[each]}" for each in [*faults][:1])
        at_zoom = f" at zoom {zoom}" if zoom is not None else ""
        if len(names) == len(faults) == 1 and str(names[0]) in faults:
            raise SatmapError(more.strip())
        raise SatmapError(
            f"none of {', '.join(printable(str(name), 200) for name in names)} is or holds a "
            f"raster that satmap can read{at_zoom} ({', '.join(sorted(DRIVERS))}).{more}"
        )
    return Found(tuple(sources), faults)


def _expand(name: str, faults: dict[str, str]) -> list[tuple[str, Path | None]]:
    """Return the rasters of a name, each with the folder that map tiles are named from.

    ``faults`` gets the entries of lists that name no usable raster.
    """
    if "://" in name:
        return [(name, None)]
    path = Path(name)
    if not path.exists():
        raise SatmapError(f"{printable(name)} does not exist. Check the name.")
    if path.is_file() and is_raster_list(path):
        return [(each, path.parent) for each in read_raster_list(path, faults)]
    if not path.is_dir():
        return [(name, None)]
    return [(str(file), path) for file in walk([path]) if file.suffix.lower() in DRIVERS]


def _known_crs(text: str) -> str:
    """Return the WKT of a reference system that the user named.

    Raises:
        SatmapError: it is not known.
    """
    try:
        # Within an environment GDAL does not report unknown names on stderr.
        with rasterio.Env():
            wkt: str = rasterio.crs.CRS.from_user_input(text).to_wkt()
    except CRSError as error:
        raise SatmapError(
            f"{printable(text, 100)} is not a reference system; give one such as EPSG:32633."
        ) from error
    return wkt


def read_source(
    name: str, *, crs: str | None = None, zoom: int | None = None, root: Path | None = None
) -> Source:
    """Read the header of one raster.

    Args:
        name: a file or a URL.
        crs: as for :func:`find_sources`, as WKT.
        zoom: zoom level of an MBTiles file; None for the finest.
        root: the folder that the user named, if any. Below it, ``z/x/y`` names a map tile.

    Raises:
        SatmapError: the raster is not allowed, cannot be read, or has pixels of a type that satmap
            does not read.
    """
    path, driver, has_lossy_parts = require_allowed(name)
    try:
        with _opened(name, path, driver, zoom) as f:
            # Check this first: GDAL complains only later that it cannot find the file.
            if f.crs and not is_plain_crs(f.crs.to_wkt()):
                raise SatmapError(
                    f"{printable(name)}: its reference system names a file, which satmap does not "
                    "use. Assign a plain one, for example with `rio edit-info --crs EPSG:4326`."
                )
            # The parts of a mosaic are files of their own.
            require_possible_size(f.width, f.height, is_mosaic=driver == "VRT")
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
            # Rasterio takes alpha as the mask for any number of bands, GDAL only for two or four.
            masked = len(bands) < f.count or any(
                flags != [MaskFlags.all_valid] for flags in f.mask_flag_enums
            )
            source = Source(
                name, path, driver, f.width, f.height, bands,
                tuple(found[0] for found in colours) if all(colours) else (),
                f.colorinterp[0] == ColorInterp.palette, masked, f.dtypes[0],
                f.crs.to_wkt() if f.crs else "", f.transform,
                has_lossy_parts or is_lossy(f),
                zoom if driver == "MBTiles" else None,
            )  # fmt: skip
            types = dict.fromkeys(f.dtypes)
    except SatmapError as error:
        raise SatmapError(_about(name, error)) from error
    if not set(types) <= set(_DTYPES):
        raise SatmapError(
            f"{printable(name)}: pixels of type {', '.join(types)}, but satmap reads "
            f"{', '.join(_DTYPES)}. Convert the raster, for example with `gdal_translate -ot "
            "Float32`."
        )
    if len(types) > 1:
        raise SatmapError(
            f"{printable(name)}: its bands have different types ({', '.join(types)}). Convert it "
            "to one of them, for example with `gdal_translate -ot Float32`."
        )
    if not bands:
        raise SatmapError(f"{printable(name)}: it has no bands but transparency.")
    if not source.crs and not source.transform.is_identity and crs:
        source = replace(source, crs=crs)
    if not source.crs and source.transform.is_identity:
        source = _placed_tile(source, root)
    if source.transform.is_degenerate:
        raise SatmapError(
            f"{printable(name)}: its transform maps all pixels onto a line. Assign the right one "
            "with `rio edit-info --transform`."
        )
    return source


@contextlib.contextmanager
def opened(source: Source) -> Iterator[rasterio.DatasetReader]:
    """Open a raster for reading.

    Raises:
        SatmapError: it cannot be opened or read any more.
    """
    with _opened(source.name, source.path, source.driver, source.zoom, copied=True) as file:
        yield file


@contextlib.contextmanager
def _opened(
    name: str, path: str, driver: str, zoom: int | None, *, copied: bool = False
) -> Iterator[rasterio.DatasetReader]:
    """Open a raster by one driver, and name it in all errors of GDAL.

    With ``copied`` it may be a copy of a large file without random access.
    """
    options: dict[str, Any] = (
        {"ZOOM_LEVEL": zoom} if driver == "MBTiles" and zoom is not None else {}
    )
    opener = Opener(path) if "://" in path else None
    if opener:
        options["opener"] = opener
    try:
        with (
            rasterio.Env(**(_REMOTE if is_remote_path(path) else _LOCAL)),
            (copied and open_copy(path, driver))
            or rasterio.open(opener.path if opener else path, driver=driver, **options) as file,
        ):
            refuse_overview_files(file)
            yield file
            if opener and opener.fault:
                # GDAL goes on without a mask that it cannot read.
                raise opener.fault
    except (RasterioError, CRSError, OSError) as error:
        # Rasterio keeps GDAL's own message in the cause.
        reason: object = (opener and opener.fault) or error.__cause__ or error
        raise SatmapError(f"{printable(name)}: {why_unreadable(reason, path)}") from error


def reason_of(name: str, error: object) -> str:
    """Return the message of an error without the raster's name at its beginning."""
    return str(error).removeprefix(f"{printable(name)}: ")


def _about(name: str, error: object) -> str:
    """Return a message that begins with the raster's name."""
    shown = printable(name)
    return str(error) if str(error).startswith(shown) else f"{shown}: {error}"


def state_of(path: Path) -> list[Any]:
    """Return size and time of a file and of the files beside it that GDAL reads with it.

    Raises:
        OSError: the file cannot be read.
    """
    beside = [path.with_suffix(suffix) for suffix in _SIDECARS]
    beside += [path.with_name(path.name + suffix) for suffix in _ADDED_SIDECARS]
    found = [(each, each.stat()) for each in (path, *filter(Path.is_file, beside))]
    return [(str(each.resolve()), stat.st_size, stat.st_mtime_ns) for each, stat in found]


def states_of(source: Source) -> list[Any]:
    """Return the states of a local raster and, if it is virtual, of the rasters that it shows.

    Raises:
        OSError, SatmapError: it cannot be read.
    """
    paths = {Path(source.path)}
    if source.driver == "VRT":
        with opened(source) as file:
            paths.update(map(Path, file.files))
    return [state for path in sorted(paths) for state in state_of(path)]


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
        # A list may name tiles elsewhere.
        if root and not path.is_relative_to(root):
            root = None
        parts = path.relative_to(root).with_suffix("").parts if root else ()
        # The user may have named the folder of one zoom level or one column.
        parts = (*(root.absolute().parts[-2:] if root else ()), *parts)[-3:]
        if len(parts) < 3 or not all(part.isdecimal() for part in parts):
            return source
        zoom, x, y = map(int, parts)
    if zoom > _DEEPEST_ZOOM or x >= 2**zoom or y >= 2**zoom:
        return source
    metres = 2 * HALF_WORLD_M / 2**zoom
    corner = Affine.translation(x * metres - HALF_WORLD_M, HALF_WORLD_M - y * metres)
    transform = corner @ Affine.scale(metres / size, -metres / size)
    crs = rasterio.crs.CRS.from_user_input(WEB_MERCATOR).to_wkt()
    return replace(source, crs=crs, transform=transform, zoom=zoom)
