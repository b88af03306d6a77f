"""Convert maps in vector files, such as a folder of GeoJSON, to the challenges' CSV."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from satmap.data.chip import Chip
from satmap.data.inventory import Inventory
from satmap.data.layouts.building_challenges import find_building_images
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import SatmapError
from satmap.io.geojson_reader import FeatureCollection
from satmap.submissions.buildings_csv import write_buildings_csv
from satmap.submissions.roads_csv import write_roads_csv
from satmap.submissions.vector_maps import Side, buildings_in, by_image, roads_in


def convert_to_csv(
    maps: Path,
    output: Path,
    directories: Sequence[Path],
    least_confidence: float | None = None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Write the roads CSV or the buildings CSV of a map, in the pixels of its images.

    Objects are cut at the border of each image. Images without objects get an empty row.

    Args:
        maps: a directory with one GeoJSON per image, named like the image; or one vector file,
            whose features state their ``image_id`` or else belong to every image that they lie on.
        output: the CSV file.
        directories: directories of the challenge's images.
        least_confidence: leave out objects with a lower confidence; None to keep all.

    Returns:
        Number of objects by image id; and image id to the reason, for images that are empty in the
        file because they cannot be read or have no georeference.

    Raises:
        SatmapError: a file cannot be read, the map holds neither roads nor buildings, or has none
            of the images, or an object has no confidence to compare.
        CannotWriteError: ``output`` cannot be written.
    """
    side = by_image(maps, least_confidence)
    collections = (read() for read in side.values())
    first = next((c for c in collections if c.lines or c.surfaces), None)
    if first is None:
        sure = "" if least_confidence is None else f" with a confidence of {least_confidence:g}"
        raise SatmapError(f"{maps} contains no line or polygon{sure}.")
    find: Callable[[Sequence[Path]], Inventory]
    inside: Callable[..., list[Any]]
    write: Callable[[Path, Mapping[str, Sequence[Any]]], None]
    find, inside, write = (
        (scan_roads, roads_in, write_roads_csv)
        if first.lines
        else (find_building_images, buildings_in, write_buildings_csv)
    )
    inventory = find(directories)
    # One map of all images, if no feature states an image.
    whole = first if maps.is_file() and len(side) == 1 else None
    rows: dict[str, list[Any]] = {image_id: [] for image_id in inventory.long_ids}
    faults = dict(inventory.faults)
    known = False
    for chip in inventory.chips:
        found = _collection_of(chip, side)
        known |= found is not None
        found = found or whole
        if found is None:
            continue
        georeference = chip.image.georeference
        if georeference is None:
            faults[chip.image_id] = f"{chip.image.path} has no georeference, which maps need."
            continue
        rows[chip.image_id] = inside(found, georeference, (chip.image.height, chip.image.width))
        known |= bool(rows[chip.image_id])
    if not known:
        raise SatmapError(
            f"{maps} has none of the images in {', '.join(map(str, directories))}, such as "
            f"{next(iter(rows), 'none')}. Its own are {', '.join(list(side)[:3])}."
        )
    write(output, rows)
    return {image_id: len(found) for image_id, found in rows.items()}, faults


def _collection_of(chip: Chip, side: Side) -> FeatureCollection | None:
    for name in (chip.image_id, chip.long_id):
        if name in side:
            return side[name]()
    return None
