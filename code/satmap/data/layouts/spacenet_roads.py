"""Layout of the SpaceNet 3 and 5 road challenges, with old and new file names.

Directories are searched to any depth, and files are recognised by their names only. The directory
of one area, the root of many areas and a flat folder all work.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from satmap.data.chip import Chip
from satmap.data.imagery import MULTISPECTRAL, RGB, read_infos
from satmap.data.inventory import Inventory
from satmap.errors import SatmapError
from satmap.io.text import natural_key
from satmap.io.walk import is_not_a_file, walk

_PRODUCTS = {
    "PS-MS": MULTISPECTRAL,
    "MUL-PANSHARPEN": MULTISPECTRAL,
    "PS-RGB": RGB,
    "RGB-PANSHARPEN": RGB,
}

_TAIL = r"(?P<tail>(?:chip|img)\d+)"
# City names may contain underscores: AOI_9_San_Juan.
_AOI = r"(?P<aoi>AOI_\d+_[^\s,\"]+?)"
_IMAGE_NAMES = (
    # SN5_roads_train_AOI_7_Moscow_PS-MS_chip23.tif
    re.compile(rf"(?P<prefix>SN\d_roads_.*?){_AOI}_(?P<product>PS-MS|PS-RGB)_{_TAIL}", re.I),
    # RGB-PanSharpen_AOI_2_Vegas_img0.tif
    re.compile(rf"(?P<product>(?:RGB|MUL)-PanSharpen)_(?P<prefix>){_AOI}_{_TAIL}", re.I),
)
# SN5_roads_train_AOI_7_Moscow_geojson_roads_speed_chip23.geojson, AOI_2_Vegas_img990.geojson,
# SN3_roads_train_AOI_2_Vegas_geojson_roads_img272_speed.geojson, spacenetroads_AOI_2_Vegas_img1...
_LABEL_NAME = re.compile(
    rf"(?:SN\d_roads_.*?|spacenetroads_)?{_AOI}_(?P<speed>geojson_roads_speed_|geojson_roads_)?"
    rf"{_TAIL}(?P<suffix>_speed)?",
    re.I,
)
# Directories of OpenStreetMap extracts, whose files have the same names as the challenge's labels.
_FOREIGN_LABELS = {"osm", "osmtiles"}

_SUFFIXES = (".tif", ".tiff")


def scan_roads(directories: Sequence[Path]) -> Inventory:
    """Find the chips under the directories and read the headers of their images.

    Raises:
        SatmapError: a directory does not exist, no image was found, or two files have the same
            image id and product.
    """
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    names: dict[str, tuple[str, str]] = {}
    labels: dict[str, tuple[int, Path]] = {}
    ignored = []
    no_files: dict[tuple[str, str], Path] = {}
    label_count = 0
    for path in walk(directories, also_non_files=_SUFFIXES):
        if path.suffix.lower() in _SUFFIXES:
            match = _match(path.stem)
            if match is None:
                ignored.append(path)
                continue
            product = _PRODUCTS[match["product"].upper()]
            image_id = f"{match['aoi']}_{match['tail']}"
            names[image_id] = (match["prefix"] + image_id, match["aoi"])
            if is_not_a_file(path):
                no_files[image_id, product] = path
                continue
            if product in images[image_id]:
                raise SatmapError(
                    f"two {product} images have the id {image_id}:\n  {images[image_id][product]}"
                    f"\n  {path}\nGive directories that hold each image only once."
                )
            images[image_id][product] = path
        elif path.suffix.lower() in {".geojson", ".json"}:
            match = _LABEL_NAME.fullmatch(path.stem)
            if match is None or path.parent.name.lower() in _FOREIGN_LABELS:
                continue
            label_count += 1
            image_id = f"{match['aoi']}_{match['tail']}"
            has_speed = "speed" in (match["speed"] or "") or match["suffix"] is not None
            # Labels with speeds take precedence; otherwise the first in sorted order.
            if image_id not in labels or has_speed > labels[image_id][0]:
                labels[image_id] = (has_speed, path)
    # Some archives unpack a file into a directory of the same name; then the file is the image.
    for (image_id, product), path in no_files.items():
        images[image_id].setdefault(product, path)
    if not images:
        raise SatmapError(_nothing_found(directories, label_count, ignored))
    chips, faults, warnings = [], {}, []
    for image_id in sorted(images, key=natural_key):
        infos, wrong = read_infos(images[image_id])
        if infos:
            long_id, aoi = names[image_id]
            label = labels.get(image_id, (0, None))[1]
            chips.append(Chip(image_id, long_id, aoi, infos, label))
            warnings += wrong
        else:
            faults[image_id] = " ".join(wrong)
    long_ids = {image_id: names[image_id][0] for image_id in sorted(images, key=natural_key)}
    return Inventory(
        chips=tuple(chips),
        faults=faults,
        warnings=tuple(warnings),
        labels_without_image=tuple(
            path for image_id, (_, path) in labels.items() if image_id not in images
        ),
        long_ids=long_ids,
        ignored=tuple(ignored),
        directories=tuple(directories),
        label_names={chip.image_id: road_label_names(chip) for chip in chips if chip.label is None},
    )


def road_image_id(name: str) -> str | None:
    """Return the image id of a file name without suffix; None if the name is not recognised."""
    match = _match(name)
    return f"{match['aoi']}_{match['tail']}" if match else None


def _match(name: str) -> re.Match[str] | None:
    return next((match for known in _IMAGE_NAMES if (match := known.fullmatch(name))), None)


def road_label_names(chip: Chip) -> list[str]:
    """Return the label file names, without directory, that are accepted for a chip."""
    tail = chip.image_id.removeprefix(f"{chip.aoi}_")
    prefix = chip.long_id.removesuffix(chip.image_id)
    return [
        f"{prefix}{chip.aoi}_geojson_roads_speed_{tail}.geojson",
        f"{prefix}{chip.aoi}_geojson_roads_{tail}_speed.geojson",
        f"{prefix}{chip.aoi}_geojson_roads_{tail}.geojson",
        f"{chip.image_id}.geojson",
        f"spacenetroads_{chip.image_id}.geojson",
    ]


def _nothing_found(directories: Sequence[Path], labels: int, others: Sequence[Path]) -> str:
    places = ", ".join(map(str, directories)) or "no directory"
    beside = f" ({labels} label files and {len(others)} other rasters)" if labels or others else ""
    return (
        f"no SpaceNet road images found under {places}{beside}. Expected names such as "
        "SN5_roads_train_AOI_7_Moscow_PS-MS_chip23.tif, SN5_roads_..._PS-RGB_chip23.tif or "
        "RGB-PanSharpen_AOI_2_Vegas_img0.tif."
    )
