"""What the tasks that find buildings share: labels, validation scores, outputs and exports."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.label_files import Kind
from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import group_of, precision_recall_f1
from satmap.evaluation.metrics.figures import Counts
from satmap.evaluation.metrics.jaccard import dice_and_iou
from satmap.exports.buildings import export_buildings
from satmap.rasters.scene import Box
from satmap.report.panels import Ground, View
from satmap.report.pictures import buildings_picture
from satmap.submissions.buildings_csv import BuildingRow, write_buildings_csv
from satmap.submissions.coco_json import Detection, detections_of, write_coco_results
from satmap.submissions.rows import RowsByImage
from satmap.tasks.base import Task
from satmap.tasks.buildings.join_blocks import join_blocks
from satmap.tasks.buildings.labels import trace_parts
from satmap.tasks.buildings.result_decoder import MARGIN_PX
from satmap.tasks.buildings.settings import COCO_SUFFIX
from satmap.vectors.buildings import Building, Buildings, ImageBuildings
from satmap.vectors.georeference import Georeference, georeference_as_json, georeference_from_json


@dataclass(frozen=True)
class BuildingScore:
    """Score of one chip: found, false and missed buildings, and the predicted ones.

    ``overlap`` counts pixels of the masks; None for tasks without masks.
    """

    counts: Counts
    rows: list[BuildingRow]
    overlap: Counts | None = None


class BuildingOutputs(Task):
    """A task whose results are footprints of buildings.

    Attributes:
        margin_px: pixels around a block of a map that its buildings were found in.
    """

    noun: ClassVar[str] = "buildings"
    label_noun: ClassVar[str] = "building"
    label_kind: ClassVar[Kind | None] = "polygons"
    margin_px: int = MARGIN_PX

    def trace_mask(
        self, mask: NDArray[np.bool_], metres_per_pixel: tuple[float, float]
    ) -> list[shapely.Geometry]:
        """Return the outlines of a mask's connected parts, in pixels."""
        return trace_parts(mask)

    def load_payload(self, payload: Any) -> NDArray[np.object_]:
        """Return the labelled buildings, clipped to the image, in pixels of the file."""
        outlines: NDArray[np.object_] = shapely.from_wkb(np.array(payload, np.object_))
        return outlines

    def summarize(
        self, chips: Sequence[CachedChip], scores: Sequence[BuildingScore]
    ) -> dict[str, float]:
        """Return F1, precision and recall at an IoU of 0.5, and Dice and IoU of the masks, if any.

        The first three are means over areas, or over categories of view angles. Dice and IoU are
        pooled over all pixels.
        """
        groups: dict[str, Counts] = {}
        for chip, score in zip(chips, scores, strict=True):
            group = group_of(chip.image_id)
            groups[group] = groups.get(group, Counts()) + score.counts
        shares = [precision_recall_f1(counts) for counts in groups.values()]
        precision, recall, f1 = np.mean(shares, axis=0)
        overlaps = [score.overlap for score in scores if score.overlap is not None]
        return {
            "f1": float(f1),
            "precision": float(precision),
            "recall": float(recall),
            **(dice_and_iou(overlaps) if overlaps else {}),
        }

    def draw(self, chip: CachedChip, score: BuildingScore) -> NDArray[np.uint8]:
        """Draw found, missed and false buildings over the image."""
        image = chip.read_image(chip.shape[2], slice(None), slice(None)).transpose(1, 2, 0)
        height, width = chip.size
        counts = score.counts
        metres = float(np.mean(chip.metres_per_pixel))
        return buildings_picture(
            score.rows,
            true_buildings(chip),
            caption=[f"{chip.image_id}: {counts.tp} found, {counts.fn} missed, {counts.fp} false"],
            ground=Ground(View(0, 0, width, height), image[..., :3], metres),
        )

    # Results

    def with_georeference(
        self, found: list[Building], georeference: Georeference | None
    ) -> Buildings:
        """Return the buildings as a list with its georeference."""
        return Buildings(found, georeference)

    def record(
        self, chip: Chip, image_id: str, found: list[Building], georeference: Georeference | None
    ) -> ImageBuildings:
        """Bundle the buildings of an image with its id, size and georeference."""
        size = chip.image.height, chip.image.width
        return ImageBuildings(image_id, chip.number, size, tuple(found), georeference)

    def join_blocks(
        self,
        image_id: str,
        size: tuple[int, int],
        blocks: Sequence[tuple[Box, ImageBuildings]],
        georeference: Georeference | None,
    ) -> ImageBuildings:
        """Join the buildings of the blocks. A building in two blocks is kept once."""
        found = join_blocks([(box, record.buildings) for box, record in blocks], self.margin_px)
        return ImageBuildings(image_id, None, size, tuple(found), georeference)

    def keep_confident(self, record: ImageBuildings, least: float | None) -> ImageBuildings:
        """Return the record without buildings whose confidence is below ``least``."""
        if least is None:
            return record
        kept = tuple(b for b in record.buildings if (b.confidence or 0.0) >= least)
        return replace(record, buildings=kept)

    def count(self, record: ImageBuildings) -> int:
        """Return the number of buildings."""
        return len(record.buildings)

    def as_json(self, record: ImageBuildings) -> list[Any]:
        """Convert a record to JSON values; polygons become hexadecimal WKB."""
        return [
            record.image_id,
            record.number,
            record.size,
            [
                [b.polygon.wkb_hex, b.score, b.mean_probability, b.confidence]
                for b in record.buildings
            ],
            georeference_as_json(record.georeference),
        ]

    def from_json(self, content: list[Any]) -> ImageBuildings:
        """Restore a record from :meth:`as_json` without loss."""
        image_id, number, (height, width), rows, georeference = content
        found = tuple(
            Building(shapely.from_wkb(text), float(score), probability, confidence)
            for text, score, probability, confidence in rows
        )
        place = georeference_from_json(georeference)
        return ImageBuildings(image_id, number, (height, width), found, place)

    def check_outputs(self, output: Path, chips: Sequence[Chip]) -> None:
        """Reject COCO results for images without a number."""
        unnumbered = [chip.image_id for chip in chips if chip.number is None]
        if output.suffix.lower() == COCO_SUFFIX and unnumbered:
            raise SatmapError(
                f"{output}: COCO results need images with numbers as names, as in the Mapping "
                f"Challenge, but {unnumbered[0]} is not a number. Use an output name ending in "
                ".csv."
            )

    def write(
        self,
        output: Path,
        ids: Sequence[str],
        keys: Mapping[str, str],
        read: Callable[[str], ImageBuildings],
    ) -> dict[str, int]:
        """Write a SpaceNet buildings CSV, or COCO results if the name ends in .json."""
        if output.suffix.lower() == COCO_SUFFIX:
            return _write_coco(output, ids, keys, read)
        rows = RowsByImage(ids, keys, lambda key: _rows(read(key)))
        write_buildings_csv(output, rows)
        return rows.counts

    def export(
        self, path: Path, records: Callable[[], Iterator[ImageBuildings]], crs: str | None = None
    ) -> dict[str, str]:
        """Write the buildings in the format of the suffix (:mod:`satmap.exports.buildings`)."""
        return export_buildings(path, records, crs)


def _rows(found: ImageBuildings) -> list[BuildingRow]:
    return [BuildingRow(building.polygon, building.score) for building in found.buildings]


def _write_coco(
    output: Path,
    ids: Sequence[str],
    keys: Mapping[str, str],
    read: Callable[[str], ImageBuildings],
) -> dict[str, int]:
    ids_of: dict[int, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for image_id, key in keys.items():
        found = read(key)
        assert found.number is not None, "check_outputs rejects images without a number"
        ids_of[found.number] = image_id
        sizes[found.number] = found.size[1], found.size[0]
    numbers = {number: keys[image_id] for number, image_id in ids_of.items()}

    def detections(key: str) -> list[Detection]:
        found = read(key)
        return detections_of(found.buildings, found.size)

    masks = RowsByImage(list(numbers), numbers, detections)
    write_coco_results(output, masks, sizes)
    counts = dict.fromkeys(ids, 0)
    counts.update((ids_of[number], count) for number, count in masks.counts.items())
    return counts


def true_buildings(chip: CachedChip) -> list[BuildingRow]:
    """Return the labelled buildings of a chip as rows, one per polygon of a multi-polygon."""
    return [BuildingRow(polygon) for polygon in shapely.get_parts(chip.payload).tolist()]
