"""Layout of the Open Cities AI challenge: drone scenes with labels, and test chips.

The labels of ``train_tier_1/{area}/{id}/{id}.tif`` are ``{id}-labels/{id}.geojson`` beside its
folder. The later release has ``..._source_{area}_{id}/image.tif`` and
``..._labels_{area}_{id}/labels.geojson``. Test chips are ``{id}/{id}.tif``, or lie in one folder;
their ids have six hexadecimal digits. STAC catalogs, where there are any, say which files belong to
which scene. They are read as plain JSON. Everything else is found by its name.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satmap.data.chip import Chip
from satmap.data.imagery import RGB, read_infos
from satmap.data.inventory import Inventory
from satmap.errors import SatmapError
from satmap.io.text import natural_key, printable

#: Example of the names that satmap expects, for messages.
EXPECTED_SCENE = "train_tier_1/acc/665946/665946.tif"

_IMAGE_SUFFIXES = (".tif", ".tiff")
# Results and truth have the names of the test chips, with a suffix in capitals.
_RESULT_SUFFIX = ".TIF"
_LABEL_SUFFIX = ".geojson"
_CATALOGS = ("catalog.json", "collection.json")
_LABELS = "-labels"

_TIER = re.compile(r"train_tier_\d+", re.I)
# open_cities_ai_challenge_train_tier_1_source_acc_665946
_LATER = re.compile(r".*_(?P<kind>source|labels)_(?P<area>[^_]+)_(?P<id>.+)", re.I)
_TEST_CHIP = re.compile(r"[0-9a-f]{6}", re.I)


@dataclass(frozen=True)
class _Name:
    """What a file or a catalog item is: labels or an image of a scene or test chip."""

    image_id: str
    area: str
    is_label: bool


@dataclass
class _Catalogs:
    """Content of all STAC catalogs.

    Attributes:
        files: what each image and label file is, by its path.
        missing: what the catalogs list but the directories do not hold, with a message.
        warnings: catalogs and items that cannot be read.
        count: number of catalogs with items.
    """

    files: dict[Path, _Name] = field(default_factory=dict)
    missing: list[tuple[_Name, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    count: int = 0


def is_open_cities(path: Path) -> bool:
    """Return whether a file has the name of an image of this challenge."""
    name = _name_of(path)
    return name is not None and not name.is_label


def scan_open_cities(directories: Sequence[Path], files: Sequence[Path]) -> Inventory:
    """Find scenes and test chips among the files in the directories and read their headers.

    A scene is one chip of any size; :func:`satmap.data.scenes.cut_scenes` cuts it. Items of a
    catalog that are missing are faults, or warnings if their files are found without them.

    Raises:
        SatmapError: two images have the same id, or two label files belong to the same scene.
    """
    known = [_absolute(path) for path in files]
    catalogs = _read_catalogs(known)
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    areas: dict[str, str] = {}
    ignored: list[Path] = []
    for path in known:
        name = catalogs.files.get(path) or _name_of(path)
        if name is None:
            if path.suffix.lower() in _IMAGE_SUFFIXES:
                ignored.append(path)
            continue
        of_kind = labels if name.is_label else images
        other = of_kind.setdefault(name.image_id, path)
        if other != path:
            kind = "label files" if name.is_label else "images"
            raise SatmapError(
                f"two {kind} have the id {name.image_id}:\n  {other}\n  {path}\n"
                "Give directories that hold each scene only once."
            )
        if not name.is_label:
            areas[name.image_id] = name.area
    faults, warnings = _missing(catalogs, images, labels)
    chips = []
    for image_id in sorted(images, key=natural_key):
        if image_id in faults:
            continue
        infos, wrong = read_infos({RGB: images[image_id]})
        if not infos:
            faults[image_id] = " ".join(wrong)
            continue
        label = labels.get(image_id)
        is_scene = label is not None or infos[RGB].georeference is not None
        scene = image_id if is_scene else ""
        chips.append(Chip(image_id, image_id, areas[image_id], infos, label, scene=scene))
    return Inventory(
        chips=tuple(chips),
        faults=faults,
        warnings=tuple(warnings),
        labels_without_image=tuple(
            path for image_id, path in labels.items() if image_id not in images
        ),
        long_ids={image_id: image_id for image_id in sorted(images, key=natural_key)},
        ignored=tuple(ignored),
        directories=tuple(directories),
        label_names={chip.image_id: _label_names(chip) for chip in chips if chip.label is None},
        notes=(
            (f"STAC catalogs: {catalogs.count}",)
            if catalogs.count
            else ("no STAC catalog; images and labels are found by their names",)
        ),
    )


def _missing(
    catalogs: _Catalogs, images: Mapping[str, Path], labels: Mapping[str, Path]
) -> tuple[dict[str, str], list[str]]:
    """Return faults by image id, and warnings, about missing files that catalogs list."""
    faults: dict[str, str] = {}
    warnings = list(catalogs.warnings)
    for name, message in catalogs.missing:
        found = labels if name.is_label else images
        if name.image_id in found:
            warnings.append(f"{message}. The file was found by its name.")
        elif name.image_id in faults:
            faults[name.image_id] += f" {message}."
        else:
            faults[name.image_id] = f"{name.image_id}: {message}."
    return faults, warnings


def _label_names(chip: Chip) -> list[str]:
    name = chip.image_id
    return [
        f"{name}{_LABELS}/{name}{_LABEL_SUFFIX}",
        f"open_cities_ai_challenge_train_tier_1_labels_{chip.aoi}_{name}/labels{_LABEL_SUFFIX}",
    ]


def _absolute(path: Path) -> Path:
    """Return the absolute path without ``..``. Symbolic links stay, as in the list of files."""
    return Path(os.path.normpath(path.absolute()))


# Names


def _name_of(path: Path) -> _Name | None:
    """Return what a file is by its name and folders; None for other files."""
    path = _absolute(path)
    suffix, stem, folder = path.suffix.lower(), path.stem, path.parent
    if path.suffix == _RESULT_SUFFIX:
        return None
    if suffix in _IMAGE_SUFFIXES:
        if stem.lower() == "image":
            later = _LATER.fullmatch(folder.name)
            if later and later["kind"].lower() == "source":
                return _Name(later["id"], later["area"], is_label=False)
            return None
        if stem == folder.name:
            if _TEST_CHIP.fullmatch(stem) or _is_in_tier(path) or _is_beside_labels(folder):
                return _Name(stem, folder.parent.name, is_label=False)
            return None
        if _TEST_CHIP.fullmatch(stem) or _is_in_tier(path):
            return _Name(stem, folder.name, is_label=False)
    elif suffix == _LABEL_SUFFIX:
        later = _LATER.fullmatch(folder.name)
        if later and later["kind"].lower() == "labels":
            return _Name(later["id"], later["area"], is_label=True)
        name = stem.removesuffix(_LABELS)
        if folder.name in (f"{name}{_LABELS}", name):
            return _Name(name, folder.parent.name, is_label=True)
        if _TEST_CHIP.fullmatch(name) or _is_in_tier(path):
            return _Name(name, folder.name, is_label=True)
    return None


def _is_in_tier(path: Path) -> bool:
    return any(_TIER.fullmatch(part) for part in path.parts)


def _is_beside_labels(folder: Path) -> bool:
    return folder.with_name(f"{folder.name}{_LABELS}").is_dir()


# Catalogs


def _read_catalogs(files: Iterable[Path]) -> _Catalogs:
    """Read all catalogs among the files. Files outside the directories count as missing."""
    known = dict.fromkeys(files)
    found = _Catalogs()
    for path in known:
        if path.name.lower() not in _CATALOGS:
            continue
        content = _read_json(path, found)
        items = 0
        for relation, target in _links(content, path):
            if relation == "item":
                items += 1
                _read_item(target, path, content, known, found)
            elif relation == "child" and target not in known:
                found.warnings.append(f"{path} lists {target}, which is missing")
        found.count += items > 0
    return found


def _read_item(
    path: Path,
    collection: Path,
    content: Mapping[str, Any],
    known: Mapping[Path, None],
    found: _Catalogs,
) -> None:
    """Add the files of an item that a collection lists."""
    area = str(content.get("id") or collection.parent.name)
    if path not in known:
        name = _item_name(path.parent.name, area)
        found.missing.append((name, f"{collection} lists {path}, which is missing"))
        return
    item = _read_json(path, found)
    if not item:
        return
    name = _item_name(str(item.get("id") or path.parent.name), str(item.get("collection") or area))
    assets = item.get("assets")
    for asset in assets.values() if isinstance(assets, dict) else ():
        target = _reference(asset, path)
        if target is None:
            continue
        suffix = target.suffix.lower()
        if suffix not in (*_IMAGE_SUFFIXES, _LABEL_SUFFIX):
            continue
        of_file = _Name(name.image_id, name.area, suffix == _LABEL_SUFFIX)
        if target in known:
            found.files[target] = of_file
        else:
            found.missing.append((of_file, f"{path} lists {target}, which is missing"))


def _item_name(item_id: str, area: str) -> _Name:
    """Return what an item is: its id may be ``{id}``, ``{id}-labels``, or a later release's."""
    later = _LATER.fullmatch(item_id)
    if later:
        return _Name(later["id"], later["area"], later["kind"].lower() == "labels")
    return _Name(item_id.removesuffix(_LABELS), area, item_id.endswith(_LABELS))


def _read_json(path: Path, found: _Catalogs) -> Mapping[str, Any]:
    """Read a JSON object; if that fails, it is empty and there is a warning."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        found.warnings.append(
            f"{path} cannot be read ({printable(error, 200)}); its files are found by their names"
        )
        return {}
    return content


def _links(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Path]]:
    """Yield relation and target of each link in a catalog that names a file."""
    links = content.get("links")
    for link in links if isinstance(links, list) else ():
        target = _reference(link, path)
        if target is not None:
            yield str(link.get("rel")), target


def _reference(entry: Any, path: Path) -> Path | None:
    """Return the file that a link or asset names; None for addresses and malformed entries."""
    href = entry.get("href") if isinstance(entry, dict) else None
    if not isinstance(href, str) or not href or "://" in href or "\0" in href:
        return None
    return _absolute(path.parent / href)
