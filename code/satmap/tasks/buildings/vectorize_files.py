"""Buildings from probability rasters on disk, whatever network they are from."""

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from satmap.data.layouts.spacenet_buildings import building_image_id
from satmap.data.view_angles import ViewAngle, require_category, view_angle_of_name
from satmap.errors import SatmapError
from satmap.exports import BUILDING_SUFFIXES, ImageBuildings, export_buildings
from satmap.io.files import require_road_output
from satmap.io.progress import track
from satmap.prediction.vectorize import find_map_files
from satmap.rasters.map_files import BUILDING_FILE_MAPS, open_map_file
from satmap.runtime.workers import BoundedPool
from satmap.tasks.buildings.maps import COCO_SUFFIX, write_buildings
from satmap.tasks.buildings.vectorizer.settings import BuildingSettings, BuildingSettingsByCategory
from satmap.tasks.buildings.vectorizer.vectorize_buildings import vectorize_buildings
from satmap.vectors.buildings import buildings_in_lon_lat

_SUFFIXES = (".csv", COCO_SUFFIX, *BUILDING_SUFFIXES)

# Masks in work or done, a worker.
_AHEAD = 4


@dataclass(frozen=True)
class BuildingVectorization:
    """What vectorising a directory did.

    Attributes:
        images: number of buildings by image id, every mask found, in natural order.
        faults: image id to what was wrong, for the masks that could not be vectorised and are empty
            in the file.
    """

    images: dict[str, int]
    faults: dict[str, str]


def vectorize_building_files(
    masks: Path,
    output: Path,
    settings: BuildingSettingsByCategory | None = None,
    workers: int = 0,
    *,
    heads: int | None = None,
    view_angle: ViewAngle | None = None,
) -> BuildingVectorization:
    """Vectorise every probability raster under a directory and write the buildings.

    A mask is a PNG or GeoTIFF with the planes of ``BUILDING_MAPS``, or the first of them: uint8,
    0..255 for 0..1, or float, 0..1. Its image is told by its name as SpaceNet's building images
    are; another name without its suffix is the id. A mask that cannot be vectorised is reported and
    is empty in the file.

    Args:
        masks: searched to any depth.
        output: ``.csv`` for SpaceNet's CSV, ``.json`` for COCO results; ``.geojson`` and ``.gpkg``
            for maps, where a mask without georeference cannot be.
        settings: of the vectoriser; its defaults if None.
        workers: processes that vectorise; 0 does it in this one.
        heads: how many categories of looks the settings tell apart; None for none.
        view_angle: of masks whose names do not say from where their images look.

    Raises:
        SatmapError: no masks, two for one image, an unknown suffix, a worker that was killed; COCO
            results of masks that have no number as a name.
        CannotWriteError: ``output`` cannot be written, or holds something else.
    """
    suffix = output.suffix.lower()
    if suffix not in _SUFFIXES:
        raise SatmapError(
            f"{output}: the suffix names the format, and '{output.suffix}' is none of "
            f"{', '.join(_SUFFIXES)}."
        )
    require_road_output(output)
    paths = find_map_files(masks, building_image_id)
    for name in paths:
        if suffix == COCO_SUFFIX and not name.isdecimal():
            raise SatmapError(
                f"{paths[name]}: in COCO results images have numbers, which a mask's name must be. "
                "Give a name of the output that ends in .csv."
            )
    settings = settings or BuildingSettingsByCategory()
    of_mask: dict[str, BuildingSettings] = {}
    found: dict[str, ImageBuildings] = {}
    faults: dict[str, str] = {}
    for name, path in paths.items():
        try:
            its = view_angle_of_name(name) or view_angle
            of_mask[name] = settings.of(require_category(path.name, its, heads) if heads else None)
        except SatmapError as error:
            faults[name] = str(error)
    with BoundedPool(workers, workers * _AHEAD) as pool:
        for name, its_settings in track(of_mask.items(), "vectorizing", len(of_mask)):

            def done(future: Future[ImageBuildings], name: str = name) -> None:
                error = future.exception()
                if error is None:
                    found[name] = future.result()
                elif isinstance(error, SatmapError):
                    faults[name] = str(error)
                else:
                    # A fault that nobody has thought of still costs only one image.
                    faults[name] = f"{paths[name]}: {type(error).__name__}: {error}"

            geographic = suffix in BUILDING_SUFFIXES
            pool.submit(done, _vectorize, name, paths[name], its_settings, geographic)
        pool.finish()
    if suffix in BUILDING_SUFFIXES:
        export_buildings(output, lambda: (found[name] for name in paths if name in found))
        counts = {name: len(found[name].buildings) if name in found else 0 for name in paths}
        return BuildingVectorization(counts, faults)
    counts = write_buildings(output, [*paths], {name: name for name in found}, found.__getitem__)
    return BuildingVectorization(counts, faults)


def _vectorize(
    image_id: str, path: Path, settings: BuildingSettings, geographic: bool
) -> ImageBuildings:
    # Pixels without georeference lie nowhere, whatever their size.
    with open_map_file(path, 1, BUILDING_FILE_MAPS) as mask:
        buildings = tuple(vectorize_buildings(mask.scene, settings))
        mask.check_scale()
        number = int(image_id) if image_id.isdecimal() else None
        size = mask.height, mask.width
        found = ImageBuildings(image_id, number, size, buildings, mask.georeference)
    if geographic:
        # What cannot be written must not end the run when the others are.
        buildings_in_lon_lat(found)
    return found
