"""The images of a prediction, where they lie and which of them help each other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from satmap.data.chip import Chip
from satmap.data.neighbours import Footprint, Neighbour
from satmap.surroundings import find_surroundings


@dataclass(frozen=True)
class Place:
    """A chip where it lies.

    Attributes:
        chip: the chip.
        key: says whose planes or roads something is, and with which neighbours they were made.
        neighbours: the chips around it, indices into the list of places.
    """

    chip: Chip
    key: str
    neighbours: tuple[Neighbour, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the chip's richest image."""
        return self.chip.image.height, self.chip.image.width


def places_of(chips: Sequence[Chip], neighbours: bool) -> list[Place]:
    """The chips with those around them.

    Args:
        chips: in the order of the output.
        neighbours: whether images that lie side by side help each other.
    """
    images = [chip.image for chip in chips]
    footprints = [Footprint(image.georeference, image.width, image.height) for image in images]
    around = find_surroundings(footprints) if neighbours else [[] for _ in chips]
    keys = [_key(chip) for chip in chips]
    return [
        Place(chip, _joined(key, [keys[n.image] for n in its]), tuple(its))
        for chip, key, its in zip(chips, keys, around, strict=True)
    ]


def _joined(key: str, around: Sequence[str]) -> str:
    """A key that is another one when something around is: of the many, a digest."""
    if not around:
        return key
    return f"{key} {hashlib.sha256(chr(10).join(sorted(around)).encode()).hexdigest()}"


def _key(chip: Chip) -> str:
    stat = chip.image.path.stat()
    return f"{chip.image_id} {chip.image.path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
