"""SpaceNet roads CSV: one row per road, in pixels of the image, with length and travel time.

    ImageId,WKT_Pix,length_m,travel_time_s
    AOI_7_Moscow_chip2,"LINESTRING (10.00 20.00, 55.50 80.25)",23.400,1.745
    AOI_7_Moscow_chip10,LINESTRING EMPTY,0,0

The organisers' scorer reads the lines as a set of segments between vertices rounded to 0.1 px. It
rejects the whole file if a segment appears twice or if two successive vertices of a line are closer
than 0.01 px. The writer therefore cleans its input and never writes such a file. The reader accepts
the variants in circulation. The validator applies the organisers' rules to the letter.
"""

import itertools
import math
import re
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satmap.submissions.csv_table import CsvRow, CsvTable, parse_number, parse_vertices, shown
from satmap.submissions.fault import Fault, in_file_order, repetitions
from satmap.vectors.road_graph import RoadGraph

_TABLE = CsvTable(
    header=("ImageId", "WKT_Pix", "length_m", "travel_time_s"),
    wkt=1,
    nothing="LINESTRING EMPTY,0,0",
    empty=re.compile(r"LINESTRING\s*(?:Z|M|ZM)?\s*EMPTY", re.IGNORECASE),
    empty_name="LINESTRING EMPTY",
)

#: Line on a grid of 0.01 px, as integers, which compare, sort and print exactly.
GridLine = tuple[tuple[int, int], ...]

# Far larger than any image, and small enough that doubles and int64 keep hundredths.
_LARGEST_PIXEL = 1e6

# Far larger than any road, in metres and seconds, and small enough that sums of squares are finite.
_LARGEST_AMOUNT = 1e9

# The organisers' limit on the distance between two successive vertices.
_SHORTEST_STEP_PX = 0.01

_LINESTRING = re.compile(r"LINESTRING\s*(?:Z|M|ZM)?\s*\(([^()]*)\)", re.IGNORECASE)

# WKT that the official parser understands: it splits at every comma, then at every single blank,
# and ignores everything after the second number.
_PLAIN_LINESTRING = re.compile(
    r"LINESTRING *\( *\S+ [^\s,]+(?: [^,]*)?(?:,\s*[^\s,]+ [^\s,]+(?: [^,]*)?)*\)", re.IGNORECASE
)


@dataclass(frozen=True, eq=False)
class RoadRow:
    """One road of one image.

    Attributes:
        line: float64 (n >= 2, 2), x = column and y = row in pixels.
        length_m: metres; NaN if the file does not give it.
        travel_time_s: seconds; NaN if the file does not give it.
        level: 0 on the ground, higher above it (:func:`satmap.vectors.levels.road_level`). The
            challenge's CSV has no levels.
        confidence: probability that the road is right, 0..1, which a CSV does not hold; NaN if it
            is not calibrated.
        road_class: OpenStreetMap's class of the road, which a CSV does not hold; empty if unknown.
    """

    line: NDArray[np.float64]
    length_m: float
    travel_time_s: float
    level: float = 0.0
    confidence: float = math.nan
    road_class: str = ""


# --- writing --------------------------------------------------------------------------------------


def write_roads_csv(path: Path, rows_by_image: Mapping[str, Sequence[RoadRow]]) -> None:
    """Write roads atomically; the text does not depend on the order and direction of the roads.

    Coordinates have two decimals, the second of which is never 5. Successive vertices in the same
    0.1 px cell are merged. If a segment appears twice in an image, the second one is cut out of its
    line, and the pieces share the line's length and time in proportion to their lengths in pixels.
    Images without a drawable road get a ``LINESTRING EMPTY`` row.

    Raises:
        SatmapError: ``path`` cannot be written.
        ValueError: a coordinate, length or time is not finite, a length or time is negative, a
            coordinate is absurdly large, or an image id is empty or would need quoting.
    """
    _TABLE.write(path, rows_by_image, _lines)


def _lines(image_id: str, rows: Sequence[RoadRow]) -> list[str]:
    lines = []
    for line, length_m, travel_time_s in _clean(image_id, rows):
        wkt = ", ".join(f"{x / 100:.2f} {y / 100:.2f}" for x, y in line)
        lines.append(f'"LINESTRING ({wkt})",{length_m:.3f},{travel_time_s:.3f}')
    return lines


def _clean(image_id: str, rows: Sequence[RoadRow]) -> list[tuple[GridLine, float, float]]:
    """Convert roads to lines that the organisers accept, in canonical order."""
    lines = []
    for row in rows:
        numbers = (row.length_m, row.travel_time_s)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"{image_id}: length and time must be finite and >= 0, got {numbers}")
        lines.append((_grid_line(image_id, row.line), *numbers))
    # The first of two equal segments stays, so sort to be independent of the caller's order.
    lines.sort()
    seen: set[tuple[tuple[int, int], tuple[int, int]]] = set()
    pieces = []
    for line, length_m, travel_time_s in lines:
        steps = [math.dist(a, b) for a, b in itertools.pairwise(line)]
        runs: list[list[int]] = []  # runs of successive indices of kept segments
        for i in range(len(steps)):
            a, b = _cell(line[i]), _cell(line[i + 1])
            segment = (a, b) if a < b else (b, a)
            if segment in seen:
                continue
            seen.add(segment)
            if runs and runs[-1][-1] == i - 1:
                runs[-1].append(i)
            else:
                runs.append([i])
        for run in runs:
            whole = len(run) == len(steps)
            share = 1.0 if whole else sum(steps[i] for i in run) / sum(steps)
            piece = line[run[0] : run[-1] + 2]
            # Adding zero turns -0.0 into 0.0, which prints without a sign.
            pieces.append((_oriented(piece), length_m * share + 0.0, travel_time_s * share + 0.0))
    pieces.sort()
    return pieces


def _grid_line(image_id: str, line: NDArray[np.float64]) -> GridLine:
    """Round to 0.01 px and merge vertices in a 0.1 px cell; () if fewer than two are left."""
    line = np.asarray(line, dtype=np.float64)
    if line.ndim != 2 or line.shape[1] != 2:
        raise ValueError(f"{image_id}: a line must have shape (n, 2), got {line.shape}")
    if not np.all(np.abs(line) <= _LARGEST_PIXEL):
        raise ValueError(f"{image_id}: a coordinate is not finite or beyond {_LARGEST_PIXEL:g} px")
    hundredths = np.rint(line * 100).astype(np.int64)
    # A last digit 5 would be rounded differently by Java (up), numpy (to even) and text formatting.
    # Avoid it, so that every validator sees the same cell. Vertices in different cells are then at
    # least 0.02 px apart.
    hundredths += hundredths % 10 == 5
    points = _oriented(tuple(map(tuple, hundredths.tolist())))
    kept: list[tuple[int, int]] = []
    for point in points:
        if not kept or _cell(point) != _cell(kept[-1]):
            kept.append(point)
    if len(kept) < 2:
        return ()
    # Merged vertices keep the first, except at the end of the line, which must not move.
    kept[-1] = points[-1]
    return tuple(kept)


def _oriented(line: GridLine) -> GridLine:
    """Return the smaller of a line and its reverse."""
    return min(line, line[::-1])


def _cell(point: tuple[int, int]) -> tuple[int, int]:
    """Return the 0.1 px cell of a vertex given in hundredths of a pixel."""
    return (point[0] + 5) // 10, (point[1] + 5) // 10


# --- reading --------------------------------------------------------------------------------------


def read_roads_csv(path: Path) -> dict[str, list[RoadRow]]:
    """Read roads from a submission or a truth file by image id, images in the file's order.

    Columns are found by name, in any case and order; others (``flag``) are ignored. Missing lengths
    and times are NaN, because the file does not give the scale of the image. ``LINESTRING EMPTY``
    means an image without roads. Third and fourth coordinates are dropped.

    Raises:
        SatmapError: the file cannot be read, has no usable header, or has an invalid row; the
            message names the file, the line and the problem.
    """
    return _TABLE.read(path, _records(path), _parse_row)


def _records(path: Path) -> Iterator[tuple[CsvRow, str]]:
    """Yield the lines of a file with their WKT."""
    for record in _TABLE.records(path):
        yield record, "" if record.fault else record.cells[1] or ""


def _parse_row(record: CsvRow, wkt: str) -> RoadRow | None:
    points = _parse_linestring(wkt)
    if len(points) == 1:
        raise ValueError("the line has one point; it needs two or more")
    length_m, travel_time_s = map(_parse_amount, _TABLE.header[2:], record.cells[2:])
    return RoadRow(np.array(points), length_m, travel_time_s) if points else None


def _parse_linestring(wkt: str) -> list[tuple[float, float]]:
    """Parse a LineString to vertices; [] if it is empty."""
    if _TABLE.empty.fullmatch(wkt):
        return []
    match = _LINESTRING.fullmatch(wkt)
    if match is None:
        raise ValueError(f"not a LINESTRING: {shown(wkt)}")
    return parse_vertices(match[1], _LARGEST_PIXEL)


def _parse_amount(name: str, text: str | None) -> float:
    """Parse a length or time; NaN if it is missing."""
    if not text:
        return math.nan
    number = parse_number(text, name)
    if not 0 <= number <= _LARGEST_AMOUNT:
        raise ValueError(f"{name} must lie between 0 and {_LARGEST_AMOUNT:g}, got {shown(text)}")
    return number


# --- checking -------------------------------------------------------------------------------------


def check_roads_csv(path: Path, expected_images: Collection[str] | None = None) -> list[Fault]:
    """Find problems that would get a roads CSV rejected or a row dropped, in the file's order.

    The rules are those of the official validator. Faults of the file as a whole come last. Given
    the ids of all images, missing and unknown images are reported too. The file is read in one
    pass; memory grows by 48 bytes per segment.

    Raises:
        SatmapError: the file cannot be read.
    """
    segments = array("q")
    check_row = partial(_check_row, segments)
    faults, images = _TABLE.check(path, _records(path), check_row, expected_images)
    rows = np.frombuffer(segments, np.int64).reshape(-1, 6)
    for i, first in repetitions(rows[:, :5]):
        x0, y0, x1, y1 = (rows[i, :4] / 10).tolist()
        text = (
            f"{images[rows[i, 4]]}: the segment {x0:g} {y0:g} - {x1:g} {y1:g} appears twice, "
            f"first on line {rows[first, 5]}"
        )
        faults.append(Fault(int(rows[i, 5]), text))
    return in_file_order(faults)


def _check_row(segments: "array[int]", image: int, record: CsvRow, wkt: str) -> Iterator[str]:
    """Check a row and collect its segments.

    Six numbers per segment: x, y, x, y of the cells at its ends, the lesser first; image; line.
    """
    for name, text in zip(_TABLE.header[2:], record.cells[2:], strict=True):
        try:
            # A missing column is already reported with the header.
            if text is not None and math.isnan(_parse_amount(name, text)):
                yield f"{name} is empty"
        except ValueError as error:
            yield str(error)
    try:
        points = _parse_linestring(wkt)
    except ValueError as error:
        yield str(error)
        return
    if not points:
        return
    if not _PLAIN_LINESTRING.fullmatch(wkt):
        yield "the WKT must be LINESTRING (x y, x y, ...) without Z or M, one blank within a vertex"
    if len(points) == 1:
        yield "the line has one point"
    # Round halves up, as Java's Math.round does.
    cells = [(math.floor(10 * x + 0.5), math.floor(10 * y + 0.5)) for x, y in points]
    for i in range(1, len(points)):
        # The official expression, so that results agree to the last bit.
        (x0, y0), (x1, y1) = points[i - 1], points[i]
        if math.hypot(x1 - x0, y1 - y0) < _SHORTEST_STEP_PX:
            yield f"two successive points are closer than 0.01 px at {x1:g} {y1:g}"
        a, b = cells[i - 1], cells[i]
        segments.extend((*min(a, b), *max(a, b), image, record.line))


def rows_of_graph(graph: RoadGraph) -> list[RoadRow]:
    """Convert a road graph to rows, one per edge in the graph's order."""
    return [
        RoadRow(line=edge.line, length_m=edge.length_m, travel_time_s=edge.travel_time_s)
        for edge in graph.edges
    ]
