"""Unlabelled images of challenges and of any rasters, as training chips."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from repository import SHARED
from satmap.data.cache import prepare_chips
from satmap.data.crops import CachedChip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.data.unlabelled import find_unlabelled
from satmap.errors import SatmapError
from satmap.recipes.schema import TileSettings, load_recipe
from satmap.tasks.base import task_of
from satmap.tasks.dense import DenseTask
from satmap.tasks.losses import IGNORED_BIT


def dense(recipe: str) -> DenseTask:
    task = task_of(load_recipe(recipe))
    assert isinstance(task, DenseTask)
    return task


def labelled(city: Path, cache: Path) -> tuple[CachedChip, ...]:
    recipe = load_recipe("small-roads")
    found = scan_roads([city / "train"]).chips
    return prepare_chips(found, 3, cache, recipe.stretch, task_of(recipe)).chips


def test_images_of_a_challenge(city: Path, tmp_path: Path) -> None:
    task = dense("small-roads")
    known = labelled(city, tmp_path)
    # Labels beside the images are not read.
    alone = find_unlabelled([city / "train"], task, 3, tmp_path, [])
    assert [chip.image_id for chip in alone.chips] == [chip.image_id for chip in known]
    assert not alone.tests
    for chip, other in zip(alone.chips, known, strict=True):
        assert not chip.is_labelled
        image, target = chip.read()
        assert np.array_equal(image, other.read()[0])
        assert (target == IGNORED_BIT).all()
    # Both together: only the images without label are left.
    found = find_unlabelled([city], task, 3, tmp_path, known)
    assert len(found.chips) == len(found.tests) == 2
    assert found.of_round(test_images=False) == ()
    assert found.of_round(test_images=True) == found.chips
    with pytest.raises(SatmapError, match="all images there are among the labelled ones"):
        find_unlabelled([city / "train"], task, 3, tmp_path, known)
    # Buildings have another target.
    (bytes_per_pixel,) = {
        chip.read()[1].shape[2:]
        for chip in find_unlabelled(
            [city / "test"], dense("small-buildings"), 3, tmp_path, []
        ).chips
    }
    assert bytes_per_pixel == (2,)


def write(path: Path, pixels: np.ndarray, metres: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = Affine(metres, 0, 500_000, 0, -metres, 5_000_000)
    profile = {"width": pixels.shape[2], "height": pixels.shape[1], "count": len(pixels)}
    with rasterio.open(
        path, "w", "GTiff", dtype="uint8", crs="EPSG:32631", transform=transform, **profile
    ) as file:
        file.write(pixels)


def test_scenes_that_a_recipe_cuts_are_not_read_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(1, 255, (3, 700, 900), np.uint8)
    write(tmp_path / "train_tier_2/acc/0a2b/0a2b.tif", noise)
    recipe = load_recipe("small-buildings").model_copy(update={"tiles": TileSettings(gsd=0.3)})
    task = task_of(recipe)
    assert isinstance(task, DenseTask)
    found = find_unlabelled([tmp_path / "train_tier_2"], task, 3, tmp_path / "cache", [])
    assert max(max(chip.shape[:2]) for chip in found.chips) == 512


def test_any_rasters_have_the_pixel_size_of_the_labelled_chips(city: Path, tmp_path: Path) -> None:
    task, cache = dense("small-roads"), tmp_path / "cache"
    known = labelled(city, cache)
    gsd = float(np.mean([chip.gsd_m for chip in known if chip.gsd_m]))
    noise = np.random.default_rng(0).integers(1, 255, (3, 700, 900), np.uint8)
    # The last column of blocks is black.
    noise[:, :, 600:] = 0
    write(tmp_path / "images/town.tif", noise, gsd / 2)
    (tmp_path / "images/broken.tif").write_bytes(b"II*\0 broken")
    write(tmp_path / "images/grey.tif", noise[:2])
    write(tmp_path / "images/latest/more.tif", noise[:, :300, :300], gsd)
    found = find_unlabelled([tmp_path / "images"], task, 3, cache, known)
    assert {Path(name).name for name in found.faults} == {"broken.tif", "grey.tif"}
    shapes = {chip.image_id: chip.shape for chip in found.chips}
    assert shapes.keys() == {"town_0_0_0", "more_0_0_0"}
    # Half the size, up to a pixel at the edge.
    assert shapes["town_0_0_0"] == pytest.approx((350, 450, 3), abs=1)
    assert shapes["more_0_0_0"] == (300, 300, 3)
    # "latest" does not hold the word test.
    assert not found.tests
    (town,) = (chip for chip in found.chips if chip.aoi == "town")
    image, target = town.read()
    assert image[:348, :298].any(axis=2).all() and not image[:, 302:].any()
    assert (target == IGNORED_BIT).all()
    # The second time everything is in the cache.
    before = town.path.stat().st_mtime_ns
    assert find_unlabelled([tmp_path / "images"], task, 3, cache, known) == found
    assert town.path.stat().st_mtime_ns == before


def test_test_images_and_equal_names(tmp_path: Path) -> None:
    task, cache = dense("small-roads"), tmp_path / "cache"
    pixels = np.random.default_rng(0).integers(1, 255, (3, 64, 64), np.uint8)
    for place in ("one", "two/contest", "three/Test_public", "AOI_7_test"):
        write(tmp_path / place / "a.tif", pixels)
    places = [tmp_path / name for name in ("one", "two", "three", "AOI_7_test")]
    found = find_unlabelled(places, task, 3, cache, [])
    names = [chip.image_id for chip in found.chips]
    assert names == ["a_0_0_0", "two-a_0_0_0", "three-a_0_0_0", "AOI_7_test-a_0_0_0"]
    assert found.tests == set(names[2:])
    write(tmp_path / "one/b.tif", pixels[:, ::-1])
    shutil.copy(tmp_path / "one/b.tif", tmp_path / "AOI_7_test/copy.tif")
    # Neither the labelled raster nor its copy is used.
    left = find_unlabelled(places, task, 3, cache, [], [tmp_path / "one/b.tif"])
    assert [chip.image_id for chip in left.chips] == names
    assert left.summary() == (
        "4 unlabelled chips, 2 of them of test images; 2 images left out that are labelled"
    )


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "images/a.tif", np.full((3, 64, 64), 9, np.uint8))
    with pytest.raises(SatmapError, match="a head for each view angle"):
        find_unlabelled([tmp_path / "images"], dense("sn4-buildings"), 3, tmp_path, [])
    write(tmp_path / "black/a.tif", np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(SatmapError, match="no image that can be used"):
        find_unlabelled([tmp_path / "black"], dense("small-roads"), 3, tmp_path, [])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real data")
def test_real_drone_images(tmp_path: Path) -> None:
    for image in sorted((SHARED / "data/open_cities/test").rglob("*.tif"))[:2]:
        shutil.copy(image, tmp_path / image.name)
    task = dense("small-buildings")
    found = find_unlabelled([tmp_path], task, 3, tmp_path / "cache", [])
    # Chips of the challenge stay whole.
    assert [chip.shape[:2] for chip in found.chips] == [(1024, 1024)] * 2 and not found.faults
    assert all(chip.read_image(3, slice(None), slice(None)).any() for chip in found.chips)
