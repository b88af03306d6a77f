"""The layout of the crowdAI Mapping Challenge: JPEGs beside a file of COCO annotations.

With annotations an image's id is theirs, by its file name; without, as in a directory of test
images, it is the number in the name. It is never the place in a listing.
"""

from collections.abc import Sequence
from pathlib import Path

from satmap.data.chip import Chip
from satmap.data.coco_annotations import CocoAnnotations, read_coco_annotations
from satmap.data.imagery import RGB, read_infos
from satmap.data.inventory import Inventory
from satmap.errors import SatmapError

#: What the file of annotations is called.
ANNOTATIONS = "annotation.json"

#: What its images end in.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_AOI = "mapping-challenge"


def is_mapping_challenge(path: Path) -> bool:
    """Whether a file is an image or the annotations of this challenge."""
    return path.name == ANNOTATIONS or (
        path.suffix.lower() in PICTURE_SUFFIXES and path.stem.isascii() and path.stem.isdecimal()
    )


def scan_mapping_challenge(directories: Sequence[Path], files: Sequence[Path]) -> Inventory:
    """Find the chips among the files and read the headers of their images.

    An image that the annotations list and that is not there is a fault of its own, and so is a
    directory or a pipe in the place of one.

    Args:
        directories: where the search went.
        files: all that is there, directories and pipes in images' places, too.

    Raises:
        SatmapError: there is no image, a file of annotations cannot be read, or two images have one
            id.
    """
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    # An archive may unpack a file into a directory of its name: then the file is the image.
    unpacked = {path.parent for path in pictures if path.parent.name == path.name}
    images = {path: path for path in pictures if path not in unpacked}
    chips: dict[int, Chip] = {}
    faults: dict[str, str] = {}
    for path in (path for path in files if path.name == ANNOTATIONS):
        annotations = read_coco_annotations(path)
        for number, name in annotations.names.items():
            image = _find(images, path.parent, name)
            if image is None:
                faults[str(number)] = (
                    f"{path} lists {name}, which is not in {path.parent / 'images'}."
                )
                continue
            del images[image]
            _add(chips, faults, number, image, annotations)
    unnamed = []
    for path in images:
        if is_mapping_challenge(path):
            _add(chips, faults, int(path.stem), path, None)
        else:
            unnamed.append(path)
    if not chips and not faults:
        raise SatmapError(
            f"no images of the Mapping Challenge under {', '.join(map(str, directories))} "
            f"({len(unnamed)} other pictures). Expected images/000000000012.jpg beside "
            f"{ANNOTATIONS}, or images with numbers as names."
        )
    numbers = sorted({*chips, *map(int, faults)})
    return Inventory(
        chips=tuple(chips[number] for number in sorted(chips)),
        faults=faults,
        warnings=(),
        orphans=(),
        long_ids={str(number): str(number) for number in numbers},
        passed_over=tuple(unnamed),
        directories=tuple(directories),
        label_names={
            chip.image_id: [f"{ANNOTATIONS} with {chip.image.path.name} in its images"]
            for chip in chips.values()
            if chip.label is None
        },
    )


def _find(images: dict[Path, Path], directory: Path, name: str) -> Path | None:
    # Names with directories lead nowhere but into the place of the annotations.
    plain = Path(name).name
    places = (directory / "images" / plain, directory / plain)
    candidates = [*places, *(place / plain for place in places)]
    return next((path for path in candidates if path in images), None)


def _add(
    chips: dict[int, Chip],
    faults: dict[str, str],
    number: int,
    path: Path,
    annotations: CocoAnnotations | None,
) -> None:
    if number in chips:
        raise SatmapError(
            f"two images have the id {number}:\n  {chips[number].image.path}\n  {path}\n"
            "Give a directory that holds one of them, such as `train` alone."
        )
    infos, wrong = read_infos({RGB: path})
    if wrong:
        faults[str(number)] = wrong[0]
        return
    name, label = str(number), annotations.path if annotations else None
    chips[number] = Chip(name, name, _AOI, infos, label, number=number)
