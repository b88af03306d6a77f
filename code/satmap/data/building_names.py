"""How the building challenges of SpaceNet name their images, and the ids that follow from it."""

import re
from collections.abc import Sequence
from pathlib import Path

from satmap.data.walk import walk
from satmap.errors import SatmapError

_PRODUCT = r"(?:PS-RGBNIR|PS-RGB|PS-MS|RGBNIR|MS|PAN)"
_NAMES = (
    # 3band_AOI_1_RIO_img1.tif, 3band_013022223130_Public_img1.tif
    re.compile(r"(?:3band|8band)_(?P<id>\w+?_img\d+)", re.I),
    # RGB-PanSharpen_AOI_2_Vegas_img1.tif
    re.compile(r"(?:(?:RGB|MUL)-PanSharpen|MUL|PAN)_(?P<id>AOI_\d+_\w+?_img\d+)", re.I),
    # SN2_buildings_train_AOI_2_Vegas_PS-RGB_img1.tif
    re.compile(rf"SN\d_buildings_\w+?_(?P<id>AOI_\d+_\w+?)_{_PRODUCT}_(?P<tail>img\d+)", re.I),
    # Pan-Sharpen_Atlanta_nadir8_catid_10300100023BC100_732701_3730539.tif
    re.compile(r"(?:Pan-Sharpen|MS|PAN)_(?P<id>[A-Za-z]+_nadir\d+_catid_[0-9A-Z]+_\d+_\d+)", re.I),
    # SN4_buildings_train_AOI_6_Atlanta_nadir8_catid_10300100023BC100_PS-RGBNIR_732701_3730539.tif
    re.compile(
        r"SN4_buildings_\w+?_AOI_\d+_(?P<id>[A-Za-z]+_nadir\d+_catid_[0-9A-Z]+)"
        rf"_{_PRODUCT}_(?P<tail>\d+_\d+)",
        re.I,
    ),
)


def building_image_id(name: str) -> str | None:
    """Id of an image by its file name without suffix; None if it is named in no known way."""
    for pattern in _NAMES:
        if match := pattern.fullmatch(name):
            tail = match.groupdict().get("tail")
            return f"{match['id']}_{tail}" if tail else match["id"]
    return None


def building_image_ids(directories: Sequence[Path]) -> set[str]:
    """Ids of all building images under some directories, whatever their products.

    Raises:
        SatmapError: there is none.
    """
    rasters = [path for path in walk(directories) if path.suffix.lower() in (".tif", ".tiff")]
    ids = {image_id for path in rasters if (image_id := building_image_id(path.stem))}
    if not ids:
        raise SatmapError(
            f"no SpaceNet building images under {', '.join(map(str, directories))} "
            f"({len(rasters)} other rasters). Expected names such as 3band_AOI_1_RIO_img1.tif, "
            "RGB-PanSharpen_AOI_2_Vegas_img1.tif, Pan-Sharpen_Atlanta_nadir8_catid_..._x_y.tif."
        )
    return ids
