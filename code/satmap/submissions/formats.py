"""Detection of the format of a truth or submission."""

from enum import StrEnum
from pathlib import Path

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.submissions.mask_rasters import MASK_SUFFIXES, is_mask_archive
from satmap.submissions.vector_maps import GEOJSON_SUFFIXES, MAP_SUFFIXES

# Number of bytes at the start of a file that are inspected.
_HEAD_BYTES = 1 << 16


class Format(StrEnum):
    """Formats of truths and submissions; the value is the name in messages."""

    ROADS_CSV = "a roads CSV"
    BUILDINGS_CSV = "a buildings CSV"
    VECTORS = "a vector file or a directory of GeoJSON"
    COCO_ANNOTATIONS = "COCO annotations"
    COCO_RESULTS = "a list of COCO results"
    MASKS = "a directory or archive of mask rasters"


def detect(path: Path) -> Format:
    """Detect the format of a file or directory by its columns, first bytes or suffixes.

    Raises:
        SatmapError: the path cannot be read or has no known format.
    """
    if path.is_dir():
        return _detect_directory(path)
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise SatmapError(f"{path} is empty.")
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SatmapError(f"{path} is UTF-16 text; save it as UTF-8.")
    if is_mask_archive(path):
        return Format.MASKS
    if path.suffix.lower() in set(MAP_SUFFIXES) - set(GEOJSON_SUFFIXES):
        return Format.VECTORS
    if text.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")):
        raise SatmapError(
            f"{path} is compressed and no archive of mask rasters (.zip, .tgz); unpack it first."
        )
    if text.startswith((b"II*\0", b"MM\0*", b"\x89PNG")):
        raise SatmapError(
            f"{path} is a single raster. Give masks together, as a directory or an archive, and "
            "imagery with --images."
        )
    if text.startswith(b"["):
        return Format.COCO_RESULTS
    if text.startswith(b"{"):
        is_geojson = b'"FeatureCollection"' in text or b'"features"' in text
        return Format.VECTORS if is_geojson else Format.COCO_ANNOTATIONS
    columns = text.split(b"\n", 1)[0].decode(errors="replace").lower().replace('"', "").split(",")
    names = {name.strip() for name in columns}
    if "wkt_pix" in names:
        return Format.ROADS_CSV
    if "polygonwkt_pix" in names:
        return Format.BUILDINGS_CSV
    raise SatmapError(
        f"{path} is in no known format: a roads CSV has a column WKT_Pix in its first line, a "
        "buildings CSV has PolygonWKT_Pix, and GeoJSON and COCO files start with a bracket. Vector "
        f"files end in {', '.join(MAP_SUFFIXES)}."
    )


def _detect_directory(path: Path) -> Format:
    suffixes = {file.suffix.lower() for file in path.rglob("*") if not file.name.startswith(".")}
    rasters = suffixes & set(MASK_SUFFIXES)
    vectors = suffixes & set(GEOJSON_SUFFIXES)
    if rasters and not vectors:
        return Format.MASKS
    if vectors and not rasters:
        return Format.VECTORS
    if rasters:
        raise SatmapError(f"{path} holds both GeoJSON and rasters; give the directory of one kind.")
    raise SatmapError(f"{path} holds neither GeoJSON files nor mask rasters (.tif).")
