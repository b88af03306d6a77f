"""Export road graphs as GeoJSON (RFC 7946): a LineString per road, in longitude and latitude."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satmap.io.files import atomic_path
from satmap.vectors.road_graph import ImageRoads, edge_attributes, numbered, roads_in_lon_lat

# Decimals of a degree; the last one is about a centimetre.
_DECIMALS = 7


def write_geojson(path: Path, graphs: Iterable[ImageRoads]) -> None:
    """Write the roads of one or many images atomically, one feature per line of the file.

    Features follow the order of the images and of the graphs' edges. Coordinates have seven
    decimals, and the same roads give the same bytes. The properties are those of
    :func:`satmap.vectors.road_graph.edge_attributes`. Images without roads add nothing. Images are
    processed one at a time and not kept in memory.

    Raises:
        SatmapError: an image has no usable georeference.
        CannotWriteError: ``path`` cannot be written.
        ValueError: a number of a graph is not finite.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for feature in _features(graphs):
            file.write(separator + feature)
            separator = ",\n"
        file.write("\n]}\n")


def _features(graphs: Iterable[ImageRoads]) -> Iterator[str]:
    for first_node, roads in numbered(graphs):
        lines = roads_in_lon_lat(roads).lines
        for edge, line in zip(roads.graph.edges, lines, strict=True):
            feature = {
                "type": "Feature",
                "properties": edge_attributes(roads.image_id, edge, first_node),
                "geometry": {"type": "LineString", "coordinates": _rounded(line).tolist()},
            }
            yield json.dumps(feature, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _rounded(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round vertices to seven decimals; consecutive equal vertices are merged."""
    # Adding zero turns -0.0 into 0.0, which prints without a sign.
    places = np.round(line, _DECIMALS) + 0.0
    fresh = np.append(True, (np.diff(places, axis=0) != 0).any(axis=1))
    # A LineString needs two positions, even if the road is shorter than a centimetre.
    return places[fresh] if fresh.sum() >= 2 else places[[0, -1]]
