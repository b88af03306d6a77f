"""The layout of the SpaceNet 3 and 5 road challenges, old names and new.

Directories are searched to any depth and files are told by their names alone, so an area's
directory, a root of many and a flat folder all work.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from satmap.data.chip import Chip
from satmap.data.imagery import MULTISPECTRAL, RGB, ImageInfo, read_info
from satmap.data.walk import walk
from satmap.errors import SatmapError
from satmap.ordering import natural_key
from satmap.text import printable

_PRODUCTS = {
    "PS-MS": MULTISPECTRAL,
    "MUL-PANSHARPEN": MULTISPECTRAL,
    "PS-RGB": RGB,
    "RGB-PANSHARPEN": RGB,
}

_TAIL = r"(?P<tail>(?:chip|img)\d+)"
# Names of cities may hold underscores: AOI_9_San_Juan.
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
# OpenStreetMap extracts stand beside the challenge's own labels under the same names.
_FOREIGN_LABELS = {"osm", "osmtiles"}

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Inventory:
    """What was found in the given directories.

    Attributes:
        chips: sorted by id, in natural order.
        faults: image id to what is wrong, for the images that cannot be read at all.
        warnings: what is wrong with one product of an image whose other product serves.
        orphans: labels without an image.
        long_ids: image id to the id with the challenge's prefix, for every image found, readable or
            not.
        passed_over: rasters whose names are not those of a road image.
        directories: where the search went.
    """

    chips: tuple[Chip, ...]
    faults: dict[str, str]
    warnings: tuple[str, ...]
    orphans: tuple[Path, ...]
    long_ids: dict[str, str]
    passed_over: tuple[Path, ...]
    directories: tuple[Path, ...]

    def unlabelled(self) -> tuple[Chip, ...]:
        """The chips whose label was not found."""
        return tuple(chip for chip in self.chips if chip.label is None)

    def require_labels(self) -> None:
        """Fail if a chip has no label.

        Raises:
            SatmapError: names the images and, for the first, the label names that were tried.
        """
        missing = self.unlabelled()
        if not missing:
            return
        shown = ", ".join(chip.image.path.name for chip in missing[:_NAMES_SHOWN])
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        tried = "\n  ".join(label_names(missing[0]))
        first = missing[0].image_id
        places = ", ".join(map(str, self.directories))
        raise SatmapError(
            f"{len(missing)} of {len(self.chips)} images have no label: {shown}{more}.\n"
            f"For {first} these names were tried anywhere under {places}:\n  {tried}\n"
            "Add the labels, or pass --skip-unlabelled to train without these images."
        )

    def summary(self) -> str:
        """A table for people: areas, images, labels, bands, sizes, what is missing."""
        areas: dict[str, list[Chip]] = defaultdict(list)
        for chip in self.chips:
            areas[chip.aoi].append(chip)
        header = ("area", "chips", "PS-MS", "PS-RGB", "labels", "bands", "type", "size", "m/px")
        rows = [header, *(_summary_row(aoi, chips) for aoi, chips in areas.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        if missing := [c.image_id for c in self.chips if c.image.georeference is None]:
            lines.append(f"without georeference: {_listing(missing)}")
        unlabelled = [chip.image_id for chip in self.unlabelled()]
        if 0 < len(unlabelled) < len(self.chips):
            lines.append(f"without label: {_listing(unlabelled)}")
        if self.orphans:
            names = [path.name for path in self.orphans]
            lines.append(f"labels without an image: {_listing(names)}")
        if self.passed_over:
            lines.append(
                f"passed over: {len(self.passed_over)} other rasters such as "
                f"{self.passed_over[0].name}"
            )
        lines += [f"passed over: {warning}" for warning in self.warnings]
        lines += [f"unusable: {fault}" for fault in self.faults.values()]
        # Names of directories and files are whatever somebody called them.
        return "\n".join(map(printable, lines))


def scan(directories: Sequence[Path]) -> Inventory:
    """Find the chips under the directories and read the headers of their images.

    Raises:
        SatmapError: a directory does not exist or no image was found, or two files claim to be the
            same image.
    """
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    names: dict[str, tuple[str, str]] = {}
    labels: dict[str, tuple[int, Path]] = {}
    passed_over = []
    label_count = 0
    for path in walk(directories):
        if path.suffix.lower() in {".tif", ".tiff"}:
            match = _match(path.stem)
            if match is None:
                passed_over.append(path)
                continue
            product = _PRODUCTS[match["product"].upper()]
            image_id = f"{match['aoi']}_{match['tail']}"
            if product in images[image_id]:
                raise SatmapError(
                    f"two {product} images claim the id {image_id}:\n  {images[image_id][product]}"
                    f"\n  {path}\nGive directories that hold each image once."
                )
            images[image_id][product] = path
            names[image_id] = (match["prefix"] + image_id, match["aoi"])
        elif path.suffix.lower() in {".geojson", ".json"}:
            match = _LABEL_NAME.fullmatch(path.stem)
            if match is None or path.parent.name.lower() in _FOREIGN_LABELS:
                continue
            label_count += 1
            image_id = f"{match['aoi']}_{match['tail']}"
            has_speed = "speed" in (match["speed"] or "") or match["suffix"] is not None
            # Labels with speeds win; among equals the first in sorted order.
            if image_id not in labels or has_speed > labels[image_id][0]:
                labels[image_id] = (has_speed, path)
    if not images:
        raise SatmapError(_nothing_found(directories, label_count, passed_over))
    chips, faults, warnings = [], {}, []
    for image_id in sorted(images, key=natural_key):
        infos, wrong = _read_infos(images[image_id])
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
        orphans=tuple(path for image_id, (_, path) in labels.items() if image_id not in images),
        long_ids=long_ids,
        passed_over=tuple(passed_over),
        directories=tuple(directories),
    )


def road_image_id(name: str) -> str | None:
    """Id of an image by its file name without suffix; None if it is named in no known way."""
    match = _match(name)
    return f"{match['aoi']}_{match['tail']}" if match else None


def _match(name: str) -> re.Match[str] | None:
    return next((match for known in _IMAGE_NAMES if (match := known.fullmatch(name))), None)


def label_names(chip: Chip) -> list[str]:
    """The label file names, without directory, that would be accepted for a chip."""
    tail = chip.image_id.removeprefix(f"{chip.aoi}_")
    prefix = chip.long_id.removesuffix(chip.image_id)
    return [
        f"{prefix}{chip.aoi}_geojson_roads_speed_{tail}.geojson",
        f"{prefix}{chip.aoi}_geojson_roads_{tail}_speed.geojson",
        f"{prefix}{chip.aoi}_geojson_roads_{tail}.geojson",
        f"{chip.image_id}.geojson",
        f"spacenetroads_{chip.image_id}.geojson",
    ]


def _read_infos(paths: dict[str, Path]) -> tuple[dict[str, ImageInfo], list[str]]:
    """The readable products of a chip, and what is wrong with the others."""
    infos, wrong = {}, []
    for product, path in paths.items():
        try:
            infos[product] = read_info(path, product)
        except SatmapError as error:
            wrong.append(str(error))
    return infos, wrong


def _nothing_found(directories: Sequence[Path], labels: int, others: Sequence[Path]) -> str:
    places = ", ".join(map(str, directories)) or "no directory"
    beside = f" ({labels} label files and {len(others)} other rasters)" if labels or others else ""
    return (
        f"no SpaceNet road images found under {places}{beside}. Expected names such as "
        "SN5_roads_train_AOI_7_Moscow_PS-MS_chip23.tif, SN5_roads_..._PS-RGB_chip23.tif or "
        "RGB-PanSharpen_AOI_2_Vegas_img0.tif."
    )


def _summary_row(aoi: str, chips: Sequence[Chip]) -> tuple[str, ...]:
    def kinds(values: Iterable[str]) -> str:
        common = Counter(values).most_common()
        return ", ".join(value for value, _ in common[:3]) + (", ..." if len(common) > 3 else "")

    located = [c.image.georeference for c in chips if c.image.georeference is not None]
    return (
        aoi,
        str(len(chips)),
        str(sum(MULTISPECTRAL in chip.images for chip in chips)),
        str(sum(RGB in chip.images for chip in chips)),
        str(sum(chip.label is not None for chip in chips)),
        kinds(str(chip.image.bands) for chip in chips),
        kinds(chip.image.dtype for chip in chips),
        kinds(f"{chip.image.width}x{chip.image.height}" for chip in chips),
        kinds(f"{g.metres_per_pixel[0]:.2f}x{g.metres_per_pixel[1]:.2f}" for g in located) or "-",
    )


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    hidden = len(names) - _NAMES_SHOWN
    return f"{shown} and {hidden} more" if hidden > 0 else shown
