"""Which rasters GDAL may open, and by which driver.

GDAL would choose among all its drivers by content, run Python code in virtual rasters, and follow
references to other files and servers. So every raster is opened by one driver of a short list, and
a virtual raster may only be a plain mosaic of rasters under its own folder.
"""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import rasterio
from rasterio.errors import RasterioError

from satmap.data.remote import cannot_read
from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.io.gdal import DRIVERS
from satmap.io.geojson_reader import CRS_NAME
from satmap.io.text import printable

# First bytes of image files; map servers save tiles of one format under the suffix of another.
_SIGNATURES = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP", b"II*\0": "GTiff",
    b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
}  # fmt: skip
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
_OPENED_SIDECARS = (".ovr", ".OVR", ".msk", ".MSK")


def require_allowed(name: str) -> tuple[str, str, bool]:
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


def refuse_overview_files(file: rasterio.DatasetReader) -> None:
    """Refuse metadata, also in an ``.aux.xml`` file, that makes GDAL open any file or address.

    Raises:
        OSError: there is some.
    """
    for name, value in file.tags(ns="OVERVIEWS").items():
        raise OSError(f"its metadata {name} names another file, {value}; remove it")


def is_lossy(file: rasterio.DatasetReader) -> bool:
    """Return whether a raster is compressed with loss."""
    compression = file.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION")
    return file.driver in _LOSSY or compression in _LOSSY_COMPRESSIONS


def is_remote_path(path: str) -> bool:
    """Return whether a raster is read over the network."""
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
            or (name.lower() == "projection" and not is_plain_crs(value))
        ):
            return f'<{element.tag} {name}="{value}">'
    if tag == "srs" and (len(element) or not is_plain_crs(element.text or "")):
        return f"<{element.tag}>{element.text or ''}"
    return None


def is_plain_crs(text: str) -> bool:
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
            refuse_overview_files(file)
            return is_lossy(file)
    except (RasterioError, OSError) as error:
        raise SatmapError(
            f"{printable(path)} refers to {printable(named, 200)}: "
            f"{why_unreadable(error.__cause__ or error, str(target))}"
        ) from error


def why_unreadable(error: object, path: str) -> str:
    """Return the message for an error of GDAL on a raster."""
    if is_remote_path(path):
        return cannot_read(error)
    text = printable(str(error).strip().rstrip("."), 300)
    return f"not a readable raster ({text}). Check that the file is complete."
