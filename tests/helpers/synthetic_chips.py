"""Small generated chips of the building challenges, for tests."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from synthetic_images import lon_lat, write_image

Ring = Sequence[tuple[float, float]]


def square(x: float, y: float, side: float, height: float | None = None) -> list[Ring]:
    """Return the ring of a square, or rectangle, with the given upper left corner."""
    low = side if height is None else height
    return [[(x, y), (x + side, y), (x + side, y + low), (x, y + low)]]


def write_buildings(path: Path, buildings: Iterable[Sequence[Ring]]) -> Path:
    """Write footprints, each an outer ring with holes, in pixels of a ``write_image`` image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = [
        {
            "type": "Feature",
            "properties": {},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[lon_lat(*xy) for xy in [*ring, ring[0]]] for ring in rings],
            },
        }
        for rings in buildings
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def write_tile(
    root: Path, number: int, buildings: Sequence[Sequence[Ring]], size: int = 96, bands: int = 3
) -> None:
    """Write a SpaceNet 2 chip with bright buildings on dark ground, and its label."""
    random = np.random.default_rng(number)
    pixels = random.integers(100, 300, (bands, size, size)).astype(np.uint16)
    for rings in buildings:
        drawn = np.zeros((size, size), np.uint8)
        cv2.fillPoly(drawn, [np.array(rings[0]).round().astype(np.int32)], 1)
        pixels[:, drawn > 0] += 1500
    name = f"AOI_9_Made_img{number}"
    write_image(root / f"RGB-PanSharpen/RGB-PanSharpen_{name}.tif", pixels=pixels)
    write_buildings(root / f"geojson/buildings/buildings_{name}.geojson", buildings)


def write_coco(root: Path, buildings: dict[int, Sequence[Sequence[Ring]]], size: int = 96) -> Path:
    """Write Mapping Challenge images and their annotations."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, record in buildings.items():
        name = f"{number:012d}.jpg"
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        picture: NDArray[np.uint8] = np.full((size, size, 3), 60, np.uint8)
        for rings in record:
            segmentation = [[c for xy in ring for c in xy] for ring in rings]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 100,
                    "segmentation": segmentation,
                }
            )
            for ring in rings:
                cv2.fillPoly(picture, [np.array(ring).round().astype(np.int32)], (220, 200, 190))
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
    path = root / "annotation.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def ring_of(polygon: shapely.Polygon) -> list[tuple[float, float]]:
    return [(x, y) for x, y in polygon.exterior.coords[:-1]]
