"""Task ``instances``: buildings found one by one by a cascade of boxes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from torch import Tensor, nn

from satmap.data.cache import EncodedLabel
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip, Geometry, read_crop
from satmap.data.imagery import RGB, ImageInfo
from satmap.errors import SatmapError
from satmap.evaluation.metrics.building_f1 import group_of, match_buildings
from satmap.networks.cascade import CascadeNetwork, Detections
from satmap.networks.cascade_settings import MAPS
from satmap.networks.encoders import Encoder, build_encoder
from satmap.networks.ensemble import EnsembleMember, Symmetry, predict_maps
from satmap.rasters.probability_maps import ProbabilityMaps, resize_maps
from satmap.recipes.schema import Member, Recipe
from satmap.submissions.buildings_csv import BuildingRow
from satmap.tasks.base import Batch, PreparedImage, Total
from satmap.tasks.building_instances.merge import (
    Candidates,
    Instance,
    InstanceDecoder,
    Instances,
    cut_by_window,
    vote,
)
from satmap.tasks.building_instances.settings import InstanceLosses, InstanceTaskSettings
from satmap.tasks.building_instances.tuning import tune_instances
from satmap.tasks.buildings.labels import encode_buildings
from satmap.tasks.buildings.losses import building_loss
from satmap.tasks.buildings.measures import building_features
from satmap.tasks.buildings.outputs import BuildingOutputs, BuildingScore, true_buildings
from satmap.tasks.buildings.selection import find_selection
from satmap.tasks.buildings.targets import (
    BODY_BIT,
    BORDER_BIT,
    draw_instances,
    encode_weights,
    inner_border,
)
from satmap.tasks.calibration import CALIBRATION_FILE
from satmap.tasks.instances import FoundInstances, InstanceTask, WindowCandidates
from satmap.tasks.losses import IGNORED_BIT
from satmap.tasks.result_decoders import NO_MODELS, FittedModels
from satmap.tuning.chips import Tuning, TuningRequest
from satmap.vectors.buildings import Polygons
from satmap.weights.tensor_file import mismatch, read_tensors

# Value of ignored pixels in cached targets, which are uint16.
_IGNORED = 65535
# Pixels around a block of a map that the networks see, at most.
_CONTEXT_PX = 128


class BuildingInstanceTask(BuildingOutputs, InstanceTask):
    """Building footprints from networks that find each building by its box and mask."""

    recipe: Recipe[InstanceTaskSettings, InstanceLosses]
    scores: ClassVar[tuple[str, ...]] = ("f1", "precision", "recall")
    # Candidates take much less memory than the image.
    values_per_pixel: int = 3

    def __init__(self, recipe: Recipe[InstanceTaskSettings, InstanceLosses]) -> None:
        super().__init__(recipe)
        self.input_px = recipe.task.input_px
        self.margin_px = min(recipe.inference.overlap, _CONTEXT_PX)
        if recipe.augmentation.mixup:
            raise SatmapError(
                f"recipe {recipe.name}: MixUp cannot mix boxes, which the task instances learns "
                "from. Leave `mixup` out."
            )
        for member in recipe.all_members:
            heads = member.losses.maps.map_names if member.losses.maps else ()
            if set(heads) != set(recipe.task.network.maps):
                raise SatmapError(
                    f"recipe {recipe.name}: `losses: {{maps: ...}}` and `network: {{maps: ...}}` "
                    "must name the same probability maps."
                )

    # Images and labels

    @property
    def label_fingerprint(self) -> str:
        """Text that changes with the targets."""
        return "instances 1"

    def encode(self, chip: Chip, image: NDArray[np.uint8]) -> EncodedLabel:
        """Read the buildings of a chip and number their pixels.

        ``target`` is uint16 (h, w): 1 + index of the building, 0 for the ground, 65535 for ignored
        pixels.
        """
        return encode_buildings(chip, image, partial(_draw, chip), _IGNORED)

    # Training

    def crop(
        self, chip: CachedChip, geometry: Geometry, size: int, channels: int
    ) -> dict[str, NDArray[Any]]:
        """Cut a training sample.

        Returns:
            ``image`` uint8 (channels, size, size); ``instances`` int32 (size, size), 1 + index of
            the building, 0 for the ground, -1 for ignored pixels; ``boxes`` float32 (n, 4).
        """
        image, target = read_crop(chip, geometry, size, channels)
        instances, boxes = find_parts(target, self.recipe.task.least_px)
        sample: dict[str, NDArray[Any]] = {"image": image, "instances": instances, "boxes": boxes}
        if self.map_names:
            sample["target"] = target_of_maps(instances)
        return sample

    def collate(self, samples: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Any]:
        """Stack images and instances; boxes stay a list."""
        names = [name for name in samples[0] if name != "boxes"]
        stacked = {name: np.stack([sample[name] for sample in samples]) for name in names}
        return {**stacked, "boxes": [sample["boxes"] for sample in samples]}

    def build_network(self, member: Member) -> CascadeNetwork:
        """Make the cascade of a member."""
        return CascadeNetwork(
            build_encoder(member.encoder, member.bands),
            self.recipe.task.network,
            member.decoder.widths,
            member.decoder.kind,
        )

    def load_start(self, network: nn.Module, file: Path) -> list[str]:
        """Load a trained cascade of the same architecture."""
        tensors = read_tensors(file)
        if fault := mismatch(network.state_dict(), tensors):
            raise SatmapError(
                f"{file} holds another network than the recipe names: {fault}. Give a cascade with "
                "the same `network`, encoder and bands."
            )
        network.load_state_dict(tensors)
        return []

    @property
    def loss_parts(self) -> tuple[str, ...]:
        """Names of the parts of the loss."""
        return self.recipe.task.network.loss_parts

    def inputs(self, network: nn.Module, batch: Batch) -> tuple[Any, ...]:
        """Return the normalised images, and per image the buildings' boxes and instance map."""
        assert isinstance(network, CascadeNetwork)
        images = network.encoder.normalize(batch["image"])
        images = images.contiguous(memory_format=torch.channels_last)
        return images, batch["boxes"], list(batch["instances"])

    def loss(
        self, outputs: dict[str, Tensor], batch: Batch, losses: InstanceLosses, total: Total
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the parts of the loss."""
        logits = outputs.get(MAPS)
        outputs = {name: value for name, value in outputs.items() if name != MAPS}
        parts = {name: getattr(losses, name) * value for name, value in outputs.items()}
        if logits is not None and losses.maps:
            names = self.map_names
            parts[MAPS], _ = building_loss(logits, names, batch["target"], losses.maps, total)
        whole = torch.stack(list(parts.values())).sum()
        return whole, {name: value.detach() for name, value in parts.items()}

    def score_chip(
        self, network: nn.Module, chip: CachedChip, device: torch.device
    ) -> BuildingScore:
        """Find the buildings of a chip with one network and match them with the true ones."""
        pixels = chip.read_image(chip.shape[2], slice(None), slice(None)).transpose(1, 2, 0)
        height, width = chip.size
        info = ImageInfo(chip.path, RGB, width, height, chip.shape[2], "uint8", None)
        image = PreparedImage(info, pixels, [EnsembleMember(network)], chip.metres_per_pixel, ())
        found = self.merge(self.find(image, device, symmetries=1))
        settings = self.recipe.task.vectorizer.of(group_of(chip.image_id))
        decoder = InstanceDecoder(settings, chip.size, chip.metres_per_pixel)
        rows = [BuildingRow(b.polygon, b.score) for b in decoder.decode(found)]
        return BuildingScore(match_buildings(true_buildings(chip), rows).counts, rows)

    # Prediction

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the probability maps that the networks also predict."""
        return self.recipe.task.network.maps

    def confidence_features(self, with_selection: bool = False) -> tuple[str, ...]:
        """Return the names of what the confidence of a building is computed from."""
        return building_features((), with_score=True)

    def find_models(self, weights: Path) -> FittedModels:
        """Find the selection model and the calibration beside the networks."""
        selection = find_selection(weights) if self.map_names else None
        return FittedModels(selection, self.find_calibration(weights / CALIBRATION_FILE))

    def predict(self, image: PreparedImage, device: torch.device) -> FoundInstances:
        """Find the buildings of an image, and its probability maps if the networks have any."""
        found = super().predict(image, device)
        if not self.map_names:
            return found
        members = [EnsembleMember(_Maps(m.network), m.votes) for m in image.members]
        values = predict_maps(members, image.pixels, self.recipe.inference, device)
        inside = image.inside
        if inside is None:
            values = resize_maps(values, image.shape)
        maps = ProbabilityMaps(self.map_names, values, image.metres_per_pixel)
        corner = (-inside.left, -inside.top) if inside else (0, 0)
        return FoundInstances(Instances(found.get(), maps, *corner))

    def maps_of(self, prediction: Any) -> ProbabilityMaps | None:
        """Return the probability maps of a prediction, if it has any."""
        return prediction.maps if isinstance(prediction, Instances) else None

    def predict_window(
        self, network: nn.Module, pixels: Tensor, category: str | None
    ) -> Candidates:
        """Return the candidates of a window with the best scores."""
        assert isinstance(network, CascadeNetwork)
        found: Detections = network(network.encoder.normalize(pixels[None]))[0]
        best = torch.argsort(found.scores, descending=True, stable=True)
        best = best[: self.recipe.task.vectorizer.most]
        masks = (found.masks[best] * 255).round().to(torch.uint8)
        return Candidates(
            found.boxes[best].double().cpu().numpy(),
            found.scores[best].double().cpu().numpy(),
            masks.cpu().numpy(),
            np.zeros(len(best), np.bool_),
        )

    def restore(self, found: Candidates, symmetry: Symmetry, shape: tuple[int, int]) -> Candidates:
        """Turn boxes and masks of a transformed window back."""
        left, top, right, bottom = found.boxes.T
        # The height of the turned image is the width of the one before the turn.
        height, width = shape[::-1] if symmetry.quarter_turns % 2 else shape
        for _ in range(symmetry.quarter_turns):
            left, top, right, bottom = height - bottom, left, height - top, right
            height, width = width, height
        masks = np.rot90(found.masks, -symmetry.quarter_turns, (1, 2))
        if symmetry.mirrored:
            left, right = shape[1] - right, shape[1] - left
            masks = masks[:, :, ::-1]
        boxes = np.stack([left, top, right, bottom], axis=1)
        return Candidates(boxes, found.scores, np.ascontiguousarray(masks), found.is_cut)

    def place(
        self, found: Candidates, scale: NDArray[np.float64], offset: NDArray[np.float64]
    ) -> Candidates:
        """Move boxes to pixels of the image."""
        boxes = found.boxes * np.tile(scale, 2) + np.tile(offset, 2)
        return Candidates(boxes, found.scores, found.masks, found.is_cut)

    def merge(self, candidates: Sequence[WindowCandidates]) -> list[Instance]:
        """Merge the candidates of all windows, networks and symmetries by voting on masks."""
        if not candidates:
            return []
        whole = candidates[0].whole
        parts = []
        for each in candidates:
            found = each.found
            cut = cut_by_window(found.boxes, each.seen, whole)
            seen = np.tile(each.seen, (len(found), 1))
            parts.append(Candidates(found.boxes, found.scores, found.masks, cut, seen))
        joined = Candidates.join(parts, self.recipe.task.network.drawn_px)
        weights = np.repeat([float(each.votes) for each in candidates], [len(p) for p in parts])
        settings = self.recipe.task.vectorizer
        least = min(settings.of(area).least_score for area in ("", *settings.areas))
        return vote(joined, weights, whole, settings, least)

    def result_decoder(self, chip: Chip, models: FittedModels = NO_MODELS) -> InstanceDecoder:  # type: ignore[override]
        """Return the decoder that draws the outlines of buildings."""
        return InstanceDecoder(
            self.recipe.task.vectorizer.of(group_of(chip.image_id)),
            (chip.image.height, chip.image.width),
            chip.image.metres_per_pixel or (1.0, 1.0),
            models,
        )

    def tune(self, request: TuningRequest) -> Tuning:
        """Fit least score and least area per area of interest to a submission, by F1."""
        return tune_instances(request, self.recipe.task.vectorizer)


@dataclass(frozen=True)
class _Maps:
    """The probability maps of a cascade, as the ensemble of maps calls networks."""

    network: CascadeNetwork

    @property
    def encoder(self) -> Encoder:
        return self.network.encoder

    @property
    def map_names(self) -> tuple[str, ...]:
        return self.network.settings.maps

    def __call__(self, images: Tensor) -> Tensor:
        return self.network.map_logits(images)


def target_of_maps(instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Draw the target of probability maps, uint8 (h, w, 2), from the buildings of a crop.

    It is a target of the task ``buildings`` with a border of one pixel, without contact, and with
    equal weights.
    """
    known = np.maximum(instances, 0)
    target = np.zeros((*instances.shape, 2), np.uint8)
    target[..., 0] = (known > 0) * BODY_BIT | inner_border(known, 1) * BORDER_BIT
    target[..., 0][instances < 0] = IGNORED_BIT
    target[..., 1] = encode_weights(np.ones(1, np.float32))
    return target


def _draw(chip: Chip, outlines: Polygons, shape: tuple[int, int]) -> NDArray[np.uint16]:
    if len(outlines) >= _IGNORED:
        raise SatmapError(
            f"{chip.label}: {len(outlines)} buildings in one image, but at most {_IGNORED - 1} can "
            "be numbered. Cut the image into tiles (`tiles` in the recipe)."
        )
    return draw_instances(outlines, shape).astype(np.uint16)


def find_parts(
    target: NDArray[Any], least_px: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Number the connected parts of the buildings in a crop.

    In the target, places that do not touch can have one number: a building and its reflection at
    the border of the chip, or the parts of a building.

    Args:
        target: uint16 (h, w), the building of each pixel; 0 for the ground, 65535 for ignored
            pixels.
        least_px: smaller parts are ignored.

    Returns:
        int32 (h, w), 1 + index of the part, 0 for the ground, -1 for ignored pixels; and the parts'
        boxes, float32 (n, 4): left, top, right, bottom.
    """
    ignored = target == _IGNORED
    labels = np.asarray(
        measure.label(  # type: ignore[no-untyped-call]
            np.where(ignored, 0, target), connectivity=1
        ),
        np.int32,
    )
    areas = np.bincount(labels.ravel())
    kept = np.flatnonzero(areas >= least_px)
    kept = kept[kept > 0]
    number = np.full(len(areas), -1, np.int32)
    number[0], number[kept] = 0, np.arange(1, len(kept) + 1)
    instances = number[labels]
    instances[ignored] = -1
    slices = ndimage.find_objects(np.maximum(instances, 0))
    boxes = [(c.start, r.start, c.stop, r.stop) for r, c in slices]
    return instances, np.array(boxes, np.float32).reshape(-1, 4)
