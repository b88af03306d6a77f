"""The target of a chip, by the kind of labels that it has: what to draw says which."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.chip import Chip
from satmap.errors import SatmapError
from satmap.tasks.buildings.labels import read_building_labels
from satmap.tasks.buildings.targets import BuildingTargetSettings, rasterize_buildings
from satmap.tasks.roads.labels import clip_to_image, read_road_labels
from satmap.tasks.roads.targets import TargetSettings, rasterize_roads

#: How labels become pixels, by their kind: roads or buildings.
TargetsOf = TargetSettings | BuildingTargetSettings


def encode_label(
    chip: Chip, image: NDArray[np.uint8], targets: TargetsOf
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Read the labels of a chip and draw them.

    Args:
        chip: with a label.
        image: uint8 (height, width, channels) as the networks see it, which may be a smaller or a
            larger form of the file; 0 in all channels where there is no data.
        targets: of which kind the labels are, and how they become pixels.

    Returns:
        The target, uint8 (height, width) of roads and (height, width, 2) of buildings; what else is
        to be known of the labels, as JSON takes it.

    Raises:
        SatmapError: there is no label, or it is unusable.
    """
    if isinstance(targets, TargetSettings):
        return _draw_roads(chip, image, targets)
    labels = read_building_labels(chip)
    _require_data(chip, image, len(labels.outlines), "buildings")
    shape = image.shape[:2]
    scale = np.array([shape[1] / chip.image.width, shape[0] / chip.image.height])
    seen = shapely.transform(labels.outlines, lambda xy: xy * scale)
    target = rasterize_buildings(seen, (shape[0], shape[1]), targets)
    # Of what nobody has seen there is nothing to learn.
    target[~image.any(axis=2), 0] = 0
    place = chip.image.georeference
    return target, {
        "metres_per_pixel": place.metres_per_pixel if place else (1.0, 1.0),
        "outlines": shapely.to_wkb(labels.outlines, hex=True).tolist(),
        "repaired": labels.repaired,
    }


def _draw_roads(
    chip: Chip, image: NDArray[np.uint8], settings: TargetSettings
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    info = chip.image
    if chip.label is None:
        raise SatmapError(f"{info.path}: no label, so it cannot be trained with.")
    if info.georeference is None:
        raise SatmapError(
            f"{info.path}: no georeference, so its labels cannot be placed. "
            "Assign one, for example with `rio edit-info --crs EPSG:4326 --transform ...`."
        )
    labels = read_road_labels(chip.label, info.georeference)
    size = (info.height, info.width)
    inside = [part for label in labels for part in clip_to_image(label, info.width, info.height)]
    if labels and not inside:
        raise SatmapError(
            f"{chip.label}: none of its {len(labels)} roads lies on {info.path.name}. "
            "Check that label and image belong together and the label's coordinate system."
        )
    _require_data(chip, image, len(inside), "roads")
    target = rasterize_roads(labels, size, info.georeference.metres_per_pixel, settings)
    return target, {
        "metres_per_pixel": info.georeference.metres_per_pixel,
        "labels": [(label.line.tolist(), label.speed_mph) for label in inside],
    }


def _require_data(chip: Chip, image: NDArray[np.uint8], labelled: int, what: str) -> None:
    if labelled and not image.any():
        assert chip.label is not None, "the label was read"
        raise SatmapError(
            f"{chip.image.path}: no pixel holds data, but {chip.label.name} has {labelled} {what}, "
            "which cannot be learned from it. Check the image."
        )
