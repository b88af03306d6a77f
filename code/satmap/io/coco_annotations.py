"""Read COCO annotation files of buildings in the format of the Mapping Challenge."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.io.text import printable

#: The challenge's only category: building.
CATEGORY = 100

# float32 or float64.
Ring = NDArray[Any]

# Limit of coordinates in pixels, larger than any image. The evaluation's library rasterises edges
# point by point, even outside the image. Below the limit float32 resolves hundredths of a pixel.
_LARGEST_PIXEL = 1e5

_NUMBERS = {int, float}


class CocoAnnotation(NamedTuple):
    """A building, or a region of many buildings.

    Attributes:
        image_id: id of an image in the file.
        category: 100.
        crowd: whether it is a region of many buildings.
        rings: polygons, float (n >= 3, 2) in pixels; empty for a crowd without polygons.
    """

    image_id: Any
    category: Any = None
    crowd: bool = False
    rings: tuple[Ring, ...] = ()


class CocoFile(NamedTuple):
    """Content of an annotation file: images by id and annotations, in the file's order."""

    images: dict[int, dict[str, Any]]
    annotations: list[CocoAnnotation]


def read_coco_file(
    path: Path, kind: type[np.float32] | type[np.float64] = np.float64, annotated: bool = True
) -> CocoFile:
    """Read a file of annotations.

    Polygons are packed into arrays of the data type ``kind`` during parsing, which limits the
    memory. Unless ``annotated``, the file need not have annotations.

    Raises:
        SatmapError: the file cannot be read, is not JSON, or an image or annotation in it is
            invalid; the message names the file and the place.
    """
    content = _read_json(path, partial(_pack, kind=kind))
    if not isinstance(content, dict):
        raise SatmapError(f"{path}: not COCO annotations; expected an object with images.")
    if not annotated:
        content.setdefault("annotations", [])
    for key in ("images", "annotations"):
        found = content.get(key)
        if not isinstance(found, list) or not all(
            isinstance(item, dict | CocoAnnotation) for item in found
        ):
            raise SatmapError(f"{path}: not COCO annotations: {key} must be a list of objects.")
    images: dict[int, dict[str, Any]] = {}
    for number, image in enumerate(content["images"]):
        image_id = image.get("id") if isinstance(image, dict) else None
        # Evaluation tools store ids as 64-bit integers.
        if type(image_id) is not int or not -(2**63) <= image_id < 2**63:
            raise SatmapError(
                f"{path}: images[{number}] needs an integer id, not {_shown(image_id)}."
            )
        if image_id in images:
            raise SatmapError(f"{path}: images[{number}] repeats the id {image_id}.")
        images[image_id] = image
    annotations = [
        CocoAnnotation(found.get("image_id"), found.get("category_id"))
        if isinstance(found, dict)
        else found
        for found in content["annotations"]
    ]
    for number, annotation in enumerate(annotations):
        fault = _fault(annotation, images)
        if fault:
            raise SatmapError(f"{path}: annotations[{number}] {fault}.")
    return CocoFile(images, annotations)


def _read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        raise SatmapError(f"{path}, line {error.lineno}: not JSON: {error.msg}.") from error
    # The bytes are not text, or the brackets are nested too deeply for Python.
    except (ValueError, RecursionError) as error:
        raise SatmapError(f"{path}: not JSON: {error}.") from error


def _pack(value: dict[str, Any], kind: type[np.float32] | type[np.float64]) -> Any:
    """Pack an annotation; return any other object unchanged."""
    if "image_id" not in value or "segmentation" not in value:
        return value
    return CocoAnnotation(
        value["image_id"],
        value.get("category_id"),
        value.get("iscrowd") in (1, True),
        _rings(value["segmentation"], kind),
    )


def _rings(polygons: object, kind: type[np.float32] | type[np.float64]) -> tuple[Ring, ...]:
    """Pack polygons; return none if one is not a list of x and y with three points or more."""
    if not isinstance(polygons, list):
        return ()
    rings: list[Ring] = []
    for numbers in polygons:
        if not isinstance(numbers, list) or len(numbers) < 6 or len(numbers) % 2:
            return ()
        # Reject strings and booleans. The range check also rejects NaN and huge integers.
        if not set(map(type, numbers)) <= _NUMBERS or not all(
            -_LARGEST_PIXEL <= number <= _LARGEST_PIXEL for number in numbers
        ):
            return ()
        rings.append(np.array(numbers, kind).reshape(-1, 2))
    return tuple(rings)


def _fault(annotation: CocoAnnotation, images: dict[int, dict[str, Any]]) -> str:
    if type(annotation.image_id) is not int or annotation.image_id not in images:
        return f"refers to the image {_shown(annotation.image_id)}, which is not listed"
    if annotation.category != CATEGORY:
        return (
            f"has category_id {_shown(annotation.category)}; the Mapping Challenge has only "
            f"{CATEGORY}, building"
        )
    if not annotation.rings and not annotation.crowd:
        return "must have a segmentation of polygons [x, y, x, y, ...] with three points or more"
    return ""


def _shown(value: object) -> str:
    try:
        return printable(json.dumps(value), 40)
    # The value may hold an already packed annotation, be nested too deeply, or be an integer of
    # thousands of digits, which Python does not print.
    except (TypeError, ValueError, RecursionError):
        return "a value that cannot be shown"
