"""Find the chips of a user's images and labels, from which satmap trains as usual.

The chips lie in a folder of the cache whose name is a hash of the inputs, so a second run finds
them again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satmap.data.chip import Chip
from satmap.data.chip_label import CHIP_LABEL_SUFFIX
from satmap.data.folds import merge_groups
from satmap.data.hold_out import held_out_sites
from satmap.data.imagery import RGB, ImageInfo
from satmap.data.inventory import Inventory
from satmap.data.mosaic import state_of, states_of
from satmap.data.own_cutting import cut_chips
from satmap.data.own_data import OwnData
from satmap.data.own_labels import find_label_files
from satmap.data.own_scenes import plan_masks, plan_vectors
from satmap.data.sources import Source, find_sources
from satmap.errors import SatmapError
from satmap.io.files import atomic_path
from satmap.io.text import counted
from satmap.vectors.georeference import georeference_from_json

if TYPE_CHECKING:
    from satmap.tasks.base import Task

# Increase this number when the chips of the same inputs change.
_FORMAT = "3"


def find_own_chips(data: OwnData, task: "Task", channels: int, cache: Path) -> Inventory:
    """Cut images and labels into chips, unless the cache has them, and list them.

    Args:
        data: the user's images and labels.
        task: what the labels show.
        channels: number of channels that the networks need.
        cache: directory of prepared chips.

    Raises:
        SatmapError: no image or no label can be read, they do not belong together, or the cache
            cannot be written.
    """
    if task.label_kind is None:
        raise SatmapError(f"--labels: {task.noun} are not learnt from lines, polygons or masks.")
    vectors, masks = find_label_files(data.labels)
    folder = data.labels.resolve()
    found = find_sources(data.sources, crs=data.source_crs, zoom=data.zoom)
    images = found.sources
    if not vectors:
        images = tuple(
            image for image in images
            if image.is_remote or not Path(image.name).resolve().is_relative_to(folder)
        )  # fmt: skip
        if not images:
            raise SatmapError(
                f"all images lie in {data.labels}, where the masks are. Give --labels the folder "
                "that holds only the masks."
            )
    directory = cache / f"own-{_digest(data, images, vectors or masks, task, channels)}"
    index = directory / "chips.json"
    if not index.is_file():
        plan = (
            plan_vectors(data, images, vectors, task, channels)
            if vectors
            else plan_masks(data, images, masks, task, channels)
        )
        plan.faults.update(found.faults)
        content = cut_chips(plan, task, directory)
        # The network may work again, so the next run tries again.
        if any("://" in name for name in plan.unread):
            return _inventory(content, directory, data, task)
        with atomic_path(index) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
    try:
        return _inventory(json.loads(index.read_bytes()), directory, data, task)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SatmapError(
            f"{index}: damaged ({error}). Delete {directory} and run the command again."
        ) from error


def _digest(
    data: OwnData, images: Sequence[Source], labels: Sequence[Path], task: "Task", channels: int
) -> str:
    """Hash everything that the chips depend on; files by path, size and time."""
    parts: list[Any] = [_FORMAT, astuple(data), task.recipe.task.name, channels]
    parts += [task.recipe.stretch, task.default_metres_per_pixel, *images]
    try:
        for image in images:
            parts += [] if image.is_remote else states_of(image)
        for path in (*labels, *([data.area] if data.area else [])):
            parts += state_of(path)
    except OSError as error:
        raise SatmapError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _inventory(
    content: Mapping[str, Any], directory: Path, data: OwnData, task: "Task"
) -> Inventory:
    """Return the chips of the index, with the blocks in which they are held out together."""
    records = content["chips"]
    folds = task.recipe.folds
    sites, held_out = held_out_sites(records, folds)
    chips = []
    for record in records:
        georeference = georeference_from_json(record["georeference"])
        info = ImageInfo(
            directory / f"{record['id']}.tif", RGB, record["width"], record["height"],
            record["bands"], "uint8", georeference, is_stretched=True,
        )  # fmt: skip
        label = directory / f"{record['id']}{CHIP_LABEL_SUFFIX}"
        chips.append(
            Chip(record["id"], record["id"], record["aoi"], {RGB: info}, label, sites[record["id"]])
        )
    names = {}
    for name, width, height, bands, dtype in content["unlabelled"]:
        info = ImageInfo(Path(name), RGB, width, height, bands, dtype, None)
        chips.append(Chip(name, name, Path(name).parent.name, {RGB: info}, None))
        names[name] = [f"{Path(name).stem} with the suffix of a raster"]
    groups = [sorted({sites[name] for name in group}) for group in content["duplicates"]]
    duplicates = merge_groups(groups)
    notes = [*content["notes"], f"chips: {directory}", *held_out]
    if duplicates:
        found = counted(len(duplicates), "group")
        notes.append(f"{found} of near-duplicates, each in one fold")
    total = sum(record["objects"] for record in records)
    empty = sum(not record["objects"] for record in records)
    notes.append(
        f"{counted(len(records), 'chip')}, {empty} of them without {task.noun}; the others show "
        f"{total} {task.noun}, counted once per chip"
    )
    return Inventory(
        chips=tuple(chips),
        faults=dict(content["faults"]),
        warnings=(),
        labels_without_image=tuple(map(Path, content["labels_without_image"])),
        long_ids={chip.image_id: chip.image_id for chip in chips},
        ignored=(),
        directories=(data.labels,),
        label_names=names,
        notes=tuple(notes),
        duplicates=tuple(map(tuple, duplicates)),
    )
