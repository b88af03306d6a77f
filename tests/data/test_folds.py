from collections import Counter

import pytest

from satmap.data.folds import assign_folds

CHIPS = [(f"AOI_{a}_City_chip{n}", f"AOI_{a}_City") for a, count in ((7, 50), (8, 21), (9, 3))
         for n in range(count)]  # fmt: skip


@pytest.mark.parametrize("folds", [2, 4, 5])
def test_every_area_is_spread_evenly(folds: int) -> None:
    assigned = assign_folds(CHIPS, folds, seed=0)
    assert len(assigned) == len(CHIPS)
    for area in ("AOI_7_City", "AOI_8_City", "AOI_9_City"):
        counts = Counter(assigned[image_id] for image_id, aoi in CHIPS if aoi == area)
        sizes = [counts[fold] for fold in range(folds)]
        assert max(sizes) - min(sizes) <= 1
    totals = Counter(assigned.values())
    assert max(totals.values()) - min(totals.values()) <= 1


def test_folds_depend_on_the_seed_but_not_on_the_order() -> None:
    assert assign_folds(CHIPS[::-1], 4, seed=0) == assign_folds(CHIPS, 4, seed=0)
    assert assign_folds(CHIPS, 4, seed=1) != assign_folds(CHIPS, 4, seed=0)


def test_known_value() -> None:
    # Weight files depend on the folds, so folds must not change between versions.
    assigned = assign_folds([(f"AOI_1_A_chip{n}", "AOI_1_A") for n in range(6)], 2, seed=0)
    assert [assigned[f"AOI_1_A_chip{n}"] for n in range(6)] == [1, 0, 1, 0, 0, 1]
