"""Find the chips of a user's images and labels, from which satmap trains as usual.

The chips lie in a folder of the cache whose name is a hash of the inputs, so a second run finds
them again. Folders that were not used for a month are deleted when new chips are cut.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satmap.data.inventory import Inventory
from satmap.data.layouts.own_chips import INDEX, list_chips, read_chips
from satmap.data.own_cutting import cut_chips
from satmap.data.own_data import OwnData
from satmap.data.own_labels import find_label_files
from satmap.data.own_scenes import plan_masks, plan_vectors
from satmap.data.sources import Source, find_sources, state_of, states_of
from satmap.errors import SatmapError
from satmap.io.files import atomic_path

if TYPE_CHECKING:
    from satmap.tasks.base import Task

# Increase this number when the chips of the same inputs change.
_FORMAT = "4"
# Chips that were not used for so long are deleted.
_UNUSED_DAYS = 30


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
    index = directory / INDEX
    if not index.is_file():
        _remove_unused(cache)
        plan = (
            plan_vectors(data, images, vectors, task, channels)
            if vectors
            else plan_masks(data, images, masks, task, channels)
        )
        plan.faults.update(found.faults)
        content = cut_chips(plan, task, directory)
        content |= {
            "noun": f"{task.label_noun}s",
            "folds": task.recipe.folds, "labels": str(data.labels),
        }  # fmt: skip
        # The network may work again, so the next run tries again.
        if any("://" in name for name in plan.unread):
            return list_chips(directory, content, task.recipe.folds)
        with atomic_path(index) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
    return read_chips(directory, f"{task.label_noun}s", task.recipe.folds)


def _remove_unused(cache: Path) -> None:
    """Delete folders of chips that no command has used for a long time, or that are unfinished."""
    for directory in cache.glob("own-*"):
        # A folder whose index is missing was interrupted; chips are added while it is cut.
        newest = directory / INDEX if (directory / INDEX).is_file() else directory
        with contextlib.suppress(OSError):
            if time.time() - newest.stat().st_mtime > _UNUSED_DAYS * 86400:
                shutil.rmtree(directory)


def _digest(
    data: OwnData, images: Sequence[Source], labels: Sequence[Path], task: "Task", channels: int
) -> str:
    """Hash everything that the chips depend on; files by path, size and time."""
    parts: list[Any] = [_FORMAT, astuple(data), task.label_noun, channels]
    parts += [task.recipe.stretch, task.default_metres_per_pixel, *images]
    try:
        for image in images:
            parts += [] if image.is_remote else states_of(image)
        for path in (*labels, *filter(None, (data.area, data.ignored))):
            parts += state_of(path)
    except OSError as error:
        raise SatmapError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
