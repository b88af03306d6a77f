"""Building footprints: data types, coordinates and export attributes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.io.geojson_reader import LON_LAT
from satmap.vectors.georeference import Georeference, geodataframe, place

if TYPE_CHECKING:
    import geopandas

#: What exports, messages and scores say of objects without a calibrated confidence.
UNCALIBRATED = "uncalibrated"

# Attributes of a building in tables.
_FIGURES = ("score", "mean_probability", "confidence")

#: Array of shapely polygons, (n,).
Polygons: TypeAlias = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Building:
    """A building of an image.

    Attributes:
        polygon: valid footprint, may have holes; x = column and y = row in pixels, where pixel
            (0, 0) extends from (0, 0) to (1, 1).
        score: what the challenges' scorers rank by, higher is more certain: mean probability x
            square root of the area in pixels, or the intersection over union with the truth that a
            selection model expects, 0..1. NaN if unknown.
        mean_probability: mean building probability inside the footprint, 0..1, not calibrated; None
            if the score is an expected intersection over union.
        confidence: probability that the building is right, 0..1: that it matches a true building
            with an intersection over union above .5. None if it is not calibrated.
    """

    polygon: shapely.Polygon
    score: float
    mean_probability: float | None = None
    confidence: float | None = None


class Buildings(list[Building]):
    """The buildings of one image.

    Attributes:
        georeference: position of the pixels; None if unknown.
    """

    def __init__(
        self, buildings: Iterable[Building], georeference: Georeference | None = None
    ) -> None:
        super().__init__(buildings)
        self.georeference = georeference

    def to_geodataframe(self) -> "geopandas.GeoDataFrame":
        """Return the footprints as a GeoDataFrame; needs the extra ``satmap[gis]``.

        Columns: ``score``, ``mean_probability``, ``confidence`` and ``geometry``, in the image's
        reference system or in pixels.

        Raises:
            SatmapError: geopandas is not installed.
        """
        here = self.georeference
        polygons = [building.polygon for building in self]
        if here:
            polygons = [shapely.transform(polygon, here.to_map) for polygon in polygons]
        rows = [
            {"geometry": polygon, **{name: getattr(building, name) for name in _FIGURES}}
            for polygon, building in zip(polygons, self, strict=True)
        ]
        return geodataframe(rows, ["geometry", *_FIGURES], here.crs if here else None)


@dataclass(frozen=True)
class ImageBuildings:
    """The buildings of one image, with what exports need to know of the image.

    Attributes:
        image_id: id of the image.
        number: id of the image in COCO results; None if it has none.
        size: height and width of the image.
        buildings: buildings in pixels of the image.
        georeference: position of the pixels; None if unknown.
    """

    image_id: str
    number: int | None
    size: tuple[int, int]
    buildings: tuple[Building, ...]
    georeference: Georeference | None = None

    @property
    def polygons(self) -> Polygons:
        """The footprints in pixels."""
        return np.array([building.polygon for building in self.buildings], np.object_)


def placed_buildings(image: ImageBuildings, crs: str = LON_LAT) -> Polygons:
    """Return the footprints in coordinates of a reference system, holes kept.

    Raises:
        SatmapError: as for :func:`satmap.vectors.georeference.place`.
    """
    placed: Polygons = shapely.transform(
        image.polygons,
        lambda pixels: place(
            image.image_id,
            image.georeference,
            pixels,
            crs,
            things="buildings",
            otherwise="Write a CSV or COCO results, which use pixels",
        ),
    )
    return placed


def building_attributes(image: ImageBuildings) -> list[dict[str, str | float | None]]:
    """Return the attributes of each building in every export.

    ==================== =======================================================================
    ``image_id``         the image
    ``mean_probability`` mean probability inside the footprint, 0..1, not calibrated; None if a
                         selection model rated the building
    ``expected_iou``     intersection over union with the true building that the selection model
                         expects, 0..1; None without a model
    ``confidence``       probability that the building is right, 0..1; None if not calibrated
    ``calibration``      ``calibrated`` or ``uncalibrated``
    ``area_m2``          area in square metres; NaN without a georeference
    ==================== =======================================================================

    Numbers have three decimals.
    """
    x_m, y_m = image.georeference.metres_per_pixel if image.georeference else (np.nan, np.nan)
    return [
        {
            "image_id": image.image_id,
            "mean_probability": _rounded(building.mean_probability),
            "expected_iou": (
                _rounded(building.score) if building.mean_probability is None else None
            ),
            "confidence": _rounded(building.confidence),
            "calibration": calibration_of(building.confidence),
            "area_m2": round(building.polygon.area * x_m * y_m, 3),
        }
        for building in image.buildings
    ]


def calibration_of(confidence: float | None) -> str:
    """Return whether there is a calibrated confidence, in words."""
    return UNCALIBRATED if confidence is None else "calibrated"


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)
