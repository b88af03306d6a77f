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

import re
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.io.files import write_text
from satmap.io.text import natural_key, require_plain_id
from satmap.submissions.csv_table import CsvRow, check_header, parse_number, read_records, shown
from satmap.submissions.fault import Fault, in_file_order

BUILDINGS_HEADER = ("ImageId", "BuildingId", "PolygonWKT_Pix", "Confidence")

#: The scorers drop smaller polygons from the truth and the submission, square pixels.
SMALLEST_PX2 = 20.0

_NO_BUILDINGS = "POLYGON EMPTY"
_NO_BUILDINGS_ID = "-1"

# Ids in SpaceNet 4's truth start with the product name; ids in submissions do not.
_PRODUCT_PREFIX = "Pan-Sharpen_"

_POLYGONAL = re.compile(r"\s*(?:MULTI)?POLYGON", re.IGNORECASE)

# Far larger than any image, and small enough that doubles keep hundredths.
_LARGEST_PIXEL = 1e7

# Limits of a batch: many rows for speed, few characters to bound memory.
_BATCH_ROWS = 10_000
_BATCH_CHARACTERS = 1 << 22

_EMPTY = re.compile(r"POLYGON\s+EMPTY", re.IGNORECASE)

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
        confidence: higher is more certain; 1 if the file does not give it.
        building_id: id in the file; the writer assigns new ids.
    """

    polygon: shapely.Polygon | shapely.MultiPolygon
    confidence: float = 1.0
    building_id: str = ""


def canonical_id(image_id: str) -> str:
    """Remove the product name that SpaceNet 4's truth puts before the image id."""
    return image_id.removeprefix(_PRODUCT_PREFIX)


# --- writing --------------------------------------------------------------------------------------


def format_buildings(rows_by_image: Mapping[str, Sequence[BuildingRow]]) -> str:
    """Format buildings as CSV text, independent of the order of the buildings.

    Coordinates have two decimals. Polygons that are invalid, or become so by rounding, are
    repaired. The parts of a multi-polygon become separate rows with the building's confidence.
    Polygons under 20 square pixels, which the scorers drop, are left out. Rows are sorted by
    descending confidence, then by text, and numbered from 1. Confidences are written with full
    precision. Images without a building get a ``POLYGON EMPTY`` row.

    Args:
        rows_by_image: buildings by image id.

    Raises:
        ValueError: a confidence or coordinate is not finite, a coordinate is absurdly large, a
            shape is not a polygon, or an image id is empty or would break the table.
    """
    parts = [",".join(BUILDINGS_HEADER)]
    for image_id in sorted(rows_by_image, key=natural_key):
        require_plain_id(image_id)
        buildings = _clean(image_id, rows_by_image[image_id])
        if not buildings:
            parts.append(f"{image_id},{_NO_BUILDINGS_ID},{_NO_BUILDINGS},1")
        for number, (confidence, wkt) in enumerate(buildings, 1):
            parts.append(f'{image_id},{number},"{wkt}",{confidence!r}')
    return "\n".join(parts) + "\n"


def write_buildings_csv(path: Path, rows_by_image: Mapping[str, Sequence[BuildingRow]]) -> None:
    """Write the text of :func:`format_buildings` to a file, atomically.

    Raises:
        SatmapError: ``path`` cannot be written.
        ValueError: as :func:`format_buildings`.
    """
    write_text(path, format_buildings(rows_by_image))


def _clean(image_id: str, rows: Sequence[BuildingRow]) -> list[tuple[float, str]]:
    """Return confidence and WKT of the polygons that the scorers keep, in the file's order."""
    # Adding zero turns -0.0 into 0.0, which prints without a sign.
    confidences = [float(row.confidence) + 0.0 for row in rows]
    if not np.isfinite(confidences).all():
        raise ValueError(f"{image_id}: a confidence is not finite")
    whole = np.array([row.polygon for row in rows], np.object_)
    polygonal = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
    if not np.isin(shapely.get_type_id(whole), polygonal).all():
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
    return sorted(buildings, key=lambda building: (-building[0], building[1]))


def _valid_parts(whole: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.intp]]:
    """Return valid polygons on a grid of 0.01 px, and the index in ``whole`` of each."""
    parts, owners = shapely.get_parts(whole, return_index=True)
    rounded = _rounded_to_grid(parts)
    valid = shapely.is_valid(rounded)
    # A zero-width buffer would lose half of a self-crossing polygon; this keeps all of it.
    repaired_parts = shapely.set_precision(
        shapely.make_valid(rounded[~valid], method="structure", keep_collapsed=False), 0.01
    )
    pieces, origins = shapely.get_parts(repaired_parts, return_index=True)
    return (
        np.concatenate((rounded[valid], _rounded_to_grid(pieces))),
        np.concatenate((owners[valid], owners[~valid][origins])),
    )


def _rounded_to_grid(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Round coordinates to the doubles that two decimals read back as."""
    snapped: NDArray[np.object_] = shapely.transform(
        polygons, lambda xy: np.rint(xy * 100) / 100 + 0.0
    )
    return snapped


# --- reading --------------------------------------------------------------------------------------


def read_buildings_csv(path: Path) -> dict[str, list[BuildingRow]]:
    """Read buildings from a submission or a truth file.

    Columns are found by name, in any case and order; others (``PolygonWKT_Geo``, ``Occluded``) are
    ignored. A missing confidence is 1. ``POLYGON EMPTY`` and the BuildingId -1 mean an image
    without buildings. Third and fourth coordinates are dropped, and the ``Pan-Sharpen_`` of
    SpaceNet 4's ids is removed. Invalid polygons are kept as they are.

    Returns:
        Buildings by image id, images in the file's order.

    Raises:
        SatmapError: the file cannot be read, has no usable header, or has an invalid row; the
            message names the file, the line and the problem.
    """
    rows_by_image: dict[str, list[BuildingRow]] = {}
    for batch in _batches(path):
        polygons, problems = _parse_polygons(batch)
        for i, record in enumerate(batch):
            where = f"{path}, line {record.line}"
            if record.fault:
                remedy = (
                    f" The first line should be {','.join(BUILDINGS_HEADER)}."
                    if record.fatal
                    else ""
                )
                raise SatmapError(f"{where}: {record.fault}.{remedy}")
            image_id, building_id, _, confidence = record.cells
            if not image_id:
                raise SatmapError(f"{where}: the ImageId is empty.")
            if i in problems:
                raise SatmapError(f"{where}: {problems[i]}.")
            rows = rows_by_image.setdefault(canonical_id(image_id), [])
            try:
                number = parse_number(confidence) if confidence else 1.0
            except ValueError as error:
                raise SatmapError(f"{where}: the confidence is {error}.") from error
            if not polygons[i].is_empty:
                rows.append(BuildingRow(polygons[i], number, building_id or ""))
    return rows_by_image


def _batches(path: Path) -> Iterator[list[CsvRow]]:
    """Read the lines of a file in batches."""
    batch: list[CsvRow] = []
    characters = 0
    for record in read_records(path, BUILDINGS_HEADER, (BUILDINGS_HEADER[0], BUILDINGS_HEADER[2])):
        batch.append(record)
        characters += sum(len(cell or "") for cell in record.cells)
        if len(batch) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _parse_polygons(records: Sequence[CsvRow]) -> tuple[NDArray[np.object_], dict[int, str]]:
    """Parse the polygon of each row.

    Returns:
        Polygons (n,), empty for unreadable lines and images without buildings, None for invalid
        WKT; the problems with the latter by index.
    """
    texts = np.array([_wkt(record) for record in records], np.object_)
    with np.errstate(invalid="ignore", over="ignore"):
        polygons = shapely.from_wkt(texts, on_invalid="ignore")
    polygonal = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
    good = np.isin(shapely.get_type_id(polygons), polygonal)
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
    for ring in re.split(r"\)\s*,\s*\(", match[1]):
        points = []
        for vertex in ring.split(","):
            numbers = vertex.split()
            if not 2 <= len(numbers) <= 4:
                return f"a vertex needs x and y, got {shown(vertex)}"
            try:
                point = parse_number(numbers[0]), parse_number(numbers[1])
            except ValueError as error:
                return f"a coordinate is {error}"
            if max(map(abs, point)) > _LARGEST_PIXEL:
                return f"a coordinate is beyond {_LARGEST_PIXEL:g} px: {shown(vertex)}"
            points.append(point)
        if len(points) < 4:
            return f"a ring has {len(points)} points; it needs four or more: {shown(ring)}"
        if points[0] != points[-1]:
            return f"a ring is not closed; its last point must be its first: {shown(ring)}"
    return f"not a POLYGON: {shown(wkt)}"


# --- checking -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _ImageState:
    """State of the check for one image.

    Attributes:
        number: number of the image, in the order of the file.
        rows: number of rows so far.
        empty_line: line of the first ``POLYGON EMPTY``.
    """

    number: int
    rows: int = 0
    empty_line: int | None = None


@dataclass
class _Ids:
    """BuildingIds of the whole file: image number, id and line of each row."""

    images: "array[int]" = field(default_factory=lambda: array("q"))
    ids: "array[int]" = field(default_factory=lambda: array("q"))
    lines: "array[int]" = field(default_factory=lambda: array("q"))


def check_buildings_csv(path: Path, expected_images: Collection[str] | None = None) -> list[Fault]:
    """Find problems that would get a buildings CSV rejected or a row dropped.

    Invalid polygons are faults, because the scorers misread them (see the module). The file is read
    in one pass; memory grows by about 100 bytes per row.

    Args:
        path: the file.
        expected_images: ids of all images; if given, missing and unknown images are reported too. A
            ``Pan-Sharpen_`` before an id is ignored.

    Returns:
        Faults in the file's order; those of the file as a whole come last.

    Raises:
        SatmapError: the file cannot be read.
    """
    faults = check_header(path, BUILDINGS_HEADER)
    expected = None if expected_images is None else set(map(canonical_id, expected_images))
    images: dict[str, _ImageState] = {}
    ids = _Ids()
    empty = True
    for batch in _batches(path):
        empty = False
        polygons, problems = _parse_polygons(batch)
        problems = {**_misread_polygons(polygons), **problems}
        for i, record in enumerate(batch):
            if record.fault:
                faults.append(Fault(record.line, record.fault))
                continue
            image_id = canonical_id(record.cells[0] or "")
            if not image_id:
                faults.append(Fault(record.line, "the ImageId is empty"))
                continue
            if image_id not in images:
                images[image_id] = _ImageState(len(images))
                if expected is not None and image_id not in expected:
                    faults.append(Fault(record.line, f"unknown image {image_id}"))
            messages = _check_row(record, images[image_id], ids, problems.get(i))
            faults.extend(Fault(record.line, f"{image_id}: {text}") for text in messages)
    for image_id, state in images.items():
        if state.empty_line is not None and state.rows > 1:
            text = f"{image_id}: {_NO_BUILDINGS} must be the image's only row"
            faults.append(Fault(state.empty_line, text))
    faults.extend(_repeated_ids(ids, list(images)))
    faults = in_file_order(faults)
    if empty:
        faults.append(Fault(None, "the file has no rows"))
    missing = sorted((expected or set()) - images.keys(), key=natural_key)
    faults.extend(Fault(None, f"missing image {image_id}") for image_id in missing)
    return faults


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


def _check_row(record: CsvRow, state: _ImageState, ids: _Ids, problem: str | None) -> Iterator[str]:
    _, building_id, wkt, confidence = record.cells
    wkt = wkt or ""
    is_empty = _EMPTY.fullmatch(wkt) is not None
    state.rows += 1
    if is_empty and state.empty_line is None:
        state.empty_line = record.line
    # A missing column is already reported with the header.
    if building_id is not None:
        yield from _check_id(building_id, is_empty)
        if re.fullmatch(r"[0-9]{1,18}", building_id):
            ids.images.append(state.number)
            ids.ids.append(int(building_id))
            ids.lines.append(record.line)
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
            parse_number(confidence)
    except ValueError as error:
        yield f"the confidence is {error}"


def _check_id(building_id: str, is_empty: bool) -> Iterator[str]:
    if building_id == _NO_BUILDINGS_ID:
        if not is_empty:
            yield "the BuildingId -1 stands for no building; the scorer drops its polygon"
    elif not re.fullmatch(r"[0-9]{1,18}", building_id):
        yield f"the BuildingId is not a positive whole number: {shown(building_id)}"
    elif is_empty:
        yield f"{_NO_BUILDINGS} must have the BuildingId -1, got {building_id}"


def _repeated_ids(ids: _Ids, image_ids: Sequence[str]) -> Iterator[Fault]:
    """Yield a fault for every repetition of a BuildingId within an image."""
    pairs = np.stack((np.frombuffer(ids.ids, np.int64), np.frombuffer(ids.images, np.int64)))
    if not pairs.size:
        return
    # The sort is stable, so each run of equal pairs starts with the first in the file.
    order = np.lexsort(pairs)
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (pairs[:, order[1:]] != pairs[:, order[:-1]]).any(axis=0)
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    for place in np.flatnonzero(~is_first).tolist():
        row = order[place]
        yield Fault(
            ids.lines[row],
            f"{image_ids[ids.images[row]]}: the BuildingId {ids.ids[row]} appears twice, "
            f"first on line {ids.lines[first[place]]}",
        )
