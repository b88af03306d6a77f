"""Building footprints: data types, coordinates and export attributes."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.vectors.georeference import Georeference, geodataframe, lon_lat_of

if TYPE_CHECKING:
    import geopandas

#: Array of shapely polygons, (n,).
Polygons: TypeAlias = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Building:
    """A building of an image.

    Attributes:
        polygon: valid footprint, may have holes; x = column and y = row in pixels, where pixel
            (0, 0) extends from (0, 0) to (1, 1).
        confidence: higher is more certain. Either mean probability x square root of the area in
            pixels, or the intersection over union with the truth that a confidence model predicts,
            0..1.
    """

    polygon: shapely.Polygon
    confidence: float


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

        Columns: ``confidence`` and ``geometry``, in the image's reference system or in pixels.

        Raises:
            SatmapError: geopandas is not installed.
        """
        place = self.georeference
        polygons = [building.polygon for building in self]
        if place:
            polygons = [shapely.transform(polygon, place.to_map) for polygon in polygons]
        rows = [
            {"geometry": polygon, "confidence": building.confidence}
            for polygon, building in zip(polygons, self, strict=True)
        ]
        return geodataframe(rows, ["geometry", "confidence"], place.crs if place else None)


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


def buildings_in_lon_lat(image: ImageBuildings) -> Polygons:
    """Return the footprints in degrees of longitude and latitude on WGS 84, holes kept.

    Raises:
        SatmapError: the image has no usable georeference, or lies across the 180th meridian or
            beyond a pole.
    """
    lon_lat = partial(
        lon_lat_of,
        image.image_id,
        image.georeference,
        things="buildings",
        otherwise="Write a CSV or COCO results, which use pixels",
    )
    placed: Polygons = shapely.transform(image.polygons, lon_lat)
    return placed


def building_attributes(image: ImageBuildings) -> list[dict[str, str | float]]:
    """Return the attributes of each building: image, confidence, and area in square metres.

    Both numbers have three decimals. The area is NaN without a georeference.
    """
    x_m, y_m = image.georeference.metres_per_pixel if image.georeference else (np.nan, np.nan)
    return [
        {
            "image_id": image.image_id,
            "confidence": round(building.confidence, 3),
            "area_m2": round(building.polygon.area * x_m * y_m, 3),
        }
        for building in image.buildings
    ]
