"""Mapping Challenge: submissions as a JSON list of COCO results, truth as COCO annotations.

    [
    {"image_id": 12, "category_id": 100, "score": 0.93,
     "segmentation": {"size": [300, 300], "counts": "dX4..."}, "bbox": [12, 40, 20, 31]},
    ...
    ]

Masks are COCO's compressed run lengths (``coco_masks``). Images without buildings have no entry, so
missing images cannot be detected.
"""

import heapq
import json
import math
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from satmap.errors import SatmapError
from satmap.io.coco_annotations import CATEGORY, Ring, read_coco_file
from satmap.io.files import atomic_path
from satmap.submissions.coco_masks import PIXEL_LIMIT, CocoMask, measure_runs
from satmap.submissions.csv_table import shown
from satmap.submissions.fault import Fault, in_file_order, read_first_line, repetitions
from satmap.submissions.json_list import BrokenFileError, JsonList
from satmap.vectors.buildings import Building

#: The evaluation considers only this many detections per image, those with the highest scores.
MAX_DETECTIONS = 100

# Largest difference between a given box and the box of the mask. Programs disagree whether the last
# pixel belongs to a box.
_BOX_TOLERANCE_PX = 1.0

# Size of the batches that are decoded and checked.
_BATCH_CHARACTERS = 1 << 19


@dataclass(frozen=True, eq=False)
class Detection:
    """Building found in an image.

    Attributes:
        mask: bool or uint8 (h, w), nonzero on the building; any rectangle of the image.
        offset: column and row of the rectangle's top left corner in the image.
        score: confidence, finite.
    """

    mask: NDArray[np.bool_] | NDArray[np.uint8]
    offset: tuple[int, int]
    score: float


@dataclass(frozen=True, slots=True)
class CocoResult:
    """Detection as stored in a results file."""

    mask: CocoMask
    score: float


@dataclass(frozen=True, slots=True)
class CocoBuilding:
    """Building of the truth, rasterized as in the official evaluation.

    A crowd is a region of many buildings: detections in it are neither true nor false positives.
    """

    mask: CocoMask
    crowd: bool


@dataclass(frozen=True)
class CocoTruth:
    """Content of an ``annotation.json``.

    Attributes:
        sizes: width and height by image id.
        buildings: buildings by image id; images without buildings are left out.
    """

    sizes: Mapping[int, tuple[int, int]]
    buildings: Mapping[int, Sequence[CocoBuilding]]


# --- writing --------------------------------------------------------------------------------------


def write_coco_results(
    path: Path,
    detections: Mapping[int, Sequence[Detection]],
    sizes: Mapping[int, tuple[int, int]],
) -> None:
    """Write results atomically, one entry per line, independent of the order of the input.

    Entries are sorted by image id, then by descending score, then by mask. Empty masks are left
    out. Of equal masks in an image, the one with the highest score is kept. Only the best 100
    detections of an image are written, because the evaluation ignores the others. Without any
    detection the file is an empty list, which the official evaluation cannot read; there is no
    alternative.

    ``sizes`` holds width and height by image id. Images without detections may be left out of
    ``detections``.

    Raises:
        SatmapError: ``path`` cannot be written.
        ValueError: a score is not finite, a mask is not two-dimensional or extends beyond its
            image, or the size of an image is missing.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii", newline="") as file:
        separator = "[\n"
        for image_id in sorted(detections):
            if image_id not in sizes:
                raise ValueError(f"no size is given for image {image_id}")
            width, height = sizes[image_id]
            best = _best_of_image(image_id, detections[image_id], (width, height))
            for counts, score, box in best:
                entry = {
                    "image_id": int(image_id),
                    "category_id": CATEGORY,
                    "score": score,
                    "segmentation": {"size": [int(height), int(width)], "counts": counts},
                    "bbox": list(box),
                }
                file.write(separator + json.dumps(entry))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


def results_of(detections: Sequence[Detection], size: tuple[int, int]) -> list[CocoResult]:
    """Return the results that :func:`write_coco_results` would write for an image.

    Raises:
        ValueError: a score is not finite, or a mask is not two-dimensional or extends beyond the
            image of ``size`` (width, height).
    """
    width, height = size
    return [
        CocoResult(CocoMask((height, width), counts.encode()), score)
        for counts, score, _ in _best_of_image(0, detections, size)
    ]


def _best_of_image(
    image_id: int, detections: Sequence[Detection], size: tuple[int, int]
) -> Iterator[tuple[str, float, tuple[int, ...]]]:
    """Yield run lengths, score and box of the detections to be written, best first."""
    best: dict[str, tuple[float, tuple[int, ...]]] = {}
    for detection in detections:
        score = float(detection.score)
        if not math.isfinite(score):
            raise ValueError(f"image {image_id}: the score must be finite, got {score}")
        counts, box = _encode(image_id, detection, size)
        if box[2] and (counts not in best or best[counts][0] < score):
            best[counts] = score, box
    ranked = heapq.nsmallest(MAX_DETECTIONS, best, key=lambda counts: (-best[counts][0], counts))
    for counts in ranked:
        yield counts, *best[counts]


def _encode(
    image_id: int, detection: Detection, size: tuple[int, int]
) -> tuple[str, tuple[int, ...]]:
    """Encode a mask as run lengths in the whole image and its box x, y, width, height."""
    mask = np.asarray(detection.mask)
    if mask.ndim != 2:
        raise ValueError(f"image {image_id}: a mask must have shape (h, w), got {mask.shape}")
    (x, y), (width, height) = detection.offset, size
    if x < 0 or y < 0 or x + mask.shape[1] > width or y + mask.shape[0] > height:
        raise ValueError(
            f"image {image_id}: a mask of {mask.shape[1]} x {mask.shape[0]} px at {x}, {y} extends "
            f"beyond the image of {width} x {height}"
        )
    whole = np.zeros((height, width), np.uint8, order="F")
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask != 0
    encoded = coco_mask.encode(whole)
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return text, tuple(int(number) for number in coco_mask.toBbox(encoded))


# --- entries ---------------------------------------------------------------------


class _Entry(NamedTuple):
    """Entry of the list of results.

    Attributes:
        place: index in the list, from 0.
        line: line on which the entry begins.
        value: the JSON object; {} if the entry is not an object.
        faults: problems that prevent scoring.
        mask: the mask; None if it is missing or invalid.
    """

    place: int
    line: int
    value: dict[str, Any]
    faults: list[str]
    mask: CocoMask | None


def _read_entries(path: Path) -> Iterator[_Entry]:
    """Read the entries of a file in batches; BrokenFileError comes after all readable entries."""
    batch: list[tuple[int, int, Any]] = []
    characters = 0
    broken: BrokenFileError | None = None
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for place, (line, value) in enumerate(JsonList(file).values()):
                batch.append((place, line, value))
                characters += _BATCH_CHARACTERS // 4096 + len(_counts_of(value))
                if characters >= _BATCH_CHARACTERS:
                    yield from _decode(batch)
                    batch, characters = [], 0
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror or error}.") from error
    except BrokenFileError as error:
        broken = error
    yield from _decode(batch)
    if broken is not None:
        raise broken


def _counts_of(value: object) -> str:
    """Return the run lengths of an entry, "" if it has none."""
    segmentation = value.get("segmentation") if isinstance(value, dict) else None
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    return counts if isinstance(counts, str) else ""


def _decode(batch: Sequence[tuple[int, int, Any]]) -> Iterator[_Entry]:
    texts = [_counts_of(value) for _, _, value in batch]
    # Text that is not ASCII becomes NUL, which is rejected as invalid run lengths.
    counts = [text.encode() if text.isascii() else b"\0" for text in texts]
    valid, totals = measure_runs(counts)
    runs = zip(batch, counts, valid.tolist(), totals.tolist(), strict=True)
    for (place, line, value), run_lengths, is_valid, total in runs:
        yield _Entry(place, line, *_examine(value, run_lengths, is_valid, total))


def _examine(
    value: object, counts: bytes, valid: bool, total: int
) -> tuple[dict[str, Any], list[str], CocoMask | None]:
    """Return the entry as an object, the problems that prevent scoring, and its mask."""
    if not isinstance(value, dict):
        return {}, ["not an object"], None
    faults = [
        f"no {key}"
        for key in ("image_id", "category_id", "score", "segmentation")
        if key not in value
    ]
    if "image_id" in value and not _is_id(value["image_id"]):
        faults.append(f"image_id must be an integer, got {_brief(value['image_id'])}")
    category = value.get("category_id", CATEGORY)
    if isinstance(category, bool) or not isinstance(category, int) or category != CATEGORY:
        faults.append(f"category_id must be {CATEGORY}, got {_brief(category)}")
    if "score" in value and not _is_finite(value["score"]):
        faults.append(f"score must be a finite number, got {_brief(value['score'])}")
    mask = None
    if "segmentation" in value:
        fault = _segmentation_fault(value["segmentation"], valid, total)
        if fault:
            faults.append(fault)
        else:
            height, width = value["segmentation"]["size"]
            mask = CocoMask((height, width), counts)
    return value, faults, mask


def _segmentation_fault(segmentation: object, valid: bool, total: int) -> str:
    if not isinstance(segmentation, dict) or not segmentation.keys() >= {"size", "counts"}:
        return "segmentation must be an object with size and counts"
    size = segmentation["size"]
    if not (
        isinstance(size, list)
        and len(size) == 2
        and all(_is_id(length) and length > 0 for length in size)
        and size[0] * size[1] < PIXEL_LIMIT
    ):
        return f"size must be [height, width] in pixels, got {_brief(size)}"
    if not isinstance(segmentation["counts"], str):
        return f"counts must be text, got {_brief(segmentation['counts'])}"
    if not valid:
        return f"counts are not compressed run lengths: {shown(segmentation['counts'])}"
    if total != size[0] * size[1]:
        return f"the run lengths sum to {total}, not to {size[0]} x {size[1]} = {size[0] * size[1]}"
    return ""


def _is_id(value: object) -> TypeGuard[int]:
    """Whether the value is a 64-bit integer."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_finite(value: object) -> TypeGuard[float]:
    # The comparison is False for NaN; integers may be too large for a float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def _brief(value: object) -> str:
    try:
        return shown(value) if isinstance(value, str) else shown(json.dumps(value))[1:-1]
    except (ValueError, RecursionError):
        # Python refuses to print integers with thousands of digits.
        return "something too large to show"


# --- reading --------------------------------------------------------------------------------------


def read_coco_results(path: Path) -> dict[int, list[CocoResult]]:
    """Read results by image id, in the file's order.

    Keys without influence on the score, such as ``bbox``, are not checked.

    Raises:
        SatmapError: the file cannot be read, is not a JSON list or has an entry that cannot be
            scored; the message names the file, the line and the problem.
    """
    results: dict[int, list[CocoResult]] = {}
    try:
        for entry in _read_entries(path):
            if entry.faults or entry.mask is None:
                raise SatmapError(
                    f"{path}, line {entry.line}: entry {entry.place}: {entry.faults[0]}."
                )
            result = CocoResult(entry.mask, float(entry.value["score"]))
            results.setdefault(entry.value["image_id"], []).append(result)
    except BrokenFileError as error:
        raise SatmapError(f"{path}, line {error.line}: {error}.") from error
    return results


def read_coco_sizes(path: Path) -> dict[int, tuple[int, int]]:
    """Read the width and height of an annotations file's images; errors as read_coco_truth."""
    return _sizes(path, read_coco_file(path).images)


def read_coco_truth(path: Path) -> CocoTruth:
    """Read COCO annotations with polygons, in the file's order.

    Raises:
        SatmapError: the file cannot be read, is not JSON, or has an invalid image or annotation;
            the message names the file and the entry.
    """
    images, annotations = read_coco_file(path)
    sizes = _sizes(path, images)
    buildings: dict[int, list[CocoBuilding]] = {}
    for number, (image_id, _, crowd, rings) in enumerate(annotations):
        if not rings:
            raise SatmapError(
                f"{path}: annotations[{number}] is a crowd without polygons; not supported."
            )
        mask = _draw(rings, *sizes[image_id])
        buildings.setdefault(image_id, []).append(CocoBuilding(mask, crowd))
    return CocoTruth(sizes, buildings)


def _sizes(path: Path, images: Mapping[int, dict[str, Any]]) -> dict[int, tuple[int, int]]:
    sizes: dict[int, tuple[int, int]] = {}
    for number, (image_id, image) in enumerate(images.items()):
        width, height = image.get("width"), image.get("height")
        if not (_is_id(width) and _is_id(height)):
            raise SatmapError(f"{path}: images[{number}] needs width and height as integers.")
        if width < 1 or height < 1 or width * height >= PIXEL_LIMIT:
            raise SatmapError(
                f"{path}: images[{number}] has the size {width} x {height}, which is invalid."
            )
        sizes[image_id] = width, height
    return sizes


def _draw(rings: Sequence[Ring], width: int, height: int) -> CocoMask:
    """Rasterize the union of polygons as the official evaluation does."""
    polygons = [ring.ravel().tolist() for ring in rings]
    drawn = coco_mask.frPyObjects(polygons, height, width)
    counts = coco_mask.merge(drawn)["counts"]
    return CocoMask((height, width), counts.encode() if isinstance(counts, str) else counts)


# --- checking -------------------------------------------------------------------------------------


def check_coco_results(
    path: Path, truth_images: Mapping[int, tuple[int, int]] | None = None
) -> list[Fault]:
    """Find problems for which the official evaluation fails, hangs or drops an entry.

    Also reported are probable mistakes that can only lower the score: boxes that do not match their
    mask, empty masks, and equal masks in an image. Images without an entry are not a fault. Given
    ``truth_images``, the width and height of all images by id, unknown images and wrong sizes are
    reported too. The file is read in one pass; memory grows by 40 bytes per entry.

    Returns:
        Faults in the file's order, with the line on which the entry begins. Messages count entries
        from 0.

    Raises:
        SatmapError: the file cannot be read.
    """
    _, faults = read_first_line(path)
    numbers, scores = array("q"), array("d")  # of the scorable entries
    entry = None
    try:
        for entry in _read_entries(path):
            messages = [*entry.faults, *_further_faults(entry, truth_images)]
            faults += [Fault(entry.line, f"entry {entry.place}: {text}") for text in messages]
            if not entry.faults and entry.mask is not None:
                # A hash has 64 bits: among a million masks, a collision has a chance of one in tens
                # of millions.
                mask_hash, image_id = hash(entry.mask.counts), entry.value["image_id"]
                numbers.extend((mask_hash, image_id, entry.place, entry.line))
                scores.append(entry.value["score"])
        if entry is None:
            faults.append(Fault(None, "the list is empty; the official evaluation fails on it"))
    except BrokenFileError as error:
        faults.append(Fault(error.line, str(error)))
    rows = np.frombuffer(numbers, np.int64).reshape(-1, 4)
    for i, first in repetitions(rows[:, :2]):
        _, image_id, place, line = rows[i].tolist()
        text = f"image {image_id} already has this mask in entry {rows[first, 2]}"
        faults.append(Fault(line, f"entry {place}: {text}"))
    faults += _surplus_detections(rows[:, 1:], np.frombuffer(scores, np.float64))
    return in_file_order(faults)


def _further_faults(
    entry: _Entry, truth_images: Mapping[int, tuple[int, int]] | None
) -> Iterator[str]:
    """Yield the problems of an entry that do not prevent reading it."""
    value, mask = entry.value, entry.mask
    image_id = value.get("image_id")
    if truth_images is not None and _is_id(image_id):
        if image_id not in truth_images:
            yield f"unknown image {image_id}"
        elif mask is not None:
            width, height = truth_images[image_id]
            if mask.size != (height, width):
                yield f"size must be [{height}, {width}], as of the image, got {list(mask.size)}"
    mask_box = mask.box() if mask is not None else None
    if mask_box and not mask_box[2]:
        yield "the mask is empty"
    if not value:
        return
    box = value.get("bbox")
    if "bbox" not in value:
        yield "no bbox"
    elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        yield f"bbox must be four finite numbers, got {_brief(box)}"
    elif mask_box and not _same_box(box, mask_box):
        yield f"bbox must be {_brief(list(map(int, mask_box)))}, got {_brief(box)}"


def _same_box(a: Sequence[float], b: Sequence[float]) -> bool:
    sides = zip((*a[:2], a[0] + a[2], a[1] + a[3]), (*b[:2], b[0] + b[2], b[1] + b[3]), strict=True)
    return all(abs(one - other) <= _BOX_TOLERANCE_PX for one, other in sides)


def _surplus_detections(entries: NDArray[np.int64], scores: NDArray[np.float64]) -> Iterator[Fault]:
    """Yield a fault for every image with too many detections, at the first one dropped.

    ``entries`` (n, 3) holds image, place and line.
    """
    if not len(scores):
        return
    images = entries[:, 0]
    order = np.lexsort((-scores, images))
    begins = np.flatnonzero(np.diff(images[order], prepend=images[order[0]] - 1))
    counts = np.diff([*begins, len(order)])
    rank = np.arange(len(order)) - np.repeat(begins, counts)
    dropped = np.sort(order[rank >= MAX_DETECTIONS])
    count_of = dict(zip(images[order[begins]].tolist(), counts.tolist(), strict=True))
    first_dropped = dropped[np.unique(images[dropped], return_index=True)[1]]
    for image_id, place, line in entries[first_dropped].tolist():
        yield Fault(
            line,
            f"entry {place}: image {image_id} has {count_of[image_id]} detections, but the "
            f"evaluation uses only the {MAX_DETECTIONS} with the highest scores; this is the first "
            "one that it drops",
        )


def detections_of(buildings: Sequence[Building], size: tuple[int, int]) -> list[Detection]:
    """Rasterize buildings as masks; a pixel belongs to a building if its centre is inside.

    ``size`` is the height and width of the image.
    """
    drawn = []
    height, width = size
    for building in buildings:
        polygon = building.polygon
        left, top, right, bottom = (round(bound) for bound in polygon.bounds)
        # Outlines may extend slightly beyond the image.
        left, right = max(left - 1, 0), min(right + 1, width)
        top, bottom = max(top - 1, 0), min(bottom + 1, height)
        if left >= right or top >= bottom:
            continue
        inside = shapely.transform(polygon, lambda xy, corner=(left, top): xy - corner)
        mask = rasterio.features.rasterize([(inside, 1)], (bottom - top, right - left))
        drawn.append(Detection(mask.astype("uint8"), (left, top), building.score))
    return drawn
