"""SpaceNet buildings CSV: one row per building, in pixels of the image, with a confidence.

    ImageId,BuildingId,PolygonWKT_Pix,Confidence
    AOI_2_Vegas_img2,1,"POLYGON ((10.00 20.00,30.00 45.00,30.00 20.00,10.00 20.00))",0.93
    AOI_2_Vegas_img10,-1,POLYGON EMPTY,1

Truth files have ``PolygonWKT_Geo`` in place of the confidence; SpaceNet 4's also have ``Occluded``.
The organisers have two scorers. The one of the challenges, in Java, splits the text at fixed marks:
only ``),(`` separates two rings and only a single blank separates x and y. Anything else spoils the
polygon or the whole file. The later one, in Python, reads any WKT but requires closed rings. Both
drop polygons under 20 square pixels, and both mishandle self-crossing polygons: the Java scorer
subtracts loops of opposite orientation from the area, and the zero-width buffer of the Python
scorer loses them.

The writer therefore cleans its input and never writes such a row. The reader accepts the variants
in circulation. The validator reports every row that either scorer would reject, drop or misread.
"""

import math
import re
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.submissions.csv_table import CsvRow, CsvTable, parse_number, parse_vertices, shown
from satmap.submissions.fault import Fault, in_file_order, repetitions

#: The scorers drop smaller polygons from the truth and the submission, square pixels.
SMALLEST_PX2 = 20.0

_NO_BUILDINGS = "POLYGON EMPTY"
_NO_BUILDINGS_ID = "-1"

_POLYGONAL_TYPES = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
_POLYGONAL = re.compile(r"\s*(?:MULTI)?POLYGON", re.IGNORECASE)

# Far larger than any image, and small enough that doubles keep hundredths.
_LARGEST_PIXEL = 1e7

# Limits of a batch: many rows for speed, few characters to bound memory.
_BATCH_ROWS = 10_000
_BATCH_CHARACTERS = 1 << 22

# WKT that the Java scorer understands. It ignores everything after the second number of a vertex.
_VERTEX = r" *[-+.\dE]+ [-+.\dE]+(?: [^,()]*)?"
_RING = rf"\({_VERTEX}(?:,{_VERTEX})*\)"
_PLAIN_POLYGON = re.compile(
    rf"POLYGON *(?:Z|M|ZM)? *\({_RING}(?:,{_RING})*\)", re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True, eq=False)
class BuildingRow:
    """One building of one image.

    Attributes:
        polygon: x = column and y = row in pixels; a multi-polygon is one building. It may be
            invalid if it was read from a file.
        score: what the scorers rank by, higher is more certain; 1 if the file does not give it. It
            is the CSV's column Confidence.
        building_id: id in the file; the writer assigns new ids.
        confidence: probability that the building is right, 0..1, which a CSV does not hold; NaN if
            it is not calibrated.
    """

    polygon: shapely.Polygon | shapely.MultiPolygon
    score: float = 1.0
    building_id: str = ""
    confidence: float = math.nan


def canonical_id(image_id: str) -> str:
    """Remove the product name that SpaceNet 4's truth puts before the image id."""
    return image_id.removeprefix("Pan-Sharpen_")


_TABLE = CsvTable(
    header=("ImageId", "BuildingId", "PolygonWKT_Pix", "Confidence"),
    wkt=2,
    nothing=f"{_NO_BUILDINGS_ID},{_NO_BUILDINGS},1",
    empty=re.compile(r"POLYGON\s+EMPTY", re.IGNORECASE),
    empty_name=_NO_BUILDINGS,
    canonical=canonical_id,
)


# --- writing --------------------------------------------------------------------------------------


def write_buildings_csv(path: Path, rows_by_image: Mapping[str, Sequence[BuildingRow]]) -> None:
    """Write buildings atomically; the text does not depend on the order of the buildings.

    Coordinates have two decimals. Polygons that are invalid, or become so by rounding, are
    repaired. The parts of a multi-polygon become separate rows with the building's confidence.
    Polygons under 20 square pixels, which the scorers drop, are left out. Rows are sorted by
    descending confidence, then by text, and numbered from 1. Confidences are written with full
    precision. Images without a building get a ``POLYGON EMPTY`` row.

    Raises:
        SatmapError: ``path`` cannot be written.
        ValueError: a confidence or coordinate is not finite, a coordinate is absurdly large, a
            shape is not a polygon, or an image id is empty or would break the table.
    """
    _TABLE.write(path, rows_by_image, _lines)


def _lines(image_id: str, rows: Sequence[BuildingRow]) -> list[str]:
    """Return the lines of the polygons that the scorers keep."""
    # Adding zero turns -0.0 into 0.0, which prints without a sign.
    confidences = [float(row.score) + 0.0 for row in rows]
    if not np.isfinite(confidences).all():
        raise ValueError(f"{image_id}: a confidence is not finite")
    whole = np.array([row.polygon for row in rows], np.object_)
    if not np.isin(shapely.get_type_id(whole), _POLYGONAL_TYPES).all():
        raise ValueError(f"{image_id}: a building is not a Polygon or MultiPolygon")
    if not (np.abs(shapely.get_coordinates(whole)) <= _LARGEST_PIXEL).all():
        raise ValueError(f"{image_id}: a coordinate is not finite or beyond {_LARGEST_PIXEL:g} px")
    polygons, owners = _valid_parts(shapely.force_2d(whole))
    # Normalize, so that equal shapes have equal text and the sort is deterministic.
    polygons = shapely.normalize(shapely.remove_repeated_points(polygons))
    kept = shapely.is_valid(polygons) & (shapely.area(polygons) >= SMALLEST_PX2)
    texts = shapely.to_wkt(polygons[kept], rounding_precision=2, trim=False).tolist()
    buildings = [
        (confidences[owner], text.replace(", ", ","))
        for owner, text in zip(owners[kept].tolist(), texts, strict=True)
    ]
    buildings.sort(key=lambda building: (-building[0], building[1]))
    return [
        f'{number},"{wkt}",{confidence!r}' for number, (confidence, wkt) in enumerate(buildings, 1)
    ]


def _valid_parts(whole: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.intp]]:
    """Return valid polygons on a grid of 0.01 px, and the index in ``whole`` of each."""
    parts, owners = shapely.get_parts(whole, return_index=True)
    rounded = _rounded_to_grid(parts)
    valid = shapely.is_valid(rounded)
    # A zero-width buffer would lose half of a self-crossing polygon; this keeps all of it.
    repaired = shapely.make_valid(rounded[~valid], method="structure", keep_collapsed=False)
    repaired_parts = np.array([_on_grid(shape) for shape in repaired], np.object_)
    pieces, origins = shapely.get_parts(repaired_parts, return_index=True)
    return (
        np.concatenate((rounded[valid], _rounded_to_grid(pieces))),
        np.concatenate((owners[valid], owners[~valid][origins])),
    )


def _on_grid(shape: shapely.Geometry) -> shapely.Geometry:
    try:
        return shapely.set_precision(shape, 0.01)
    except shapely.errors.GEOSException:
        # GEOS fails on some invalid shapes of millions of pixels, which are left out.
        return shapely.Polygon()


def _rounded_to_grid(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Round coordinates to two decimals, to exactly the numbers that a reader of the CSV gets."""
    snapped: NDArray[np.object_] = shapely.transform(
        polygons, lambda xy: np.rint(xy * 100) / 100 + 0.0
    )
    return snapped


# --- reading --------------------------------------------------------------------------------------


def read_buildings_csv(path: Path) -> dict[str, list[BuildingRow]]:
    """Read buildings from a submission or a truth file by image id, images in the file's order.

    Columns are found by name, in any case and order; others (``PolygonWKT_Geo``, ``Occluded``) are
    ignored. A missing confidence is 1. ``POLYGON EMPTY`` and the BuildingId -1 mean an image
    without buildings. Third and fourth coordinates are dropped, and the ``Pan-Sharpen_`` of
    SpaceNet 4's ids is removed. Invalid polygons are kept as they are.

    Raises:
        SatmapError: the file cannot be read, has no usable header, or has an invalid row; the
            message names the file, the line and the problem.
    """
    return _TABLE.read(path, _records(path), _parse_row)


def _parse_row(record: CsvRow, shape: tuple[Any, str]) -> BuildingRow | None:
    polygon, problem = shape
    if problem:
        raise ValueError(problem)
    _, building_id, _, confidence = record.cells
    number = parse_number(confidence, "the confidence") if confidence else 1.0
    return None if polygon.is_empty else BuildingRow(polygon, number, building_id or "")


def _records(path: Path, misread: bool = False) -> Iterator[tuple[CsvRow, tuple[Any, str]]]:
    """Yield the lines of a file with their polygon and the problem with it, if any.

    With ``misread``, polygons that the scorers misread are problems, too.
    """
    for batch in _batches(path):
        polygons, problems = _parse_polygons(batch)
        if misread:
            problems = {**_misread_polygons(polygons), **problems}
        for i, record in enumerate(batch):
            yield record, (polygons[i], problems.get(i, ""))


def _batches(path: Path) -> Iterator[list[CsvRow]]:
    """Read the lines of a file in batches."""
    batch: list[CsvRow] = []
    characters = 0
    for record in _TABLE.records(path):
        batch.append(record)
        characters += sum(len(cell or "") for cell in record.cells)
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _parse_polygons(records: Sequence[CsvRow]) -> tuple[NDArray[np.object_], dict[int, str]]:
    """Parse the polygon of each row; returns polygons (n,) and problems by index.

    Polygons are empty for unreadable lines and images without buildings, None for invalid WKT.
    """
    texts = np.array([_wkt(record) for record in records], np.object_)
    with np.errstate(invalid="ignore", over="ignore"):
        polygons = shapely.from_wkt(texts, on_invalid="ignore")
    good = np.isin(shapely.get_type_id(polygons), _POLYGONAL_TYPES)
    coordinates, owners = shapely.get_coordinates(polygons, return_index=True)
    good[owners[~(np.abs(coordinates) <= _LARGEST_PIXEL).all(axis=1)]] = False
    polygons[~good] = None
    problems = {i: _explain(records[i].cells[2] or "") for i in np.flatnonzero(~good).tolist()}
    return shapely.force_2d(polygons), problems


def _wkt(record: CsvRow) -> str:
    if record.fault or record.cells[1] == _NO_BUILDINGS_ID:
        return _NO_BUILDINGS
    # Only polygons go to the parser: nested collections could exhaust its stack.
    wkt = record.cells[2] or ""
    return wkt if _POLYGONAL.match(wkt) else ""


def _explain(wkt: str) -> str:
    """Explain why a text is not a polygon."""
    if not wkt:
        return f"the polygon is empty; an image without buildings has {_NO_BUILDINGS}"
    match = re.fullmatch(r"POLYGON\s*(?:Z|M|ZM)?\s*\(\s*\((.*)\)\s*\)", wkt, re.IGNORECASE)
    if match is None:
        return f"not a POLYGON: {shown(wkt)}"
    try:
        for ring in re.split(r"\)\s*,\s*\(", match[1]):
            points = parse_vertices(ring, _LARGEST_PIXEL)
            if len(points) < 4:
                return f"a ring has {len(points)} points; it needs four or more: {shown(ring)}"
            if points[0] != points[-1]:
                return f"a ring is not closed; its last point must be its first: {shown(ring)}"
    except ValueError as error:
        return str(error)
    return f"not a POLYGON: {shown(wkt)}"


# --- checking -------------------------------------------------------------------------------------


def check_buildings_csv(path: Path, expected_images: Collection[str] | None = None) -> list[Fault]:
    """Find problems that would get a buildings CSV rejected or a row dropped, in the file's order.

    Invalid polygons are faults, because the scorers misread them (see the module). Faults of the
    file as a whole come last. Given the ids of all images, missing and unknown images are reported
    too; a ``Pan-Sharpen_`` before an id is ignored. The file is read in one pass; memory grows by
    about 100 bytes per row.

    Raises:
        SatmapError: the file cannot be read.
    """
    ids = array("q")
    check_row = partial(_check_row, ids)
    faults, images = _TABLE.check(path, _records(path, misread=True), check_row, expected_images)
    rows = np.frombuffer(ids, np.int64).reshape(-1, 3)
    for i, first in repetitions(rows[:, :2]):
        building_id, image, line = rows[i].tolist()
        text = (
            f"{images[image]}: the BuildingId {building_id} appears twice, "
            f"first on line {rows[first, 2]}"
        )
        faults.append(Fault(line, text))
    return in_file_order(faults)


def _misread_polygons(polygons: NDArray[np.object_]) -> dict[int, str]:
    """Find polygons that the scorers drop or misread; returns the reasons by index."""
    drawn = np.flatnonzero(~(shapely.is_missing(polygons) | shapely.is_empty(polygons)))
    invalid = drawn[~shapely.is_valid(polygons[drawn])]
    areas = shapely.area(polygons[drawn])
    why = {
        i: f"the polygon is invalid ({reason}); the scorer repairs it and may lose a part"
        for i, reason in zip(
            invalid.tolist(), shapely.is_valid_reason(polygons[invalid]).tolist(), strict=True
        )
    }
    small = areas < SMALLEST_PX2
    for i, area in zip(drawn[small].tolist(), areas[small].tolist(), strict=True):
        text = (
            f"the polygon has {area:.2f} square pixels; the scorer drops polygons "
            f"under {SMALLEST_PX2:g}"
        )
        why[i] = f"{why[i]}; {text}" if i in why else text
    return why


def _check_row(
    ids: "array[int]", image: int, record: CsvRow, shape: tuple[Any, str]
) -> Iterator[str]:
    """Check a row and collect its BuildingId, with the numbers of its image and line."""
    problem = shape[1]
    _, building_id, wkt, confidence = record.cells
    wkt = wkt or ""
    is_empty = _TABLE.empty.fullmatch(wkt) is not None
    # A missing column is already reported with the header.
    if building_id is not None:
        yield from _check_id(building_id, is_empty)
        if re.fullmatch(r"[0-9]{1,18}", building_id):
            ids.extend((int(building_id), image, record.line))
    if problem:
        yield problem
    elif wkt[:5].lower() == "multi":
        yield "a MULTIPOLYGON is not allowed; give its parts rows of their own"
    elif not is_empty and building_id != _NO_BUILDINGS_ID and not _PLAIN_POLYGON.fullmatch(wkt):
        yield (
            "the WKT must be POLYGON ((x y,x y,...),(x y,...)): one blank between x and y, none "
            f"beside the inner brackets, plain numbers; got {shown(wkt)}"
        )
    try:
        if confidence is not None:
            parse_number(confidence, "the confidence")
    except ValueError as error:
        yield str(error)


def _check_id(building_id: str, is_empty: bool) -> Iterator[str]:
    if building_id == _NO_BUILDINGS_ID:
        if not is_empty:
            yield "the BuildingId -1 stands for no building; the scorer drops its polygon"
    elif not re.fullmatch(r"[0-9]{1,18}", building_id):
        yield f"the BuildingId is not a positive whole number: {shown(building_id)}"
    elif is_empty:
        yield f"{_NO_BUILDINGS} must have the BuildingId -1, got {building_id}"
