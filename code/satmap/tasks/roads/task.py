"""The road task: from images and labels to road graphs with travel times."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import shapely
from numpy.typing import NDArray
from torch import Tensor

from satmap.data.cache import EncodedLabel
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.label_files import Kind
from satmap.data.layouts.spacenet_roads import road_image_id
from satmap.data.neighbours import ImageFootprint, Neighbour
from satmap.evaluation.metrics.apls import apls
from satmap.evaluation.metrics.figures import Counts
from satmap.evaluation.metrics.jaccard import dice_and_iou
from satmap.exports.roads import export_roads
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.recipes.schema import Recipe
from satmap.report.panels import Ground
from satmap.report.pictures import roads_picture
from satmap.submissions.roads_csv import RoadRow, rows_of_graph, write_roads_csv
from satmap.submissions.rows import RowsByImage
from satmap.tasks.base import Batch, Total
from satmap.tasks.dense import DenseTask
from satmap.tasks.losses import IGNORED_BIT
from satmap.tasks.result_decoders import NO_MODELS, FittedModels
from satmap.tasks.roads.join_blocks import join_blocks
from satmap.tasks.roads.labels import encode_roads
from satmap.tasks.roads.losses import road_loss
from satmap.tasks.roads.measures import road_features
from satmap.tasks.roads.settings import (
    ROAD,
    ROAD_FILE_MAPS,
    RoadLosses,
    RoadSettings,
    RoadTaskSettings,
)
from satmap.tasks.roads.targets import CLASS_BITS, RoadLabel
from satmap.tasks.roads.tiles import RoadDecoder, find_surroundings
from satmap.tasks.roads.tuning import tune_roads
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.tuning.chips import Tuning, TuningRequest
from satmap.vectors.georeference import Georeference, georeference_as_json, georeference_from_json
from satmap.vectors.road_graph import ImageRoads, RoadEdge, RoadGraph, line_length_m

# A mask shows all roads, so nothing is joined or left out without evidence.
_MASK_SETTINGS = RoadSettings(gap_m=0, tee_m=0, bridge_m=0, component_m=0)


@dataclass(frozen=True)
class RoadScore:
    """APLS by length and by travel time, 0..1, overlap of the road masks, and the roads found."""

    apls: float
    apls_time: float
    overlap: Counts
    rows: list[RoadRow]


class RoadTask(DenseTask):
    """Extract road graphs with speeds from maps of road, junction and ten speed bins."""

    recipe: Recipe[RoadTaskSettings, RoadLosses]
    noun: ClassVar[str] = "roads"
    label_noun: ClassVar[str] = "road"
    scores: ClassVar[tuple[str, ...]] = ("apls", "apls_time", "dice", "iou")
    file_maps: ClassVar[Mapping[int, tuple[str, ...]]] = ROAD_FILE_MAPS
    label_kind: ClassVar[Kind | None] = "lines"
    ignored_bit: ClassVar[int] = IGNORED_BIT

    def __init__(self, recipe: Recipe[RoadTaskSettings, RoadLosses]) -> None:
        super().__init__(recipe)
        self.default_metres_per_pixel = recipe.task.default_metres_per_pixel

    # Images and labels

    def image_id_of(self, stem: str) -> str | None:
        """Return the image id in the name of a raster."""
        return road_image_id(stem)

    @property
    def label_fingerprint(self) -> str:
        """Settings that the cached targets depend on."""
        levels = " levels" if self._with_levels else ""
        return f"roads {self.recipe.task.targets.model_dump_json()}{levels}"

    @property
    def target_bytes(self) -> int:  # type: ignore[override]
        """Bytes per pixel of targets: a second one for levels."""
        return 2 if self._with_levels else 1

    @property
    def _with_levels(self) -> bool:
        # Recipes without members only draw targets or vectorise.
        losses = [member.losses for member in self.recipe.members]
        return any(isinstance(each, RoadLosses) and each.levels is not None for each in losses)

    def encode(self, chip: Chip, image: NDArray[np.uint8]) -> EncodedLabel:
        """Read the roads of a chip and rasterize its target, uint8 (h, w) or (h, w, 2)."""
        return encode_roads(chip, image, self.recipe.task.targets, self._with_levels)

    def trace_mask(
        self, mask: NDArray[np.bool_], metres_per_pixel: tuple[float, float]
    ) -> list[shapely.Geometry]:
        """Trace the centre lines of roads in a mask (height, width), in pixels."""
        values = mask[None] * np.uint8(255)
        graph = vectorize_roads(ProbabilityMaps((ROAD,), values, metres_per_pixel), _MASK_SETTINGS)
        return [shapely.LineString(edge.line) for edge in graph.edges]

    def load_payload(self, payload: Any) -> tuple[RoadLabel, ...]:
        """Return the labelled roads, clipped to the image."""
        return tuple(RoadLabel(np.array(line), speed) for line, speed in payload)

    # Training

    @property
    def loss_parts(self) -> tuple[str, ...]:
        """Names of the loss terms, one per head."""
        levels = ("levels",) if self._with_levels else ()
        return "road", "speed", "junction", *levels

    def loss(
        self, outputs: Tensor, batch: Batch, losses: RoadLosses, total: Total
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses of all heads, and its terms."""
        return road_loss(outputs, self.map_names, batch["target"], losses, total)

    def score_maps(
        self, maps: ProbabilityMaps, chip: CachedChip, target: NDArray[np.uint8]
    ) -> RoadScore:
        """Vectorise the maps of a chip, and compute APLS and the overlap of the road masks."""
        rows = rows_of_graph(vectorize_roads(maps, self.recipe.task.vectorizer))
        metres = float(np.mean(chip.metres_per_pixel))
        score = apls(truth_rows(chip), rows, metres_per_pixel=metres)
        assert score.time is not None, "both sides state travel times"
        classes = target if target.ndim == 2 else target[..., 0]
        road, truth = maps[ROAD] >= 128, (classes & CLASS_BITS) > 0
        return RoadScore(score.length.score, score.time.score, Counts.of_pixels(truth, road), rows)

    def summarize(
        self, chips: Sequence[CachedChip], scores: Sequence[RoadScore]
    ) -> dict[str, float]:
        """Average APLS over the chips of each area, then over the areas; pool dice and IoU."""
        by_aoi: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for chip, score in zip(chips, scores, strict=True):
            by_aoi[chip.aoi].append((score.apls, score.apls_time))
        areas = np.array([np.mean(values, axis=0) for values in by_aoi.values()])
        length, time = areas.mean(axis=0)
        overlaps = dice_and_iou([score.overlap for score in scores])
        return {"apls": float(length), "apls_time": float(time), **overlaps}

    def draw(self, chip: CachedChip, score: RoadScore) -> NDArray[np.uint8]:
        """Draw the roads found, the true roads, and the errors."""
        image, _ = chip.read()
        metres = float(np.mean(chip.metres_per_pixel))
        return roads_picture(
            score.rows,
            truth_rows(chip),
            ground=Ground.of_image(image[..., :3], metres),
            caption=[f"{chip.image_id}: APLS by length {score.apls:.3f}"],
            metres_per_pixel=metres,
        )

    # Prediction

    def confidence_features(self, with_selection: bool = False) -> tuple[str, ...]:
        """Return the names of what the confidence of a road is computed from."""
        return road_features(self.map_names)

    def result_decoder(self, chip: Chip, models: FittedModels = NO_MODELS) -> RoadDecoder:
        """Return the decoder of an image; all images share its settings."""
        settings = self.recipe.task
        return RoadDecoder(
            settings.vectorizer, settings.default_metres_per_pixel, models.calibration
        )

    def find_neighbours(self, footprints: Sequence[ImageFootprint]) -> list[list[Neighbour]]:
        """Return the touching images of each image, because roads continue in them."""
        if not self.recipe.task.neighbours:
            return super().find_neighbours(footprints)
        return find_surroundings(footprints)

    # Results

    def with_georeference(self, found: RoadGraph, georeference: Georeference | None) -> RoadGraph:
        """Return the road graph with its georeference."""
        return replace(found, georeference=georeference)

    def record(
        self, chip: Chip, image_id: str, found: RoadGraph, georeference: Georeference | None
    ) -> ImageRoads:
        """Bundle the roads of an image with its id and georeference."""
        return ImageRoads(image_id, self.with_georeference(found, georeference))

    def join_blocks(
        self,
        image_id: str,
        size: tuple[int, int],
        blocks: Sequence[tuple[Box, ImageRoads]],
        georeference: Georeference | None,
    ) -> ImageRoads:
        """Join the roads of the blocks into one network."""
        default = self.recipe.task.default_metres_per_pixel
        metres = georeference.metres_per_pixel if georeference else (default, default)
        graph = join_blocks([(box, record.graph) for box, record in blocks], metres)
        return ImageRoads(image_id, self.with_georeference(graph, georeference))

    def keep_confident(self, record: ImageRoads, least: float | None) -> ImageRoads:
        """Return the record without roads whose confidence is below ``least``."""
        if least is None:
            return record
        return replace(record, graph=record.graph.keep_confident(least))

    def count(self, record: ImageRoads) -> int:
        """Return the number of roads."""
        return len(record.graph.edges)

    def as_json(self, record: ImageRoads) -> list[Any]:
        """Return the road graph as nested lists for JSON."""
        return [
            record.image_id,
            georeference_as_json(record.graph.georeference),
            record.graph.nodes.tolist(),
            [
                [
                    edge.nodes,
                    edge.line.tolist(),
                    edge.length_m,
                    edge.speed_mps,
                    edge.mean_probability,
                    edge.width_m,
                    edge.speed_source,
                    edge.confidence,
                ]
                for edge in record.graph.edges
            ],
        ]

    def from_json(self, content: list[Any]) -> ImageRoads:
        """Restore a road graph exactly from the output of :meth:`as_json`."""
        image_id, georeference, nodes, edges = content
        graph = RoadGraph(
            np.array(nodes, np.float64).reshape(-1, 2),
            tuple(
                RoadEdge((start, end), np.array(line), *figures)
                for (start, end), line, *figures in edges
            ),
            georeference_from_json(georeference),
        )
        return ImageRoads(image_id, graph)

    def write(
        self,
        output: Path,
        ids: Sequence[str],
        keys: Mapping[str, str],
        read: Callable[[str], ImageRoads],
    ) -> dict[str, int]:
        """Write SpaceNet's roads CSV, and return the number of rows per image."""
        rows = RowsByImage(ids, keys, lambda key: rows_of_graph(read(key).graph))
        write_roads_csv(output, rows)
        return rows.counts

    def export(
        self, path: Path, records: Callable[[], Iterator[ImageRoads]], crs: str | None = None
    ) -> dict[str, str]:
        """Write the roads in the format of the suffix (:mod:`satmap.exports.roads`)."""
        return export_roads(path, records, crs)

    def tune(self, request: TuningRequest) -> Tuning:
        """Fit the vectoriser's settings by APLS."""
        return tune_roads(request, self.recipe.task.vectorizer)


def truth_rows(chip: CachedChip) -> list[RoadRow]:
    """Return the labelled roads of a chip as submission rows."""
    rows = []
    for label in chip.payload:
        length = line_length_m(label.line, chip.metres_per_pixel)
        rows.append(RoadRow(label.line, length, length / label.speed_mps))
    return rows
