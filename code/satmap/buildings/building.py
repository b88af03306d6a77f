"""What the building vectoriser finds."""

from dataclasses import dataclass

import shapely


@dataclass(frozen=True, eq=False)
class Building:
    """A building of an image.

    Attributes:
        polygon: its footprint, valid; x = column and y = row in pixels, pixel (0, 0) from (0, 0)
            to (1, 1); may have holes.
        confidence: the higher the surer: mean probability x square root of the area in pixels, or
            the intersection over union with the truth, 0..1, that a confidence model expects.
    """

    polygon: shapely.Polygon
    confidence: float
