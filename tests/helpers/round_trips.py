"""True roads drawn as the twelve maps, to be vectorised back into roads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely import STRtree

from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.evaluation.metrics.apls import AplsScore, apls
from satmap.io.geojson_reader import LON_LAT
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.submissions.roads_csv import RoadRow, rows_of_graph
from satmap.tasks.roads.labels import clip_to_image, read_road_labels
from satmap.tasks.roads.losses import split_heads
from satmap.tasks.roads.settings import ROAD_MAPS, RoadSettings, TargetSettings
from satmap.tasks.roads.targets import RoadLabel, rasterize_roads
from satmap.tasks.roads.vectorizer.vectorize_roads import vectorize_roads
from satmap.vectors.georeference import Georeference, metres_per_degree
from satmap.vectors.road_graph import line_length_m
from synthcity.labels import chip_roads
from synthcity.network import make_roads
from synthcity.survey import chip_block

# Grid of SpaceNet's Las Vegas chips: degrees per pixel, pixels per side, a corner of four chips.
_PIXEL_DEG, _SIZE = 2.7e-6, 1300
_WEST, _NORTH = -115.2092376, 36.2125377


@dataclass(frozen=True)
class RoundTrip:
    """Maps of a chip and the roads that they were drawn from.

    Attributes:
        name: name of the chip.
        maps: exact maps, as predicted by a perfect network.
        truth: the true roads.
    """

    name: str
    maps: ProbabilityMaps
    truth: tuple[RoadRow, ...]

    @property
    def metres_per_pixel(self) -> float:
        """Pixel size for the scorer, the mean of both axes."""
        return float(np.mean(self.maps.metres_per_pixel))

    def score(self, settings: RoadSettings | None = None) -> AplsScore:
        """Return the APLS of the vectorised maps."""
        rows = rows_of_graph(vectorize_roads(self.maps, settings))
        return apls(self.truth, rows, metres_per_pixel=self.metres_per_pixel)


def decode_target(target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Unpack a target into twelve maps in the order of ``ROAD_MAPS``, uint8 0/1 (12, h, w)."""
    heads = split_heads(torch.from_numpy(target)[None])
    maps = torch.cat([heads[name] for name in ("speed", "road", "junction")], dim=1)
    return maps[0].numpy().astype(np.uint8)


def of_labels(
    name: str, labels: list[RoadLabel], shape: tuple[int, int], scale: tuple[float, float]
) -> RoundTrip:
    """Return the round trip of labels in pixels."""
    target = rasterize_roads(labels, shape, scale, TargetSettings())
    rows = []
    for label in labels:
        length = line_length_m(label.line, scale)
        rows.append(RoadRow(label.line, length, length / label.speed_mps))
    maps = ProbabilityMaps(ROAD_MAPS, decode_target(target) * np.uint8(255), scale)
    return RoundTrip(name, maps, tuple(rows))


def made_city(seed: int, chips: int = 4, size: int = 1300) -> Iterator[RoundTrip]:
    """Yield the chips of a synthetic city, without images."""
    rng = np.random.default_rng(seed)
    block = chip_block(chips, 0, size, -115.2, mirrored=False)
    edges = make_roads(block.width, block.height, rng)
    tree = STRtree([edge.line for edge in edges])
    for tile in block.tiles:
        scale = (tile.grid.x_m, tile.grid.y_m)
        roads = chip_roads(edges, tree, tile)
        labels = [RoadLabel(road.line, road.edge.speed_mph) for road in roads]
        yield of_labels(f"city {seed} chip {tile.name}", labels, (size, size), scale)


def labelled_chips(directory: Path) -> Iterator[RoundTrip]:
    """Yield the chips of a directory of images with labels."""
    for chip in scan_roads([directory]).chips:
        image = chip.image
        assert chip.label is not None
        assert image.georeference is not None
        labels = [
            part
            for label in read_road_labels(chip.label, image.georeference)
            for part in clip_to_image(label, image.width, image.height)
        ]
        scale = image.georeference.metres_per_pixel
        yield of_labels(chip.image_id, labels, (image.height, image.width), scale)


def vegas_labels(directory: Path) -> Iterator[RoundTrip]:
    """Yield SpaceNet 3's Las Vegas labels without images, on their known grid."""
    side = _SIZE * _PIXEL_DEG
    world = Georeference(CRS.from_string(LON_LAT).to_wkt(), Affine.identity(), (1.0, 1.0))
    for path in sorted(directory.glob("*.geojson")):
        places = np.concatenate([label.line for label in read_road_labels(path, world)])
        middle = (places.min(axis=0) + places.max(axis=0)) / 2
        west = _WEST + np.floor((middle[0] - _WEST) / side) * side
        north = _NORTH - np.floor((_NORTH - middle[1]) / side) * side
        across, down = metres_per_degree(north - side / 2)
        scale = (across * _PIXEL_DEG, down * _PIXEL_DEG)
        transform = Affine(_PIXEL_DEG, 0, west, 0, -_PIXEL_DEG, north)
        georeference = Georeference(world.crs, transform, scale)
        labels = [
            part
            for label in read_road_labels(path, georeference)
            for part in clip_to_image(label, _SIZE, _SIZE)
        ]
        yield of_labels(path.stem, labels, (_SIZE, _SIZE), scale)
