import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray

from default_tasks import road_task
from degraded_masks import degraded_mask
from repository import SHARED
from satmap.data.layouts.spacenet_roads import road_image_id
from satmap.errors import CannotWriteError, SatmapError
from satmap.evaluation.metrics.apls import apls, score_roads
from satmap.prediction.outputs import PredictionReport
from satmap.prediction.vectorize import vectorize_directory
from satmap.rasters import scene as scenes
from satmap.rasters.map_files import MapFile, find_map_files, read_map_file
from satmap.rasters.scene import Box
from satmap.submissions.roads_csv import RoadRow, check_roads_csv, read_roads_csv
from satmap.tasks.roads import tiles as mask_roads
from satmap.tasks.roads.settings import ROAD_FILE_MAPS, ROAD_MAPS, RoadSettings
from satmap.vectors.road_graph import ImageRoads
from satmap.vectors.speeds import MPS_PER_MPH
from synthetic_images import write_image

SHARED_MASKS = SHARED / "fixtures" / "masks"
needs_shared = pytest.mark.skipif(not SHARED_MASKS.is_dir(), reason="no shared data here")

# Size of a synthetic image's pixel in degrees and in metres.
DEGREES, WIDE_M, HIGH_M = 2.7e-6, 0.243, 0.300

SUFFIXES = (".csv", ".geojson", ".gpkg", ".graphml")

# Looks like an earlier output of any format.
OLD = "ImageId FeatureCollection SQLite format 3 graphml"


def street(*, at: int = 100, size: int = 200) -> NDArray[np.uint8]:
    """Return a mask with one street from edge to edge, 20 px wide, its middle at row ``at``."""
    mask = np.zeros((size, size), np.uint8)
    mask[at - 10 : at + 10] = 255
    return mask


def write_mask(path: Path, pixels: NDArray[Any], **profile: Any) -> Path:
    """Write a PNG, or a GeoTIFF with a georeference, of pixels (h, w) or (bands, h, w)."""
    if path.suffix == ".png":
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)
        return path
    return write_image(path, pixels=pixels.reshape(-1, *pixels.shape[-2:]), **profile)


def vectorize(masks: Path, output: Path, *, workers: int = 0, **settings: Any) -> PredictionReport:
    """Vectorise a directory with the default road settings except ``settings``."""
    return vectorize_directory(masks, output, road_task(**settings), workers=workers)


def vectorized(directory: Path, **settings: Any) -> dict[str, list[RoadRow]]:
    """Vectorise the masks of a directory without faults; return the roads of the CSV."""
    output = directory.parent / f"{directory.name}.csv"
    done = vectorize(directory, output, **settings)
    assert done.faults == {}
    assert check_roads_csv(output, done.images.keys()) == []
    rows = read_roads_csv(output)
    assert {image_id: len(record) for image_id, record in rows.items()} == done.images
    return rows


def only_road(directory: Path, **settings: Any) -> RoadRow:
    ((row,),) = vectorized(directory, **settings).values()
    return row


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metres", [0.3, 0.5])
def test_a_street_in_a_png(tmp_path: Path, metres: float) -> None:
    write_mask(tmp_path / "masks" / "a.png", street())
    row = only_road(tmp_path / "masks", default_metres_per_pixel=metres)
    assert sorted(row.line[[0, -1], 0]) == [0, 200]
    assert np.abs(row.line[:, 1] - 100).max() <= 0.5
    assert row.length_m == pytest.approx(200 * metres, rel=1e-3)
    # Without speed information, the settings' 25 mph apply.
    assert row.travel_time_s == pytest.approx(row.length_m / (25 * MPS_PER_MPH), rel=1e-3)


def test_settings_are_applied(tmp_path: Path) -> None:
    write_mask(tmp_path / "masks" / "a.png", street())
    row = only_road(tmp_path / "masks", vectorizer=RoadSettings(default_speed_mph=50))
    assert row.travel_time_s == pytest.approx(row.length_m / (50 * MPS_PER_MPH), rel=1e-3)


@pytest.mark.parametrize("turned", [False, True])
def test_the_georeference_gives_the_pixel_size(tmp_path: Path, turned: bool) -> None:
    mask = street().T if turned else street()
    write_mask(tmp_path / "masks" / "a.tif", mask)
    row = only_road(tmp_path / "masks", default_metres_per_pixel=7)
    assert row.length_m == pytest.approx(200 * (HIGH_M if turned else WIDE_M), rel=5e-3)


def test_speeds_come_from_all_maps(tmp_path: Path) -> None:
    maps = np.zeros((12, 200, 200), np.uint8)
    maps[ROAD_MAPS.index("road")] = maps[ROAD_MAPS.index("speed8")] = street()
    write_mask(tmp_path / "masks" / "a.tif", maps)
    row = only_road(tmp_path / "masks")
    assert row.length_m / row.travel_time_s == pytest.approx(55 * MPS_PER_MPH, rel=1e-3)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_floats_are_probabilities(tmp_path: Path, kind: str) -> None:
    values = (np.arange(200 * 200) % 256).astype(kind).reshape(200, 200) / 255
    # Resampling exceeds the range slightly.
    values[0, :3] = (np.nan, 1.004, -0.004)
    maps, georeference = read_map_file(write_mask(tmp_path / "a.tif", values), 0.3, ROAD_FILE_MAPS)
    expected = (np.arange(200 * 200) % 256).reshape(200, 200)
    expected[0, :3] = (0, 255, 0)
    assert maps.names == ("road",)
    assert maps.values.dtype == np.uint8
    assert np.array_equal(maps["road"], expected)
    assert georeference is not None
    assert maps.metres_per_pixel == georeference.metres_per_pixel


@pytest.mark.parametrize(("nodata", "kind"), [(255, "uint8"), (-9999, "float32")])
def test_pixels_without_data_are_no_road(tmp_path: Path, nodata: int, kind: str) -> None:
    values = np.full((8, 8), nodata, kind)
    values[2:, 2:] = 0.8 if kind == "float32" else 204
    maps, _ = read_map_file(
        write_mask(tmp_path / "a.tif", values, nodata=nodata), 0.3, ROAD_FILE_MAPS
    )
    expected = np.zeros((8, 8), np.uint8)
    expected[2:, 2:] = 204
    assert np.array_equal(maps["road"], expected)


def test_smallest_and_emptiest_masks(tmp_path: Path) -> None:
    write_mask(tmp_path / "masks" / "empty.png", np.zeros((200, 200), np.uint8))
    write_mask(tmp_path / "masks" / "pixel.png", np.full((1, 1), 255, np.uint8))
    write_mask(tmp_path / "masks" / "void.tif", np.full((50, 50), np.nan, np.float32))
    assert vectorized(tmp_path / "masks") == {"empty": [], "pixel": [], "void": []}


def _palette(path: Path) -> None:
    write_mask(path, street())
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, {0: (0, 0, 0), 255: (9, 9, 9)})


def _truncated(path: Path) -> None:
    write_mask(path, np.random.default_rng(0).integers(0, 256, (400, 400)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _damaged(path: Path) -> None:
    write_mask(path, np.random.default_rng(0).integers(0, 256, (400, 400)).astype(np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "uint16.tif": (lambda path: write_mask(path, street().astype(np.uint16)), "type uint16"),
    "int8.tif": (lambda path: write_mask(path, street().astype(np.int8)), "type int8"),
    "two.tif": (lambda path: write_mask(path, np.stack([street()] * 2)), "2 bands"),
    "rgb.png": (lambda path: write_mask(path, np.dstack([street()] * 3)), "3 bands"),
    "eleven.tif": (lambda path: write_mask(path, np.stack([street()] * 11)), "11 bands"),
    "ones.png": (lambda path: write_mask(path, street() // 255), "multiply them by 255"),
    "percent.tif": (
        lambda path: write_mask(path, street().astype(np.float32)),
        "from 0 to 255, but float",
    ),
    "infinite.tif": (
        lambda path: write_mask(path, np.full((9, 9), np.inf, np.float32)),
        "from inf to inf",
    ),
    "palette.tif": (_palette, "palette"),
    "text.png": (lambda path: path.write_text("no mask"), "cannot be read"),
    "nothing.tif": (lambda path: path.write_bytes(b""), "cannot be read"),
    "cut.png": (_truncated, "cannot be read"),
    "cut.tif": (_truncated, "cannot be read"),
    "flipped.png": (_damaged, "cannot be read"),
    "nowhere.tif": (
        lambda path: write_mask(path, street(), crs='LOCAL_CS["here",UNIT["metre",1]]'),
        "unusable reference system",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_invalid_mask_affects_one_image(tmp_path: Path, name: str) -> None:
    masks, output = tmp_path / "masks", tmp_path / "out.csv"
    make, message = UNUSABLE[name]
    write_mask(masks / "good.png", street())
    make(masks / name)
    stem = Path(name).stem
    done = vectorize(masks, output)
    assert done.images == {"good": 1, stem: 0}
    assert sum(done.images.values()) == 1
    assert list(done.faults) == [stem]
    assert str(masks / name) in done.faults[stem]
    assert message in done.faults[stem]
    assert check_roads_csv(output, ["good", stem]) == []


def test_a_batch_of_only_faults_is_written(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "a.png").write_text("no mask")
    for suffix in SUFFIXES:
        done = vectorize(masks, tmp_path / f"out{suffix}")
        assert done.faults.keys() == done.images.keys() == {"a"}
        assert (tmp_path / f"out{suffix}").exists()
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == ["a,LINESTRING EMPTY,0,0"]


def test_masks_without_georeference_are_reported(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    write_mask(masks / "a2.png", street())
    write_mask(masks / "a10.png", street())
    write_mask(masks / "a3.tif", street())
    (warning,) = vectorize(masks, tmp_path / "out.csv", default_metres_per_pixel=0.5).warnings
    assert warning == (
        "2 rasters without georeference, such as a2, are assumed to have 0.5 m per pixel"
    )
    # A map cannot contain them.
    for suffix in (".geojson", ".gpkg", ".graphml"):
        done = vectorize(masks, tmp_path / f"out{suffix}")
        assert done.images == {"a2": 0, "a3": 1, "a10": 0}
        assert list(done.faults) == ["a2", "a10"]
        assert "a2 has no georeference" in done.faults["a2"]


# --- names ----------------------------------------------------------------------------------------


def test_ids_are_those_of_the_images(tmp_path: Path) -> None:
    names = {
        "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip10.png": "AOI_7_Moscow_chip10",
        "deep/SN3_roads_train_AOI_2_Vegas_PS-MS_img1.TIF": "AOI_2_Vegas_img1",
        "RGB-PanSharpen_AOI_2_Vegas_img0.tif": "AOI_2_Vegas_img0",
        "AOI_9_San_Juan_chip3.tiff": "AOI_9_San_Juan_chip3",
        "Stra\u00dfe 7.png": "Stra\u00dfe 7",
    }
    for name in (*names, "truth.csv", ".hidden.png", "a.png.aux.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = find_map_files(tmp_path, road_image_id)
    assert found == {image_id: tmp_path / name for name, image_id in names.items()}
    assert list(found) == [
        "AOI_2_Vegas_img0", "AOI_2_Vegas_img1", "AOI_7_Moscow_chip10", "AOI_9_San_Juan_chip3",
        "Stra\u00dfe 7",
    ]  # fmt: skip


@pytest.mark.parametrize("names", [("a.png", "a.tif"), ("a.png", "b/a.png"), None])
def test_two_masks_of_one_image(tmp_path: Path, names: tuple[str, str] | None) -> None:
    for name in names or (
        "SN5_roads_train_AOI_7_Moscow_PS-MS_chip0.tif",
        "SN5_roads_train_AOI_7_Moscow_PS-RGB_chip0.tif",
    ):
        write_mask(tmp_path / name, street())
    with pytest.raises(SatmapError, match="two masks belong to the image"):
        vectorize(tmp_path, tmp_path / "out.csv")


@pytest.mark.parametrize("name", ["a,b.png", 'a".png', " a.png", "a\nb.png", "#a.png"])
def test_names_that_would_break_the_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(SatmapError, match="rename it"):
        vectorize(tmp_path, tmp_path / "out.csv")


# --- complete runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve masks with one road each, except a broken one; tests must not change them."""
    masks = tmp_path_factory.mktemp("many")
    for number in range(12):
        write_mask(masks / f"chip{number}.tif", street(at=20 + 10 * number))
    (masks / "chip3.tif").write_text("no mask")
    return masks


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_do_not_depend_on_the_workers(many: Path, tmp_path: Path, suffix: str) -> None:
    outputs, results = [], []
    for workers in (0, 2):
        outputs.append(tmp_path / f"{workers}{suffix}")
        results.append(vectorize(many, outputs[-1], workers=workers))
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert results[0] == results[1]
    assert list(results[0].images) == [f"chip{number}" for number in range(12)]
    assert list(results[0].faults) == ["chip3"]
    assert sum(results[0].images.values()) == 11


@pytest.mark.parametrize("name", ["out.tif", "out", "out.json", "sub/out.CSVX"])
def test_unknown_formats_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(SatmapError, match=r"suffix.*\.csv, \.geojson, \.gpkg, .*\.graphml"):
        vectorize(tmp_path / "nowhere", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(CannotWriteError):
        vectorize(tmp_path / "nowhere", tmp_path / "out.csv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_roads_are_replaced(tmp_path: Path, suffix: str) -> None:
    masks, output = tmp_path / "masks", tmp_path / f"out{suffix}"
    write_mask(masks / "chip0.tif", street())
    output.write_text("my notes")
    with pytest.raises(CannotWriteError, match="is not overwritten"):
        vectorize(masks, output)
    assert output.read_text() == "my notes"
    output.write_text("")
    for _ in range(2):
        assert vectorize(masks, output).images == {"chip0": 1}


def test_pipes_and_tiny_pixels_affect_one_mask(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    write_mask(masks / "good.tif", street())
    transform = Affine(1e-4, 0, 5e5, 0, -1e-4, 5e6)
    write_mask(masks / "tiny.tif", street(), crs="EPSG:32637", transform=transform)
    os.mkfifo(masks / "pipe.tif")
    done = vectorize(masks, tmp_path / "out.csv")
    assert done.images == {"good": 1, "pipe": 0, "tiny": 0}
    assert "pipe.tif" in done.faults["pipe"]
    assert "its pixels would be 0.0001 x 0.0001 m" in done.faults["tiny"]


def test_directories_without_masks(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.jpg.png", street())
    with pytest.raises(SatmapError, match="does not exist"):
        vectorize(tmp_path / "nowhere", tmp_path / "out.csv")
    with pytest.raises(SatmapError, match="is a file"):
        vectorize(tmp_path / "a.jpg.png", tmp_path / "out.csv")
    (tmp_path / "a.jpg.png").unlink()
    with pytest.raises(SatmapError, match="no masks under"):
        vectorize(tmp_path, tmp_path / "out.csv")


@pytest.mark.parametrize("options", [{"workers": -1}, {"default_metres_per_pixel": 0.0}])
def test_invalid_options_are_a_programming_error(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        vectorize(tmp_path, tmp_path / "out.csv", **options)


@contextlib.contextmanager
def killer() -> Iterator[None]:
    """Kill the first worker process that appears, as a system without memory does."""
    over = threading.Event()

    def write_logs() -> None:
        while not over.wait(0.01):
            for process in multiprocessing.active_children():
                process.kill()
                return

    thread = threading.Thread(target=write_logs)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_killed_worker_ends_the_run(many: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    output.write_text(OLD)
    with pytest.raises(SatmapError, match=r"worker process was killed.*use fewer"), killer():
        vectorize(many, output, workers=1)
    # Finished work is kept for the same command.
    journal = f".{output.name}.partial"
    assert sorted(path.name for path in tmp_path.iterdir()) == [journal, output.name]
    assert output.read_text() == OLD
    assert multiprocessing.active_children() == []
    assert sum(vectorize(many, output).images.values()) == 11
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_failed_write_ends_the_workers(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, graphs: Callable[[], Iterator[ImageRoads]], crs: object) -> None:
        next(graphs())
        assert len(multiprocessing.active_children()) == 1
        raise CannotWriteError("the disk is full")

    monkeypatch.setattr("satmap.tasks.roads.task.export_roads", fail)
    with pytest.raises(CannotWriteError, match="the disk is full"):
        vectorize(many, tmp_path / "out.geojson", workers=1)
    assert multiprocessing.active_children() == []


_STUCK = """
import multiprocessing, sys, time
from pathlib import Path

def stuck(path, graphs, crs):
    next(graphs())
    print("pids", *(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(1000)

# Workers run this file too, but need none of these modules.
if __name__ == "__main__":
    from satmap.prediction.vectorize import vectorize_directory
    from satmap.tasks.base import default_task
    from satmap.tasks.roads import task

    task.export_roads = stuck
    vectorize_directory(Path(sys.argv[1]), Path(sys.argv[2]), default_task("roads"), workers=2)
"""


def test_workers_end_with_a_killed_run(many: Path, tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(_STUCK)
    with subprocess.Popen(
        [sys.executable, script, many, tmp_path / "out.geojson"], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        # Reading a line has no deadline; killed, the run ends its output.
        limit = threading.Timer(120, run.kill)
        limit.start()
        try:
            # Progress comes first.
            line = next((line for line in run.stdout if line.startswith("pids")), "")
            workers = [int(pid) for pid in line.split()[1:]]
            assert len(workers) == 2, "the run has not started its workers in time"
            assert all(map(_runs, workers))
        finally:
            limit.cancel()
            run.kill()
    deadline = time.monotonic() + 60
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline, "workers wait for ever"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Return whether a process is running; zombies do not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- side by side, and large ----------------------------------------------------------------------


def write_chips(
    directory: Path, scene: NDArray[np.uint8], size: int, **profile: Any
) -> dict[str, Box]:
    """Cut a scene, (h, w) or (bands, h, w), into georeferenced GeoTIFFs."""
    chips = {}
    for box in Box(0, 0, *scene.shape[:-3:-1]).tiles(size, size):
        name = f"chip{box.left // size}{box.top // size}"
        place = Affine(DEGREES, 0, 37.6 + box.left * DEGREES, 0, -DEGREES, 55.7 - box.top * DEGREES)
        write_mask(directory / f"{name}.tif", scene[(..., *box.pixels)], transform=place, **profile)
        chips[name] = box
    return chips


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Box]]:
    """Four masks of 650 x 650 pixels side by side; tests must not change them."""
    masks = tmp_path_factory.mktemp("city")
    return masks, write_chips(masks, degraded_mask(1002).road, 650)


def ends_at(rows: list[RoadRow], axis: int, limit: float) -> list[float]:
    """Return sorted positions of road ends along a border of constant x (axis 0) or y (axis 1)."""
    ends = np.concatenate([row.line[[0, -1]] for row in rows])
    return sorted(set(ends[ends[:, axis] == limit, 1 - axis].tolist()))


def test_roads_continue_across_masks(city: tuple[Path, dict[str, Box]]) -> None:
    masks, chips = city
    rows = vectorized(masks)
    met = 0
    for name, box in chips.items():
        for axis, beside in ((0, f"chip1{name[-1]}"), (1, f"{name[:-1]}1")):
            if name == beside or (box.left, box.top)[axis]:
                continue
            here, there = ends_at(rows[name], axis, 650), ends_at(rows[beside], axis, 0)
            assert here == pytest.approx(there, abs=1)
            met += len(here)
    assert met >= 10


def test_neighbours_improve_roads(city: tuple[Path, dict[str, Box]]) -> None:
    masks, chips = city
    truth = degraded_mask(1002).truth
    scores = []
    for neighbours in (False, True):
        rows = vectorized(masks, neighbours=neighbours)
        scores.append(
            np.mean(
                [apls(clipped(truth, box), rows[name]).length.score for name, box in chips.items()]
            )
        )
    assert scores[1] > scores[0]


def clipped(rows: Iterable[RoadRow], box: Box) -> list[RoadRow]:
    """Return the roads within a rectangle, in its pixels."""
    corner = np.array((box.left, box.top))
    bounds = (box.left, box.top, box.right, box.bottom)
    lines = [shapely.clip_by_rect(shapely.LineString(row.line), *bounds) for row in rows]
    return [
        RoadRow(shapely.get_coordinates(part) - corner, part.length, float("nan"))
        for part in shapely.get_parts(lines)
        if part.length > 0
    ]


def test_chips_are_vectorised_with_or_without_neighbours(
    city: tuple[Path, dict[str, Box]], tmp_path: Path
) -> None:
    masks, _ = city
    outputs = {}
    for neighbours in (True, False):
        for workers in (0, 2):
            output = tmp_path / f"{neighbours}{workers}.csv"
            vectorize(masks, output, workers=workers, neighbours=neighbours)
            outputs[neighbours, workers] = output.read_bytes()
    assert outputs[True, 0] == outputs[True, 2]
    assert outputs[False, 0] == outputs[False, 2]
    assert outputs[True, 0] != outputs[False, 0]
    # Without neighbours each result is as for a mask alone in a directory.
    rows = read_roads_csv(tmp_path / "False0.csv")
    for path in sorted(masks.iterdir()):
        (tmp_path / path.stem).mkdir()
        (tmp_path / path.stem / path.name).write_bytes(path.read_bytes())
        vectorize(tmp_path / path.stem, tmp_path / "one.csv")
        (alone,) = read_roads_csv(tmp_path / "one.csv").values()
        assert same_roads(alone, rows[path.stem])


def same_roads(one: list[RoadRow], other: list[RoadRow]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a.line, b.line) and a.length_m == b.length_m
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("fault", ["far", "corner", "same place", "bands", "metres", "broken"])
def test_masks_that_are_no_neighbours_change_nothing(tmp_path: Path, fault: str) -> None:
    road = degraded_mask(1003, 800).road
    masks = tmp_path / "masks"
    write_chips(masks, road[:400, :400], 400)
    alone = vectorized(masks)["chip00"]
    place = Affine(DEGREES, 0, 37.6 + 400 * DEGREES, 0, -DEGREES, 55.7)
    other: dict[str, Any] = {"pixels": road[:400, 400:], "transform": place}
    if fault == "far":
        other["transform"] = Affine.translation(450 * DEGREES, 0) @ place
    elif fault == "corner":
        other["transform"] = Affine.translation(0, -400 * DEGREES) @ place
    elif fault == "same place":
        other["transform"] = Affine.translation(-400 * DEGREES, 0) @ place
    elif fault == "bands":
        other["pixels"] = np.stack([road[:400, 400:]] * 12)
    elif fault == "metres":
        other["transform"] = place @ Affine.scale(1.1)
    path = write_mask(masks / "other.tif", **other)
    if fault == "broken":
        path.write_bytes(path.read_bytes()[:-150_000])
    vectorize(masks, tmp_path / "out.csv")
    assert same_roads(read_roads_csv(tmp_path / "out.csv")["chip00"], alone)
    assert not same_roads(vectorized_beside(masks, road), alone)


def vectorized_beside(masks: Path, road: NDArray[np.uint8]) -> list[RoadRow]:
    """Vectorise the first mask with a real neighbour."""
    for path in masks.iterdir():
        path.unlink()
    write_chips(masks, road[:400], 400)
    return vectorized(masks)["chip00"]


@pytest.mark.parametrize("profile", [{}, {"tiled": True, "blockxsize": 256, "blockysize": 256}])
@pytest.mark.parametrize("kind", ["uint8", "float32", "all maps"])
def test_large_masks_are_read_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, profile: dict[str, Any]
) -> None:
    road = degraded_mask(1003).road
    scene: NDArray[Any] = road
    if kind == "float32":
        scene = road.astype(np.float32) / 255
    if kind == "all maps":
        scene = np.zeros((12, *road.shape), np.uint8)
        scene[ROAD_MAPS.index("road")] = road
        scene[4], scene[6] = road // 2, road[::-1] // 3
    write_chips(tmp_path / "masks", scene, 800, **profile, nodata=0)
    at_once = vectorized(tmp_path / "masks")
    monkeypatch.setattr(mask_roads, "MAX_VALUES_IN_MEMORY", 0)
    monkeypatch.setattr(scenes, "_STRIP", 512)
    read: list[Box] = []
    original = MapFile.read

    def counted(mask: MapFile, name: str, box: Box) -> NDArray[np.uint8]:
        read.append(box)
        return original(mask, name, box)

    monkeypatch.setattr(MapFile, "read", counted)
    in_windows = vectorized(tmp_path / "masks")
    assert at_once.keys() == in_windows.keys()
    assert all(same_roads(at_once[name], in_windows[name]) for name in at_once)
    assert max(max(box.width, box.height) for box in read) <= 512


def test_faults_of_large_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_roads, "MAX_VALUES_IN_MEMORY", 0)
    masks = tmp_path / "masks"
    write_mask(masks / "ones.tif", street() // 255)
    for name in ("percent.tif", "infinite.tif", "cut.tif"):
        make, _ = UNUSABLE[name]
        make(masks / name)
    write_mask(masks / "good.tif", street())
    done = vectorize(masks, tmp_path / "out.csv")
    assert done.images == {"cut": 0, "good": 1, "infinite": 0, "ones": 0, "percent": 0}
    assert "multiply them by 255" in done.faults["ones"]
    assert "but float" in done.faults["percent"]
    assert "from inf to inf" in done.faults["infinite"]
    assert "cannot be read" in done.faults["cut"]


@needs_shared
def test_the_shared_masks(tmp_path: Path) -> None:
    truth = read_roads_csv(SHARED_MASKS / "truth_noded.csv")
    done = vectorize(SHARED_MASKS, tmp_path / "out.csv")
    assert done.faults == {}
    assert done.images.keys() == truth.keys()
    assert truth.keys() == read_roads_csv(SHARED_MASKS / "truth.csv").keys()
    proposal = read_roads_csv(tmp_path / "out.csv")
    # Peers reach .853.
    assert (score_roads(truth, proposal).total["apls_length"] or 0) > 0.9
