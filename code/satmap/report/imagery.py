"""Find the images that pictures are drawn on, and read them at the size of a picture."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from affine import Affine

from satmap.data.layers import Layer, find_layers, stretched
from satmap.data.layouts.spacenet_buildings import building_image_id
from satmap.data.layouts.spacenet_roads import road_image_id
from satmap.data.mosaic import Mosaic
from satmap.data.sources import Source, find_sources, read_source
from satmap.errors import SatmapError
from satmap.io.gdal import DRIVERS
from satmap.io.text import natural_key
from satmap.io.walk import walk
from satmap.rasters.scene import Box
from satmap.recipes.schema import StretchSettings
from satmap.report.panels import PANEL_PX, Ground, View
from satmap.vectors.georeference import Georeference

_RGB = 3

# The challenge's prefix of an id: SN5_roads_test_public_AOI_7_Moscow_chip23.
_PREFIX = re.compile(r"^SN\d_(?:roads|buildings)_\w+?_(?=AOI_)")


class Imagery:
    """Rasters of any names, by the id of an image or by their place.

    They are stretched to 8 bits as the recipes do by default (percentiles 2 and 98 of each band).
    """

    def __init__(self, places: Sequence[Path]) -> None:
        """Find the rasters: files, or all those under directories.

        Raises:
            SatmapError: a place does not exist, or there is no raster.
        """
        self._places = places
        self._paths: dict[str, list[Path]] = {}
        for place in places:
            for path in walk([place]) if place.is_dir() else [place]:
                if path.suffix.lower() in DRIVERS:
                    self._paths.setdefault(_image_id(path.stem), []).append(path)
        if not self._paths:
            raise SatmapError(
                f"no raster under {', '.join(map(str, places))}. Give the images or their "
                f"directories ({', '.join(sorted(DRIVERS))})."
            )
        self.ids = sorted(self._paths, key=natural_key)

    def __contains__(self, image_id: str) -> bool:
        return _image_id(image_id) in self._paths

    def of(self, image_id: str) -> Ground | None:
        """Return the image with an id; None if there is none.

        Of several products of an image, the one with the most pixels is taken, then the one with
        about three bands.

        Raises:
            SatmapError: the image cannot be read.
        """
        paths = self._paths.get(_image_id(image_id), [])
        if not paths:
            return None
        sources = [read_source(str(path)) for path in paths]
        source = min(sources, key=_preference)
        (layer,) = rgb_layers([source])
        box = Box(0, 0, source.width, source.height)
        # Half of the reduction is left to the picture, which does it better.
        reduce = max(1, max(source.width, source.height) // (2 * PANEL_PX))
        faults: dict[str, str] = {}
        image = layer.read_stretched(box, faults, reduce).transpose(1, 2, 0)
        if faults:
            raise SatmapError(f"{source.name}: {faults[source.name]}")
        place = layer.georeference
        metres = None if place is None else place.gsd_m
        return Ground(View(0, 0, source.width, source.height), image, metres)

    def under(self, grid: Georeference, view: View) -> Ground:
        """Return all images with a georeference as one, resampled to the pixels of ``grid``.

        Raises:
            SatmapError: no image has a georeference. Images that cannot be read stay white.
        """
        width, height = view.panel_size
        x, y = grid.to_map(np.array([[view.left, view.top]]))[0].tolist()
        a, b, _, d, e, _ = (value / view.scale for value in grid.transform[:6])
        shown = replace(grid, transform=Affine(a, b, x, d, e, y))
        image = Mosaic(self._placed, shown, width, height, None).read(Box(0, 0, width, height), {})
        # White paper where there is no image.
        image[~image.any(axis=2)] = 255
        return Ground(view, image, grid.gsd_m)

    @cached_property
    def _placed(self) -> tuple[Layer, ...]:
        sources = find_sources(self._places).sources
        placed = [layer for layer in rgb_layers(sources) if layer.georeference is not None]
        if not placed:
            raise SatmapError(
                f"no raster under {', '.join(map(str, self._places))} has a georeference, which "
                "pictures of vector files need."
            )
        return tuple(placed)


def _image_id(name: str) -> str:
    """Return the id of an image by its file name or by an id, with or without prefix and zeros."""
    if name.isascii() and name.isdecimal():
        return str(int(name))
    return road_image_id(name) or building_image_id(name) or _PREFIX.sub("", name)


def _preference(source: Source) -> tuple[int, int]:
    return -source.width * source.height, abs(len(source.bands) - _RGB)


def rgb_layers(sources: Sequence[Source]) -> list[Layer]:
    """Return layers of red, green and blue with their stretch.

    Raises:
        SatmapError: no raster has these bands.
    """
    found, faults = find_layers(sources, _RGB)
    if not found:
        raise SatmapError(next(iter(faults.values())))
    settings, unread = StretchSettings(), dict[str, str]()
    layers = stretched(found, settings.low, settings.high, unread)
    if not layers:
        raise SatmapError("\n".join(f"{name}: {reason}" for name, reason in unread.items()))
    return layers
