"""Layout of the crowdAI Mapping Challenge: JPEGs beside a file of COCO annotations.

With annotations, an image's id is the one that they give for its file name. Without annotations,
as in a directory of test images, it is the number in the file name. It never depends on the order
of the files.
"""

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.chip import Chip
from satmap.data.imagery import RGB, read_infos
from satmap.data.inventory import Inventory
from satmap.errors import SatmapError
from satmap.io.coco_annotations import read_coco_file


@dataclass(frozen=True)
class CocoAnnotations:
    """Content of an ``annotation.json``.

    Attributes:
        names: file name by image id, in the file's order.
        _xy: float32 (points, 2), points of all rings of all buildings, in pixels.
        _ring_ends: int64 (rings,), end of each ring in ``_xy``.
        _building_ends: int64 (buildings,), end of each building in ``_ring_ends``.
        _of_image: indices of an image's buildings, by image id.
    """

    names: dict[int, str]
    _xy: NDArray[np.float32]
    _ring_ends: NDArray[np.int64]
    _building_ends: NDArray[np.int64]
    _of_image: dict[int, list[int]]

    def rings(self, image_id: int) -> list[list[NDArray[np.float64]]]:
        """Return the outer rings of each building of an image, float64 (n >= 3, 2) in pixels."""
        found = []
        for building in self._of_image.get(image_id, ()):
            first, last = (
                self._building_ends[i] if i >= 0 else 0 for i in (building - 1, building)
            )
            starts = [self._ring_ends[i - 1] if i else 0 for i in range(first, last)]
            ends = self._ring_ends[first:last]
            found.append(
                [self._xy[a:b].astype(np.float64) for a, b in zip(starts, ends, strict=True)]
            )
        return found


def read_coco_annotations(path: Path) -> CocoAnnotations:
    """Read a file of annotations; the result is cached until the file changes.

    Raises:
        SatmapError: the file cannot be read, is not JSON, or an image or annotation in it is
            invalid; the message names the file and the place.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    return _read(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, size: int, changed_ns: int) -> CocoAnnotations:
    images, annotations = read_coco_file(path, np.float32, annotated=False)
    names: dict[int, str] = {}
    for number, (image_id, image) in enumerate(images.items()):
        name = image.get("file_name")
        if not isinstance(name, str):
            raise SatmapError(f"{path}: images[{number}] needs a file_name, not {name!r:.80}.")
        names[image_id] = name
    of_image: dict[int, list[int]] = defaultdict(list)
    # A crowd is a region of many buildings, so no single building can be learned from it.
    buildings = [annotation for annotation in annotations if not annotation.crowd]
    for number, building in enumerate(buildings):
        of_image[building.image_id].append(number)
    rings = [ring for building in buildings for ring in building.rings]
    return CocoAnnotations(
        names,
        np.concatenate(rings) if rings else np.empty((0, 2), np.float32),
        np.cumsum([len(ring) for ring in rings], dtype=np.int64),
        np.cumsum([len(building.rings) for building in buildings], dtype=np.int64),
        dict(of_image),
    )


def outline(rings: list[NDArray[np.float64]]) -> shapely.Polygon | shapely.MultiPolygon:
    """Build one shape from the rings of a building; invalid if a ring crosses itself."""
    polygons = [shapely.Polygon(ring) for ring in rings]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


#: Name of the annotation file.
ANNOTATIONS = "annotation.json"

#: Suffixes of the images.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_AOI = "mapping-challenge"


def is_mapping_challenge(path: Path) -> bool:
    """Return whether a file is an image or the annotation file of this challenge."""
    return path.name == ANNOTATIONS or (
        path.suffix.lower() in PICTURE_SUFFIXES and path.stem.isascii() and path.stem.isdecimal()
    )


def scan_mapping_challenge(directories: Sequence[Path], files: Sequence[Path]) -> Inventory:
    """Find the chips among the files and read the headers of their images.

    ``files`` are all files in the directories. Annotated images that are missing, and directories
    or pipes with an image's name, become faults of the inventory.

    Raises:
        SatmapError: there is no image, an annotation file cannot be read, or two images have the
            same id.
    """
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    # Some archives unpack a file into a directory of the same name; then the file is the image.
    unpacked = {path.parent for path in pictures if path.parent.name == path.name}
    images = dict.fromkeys(path for path in pictures if path not in unpacked)
    chips: dict[int, Chip] = {}
    faults: dict[str, str] = {}
    for path in (path for path in files if path.name == ANNOTATIONS):
        annotations = read_coco_annotations(path)
        for number, name in annotations.names.items():
            image = _find(images, path.parent, name)
            if image is None:
                missing = f"{path} lists {name}, which is not in {path.parent / 'images'}."
                faults[str(number)] = missing
                continue
            del images[image]
            _add(chips, faults, number, image, path)
    unnamed = [path for path in images if not is_mapping_challenge(path)]
    for path in filter(is_mapping_challenge, images):
        _add(chips, faults, int(path.stem), path, None)
    if not chips and not faults:
        raise SatmapError(
            f"no images of the Mapping Challenge under {', '.join(map(str, directories))} "
            f"({len(unnamed)} other pictures). Expected images/000000000012.jpg beside "
            f"{ANNOTATIONS}, or images with numbers as names."
        )
    numbers = sorted({*chips, *map(int, faults)})
    return Inventory(
        chips=tuple(chips[number] for number in sorted(chips)),
        faults=faults,
        warnings=(),
        labels_without_image=(),
        long_ids={str(number): str(number) for number in numbers},
        ignored=tuple(unnamed),
        directories=tuple(directories),
        label_names={
            chip.image_id: [f"{ANNOTATIONS} with {chip.image.path.name} in its images"]
            for chip in chips.values()
            if chip.label is None
        },
    )


def _find(images: Container[Path], directory: Path, name: str) -> Path | None:
    # Use only the base name, so that a listed path cannot leave the annotations' directory.
    plain = Path(name).name
    places = (directory / "images" / plain, directory / plain)
    candidates = [*places, *(place / plain for place in places)]
    return next((path for path in candidates if path in images), None)


def _add(
    chips: dict[int, Chip], faults: dict[str, str], number: int, path: Path, label: Path | None
) -> None:
    if number in chips:
        raise SatmapError(
            f"two images have the id {number}:\n  {chips[number].image.path}\n  {path}\n"
            "Give a directory that holds one of them, such as `train` alone."
        )
    infos, wrong = read_infos({RGB: path})
    if wrong:
        faults[str(number)] = wrong[0]
        return
    chips[number] = Chip(str(number), str(number), _AOI, infos, label, number=number)
