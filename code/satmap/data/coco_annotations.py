"""Building labels of the Mapping Challenge: the polygons of a COCO ``annotation.json``.

The challenge's own file has a quarter of a gigabyte and two million buildings. What the parser
makes of a building is packed at once, so that the file takes little more memory than its text.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.json_files import read_json

#: The challenge's only category.
BUILDING_CATEGORY = 100

# Beyond any image; floats of 32 bits hold hundredths of a pixel below it.
_LARGEST_PIXEL = 1e5


class _Building(NamedTuple):
    """An annotation, packed: a crowd has no rings, nor has what is no list of polygons."""

    image_id: object
    category: object
    rings: tuple[NDArray[np.float32], ...]
    fault: str


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
    content = read_json(path, _packed)
    images = content.get("images") if isinstance(content, dict) else None
    annotations = content.get("annotations", []) if isinstance(content, dict) else None
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise SatmapError(
            f"{path}: not COCO annotations; expected an object with the lists images and "
            "annotations."
        )
    names: dict[int, str] = {}
    for number, image in enumerate(images):
        image_id = image.get("id") if isinstance(image, dict) else None
        name = image.get("file_name") if isinstance(image, dict) else None
        if type(image_id) is not int or not isinstance(name, str):
            raise SatmapError(
                f"{path}: images[{number}] needs an integer as id and a file_name, not "
                f"{image_id!r:.40} and {name!r:.80}."
            )
        if image_id in names:
            raise SatmapError(f"{path}: images[{number}] repeats the id {image_id}.")
        names[image_id] = name
    of_image: dict[int, list[int]] = defaultdict(list)
    kept: list[_Building] = []
    for number, building in enumerate(annotations):
        if not isinstance(building, _Building):
            raise SatmapError(
                f"{path}: annotations[{number}] needs an image_id and a segmentation."
            )
        if type(building.image_id) is not int or building.image_id not in names:
            raise SatmapError(
                f"{path}: annotations[{number}] is of the image {building.image_id!r:.40}, which "
                "is not listed."
            )
        if building.category != BUILDING_CATEGORY:
            raise SatmapError(
                f"{path}: annotations[{number}] has category_id {building.category!r:.40}; the "
                f"Mapping Challenge knows only {BUILDING_CATEGORY}, building."
            )
        if building.fault:
            raise SatmapError(f"{path}: annotations[{number}] {building.fault}.")
        if building.rings:
            of_image[building.image_id].append(len(kept))
            kept.append(building)
    rings = [ring for building in kept for ring in building.rings]
    return CocoAnnotations(
        path,
        names,
        np.concatenate(rings) if rings else np.empty((0, 2), np.float32),
        np.cumsum([len(ring) for ring in rings], dtype=np.int64),
        np.cumsum([len(building.rings) for building in kept], dtype=np.int64),
        dict(of_image),
    )


def _packed(value: dict[str, Any]) -> Any:
    """An annotation packed, any other object as it is."""
    if "image_id" not in value or "segmentation" not in value:
        return value
    polygons, rings, fault = value["segmentation"], [], ""
    if value.get("iscrowd") in (1, True):
        # A region of many buildings, which is nothing to learn one from.
        polygons = []
    elif not isinstance(polygons, list) or not polygons:
        fault = "must have a segmentation of polygons [x, y, x, y, ...]"
        polygons = []
    for numbers in polygons:
        try:
            ring = np.array(numbers, np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            ring = np.empty((0, 2))
        if len(ring) < 3 or not (np.abs(ring) <= _LARGEST_PIXEL).all():
            fault = "has a polygon that is no list of x and y of three points or more"
            continue
        rings.append(ring.astype(np.float32))
    return _Building(value["image_id"], value.get("category_id"), tuple(rings), fault)


def outline(rings: list[NDArray[np.float64]]) -> shapely.Polygon | shapely.MultiPolygon:
    """The rings of a building as one shape; invalid where a ring crosses itself."""
    polygons = [shapely.Polygon(ring) for ring in rings]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
