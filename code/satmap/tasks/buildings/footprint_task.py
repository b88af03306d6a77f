"""What the tasks that map footprints of buildings share: their labels, rasters and image ids."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.data.label_files import Kind
from satmap.data.layouts.spacenet_buildings import building_image_id
from satmap.tasks.buildings.labels import trace_parts
from satmap.tasks.buildings.settings import BUILDING_FILE_MAPS
from satmap.tasks.dense import DenseTask
from satmap.tasks.losses import IGNORED_BIT


class FootprintTask(DenseTask):
    """A task whose networks learn footprints from polygons: building polygons, building masks."""

    label_noun: ClassVar[str] = "building"
    label_kind: ClassVar[Kind | None] = "polygons"
    file_maps: ClassVar[Mapping[int, tuple[str, ...]]] = BUILDING_FILE_MAPS
    ignored_bit: ClassVar[int] = IGNORED_BIT

    def image_id_of(self, stem: str) -> str | None:
        """Return the image id in the name of a raster."""
        return building_image_id(stem)

    def trace_mask(
        self, mask: NDArray[np.bool_], metres_per_pixel: tuple[float, float]
    ) -> list[shapely.Geometry]:
        """Return the outlines of a mask's connected parts, in pixels."""
        return trace_parts(mask)

    @property
    def loss_parts(self) -> tuple[str, ...]:
        """Names of the loss parts: one per probability map."""
        return self.recipe.map_names
