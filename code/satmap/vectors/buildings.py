"""What the building vectoriser finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.vectors.georeference import (
    Georeference,
    geodataframe,
    georeference_or_fault,
    lon_lat_of,
)

if TYPE_CHECKING:
    import geopandas

#: Polygons, (n,).
Polygons: TypeAlias = NDArray[np.object_]


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


_OTHERWISE = "Write a CSV or COCO results, which take pixels"


class Buildings(list[Building]):
    """The buildings of one image.

    Attributes:
        georeference: position of the pixels; None if it is not known.
    """

    def __init__(
        self, buildings: Iterable[Building], georeference: Georeference | None = None
    ) -> None:
        super().__init__(buildings)
        self.georeference = georeference

    def to_geodataframe(self) -> "geopandas.GeoDataFrame":
        """The footprints as a table with geometries; needs the extra ``satmap[gis]``.

        Columns: ``confidence`` and ``geometry``, in the image's reference system or in pixels.

        Raises:
            SatmapError: geopandas is not installed.
        """
        place = self.georeference
        rows = [
            {
                "geometry": shapely.transform(building.polygon, place.to_map)
                if place
                else building.polygon,
                "confidence": building.confidence,
            }
            for building in self
        ]
        return geodataframe(rows, ["geometry", "confidence"], place.crs if place else None)


@dataclass(frozen=True)
class ImageBuildings:
    """The buildings of one image.

    Attributes:
        image_id: the image.
        number: its id in COCO results; None where it has none.
        size: its height and width.
        buildings: in its pixels.
        georeference: where its pixels lie; None if nobody knows.
    """

    image_id: str
    number: int | None
    size: tuple[int, int]
    buildings: tuple[Building, ...]
    georeference: Georeference | None = None


def buildings_in_lon_lat(found: ImageBuildings) -> Polygons:
    """The footprints in degrees of longitude and latitude on WGS 84, holes kept.

    Raises:
        SatmapError: the image has no georeference, or one that does not lead to longitudes and
            latitudes on one side of the 180th meridian.
    """
    polygons = _polygons(found)
    lon_lat = lon_lat_of(
        found.image_id,
        found.georeference,
        shapely.get_coordinates(polygons),
        things="buildings",
        otherwise=_OTHERWISE,
    )
    placed: Polygons = shapely.set_coordinates(polygons, lon_lat)
    return placed


def in_own_system(found: ImageBuildings) -> Polygons:
    """The footprints in the reference system of the image, holes kept.

    Raises:
        SatmapError: the image has no georeference.
    """
    georeference = georeference_or_fault(found.image_id, found.georeference, _OTHERWISE)
    polygons = _polygons(found)
    places = georeference.to_map(shapely.get_coordinates(polygons))
    placed: Polygons = shapely.set_coordinates(polygons, places)
    return placed


def building_attributes(found: ImageBuildings) -> list[dict[str, str | float]]:
    """What both formats say of each building: image, confidence, and square metres on the ground.

    The confidence is what the CSV has (:class:`satmap.vectors.buildings.Building`); both numbers
    have three decimals.
    """
    x_m, y_m = found.georeference.metres_per_pixel if found.georeference else (np.nan, np.nan)
    return [
        {
            "image_id": found.image_id,
            "confidence": round(building.confidence, 3),
            "area_m2": round(building.polygon.area * x_m * y_m, 3),
        }
        for building in found.buildings
    ]


def _polygons(found: ImageBuildings) -> Polygons:
    return np.array([building.polygon for building in found.buildings], np.object_)
