"""Buildings: from images and labels to footprints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from torch import Tensor

from satmap.data.cache import CachedChip, EncodedLabel
from satmap.data.chip import Chip
from satmap.data.layouts.spacenet_buildings import building_image_id
from satmap.data.view_angles import require_category
from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import Counts, group_of, match_buildings
from satmap.evaluation.metrics.jaccard import Overlap, dice_and_iou
from satmap.exports import ImageBuildings, export_buildings
from satmap.rasters.map_files import open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps, resize_maps
from satmap.recipes.schema import Recipe
from satmap.report.misses import scored_buildings_picture
from satmap.submissions.buildings_csv import BuildingRow, write_buildings_csv
from satmap.submissions.coco_json import Detection, detections_of, write_coco_results
from satmap.submissions.rows import RowsByImage
from satmap.tasks.base import Batch, Total
from satmap.tasks.buildings.confidence import CONFIDENCE_FILE, ConfidenceModel, read_confidence
from satmap.tasks.buildings.labels import encode_buildings
from satmap.tasks.buildings.losses import building_loss
from satmap.tasks.buildings.settings import (
    BUILDING,
    BUILDING_FILE_MAPS,
    BuildingLosses,
    BuildingSettings,
    BuildingTaskSettings,
)
from satmap.tasks.buildings.targets import BODY_BIT
from satmap.tasks.buildings.tuning import tune_buildings
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tasks.dense import DenseTask
from satmap.tuning.chips import Tuning, TuningRequest
from satmap.vectors.buildings import Building
from satmap.vectors.georeference import Georeference, georeference_as_json, georeference_from_json

#: A submission whose name ends in this is a list of COCO results.
COCO_SUFFIX = ".json"


@dataclass(frozen=True)
class BuildingScore:
    """What a network made of one chip.

    Attributes:
        counts: buildings that were found, false and missed.
        overlap: of the bodies.
        rows: the buildings that the network found.
    """

    counts: Counts
    overlap: Overlap
    rows: list[BuildingRow]

    @property
    def caption(self) -> str:
        """The score in words."""
        return f"{self.counts.tp} found, {self.counts.fn} missed, {self.counts.fp} false"


@dataclass(frozen=True)
class BuildingDecoder:
    """Turns the probability maps of an image into footprints.

    Attributes:
        settings: of the vectoriser, for the category of the image.
        rating_model: file of the model that chooses and rates candidates; None to rate buildings by
            mean probability x square root of the area.
    """

    settings: BuildingSettings
    rating_model: Path | None = None

    def decode(self, prediction: ProbabilityMaps) -> list[Building]:
        """The buildings of an image."""
        return vectorize_buildings(prediction, self.settings, self._model())

    def decode_file(
        self,
        path: Path,
        neighbours: Sequence[tuple[Path, int, int]] = (),
        *,
        check_scale: bool = False,
    ) -> list[Building]:
        """The buildings of a raster; the rasters around it make no difference."""
        # The vectoriser counts in pixels: their size in metres does not matter.
        with open_map_file(path, 1, BUILDING_FILE_MAPS) as file:
            found = vectorize_buildings(file.scene, self.settings, self._model())
            if check_scale:
                file.check_scale()
        return found

    def _model(self) -> ConfidenceModel | None:
        return _read_once(self.rating_model) if self.rating_model else None


class BuildingTask(DenseTask):
    """Buildings: maps of footprints, borders and contacts become polygons."""

    recipe: Recipe[BuildingTaskSettings, BuildingLosses]
    noun: ClassVar[str] = "buildings"
    label_noun: ClassVar[str] = "building"
    scores: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall", "dice", "iou")
    file_maps: ClassVar[Mapping[int, tuple[str, ...]]] = BUILDING_FILE_MAPS
    submission_suffixes: ClassVar[tuple[str, ...]] = (".csv", COCO_SUFFIX)

    def __init__(self, recipe: Recipe[BuildingTaskSettings, BuildingLosses]) -> None:
        """Make the task of a recipe."""
        super().__init__(recipe)
        self.input_px = recipe.task.input_px

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the networks' heads by view angle."""
        return self.recipe.task.categories

    # Images and labels

    def image_id_of(self, stem: str) -> str | None:
        """The image id in the name of a raster."""
        return building_image_id(stem)

    def category(self, chip: Chip) -> str | None:
        """The category of the image's view angle, for recipes with heads by view angle."""
        heads = self.recipe.task.view_angle_heads
        if heads is None:
            return None
        return require_category(chip.image.path.name, chip.view_angle, heads)

    @property
    def label_fingerprint(self) -> str:
        """The settings of the targets."""
        return f"buildings {self.recipe.task.targets.model_dump_json()}"

    def encode(self, chip: Chip, image: NDArray[np.uint8]) -> EncodedLabel:
        """Read the buildings of a chip and draw its target, uint8 (h, w, 2)."""
        return encode_buildings(chip, image, self.recipe.task.targets)

    def load_payload(self, payload: Any) -> NDArray[np.object_]:
        """The labelled buildings, cut to the image, in pixels of the file."""
        outlines: NDArray[np.object_] = shapely.from_wkb(np.array(payload, np.object_))
        return outlines

    # Training

    @property
    def loss_parts(self) -> tuple[str, ...]:
        """One part for each probability map."""
        return self.recipe.map_names

    def loss(
        self, outputs: Tensor, batch: Batch, losses: BuildingLosses, total: Total
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over the probability maps."""
        return building_loss(outputs, self.recipe.map_names, batch["target"], losses, total)

    def score_maps(
        self, maps: ProbabilityMaps, chip: CachedChip, target: NDArray[np.uint8]
    ) -> BuildingScore:
        """Match the buildings found with the true ones; the overlap of the masks."""
        body, truth = maps[BUILDING] >= 128, (target[..., 0] & BODY_BIT) > 0
        values = resize_maps(maps.values, chip.size)
        whole = ProbabilityMaps(maps.names, values, chip.metres_per_pixel)
        found = vectorize_buildings(whole, self.recipe.task.vectorizer.of(chip.category))
        rows = [BuildingRow(building.polygon, building.confidence) for building in found]
        counts = match_buildings(true_buildings(chip), rows).counts
        return BuildingScore(counts, Overlap.of(body, truth), rows)

    def summarize(
        self, chips: Sequence[CachedChip], scores: Sequence[BuildingScore]
    ) -> dict[str, float]:
        """F1, precision and recall at an IoU of .5, from the counts of an area, or a category of
        view angles, then the mean over these; dice and IoU of the footprints, pooled over all
        pixels."""
        groups: dict[str, Counts] = {}
        for chip, score in zip(chips, scores, strict=True):
            group = group_of(chip.image_id)
            groups[group] = groups.get(group, Counts()) + score.counts
        precision, recall, f1 = np.mean([_shares(counts) for counts in groups.values()], axis=0)
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
        return scored_buildings_picture(
            true_buildings(chip),
            score.rows,
            title=f"{score.caption}: {chip.image_id}",
            image=np.asarray(cv2.resize(image[..., :3], (width, height)), np.uint8),
        )

    # Prediction

    def find_rating_model(self, weights: Path) -> Path | None:
        """The confidence model beside the networks."""
        path = weights / CONFIDENCE_FILE
        if not path.exists():
            return None
        read_confidence(path)
        return path.resolve()

    def decoder(self, chip: Chip, rating_model: Path | None = None) -> BuildingDecoder:
        """The settings depend on the category of the image's view angle."""
        return BuildingDecoder(self.recipe.task.vectorizer.of(self.category(chip)), rating_model)

    # Results

    def record(
        self, chip: Chip, image_id: str, found: list[Building], georeference: Georeference | None
    ) -> ImageBuildings:
        """The buildings with their image."""
        size = chip.image.height, chip.image.width
        return ImageBuildings(image_id, chip.number, size, tuple(found), georeference)

    def count(self, record: ImageBuildings) -> int:
        """Number of buildings."""
        return len(record.buildings)

    def as_json(self, record: ImageBuildings) -> list[Any]:
        """The buildings as lists, numbers and texts, polygons as hexadecimal WKB."""
        return [
            record.image_id,
            record.number,
            record.size,
            [[building.polygon.wkb_hex, building.confidence] for building in record.buildings],
            georeference_as_json(record.georeference),
        ]

    def from_json(self, content: list[Any]) -> ImageBuildings:
        """Read the buildings back, exactly."""
        image_id, number, (height, width), buildings, georeference = content
        return ImageBuildings(
            image_id,
            number,
            (height, width),
            tuple(Building(shapely.from_wkb(text), float(score)) for text, score in buildings),
            georeference_from_json(georeference),
        )

    def check_outputs(self, output: Path, exports: Sequence[Path], chips: Sequence[Chip]) -> None:
        """Refuse unknown formats, and COCO results of images without numbers."""
        super().check_outputs(output, exports, chips)
        unnumbered = [chip.image_id for chip in chips if chip.number is None]
        if output.suffix.lower() == COCO_SUFFIX and unnumbered:
            raise SatmapError(
                f"{output}: COCO results need images with numbers as names, as the Mapping "
                f"Challenge has them, and {unnumbered[0]} has none. Give a name that ends in .csv."
            )

    def write(
        self,
        output: Path,
        ids: Sequence[str],
        keys: Mapping[str, str],
        read: Callable[[str], ImageBuildings],
    ) -> dict[str, int]:
        """Write SpaceNet's buildings CSV, or COCO results if the name ends in .json."""
        if output.suffix.lower() == COCO_SUFFIX:
            return _write_coco(output, ids, keys, read)
        rows = RowsByImage(ids, keys, lambda key: _rows(read(key)))
        write_buildings_csv(output, rows)
        return rows.counts

    def export(self, path: Path, records: Callable[[], Iterator[ImageBuildings]]) -> dict[str, str]:
        """Write GeoJSON or GeoPackage."""
        return export_buildings(path, records)

    def tune(self, request: TuningRequest) -> Tuning:
        """Fit the vectoriser's settings by F1 or average precision."""
        return tune_buildings(request, self.recipe)


@lru_cache(maxsize=1)
def _read_once(path: Path) -> ConfidenceModel:
    """A model takes longer to read than an image to vectorise; each worker reads it once."""
    return read_confidence(path)


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
        assert found.number is not None, "who asks for COCO results has looked"
        height, width = found.size
        ids_of[found.number] = image_id
        sizes[found.number] = width, height
    numbers = {number: keys[image_id] for number, image_id in ids_of.items()}
    masks = RowsByImage(list(numbers), numbers, lambda key: _detections(read(key)))
    write_coco_results(output, masks, sizes)
    counts = dict.fromkeys(ids, 0)
    counts.update((ids_of[number], count) for number, count in masks.counts.items())
    return counts


def _detections(found: ImageBuildings) -> list[Detection]:
    return detections_of(found.buildings, found.size)


def true_buildings(chip: CachedChip) -> list[BuildingRow]:
    """The labelled buildings of a chip as rows, each part of one by itself, as files have them."""
    return [BuildingRow(polygon) for polygon in shapely.get_parts(chip.payload).tolist()]


def _shares(counts: Counts) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 for 0/0, as the challenge has it."""
    precision = counts.tp / max(counts.tp + counts.fp, 1)
    recall = counts.tp / max(counts.tp + counts.fn, 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)
