"""Layout of chips that satmap cut from a user's images and labels: a folder with an index.

``train SOURCE... --labels LABELS`` and ``inventory`` write such a folder to the cache and name it.
Commands that take a challenge's directories, such as ``predict --out-of-fold``, take it as well.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from satmap.data.chip import Chip
from satmap.data.chip_label import CHIP_LABEL_SUFFIX
from satmap.data.folds import merge_groups
from satmap.data.hold_out import held_out_sites
from satmap.data.imagery import RGB, ImageInfo
from satmap.data.inventory import Inventory
from satmap.errors import SatmapError
from satmap.io.text import counted
from satmap.vectors.georeference import georeference_from_json

#: Name of the index in a folder of chips.
INDEX = "chips.json"


def find_cut_chips(directories: Sequence[Path], noun: str) -> Inventory | None:
    """List the chips of folders that satmap cut with labels of ``noun``; None for others.

    With several folders, ids and areas begin with the number of the folder: ``set1-``, ``set2-``.

    Raises:
        SatmapError: there are other directories, too, the chips have labels of something else, or
            an index is damaged.
    """
    cut = [directory for directory in directories if (directory / INDEX).is_file()]
    if not cut:
        return None
    if len(cut) < len(directories):
        other = next(directory for directory in directories if directory not in cut)
        raise SatmapError(
            f"{cut[0]} holds chips that satmap cut, and {other} does not. Give only such folders, "
            "or none."
        )
    if len(set(map(Path.resolve, cut))) < len(cut):
        raise SatmapError("the same folder of chips is given twice.")
    found = [read_chips(directory, noun) for directory in cut]
    return found[0] if len(found) == 1 else _joined(found)


def _joined(parts: Sequence[Inventory]) -> Inventory:
    """Join the chips of several folders, which may have the same ids and areas."""
    joined = [
        _renamed(inventory, f"set{number}-") for number, inventory in enumerate(parts, start=1)
    ]
    return Inventory(
        chips=tuple(chip for each in joined for chip in each.chips),
        faults={name: fault for each in joined for name, fault in each.faults.items()},
        warnings=tuple(warning for each in joined for warning in each.warnings),
        labels_without_image=tuple(p for each in joined for p in each.labels_without_image),
        long_ids={name: long for each in joined for name, long in each.long_ids.items()},
        ignored=(),
        directories=tuple(place for each in joined for place in each.directories),
        label_names={name: tried for each in joined for name, tried in each.label_names.items()},
        notes=tuple(note for each in joined for note in each.notes),
        duplicates=tuple(group for each in joined for group in each.duplicates),
    )


def _renamed(inventory: Inventory, prefix: str) -> Inventory:
    """Put a prefix before the ids, areas and sites of the chips, and before the notes."""
    chips = tuple(
        replace(
            chip,
            image_id=prefix + chip.image_id,
            long_id=prefix + chip.long_id,
            aoi=prefix + chip.aoi,
            place=chip.place and prefix + chip.place,
        )
        for chip in inventory.chips
    )
    return replace(
        inventory,
        chips=chips,
        faults={prefix + name: fault for name, fault in inventory.faults.items()},
        long_ids={chip.image_id: chip.long_id for chip in chips},
        label_names={prefix + name: tried for name, tried in inventory.label_names.items()},
        notes=tuple(f"{prefix.rstrip('-')}: {note}" for note in inventory.notes),
        duplicates=tuple(tuple(prefix + site for site in group) for group in inventory.duplicates),
    )


def read_chips(directory: Path, noun: str, folds: int | None = None) -> Inventory:
    """List the chips of a folder, and mark it as used.

    ``folds`` is the number of folds that the recipe needs; by default that when it was cut.

    Raises:
        SatmapError: the chips do not have labels of ``noun``, or the index is damaged.
    """
    path = directory / INDEX
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if content["noun"] != noun:
            raise SatmapError(
                f"{directory} holds chips of {content['noun']}, but the networks or the recipe are "
                f"for {noun}."
            )
        inventory = list_chips(directory, content, folds or content["folds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SatmapError(
            f"{path}: damaged ({error}). Delete {directory} and run the command again."
        ) from error
    # The cache may be read-only.
    with contextlib.suppress(OSError):
        os.utime(path)
    return inventory


def list_chips(directory: Path, content: Mapping[str, Any], folds: int) -> Inventory:
    """Return the chips of an index, with the blocks in which they are held out together."""
    records, noun = content["chips"], content["noun"]
    sites, held_out = held_out_sites(records, folds)
    chips = []
    for record in records:
        georeference = georeference_from_json(record["georeference"])
        info = ImageInfo(
            directory / f"{record['id']}.tif", RGB, record["width"], record["height"],
            record["bands"], "uint8", georeference, is_stretched=True,
            stated_metres=tuple(record["metres"]) if record["metres"] else None,
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
        f"{counted(len(records), 'chip')}, {empty} of them without {noun}; the others show "
        f"{total} {noun}, counted once per chip"
    )
    return Inventory(
        chips=tuple(chips),
        faults=dict(content["faults"]),
        warnings=(),
        labels_without_image=tuple(map(Path, content["labels_without_image"])),
        long_ids={chip.image_id: chip.image_id for chip in chips},
        ignored=(),
        directories=(Path(content["labels"]),),
        label_names=names,
        notes=tuple(notes),
        duplicates=tuple(map(tuple, duplicates)),
    )
