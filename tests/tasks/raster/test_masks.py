"""Masks as results: joining blocks, outlines in strips, targets, the journal."""

from pathlib import Path

import numpy as np
import pytest
import shapely

from satmap.prediction.journal import Journal
from satmap.rasters.scene import Box
from satmap.recipes.schema import build_recipe
from satmap.submissions import mask_rasters
from satmap.tasks.base import task_of
from satmap.tasks.buildings.targets import BODY_BIT, BORDER_BIT, CONTACT_BIT
from satmap.tasks.raster import masks
from satmap.tasks.raster.masks import ImageMask, Mask, join_masks, outlines_of
from satmap.tasks.raster.task import RasterTask


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height // 8 + 1, width // 8 + 1)) < 0.45
    return np.kron(noise, np.ones((8, 8), np.bool_))[:height, :width]


def mask_of(pixels: np.ndarray) -> Mask:
    return Mask.of(pixels.__getitem__, (pixels.shape[0], pixels.shape[1]))


def task(*maps: str) -> RasterTask:
    losses = {name: {"bce": 1} for name in ("building", *maps)}
    stage = {"crop": 64, "batch": 1, "epochs": 1, "schedule": {"kind": "cosine", "peak": 1e-3}}
    member = {"fold": 0, "encoder": "resnet18", "losses": losses, "stages": [stage]}
    content = {"name": "t", "description": "", "task": "raster", "folds": 2, "members": [member]}
    made = task_of(build_recipe(content))
    assert isinstance(made, RasterTask)
    return made


def test_blocks_join_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Strips that end within blocks.
    monkeypatch.setattr(mask_rasters, "_PIECE_PIXELS", 1)
    monkeypatch.setattr(mask_rasters, "_WRITTEN_ROWS", 11)
    whole = blobs(70, 90)
    boxes = Box(0, 0, 90, 70).tiles(40, 32)
    blocks = [(box, mask_of(whole[box.pixels])) for box in boxes]
    joined = join_masks((70, 90), blocks[::-1], None)
    assert np.array_equal(joined.pixels(), whole)
    assert (joined.count, joined.shape) == (whole.sum(), (70, 90))
    # Of a block that failed, nothing is known.
    joined = join_masks((70, 90), blocks[1:], None)
    whole[boxes[0].pixels] = False
    assert np.array_equal(joined.pixels(), whole)
    assert join_masks((1, 1), [], None).count == 0


def test_outlines_do_not_depend_on_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = blobs(100, 80, 3)
    mask = mask_of(pixels)
    whole = outlines_of(mask, 0)
    assert shapely.area(whole).sum() == pixels.sum()
    assert shapely.is_valid(whole).all()
    monkeypatch.setattr(masks, "_TRACED_PIXELS", 1)
    monkeypatch.setattr(masks, "_TRACED_ROWS", 13)
    strips = outlines_of(mask, 0)
    assert len(strips) == len(whole) > 5
    assert all(one.equals(other) for one, other in zip(whole, strips, strict=True))
    assert len(outlines_of(Mask.empty((30, 20)), 1)) == 0


def test_the_journal_restores_masks_exactly(tmp_path: Path) -> None:
    record = ImageMask("chip", mask_of(blobs(30, 20)))
    with Journal(tmp_path / "out.zip", "settings", task()) as journal:
        journal.add("key", record)
    with (tmp_path / ".out.zip.partial").open("a") as file:
        file.write('["other", ["chip", [3, 4], 1, "no base64", null]]\n')
    with Journal(tmp_path / "out.zip", "settings", task()) as journal:
        assert list(journal.finished) == ["key"]
        assert journal.found("key") == record


def test_targets_have_only_the_maps_of_the_losses() -> None:
    houses = np.array([shapely.box(2, 2, 20, 20), shapely.box(24, 2, 40, 20)], np.object_)
    plain = task()._draw_target(houses, (32, 48))
    assert set(np.unique(plain)) == {0, BODY_BIT}
    assert (plain & BODY_BIT).sum() == shapely.area(houses).sum()
    everything = task("border", "contact")._draw_target(houses, (32, 48))
    assert set(np.unique(everything)) == {0, BODY_BIT, BODY_BIT | BORDER_BIT, CONTACT_BIT}
    assert ((everything & CONTACT_BIT) > 0)[10, 20:24].all()
    assert task().label_fingerprint != task("border").label_fingerprint
