"""Building task: from images and labels to footprints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import shapely
from numpy.typing import NDArray
from torch import Tensor

from satmap.data.cache import EncodedLabel
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.view_angles import require_category
from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import group_of, match_buildings, precision_recall_f1
from satmap.evaluation.metrics.figures import Counts
from satmap.evaluation.metrics.jaccard import dice_and_iou
from satmap.exports.buildings import export_buildings
from satmap.rasters.probability_maps import ProbabilityMaps, resize_maps
from satmap.rasters.scene import Box
from satmap.recipes.schema import Recipe
from satmap.report.panels import Ground, View
from satmap.report.pictures import buildings_picture
from satmap.submissions.buildings_csv import BuildingRow, write_buildings_csv
from satmap.submissions.coco_json import Detection, detections_of, write_coco_results
from satmap.submissions.rows import RowsByImage
from satmap.tasks.base import Batch, Total
from satmap.tasks.buildings.confidence import CONFIDENCE_FILE, read_confidence
from satmap.tasks.buildings.footprint_task import FootprintTask
from satmap.tasks.buildings.join_blocks import join_blocks
from satmap.tasks.buildings.labels import encode_buildings
from satmap.tasks.buildings.losses import building_loss
from satmap.tasks.buildings.result_decoder import BuildingDecoder
from satmap.tasks.buildings.settings import (
    BUILDING,
    COCO_SUFFIX,
    BuildingLosses,
    BuildingTaskSettings,
)
from satmap.tasks.buildings.targets import BODY_BIT, rasterize_buildings
from satmap.tasks.buildings.tuning import tune_buildings
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tuning.chips import Tuning, TuningRequest
from satmap.vectors.buildings import Building, Buildings, ImageBuildings
from satmap.vectors.georeference import Georeference, georeference_as_json, georeference_from_json


@dataclass(frozen=True)
class BuildingScore:
    """Score of one chip: the predicted buildings, and their pixel overlap with the true ones."""

    counts: Counts
    overlap: Counts
    rows: list[BuildingRow]


class BuildingTask(FootprintTask):
    """Building footprints: turns maps of footprints, borders and contacts into polygons."""

    recipe: Recipe[BuildingTaskSettings, BuildingLosses]
    noun: ClassVar[str] = "buildings"
    scores: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "dice", "iou")
    target_bytes: ClassVar[int] = 2

    def __init__(self, recipe: Recipe[BuildingTaskSettings, BuildingLosses]) -> None:
        super().__init__(recipe)
        self.input_px = recipe.task.input_px

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the network's heads by view angle."""
        return self.recipe.task.categories

    # Images and labels

    def category(self, chip: Chip) -> str | None:
        """Return the view-angle category of an image; None for recipes with a single head."""
        heads = self.recipe.task.view_angle_heads
        if heads is None:
            return None
        return require_category(chip.image.path.name, chip.view_angle, heads)

    @property
    def label_fingerprint(self) -> str:
        """Target settings as text; a change invalidates cached labels."""
        return f"buildings {self.recipe.task.targets.model_dump_json()}"

    def encode(self, chip: Chip, image: NDArray[np.uint8]) -> EncodedLabel:
        """Read the buildings of a chip and draw its target, uint8 (h, w, 2)."""
        draw = partial(rasterize_buildings, settings=self.recipe.task.targets)
        return encode_buildings(chip, image, draw)

    def load_payload(self, payload: Any) -> NDArray[np.object_]:
        """Return the labelled buildings, clipped to the image, in pixels of the file."""
        outlines: NDArray[np.object_] = shapely.from_wkb(np.array(payload, np.object_))
        return outlines

    # Training

    def loss(
        self, outputs: Tensor, batch: Batch, losses: BuildingLosses, total: Total
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses over the probability maps."""
        return building_loss(outputs, self.map_names, batch["target"], losses, total)

    def score_maps(
        self, maps: ProbabilityMaps, chip: CachedChip, target: NDArray[np.uint8]
    ) -> BuildingScore:
        """Match predicted buildings with true ones and measure the overlap of the masks."""
        body, truth = maps[BUILDING] >= 128, (target[..., 0] & BODY_BIT) > 0
        values = resize_maps(maps.values, chip.size)
        whole = ProbabilityMaps(maps.names, values, chip.metres_per_pixel)
        found = vectorize_buildings(whole, self.recipe.task.vectorizer.of(chip.category))
        rows = [BuildingRow(building.polygon, building.confidence) for building in found]
        counts = match_buildings(_true_buildings(chip), rows).counts
        return BuildingScore(counts, Counts.of_pixels(truth, body), rows)

    def summarize(
        self, chips: Sequence[CachedChip], scores: Sequence[BuildingScore]
    ) -> dict[str, float]:
        """Return F1, precision and recall at an IoU of 0.5, and Dice and IoU of the footprints.

        The first three are means over areas, or over categories of view angles. Dice and IoU are
        pooled over all pixels.
        """
        groups: dict[str, Counts] = {}
        for chip, score in zip(chips, scores, strict=True):
            group = group_of(chip.image_id)
            groups[group] = groups.get(group, Counts()) + score.counts
        shares = [precision_recall_f1(counts) for counts in groups.values()]
        precision, recall, f1 = np.mean(shares, axis=0)
        return {
            "f1": float(f1),
            "precision": float(precision),
            "recall": float(recall),
            **dice_and_iou([score.overlap for score in scores]),
        }

    def draw(self, chip: CachedChip, score: BuildingScore) -> NDArray[np.uint8]:
        """Draw found, missed and false buildings over the image."""
        image, _ = chip.read()
        height, width = chip.size
        counts = score.counts
        metres = float(np.mean(chip.metres_per_pixel))
        return buildings_picture(
            score.rows,
            _true_buildings(chip),
            caption=[f"{chip.image_id}: {counts.tp} found, {counts.fn} missed, {counts.fp} false"],
            ground=Ground(View(0, 0, width, height), image[..., :3], metres),
        )

    # Prediction

    def find_rating_model(self, weights: Path) -> Path | None:
        """Return the path of the confidence model beside the networks, if there is a valid one."""
        path = weights / CONFIDENCE_FILE
        if not path.exists():
            return None
        read_confidence(path)
        return path.resolve()

    def result_decoder(self, chip: Chip, rating_model: Path | None = None) -> BuildingDecoder:
        """Return a decoder with the vectoriser settings for the image's view-angle category."""
        return BuildingDecoder(self.recipe.task.vectorizer.of(self.category(chip)), rating_model)

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
        found = join_blocks([(box, record.buildings) for box, record in blocks])
        return ImageBuildings(image_id, None, size, tuple(found), georeference)

    def count(self, record: ImageBuildings) -> int:
        """Return the number of buildings."""
        return len(record.buildings)

    def as_json(self, record: ImageBuildings) -> list[Any]:
        """Convert a record to JSON values; polygons become hexadecimal WKB."""
        return [
            record.image_id,
            record.number,
            record.size,
            [[b.polygon.wkb_hex, b.confidence, b.mean_probability] for b in record.buildings],
            georeference_as_json(record.georeference),
        ]

    def from_json(self, content: list[Any]) -> ImageBuildings:
        """Restore a record from :meth:`as_json` without loss."""
        image_id, number, (height, width), rows, georeference = content
        found = tuple(
            Building(shapely.from_wkb(text), float(score), probability)
            for text, score, probability in rows
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

    def tune(self, request: TuningRequest) -> Tuning:
        """Fit the vectoriser settings, by F1 or average precision."""
        return tune_buildings(request, self.recipe.task)


def _rows(found: ImageBuildings) -> list[BuildingRow]:
    return [BuildingRow(building.polygon, building.confidence) for building in found.buildings]


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


def _true_buildings(chip: CachedChip) -> list[BuildingRow]:
    """Return the labelled buildings of a chip as rows, one per polygon of a multi-polygon."""
    return [BuildingRow(polygon) for polygon in shapely.get_parts(chip.payload).tolist()]
