"""Unlabelled images for training with pseudo-labels: a challenge's images, or any rasters.

The images of a challenge are prepared like training chips. Other rasters are read as by ``map`` and
cut into chips. Labels, if there are any, are not read.
"""

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from satmap.data.cache import header_of, pack_chip, prepare_chips, sources_of
from satmap.data.crops import CachedChip
from satmap.data.inventory import is_test_path
from satmap.data.layers import find_layers, stretched
from satmap.data.mosaic import Mosaic, make_mosaics
from satmap.data.sources import Source, find_sources, states_of
from satmap.data.view_angles import ViewAngle
from satmap.errors import CannotWriteError, SatmapError, error_text
from satmap.io.checksums import record_file
from satmap.io.progress import track
from satmap.rasters.scene import Box
from satmap.runtime.resources import available_cores

if TYPE_CHECKING:
    from satmap.data.cache import Content
    from satmap.tasks.dense import DenseTask

# Increase this number when the chips of the same rasters change.
_FORMAT = "2"
# Rasters are cut into chips of about this width and height.
_CHIP_PX = 512
# Chips with less ground are left out.
_LEAST_SEEN = 0.05


@dataclass(frozen=True)
class Unlabelled:
    """Prepared unlabelled images.

    Attributes:
        chips: images, or parts of rasters, with unique ids.
        tests: ids of those that are test images, because ``test`` is a word of their path.
        labelled: number of images that were left out, because they are among the labelled ones.
        faults: reason by name, for images that cannot be used.
    """

    chips: tuple[CachedChip, ...] = ()
    tests: frozenset[str] = frozenset()
    labelled: int = 0
    faults: dict[str, str] = field(default_factory=dict)

    def of_round(self, test_images: bool) -> tuple[CachedChip, ...]:
        """Return the images for a round that may or may not learn from test images."""
        return tuple(c for c in self.chips if test_images or c.image_id not in self.tests)

    def summary(self) -> str:
        """Return one line for the user: how many chips there are, and how many of test images."""
        tests = f", {len(self.tests)} of them of test images" if self.tests else ""
        labelled = f"; {self.labelled} images left out that are labelled" if self.labelled else ""
        faults = f"; {len(self.faults)} images cannot be used" if self.faults else ""
        return f"{len(self.chips)} unlabelled chips{tests}{labelled}{faults}"


def find_unlabelled(
    places: Sequence[Path],
    task: "DenseTask",
    channels: int,
    directory: Path,
    labelled: Sequence[CachedChip],
    labelled_files: Collection[Path] = (),
    view_angle: ViewAngle | None = None,
) -> Unlabelled:
    """Find and prepare the unlabelled images, without those that are labelled.

    Args:
        places: directories of a challenge's images or of any rasters; single rasters.
        task: task of the recipe.
        channels: largest number of channels that a network needs.
        directory: directory of prepared chips.
        labelled: the labelled chips. Images with the content of one of them are left out, and
            rasters with a georeference are resampled to their pixel size.
        labelled_files: rasters from which labelled chips were cut. They and copies of them are left
            out, too.
        view_angle: off-nadir angle, for images whose names lack it.

    Raises:
        SatmapError: a place holds no usable image, or the cache cannot be written.
    """
    sizes = [chip.gsd_m for chip in labelled if chip.gsd_m is not None]
    gsd = sum(sizes) / len(sizes) if sizes else None
    known = {file.sha256 for chip in labelled for file in chip.sources.values()}
    left_out = {path.resolve() for path in labelled_files}
    labelled_paths: set[Path] = set()
    # Only files of equal size are compared: scenes have gigabytes.
    of_size: dict[int, list[Path]] = defaultdict(list)
    for file in left_out:
        with contextlib.suppress(OSError):
            of_size[file.stat().st_size].append(file)
    checksum = cache(lambda file: record_file(file).sha256)

    def is_labelled(chip: CachedChip, path: Path) -> bool:
        return path.resolve() in left_out or any(
            record.sha256 in known or record.sha256 in map(checksum, of_size[record.bytes])
            for record in chip.sources.values()
        )

    chips: dict[str, CachedChip] = {}
    tests: set[str] = set()
    faults: dict[str, str] = {}
    for place in places:
        found, paths, unusable = _of_challenge(place, task, channels, directory, view_angle)
        if not found and not unusable:
            found, paths, unusable = _of_rasters(place, task, channels, directory, gsd)
        faults |= unusable
        for chip, path in zip(found, paths, strict=True):
            if is_labelled(chip, path):
                labelled_paths.add(path)
                continue
            name = chip.image_id
            while name in chips:
                name = f"{place.resolve().name}-{name}"
            chips[name] = replace(chip, image_id=name)
            if _is_test(place, path):
                tests.add(name)
    if not chips:
        reason = next(iter(faults.values()), "all images there are among the labelled ones.")
        raise SatmapError(f"--unlabelled holds no image that can be used: {reason}")
    return Unlabelled(tuple(chips.values()), frozenset(tests), len(labelled_paths), faults)


def _is_test(place: Path, path: Path) -> bool:
    """Return whether ``test`` is a word in the name of the place or of what is below it."""
    place, path = place.resolve(), path.resolve()
    below = path.relative_to(place) if path.is_relative_to(place) else Path(path.name)
    return is_test_path(place.name / below)


# Chips, the path of each one's image, and reasons of images that cannot be used.
_Found = tuple[Sequence[CachedChip], Sequence[Path], dict[str, str]]


def _of_challenge(
    place: Path, task: "DenseTask", channels: int, directory: Path, view_angle: ViewAngle | None
) -> _Found:
    """Prepare the images of a challenge; nothing if the names are not those of one.

    Scenes that a recipe's ``tiles`` cut are too large to be chips, so they count as any rasters.
    """
    try:
        inventory = task.recipe.task.find_images([place], channels, view_angle)
    except SatmapError:
        return (), (), {}
    if task.recipe.tiles and any(chip.image.georeference for chip in inventory.chips):
        return (), (), {}
    images = [replace(chip, label=None) for chip in inventory.chips]
    prepared = prepare_chips(images, channels, directory, task.recipe.stretch, task)
    path_of = {chip.image_id: chip.image.path for chip in images}
    paths = [path_of[chip.image_id] for chip in prepared.chips]
    return prepared.chips, paths, inventory.faults | prepared.faults


def _of_rasters(
    place: Path, task: "DenseTask", channels: int, directory: Path, gsd: float | None
) -> _Found:
    """Cut rasters of any names into chips."""
    if task.categories:
        raise SatmapError(
            f"--unlabelled {place}: recipe {task.recipe.name} has a head for each view angle, "
            "which only the images of a challenge state."
        )
    found = find_sources([place])
    faults = dict(found.faults)

    def attempt(source: Source) -> list[CachedChip] | str:
        try:
            return _cut(source, task, channels, directory, gsd)
        except CannotWriteError:
            raise
        # Libraries raise many kinds of errors on unusual files.
        except Exception as error:
            return error_text(error, Path(source.name))

    chips: list[CachedChip] = []
    paths: list[Path] = []
    with ThreadPoolExecutor(available_cores()) as pool:
        results = track(pool.map(attempt, found.sources), "unlabelled", len(found.sources))
        for source, result in zip(found.sources, results, strict=True):
            if isinstance(result, str):
                faults[source.name] = result
            else:
                chips += result
                paths += [Path(source.name)] * len(result)
    return chips, paths, faults


def _cut(
    source: Source, task: "DenseTask", channels: int, directory: Path, gsd: float | None
) -> list[CachedChip]:
    """Cut a raster into chips, unless the cache has them."""
    layers, unusable = find_layers([source], channels)
    if unusable:
        raise SatmapError(unusable[source.name])
    stretch = task.recipe.stretch
    parts = [_FORMAT, task.label_fingerprint, stretch, channels, gsd, *states_of(source)]
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
    stem = Path(source.name).stem

    @cache
    def mosaic() -> Mosaic:
        faults: dict[str, str] = {}
        ready = stretched(layers, stretch.low, stretch.high, faults)
        if faults:
            raise SatmapError(f"{source.name}: {next(iter(faults.values()))}")
        return make_mosaics(ready, gsd)[0]

    def build(box: Box) -> "Content":
        faults: dict[str, str] = {}
        image = mosaic().read(box, faults)
        if faults:
            raise SatmapError(f"{source.name}: {next(iter(faults.values()))}")
        seen = float(image.any(axis=2).mean())
        encoded = replace(task.encode_unlabelled(image), payload=seen)
        return pack_chip(image, encoded, {"image": record()})

    record = cache(lambda: record_file(Path(source.name)))
    chips = []
    for (region, row, column), box in make_mosaics(layers, gsd)[0].blocks(_CHIP_PX).items():
        image_id = f"{stem}_{region}_{row}_{column}"
        path = directory / f"{image_id}.{digest}.safetensors"
        header = header_of(path, partial(build, box))
        if header["payload"] < _LEAST_SEEN:
            continue
        chips.append(
            CachedChip(
                image_id=image_id,
                aoi=stem,
                path=path,
                shape=tuple(header["shape"]),
                metres_per_pixel=tuple(header["metres_per_pixel"]),
                sources=sources_of(header),
            )
        )
    return chips
