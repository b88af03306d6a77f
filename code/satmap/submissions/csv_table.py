"""CSV tables of the challenges, read line by line so that every problem has a line number.

Cells of these formats contain no line breaks, so each line is parsed on its own. An unclosed quote
then spoils only its own line, not the rest of the file.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from satmap.errors import SatmapError
from satmap.submissions.fault import Fault

# Characters of a faulty cell shown in a message.
_SHOWN = 60


@dataclass(frozen=True)
class CsvRow:
    """One line of a table, or the reason why it cannot be read.

    Attributes:
        line: line of the file, from 1.
        cells: stripped text of each requested column; None if the file lacks the column.
        fault: why the line cannot be read; empty if it can.
        fatal: True if the rest of the file cannot be read either.
    """

    line: int
    cells: tuple[str | None, ...] = ()
    fault: str = ""
    fatal: bool = False


def read_records(path: Path, columns: Sequence[str], required: Sequence[str]) -> Iterator[CsvRow]:
    """Read the lines of a table below its header, without blank lines and lines that start with #.

    Args:
        path: the file.
        columns: names of the requested columns, which may be in any order and case in the file.
        required: names of the columns that the file must have.

    Raises:
        SatmapError: the file cannot be read.
    """
    # The default limit of 128 KiB would reject a road with ten thousand vertices.
    csv.field_size_limit(2**31 - 1)
    places: list[int | None] | None = None
    width = 0
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, line in enumerate(file, 1):
                cells, fault = _cells(line)
                if places is None:
                    names = [cell.strip().lower() for cell in cells]
                    missing = [name for name in required if name.lower() not in names]
                    if missing:
                        fault = fault or f"no column {' and '.join(missing)} in the header"
                        yield CsvRow(number, fault=fault, fatal=True)
                        return
                    places = [
                        names.index(name.lower()) if name.lower() in names else None
                        for name in columns
                    ]
                    width = len(names)
                    continue
                if not fault and (not any(map(str.strip, cells)) or cells[0].startswith("#")):
                    continue
                if not fault and len(cells) != width:
                    fault = f"{len(cells)} columns where the header has {width}"
                    if len(cells) > width:
                        fault += "; a cell with commas must stand in double quotes"
                if fault:
                    yield CsvRow(number, fault=fault)
                    continue
                wanted = tuple(None if place is None else cells[place].strip() for place in places)
                yield CsvRow(number, wanted)
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    if places is None:
        missing_all = " and ".join(required)
        yield CsvRow(1, fault=f"the file is empty: no column {missing_all}", fatal=True)


def check_header(path: Path, header: Sequence[str]) -> list[Fault]:
    """Check that the first line is exactly ``header``, without a byte order mark.

    Raises:
        SatmapError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.readline()
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    faults = []
    if raw.startswith(b"\xef\xbb\xbf"):
        faults.append(Fault(1, "the file starts with a byte order mark"))
        raw = raw[3:]
    text = raw.decode(errors="replace").rstrip("\r\n")
    if text != ",".join(header):
        faults.append(Fault(1, f"the header is {shown(text)}, not {','.join(header)}"))
    return faults


def parse_number(text: str) -> float:
    """Parse a finite number in plain decimal notation.

    Raises:
        ValueError: the text is anything else, such as ``nan``, ``1_000`` or non-ASCII digits, which
            Python accepts and the organisers' programs do not.
    """
    try:
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        raise ValueError(f"not a number: {shown(text)}") from None
    if not math.isfinite(number):
        raise ValueError(f"not a finite number: {shown(text)}")
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
