"""From probability planes to the footprints of buildings, each with how sure it is."""

from typing import NamedTuple

import numpy as np
import shapely

from satmap.buildings.instances import find_instances
from satmap.buildings.polygons import exact_polygons, simplify_outlines
from satmap.buildings.settings import BuildingSettings
from satmap.planes import BUILDING, Planes


class Footprint(NamedTuple):
    """A building of an image.

    Attributes:
        polygon: x = column and y = row in pixels; may have holes.
        confidence: mean probability x square root of the area in pixels: the higher the surer
            (neptune's open solution of the Mapping Challenge).
    """

    polygon: shapely.Polygon
    confidence: float


def find_footprints(planes: Planes, settings: BuildingSettings) -> list[Footprint]:
    """The buildings of an image, in the order of their first pixels.

    Args:
        planes: at least ``building``; with ``border`` and ``contact`` touching ones come apart.
        settings: thresholds.
    """
    labels = find_instances(planes, settings)
    outlines = simplify_outlines(exact_polygons(labels), settings.simplify_px)
    areas = np.bincount(labels.ravel(), minlength=len(outlines) + 1)[1:]
    sums = np.bincount(labels.ravel(), planes[BUILDING].ravel(), len(outlines) + 1)[1:]
    confidences = sums / 255 / np.sqrt(np.maximum(areas, 1))
    return [
        Footprint(polygon, confidence)
        for polygon, confidence in zip(outlines.tolist(), confidences.tolist(), strict=True)
        if polygon is not None
    ]
