"""Small tests of faults that the campaign (``make faults``) has found."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from default_tasks import road_task
from satmap.data.cache import prepare_chip
from satmap.data.imagery import RGB, StretchedImage, read_info
from satmap.data.layouts.spacenet_roads import road_image_id, scan_roads
from satmap.errors import CannotWriteError, SatmapError
from satmap.evaluation.score import score_files
from satmap.io import files
from satmap.io.files import exclusive_lock, require_writable, write_text
from satmap.io.geojson_reader import LON_LAT, read_geojson
from satmap.networks.ensemble import EnsembleMember, predict_maps
from satmap.networks.unet import build_network
from satmap.prediction.images import prepare_image
from satmap.rasters.map_files import find_map_files, open_map_file, write_maps
from satmap.rasters.map_store import MapStore
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Inference, StretchSettings, load_recipe
from satmap.recipes.strict_yaml import read_yaml
from satmap.runtime.resources import is_memory_short
from satmap.runtime.workers import start_pool
from satmap.submissions.mask_rasters import open_mask as open_building_mask
from satmap.tasks.base import task_of
from satmap.tasks.roads.settings import ROAD_FILE_MAPS, ROAD_MAPS
from satmap.training.state import load_state
from synthetic_images import write_image, write_labels

CPU = torch.device("cpu")


# --- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: duplicate key 'a'"),
        ("a:\n  - {b: 1, c: 2, b: 3}", "line 2: duplicate key 'b'"),
        ("a: &a [*a]", "line 1: the anchor contains itself"),
        ("a: [", "line 1"),
        ("a: \x00", "special characters"),
        ("[" * 1000, "too deep"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_unsound_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_yaml(text)


def test_anchors_may_be_used_and_overridden_but_not_multiply() -> None:
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": [{"x": 1, "y": 2}] * 2,
    }
    assert read_yaml("") is None
    # Equal texts of different types are different keys.
    assert read_yaml("1: a\n'1': b") == {1: "a", "1": "b"}
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert len(read_yaml("\n".join(lines[:4]))["a3"]) == 10
    with pytest.raises(ValueError, match="too large"):
        read_yaml("\n".join(lines))


# --- rasters --------------------------------------------------------------------------------------


def vrt(path: Path, other: Path) -> Path:
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{other}'
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    path.write_text(f'<VRTDataset rasterXSize="128" rasterYSize="96">{bands}</VRTDataset>')
    return path


def test_a_raster_that_would_read_other_files_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "other.tif")
    path = vrt(tmp_path / "image.tif", tmp_path / "other.tif")
    with rasterio.open(path) as known:
        assert known.driver == "VRT"
    with pytest.raises(SatmapError, match="not a readable raster"):
        read_info(path, RGB)
    with pytest.raises(SatmapError, match="cannot be read"), open_map_file(path, 1, ROAD_FILE_MAPS):
        pass
    with pytest.raises(SatmapError, match="not a readable raster"), open_building_mask(path):
        pass


def test_implausibly_large_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    options = {"driver": "GTiff", "dtype": "uint8", "SPARSE_OK": True, "BIGTIFF": "YES"}
    sizes = {"width": 70_000, "height": 70_000, "tiled": True}
    for count in (3, 1):
        with rasterio.open(path, "w", count=count, **sizes, **options):
            pass
        with pytest.raises(SatmapError, match=r"image\.tif: 70000 x 70000 pixels are more"):
            if count == 3:
                read_info(path, RGB)
            else:
                with open_map_file(path, 1, ROAD_FILE_MAPS):
                    pass


def test_a_georeference_with_overflowing_numbers(tmp_path: Path) -> None:
    far = Affine(1e300, 0, -115.0, 0, -1e300, 36.0)
    path = write_image(tmp_path / "image.tif", transform=far)
    with warnings.catch_warnings(), pytest.raises(SatmapError, match="unusable reference system"):
        warnings.simplefilter("error")
        read_info(path, RGB)


def test_black_images_are_noted_and_need_no_network(tmp_path: Path) -> None:
    black = np.zeros((3, 96, 128), np.uint8)
    name = "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip{}.tif"
    write_image(tmp_path / name.format(1), pixels=black)
    write_image(tmp_path / name.format(2))
    network = build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16)).eval()
    members, task = [EnsembleMember(network)], task_of(load_recipe("demo"))
    pictures = [prepare_image(chip, members, task) for chip in scan_roads([tmp_path]).chips]
    assert any("no pixel holds data" in note and "chip1" in note for note in pictures[0].notes)
    assert not any("no pixel holds data" in note for note in pictures[1].notes)
    blank, seen = (StretchedImage(picture.info, 2, 98) for picture in pictures)
    assert blank.is_blank
    assert not seen.is_blank

    # A window without data is 0 without the networks; the others do not change.
    half = np.concatenate([np.zeros_like(pictures[1].pixels[:, :]), pictures[1].pixels[:, :]])
    settings = Inference(tta=1, window=96, overlap=0)
    maps = predict_maps(members, half, settings, CPU)
    assert not maps[:, :96].any()
    assert maps[:, 96:].any()

    def fail(*_: object) -> None:
        raise AssertionError("the network has seen a window without data")

    network.register_forward_pre_hook(fail)
    assert not predict_maps(members, np.zeros((200, 96, 3), np.uint8), settings, CPU).any()
    with pytest.raises(AssertionError):
        predict_maps(members, half, settings, CPU)


def test_black_chips_with_roads_are_refused_in_training(tmp_path: Path) -> None:
    black = np.zeros((3, 96, 128), np.uint8)
    write_image(tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif", pixels=black)
    label = tmp_path / "AOI_7_Moscow_chip1.geojson"
    for lines, fails in (([[(5.0, 5.0), (100.0, 80.0)]], True), ([], False)):
        write_labels(label, lines)
        chip = scan_roads([tmp_path]).chips[0]
        if fails:
            with pytest.raises(SatmapError, match="no pixel holds data, but"):
                prepare_chip(chip, tmp_path / "cache", StretchSettings(), road_task())
        else:
            prepare_chip(chip, tmp_path / "cache", StretchSettings(), road_task())


@pytest.mark.parametrize("harm", ["directory", "pipe"])
def test_images_that_are_not_files_are_reported(tmp_path: Path, harm: str) -> None:
    name = "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip{}.tif"
    write_image(tmp_path / name.format(1))
    victim = tmp_path / name.format(2)
    if harm == "pipe":
        os.mkfifo(victim)
    else:
        victim.mkdir()
    found = scan_roads([tmp_path])
    assert [chip.image_id for chip in found.chips] == ["AOI_7_Moscow_chip1"]
    assert list(found.long_ids) == ["AOI_7_Moscow_chip1", "AOI_7_Moscow_chip2"]
    assert f"{victim} is a {harm}" in found.faults["AOI_7_Moscow_chip2"]
    assert find_map_files(tmp_path, road_image_id)["AOI_7_Moscow_chip2"] == victim
    with (
        pytest.raises(SatmapError, match=f"chip2.tif is a {harm}"),
        open_map_file(victim, 1, ROAD_FILE_MAPS),
    ):
        pass
    if harm == "directory":
        # Some programs unpack archives this way: the file in the directory is the image.
        image = write_image(victim / victim.name)
        found = scan_roads([tmp_path])
        assert not found.faults
        assert found.chips[1].image.path == image
        assert find_map_files(tmp_path, road_image_id)["AOI_7_Moscow_chip2"] == image


def test_stored_maps_that_are_damaged_are_predicted_again(tmp_path: Path) -> None:
    store = MapStore(tmp_path / "out.csv", "fingerprint")
    values = np.random.default_rng(0).integers(0, 255, (2, 600, 700), np.uint8)
    write_maps(store.path("chip1"), ProbabilityMaps(("road", "junction"), values, (0.3, 0.3)), None)
    assert "chip1" in store
    whole = store.path("chip1").read_bytes()
    for content in (whole[:-1000], whole[: len(whole) // 2], b""):
        store.path("chip1").write_bytes(content)
        assert "chip1" not in store


@pytest.mark.parametrize("harm", ["pipe", "link to nothing", "link to itself"])
def test_cache_entries_that_are_not_files_are_rebuilt(tmp_path: Path, harm: str) -> None:
    write_image(tmp_path / "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip1.tif")
    write_labels(tmp_path / "AOI_7_Moscow_chip1.geojson", [[(5.0, 5.0), (100.0, 80.0)]])
    chip, cache = scan_roads([tmp_path]).chips[0], tmp_path / "cache"
    path = prepare_chip(chip, cache, StretchSettings(), road_task()).path
    whole = path.read_bytes()
    path.unlink()
    if harm == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.with_name("nothing") if harm == "link to nothing" else path.name)
    assert prepare_chip(chip, cache, StretchSettings(), road_task()).path == path
    assert path.is_file()
    assert not path.is_symlink()
    assert path.read_bytes() == whole


# --- text -----------------------------------------------------------------------------------------


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    readers: tuple[Callable[[], object], ...] = (
        lambda: load_recipe(str(pipe)),
        lambda: read_geojson(pipe),
        lambda: score_files(pipe, pipe),
        lambda: load_state(pipe, ""),
    )
    for read in readers:
        with pytest.raises(SatmapError, match="is a pipe or a device"):
            read()


def test_empty_lines_and_unknown_crs_are_ignored(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "roads.geojson"
    geometries = [
        {"type": "LineString", "coordinates": []},
        {"type": "MultiLineString", "coordinates": [[], [[1, 2], [3, 4]]]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[]]},
    ]
    document = {
        "crs": {"properties": {"name": "EPSG:99999999"}},
        "features": [{"properties": {}, "geometry": geometry} for geometry in geometries],
    }
    path.write_text(json.dumps(document))
    found = read_geojson(path)
    assert [line.xy.tolist() for line in found.lines] == [[[1, 2], [3, 4]]]
    assert not found.surfaces
    assert found.crs == LON_LAT
    # By default, PROJ writes its own messages to stderr.
    assert capfd.readouterr().err == ""


def test_writing_to_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "out.csv"
    loop.symlink_to(loop)
    writers: tuple[Callable[[], None], ...] = (
        lambda: write_text(loop, ""),
        lambda: require_writable(loop),
    )
    for write in writers:
        with pytest.raises(CannotWriteError, match=r"out\.csv: Too many levels of symbolic links"):
            write()


# --- disks and other runs -------------------------------------------------------------------------


def test_a_city_on_a_full_disk_leaves_no_broken_image(tmp_path: Path) -> None:
    """Limit files to 60,000 bytes; images are larger."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        "from satmap.cli import main; main(['make-city', sys.argv[1], '--chips', '2', "
        "'--test-chips', '0', '--size', '128'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "city")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 1
    assert ended.stderr.startswith("satmap: cannot write ")
    assert not [*tmp_path.rglob("*.tif")]


def test_lack_of_memory_is_reported(tmp_path: Path) -> None:
    """Less memory fails earlier: before, during or after the import of torch."""
    place = str(tmp_path / "demo")
    # At some other limits OpenBLAS tries for ever while it is loaded.
    for megabytes in (600, 1100):
        ended = subprocess.run(
            ["prlimit", f"--as={megabytes}000000", sys.executable, "-m", "satmap", "demo", place],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert ended.returncode == 1
        assert ended.stderr.startswith("satmap: memory is short. Raise the limit (`ulimit -v`")
    assert is_memory_short(MemoryError())
    assert is_memory_short(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert not is_memory_short(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert not is_memory_short(ImportError("no module named torch"))


def test_a_full_standard_output_is_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip1.tif")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "satmap", "inventory", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=300,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("satmap: No space left on device")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(tmp_path: Path, closed: str) -> None:
    city = tmp_path / "city"
    options = ("--chips", "1", "--test-chips", "0", "--size", "64")
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "satmap"]
    ended = subprocess.run([*command, "make-city", city, *options], check=False, timeout=300)
    assert ended.returncode == 0
    assert [*city.rglob("*.tif")]


def test_a_current_directory_that_was_deleted(tmp_path: Path) -> None:
    script = 'cd "$1"; rmdir "$1"; shift; exec "$@"'
    gone = tmp_path / "gone"
    gone.mkdir()
    ended = subprocess.run(
        ["sh", "-c", script, "sh", gone, sys.executable, "-m", "satmap", "predict", "a", "b.csv"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("satmap: the current directory cannot be used (No such file")


def test_processes_that_cannot_start_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a full /dev/shm without room for semaphores."""

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(multiprocessing.get_context("spawn").__class__, "Lock", full)
    with pytest.raises(SatmapError, match=r"/dev/shm is full.*--workers 0.*--shm-size"):
        start_pool(2)


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from satmap.errors import SatmapError;"
        "from satmap.io import files; files._GRACE_S = 0.2\n"
        "with files.exclusive_lock(Path(sys.argv[1]), SatmapError('taken')):\n"
        "    print('alone', flush=True)\n"
        "    sys.stdin.read()"
    )

    def start(name: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def other(name: str) -> tuple[str, str]:
        return start(name).communicate("", timeout=300)

    with exclusive_lock(tmp_path / "fold0", SatmapError("taken")):
        assert "SatmapError: taken" in other("fold0")[1]
        assert other("fold1")[0] == "alone\n"
    assert other("fold0")[0] == "alone\n"
    # A lock ends with its process; the file left by a killed process is not a lock.
    with start("fold0") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "alone\n"
        assert "taken" in other("fold0")[1]
        killed.kill()
    assert (tmp_path / ".fold0.lock").exists()
    assert other("fold0")[0] == "alone\n"
    assert not [*tmp_path.iterdir()]


def test_the_next_owner_of_a_lock_makes_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for the file that the first owner removed."""
    monkeypatch.setattr(files, "_GRACE_S", 1.0)
    path, order = tmp_path / "fold0", list[str]()

    def wait() -> None:
        with exclusive_lock(path, SatmapError("taken")):
            order.append("second")
            with pytest.raises(SatmapError), exclusive_lock(path, SatmapError("taken")):
                order.append("third")

    with exclusive_lock(path, SatmapError("taken")):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        order.append("first")
    waiting.join(60)
    assert order == ["first", "second"]
    assert not [*tmp_path.iterdir()]


def test_file_systems_without_locks_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO]

    def flock(*_: object) -> None:
        raise OSError(answers[0], os.strerror(answers[0]))

    monkeypatch.setattr("fcntl.flock", flock)
    while answers[0] != errno.EIO:
        with exclusive_lock(tmp_path / "fold0", SatmapError("taken")):
            assert not [*tmp_path.iterdir()]
        del answers[0]
    with (
        pytest.raises(OSError, match=os.strerror(errno.EIO)),
        exclusive_lock(tmp_path / "fold0", SatmapError("taken")),
    ):
        pass
