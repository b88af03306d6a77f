"""Raster task: from images and labels to building masks, as in the Open Cities AI Challenge.

Networks learn the footprint, alone or with its border and the contact between buildings. The mask
is the footprint map above a threshold. Targets are uint8 (h, w) with the bits of
:mod:`satmap.tasks.buildings.targets` and that of ignored pixels.
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from satmap.data.cache import EncodedLabel
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip
from satmap.evaluation.metrics.figures import Counts
from satmap.evaluation.metrics.jaccard import dice_and_iou
from satmap.exports.buildings import export_buildings
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.recipes.schema import Recipe
from satmap.report.panels import Ground, View
from satmap.report.pictures import mask_picture
from satmap.submissions.mask_rasters import write_masks
from satmap.tasks.base import Batch, Total
from satmap.tasks.buildings.footprint_task import FootprintTask
from satmap.tasks.buildings.labels import encode_buildings
from satmap.tasks.buildings.settings import BORDER, CONTACT
from satmap.tasks.buildings.targets import (
    BODY_BIT,
    BORDER_BIT,
    CONTACT_BIT,
    draw_instances,
    inner_border,
    two_nearest,
)
from satmap.tasks.raster.losses import raster_loss
from satmap.tasks.raster.masks import ImageMask, Mask, join_masks, outlines_of
from satmap.tasks.raster.result_decoder import MaskDecoder
from satmap.tasks.raster.settings import CHIP_PX, RasterLosses, RasterTaskSettings
from satmap.tasks.result_decoders import NO_MODELS, FittedModels
from satmap.vectors.buildings import Building, ImageBuildings, Polygons
from satmap.vectors.georeference import Georeference, georeference_as_json, georeference_from_json


@dataclass(frozen=True)
class MaskScore:
    """Score of one chip: pixels that are found, missed and false, and the mask."""

    overlap: Counts
    mask: Mask


class RasterTask(FootprintTask):
    """Building masks: a footprint map with a threshold."""

    recipe: Recipe[RasterTaskSettings, RasterLosses]
    noun: ClassVar[str] = "building pixels"
    scores: ClassVar[tuple[str, ...]] = ("jaccard", "dice")

    # Images and labels

    @property
    def label_fingerprint(self) -> str:
        """Target settings as text; a change invalidates cached labels."""
        return f"raster {self.map_names} {self.recipe.task.targets.model_dump_json()}"

    def encode(self, chip: Chip, image: NDArray[np.uint8]) -> EncodedLabel:
        """Read the buildings of a chip and draw its target, uint8 (h, w)."""
        # Scores need only the target.
        return replace(encode_buildings(chip, image, self._draw_target), payload=[])

    def _draw_target(self, outlines: Polygons, shape: tuple[int, int]) -> NDArray[np.uint8]:
        settings, labels = self.recipe.task.targets, draw_instances(outlines, shape)
        body = labels > 0
        target = body * np.uint8(BODY_BIT)
        if BORDER in self.map_names:
            target |= inner_border(labels, settings.border_px) * np.uint8(BORDER_BIT)
        if CONTACT in self.map_names:
            _, far = two_nearest(labels, settings.contact_px)
            target |= (~body & (far <= settings.contact_px)) * np.uint8(CONTACT_BIT)
        return target

    # Training

    def loss(
        self, outputs: Tensor, batch: Batch, losses: RasterLosses, total: Total
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the losses over the probability maps."""
        return raster_loss(outputs, self.map_names, batch["target"], losses, total)

    def score_maps(
        self, maps: ProbabilityMaps, chip: CachedChip, target: NDArray[np.uint8]
    ) -> MaskScore:
        """Compare the mask with the true one, in the size of the network's input."""
        mask = MaskDecoder(self.recipe.task.threshold, maps.shape).decode(maps)
        return MaskScore(Counts.of_pixels((target & BODY_BIT) > 0, mask.pixels()), mask)

    def summarize(
        self, chips: Sequence[CachedChip], scores: Sequence[MaskScore]
    ) -> dict[str, float]:
        """Return the Jaccard index and Dice, pooled over all pixels."""
        figures = dice_and_iou([score.overlap for score in scores])
        return {"jaccard": figures["iou"], "dice": figures["dice"]}

    def draw(self, chip: CachedChip, score: MaskScore) -> NDArray[np.uint8]:
        """Draw found, missed and false pixels over the image."""
        image, target = chip.read()
        height, width = target.shape
        found = score.overlap
        return mask_picture(
            (target & BODY_BIT) > 0,
            score.mask.pixels(),
            caption=[f"{chip.image_id}: {found.tp} px found, {found.fn} missed, {found.fp} false"],
            ground=Ground(View(0, 0, width, height), image[..., :3], chip.gsd_m),
        )

    # Prediction

    def result_decoder(self, chip: Chip, models: FittedModels = NO_MODELS) -> MaskDecoder:
        """Return the decoder with the recipe's threshold."""
        image = chip.image
        size = image.height, image.width
        return MaskDecoder(self.recipe.task.threshold, size, image.georeference)

    # Results

    def with_georeference(
        self, found: Mask, georeference: Georeference | None
    ) -> NDArray[np.bool_]:
        """Return the mask as an array, bool (h, w)."""
        return found.pixels()

    def record(
        self, chip: Chip, image_id: str, found: Mask, georeference: Georeference | None
    ) -> ImageMask:
        """Join the mask of an image with its id and position."""
        return ImageMask(image_id, found, georeference)

    def join_blocks(
        self,
        image_id: str,
        size: tuple[int, int],
        blocks: Sequence[tuple[Box, ImageMask]],
        georeference: Georeference | None,
    ) -> ImageMask:
        """Join the masks of the blocks."""
        masks = [(box, record.mask) for box, record in blocks]
        return ImageMask(image_id, join_masks(size, masks, georeference), georeference)

    def count(self, record: ImageMask) -> int:
        """Return the number of building pixels."""
        return record.mask.count

    def as_json(self, record: ImageMask) -> list[Any]:
        """Convert a record to JSON values; the file becomes base64."""
        mask = record.mask
        return [
            record.image_id,
            mask.shape,
            mask.count,
            base64.b64encode(mask.tiff).decode(),
            georeference_as_json(record.georeference),
        ]

    def from_json(self, content: list[Any]) -> ImageMask:
        """Restore a record from :meth:`as_json` without loss."""
        image_id, (height, width), count, text, georeference = content
        mask = Mask(base64.b64decode(text, validate=True), (height, width), int(count))
        return ImageMask(image_id, mask, georeference_from_json(georeference))

    def write(
        self,
        output: Path,
        ids: Sequence[str],
        keys: Mapping[str, str],
        read: Callable[[str], ImageMask],
    ) -> dict[str, int]:
        """Write one mask per image to a directory or an archive, by the suffix of ``output``.

        An image without a record gets an empty mask of the most common size.
        """
        counts = dict.fromkeys(ids, 0)
        blank = b""
        if len(keys) < len(ids):
            sizes = Counter(read(key).mask.shape for key in keys.values())
            ((usual, _),) = sizes.most_common(1) or [((CHIP_PX, CHIP_PX), 0)]
            blank = Mask.empty(usual).tiff

        def masks() -> Iterator[tuple[str, bytes]]:
            for image_id in ids:
                if image_id not in keys:
                    yield image_id, blank
                    continue
                mask = read(keys[image_id]).mask
                counts[image_id] = mask.count
                yield image_id, mask.tiff

        write_masks(output, masks())
        return counts

    def export(
        self, path: Path, records: Callable[[], Iterator[ImageMask]], crs: str | None = None
    ) -> dict[str, str]:
        """Write the outlines of the masks' parts as buildings."""
        simplify_px = self.recipe.task.simplify_px

        def images() -> Iterator[ImageBuildings]:
            for record in records():
                mask = record.mask
                # A mask does not say how certain a building is.
                found = (Building(p, np.nan) for p in outlines_of(mask, simplify_px).tolist())
                yield ImageBuildings(
                    record.image_id, None, mask.shape, tuple(found), record.georeference
                )

        return export_buildings(path, images, crs)
