"""What the validators of all formats report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Something the organisers would reject the file, or drop a row, for.

    Attributes:
        line: line of the file, from 1; None when the fault has no line (a missing image).
        message: what is wrong.
    """

    line: int | None
    message: str


def in_file_order(faults: list[Fault]) -> list[Fault]:
    """Faults by line, those of the file as a whole last, otherwise in the order they were found."""
    return sorted(faults, key=lambda fault: (fault.line is None, fault.line or 0))
