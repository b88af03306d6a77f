"""Prediction by several processes: the same bytes for any number, with kills and resumption."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from affine import Affine

from default_tasks import road_task
from forked_ranks import (
    LIMIT_S,
    all_alive,
    finish,
    kill_one,
    killed_at_last,
    start_command,
    start_ranks,
    wait_until,
)
from repository import ROOT
from satmap.data.imagery import MULTISPECTRAL, RGB, StretchedImage, read_info, read_stretched
from satmap.errors import CannotWriteError
from satmap.io import files
from satmap.networks.ensemble import Strip, predict_strips
from satmap.networks.unet import build_network
from satmap.prediction import images as pictures
from satmap.prediction import plan, share
from satmap.prediction.journal import Journal
from satmap.prediction.outputs import PredictionReport
from satmap.prediction.run import predict
from satmap.provenance.manifest import SUFFIX
from satmap.recipes.schema import Inference, load_recipe
from satmap.runtime.workers import BoundedPool, read_ahead
from satmap.tasks import dense
from satmap.tasks.base import PendingResult, PreparedImage
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights.network_files import save_weights
from synthetic_images import write_image

ROADS = road_task()
CPU = torch.device("cpu")
COLUMNS, ROWS, SIZE = 5, 3, 80

# Number of kills (`make faults` does more), and of starts: some may end before they are killed.
KILLS, MOST_STARTS = 4, 15


class Area:
    """Images side by side, one of them damaged, one without georeference, and a network."""

    def __init__(self, directory: Path) -> None:
        self.images, self.weights = directory / "images", directory / "weights"
        self.recipe = str(directory / "recipe.yaml")
        generator = np.random.default_rng(0)
        # Metres per pixel, so large that only adjacent images are neighbours.
        size = 8e-6
        for number in range(COLUMNS * ROWS + 1):
            coarse = generator.integers(1, 255, (9, 9, 3)).astype(np.uint8)
            pixels = np.maximum(cv2.resize(coarse, (SIZE, SIZE)), 1).transpose(2, 0, 1)
            row, column = divmod(number, COLUMNS)
            place = Affine(size, 0, 37.6 + column * SIZE * size, 0, -size, 55.7 - row * SIZE * size)
            write_image(
                self.images / f"SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip{number}.tif",
                pixels=pixels,
                **({"georeferenced": False} if row == ROWS else {"transform": place}),
            )
        damaged = self.images / "SN5_roads_test_public_AOI_7_Moscow_PS-RGB_chip6.tif"
        damaged.write_bytes(damaged.read_bytes()[:-9000])
        recipe = load_recipe("demo")
        self.inference = Inference(tta=4)
        recipe = recipe.model_copy(update={"inference": self.inference})
        Path(self.recipe).write_text(recipe.model_dump_json())
        torch.manual_seed(1)
        network = build_network("resnet18", 3, ROAD_MAPS, (16, 16, 16, 16))
        with torch.no_grad():
            # An untrained network would be undecided everywhere.
            network.head.weight *= 50
        metadata = {"recipe": recipe.model_dump_json(), "member": "a", "stage": "1", "epoch": "1"}
        save_weights(self.weights / "a.last.safetensors", network, metadata)
        self.done = self.predict(directory / "whole")
        self.files = files_in(directory / "whole")

    def predict(self, place: Path, **options: Any) -> PredictionReport:
        done = predict(
            [self.images], place / "out.csv", self.weights, CPU, self.recipe,
            maps=place / "maps", exports=[place / "out.graphml"], **options,
        )  # fmt: skip
        # Reports of different directories are compared.
        warnings = tuple(text.replace(str(place), "") for text in done.warnings)
        return replace(done, warnings=warnings)

    def ranks(self, place: Path, output: Path, *options: str) -> list[ForkServerProcess]:
        """Start two processes as torch's launcher does; their output goes to ``output``."""
        return start_ranks(self.command(place, *options)[2:], output)

    def command(self, place: Path, *options: str) -> list[str]:
        return [
            "-m", "satmap", "predict", str(self.images), str(place / "out.csv"), "--weights",
            str(self.weights), "--recipe", self.recipe, "--device", "cpu", "--probabilities",
            str(place / "maps"), "--export", str(place / "out.graphml"), *options,
        ]  # fmt: skip


def files_in(place: Path) -> dict[str, bytes]:
    """Return all files of a run except the manifest, which describes the run itself."""
    files = (path for path in place.rglob("*") if path.is_file())
    paths = sorted(path for path in files if not path.name.endswith(SUFFIX))
    return {str(path.relative_to(place)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def area(tmp_path_factory: pytest.TempPathFactory) -> Area:
    return Area(tmp_path_factory.mktemp("area"))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def start(*arguments: str) -> "subprocess.Popen[str]":
    code = str(ROOT / "code")
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": code},
        start_new_session=True,
    )


def finished_in(place: Path) -> set[str]:
    """Return the keys of the images in a journal and its parts, from complete lines only."""
    keys = set()
    for path in place.glob(".out.csv.partial*"):
        for line in path.read_bytes().splitlines(keepends=True)[1:]:
            if line.endswith(b"\n"):
                keys.add(json.loads(line)[0])
    return keys


def stored_in(place: Path) -> set[str]:
    return {path.name for path in place.glob(".out.csv.maps/[!.]*")}


def is_running(process: "subprocess.Popen[str]") -> bool:
    return process.poll() is None


def stored_at_least(place: Path, count: int) -> bool:
    return len(stored_in(place)) >= count


# --- the same bytes -------------------------------------------------------------------------------


def test_workers_and_processes_do_not_change_the_bytes(area: Area, tmp_path: Path) -> None:
    images = COLUMNS * ROWS + 1
    assert len(area.done.images) == images
    assert list(area.done.faults) == ["AOI_7_Moscow_chip6"]
    assert sum(map(bool, area.done.images.values())) == images - 1
    assert len(area.files) == images - 1 + 2
    assert area.predict(tmp_path / "one", workers=2) == area.done
    assert files_in(tmp_path / "one") == area.files
    place, logs = tmp_path / "two", tmp_path / "logs"
    logs.mkdir()
    assert finish(area.ranks(place, logs, "--workers", "1")) == [0, 0]
    assert files_in(place) == area.files
    texts = [(logs / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert "AOI_7_Moscow_chip6: " in texts[0] and "out.csv: 16 images" in texts[0]
    assert not texts[1]


# --- interruptions --------------------------------------------------------------------------------


def test_kills_lose_nothing(area: Area, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    place, logs = tmp_path / "out", tmp_path / "logs"
    logs.mkdir()
    kept: set[str] = set()
    stored: set[str] = set()
    kills = 0
    for _ in range(MOST_STARTS):
        if kills == KILLS:
            break
        processes = area.ranks(place, logs, "--workers", "0")
        # Usually wait for some progress before the kill, or the test would prove little.
        if moments.random() < 0.8:
            enough = partial(stored_at_least, place, len(stored) + 1)
            wait_until(enough, partial(all_alive, processes))
        if not kill_one(processes, moments, logs):
            # The run ended before the kill.
            assert files_in(place) == area.files
            shutil.rmtree(place)
            kept = stored = set()
            continue
        kills += 1
        # No result of an earlier run is lost.
        assert finished_in(place) >= kept
        if not (place / "out.csv").exists():
            assert stored_in(place) >= stored
        kept, stored = finished_in(place), stored_in(place)
    assert kills == KILLS, f"of {MOST_STARTS} runs only {kills} could be killed in time"
    # A run with another number of processes resumes.
    area.predict(place, workers=1)
    assert files_in(place) == area.files


def test_the_command_ends_cleanly_or_names_killed_processes_and_resumes(
    area: Area, tmp_path: Path
) -> None:
    """A run of the command whose launcher was killed also resumes under torchrun."""
    for victim in ("rank 1", "group", "launcher"):
        stored = len(stored_in(tmp_path))
        workers = "2" if victim == "group" else "0"
        process = start(*area.command(tmp_path, "--processes", "2", "--workers", workers))
        with killed_at_last(process):
            enough = partial(stored_at_least, tmp_path, stored + 1)
            if not wait_until(enough, partial(is_running, process)):
                pytest.fail(f"ended by itself: {process.communicate(timeout=LIMIT_S)[1]}")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if victim == "launcher":
                process.kill()
                process.communicate(timeout=LIMIT_S)
                continue
            if victim == "group":
                os.killpg(process.pid, signal.SIGTERM)
            else:
                os.kill(int(children[1]), signal.SIGKILL)
            _, errors = process.communicate(timeout=LIMIT_S)
        assert not any(Path(f"/proc/{child}").exists() for child in children)
        # No word of torch's, nor of Python's about what it has to clear away.
        assert len(errors.splitlines()) == 1 and "the same command" in errors
        if victim == "group":
            assert process.returncode == 143
            assert errors.startswith("satmap: terminated; finished work is kept")
        else:
            assert process.returncode == 1
            assert errors.startswith("satmap: process 1 was killed by SIGKILL")
    assert not (tmp_path / "out.csv").exists()
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start(*ranks, *area.command(tmp_path, "--workers", "1"))
    with killed_at_last(process):
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    assert files_in(tmp_path) == area.files


def test_sigterm_ends_a_run_cleanly_and_it_resumes(
    area: Area, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The run ends before a second one gives up waiting for it.
    monkeypatch.setattr(files, "_GRACE_S", 0.0)
    # Leftovers of runs that were killed at bad moments.
    (tmp_path / "maps").mkdir()
    (tmp_path / ".out.csv.maps").mkdir()
    for name in (
        ".out-abcd1234.csv",
        ".out-abcd1234.graphml",
        ".out.csv.maps/.a-1234abcd.tif",
        "maps/.AOI_7_Moscow_chip3-abcd_123.tif",
    ):
        (tmp_path / name).write_bytes(b"half")
    log = tmp_path.with_name("log.txt")
    process = start_command(area.command(tmp_path, "--workers", "1")[2:], log)
    assert wait_until(partial(stored_at_least, tmp_path, 2), process.is_alive), log.read_text()
    with pytest.raises(CannotWriteError, match="is being written by another run"):
        Journal(tmp_path / "out.csv", "settings", ROADS)
    process.terminate()
    assert finish([process]) == [143]
    assert log.read_text().splitlines()[-1].startswith("satmap: terminated; finished work is kept")
    assert not (tmp_path / "out.csv").exists()
    area.predict(tmp_path)
    assert files_in(tmp_path) == area.files


def test_every_process_of_a_run_holds_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_GRACE_S", 0.0)
    output = tmp_path / "out.csv"
    with Journal(output, "settings", ROADS, 1) as part:
        # The first process is gone, but the run is not.
        with pytest.raises(CannotWriteError, match="is being written by another run"):
            Journal(output, "settings", ROADS)
        assert part.path.exists()
    Journal(output, "settings", ROADS).remove()
    assert not list(tmp_path.iterdir())


# --- bounds ---------------------------------------------------------------------------------------


class HeldPool:
    """Pool whose jobs end only when they are waited for."""

    def __init__(self, _: int) -> None:
        self.held: list[tuple[Future[Any], Any]] = []

    def submit(self, job: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self.held.append((future, lambda: job(*arguments)))
        return future

    def release(self) -> None:
        for future, result in self.held:
            future.set_result(result())
        self.held.clear()

    def shutdown(self) -> None:
        assert not self.held


def test_few_images_are_in_memory_at_once(
    area: Area, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = HeldPool(1)
    monkeypatch.setattr("satmap.runtime.workers.start_pool", lambda workers: pool)

    def waited(pending: Any, **_: Any) -> tuple[list[Any], list[Any]]:
        pool.release()
        return list(pending), []

    monkeypatch.setattr("satmap.runtime.workers.wait_for", waited)
    counts = {"read": 0, "looked": 0}
    most = {"images": 0, "maps": 0}
    lock = threading.Lock()
    read, launch = pictures.prepare_image, share.launch_networks

    def counted_read(*arguments: Any) -> PreparedImage:
        with lock:
            counts["read"] += 1
            most["images"] = max(most["images"], counts["read"] - counts["looked"])
        return read(*arguments)

    def counted_launch(*arguments: Any) -> PendingResult:
        # Let the reader get as far ahead as it can.
        time.sleep(0.01)
        with lock:
            counts["looked"] += 1
        most["maps"] = max(most["maps"], len(pool.held))
        return launch(*arguments)

    monkeypatch.setattr(plan, "prepare_image", counted_read)
    monkeypatch.setattr(share, "launch_networks", counted_launch)
    assert area.predict(tmp_path, workers=2) == area.done
    # The damaged image is read but never predicted.
    assert counts == {"read": COLUMNS * ROWS + 1, "looked": COLUMNS * ROWS}
    assert 1 < most["images"] <= share.READ_AHEAD + 2
    assert 1 < most["maps"] <= 2 * share.JOBS_PER_WORKER
    assert files_in(tmp_path) == area.files


def test_reading_ahead_keeps_the_order_and_the_faults() -> None:
    threads = set()

    def read(item: int) -> int:
        threads.add(threading.current_thread())
        if item == 7:
            raise ValueError("seven")
        return item * item

    def taken(ahead: int) -> Iterator[tuple[int, int]]:
        return read_ahead(range(10), read, ahead)

    for ahead in (0, 1, 3):
        pairs = taken(ahead)
        assert [next(pairs) for _ in range(7)] == [(i, i * i) for i in range(7)]
        with pytest.raises(ValueError, match="seven"):
            next(pairs)
    assert len(threads) == 3


def test_jobs_beyond_the_limit_wait_and_handlers_see_faults() -> None:
    outcomes: list[str] = []

    def handle(future: "Future[float]") -> None:
        outcomes.append(str(future.exception() or future.result()))

    for workers in (0, 1):
        outcomes.clear()
        with BoundedPool(workers, 2) as pool:
            for submitted, number in enumerate((4, -1, 9, 16), 1):
                # Workers need not import this module for a function of another one.
                pool.submit(handle, math.sqrt, number)
                assert submitted - len(outcomes) <= 2
        assert sorted(outcomes) == ["2.0", "3.0", "4.0", "math domain error"]


# --- large scenes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("product", [RGB, MULTISPECTRAL])
def test_windows_of_an_image_are_stretched_like_the_whole(
    tmp_path: Path, product: str, channels: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satmap.data.imagery._STRIP_ROWS", 40)
    bands = 3 if product == RGB else 8
    path = write_image(tmp_path / "a.tif", bands=bands, size=(97, 130), dtype="uint16", nodata=7)
    info = read_info(path, product)
    whole = read_stretched(info, 2, 98, channels)
    image = StretchedImage(info, 2, 98, channels)
    assert image.shape == whole.shape
    for rows, columns in ((slice(0, 97), slice(0, 130)), (slice(30, 90), slice(64, 65))):
        assert np.array_equal(image[rows, columns], whole[rows, columns])


def test_large_scenes_are_predicted_strip_by_strip_to_the_same_bytes(
    area: Area, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(area.recipe)
    inference = Inference(tta=1, window=64, overlap=8)
    path = tmp_path / "windows.yaml"
    path.write_text(recipe.model_copy(update={"inference": inference}).model_dump_json())
    places = tmp_path / "small", tmp_path / "large"
    strips = []
    original = predict_strips

    def counted(*arguments: Any, **named: Any) -> Iterator[Strip]:
        for strip in original(*arguments, **named):
            strips.append(strip.get().shape[1])
            yield strip

    monkeypatch.setattr(dense, "predict_strips", counted)
    for place in places:
        predict([area.images], place / "out.csv", area.weights, CPU, str(path),
                maps=place / "maps")  # fmt: skip
        assert len(strips) == 2 * COLUMNS * ROWS
        strips.clear()
        monkeypatch.setattr(pictures, "MAX_VALUES_IN_MEMORY", 0)
    small, large = map(files_in, places)
    assert small["out.csv"] == large["out.csv"]
    assert small.keys() == large.keys()
