"""Map variants of the same chips: other layouts, reference systems, formats and pixel sizes.

    .venv/bin/python benchmarks/variants.py ../shared/data/roads_epfl/AOI_90_Suburb_Train WORK \
        --weights WEIGHTS [WEIGHTS ...]

Every directory of weights maps the held-out chips (every fifth) in each variant. The score is APLS
against the labels, averaged over the chips. The agreement is the APLS of a variant's map against
that of the plain chips. Losses are paired by network. WORK keeps the variants and the maps.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from rasterio.enums import Resampling

from real_chips import HELD_OUT
from satmap.data.chip import Chip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.evaluation.metrics.apls import apls
from satmap.io.geojson_reader import read_geojson
from satmap.prediction.map import MapRequest, map_sources
from satmap.submissions.roads_csv import RoadRow
from satmap.tasks.roads.labels import clip_to_image, read_road_labels
from satmap.vectors.georeference import Georeference
from satmap.vectors.road_graph import line_length_m

Rows = dict[str, list[RoadRow]]

_UTM = "EPSG:32616"
_MERCATOR = "EPSG:3857"


def main() -> None:
    """Make the variants, map them with every network and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("area", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--gsd", type=float, default=0.5, help="metres per pixel of the training")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    chips = scan_roads([options.area]).chips[::HELD_OUT]
    truth = {chip.image_id: _truth(chip) for chip in chips}
    scores: dict[str, list[float]] = {}
    agreements: dict[str, list[float]] = {}
    for weights in options.weights:
        plain: Rows = {}
        # The plain chips come first: the others are compared with their maps.
        for name in dict.fromkeys(["plain", *options.variants]):
            folder = options.work / name.replace(" ", "-")
            for chip in chips:
                path = folder / f"{chip.image_id}.tif"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    VARIANTS[name](chip.image.path, path)
            output = options.work / f"{weights.name}-{folder.name}.geojson"
            if not output.exists():
                map_sources(
                    MapRequest((), output, weights, "cpu", sources=(str(folder),), gsd=options.gsd)
                )
            found = _found(output, chips)
            plain = plain or found
            each = [_apls(truth[image_id], rows) for image_id, rows in found.items()]
            scores.setdefault(name, []).append(statistics.mean(each))
            agreements.setdefault(name, []).extend(
                _apls(plain[image_id], rows) for image_id, rows in found.items()
            )
    print("| variant | APLS | loss against plain, mean | largest | agreement: median | worst |")
    print("|---|---|---|---|---|---|")
    for name, values in scores.items():
        losses = [base - value for base, value in zip(scores["plain"], values, strict=True)]
        print(
            f"| {name} | {statistics.mean(values):.3f} | {statistics.mean(losses):+.3f} "
            f"| {max(losses):+.3f} | {statistics.median(agreements[name]):.3f} "
            f"| {min(agreements[name]):.3f} |",
            flush=True,
        )


def _apls(truth: Sequence[RoadRow], found: Sequence[RoadRow]) -> float:
    return float(apls(truth, found).length.score)


def _truth(chip: Chip) -> list[RoadRow]:
    assert chip.label is not None and chip.image.georeference is not None
    place, size = chip.image.georeference, (chip.image.width, chip.image.height)
    labels = read_road_labels(chip.label, place)
    rows = []
    for label in (part for whole in labels for part in clip_to_image(whole, *size)):
        length = line_length_m(label.line, place.metres_per_pixel)
        rows.append(RoadRow(label.line, length, length / label.speed_mps))
    return rows


def _found(path: Path, chips: Sequence[Chip]) -> Rows:
    """Return the roads of a map in pixels of the chips that they lie on."""
    collection = read_geojson(path)
    rows: Rows = {}
    for chip in chips:
        place = chip.image.georeference
        assert place is not None
        rows[chip.image_id] = [
            RoadRow(line, line_length_m(line, place.metres_per_pixel), 1.0)
            for road in collection.lines
            for line in _clipped(road.xy, place, chip)
        ]
    return rows


def _clipped(xy: np.ndarray, place: Georeference, chip: Chip) -> list[np.ndarray]:
    line = shapely.LineString(place.to_pixels(xy))
    inside = shapely.clip_by_rect(line, 0, 0, chip.image.width, chip.image.height)
    parts = [part for part in shapely.get_parts(inside) if part.geom_type == "LineString"]
    return [shapely.get_coordinates(part) for part in parts if part.length > 0]


def _copied(source: Path, target: Path, **profile: object) -> None:
    with rasterio.open(source) as file:
        pixels, kept = file.read(), {**file.profile, **profile}
    with rasterio.open(target, "w", **kept) as file:
        file.write(pixels)


def _south_up(source: Path, target: Path) -> None:
    with rasterio.open(source) as file:
        pixels, profile = file.read()[:, ::-1], file.profile
        flip = file.transform * Affine.translation(0, file.height) * Affine.scale(1, -1)
    with rasterio.open(target, "w", **{**profile, "transform": flip}) as file:
        file.write(pixels)


def _quarters(source: Path, target: Path) -> None:
    """Write four touching files beside ``target``, which is the first."""
    with rasterio.open(source) as file:
        pixels, profile, transform = file.read(), file.profile, file.transform
    rows, columns = pixels.shape[1] // 2, pixels.shape[2] // 2
    for number, (top, left) in enumerate(((0, 0), (0, columns), (rows, 0), (rows, columns))):
        part = pixels[:, top : top + rows, left : left + columns]
        place = transform * Affine.translation(left, top)
        path = target if number == 0 else target.with_stem(f"{target.stem}-{number}")
        size = {"height": rows, "width": columns, "transform": place}
        with rasterio.open(path, "w", **{**profile, **size}) as file:
            file.write(part)


def _wide(source: Path, target: Path) -> None:
    """Write 16 bits: other values with the same ratios."""
    with rasterio.open(source) as file:
        pixels, profile = file.read(), file.profile
    with rasterio.open(target, "w", **{**profile, "dtype": "uint16"}) as file:
        file.write(pixels.astype(np.uint16) * 37)


def _warped(crs: str, metres: float, turn: float = 0.0) -> Callable[[Path, Path], None]:
    """Return a function that resamples an image to a grid, the same for all images.

    So all images form one scene with one contrast stretch, like the plain ones. The grid has pixels
    of ``metres`` and is turned by ``turn`` degrees.
    """

    def write(source: Path, target: Path) -> None:
        with rasterio.open(source) as file:
            pixels, profile = file.read(), file.profile
            corners = [(0, 0), (file.width, 0), (0, file.height), (file.width, file.height)]
            columns, rows = zip(*(file.transform @ corner for corner in corners), strict=True)
            x, y = rasterio.warp.transform(file.crs, crs, columns, rows)
            grid = Affine.rotation(turn) @ Affine.scale(metres, -metres)
            places = np.array([~grid @ place for place in zip(x, y, strict=True)])
            left, top = np.floor(places.min(axis=0)).astype(int).tolist()
            right, bottom = np.ceil(places.max(axis=0)).astype(int).tolist()
            transform = grid @ Affine.translation(left, top)
            warped = np.zeros((pixels.shape[0], bottom - top, right - left), pixels.dtype)
            rasterio.warp.reproject(
                pixels, warped, src_transform=file.transform, src_crs=file.crs,
                dst_transform=transform, dst_crs=crs, resampling=Resampling.cubic,
            )  # fmt: skip
        size = {"crs": crs, "transform": transform, "width": right - left, "height": bottom - top}
        with rasterio.open(target, "w", **{**profile, **size}) as file:
            file.write(warped)

    return write


#: Functions that write a variant of an image; the first one changes nothing.
VARIANTS: Mapping[str, Callable[[Path, Path], None]] = {
    "plain": lambda source, target: _copied(source, target),
    "tiled, deflated": lambda source, target: _copied(
        source, target, tiled=True, blockxsize=128, blockysize=128, compress="deflate"
    ),
    "south-up": _south_up,
    "quarters": _quarters,
    "16 bits": _wide,
    "JPEG quality 75": lambda source, target: _copied(
        source,
        target,
        tiled=True,
        blockxsize=128,
        blockysize=128,
        compress="jpeg",
        photometric="ycbcr",
        jpeg_quality=75,
    ),
    "UTM": _warped(_UTM, 0.5),
    # 0.5 m on the ground at this latitude.
    "web mercator": _warped(_MERCATOR, 0.672),
    "rotated by 30 degrees": _warped(_UTM, 0.5, turn=30.0),
    "resampled to 0.3 m": _warped(_UTM, 0.3),
    "resampled to 0.8 m": _warped(_UTM, 0.8),
}


if __name__ == "__main__":
    main()
