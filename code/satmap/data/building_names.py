"""How the building challenges of SpaceNet name their images, and the ids that follow from it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from satmap.data.imagery import MULTISPECTRAL, RGB, RGB_NIR
from satmap.data.looks import Look, look_of_name
from satmap.data.walk import walk
from satmap.errors import SatmapError

#: What a message says of them.
EXPECTED_NAMES = (
    "3band_AOI_1_RIO_img1.tif, RGB-PanSharpen_AOI_2_Vegas_img1.tif, "
    "Pan-Sharpen_Atlanta_nadir8_catid_..._x_y.tif"
)

#: What SpaceNet's images end in.
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

# By the names, in capitals. Panchromatic images and multispectral ones in large pixels are none.
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
    """What the name of an image says.

    Attributes:
        image_id: the challenge's, ``AOI_2_Vegas_img1``.
        product: one of ``satmap.data.imagery``; None for one that satmap does not read.
        aoi: its area.
        place: what all looks at one place have in common, the tile's corner; "" for one look.
        look: from where it was taken, where the name says it.
    """

    image_id: str
    product: str | None
    aoi: str
    place: str
    look: Look | None


def parse_building_name(name: str) -> BuildingImageName | None:
    """What a file name without suffix says; None if it is no building image's."""
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
                look_of_name(image_id),
            )
    return None


def building_image_id(name: str) -> str | None:
    """Id of an image by its file name without suffix; None if it is named in no known way."""
    found = parse_building_name(name)
    return found.image_id if found else None


def building_image_ids(directories: Sequence[Path]) -> set[str]:
    """Ids of all building images under some directories, whatever their products.

    A directory or a pipe in an image's place counts, too: the image has an empty row.

    Raises:
        SatmapError: there is none.
    """
    found = walk(directories, misplaced=IMAGE_SUFFIXES)
    rasters = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    ids = {image_id for path in rasters if (image_id := building_image_id(path.stem))}
    if not ids:
        raise SatmapError(
            f"no SpaceNet building images under {', '.join(map(str, directories))} "
            f"({len(rasters)} other rasters). Expected names such as {EXPECTED_NAMES}."
        )
    return ids
