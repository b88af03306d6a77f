"""Problem report shared by the validators of all formats."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Problem that would get a submission rejected or a row dropped.

    Attributes:
        line: line of the file, from 1; None if the problem has no line (a missing image).
        message: description of the problem.
    """

    line: int | None
    message: str


def in_file_order(faults: list[Fault]) -> list[Fault]:
    """Sort faults by line, stably; those without a line come last."""
    return sorted(faults, key=lambda fault: (fault.line is None, fault.line or 0))
