"""Judgements of labels: moved labels and the ground that a training ignores.

``satmap labels judge`` writes a directory. Its vector files can be shown and edited in any GIS, and
``judgement.json`` says which of them belong to which image. :func:`judged_inventory` and
:func:`judged_own_data` replace the original labels by these files.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import shapely
from pydantic import AfterValidator, Field, ValidationError

from satmap.data.inventory import Inventory
from satmap.data.label_files import read_label_file
from satmap.data.own_data import OwnData
from satmap.data.own_labels import Shapes
from satmap.errors import SatmapError
from satmap.io.checksums import FileRecord, record_file
from satmap.io.text import counted
from satmap.settings import Settings, first_fault
from satmap.vectors.georeference import Georeference

#: Name of the file in the directory of a judgement.
JUDGEMENT = "judgement.json"


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
        raise ValueError(f"{name} does not lie in the directory of the judgement")
    return name


#: Path of a file below the directory of the judgement, with slashes.
Inside = Annotated[str, AfterValidator(_inside)]

Verdict = Literal["keep", "drop"]

#: Why networks may judge a tile: their training held it out, or has never seen it.
Reason = Literal["held out", "unseen"]

#: What a shift was measured on: the tile and those around it, its scene, its area, or nothing.
Evidence = Literal["tile", "scene", "area", "none"]


class Thresholds(Settings):
    """Thresholds of the verdicts.

    Attributes:
        drop: tiles with a lower Jaccard index are left out of the training.
        ignore: the loss ignores buildings with a lower Jaccard index.
        certain: the loss ignores predicted buildings without a label if their mean probability is
            at least this.
        least_m2: smallest area of such a prediction, square metres.
    """

    drop: float = Field(0.15, ge=0, le=1)
    ignore: float = Field(0.25, ge=0, le=1)
    certain: float = Field(0.8, gt=0.5, le=1)
    least_m2: float = Field(12.0, gt=0)


class JudgedLabel(Settings):
    """Label of an image, or all labels of a user's own images.

    Attributes:
        label: the moved labels, a file or a directory.
        ignored: file with the polygons that the loss ignores.
        source: the original label.
    """

    label: Inside
    ignored: Inside
    source: FileRecord


class JudgedTile(Settings):
    """A tile, or a chip that is its own tile.

    Attributes:
        place: the scene or the area.
        networks: whether the networks that predicted it had held it out, or had never seen it.
        right_m, down_m: how far the labels lay to the right and down of the buildings, metres.
        error_m: uncertainty of the shift, see :class:`satmap.data.registration.Offset`.
        evidence: what the shift was measured on: the tile and those around it, its scene, its area,
            or nothing.
        before, jaccard: Jaccard index of building pixels before and after the labels were moved;
            1 where there is neither a label nor a prediction.
        verdict: whether the tile is trained on.
    """

    place: str
    networks: Reason
    right_m: float
    down_m: float
    error_m: float
    evidence: Evidence
    before: float
    jaccard: float
    verdict: Verdict


class Judgement(Settings):
    """Content of ``judgement.json``.

    Attributes:
        judgement: format number, to be increased when the meaning of a field changes.
        thresholds: thresholds of the verdicts.
        weights: the networks that predicted.
        images: labels by the id of the scene or chip.
        own: labels of a user's own images; None for those of a challenge.
        tiles: by the tile's id.
        skipped: reason by id, for images and tiles that could not be judged. Their labels stay.
    """

    judgement: Literal[1] = 1
    thresholds: Thresholds
    weights: tuple[FileRecord, ...]
    images: dict[str, JudgedLabel]
    own: JudgedLabel | None
    tiles: dict[str, JudgedTile]
    skipped: dict[str, str]


def read_judgement(directory: Path) -> Judgement:
    """Read ``judgement.json`` in a directory.

    Raises:
        SatmapError: there is none, or it is not one of this version.
    """
    path = directory / JUDGEMENT
    try:
        return Judgement.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SatmapError(
            f"--judgement: {path} cannot be read ({error.strerror}). Give the directory that "
            "`satmap labels judge` has written."
        ) from error
    except ValidationError as error:
        raise SatmapError(
            f"{path} is not a judgement of this version of satmap: {first_fault(error)}. Judge the "
            "labels again."
        ) from error


def judged_inventory(inventory: Inventory, directory: Path) -> Inventory:
    """Replace the labels of an inventory's images by judged ones, and leave out dropped chips.

    Images that were not judged stay as they are.

    Args:
        inventory: scenes that are not cut yet, and other chips.
        directory: of the judgement.

    Raises:
        SatmapError: the judgement cannot be read, is one of other images, or a label has changed.
    """
    judgement = read_judgement(directory)
    if judgement.own is not None:
        raise SatmapError(
            f"--judgement: {directory} judges labels of your own images. Give these images, and "
            "their labels with --labels."
        )
    chips, judged = [], 0
    for chip in inventory.chips:
        entry = judgement.images.get(chip.image_id)
        tile = judgement.tiles.get(chip.image_id)
        if entry is None or chip.label is None:
            chips.append(chip)
            continue
        judged += 1
        _require_unchanged(chip.label, entry, directory)
        # Tiles of scenes are dropped by the polygons that cover them, on any grid.
        if tile is None or tile.verdict == "keep":
            label, ignored = directory / entry.label, directory / entry.ignored
            chips.append(replace(chip, label=label, ignored=ignored))
    if not judged:
        known = next(iter(judgement.images), "none")
        raise SatmapError(
            f"--judgement: {directory} judges none of these {len(inventory.chips)} images. It "
            f"judges others, such as {known}. Give the directories whose labels were judged."
        )
    return replace(
        inventory,
        chips=tuple(chips),
        notes=(*inventory.notes, _note(judgement, judged, "image")),
    )


def judged_own_data(own: OwnData, directory: Path) -> OwnData:
    """Replace the labels of a user's own images by judged ones.

    Raises:
        SatmapError: the judgement cannot be read, is one of other labels, or a label has changed.
    """
    entry = read_judgement(directory).own
    if entry is None:
        raise SatmapError(
            f"--judgement: {directory} judges labels of a challenge, not of your own images. Judge "
            "yours with `satmap labels judge ... --labels`."
        )
    if own.shift != (0.0, 0.0):
        raise SatmapError(
            "--shift and --judgement exclude each other: the judged labels are moved already."
        )
    _require_unchanged(own.labels, entry, directory)
    return replace(own, labels=directory / entry.label, ignored=directory / entry.ignored)


def read_ignored(path: Path, georeference: Georeference) -> Shapes:
    """Read the polygons that a training ignores, in pixels of an image; there may be none.

    Raises:
        SatmapError: the file cannot be read.
    """
    found = read_label_file(path, "polygons", may_be_empty=True)
    if not len(found.shapes):
        return found.shapes
    try:
        pixels = georeference.to_pixels(shapely.get_coordinates(found.shapes), found.crs)
    except ValueError as error:
        raise SatmapError(f"{path}: {error}.") from error
    placed: Shapes = shapely.make_valid(shapely.set_coordinates(found.shapes.copy(), pixels))
    return placed


def _require_unchanged(label: Path, entry: JudgedLabel, directory: Path) -> None:
    if record_file(label).sha256 != entry.source.sha256:
        raise SatmapError(
            f"{label} has changed since {directory} judged it. Run `satmap labels judge` again."
        )
    for name in (entry.label, entry.ignored):
        if not (directory / name).exists():
            raise SatmapError(f"{directory / name} is missing. Run `satmap labels judge` again.")


def _note(judgement: Judgement, judged: int, noun: str) -> str:
    dropped = sum(tile.verdict == "drop" for tile in judgement.tiles.values())
    return (
        f"judgement: moved labels of {counted(judged, noun)}; {dropped} of "
        f"{counted(len(judgement.tiles), 'tile')} dropped"
    )
