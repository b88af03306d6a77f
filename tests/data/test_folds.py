from collections import Counter

import pytest

from satmap.data.chip import Chip
from satmap.data.folds import assign_folds, describe_folds, split_chips
from satmap.errors import SatmapError

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


# Area, scene and number of tiles.
SCENES = (("acc", "a", 50), ("acc", "b", 20), ("acc", "c", 20), ("dar", "d", 30), ("dar", "e", 31),
          ("kam", "f", 3), ("nia", "g", 25))  # fmt: skip
TILES = [Chip(f"{scene}-{n}", f"{scene}-{n}", aoi, {}, None, scene=scene)
         for aoi, scene, count in SCENES for n in range(count)]  # fmt: skip


def by_scene(folds: dict[str, int]) -> dict[str, list[int]]:
    """Return the number of tiles of each fold, by scene."""
    counts = Counter((chip.scene, folds[chip.image_id]) for chip in TILES if chip.image_id in folds)
    return {
        scene: [counts[scene, fold] for fold in range(max(folds.values()) + 1)]
        for _, scene, _ in SCENES
    }


def test_folds_by_tile_are_stratified_by_scene() -> None:
    folds = split_chips(TILES, "tile", 5, 0)
    for scene, counts in by_scene(folds).items():
        # Scenes with fewer tiles than folds are left out.
        assert sum(counts) == 0 if scene == "f" else max(counts) - min(counts) <= 1
    assert "in no fold: 3 chips" in describe_folds(TILES, folds)
    with pytest.raises(SatmapError, match="fewer than folds = 60 tiles"):
        split_chips(TILES, "tile", 60, 0)


def test_folds_by_scene_and_by_area_hold_out_whole_ones() -> None:
    folds = split_chips(TILES, "scene", 3, 0)
    assert all(sorted(counts)[:2] == [0, 0] for counts in by_scene(folds).values())
    # The scenes of an area are in different folds, and folds have similar sizes.
    assert len({folds[f"{scene}-0"] for scene in "abc"}) == 3
    assert folds["d-0"] != folds["e-0"]
    sizes = Counter(folds.values())
    assert len(folds) == len(TILES)
    assert max(sizes.values()) <= 1.6 * min(sizes.values())
    folds = split_chips(TILES, "area", 3, 0)
    assert len({folds[f"{scene}-0"] for scene in "abc"}) == 1
    assert set(Counter(folds.values()).values()) == {90, 61, 28}
    with pytest.raises(SatmapError, match=r"as many areas, but the images show 4: acc, dar"):
        split_chips(TILES, "area", 5, 0)


def test_near_duplicates_join_scenes() -> None:
    folds = split_chips(TILES, "scene", 3, 0, [["a-1", "b-2"], ["g-1", "b-3"]])
    assert len({folds[f"{scene}-0"] for scene in "abg"}) == 1


def test_without_unit_folds_are_those_of_sites() -> None:
    expected = assign_folds([(chip.site, chip.aoi) for chip in TILES], 4, 0)
    assert split_chips(TILES, None, 4, 0) == expected
