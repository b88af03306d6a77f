"""Buildings from planes, into the journal and into SpaceNet's CSV or COCO results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import rasterio.features
import shapely

from satmap.data.cache import category_of
from satmap.data.chip import Chip
from satmap.errors import SatmapError
from satmap.exports import BUILDING_SUFFIXES, ImageBuildings, export_buildings
from satmap.prediction.journal import (
    Journal,
    RowsByImage,
    georeference_as_json,
    georeference_from_json,
)
from satmap.rasters.map_files import BUILDING_FILE_MAPS, open_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.submissions.buildings_csv import BuildingRow, write_buildings_csv
from satmap.submissions.coco_json import Detection, write_coco_results
from satmap.tasks.buildings.confidence import ConfidenceModel, read_confidence
from satmap.tasks.buildings.vectorizer.settings import BuildingSettingsByCategory
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.vectors.buildings import Building
from satmap.vectors.georeference import Georeference

#: The name of an output that is to be a list of COCO results ends in it.
COCO_SUFFIX = ".json"


@dataclass(frozen=True)
class BuildingDecoder:
    """See :class:`satmap.tasks.maps.Decoder`.

    Attributes:
        settings: of the vectoriser, for all categories of looks.
        heads: how many categories there are; None for none.
        category: whose settings count; None for those of all.
        confidence: file of the model that chooses and rates candidates; None for mean probability
            x square root of the area.
    """

    settings: BuildingSettingsByCategory
    heads: int | None = None
    category: str | None = None
    confidence: Path | None = None
    noun: ClassVar[str] = "buildings"
    uses_neighbours: ClassVar[bool] = False

    def for_image(self, chip: Chip) -> "BuildingDecoder":
        """With the settings of the category of its look."""
        return replace(self, category=category_of(chip, self.heads))

    def vectorize(self, maps: ProbabilityMaps) -> list[Building]:
        """The buildings of an image."""
        return vectorize_buildings(maps, self.settings.of(self.category), self._model())

    def vectorize_stored(
        self, stored: Path, neighbours: Sequence[tuple[Path, int, int]]
    ) -> list[Building]:
        """The same from a file; what lies around the image says nothing of its buildings."""
        # Nobody asks for the size of pixels here.
        with open_map_file(stored, 1, BUILDING_FILE_MAPS) as mask:
            return vectorize_buildings(mask.scene, self.settings.of(self.category), self._model())

    def _model(self) -> ConfidenceModel | None:
        return _read_once(self.confidence) if self.confidence else None

    def record(
        self, chip: Chip, image_id: str, found: list[Building], georeference: Georeference | None
    ) -> ImageBuildings:
        """The buildings with the image that they are of."""
        size = chip.image.height, chip.image.width
        return ImageBuildings(image_id, chip.number, size, tuple(found), georeference)

    def require_output(self, output: Path, exports: Sequence[Path], chips: Sequence[Chip]) -> None:
        """Refuse exports that only roads have, and COCO results of images without numbers.

        Raises:
            SatmapError: so it is.
        """
        for path in exports:
            if path.suffix.lower() not in BUILDING_SUFFIXES:
                raise SatmapError(
                    f"{path}: buildings can be exported as {' or '.join(BUILDING_SUFFIXES)}; "
                    "the other formats are for roads."
                )
        nameless = [chip.image_id for chip in chips if chip.number is None]
        if output.suffix.lower() == COCO_SUFFIX and nameless:
            raise SatmapError(
                f"{output}: COCO results need images with numbers, as the Mapping Challenge has "
                f"them, and {nameless[0]} has none. Give a name that ends in .csv."
            )

    def write(
        self, output: Path, ids: Sequence[str], keys: Mapping[str, str], journal: Journal
    ) -> dict[str, int]:
        """Write SpaceNet's CSV with confidences, or COCO results where the name ends in .json."""
        return write_buildings(output, ids, keys, journal.found)

    def export(self, path: Path, images: Callable[[], Iterator[ImageBuildings]]) -> list[str]:
        """Write footprints as GeoJSON or GeoPackage; gives what is wrong with those left out."""
        return export_buildings(path, images)

    def as_json(self, found: ImageBuildings) -> list[Any]:
        """The buildings as lists, numbers and texts, polygons as hexadecimal WKB."""
        return [
            found.image_id,
            found.number,
            found.size,
            [[building.polygon.wkb_hex, building.confidence] for building in found.buildings],
            georeference_as_json(found.georeference),
        ]

    def from_json(self, content: list[Any]) -> ImageBuildings:
        """The buildings as they were, to the last bit.

        Raises:
            ValueError, TypeError: it is no such list.
            shapely.errors.ShapelyError: it holds a damaged polygon.
        """
        image_id, number, (height, width), buildings, place = content
        return ImageBuildings(
            image_id,
            number,
            (height, width),
            tuple(Building(shapely.from_wkb(text), float(sure)) for text, sure in buildings),
            georeference_from_json(place),
        )


@lru_cache(maxsize=1)
def _read_once(path: Path) -> ConfidenceModel:
    """A model takes longer to read than an image to vectorise; each worker reads it once."""
    return read_confidence(path)


def write_buildings(
    output: Path,
    ids: Sequence[str],
    keys: Mapping[str, str],
    read: Callable[[str], ImageBuildings],
) -> dict[str, int]:
    """Write buildings as SpaceNet's CSV, or as COCO results where the name ends in .json.

    Args:
        output: the file.
        ids: of every image of it, in its order.
        keys: by id what ``read`` takes, for the images that have been vectorised.
        read: gives the buildings of an image.

    Returns:
        Number of buildings by id.

    Raises:
        CannotWriteError: it cannot be written.
    """
    if output.suffix.lower() == COCO_SUFFIX:
        return _write_coco(output, ids, keys, read)
    rows = RowsByImage(ids, keys, lambda key: _rows(read(key)))
    write_buildings_csv(output, rows)
    return rows.counts


def _rows(found: ImageBuildings) -> list[BuildingRow]:
    return [BuildingRow(building.polygon, building.confidence) for building in found.buildings]


def _write_coco(
    output: Path,
    ids: Sequence[str],
    keys: Mapping[str, str],
    read: Callable[[str], ImageBuildings],
) -> dict[str, int]:
    ids_of: dict[int, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for image_id, key in keys.items():
        found = read(key)
        assert found.number is not None, "who asks for COCO results has looked"
        height, width = found.size
        ids_of[found.number] = image_id
        sizes[found.number] = width, height
    numbers = {number: keys[image_id] for number, image_id in ids_of.items()}
    masks = RowsByImage(list(numbers), numbers, lambda key: _detections(read(key)))
    write_coco_results(output, masks, sizes)
    counts = dict.fromkeys(ids, 0)
    counts.update((ids_of[number], count) for number, count in masks.counts.items())
    return counts


def _detections(found: ImageBuildings) -> list[Detection]:
    return detections(found.buildings, found.size)


def detections(buildings: Sequence[Building], size: tuple[int, int]) -> list[Detection]:
    """Buildings as masks: a pixel is a building's whose centre is inside.

    Args:
        buildings: of an image.
        size: its height and width.
    """
    drawn = []
    height, width = size
    for building in buildings:
        polygon = building.polygon
        left, top, right, bottom = (round(bound) for bound in polygon.bounds)
        # Outlines may have been moved a little beyond the image.
        left, right = max(left - 1, 0), min(right + 1, width)
        top, bottom = max(top - 1, 0), min(bottom + 1, height)
        if left >= right or top >= bottom:
            continue
        inside = shapely.transform(polygon, lambda xy, corner=(left, top): xy - corner)
        mask = rasterio.features.rasterize([(inside, 1)], (bottom - top, right - left))
        drawn.append(Detection(mask.astype("uint8"), (left, top), building.confidence))
    return drawn
