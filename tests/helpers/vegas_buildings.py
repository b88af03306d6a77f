"""SpaceNet 2's Las Vegas labels from the shared data."""

import json
from collections.abc import Iterator
from pathlib import Path

import rasterio
import shapely
from shapely.affinity import affine_transform

#: The challenge does not count smaller buildings, pixels.
_LEAST_PX = 20


def vegas_truth(directory: Path) -> Iterator[tuple[list[shapely.Polygon], tuple[int, int]]]:
    """Yield the buildings in pixels, height and width of every chip, ordered by label name."""
    for path in sorted((directory / "geojson/buildings").glob("*.geojson")):
        (image,) = directory.glob(f"RGB-PanSharpen/*_{path.stem.rsplit('_', 1)[1]}.tif")
        with rasterio.open(image) as source:
            to_pixels, shape = (~source.transform).to_shapely(), source.shape
        truth = []
        for feature in json.loads(path.read_text())["features"]:
            ground = shapely.force_2d(shapely.from_geojson(json.dumps(feature["geometry"])))
            pixels = affine_transform(ground, to_pixels)
            truth += [part for part in shapely.get_parts(pixels) if part.area >= _LEAST_PX]
        yield truth, shape
