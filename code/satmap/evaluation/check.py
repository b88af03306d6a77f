"""Check the submissions of every challenge for problems that would get them rejected, and maps."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.crs
import shapely

from satmap.data.layouts.mapping_challenge import ANNOTATIONS, PICTURE_SUFFIXES
from satmap.data.layouts.own_chips import find_cut_chips
from satmap.data.layouts.spacenet_buildings import building_image_ids
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.data.sources import Source, find_sources
from satmap.errors import SatmapError
from satmap.io.gdal import driver_of
from satmap.io.geojson_reader import FeatureCollection, project
from satmap.io.walk import walk
from satmap.submissions.buildings_csv import check_buildings_csv
from satmap.submissions.coco_json import check_coco_results, read_coco_sizes
from satmap.submissions.fault import Fault
from satmap.submissions.formats import Format, detect
from satmap.submissions.mask_rasters import check_masks
from satmap.submissions.result_format import find_format
from satmap.submissions.roads_csv import check_roads_csv
from satmap.submissions.vector_maps import find_maps, read_map
from satmap.vectors.georeference import Georeference


def check_files(submission: Path, directories: Sequence[Path] = ()) -> list[Fault]:
    """Return the problems that would get a submission rejected, in whole or in part.

    Args:
        submission: file or directory in the format of any challenge, or a vector file, such as an
            export of satmap.
        directories: directories of the test images. If given, the submission must cover exactly
            these images. Folders of chips that satmap cut will do. For a vector file they hold any
            rasters, on which all objects must lie.

    Raises:
        SatmapError: the submission cannot be read, no challenge takes its format, or the
            directories hold no images of its challenge.
    """
    if added := find_format(submission):
        return added.check(submission, directories)
    match kind := detect(submission):
        case Format.ROADS_CSV:
            return _check_roads(submission, directories)
        case Format.BUILDINGS_CSV:
            return check_buildings_csv(submission, _building_ids(directories))
        case Format.COCO_RESULTS:
            sizes = _coco_images(directories) if directories else None
            return check_coco_results(submission, sizes)
        case Format.VECTORS:
            return check_map(submission, directories)
        case Format.MASKS:
            return check_masks(submission, _raster_sizes(directories) if directories else None)
        case _:
            raise SatmapError(
                f"{submission} is {kind}, which no challenge takes. Give a roads or buildings CSV, "
                "a list of COCO results, mask rasters in a directory or archive, or a vector file."
            )


def _building_ids(directories: Sequence[Path]) -> Collection[str] | None:
    if not directories:
        return None
    cut = find_cut_chips(directories, "buildings")
    return cut.long_ids if cut else building_image_ids(directories)


def _check_roads(submission: Path, directories: Sequence[Path]) -> list[Fault]:
    expected: list[Collection[str] | None] = [None]
    if directories:
        # A file may use ids with or without the challenge's prefix, but not both.
        ids = (find_cut_chips(directories, "roads") or scan_roads(directories)).long_ids
        expected = [ids.keys(), ids.values()]
    return min((check_roads_csv(submission, images) for images in expected), key=len)


def _coco_images(directories: Sequence[Path]) -> dict[int, tuple[int, int]]:
    """Return width and height of the Mapping Challenge's images by id.

    Annotation files provide them; images without annotations are opened.
    """
    sizes: dict[int, tuple[int, int]] = {}
    for path in walk(directories):
        if path.name == ANNOTATIONS:
            sizes.update(read_coco_sizes(path))
        elif path.suffix.lower() in PICTURE_SUFFIXES and path.stem.isdecimal():
            sizes.setdefault(int(path.stem), _size(path))
    if not sizes:
        raise SatmapError(
            f"no images of the Mapping Challenge under {', '.join(map(str, directories))}. "
            f"Expected an {ANNOTATIONS}, or images named by number (000000000012.jpg)."
        )
    return sizes


def _raster_sizes(directories: Sequence[Path]) -> Mapping[str, tuple[int, int]]:
    """Return width and height of GeoTIFF images by file name without suffix."""
    paths = [path for path in walk(directories) if path.suffix.lower() in (".tif", ".tiff")]
    if not paths:
        raise SatmapError(f"no GeoTIFF images under {', '.join(map(str, directories))}.")
    return {path.stem: _size(path) for path in paths}


def _size(path: Path) -> tuple[int, int]:
    try:
        with rasterio.open(path, driver=driver_of(path)) as image:
            return image.width, image.height
    except rasterio.errors.RasterioError as error:
        raise SatmapError(f"{path}: cannot be read as an image ({error}).") from error


def check_map(path: Path, images: Sequence[Path] = ()) -> list[Fault]:
    """Return the problems of a map in a vector file or a directory of them.

    Polygons must be valid; roads need a length and a travel time above 0 where the file states
    them; roads with the same node (``u``, ``v``) must meet there. With images, objects that touch
    none of them are problems.

    Raises:
        SatmapError: a file or an image cannot be read.
    """
    sources = [s for s in find_sources(images).sources if s.crs] if images else []
    faults = []
    for name, file in find_maps(path).items():
        found = read_map(file)
        where = "" if path.is_file() else f"{name}: "
        messages = [*_road_faults(found), *_polygon_faults(found)]
        if images:
            messages += _outside(found, sources)
        faults += [Fault(None, where + message) for message in messages]
    return faults


def _road_faults(found: FeatureCollection) -> Iterator[str]:
    nodes: dict[str, tuple[float, ...]] = {}
    # Two units of the last decimal of GeoJSON, or a hundredth of a millimetre.
    same = 2e-7 if rasterio.crs.CRS.from_user_input(found.crs).is_geographic else 1e-5
    for number, line in enumerate(found.lines, 1):
        for name in ("length_m", "travel_time_s"):
            value = line.properties.get(name)
            if value is not None and not float(value) > 0:
                yield f"road {number}: {name} is {value}, not above 0"
        for name, place in (("u", line.xy[0]), ("v", line.xy[-1])):
            if name not in line.properties:
                continue
            node = str(line.properties[name])
            known = nodes.setdefault(node, tuple(place.tolist()))
            if np.abs(np.subtract(known, place)).max() > same:
                yield f"road {number}: it does not end where other roads have node {node}"


def _polygon_faults(found: FeatureCollection) -> Iterator[str]:
    for number, surface in enumerate(found.surfaces, 1):
        if not surface.polygon.is_valid:
            yield f"building {number}: {shapely.is_valid_reason(surface.polygon)}"


def _outside(found: FeatureCollection, sources: Sequence[Source]) -> list[str]:
    frames = []
    for source in sources:
        corners = [(0, 0), (source.width, 0), (source.width, source.height), (0, source.height)]
        ring = Georeference(source.crs, source.transform, (1, 1)).to_map(np.array(corners, float))
        frames.append(shapely.Polygon(project(ring, source.crs, found.crs)))
    area = shapely.union_all(frames)
    shapely.prepare(area)
    groups = {
        "road": [shapely.LineString(line.xy) for line in found.lines],
        "building": [surface.polygon for surface in found.surfaces],
    }
    return [
        f"{noun} {number} lies on none of the {len(sources)} images with a georeference"
        for noun, shapes in groups.items()
        for number, shape in enumerate(shapes, 1)
        if not area.intersects(shape)
    ]
