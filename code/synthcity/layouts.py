"""Synthetic cities of buildings in the layouts of three challenges."""

from enum import StrEnum
from pathlib import Path

import numpy as np

from synthcity.layout_nadir import write_coco, write_spacenet2
from synthcity.layout_spacenet4 import write_spacenet4
from synthcity.layout_spacenet5 import check_arguments
from synthcity.views import VIEW_ANGLE_COUNT, make_view_angles


class BuildingLayout(StrEnum):
    """Layout of a city of buildings."""

    SPACENET4 = "spacenet4"
    SPACENET2 = "spacenet2"
    COCO = "coco"


#: Default numbers of training and test tiles and default side in pixels of each layout.
DEFAULTS = {
    BuildingLayout.SPACENET4: (4, 1, 900),
    BuildingLayout.SPACENET2: (24, 6, 650),
    BuildingLayout.COCO: (48, 12, 300),
}


def make_building_city(
    directory: Path,
    layout: BuildingLayout,
    *,
    chips: int | None = None,
    test_chips: int | None = None,
    seed: int = 0,
    size: int | None = None,
    view_angles: int = VIEW_ANGLE_COUNT,
    name: str = "AOI_99_Made",
) -> None:
    """Write a synthetic city of buildings: images with exact footprints.

    Training and test tiles are windows of two cities under one sun. The same arguments give the
    same pixels and labels. Output by layout:

    - SpaceNet 4: ``train/{collect}/Pan-Sharpen/``, ``train/geojson/spacenet-buildings/`` and
      ``train/summaryData/{collect}_Train.csv``, ``test/{collect}/Pan-Sharpen/``,
      ``test_truth.csv``: every tile from every view angle in four bands, 0.5 m per pixel.
    - SpaceNet 2: ``train/{name}_Train`` with ``MUL-PanSharpen``, ``RGB-PanSharpen``,
      ``geojson/buildings`` and ``summaryData``, ``test/{name}_Test_public`` with images only,
      ``test_truth.csv``: about 0.3 m per pixel, almost at nadir.
    - COCO: ``train`` and ``val`` with ``images`` and ``annotation.json``, ``test_images`` and
      ``test_annotation.json``.

    Args:
        directory: created if it does not exist.
        layout: directory layout and file formats.
        chips: number of training tiles, at least 1; None for the layout's default.
        test_chips: number of test tiles, may be 0; COCO gets as many for validation.
        seed: seed of all random choices, at least 0.
        size: side of a tile, pixels, at least 64; None for the layout's default.
        view_angles: number of view angles for SpaceNet 4, 1 to 27.
        name: AOI name for SpaceNet 2, ``AOI_<number>_<word>``.

    Raises:
        CityError: an argument is out of range, the directory cannot be written to or it holds
            images of another synthetic city.
    """
    chips, test_chips, size = (
        usual if given is None else given
        for given, usual in zip((chips, test_chips, size), DEFAULTS[layout], strict=True)
    )
    check_arguments(chips, test_chips, seed, size, name)
    match layout:
        case BuildingLayout.SPACENET4:
            collects = make_view_angles(view_angles, np.random.default_rng((seed, 4)))
            write_spacenet4(directory, chips, test_chips, seed, size, collects)
        case BuildingLayout.SPACENET2:
            write_spacenet2(directory, chips, test_chips, seed, size, name)
        case BuildingLayout.COCO:
            write_coco(directory, chips, test_chips, seed, size)
