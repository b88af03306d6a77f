"""Cross-validation folds, stratified by area of interest and the same on every machine."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from satmap.errors import SatmapError
from satmap.io.files import refuse_pipe
from satmap.io.text import counted, listing

if TYPE_CHECKING:
    from satmap.data.chip import Chip
    from satmap.data.crops import CachedChip


def assign_folds(
    chips: Iterable[tuple[str, str]],
    folds: int,
    seed: int,
    groups: Iterable[Sequence[str]] = (),
) -> dict[str, int]:
    """Assign a fold to every chip, stratified by area.

    The chips of an area are sorted by a hash of seed and id, then assigned to the folds in turn.
    Fold sizes therefore differ by at most one per area, and the order in which files are found
    does not matter. Each area continues at the fold where the one before stopped, which balances
    many small areas.

    Args:
        chips: (image id, area) pairs.
        folds: number of folds.
        seed: seed of the split.
        groups: image ids that must share a fold, such as near-duplicates (satmap.data.audit);
            otherwise validation would measure memorised images. The largest groups are assigned
            first, each to the fold with the fewest chips of the group's most common area, and of
            these to the fold with the fewest chips.

    Returns:
        Fold by image id, 0..folds-1.
    """
    areas: dict[str, list[str]] = defaultdict(list)
    for image_id, aoi in chips:
        areas[aoi].append(image_id)

    def order(image_id: str) -> bytes:
        return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()

    area = {image_id: aoi for aoi, ids in areas.items() for image_id in ids}
    dealt = [image_id for aoi in sorted(areas) for image_id in sorted(areas[aoi], key=order)]
    known = [[image_id for image_id in group if image_id in area] for group in groups]
    if not any(known):
        return {image_id: position % folds for position, image_id in enumerate(dealt)}
    fold: dict[str, int] = {}
    sizes: Counter[tuple[str, int]] = Counter()
    totals: Counter[int] = Counter()

    def assign(ids: Sequence[str], aoi: str) -> None:
        least = min(range(folds), key=lambda number: (sizes[aoi, number], totals[number]))
        for image_id in ids:
            fold[image_id] = least
            sizes[area[image_id], least] += 1
        totals[least] += len(ids)

    for group in sorted((g for g in known if g), key=lambda g: (-len(g), order(min(g)))):
        assign(group, Counter(area[image_id] for image_id in group).most_common(1)[0][0])
    # Chips without a group even out the fold sizes.
    for image_id in dealt:
        if image_id not in fold:
            assign([image_id], area[image_id])
    return fold


def split_chips(
    chips: "Sequence[Chip] | Sequence[CachedChip]",
    by: str | None,
    folds: int,
    seed: int,
    groups: Iterable[Sequence[str]] = (),
) -> dict[str, int]:
    """Assign chips to folds by what a fold holds out as a whole.

    - ``None``: sites (:attr:`satmap.data.chip.Chip.site`), stratified by area;
    - ``tile``: sites, stratified by scene and area, as the second place of Open Cities did. Scenes
      with fewer sites than folds are left out. Tiles of one scene are in training and validation,
      so scores are too high;
    - ``scene``: whole scenes, stratified by area;
    - ``area``: whole areas.

    Args:
        chips: the chips.
        by: see above.
        folds: number of folds.
        seed: seed of the split.
        groups: sites that must share a fold, as in :func:`assign_folds`.

    Returns:
        Fold by image id. Chips that are left out are missing.

    Raises:
        SatmapError: there are fewer scenes or areas than folds, or all scenes are left out.
    """
    scene_of = {chip.site: f"{chip.aoi} {chip.scene or chip.site}" for chip in chips}
    area_of = {chip.site: chip.aoi for chip in chips}
    if by == "tile":
        sizes = Counter(scene_of.values())
        strata = {site: scene for site, scene in scene_of.items() if sizes[scene] >= folds}
        if not strata:
            raise SatmapError(
                f"folds_by: tile leaves out scenes with fewer than folds = {folds} tiles, and no "
                "scene has more. Use folds_by: scene, or fewer folds."
            )
    else:
        strata = dict.fromkeys(area_of, "") if by == "area" else area_of
    if by in ("scene", "area"):
        units: dict[str, list[str]] = defaultdict(list)
        for site, unit in (scene_of if by == "scene" else area_of).items():
            units[unit].append(site)
        if len(units) < folds:
            raise SatmapError(
                f"folds_by: {by} with folds = {folds} needs as many {by}s, but the images show "
                f"{len(units)}: {listing(sorted(units))}. Use fewer folds, or folds_by: tile."
            )
        groups = merge_groups([*units.values(), *groups])
    assigned = assign_folds(strata.items(), folds, seed, groups)
    return {chip.image_id: assigned[chip.site] for chip in chips if chip.site in assigned}


def describe_folds(chips: Sequence["Chip"], folds: Mapping[str, int]) -> str:
    """Return one line per fold with its numbers of chips and scenes, and its areas."""
    members: dict[int, list[Chip]] = defaultdict(list)
    for chip in chips:
        if chip.image_id in folds:
            members[folds[chip.image_id]].append(chip)
    lines = []
    for fold, held_out in sorted(members.items()):
        scenes = {(chip.aoi, chip.scene) for chip in held_out if chip.scene}
        areas = Counter(chip.aoi for chip in held_out)
        shares = ", ".join(f"{aoi} {count}" for aoi, count in sorted(areas.items()))
        of_scenes = f" of {counted(len(scenes), 'scene')}" if scenes else ""
        lines.append(f"fold {fold}: {counted(len(held_out), 'chip')}{of_scenes} ({shares})")
    if left_out := len(chips) - sum(map(len, members.values())):
        lines.append(f"in no fold: {counted(left_out, 'chip')} of scenes with too few tiles")
    return "\n".join(lines)


def duplicate_groups(path: Path, chips: Sequence["Chip"]) -> list[list[str]]:
    """Return groups of sites that must share a fold because their chips are near-duplicates.

    The report of ``satmap audit --json`` may name an image of any product; images of other chips
    are ignored. A group has two or more sites, and no site is in two groups.

    Raises:
        SatmapError: the report cannot be read, or names none of the chips' images.
    """
    groups = read_groups(path)
    site_of = {image.path.resolve(): chip.site for chip in chips for image in chip.images.values()}
    known = [
        [site for file in group if (site := site_of.get(file)) is not None] for group in groups
    ]
    if groups and chips and not any(known):
        raise SatmapError(
            f"{path} names none of the images. It names, for example, {groups[0][0]}; an image "
            f"found here is {chips[0].image.path}. Write the report for the directories "
            f"that you train with: `satmap audit DIR... --json > {path.name}`."
        )
    # Two images of one site may be in two groups.
    return merge_groups(known)


def merge_groups(groups: Iterable[Iterable[str]]) -> list[list[str]]:
    """Merge groups that share a member; return those with two or more members, sorted."""
    group_of: dict[str, set[str]] = {}
    for group in groups:
        joined = set(group).union(*(group_of.get(member, ()) for member in group))
        group_of.update(dict.fromkeys(joined, joined))
    several = {id(group): group for group in group_of.values() if len(group) > 1}
    return [sorted(group) for group in several.values()]


def read_groups(path: Path) -> list[list[Path]]:
    """Read the groups of near-duplicates from a report of ``satmap audit --json``.

    Raises:
        SatmapError: the file cannot be read, or is not such a report.
    """
    refuse_pipe(path)
    try:
        groups = json.loads(path.read_bytes())["groups"]
        if not all(isinstance(name, str) for group in groups for name in group):
            raise TypeError("a group holds values that are not paths")
        # Invalid paths and circular links raise an error here.
        return [[Path(name).resolve() for name in group] for group in groups if group]
    except OSError as error:
        raise SatmapError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise SatmapError(
            f"{path}: not a report of near-duplicates ({type(error).__name__}: {error}). Write one "
            "with `satmap audit DIR... --json > audit.json`."
        ) from error
