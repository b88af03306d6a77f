from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from forked_ranks import SERVER
from satmap.data.cache import prepare_chip
from satmap.data.crops import (
    CachedChip,
    Geometry,
    degrade,
    draw_geometry,
    jitter_colours,
    read_crop,
)
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.recipes.schema import Augmentation, StretchSettings, load_recipe
from satmap.tasks.base import task_of
from satmap.training.loading import CropDataset

TASK = task_of(load_recipe("demo"))


@pytest.fixture(scope="module")
def chips(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[CachedChip]]:
    cache = tmp_path_factory.mktemp("cache")
    found = scan_roads([city / "train"]).chips
    yield [prepare_chip(chip, cache, StretchSettings(), TASK) for chip in found]


def test_a_plain_crop_is_a_window(chips: list[CachedChip]) -> None:
    image, target = chips[0].read()
    crop, crop_target = read_crop(chips[0], Geometry((80.0, 70.0)), 64, 3)
    assert np.array_equal(crop.transpose(1, 2, 0), image[38:102, 48:112, :3])
    assert np.array_equal(crop_target, target[38:102, 48:112])


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_eight_symmetries_are_exact(
    chips: list[CachedChip], turns: int, mirrored: bool
) -> None:
    image, target = (a[48:112, 48:112] for a in chips[1].read())
    geometry = Geometry((80.0, 80.0), quarter_turns=turns, mirrored=mirrored)
    crop, crop_target = read_crop(chips[1], geometry, 64, 8)
    candidates = [
        (k, m, np.rot90(target[:, ::-1] if m else target, k)) for k in range(4) for m in (0, 1)
    ]
    matches = [(k, m) for k, m, turned in candidates if np.array_equal(turned, crop_target)]
    assert len(matches) == 1
    k, m = matches[0]
    assert bool(m) == mirrored
    # Image and target are transformed alike.
    assert np.array_equal(crop.transpose(1, 2, 0), np.rot90(image[:, ::-1] if m else image, k))


def test_eight_symmetries_are_eight(chips: list[CachedChip]) -> None:
    crops = {
        read_crop(chips[1], Geometry((80.0, 80.0), quarter_turns=k, mirrored=m), 64, 3)[0].tobytes()
        for k in range(4)
        for m in (False, True)
    }
    assert len(crops) == 8


def test_target_and_image_stay_aligned_under_any_rotation(chips: list[CachedChip]) -> None:
    geometry = Geometry((85.0, 75.0), scale=1.2, angle=17)
    image, target = chips[0].read()
    crop, crop_target = read_crop(chips[0], geometry, 96, 8)
    inverse = np.linalg.inv(np.vstack([geometry.to_chip(96), [0, 0, 1]]))
    ys, xs = np.nonzero(target > 0)
    back = inverse @ np.stack([xs, ys, np.ones_like(xs)])
    inside = ((back[:2] >= 1) & (back[:2] <= 94)).all(axis=0)
    columns, rows = np.rint(back[:2, inside]).astype(int)
    assert inside.sum() > 100
    assert (crop_target[rows, columns] > 0).mean() > 0.9
    difference = crop[:, rows, columns].T.astype(int) - image[ys[inside], xs[inside]]
    assert np.abs(difference).mean() < 25


def test_chips_smaller_than_the_crop_are_reflected(chips: list[CachedChip]) -> None:
    geometry = draw_geometry(np.random.default_rng(0), (160, 160), 224, None)
    crop, target = read_crop(chips[0], geometry, 224, 3)
    image, _ = chips[0].read()
    assert np.array_equal(crop[:, 32:192, 32:192].transpose(1, 2, 0), image[..., :3])
    assert np.array_equal(crop[:, 31, 32:192].T, image[0, :, :3])
    assert target.shape == (224, 224)


def test_random_geometry_respects_its_settings() -> None:
    random = np.random.default_rng(0)
    settings = Augmentation()
    drawn = [draw_geometry(random, (500, 700), 256, settings) for _ in range(2000)]
    x, y = np.array([g.centre for g in drawn]).T
    assert 128 - 51.2 <= x.min() < 100
    assert 600 < x.max() <= 572 + 51.2
    assert y.max() <= 372 + 51.2
    scales = np.array([g.scale for g in drawn])
    assert 0.8 <= scales.min() < 0.81 < 1.19 < scales.max() <= 1.2
    assert 0.05 < (scales == 1).mean() < 0.15
    assert 0.15 < np.mean([g.angle != 0 for g in drawn]) < 0.25
    assert {(g.quarter_turns, g.mirrored) for g in drawn} == {
        (k, m) for k in range(4) for m in (False, True)
    }


def test_recolour_changes_colours_and_nothing_else() -> None:
    image = np.random.default_rng(0).integers(0, 255, (8, 32, 32)).astype(np.uint8)
    for seed in range(20):
        changed = jitter_colours(np.random.default_rng(seed), image)
        assert changed.shape == image.shape
        # Every channel is mapped by one monotonic table.
        for channel in range(8):
            order = np.argsort(image[channel], axis=None, kind="stable")
            assert (np.diff(changed[channel].ravel()[order].astype(int)) >= 0).all()


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_degraded_images_show_the_same_with_other_sharpness(
    chips: list[CachedChip], channels: int
) -> None:
    image = chips[1].read()[0].transpose(2, 0, 1)[:channels].copy()
    before = image.copy()

    def sharpness(pixels: np.ndarray) -> float:
        return float(np.abs(np.diff(pixels.astype(int), axis=2)).mean())

    ratios = []
    for seed in range(60):
        changed = degrade(np.random.default_rng(seed), image)
        again = degrade(np.random.default_rng(seed), image)
        assert changed.shape == image.shape and changed.dtype == np.uint8
        assert np.array_equal(changed, again) and np.array_equal(image, before)
        # Neither moved nor recoloured: every channel resembles its original most.
        assert np.abs(changed.mean(axis=(1, 2)) - image.mean(axis=(1, 2))).max() < 6
        aligned = np.corrcoef(changed[0].ravel(), image[0].ravel())[0, 1]
        for moved in (np.roll(image[0], 2, axis=0), np.roll(image[0], 2, axis=1)):
            assert aligned > np.corrcoef(changed[0].ravel(), moved.ravel())[0, 1]
        ratios.append(sharpness(changed) / sharpness(image))
    assert min(ratios) < 0.7 and max(ratios) > 1.1


def test_only_some_crops_are_degraded(chips: list[CachedChip]) -> None:
    def crops(probability: float | None) -> torch.Tensor:
        settings = Augmentation(colour_jitter_probability=0, quality_probability=probability)
        dataset = CropDataset(chips, 64, 8, 10, settings, seed=5, task=TASK)
        return torch.stack([torch.as_tensor(dataset[i][0]["image"]) for i in range(len(dataset))])

    plain = crops(None)
    assert torch.equal(plain, crops(0.0))
    changed = (crops(0.5) != plain).flatten(1).any(dim=1).float().mean()
    assert 0.2 < changed < 0.7


def test_crops_do_not_depend_on_the_workers(chips: list[CachedChip]) -> None:
    def epoch(workers: int, number: int) -> torch.Tensor:
        dataset = CropDataset(chips, 64, 8, 2, Augmentation(), seed=5, task=TASK)
        dataset.epoch = number
        loader = DataLoader(
            dataset, 4, num_workers=workers, multiprocessing_context=SERVER if workers else None
        )
        return torch.cat([sample["image"] for sample, _ in loader])

    alone = epoch(0, 1)
    assert alone.shape == (12, 8, 64, 64)
    assert torch.equal(alone, epoch(2, 1))
    assert not torch.equal(alone, epoch(0, 2))
