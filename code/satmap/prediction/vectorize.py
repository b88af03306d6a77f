"""Road graphs from probability rasters on disk, whatever network they are from."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from satmap.data.layouts.spacenet_roads import road_image_id
from satmap.data.neighbours import Footprint
from satmap.data.walk import is_not_a_file, walk
from satmap.errors import SatmapError
from satmap.exports import GEOGRAPHIC_SUFFIXES, SUFFIXES, ImageRoads, write_roads
from satmap.io.files import require_road_output
from satmap.io.progress import track
from satmap.io.text import natural_key
from satmap.rasters.map_files import open_map_file
from satmap.runtime.workers import start_pool
from satmap.submissions.csv_table import require_plain_id
from satmap.submissions.roads_csv import RoadRow, rows_of_graph, write_roads_csv
from satmap.tasks.roads.tiles import find_surroundings, roads_of_mask
from satmap.tasks.roads.vectorizer.settings import RoadSettings
from satmap.vectors.road_graph import roads_in_lon_lat

_MASK_SUFFIXES = (".png", ".tif", ".tiff")
_CSV = ".csv"

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
        neighbours: the rasters around it, and at which of its columns and rows each one's first
            pixel lies.
    """

    image_id: str
    path: Path
    settings: RoadSettings | None
    metres_per_pixel: float
    geographic: bool
    neighbours: tuple[tuple[Path, int, int], ...]


def vectorize_directory(
    masks: Path,
    output: Path,
    settings: RoadSettings | None = None,
    *,
    metres_per_pixel: float = 0.3,
    workers: int = 0,
    neighbours: bool = True,
) -> Vectorization:
    """Vectorise every probability raster under a directory and write the roads.

    A mask is a PNG or GeoTIFF with one band, the probability of road, or with the planes of
    ``ROAD_MAPS`` in that order: uint8, 0..255 for 0..1, or float, 0..1. NaN and pixels without
    data count as 0. Its image is told by its name as the challenge's images are
    (``SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip0.png`` is AOI_7_Moscow_chip0); another name
    without its suffix is the id.

    A mask that cannot be vectorised is reported and is empty in the file: a row in the CSV, nothing
    at all in the other formats, which know roads only. Images come in natural order, and the bytes
    do not depend on ``workers``. At any time a process holds one mask, and of a large GeoTIFF a few
    windows; of those that are done only the roads are kept, and not even they where the format is
    GeoJSON or GeoPackage.

    Masks whose georeferences lay them side by side are looked at together with what lies around
    them (:mod:`satmap.tasks.roads.tiles`), so that roads go on from one to the next; each is cropped to
    itself afterwards. A neighbour that cannot be read counts as none.

    Args:
        masks: searched to any depth.
        output: its suffix is the format: ``.csv`` (the challenge's), ``.geojson``, ``.gpkg`` or
            ``.graphml``.
        settings: thresholds of the vectoriser; its defaults if None.
        metres_per_pixel: size of pixels where a mask has no georeference; 0.3 is the challenge's.
        workers: processes that vectorise; 0 does it in this one.
        neighbours: whether masks that lie side by side help each other.

    Raises:
        SatmapError: no masks, two for one image, an unknown suffix, a worker that was killed.
        CannotWriteError: ``output`` cannot be written, or holds something else than roads.
    """
    if workers < 0 or not 0 < metres_per_pixel < np.inf:
        raise ValueError(f"workers {workers}, metres_per_pixel {metres_per_pixel}")
    suffix = output.suffix.lower()
    if suffix not in (_CSV, *SUFFIXES):
        raise SatmapError(
            f"{output}: the suffix names the format, and '{output.suffix}' is none of "
            f"{', '.join((_CSV, *SUFFIXES))}."
        )
    require_road_output(output)
    paths = find_map_files(masks)
    around = _neighbours([*paths.values()]) if neighbours else [()] * len(paths)
    jobs = [
        _Job(image_id, path, settings, metres_per_pixel, suffix in GEOGRAPHIC_SUFFIXES, beside)
        for (image_id, path), beside in zip(paths.items(), around, strict=True)
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
            rows.update((roads.image_id, rows_of_graph(roads.graph)) for roads in results)
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


def find_map_files(
    directory: Path, image_id_of: Callable[[str], str | None] = road_image_id
) -> dict[str, Path]:
    """The masks under a directory by the ids of their images, in natural order.

    Args:
        directory: searched to any depth.
        image_id_of: the id that follows from a name without suffix; None if none does.

    Raises:
        SatmapError: there is no mask, two are of one image, or a name cannot stand in a CSV.
    """
    found: dict[str, Path] = {}
    no_files: dict[str, Path] = {}
    for path in walk([directory], also_non_files=_MASK_SUFFIXES):
        if path.suffix.lower() not in _MASK_SUFFIXES:
            continue
        image_id = image_id_of(path.stem) or path.stem
        if is_not_a_file(path):
            no_files[image_id] = path
            continue
        if image_id in found:
            raise SatmapError(
                f"two masks are of the image {image_id}:\n  {found[image_id]}\n  {path}\n"
                "Give a directory that holds one of them."
            )
        try:
            require_plain_id(image_id)
        except ValueError as error:
            raise SatmapError(f"{path}: rename it; {error}.") from error
        found[image_id] = path
    found = no_files | found
    if not found:
        raise SatmapError(
            f"no masks under {directory}. Expected {', '.join(_MASK_SUFFIXES)} files named like "
            "the images, such as AOI_7_Moscow_chip23.tif."
        )
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def _neighbours(paths: Sequence[Path]) -> list[tuple[tuple[Path, int, int], ...]]:
    """For each raster those around it, nearest first, with their columns and rows in it."""
    return [
        tuple((paths[there.image], there.column, there.row) for there in found)
        for found in find_surroundings([_footprint(path) for path in paths])
    ]


def _footprint(path: Path) -> Footprint:
    try:
        # Pixels without georeference lie nowhere, whatever their size.
        with open_map_file(path, 1) as mask:
            return Footprint(mask.georeference, mask.width, mask.height)
    except SatmapError:
        return Footprint(None, 0, 0)


def _vectorize_mask(job: _Job) -> ImageRoads | str:
    """The roads of a mask, or what is wrong with it."""
    try:
        with open_map_file(job.path, job.metres_per_pixel) as mask:
            graph = roads_of_mask(mask, job.neighbours, job.settings, job.metres_per_pixel)
            roads = ImageRoads(job.image_id, graph, mask.georeference)
        if job.geographic:
            # What cannot be written must not end the run when the others are.
            roads_in_lon_lat(roads)
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
