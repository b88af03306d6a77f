"""Cross-validation folds, stratified by area of interest and the same on every machine."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence


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
            first, each to the fold with the fewest chips of the group's most common area.

    Returns:
        Fold by image id, 0..folds-1.
    """
    areas: dict[str, list[str]] = defaultdict(list)
    for image_id, aoi in chips:
        areas[aoi].append(image_id)

    def order(image_id: str) -> bytes:
        return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()

    area = {image_id: aoi for aoi, ids in areas.items() for image_id in ids}
    fold: dict[str, int] = {}
    sizes: Counter[tuple[str, int]] = Counter()
    known = [[image_id for image_id in group if image_id in area] for group in groups]
    for group in sorted((g for g in known if g), key=lambda g: (-len(g), order(min(g)))):
        main_area = Counter(area[image_id] for image_id in group).most_common(1)[0][0]
        least = min(range(folds), key=lambda number: sizes[main_area, number])
        for image_id in group:
            fold[image_id] = least
            sizes[area[image_id], least] += 1
    if fold:
        # Chips without a group even out the fold sizes.
        for aoi in sorted(areas):
            for image_id in sorted(areas[aoi], key=order):
                if image_id not in fold:
                    least = min(range(folds), key=lambda number: sizes[aoi, number])
                    fold[image_id] = least
                    sizes[aoi, least] += 1
        return fold
    dealt = [image_id for aoi in sorted(areas) for image_id in sorted(areas[aoi], key=order)]
    return {image_id: position % folds for position, image_id in enumerate(dealt)}
