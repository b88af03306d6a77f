"""What commands say on standard error."""

import sys
from collections.abc import Mapping, Sequence

from satmap.text import printable


def report_warnings(warnings: Sequence[str]) -> None:
    """Say what the user should know."""
    for warning in warnings:
        print(f"satmap: {printable(warning)}", file=sys.stderr)


def report_faults(faults: Mapping[str, str], outcome: str) -> None:
    """Name the images that could not be worked on, what was wrong, and what became of them."""
    if faults:
        print(f"satmap: {len(faults)} images were {outcome}:", file=sys.stderr)
    for image_id, fault in faults.items():
        print(f"  {printable(image_id)}: {printable(fault)}", file=sys.stderr)
