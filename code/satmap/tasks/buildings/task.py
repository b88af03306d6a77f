"""Building task: from images and labels to footprints."""

from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from satmap.data.cache import EncodedLabel
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.data.view_angles import require_category
from satmap.evaluation.metrics.building_f1 import match_buildings
from satmap.evaluation.metrics.figures import Counts
from satmap.rasters.probability_maps import ProbabilityMaps, resize_maps
from satmap.recipes.schema import Recipe
from satmap.submissions.buildings_csv import BuildingRow
from satmap.tasks.base import Batch, Total
from satmap.tasks.buildings.footprint_task import FootprintTask
from satmap.tasks.buildings.labels import encode_buildings
from satmap.tasks.buildings.losses import building_loss
from satmap.tasks.buildings.measures import building_features
from satmap.tasks.buildings.outputs import BuildingOutputs, BuildingScore, true_buildings
from satmap.tasks.buildings.result_decoder import BuildingDecoder
from satmap.tasks.buildings.selection import find_selection
from satmap.tasks.buildings.settings import (
    BUILDING,
    BuildingLosses,
    BuildingTaskSettings,
)
from satmap.tasks.buildings.targets import BODY_BIT, rasterize_buildings
from satmap.tasks.buildings.tuning import tune_buildings
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.tasks.calibration import CALIBRATION_FILE
from satmap.tasks.result_decoders import NO_MODELS, FittedModels
from satmap.tuning.chips import Tuning, TuningRequest


class BuildingTask(BuildingOutputs, FootprintTask):
    """Building footprints: turns maps of footprints, borders and contacts into polygons."""

    recipe: Recipe[BuildingTaskSettings, BuildingLosses]
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
        rows = [BuildingRow(building.polygon, building.score) for building in found]
        counts = match_buildings(true_buildings(chip), rows).counts
        return BuildingScore(counts, rows, Counts.of_pixels(truth, body))

    # Prediction

    def confidence_features(self, with_selection: bool = False) -> tuple[str, ...]:
        """Return the names of what the confidence of a building is computed from."""
        return building_features(self.map_names, with_selection)

    def find_models(self, weights: Path) -> FittedModels:
        """Find the selection model and the calibration beside the networks."""
        selection = find_selection(weights)
        path = weights / CALIBRATION_FILE
        return FittedModels(selection, self.find_calibration(path, selection is not None))

    def result_decoder(self, chip: Chip, models: FittedModels = NO_MODELS) -> BuildingDecoder:
        """Return a decoder with the vectoriser settings for the image's view-angle category."""
        return BuildingDecoder(self.recipe.task.vectorizer.of(self.category(chip)), models)

    def tune(self, request: TuningRequest) -> Tuning:
        """Fit the vectoriser settings, by F1 or average precision."""
        return tune_buildings(request, self.recipe.task)
