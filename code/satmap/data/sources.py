"""Find and open the rasters that users want mapped: files, folders, map tiles, MBTiles and URLs.

GDAL would choose among all its drivers by content, run Python code in virtual rasters, and follow
references and redirects to other files and servers. So every raster is opened by one driver of a
short list, a virtual raster may only be a plain mosaic of rasters under its own folder, and
redirects are refused. Only URLs that users typed are read.
"""

import contextlib
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rasterio
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioError

from satmap.data.remote import Opener, cannot_read
from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.io.gdal import DRIVERS, require_possible_size
from satmap.io.geojson_reader import CRS_NAME
from satmap.io.text import printable
from satmap.io.walk import walk

# First bytes of image files; map servers save tiles of one format under the suffix of another.
_SIGNATURES = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP", b"II*\0": "GTiff",
    b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
}  # fmt: skip
_DTYPES = ("uint8", "uint16", "int16", "float32")
# Drivers, and compressions inside other formats, that do not keep pixels as they were.
_LOSSY = ("JPEG", "WEBP", "MBTiles")
_LOSSY_COMPRESSIONS = ("JPEG", "YCbCr JPEG", "WEBP")
_SCHEMES = ("https", "http", "s3")

# Lower-case names of the elements and attributes that gdalbuildvrt and `gdal_translate -of VRT`
# write for mosaics. None of them makes GDAL run code, read a file or contact a server, except the
# references and reference systems, whose texts are checked. Elements and attributes have own lists,
# because GDAL takes either for the other. https://gdal.org/drivers/raster/vrt.html
_VRT_REFERENCE = "sourcefilename"
_VRT_ELEMENTS = {
    "vrtdataset", "srs", "geotransform", "gcplist", "gcp", "metadata", "mdi", "overviewlist",
    "blockxsize", "blockysize", "maskband", "vrtrasterband", "description", "nodatavalue",
    "hidenodatavalue", "unittype", "offset", "scale", "colorinterp", "colortable", "entry",
    "categorynames", "category", "histograms", "histitem", "histmin", "histmax", "bucketcount",
    "includeoutofrange", "approximate", "histcounts", "simplesource", "complexsource",
    "averagedsource", "nodatafrommasksource", "sourcefilename", "sourceband",
    "sourceproperties", "srcrect", "dstrect", "nodata", "scaleoffset", "scaleratio", "lut",
    "colortablecomponent", "exponent", "srcmin", "srcmax", "dstmin", "dstmax", "clamp",
    "usemaskband", "maskvaluethreshold", "remappedvalue",
}  # fmt: skip
_VRT_ATTRIBUTES = {
    "rasterxsize", "rasterysize", "dataaxistosrsaxismapping", "coordinateepoch", "projection",
    "id", "info", "pixel", "line", "x", "y", "z", "domain", "key", "resampling", "datatype",
    "band", "blockxsize", "blockysize", "c1", "c2", "c3", "c4", "relativetovrt", "shared",
    "xoff", "yoff", "xsize", "ysize",
}  # fmt: skip
# Others may name files that GDAL opens, as OVERVIEWS does.
_VRT_DOMAINS = ("", "image_structure", "rpc")
_LONGEST_VRT = 50_000_000

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
# GDAL looks up files beside a raster by their exact name, as `_refuse_sidecars` does. In a listing
# of the folder it would ignore case. It may request only addresses named "none", that is, none.
_LOCAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_CACHEMAX": _CACHE_BYTES,
}  # fmt: skip
_OPENED_SIDECARS = (".ovr", ".OVR", ".msk", ".MSK")


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
        return _is_remote(self.path)


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
        SatmapError: a name does not exist, ``crs`` is unknown, or there is no readable raster.
    """
    if crs is not None:
        crs = _known_crs(crs)
    sources, faults = [], {}
    for name in dict.fromkeys(map(str, names)):
        for each, root in _expand(name):
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


def _expand(name: str) -> list[tuple[str, Path | None]]:
    """Return the rasters of a name, each with the folder that map tiles are named from."""
    if "://" in name:
        return [(name, None)]
    path = Path(name)
    if not path.exists():
        raise SatmapError(f"{printable(name)} does not exist. Check the name.")
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
    path, driver, has_lossy_parts = _allowed(name)
    try:
        with _opened(name, path, driver, zoom) as f:
            # Check this first: GDAL complains only later that it cannot find the file.
            if f.crs and not _is_crs(f.crs.to_wkt()):
                raise SatmapError(
                    f"{printable(name)}: its reference system names a file, which satmap does not "
                    "use. Assign a plain one, for example with `rio edit-info --crs EPSG:4326`."
                )
            require_possible_size(f.width, f.height)
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
                has_lossy_parts or _is_lossy(f),
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
    with _opened(source.name, source.path, source.driver, source.zoom) as file:
        yield file


@contextlib.contextmanager
def _opened(
    name: str, path: str, driver: str, zoom: int | None
) -> Iterator[rasterio.DatasetReader]:
    """Open a raster by one driver, and name it in all errors of GDAL."""
    options: dict[str, Any] = (
        {"ZOOM_LEVEL": zoom} if driver == "MBTiles" and zoom is not None else {}
    )
    opener = Opener(path) if "://" in path else None
    if opener:
        options["opener"] = opener
    try:
        with (
            rasterio.Env(**(_REMOTE if _is_remote(path) else _LOCAL)),
            rasterio.open(opener.path if opener else path, driver=driver, **options) as file,
        ):
            _refuse_overview_files(file)
            yield file
            if opener and opener.fault:
                # GDAL goes on without a mask that it cannot read.
                raise opener.fault
    except (RasterioError, CRSError, OSError) as error:
        # Rasterio keeps GDAL's own message in the cause.
        reason: object = (opener and opener.fault) or error.__cause__ or error
        raise SatmapError(f"{printable(name)}: {_reason(reason, path)}") from error


def _allowed(name: str) -> tuple[str, str, bool]:
    """Return GDAL's path and driver of a raster, and whether it is a mosaic with lossy parts.

    Files over HTTP keep their address as path.

    Raises:
        SatmapError: the suffix, the scheme or the content is not allowed.
    """
    scheme, separator, rest = name.partition("://")
    if separator:
        if scheme.lower() not in _SCHEMES:
            raise SatmapError(
                f"{printable(name)}: satmap reads https://, http:// and s3:// addresses."
            )
        # GDAL never sees the address: our own reader requests it.
        return f"{scheme.lower()}://{rest}", "GTiff", False
    path = Path(name)
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise SatmapError(
            f"{printable(name)}: satmap reads {', '.join(sorted(DRIVERS))}. Convert the raster, "
            "for example with `gdal_translate`."
        )
    refuse_pipe(path)
    has_lossy_parts = False
    if driver == "VRT":
        # GDAL takes references as relative to the file that a link names.
        path = path.resolve()
        has_lossy_parts = _check_vrt(path)
    else:
        driver = _driver_by_content(path) or driver
    # After links are resolved: files beside the opened one count.
    _refuse_sidecars(path)
    # An absolute path cannot be taken for one of GDAL's own prefixes.
    return str(path.absolute()), driver, has_lossy_parts


def _refuse_sidecars(path: Path) -> None:
    """Refuse overviews and masks beside a raster that are not GeoTIFF, as GDAL writes them.

    GDAL opens them by content. A virtual raster there could read any file.

    Raises:
        SatmapError: there is one.
    """
    for suffix in _OPENED_SIDECARS:
        beside = path.with_name(path.name + suffix)
        if not beside.is_file():
            continue
        if _driver_by_content(beside) != "GTiff":
            raise SatmapError(
                f"{printable(path)}: {printable(beside)} beside it is not a GeoTIFF. Remove it, or "
                "make it again with `gdaladdo -ro`."
            )
        # GDAL looks for masks of overviews and overviews of masks, too.
        _refuse_sidecars(beside)


def _refuse_overview_files(file: rasterio.DatasetReader) -> None:
    """Refuse metadata, also in an ``.aux.xml`` file, that makes GDAL open any file or address.

    Raises:
        OSError: there is some.
    """
    for name, value in file.tags(ns="OVERVIEWS").items():
        raise OSError(f"its metadata {name} names another file, {value}; remove it")


def _is_lossy(file: rasterio.DatasetReader) -> bool:
    compression = file.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION")
    return file.driver in _LOSSY or compression in _LOSSY_COMPRESSIONS


def _is_remote(path: str) -> bool:
    return "://" in path


def _driver_by_content(path: Path) -> str | None:
    """Return the driver that the first bytes of a file name, None if they name none of the list."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        # Opening it as a raster reports the error.
        return None
    return next((d for signature, d in _SIGNATURES.items() if start.startswith(signature)), None)


def _check_vrt(path: Path) -> bool:
    """Check that a virtual raster only refers to rasters in its own folder.

    Returns whether any of these rasters is compressed with loss.

    GDAL's parser differs from Python's: it ignores case, and takes attributes for elements. So
    only known elements and attributes are allowed.

    Raises:
        SatmapError: it refers to anything else, or holds an element that is not allowed.
    """
    shown = printable(path)
    try:
        if path.stat().st_size > _LONGEST_VRT:
            raise SatmapError(f"{shown} is larger than {_LONGEST_VRT:,} bytes. Split it.")
        text = path.read_text(encoding="utf-8")
        # Before parsing: declarations can define entities of any length.
        declared = re.search(r"<!\w*|<\?(?!xml\s)\w*|\bxmlns\b", text)
        tree = ET.fromstring("<x/>" if declared else text)
    except (OSError, ValueError, ET.ParseError) as error:
        raise SatmapError(f"{shown} is not a virtual raster: {printable(error, 200)}.") from error
    refused = declared[0] if declared else next(filter(None, map(_refused_part, tree.iter())), None)
    if refused:
        raise SatmapError(
            f"{shown} holds {printable(refused, 100)}, which satmap does not allow, because only "
            "plain mosaics such as gdalbuildvrt writes cannot run code or read other files. If you "
            "trust it, convert it first: gdal_translate IN.vrt OUT.tif."
        )
    references = [each for each in tree.iter() if each.tag.lower() == _VRT_REFERENCE]
    are_lossy = [_check_reference(path, each) for each in references]
    return any(are_lossy)


def _refused_part(element: ET.Element) -> str | None:
    """Return the part of an element of a virtual raster that is not allowed, None if all is."""
    tag = element.tag.lower()
    if tag not in _VRT_ELEMENTS:
        return f"<{element.tag}>"
    for name, value in element.attrib.items():
        if (
            name.lower() not in _VRT_ATTRIBUTES
            or (name.lower() == "domain" and value.lower() not in _VRT_DOMAINS)
            or (name.lower() == "projection" and not _is_crs(value))
        ):
            return f'<{element.tag} {name}="{value}">'
    if tag == "srs" and (len(element) or not _is_crs(element.text or "")):
        return f"<{element.tag}>{element.text or ''}"
    return None


def _is_crs(text: str) -> bool:
    """Return whether a text is WKT, a name or a PROJ string that names no files."""
    return not text.strip() or bool(CRS_NAME.fullmatch(text.strip()))


def _check_reference(path: Path, element: ET.Element) -> bool:
    """Check one reference of a virtual raster; returns and raises as :func:`_check_vrt`."""
    folder, named = path.parent, element.text or ""
    relative = {name.lower(): value for name, value in element.attrib.items()}
    place = folder if relative.get("relativetovrt", "0").strip() == "1" else Path.cwd()
    try:
        target = (place / named).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise SatmapError(f"{path} refers to {printable(named, 200)}: {error}.") from error
    driver = DRIVERS.get(target.suffix.lower(), "VRT")
    if driver != "VRT":
        driver = _driver_by_content(target) or driver
    # GDAL drops spaces around it, and takes colons for its other names, such as GTIFF_DIR:2:a.tif.
    is_plain = not len(element) and named == named.strip() and target.is_relative_to(folder)
    if (
        not is_plain
        or re.search('[:<>|?*"]', str(target.relative_to(folder)))
        or driver in ("VRT", "MBTiles")
    ):
        raise SatmapError(
            f"{printable(path)} refers to {printable(named, 200)}. A virtual raster may only refer "
            f"to rasters under its own folder, with a suffix of {', '.join(sorted(DRIVERS))} "
            "except .vrt and .mbtiles."
        )
    _refuse_sidecars(target)
    # GDAL opens it by content, so make sure that the content is what the suffix says.
    try:
        with rasterio.open(target, driver=driver) as file:
            _refuse_overview_files(file)
            return _is_lossy(file)
    except (RasterioError, OSError) as error:
        raise SatmapError(
            f"{printable(path)} refers to {printable(named, 200)}: "
            f"{_reason(error.__cause__ or error, str(target))}"
        ) from error


def _reason(error: object, path: str) -> str:
    if _is_remote(path):
        return cannot_read(error)
    text = printable(str(error).strip().rstrip("."), 300)
    return f"not a readable raster ({text}). Check that the file is complete."


def reason_of(name: str, error: object) -> str:
    """Return the message of an error without the raster's name at its beginning."""
    return str(error).removeprefix(f"{printable(name)}: ")


def _about(name: str, error: object) -> str:
    """Return a message that begins with the raster's name."""
    shown = printable(name)
    return str(error) if str(error).startswith(shown) else f"{shown}: {error}"


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
    metres = 2 * HALF_WORLD_M / 2**zoom
    corner = Affine.translation(x * metres - HALF_WORLD_M, HALF_WORLD_M - y * metres)
    transform = corner @ Affine.scale(metres / size, -metres / size)
    crs = rasterio.crs.CRS.from_user_input(WEB_MERCATOR).to_wkt()
    return replace(source, crs=crs, transform=transform, zoom=zoom)
