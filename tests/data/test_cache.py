import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from default_tasks import road_task
from satmap.data.cache import prepare_chip, prepare_chips
from satmap.data.chip import Chip
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import CannotWriteError, SatmapError
from satmap.recipes.schema import StretchSettings
from satmap.tasks.roads.settings import TargetSettings
from satmap.tasks.roads.task import RoadTask
from synthetic_images import write_image, write_labels

STRETCH, TASK = StretchSettings(), road_task()
LINE = [(5.0, 5.0), (100.0, 80.0)]


@pytest.fixture
def chip(tmp_path: Path) -> Chip:
    write_image(tmp_path / "data/SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif")
    write_labels(tmp_path / "data/AOI_7_Moscow_chip1.geojson", [LINE])
    return scan_roads([tmp_path / "data"]).chips[0]


def written(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_windows_equal_the_whole(tmp_path: Path, chip: Chip) -> None:
    cached = prepare_chip(chip, tmp_path / "cache", STRETCH, TASK)
    image, target = cached.read()
    assert image.shape == cached.shape == (96, 128, 3)
    assert target.shape == (96, 128)
    assert target.any()
    part, part_target = cached.read_channels(3, slice(10, 40), slice(20, 90))
    assert np.array_equal(part.transpose(1, 2, 0), image[10:40, 20:90])
    assert np.array_equal(part_target, target[10:40, 20:90])
    assert cached.payload[0].line == pytest.approx(np.array(LINE), abs=1e-4)
    assert cached.payload[0].speed_mph == 25


def test_rebuilt_only_when_inputs_or_settings_change(tmp_path: Path, chip: Chip) -> None:
    cache = tmp_path / "cache"

    def changed(stretch: StretchSettings = STRETCH, task: RoadTask = TASK) -> bool:
        before = written(cache) if cache.exists() else {}
        prepare_chip(chip, cache, stretch, task)
        after = written(cache)
        assert all(before[name] == after[name] for name in before), "a file in use was changed"
        return before != after

    assert changed()
    assert not changed()
    assert changed(stretch=StretchSettings(low=1))
    assert changed(task=road_task(targets=TargetSettings(road_buffer_m=3)))
    # The file of the first settings still exists.
    assert not changed()
    os.utime(chip.image.path, (1, 1))
    assert changed()
    assert chip.label is not None
    write_labels(chip.label, [LINE, LINE[::-1]])
    assert changed()


def test_a_damaged_file_is_rebuilt(tmp_path: Path, chip: Chip) -> None:
    cached = prepare_chip(chip, tmp_path / "cache", STRETCH, TASK)
    image, _ = cached.read()
    cached.path.write_bytes(cached.path.read_bytes()[:5000])
    assert np.array_equal(prepare_chip(chip, tmp_path / "cache", STRETCH, TASK).read()[0], image)
    save_file({"image": image}, cached.path, {"chip": "{}"})
    assert np.array_equal(prepare_chip(chip, tmp_path / "cache", STRETCH, TASK).read()[0], image)


def test_concurrent_writers_leave_one_complete_file(tmp_path: Path, chip: Chip) -> None:
    threads = [
        threading.Thread(
            target=prepare_chip, args=(chip, tmp_path / "cache", STRETCH, TASK), daemon=True
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "preparing a chip does not end"
    (name,) = written(tmp_path / "cache")
    assert name.startswith("AOI_7_Moscow_chip1.")


def test_a_bad_chip_does_not_affect_others(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / f"data/SN5_roads_train_AOI_7_Moscow_PS-RGB_chip{number}.tif")
        write_labels(tmp_path / f"data/AOI_7_Moscow_chip{number}.geojson", [LINE])
    chips = scan_roads([tmp_path / "data"]).chips
    path = chips[4].image.path
    path.write_bytes(path.read_bytes()[:4000])
    done = prepare_chips(chips, 3, tmp_path / "cache", STRETCH, TASK)
    assert [c.image_id for c in done.chips] == [c.image_id for c in chips if c is not chips[4]]
    assert "may be truncated" in done.faults["AOI_7_Moscow_chip4"]
    done.require_enough()
    for bad in chips[:3]:
        bad.image.path.write_bytes(b"")
    with pytest.raises(SatmapError, match="4 of 12 chips cannot be used"):
        prepare_chips(chips, 3, tmp_path / "cache", STRETCH, TASK).require_enough()


def test_labels_that_cannot_be_projected(tmp_path: Path, chip: Chip) -> None:
    assert chip.label is not None
    line = {"type": "LineString", "coordinates": [[1.0, 2.0], [3.0, 4.0]]}
    document = {
        "crs": {"type": "name", "properties": {"name": 'LOCAL_CS["site",UNIT["metre",1]]'}},
        "features": [{"type": "Feature", "properties": {}, "geometry": line}],
    }
    chip.label.write_text(json.dumps(document))
    with pytest.raises(SatmapError, match="cannot be projected"):
        prepare_chip(chip, tmp_path / "cache", STRETCH, TASK)


def test_an_unwritable_cache_is_not_blamed_on_chips(tmp_path: Path, chip: Chip) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError):
        prepare_chips([chip], 3, tmp_path / "file/cache", STRETCH, TASK)


@pytest.mark.parametrize("fault", ["no georeference", "elsewhere", "bands"])
def test_chips_unusable_for_training(tmp_path: Path, chip: Chip, fault: str) -> None:
    channels = 3
    match fault:
        case "no georeference":
            write_image(chip.image.path, georeferenced=False)
            expected = "no georeference, so its labels cannot be placed"
        case "elsewhere":
            assert chip.label is not None
            write_labels(chip.label, [[(5000.0, 5000.0), (6000.0, 5000.0)]])
            expected = "none of its 1 roads lies on"
        case _:
            channels = 8
            expected = "the networks need 8 bands"
    (again,) = scan_roads([tmp_path / "data"]).chips
    done = prepare_chips([again], channels, tmp_path / "cache", STRETCH, TASK)
    assert expected in done.faults["AOI_7_Moscow_chip1"]


def test_an_unwritable_cache_is_named(tmp_path: Path, chip: Chip) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SatmapError, match="cannot write"):
        prepare_chip(chip, tmp_path / "file/cache", STRETCH, TASK)


def test_the_header_is_plain_json(tmp_path: Path, chip: Chip) -> None:
    from safetensors import safe_open

    cached = prepare_chip(chip, tmp_path / "cache", STRETCH, TASK)
    with safe_open(cached.path, framework="numpy") as tensors:
        header = json.loads(tensors.metadata()["chip"])
    assert header["shape"] == [96, 128, 3]
