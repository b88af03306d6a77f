"""Layouts of the SpaceNet 1, 2 and 4 building challenges, with old and new file names.

Directories are searched to any depth, and files are recognised by their names only. SpaceNet 4 has
one label for all views of a tile.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from satmap.data.chip import Chip
from satmap.data.imagery import MULTISPECTRAL, RGB, RGB_NIR, ImageInfo, read_infos
from satmap.data.inventory import Inventory
from satmap.data.view_angles import ViewAngle, view_angle_of_name
from satmap.errors import SatmapError
from satmap.io.text import natural_key
from satmap.io.walk import is_not_a_file, walk

#: Examples of image names for error messages.
EXPECTED_NAMES = (
    "3band_AOI_1_RIO_img1.tif, RGB-PanSharpen_AOI_2_Vegas_img1.tif, "
    "Pan-Sharpen_Atlanta_nadir8_catid_..._x_y.tif"
)

#: Suffixes of SpaceNet's images.
IMAGE_SUFFIXES = (".tif", ".tiff")

_PRODUCT = r"(?P<product>PS-RGBNIR|PS-RGB|PS-MS|RGBNIR|MS|PAN)"
_NAMES = (
    # 3band_AOI_1_RIO_img1.tif, 3band_013022223130_Public_img1.tif
    re.compile(r"(?P<product>3band|8band)_(?P<id>\w+?_img\d+)", re.I),
    # RGB-PanSharpen_AOI_2_Vegas_img1.tif
    re.compile(r"(?P<product>(?:RGB|MUL)-PanSharpen|MUL|PAN)_(?P<id>AOI_\d+_\w+?_img\d+)", re.I),
    # SN2_buildings_train_AOI_2_Vegas_PS-RGB_img1.tif
    re.compile(rf"SN\d_buildings_\w+?_(?P<id>AOI_\d+_\w+?)_{_PRODUCT}_(?P<tail>img\d+)", re.I),
    # Pan-Sharpen_Atlanta_nadir8_catid_10300100023BC100_732701_3730539.tif
    re.compile(
        r"(?P<product>Pan-Sharpen|MS|PAN)_"
        r"(?P<id>(?P<aoi>[A-Za-z]+)_nadir\d+_catid_[0-9A-Z]+_(?P<tile>\d+_\d+))",
        re.I,
    ),
    # SN4_buildings_train_AOI_6_Atlanta_nadir8_catid_10300100023BC100_PS-RGBNIR_732701_3730539.tif
    re.compile(
        r"SN4_buildings_\w+?_AOI_\d+_(?P<id>(?P<aoi>[A-Za-z]+)_nadir\d+_catid_[0-9A-Z]+)"
        rf"_{_PRODUCT}_(?P<tail>(?P<tile>\d+_\d+))",
        re.I,
    ),
)

# Product by its upper-case name. satmap reads neither panchromatic nor low-resolution multispectral
# images.
_PRODUCTS = {
    "3BAND": RGB,
    "8BAND": MULTISPECTRAL,
    "RGB-PANSHARPEN": RGB,
    "MUL-PANSHARPEN": MULTISPECTRAL,
    "PS-RGB": RGB,
    "PS-MS": MULTISPECTRAL,
    "PAN-SHARPEN": RGB_NIR,
    "PS-RGBNIR": RGB_NIR,
    "RGBNIR": RGB_NIR,
}


@dataclass(frozen=True)
class BuildingImageName:
    """Parsed file name of an image.

    Attributes:
        image_id: the challenge's id, such as ``AOI_2_Vegas_img1``.
        product: product as in ``satmap.data.imagery``; None for one that satmap does not read.
        aoi: area of interest.
        place: the tile's corner, shared by all views of it; "" if there is only one view.
        view_angle: off-nadir angle; None if the name lacks it.
    """

    image_id: str
    product: str | None
    aoi: str
    place: str
    view_angle: ViewAngle | None


def parse_building_name(name: str) -> BuildingImageName | None:
    """Parse a file name without suffix; None if it is not the name of a building image."""
    for pattern in _NAMES:
        if match := pattern.fullmatch(name):
            parts = match.groupdict()
            tail = parts.get("tail")
            image_id = f"{match['id']}_{tail}" if tail else match["id"]
            return BuildingImageName(
                image_id,
                _PRODUCTS.get(match["product"].upper()),
                parts.get("aoi") or image_id.rpartition("_")[0],
                parts.get("tile") or "",
                view_angle_of_name(image_id),
            )
    return None


def building_image_id(name: str) -> str | None:
    """Return the image id of a file name without suffix; None if the name is not recognised."""
    found = parse_building_name(name)
    return found.image_id if found else None


def building_image_ids(directories: Sequence[Path]) -> set[str]:
    """Return the ids of all building images under the directories, of any product.

    Directories and pipes with the name of an image count, too: such an image gets an empty row.

    Raises:
        SatmapError: there are none.
    """
    found = walk(directories, also_non_files=IMAGE_SUFFIXES)
    rasters = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    ids = {image_id for path in rasters if (image_id := building_image_id(path.stem))}
    if not ids:
        raise SatmapError(
            f"no SpaceNet building images under {', '.join(map(str, directories))} "
            f"({len(rasters)} other rasters). Expected names such as {EXPECTED_NAMES}."
        )
    return ids


_LABEL_NAMES = (
    # Geo_AOI_1_RIO_img1.geojson, 013022223130_Public_img1_Geo.geojson
    re.compile(r"Geo_(?P<key>\w+?_img\d+)", re.I),
    re.compile(r"(?P<key>\w+?_img\d+)_Geo", re.I),
    # buildings_AOI_2_Vegas_img1.geojson
    re.compile(r"buildings_(?P<key>AOI_\d+_\w+?_img\d+)", re.I),
    # SN2_buildings_train_AOI_2_Vegas_geojson_buildings_img1.geojson
    re.compile(
        r"SN\d_buildings_\w+?_(?P<key>AOI_\d+_\w+?)_geojson_buildings_(?P<tail>img\d+)", re.I
    ),
    # spacenet-buildings_732701_3730539.geojson
    re.compile(r"spacenet-buildings_(?P<key>\d+_\d+)", re.I),
    # SN4_buildings_train_AOI_6_Atlanta_geojson_buildings_732701_3730539.geojson
    re.compile(
        r"SN4_buildings_\w+?_AOI_\d+_\w+?_(?:geojson_)?(?:spacenet-)?buildings_(?P<key>\d+_\d+)",
        re.I,
    ),
)


def is_building_image(path: Path) -> bool:
    """Return whether a file has the name of an image of these challenges."""
    return path.suffix.lower() in IMAGE_SUFFIXES and parse_building_name(path.stem) is not None


def scan_spacenet_buildings(
    directories: Sequence[Path],
    files: Sequence[Path],
    channels: int = 1,
    view_angle: ViewAngle | None = None,
) -> Inventory:
    """Find the chips among the files in the directories and read the headers of their images.

    The products of SpaceNet 1 differ in pixel size, so outlines in pixels fit only one of them.
    If the products of an image differ in size, only those with the size of the largest product
    that has enough bands (``channels``) are kept. The files include directories and pipes with the
    name of an image. ``view_angle`` is for images whose names lack the off-nadir angle.

    Raises:
        SatmapError: no image was found, or two files have the same image id and product.
    """
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    names: dict[str, BuildingImageName] = {}
    labels: dict[str, Path] = {}
    ignored: list[Path] = []
    no_files: dict[tuple[str, str], Path] = {}
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            name = parse_building_name(path.stem)
            if name is None:
                ignored.append(path)
            elif name.product is not None and is_not_a_file(path):
                no_files[name.image_id, name.product] = path
                names.setdefault(name.image_id, name)
            elif name.product is not None:
                known = images[name.image_id].setdefault(name.product, path)
                if known != path:
                    raise SatmapError(
                        f"two {name.product} images have the id {name.image_id}:\n  {known}\n"
                        f"  {path}\nGive directories that hold each image only once."
                    )
                names[name.image_id] = name
        elif path.suffix.lower() in {".geojson", ".json"} and (key := _label_key(path.stem)):
            labels.setdefault(key, path)
    # Some archives unpack a file into a directory of the same name; then the file is the image.
    for (image_id, product), path in no_files.items():
        images[image_id].setdefault(product, path)
    if not images:
        places = ", ".join(map(str, directories)) or "no directory"
        raise SatmapError(
            f"no SpaceNet building images found under {places} ({len(labels)} label files and "
            f"{len(ignored)} other rasters). Expected names such as {EXPECTED_NAMES}."
        )
    chips, faults, warnings = [], {}, []
    ids = sorted(images, key=natural_key)
    keys = {image_id: names[image_id].place or image_id for image_id in ids}
    for image_id in ids:
        infos, wrong = read_infos(images[image_id])
        if not infos:
            faults[image_id] = " ".join(wrong)
            continue
        name, label = names[image_id], labels.get(keys[image_id])
        infos, angle = _of_one_size(infos, channels), name.view_angle or view_angle
        chips.append(Chip(image_id, image_id, name.aoi, infos, label, name.place, angle))
        warnings += wrong
    used = set(keys.values())
    return Inventory(
        chips=tuple(chips),
        faults=faults,
        warnings=tuple(warnings),
        labels_without_image=tuple(path for key, path in labels.items() if key not in used),
        long_ids={image_id: image_id for image_id in ids},
        ignored=tuple(ignored),
        directories=tuple(directories),
        label_names={
            chip.image_id: building_label_names(chip) for chip in chips if chip.label is None
        },
    )


def building_label_names(chip: Chip) -> list[str]:
    """Return the label file names, without directory, that are accepted for a chip."""
    if chip.place:
        return [
            f"spacenet-buildings_{chip.place}.geojson",
            f"SN4_buildings_train_AOI_6_{chip.aoi}_geojson_buildings_{chip.place}.geojson",
        ]
    aoi, _, tail = chip.image_id.rpartition("_")
    return [
        f"buildings_{chip.image_id}.geojson",
        f"SN2_buildings_train_{aoi}_geojson_buildings_{tail}.geojson",
        f"Geo_{chip.image_id}.geojson",
        f"{chip.image_id}_Geo.geojson",
    ]


def _label_key(name: str) -> str | None:
    """Return the image id or the tile that a label file belongs to; None for other files."""
    for pattern in _LABEL_NAMES:
        if match := pattern.fullmatch(name):
            tail = match.groupdict().get("tail")
            return f"{match['key']}_{tail}" if tail else match["key"]
    return None


def _of_one_size(infos: Mapping[str, ImageInfo], channels: int) -> dict[str, ImageInfo]:
    """Take the largest product with enough bands; return all products of its size."""
    enough = [info for info in infos.values() if info.bands >= channels] or [*infos.values()]
    best = max(enough, key=lambda info: (info.width * info.height, info.bands))
    size = best.width, best.height
    return {product: info for product, info in infos.items() if (info.width, info.height) == size}
