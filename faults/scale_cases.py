"""Cases of very many images, and of a very large one."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from faults.bench import DONE, Bench, Ended, rows_of
from faults.case import Case
from satmap.evaluation.check import check_files

_DEGREES = 2.7e-6
_SIDE = 30_000


def scale_cases() -> list[Case]:
    """Return all cases of scale."""
    return [
        Case("scale", "predict: 10,000 chips of 32 x 32, apart", lambda b: _many(b, 20), 1500),
        Case("scale", "predict: 10,000 chips of 32 x 32 side by side", lambda b: _many(b, 1), 1500),
        Case("scale", "predict: 40 images of the same place", _one_place, 600),
        Case("scale", f"predict: one chip of {_SIDE} x {_SIDE}", _large, 1500),
    ]


def _many(bench: Bench, step: int) -> str:
    """Predict a square of chips that are ``step`` chip sides apart."""
    rows, columns, side = 100, 100, 32
    noise = np.random.default_rng(bench.random.getrandbits(32))
    for number in range(rows * columns):
        pixels = noise.integers(1, 255, (3, side, side), np.uint8)
        left, top = number % columns * step * side, number // columns * step * side
        _write(bench.image(number, "PS-RGB"), pixels, left, top)
    ended = bench.run(
        "predict", bench.test, bench.out, "--weights", bench.material.weights,
        "--recipe", bench.material.together, "--workers", 0,
    )  # fmt: skip
    return _valid(bench, ended, rows * columns)


def _valid(bench: Bench, ended: Ended, images: int) -> str:
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
    if bench.out.exists():
        faults = check_files(bench.out, [bench.test])
        bench.must(not faults, f"satmap check: {faults[:1]}")
        bench.must(len(rows_of(bench.out)) == images, "images are missing")
    return f"valid, {ended.seconds:.0f} s, {ended.peak_mb:,.0f} MB"


def _one_place(bench: Bench) -> str:
    noise = np.random.default_rng(bench.random.getrandbits(32))
    for number in range(40):
        pixels = noise.integers(1, 255, (3, 128, 128), np.uint8)
        _write(bench.image(number, "PS-RGB"), pixels, 0, 0)
    ended = bench.run(
        "predict", bench.test, bench.out, "--weights", bench.material.weights,
        "--recipe", bench.material.together, "--workers", 0,
    )  # fmt: skip
    return _valid(bench, ended, 40)


def _large(bench: Bench) -> str:
    """Predict a black scene with images of a synthetic city in a few places."""
    path = bench.image(0, "PS-RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted((next(bench.material.train.iterdir()) / "PS-RGB").iterdir())
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=3, height=_SIDE, width=_SIDE, tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", SPARSE_OK=True,
        crs="EPSG:4326", transform=_transform(0, 0),
    ) as target:  # fmt: skip
        for source in sources:
            with rasterio.open(source) as image:
                pixels = np.tile(image.read(), (1, 8, 8))
            left = bench.random.randrange(_SIDE - 1024)
            top = bench.random.randrange(_SIDE - 1024)
            target.write(pixels, window=Window(left, top, 1024, 1024))
    ended = bench.run(
        "predict", bench.test, bench.out, "--weights", bench.material.weights,
        "--recipe", bench.material.alone, "--workers", 0,
    )  # fmt: skip
    outcome = _valid(bench, ended, 1)
    bench.must(len(bench.out.read_text().splitlines()) > 10, "almost no roads")
    return outcome


def _transform(left: int, top: int) -> Affine:
    return Affine(_DEGREES, 0, -115.0 + left * _DEGREES, 0, -_DEGREES, 36.0 - top * _DEGREES)


def _write(path: Path, pixels: NDArray[np.uint8], left: int, top: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", count=count, height=height, width=width,
        crs="EPSG:4326", transform=_transform(left, top),
    ) as target:  # fmt: skip
        target.write(pixels)
