"""Draw a submission over every image of some directories."""

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

from satmap.data.chip import Chip
from satmap.data.imagery import read_stretched
from satmap.data.inventory import Inventory
from satmap.errors import SatmapError
from satmap.io.progress import track
from satmap.report.panels import Picture, write_picture
from satmap.submissions.rows import Row


def draw_chips(
    submission: Path,
    names: Container[str],
    inventory: Inventory,
    pictures: Path,
    draw: Callable[[Chip, Picture], Picture],
) -> list[Path]:
    """Write a picture of every image.

    Args:
        submission: the file that is drawn, for messages.
        names: names of its images.
        inventory: the images.
        pictures: directory for the PNG files, one per image, named like the image.
        draw: returns the picture of a chip, given its stretched image.

    Returns:
        The files written. Images that cannot be read are skipped.

    Raises:
        SatmapError: no image can be read, or the submission has none of the images.
        CannotWriteError: a picture cannot be written.
    """
    where = ", ".join(map(str, inventory.directories))
    if not any(name in names for chip in inventory.chips for name in _names(chip)):
        raise SatmapError(f"{submission} has none of the images in {where}.")
    written = []
    for chip in track(inventory.chips, "drawing", len(inventory.chips)):
        try:
            image = read_stretched(chip.image, 2, 98, 3)
        except SatmapError:
            continue
        written.append(pictures / f"{chip.image_id}.png")
        write_picture(written[-1], draw(chip, image))
    if not written:
        raise SatmapError(f"none of the images in {where} can be read.")
    return written


def rows_of(chip: Chip, rows: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return the rows of a chip in a file, which may name it by its id, long id or number."""
    return list(next((rows[name] for name in _names(chip) if name in rows), ()))


def _names(chip: Chip) -> tuple[str, ...]:
    number = () if chip.number is None else (str(chip.number),)
    return (chip.image_id, chip.long_id, *number)
