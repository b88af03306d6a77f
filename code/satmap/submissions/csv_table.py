"""CSV tables of the challenges, read line by line so that every problem has a line number.

Cells of these formats contain no line breaks, so each line is parsed on its own. An unclosed quote
then spoils only its own line, not the rest of the file.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from satmap.errors import SatmapError
from satmap.io.files import write_text
from satmap.io.text import natural_key, require_plain_id
from satmap.submissions.fault import Fault, read_first_line

Row = TypeVar("Row")
Shape = TypeVar("Shape")

# Characters of a faulty cell shown in a message.
_SHOWN = 60


@dataclass(frozen=True)
class CsvRow:
    """One line of a table, or the reason why it cannot be read.

    Attributes:
        line: line of the file, from 1.
        cells: stripped text of each requested column; None if the file lacks the column.
        fault: why the line cannot be read; empty if it can. If line 1, the header, has a fault, the
            rest of the file cannot be read either.
    """

    line: int
    cells: tuple[str | None, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class CsvTable:
    """A format with one row per shape, and a special row for an image without shapes.

    Attributes:
        header: names of the columns; the first is that of the image ids.
        wkt: index of the column of the shapes in the header.
        nothing: cells of an image without shapes, after its id.
        empty: pattern of the WKT of an image without shapes.
        empty_name: that WKT in messages.
        canonical: returns the common form of an image id.
    """

    header: tuple[str, ...]
    wkt: int
    nothing: str
    empty: re.Pattern[str]
    empty_name: str
    canonical: Callable[[str], str] = str

    def write(
        self,
        path: Path,
        rows_by_image: Mapping[str, Sequence[Row]],
        lines_of: Callable[[str, Sequence[Row]], Sequence[str]],
    ) -> None:
        """Write a table atomically, with the images in natural order.

        ``lines_of`` returns the lines of an image, without the image id.

        Raises:
            SatmapError: ``path`` cannot be written.
            ValueError: an image id is empty or would need quoting.
        """
        lines = [",".join(self.header)]
        for image_id in sorted(rows_by_image, key=natural_key):
            require_plain_id(image_id)
            rows = lines_of(image_id, rows_by_image[image_id]) or [self.nothing]
            lines += [f"{image_id},{row}" for row in rows]
        write_text(path, "\n".join(lines) + "\n")

    def records(self, path: Path) -> Iterator[CsvRow]:
        """Read the lines below the header, without blank lines and lines that start with #.

        Columns may be in any order and case. Only those of the ids and the shapes are required.

        Raises:
            SatmapError: the file cannot be read.
        """
        required = (self.header[0], self.header[self.wkt])
        # The default limit of 128 KiB would reject a road with ten thousand vertices.
        csv.field_size_limit(2**31 - 1)
        names: list[str] = []
        try:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                for number, line in enumerate(file, 1):
                    cells, fault = _cells(line)
                    if number == 1:
                        names = [cell.strip().lower() for cell in cells]
                        missing = [name for name in required if name.lower() not in names]
                        if missing:
                            fault = fault or f"no column {' and '.join(missing)} in the header"
                            yield CsvRow(number, fault=fault)
                            return
                        wanted = [name.lower() for name in self.header]
                        places = [names.index(name) if name in names else None for name in wanted]
                        continue
                    if not fault and (not any(map(str.strip, cells)) or cells[0].startswith("#")):
                        continue
                    if not fault and len(cells) != len(names):
                        fault = f"{len(cells)} columns where the header has {len(names)}"
                        if len(cells) > len(names):
                            fault += "; a cell with commas must stand in double quotes"
                    if fault:
                        yield CsvRow(number, fault=fault)
                        continue
                    found = (None if place is None else cells[place].strip() for place in places)
                    yield CsvRow(number, tuple(found))
        except OSError as error:
            raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
        if not names:
            yield CsvRow(1, fault=f"the file is empty: no column {' and '.join(required)}")

    def read(
        self,
        path: Path,
        records: Iterable[tuple[CsvRow, Shape]],
        parse: Callable[[CsvRow, Shape], Row | None],
    ) -> dict[str, list[Row]]:
        """Read rows by image; ``parse`` returns None for an image without shapes.

        Raises:
            SatmapError: the file cannot be read, a record is faulty or ``parse`` fails.
        """
        rows_by_image: dict[str, list[Row]] = {}
        for record, shape in records:
            try:
                if record.fault:
                    header = ",".join(self.header)
                    remedy = f". The first line should be {header}" if record.line == 1 else ""
                    raise ValueError(f"{record.fault}{remedy}")
                image_id = record.cells[0]
                if not image_id:
                    raise ValueError("the ImageId is empty")
                row = parse(record, shape)
            except ValueError as error:
                raise SatmapError(f"{path}, line {record.line}: {error}.") from error
            rows = rows_by_image.setdefault(self.canonical(image_id), [])
            if row is not None:
                rows.append(row)
        return rows_by_image

    def check(
        self,
        path: Path,
        records: Iterable[tuple[CsvRow, Shape]],
        check_row: Callable[[int, CsvRow, Shape], Iterable[str]],
        expected_images: Collection[str] | None,
    ) -> tuple[list[Fault], list[str]]:
        """Return the faults of a table in any order, and its image ids.

        ``check_row`` returns the problems of a row, given the index of its image in these ids.

        Raises:
            SatmapError: the file cannot be read.
        """
        first_line, faults = read_first_line(path)
        header, text = ",".join(self.header), first_line.decode(errors="replace").rstrip("\r\n")
        if text != header:
            faults.append(Fault(1, f"the header is {shown(text)}, not {header}"))
        expected = None if expected_images is None else set(map(self.canonical, expected_images))
        numbers: dict[str, int] = {}
        rows: Counter[str] = Counter()
        empty_lines: dict[str, int] = {}  # line of the first empty shape by image
        record = None
        for record, shape in records:
            if record.fault:
                faults.append(Fault(record.line, record.fault))
                continue
            image_id = self.canonical(record.cells[0] or "")
            if not image_id:
                faults.append(Fault(record.line, "the ImageId is empty"))
                continue
            if image_id not in numbers:
                numbers[image_id] = len(numbers)
                if expected is not None and image_id not in expected:
                    faults.append(Fault(record.line, f"unknown image {image_id}"))
            rows[image_id] += 1
            if self.empty.fullmatch(record.cells[self.wkt] or ""):
                empty_lines.setdefault(image_id, record.line)
            messages = check_row(numbers[image_id], record, shape)
            faults += [Fault(record.line, f"{image_id}: {text}") for text in messages]
        for image_id, line in empty_lines.items():
            if rows[image_id] > 1:
                text = f"{image_id}: {self.empty_name} must be the image's only row"
                faults.append(Fault(line, text))
        if record is None:
            faults.append(Fault(None, "the file has no rows"))
        missing = sorted((expected or set()) - numbers.keys(), key=natural_key)
        faults += [Fault(None, f"missing image {image_id}") for image_id in missing]
        return faults, list(numbers)


def parse_vertices(text: str, largest: float) -> list[tuple[float, float]]:
    """Parse vertices separated by commas; third and fourth coordinates are dropped.

    Raises:
        ValueError: a vertex lacks y, or a coordinate is not a finite number or beyond ``largest``.
    """
    points = []
    for vertex in text.split(","):
        numbers = vertex.split()
        if not 2 <= len(numbers) <= 4:
            raise ValueError(f"a vertex needs x and y, got {shown(vertex)}")
        x, y = (parse_number(number, "a coordinate") for number in numbers[:2])
        if max(abs(x), abs(y)) > largest:
            raise ValueError(f"a coordinate is beyond {largest:g} px: {shown(vertex)}")
        points.append((x, y))
    return points


def parse_number(text: str, name: str) -> float:
    """Parse a finite number in plain decimal notation; messages call it ``name``.

    Raises:
        ValueError: the text is anything else, such as ``nan``, ``1_000`` or non-ASCII digits, which
            Python accepts and the organisers' programs do not.
    """
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        raise ValueError(f"{name} is not a number: {shown(text)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is not a finite number: {shown(text)}")
    return number


def shown(text: str) -> str:
    """Quote text from a file for a message, shortened if it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


def _cells(line: str) -> tuple[list[str], str]:
    """Split a line into cells; the second value is the problem, if there is one."""
    if "\0" in line:
        return [], "the line holds a NUL byte; the file is damaged or not text"
    # surrogateescape turns bytes that are not UTF-8 into lone surrogates.
    if not line.isascii() and any("\udc80" <= char <= "\udcff" for char in line):
        return [], "the line is not UTF-8 text"
    # Quotes within quoted cells are doubled, so a valid line has an even number of them.
    if line.count('"') % 2:
        return [], "a double quote is opened but not closed"
    return next(csv.reader((line,)), []), ""
