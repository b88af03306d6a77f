"""The layout of the crowdAI Mapping Challenge: JPEGs beside a file of COCO annotations.

With annotations an image's id is theirs, by its file name; without, as in a directory of test
images, it is the number in the name. It is never the place in a listing.
"""

from collections import defaultdict
from collections.abc import Sequence
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
    """What an ``annotation.json`` says.

    Attributes:
        path: the file.
        names: file name by image id, in the file's order.
        _xy: float32 (points, 2), all rings of all buildings.
        _ring_ends: int64 (rings,), where each ends in ``_xy``.
        _building_ends: int64 (buildings,), where each ends among the rings.
        _of_image: buildings of an image, by its id.
    """

    path: Path
    names: dict[int, str]
    _xy: NDArray[np.float32]
    _ring_ends: NDArray[np.int64]
    _building_ends: NDArray[np.int64]
    _of_image: dict[int, list[int]]

    def rings(self, image_id: int) -> list[list[NDArray[np.float64]]]:
        """For each building of an image its outer rings, float64 (n >= 3, 2) in pixels."""
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
    """Read a file of annotations; read once, as long as it does not change.

    Raises:
        SatmapError: the file cannot be read, is not JSON, or an image or annotation in it is not as
            it should be; the message names the file and the place.
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
    # A crowd is nothing to learn one building from.
    buildings = [annotation for annotation in annotations if not annotation.crowd]
    for number, building in enumerate(buildings):
        of_image[building.image_id].append(number)
    rings = [ring for building in buildings for ring in building.rings]
    return CocoAnnotations(
        path,
        names,
        np.concatenate(rings) if rings else np.empty((0, 2), np.float32),
        np.cumsum([len(ring) for ring in rings], dtype=np.int64),
        np.cumsum([len(building.rings) for building in buildings], dtype=np.int64),
        dict(of_image),
    )


def outline(rings: list[NDArray[np.float64]]) -> shapely.Polygon | shapely.MultiPolygon:
    """The rings of a building as one shape; invalid where a ring crosses itself."""
    polygons = [shapely.Polygon(ring) for ring in rings]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


#: What the file of annotations is called.
ANNOTATIONS = "annotation.json"

#: What its images end in.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_AOI = "mapping-challenge"


def is_mapping_challenge(path: Path) -> bool:
    """Whether a file is an image or the annotations of this challenge."""
    return path.name == ANNOTATIONS or (
        path.suffix.lower() in PICTURE_SUFFIXES and path.stem.isascii() and path.stem.isdecimal()
    )


def scan_mapping_challenge(directories: Sequence[Path], files: Sequence[Path]) -> Inventory:
    """Find the chips among the files and read the headers of their images.

    An image that the annotations list and that is not there is a fault of its own, and so is a
    directory or a pipe in the place of one.

    Args:
        directories: where the search went.
        files: all that is there, directories and pipes in images' places, too.

    Raises:
        SatmapError: there is no image, a file of annotations cannot be read, or two images have one
            id.
    """
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    # An archive may unpack a file into a directory of its name: then the file is the image.
    unpacked = {path.parent for path in pictures if path.parent.name == path.name}
    images = {path: path for path in pictures if path not in unpacked}
    chips: dict[int, Chip] = {}
    faults: dict[str, str] = {}
    for path in (path for path in files if path.name == ANNOTATIONS):
        annotations = read_coco_annotations(path)
        for number, name in annotations.names.items():
            image = _find(images, path.parent, name)
            if image is None:
                faults[str(number)] = (
                    f"{path} lists {name}, which is not in {path.parent / 'images'}."
                )
                continue
            del images[image]
            _add(chips, faults, number, image, annotations)
    unnamed = []
    for path in images:
        if is_mapping_challenge(path):
            _add(chips, faults, int(path.stem), path, None)
        else:
            unnamed.append(path)
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


def _find(images: dict[Path, Path], directory: Path, name: str) -> Path | None:
    # Names with directories lead nowhere but into the place of the annotations.
    plain = Path(name).name
    places = (directory / "images" / plain, directory / plain)
    candidates = [*places, *(place / plain for place in places)]
    return next((path for path in candidates if path in images), None)


def _add(
    chips: dict[int, Chip],
    faults: dict[str, str],
    number: int,
    path: Path,
    annotations: CocoAnnotations | None,
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
    name, label = str(number), annotations.path if annotations else None
    chips[number] = Chip(name, name, _AOI, infos, label, number=number)
