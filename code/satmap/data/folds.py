"""Folds: every area's chips spread evenly, the same on every machine."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable


def assign_folds(chips: Iterable[tuple[str, str]], folds: int, seed: int) -> dict[str, int]:
    """Give every chip a fold, stratified by area.

    Chips of an area are put in the order of a hash of seed and id, then dealt out in turn, so that
    fold sizes differ by at most one an area and the order in which files are found is of no
    consequence. Areas start dealing where the one before stopped, which balances many small areas.

    Args:
        chips: (image id, area) pairs.
        folds: number of folds.
        seed: another seed gives another split.

    Returns:
        image id -> fold, 0..folds-1.
    """
    areas: dict[str, list[str]] = defaultdict(list)
    for image_id, aoi in chips:
        areas[aoi].append(image_id)

    def order(image_id: str) -> bytes:
        return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()

    dealt = [image_id for aoi in sorted(areas) for image_id in sorted(areas[aoi], key=order)]
    return {image_id: position % folds for position, image_id in enumerate(dealt)}
