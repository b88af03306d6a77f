"""Average precision and recall of the Mapping Challenge, computed by COCO's own pycocotools.

``ap50`` and ``ar50`` are precision and recall at an IoU of 0.5. ``ap`` is precision averaged over
IoU 0.50 to 0.95, the COCO average (Lin et al. 2014, "Microsoft COCO: Common Objects in Context").
All are computed on masks, over buildings of any size, with at most 100 detections per image.
"""

import contextlib
import copy
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import Matches
from satmap.evaluation.metrics.figures import Figures, Report
from satmap.io.coco_annotations import CATEGORY
from satmap.submissions.coco_json import (
    MAX_DETECTIONS,
    CocoBuilding,
    CocoResult,
    CocoTruth,
    read_coco_results,
    read_coco_truth,
)
from satmap.submissions.coco_masks import CocoMask

_IOU_50 = 0

# Recalls at which precision is sampled, 0.00 to 1.00.
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """Matches of an image's detections at an IoU of 0.5, as found by pycocotools.

    Attributes:
        scores: float64 (n,), scores of the detections, best first; those in crowds are left out.
        right: bool (n,), whether each detection matches a building.
        buildings: number of buildings to find.
    """

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    buildings: int


def match_image(truth: Sequence[CocoBuilding], found: Sequence[CocoResult]) -> ImageMatches:
    """Match the detections of one image with its buildings, at an IoU of 0.5."""
    evaluation = _evaluate(CocoTruth({}, {0: truth}), {0: found}, [0], thresholds=[0.5])
    image: Any = evaluation.evalImgs[0]
    if image is None:
        return ImageMatches(np.zeros(0), np.zeros(0, np.bool_), 0)
    counted = ~np.asarray(image["dtIgnore"][0], np.bool_)
    scores = np.asarray(image["dtScores"], np.float64)
    matches = np.asarray(image["dtMatches"][0])
    return ImageMatches(
        scores[counted], matches[counted] > 0, int((~np.asarray(image["gtIgnore"], bool)).sum())
    )


def match_masks(truth: Sequence[CocoBuilding], found: Sequence[CocoResult]) -> Matches:
    """Return which building each detection of an image matches at an IoU of 0.5.

    Crowds, detections in them, and detections beyond the first 100 do not count.
    """
    taken = np.full(len(found), -1)
    counted_truth = np.array([not building.crowd for building in truth], np.bool_)
    counted = np.zeros(len(found), np.bool_)
    evaluation = _evaluate(CocoTruth({}, {0: truth}), {0: found}, [0], thresholds=[0.5])
    image: Any = evaluation.evalImgs[0]
    if image is not None:
        # _coco numbers buildings and detections from 1; no match is 0.
        index = np.asarray(image["dtIds"], np.int64) - 1
        counted[index] = ~np.asarray(image["dtIgnore"][0], np.bool_)
        taken[index] = np.asarray(image["dtMatches"][0], np.int64) - 1
        taken[~counted] = -1
    return Matches(taken, counted_truth, counted)


def average_precision(images: Sequence[ImageMatches]) -> float:
    """Compute the ``ap50`` of several images together: mean precision over all recalls.

    As in the official program, precision at a recall is the best at that recall or beyond, and of
    equal scores the earlier image's comes first. The result is 0 if there is no building.
    """
    buildings = sum(image.buildings for image in images)
    if not buildings:
        return 0.0
    scores = np.concatenate([image.scores for image in images])
    right = np.concatenate([image.right for image in images])
    right = right[np.argsort(-scores, kind="stable")]
    found = np.cumsum(right)
    precision = found / np.arange(1, len(found) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    at = np.searchsorted(found / buildings, _RECALLS, side="left")
    return float(best[at].mean())


def score_coco(truth: Path, results: Path) -> Report:
    """Score a list of results against annotations.

    ``total`` and every entry of ``images`` have ``ap50``, ``ar50`` and ``ap``. Without a building
    in the truth these are undefined: ``total`` then holds None, and an image has no entry. Images
    with buildings but without detections are listed in ``truth_only``; the official rule already
    counts them as missed. The official program rejects a file with results for images that the
    truth does not list. Here ``total`` leaves these results out, and its ``fair_`` figures count
    them as false.

    Raises:
        SatmapError: a file cannot be read or scored, or a mask differs in size from its image.
    """
    true, found = read_coco_truth(truth), read_coco_results(results)
    for image_id, record in found.items():
        width, height = true.sizes.get(image_id, record[0].mask.size[::-1])
        for result in record:
            if result.mask.size != (height, width):
                raise SatmapError(
                    f"{results}: a mask of image {image_id} has height x width "
                    f"{result.mask.size[0]} x {result.mask.size[1]}, but the image has "
                    f"{height} x {width} in {truth}. Give masks of whole images."
                )
    known = sorted(true.sizes)
    unknown = sorted(found.keys() - true.sizes.keys())
    evaluation = _evaluate(true, found, [*known, *unknown])
    # One list entry per image, in the order of the ids; None where neither side has anything.
    by_image = dict(zip(evaluation.params.imgIds, evaluation.evalImgs, strict=True))
    official = _figures(evaluation, [by_image[image_id] for image_id in known])
    fair = _figures(evaluation, evaluation.evalImgs)
    return Report(
        metric="coco_ap",
        total={
            **official,
            **{f"fair_{name}": figure for name, figure in fair.items()},
            "images": len(known),
        },
        aois={},
        images={
            str(image_id): _figures(evaluation, [by_image[image_id]])
            for image_id in known
            if image_id in true.buildings
        },
        truth_only=tuple(str(i) for i in known if i in true.buildings and i not in found),
        proposal_only=tuple(map(str, unknown)),
    )


def _evaluate(
    truth: CocoTruth,
    results: Mapping[int, Sequence[CocoResult]],
    ids: Sequence[int],
    thresholds: Sequence[float] | None = None,
) -> COCOeval:
    """Match all images with pycocotools, by default at all IoUs from 0.50 to 0.95."""
    buildings = [
        {**_annotation(image_id, building.mask), "iscrowd": int(building.crowd)}
        for image_id, record in truth.buildings.items()
        for building in record
    ]
    detections = [
        {**_annotation(image_id, result.mask), "score": result.score}
        for image_id, record in results.items()
        for result in record
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(ids, buildings), _coco(ids, detections), "segm")
        # Skipping what the challenge does not use saves three quarters of the time.
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        if thresholds is not None:
            evaluation.params.iouThrs = np.array(thresholds)
        evaluation.evaluate()
    return evaluation


def _annotation(image_id: int, mask: CocoMask) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": CATEGORY, "segmentation": mask.for_library()}


def _coco(ids: Iterable[int], annotations: Sequence[dict[str, Any]]) -> COCO:
    # Number from 1, whatever the file says: pycocotools takes the id 0 for "no match".
    for number, annotation in enumerate(annotations, 1):
        # One by one: given a list, pycocotools fails for more than 255.
        area = float(coco_mask.area(annotation["segmentation"]))
        annotation.update(id=number, area=area)
    coco = COCO()
    coco.dataset = {
        # Masks carry their own size; the image size is used for polygons only.
        "images": [{"id": i, "width": 0, "height": 0, "file_name": ""} for i in ids],
        "annotations": annotations,  # type: ignore[typeddict-item]
        "categories": [{"id": CATEGORY, "name": "building", "supercategory": "building"}],
    }
    coco.createIndex()
    return coco


def _figures(evaluation: COCOeval, of_images: Sequence[Any]) -> Figures:
    """Return precision and recall over some of the matched images."""
    part = copy.copy(evaluation)
    part.params = part._paramsEval = copy.copy(evaluation.params)  # type: ignore[attr-defined]
    # From here on pycocotools uses only the number of images.
    part.params.imgIds = list(range(len(of_images)))
    part.evalImgs = list(of_images)
    with contextlib.redirect_stdout(io.StringIO()):
        part.accumulate()
    # (IoU, recall, category, area, detections) and (IoU, category, area, detections); -1 where
    # there are no buildings.
    precision, recall = part.eval["precision"], part.eval["recall"]
    if recall.max(initial=-1) < 0:
        return {"ap50": None, "ar50": None, "ap": None}
    return {
        "ap50": float(np.mean(precision[_IOU_50])),
        "ar50": float(np.mean(recall[_IOU_50])),
        "ap": float(np.mean(precision)),
    }
