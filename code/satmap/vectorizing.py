"""Road graphs from probability rasters on disk, whatever network they are from."""

import contextlib
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError

from satmap.data.georeference import Georeference, georeference_of
from satmap.data.spacenet_roads import road_image_id
from satmap.data.walk import walk
from satmap.errors import SatmapError
from satmap.exports import GEOGRAPHIC_SUFFIXES, SUFFIXES, ImageRoads, write_roads
from satmap.exports.image_roads import in_lon_lat
from satmap.files import require_writable
from satmap.ordering import natural_key
from satmap.planes import ROAD, ROAD_PLANES, Planes
from satmap.progress import track
from satmap.roads.rows import to_rows
from satmap.roads.vectorize import RoadSettings, vectorize
from satmap.submissions.roads_csv import RoadRow, write_roads_csv
from satmap.workers import start_pool

_MASK_SUFFIXES = (".png", ".tif", ".tiff")
_CSV = ".csv"

# What a mask holds by the number of its bands.
_PLANES = {1: (ROAD,), len(ROAD_PLANES): ROAD_PLANES}

# With its short cut for whole images GDAL reads the first half of a truncated PNG, askew, and takes
# the rest for black, without a word.
_GDAL_OPTIONS = {"GDAL_PNG_WHOLE_IMAGE_OPTIM": False}

# How far beyond 0 and 1 resampling may take a probability.
_TOLERANCE = 0.01

# Masks in work or done, a worker, from the one whose turn it is to be written.
_AHEAD = 4


@dataclass(frozen=True)
class Vectorization:
    """What vectorising a directory did.

    Attributes:
        images: number of roads by image id, every mask found, in natural order.
        faults: image id to what was wrong, for the masks that could not be vectorised and are empty
            in the file.
        warnings: what the user should know of the others.
    """

    images: dict[str, int]
    faults: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def roads(self) -> int:
        """The roads of all images."""
        return sum(self.images.values())


@dataclass(frozen=True)
class _Job:
    """One mask, as a worker is given it.

    Attributes:
        image_id: its image.
        path: the raster.
        settings: of the vectoriser; None for its defaults.
        metres_per_pixel: size of its pixels if it has no georeference.
        geographic: whether the output needs longitude and latitude.
    """

    image_id: str
    path: Path
    settings: RoadSettings | None
    metres_per_pixel: float
    geographic: bool


def vectorize_directory(
    masks: Path,
    output: Path,
    settings: RoadSettings | None = None,
    *,
    metres_per_pixel: float = 0.3,
    workers: int = 0,
) -> Vectorization:
    """Vectorise every probability raster under a directory and write the roads.

    A mask is a PNG or GeoTIFF with one band, the probability of road, or with the planes of
    ``ROAD_PLANES`` in that order: uint8, 0..255 for 0..1, or float, 0..1. NaN and pixels without
    data count as 0. Its image is told by its name as the challenge's images are
    (``SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip0.png`` is AOI_7_Moscow_chip0); another name
    without its suffix is the id.

    A mask that cannot be vectorised is reported and is empty in the file: a row in the CSV, nothing
    at all in the other formats, which know roads only. Images come in natural order, and the bytes
    do not depend on ``workers``. At any time a process holds one mask; of those that are done only
    the roads are kept, and not even they where the format is GeoJSON or GeoPackage.

    Args:
        masks: searched to any depth.
        output: its suffix is the format: ``.csv`` (the challenge's), ``.geojson``, ``.gpkg`` or
            ``.graphml``.
        settings: thresholds of the vectoriser; its defaults if None.
        metres_per_pixel: size of pixels where a mask has no georeference; 0.3 is the challenge's.
        workers: processes that vectorise; 0 does it in this one.

    Raises:
        SatmapError: no masks, two for one image, an unknown suffix, a worker that was killed.
        CannotWriteError: ``output`` cannot be written.
    """
    if workers < 0 or not 0 < metres_per_pixel < np.inf:
        raise ValueError(f"workers {workers}, metres_per_pixel {metres_per_pixel}")
    suffix = output.suffix.lower()
    if suffix not in (_CSV, *SUFFIXES):
        raise SatmapError(
            f"{output}: the suffix names the format, and '{output.suffix}' is none of "
            f"{', '.join((_CSV, *SUFFIXES))}."
        )
    require_writable(output)
    paths = find_masks(masks)
    jobs = [
        _Job(image_id, path, settings, metres_per_pixel, suffix in GEOGRAPHIC_SUFFIXES)
        for image_id, path in paths.items()
    ]
    images = dict.fromkeys(paths, 0)
    faults: dict[str, str] = {}
    unscaled = []

    def graphs() -> Generator[ImageRoads]:
        for job, result in track(_work(jobs, workers), "vectorizing", len(jobs)):
            if isinstance(result, str):
                faults[job.image_id] = result
                continue
            if result.georeference is None:
                unscaled.append(job.image_id)
            images[job.image_id] = len(result.graph.edges)
            yield result

    with contextlib.closing(graphs()) as results:
        if suffix == _CSV:
            rows: dict[str, list[RoadRow]] = {image_id: [] for image_id in paths}
            rows.update((roads.image_id, to_rows(roads.graph)) for roads in results)
            write_roads_csv(output, rows)
        else:
            write_roads(output, results)
    warnings: tuple[str, ...] = ()
    if unscaled:
        warnings = (
            f"{len(unscaled)} masks without georeference, such as {unscaled[0]}, are taken to have "
            f"{metres_per_pixel:g} m a pixel",
        )
    return Vectorization(images, faults, warnings)


def find_masks(directory: Path) -> dict[str, Path]:
    """The masks under a directory by the ids of their images, in natural order.

    Raises:
        SatmapError: there is no mask, two are of one image, or a name cannot stand in a CSV.
    """
    found: dict[str, Path] = {}
    for path in walk([directory]):
        if path.suffix.lower() not in _MASK_SUFFIXES:
            continue
        image_id = road_image_id(path.stem) or path.stem
        if image_id in found:
            raise SatmapError(
                f"two masks are of the image {image_id}:\n  {found[image_id]}\n  {path}\n"
                "Give a directory that holds one of them."
            )
        if image_id != image_id.strip() or not image_id.isprintable() or set(image_id) & set(',"'):
            raise SatmapError(
                f"{path}: rename it; an image's id cannot have commas, quotes or blanks around it."
            )
        found[image_id] = path
    if not found:
        raise SatmapError(
            f"no masks under {directory}. Expected {', '.join(_MASK_SUFFIXES)} files named like "
            "the images, such as AOI_7_Moscow_chip23.tif."
        )
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def read_mask(path: Path, metres_per_pixel: float) -> tuple[Planes, Georeference | None]:
    """A mask as planes, and where it lies; ``metres_per_pixel`` serves where it does not say.

    Raises:
        SatmapError: not a readable raster, or none of probabilities.
    """
    try:
        with rasterio.Env(**_GDAL_OPTIONS), rasterio.open(path) as source:
            names = _plane_names(source)
            georeference = georeference_of(
                source.crs, source.transform, source.width, source.height
            )
            if all(MaskFlags.all_valid in flags for flags in source.mask_flag_enums):
                values = source.read()
            else:
                values = source.read(masked=True).filled(0)
        values = _as_bytes(values)
    except (RasterioError, OSError) as error:
        # Rasterio puts GDAL's own words in the cause.
        reason = str(error.__cause__ or error).strip().rstrip(".")
        raise SatmapError(f"{path}: cannot be read ({reason}). Write it again.") from error
    except SatmapError as error:
        raise SatmapError(f"{path}: {error}") from error
    size = (metres_per_pixel, metres_per_pixel)
    if georeference is not None:
        size = georeference.metres_per_pixel
    return Planes(names, values, size), georeference


def _plane_names(source: rasterio.DatasetReader) -> tuple[str, ...]:
    if source.colorinterp[0] == ColorInterp.palette:
        raise SatmapError(
            "an image with a palette, whose numbers are no probabilities; convert it to grey."
        )
    if source.count not in _PLANES:
        raise SatmapError(
            f"{source.count} bands, but a mask has one, the road, or {len(ROAD_PLANES)}: "
            f"{', '.join(ROAD_PLANES)}."
        )
    return _PLANES[source.count]


def _as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Probabilities as 0..255."""
    if values.dtype == np.uint8:
        if values.max() == 1:
            raise SatmapError(
                "its numbers are 0 and 1, but certain road is 255; multiply them by 255."
            )
        return values
    if values.dtype.kind != "f":
        raise SatmapError(
            f"pixels of type {values.dtype}, but probabilities are uint8, 0..255, or float, 0..1; "
            "convert it."
        )
    values[np.isnan(values)] = 0
    low, high = values.min(), values.max()
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise SatmapError(
            f"numbers from {low:g} to {high:g}, but float probabilities are 0..1; divide them, or "
            "write uint8, 0..255."
        )
    scaled: NDArray[np.uint8] = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return scaled


def _vectorize_mask(job: _Job) -> ImageRoads | str:
    """The roads of a mask, or what is wrong with it."""
    try:
        planes, georeference = read_mask(job.path, job.metres_per_pixel)
        roads = ImageRoads(job.image_id, vectorize(planes, job.settings), georeference)
        if job.geographic:
            # What cannot be written must not end the run when the others are.
            in_lon_lat(roads)
    except SatmapError as error:
        return str(error)
    # A fault that nobody has thought of still costs only one image.
    except Exception as error:
        return f"{job.path}: {type(error).__name__}: {error}"
    return roads


def _work(jobs: Sequence[_Job], workers: int) -> Iterator[tuple[_Job, ImageRoads | str]]:
    """Every job with its result, in order.

    Raises:
        SatmapError: a worker cannot be started, or was killed.
    """
    if not workers:
        yield from ((job, _vectorize_mask(job)) for job in jobs)
        return
    pool = start_pool(workers)
    pending: deque[tuple[_Job, Future[ImageRoads | str]]] = deque()
    waiting = iter(jobs)
    try:
        while True:
            # Results that wait for their turn take memory, so few are worked out ahead.
            for job in itertools.islice(waiting, workers * _AHEAD - len(pending)):
                pending.append((job, pool.submit(_vectorize_mask, job)))
            if not pending:
                return
            job, future = pending.popleft()
            yield job, future.result()
    except BrokenProcessPool as error:
        raise SatmapError(
            f"a worker process was killed or could not start, at {job.path} or one of the next "
            f"{workers * _AHEAD} masks. Most often memory is short: use fewer workers."
        ) from error
    except OSError as error:
        raise SatmapError(
            f"worker processes cannot be started ({error.strerror or error}); use fewer."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
