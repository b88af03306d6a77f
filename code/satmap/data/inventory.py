"""Inventory of a challenge's directories: images, labels and problems."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from satmap.data.chip import Chip
from satmap.data.imagery import MULTISPECTRAL, RGB, RGB_NIR
from satmap.errors import SatmapError
from satmap.io.text import listing, padded, printable

# ``test`` as a word in a path: ``test_public``, ``AOI_7_test``, ``Test``.
_TEST = re.compile(r"(?<![a-z])test(?![a-z])")


@dataclass(frozen=True)
class Inventory:
    """Images and labels found in the given directories.

    Attributes:
        chips: readable images, sorted by id in natural order.
        faults: error message by image id, for images of which no product can be read.
        warnings: errors of unreadable products of images that have another, readable product.
        labels_without_image: label files that belong to no image found.
        long_ids: id with the challenge's prefix by image id, for all images found, readable or not.
        ignored: rasters whose names do not match the challenge's images.
        directories: directories that were searched.
        label_names: for each chip without a label, by image id, the file names that were tried,
            without directory.
        notes: further lines of the summary.
        duplicates: groups of sites with near-duplicates, which must share a fold.
    """

    chips: tuple[Chip, ...]
    faults: dict[str, str]
    warnings: tuple[str, ...]
    labels_without_image: tuple[Path, ...]
    long_ids: dict[str, str]
    ignored: tuple[Path, ...]
    directories: tuple[Path, ...]
    label_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()

    def unlabelled(self) -> tuple[Chip, ...]:
        """Return the chips without a label."""
        return tuple(chip for chip in self.chips if chip.label is None)

    def require_labels(self) -> None:
        """Raise SatmapError if a chip has no label, with the names of the labels that are tried.

        Test images need none if there are others: those with ``test`` as a word of their path below
        the directories.
        """
        missing = self.unlabelled()
        if len(missing) < len(self.chips):
            missing = tuple(chip for chip in missing if not self._is_test(chip))
        if not missing:
            return
        shown = listing([chip.image.path.name for chip in missing])
        tried = "\n  ".join(self.label_names[missing[0].image_id])
        first = missing[0].image_id
        places = ", ".join(map(str, self.directories))
        raise SatmapError(
            f"{len(missing)} of {len(self.chips)} images have no label: {shown}.\n"
            f"For {first} these names were tried anywhere under {places}:\n  {tried}\n"
            "Add the labels, or pass --skip-unlabelled to train without these images."
        )

    def _is_test(self, chip: Chip) -> bool:
        path = chip.image.path
        return any(
            is_test_path(path.relative_to(place))
            for place in self.directories
            if path.is_relative_to(place)
        )

    def summary(self) -> str:
        """Return a readable table of areas, images, labels, bands and sizes, and the problems."""
        areas: dict[str, list[Chip]] = defaultdict(list)
        for chip in self.chips:
            areas[chip.aoi].append(chip)
        # The columns of multispectral and RGB images are always shown.
        has_infrared = any(RGB_NIR in chip.images for chip in self.chips)
        products = (MULTISPECTRAL, *((RGB_NIR,) if has_infrared else ()), RGB)
        header = ("area", "chips", *products, "labels", "bands", "type", "size", "m/px")
        rows = [header, *(_summary_row(aoi, chips, products) for aoi, chips in areas.items())]
        lines = ["  ".join(row).rstrip() for row in padded(rows)]
        if missing := [c.image_id for c in self.chips if c.image.georeference is None]:
            lines.append(f"without georeference: {listing(missing)}")
        unlabelled = [chip.image_id for chip in self.unlabelled()]
        if 0 < len(unlabelled) < len(self.chips):
            lines.append(f"without label: {listing(unlabelled)}")
        if self.labels_without_image:
            names = [path.name for path in self.labels_without_image]
            lines.append(f"labels without an image: {listing(names)}")
        if self.ignored:
            lines.append(
                f"ignored: {len(self.ignored)} other rasters such as {self.ignored[0].name}"
            )
        lines += [f"ignored: {warning}" for warning in self.warnings]
        lines += [f"unusable: {fault}" for fault in self.faults.values()]
        lines += self.notes
        # Names of directories and files may contain control characters.
        return "\n".join(map(printable, lines))


def is_test_path(path: Path) -> bool:
    """Return whether ``test`` is a word of a path."""
    return bool(_TEST.search(str(path).lower()))


def _summary_row(aoi: str, chips: Sequence[Chip], products: Sequence[str]) -> tuple[str, ...]:
    def kinds(values: Iterable[str]) -> str:
        common = Counter(values).most_common()
        return ", ".join(value for value, _ in common[:3]) + (", ..." if len(common) > 3 else "")

    located = [c.image.georeference for c in chips if c.image.georeference is not None]
    return (
        aoi,
        str(len(chips)),
        *(str(sum(product in chip.images for chip in chips)) for product in products),
        str(sum(chip.label is not None for chip in chips)),
        kinds(str(chip.image.bands) for chip in chips),
        kinds(chip.image.dtype for chip in chips),
        kinds(f"{chip.image.width}x{chip.image.height}" for chip in chips),
        kinds(f"{g.metres_per_pixel[0]:.2f}x{g.metres_per_pixel[1]:.2f}" for g in located) or "-",
    )
