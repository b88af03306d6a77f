"""Detect which building challenge the directories hold and find its chips."""

from collections.abc import Sequence
from pathlib import Path

from satmap.data.inventory import Inventory
from satmap.data.layouts.mapping_challenge import (
    ANNOTATIONS,
    PICTURE_SUFFIXES,
    is_mapping_challenge,
    scan_mapping_challenge,
)
from satmap.data.layouts.open_cities import (
    EXPECTED_SCENE,
    is_open_cities,
    scan_open_cities,
)
from satmap.data.layouts.spacenet_buildings import (
    EXPECTED_NAMES,
    IMAGE_SUFFIXES,
    is_building_image,
    scan_spacenet_buildings,
)
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.io.walk import walk


def find_building_images(
    directories: Sequence[Path], channels: int = 1, view_angle: ViewAngle | None = None
) -> Inventory:
    """Find the chips of SpaceNet 1, 2, 4, the Mapping Challenge or Open Cities in directories.

    Arguments are those of :meth:`satmap.recipes.task_settings.TaskSettings.find_images`.

    Raises:
        SatmapError: a directory does not exist, there are no images of these challenges or images
            of two challenges, or two files have the same image id.
    """
    files = [*walk(directories, also_non_files=(*IMAGE_SUFFIXES, *PICTURE_SUFFIXES))]
    spacenet = next(filter(is_building_image, files), None)
    coco = next(filter(is_mapping_challenge, files), None)
    if spacenet and coco:
        raise SatmapError(
            f"images of two challenges: {spacenet} and {coco}. Give the directories of only one."
        )
    if coco:
        return scan_mapping_challenge(directories, files)
    if spacenet:
        return scan_spacenet_buildings(directories, files, channels, view_angle)
    if any(map(is_open_cities, files)):
        return scan_open_cities(directories, files)
    raise SatmapError(
        f"no images of a building challenge under {', '.join(map(str, directories))}. Expected "
        f"names such as {EXPECTED_NAMES}, images/000000000012.jpg beside {ANNOTATIONS}, or "
        f"{EXPECTED_SCENE} of Open Cities."
    )
