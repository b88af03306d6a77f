"""Cases of damaged and odd submissions, truths, mask rasters and probability maps."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio

from faults import harm
from faults.bench import DONE, FAILED, Bench
from faults.case import Case
from faults.harm import Harm

_HEADER = "ImageId,WKT_Pix,length_m,travel_time_s\n"
_ROW = 'AOI_99_Made_chip1,"LINESTRING (0.00 1.00, 30.00 40.00)",15.5,1.4\n'
_BUILDING_HEADER = "ImageId,BuildingId,PolygonWKT_Pix,Confidence\n"
_BUILDING_ROW = 'AOI_2_Vegas_img1,0,"POLYGON ((0 0, 30 0, 30 30, 0 30, 0 0))",1\n'
_RESULT = {
    "image_id": 1, "category_id": 100, "score": 0.5, "bbox": [0, 0, 3, 3],
    "segmentation": {"size": [300, 300], "counts": "a2"},
}  # fmt: skip

REFUSED, FOUND_FAULTS, READ = "refused", "faults with their lines", "read"

# Number of damaged masks in one run.
_COPIES = 32


def table_cases() -> list[Case]:
    """Return all cases of tables and masks."""
    good = (_HEADER + _ROW).encode()
    many = ", ".join(f"{i} {i % 7}" for i in range(10_000))
    cases = []
    for kind, head, row in (
        ("roads CSV", _HEADER, _ROW),
        ("buildings CSV", _BUILDING_HEADER, _BUILDING_ROW),
    ):
        cases += [
            _harmed(kind, name, damage, (head + 40 * row).encode()) for name, damage in _DAMAGE
        ]
        cases += [
            _text(kind, "a wrong header", f"a,b,c\n{row}"),
            _text(kind, "no header", row),
            _text(kind, "Windows' line ends", f"{head}{row}".replace("\n", "\r\n"), READ),
            _text(kind, "a byte order mark", f"\ufeff{head}{row}"),
            _text(kind, "Latin-1", (head + row.replace("AOI", "ÄOI")).encode("latin-1")),
            _text(kind, "UTF-16", f"{head}{row}".encode("utf-16")),
            _text(kind, "NUL bytes", head + row.replace("AOI", "AOI\0")),
            _text(kind, "an open quote", head + row.replace('"', "", 1)),
            _text(kind, "a cell of a million characters", head + row.replace("30", "3" * 10**6)),
            _text(kind, "a line of 10,000 vertices",
                  head + row.replace("0.00 1.00", many).replace("((0 0", f"(({many}, 0 0"), ""),
            _text(kind, "an id with terminal escapes", head + row.replace("AOI", "\x1b[2J"), ""),
            _text(kind, "NaN instead of numbers", head + row.replace("30", "nan")),
        ]  # fmt: skip
    results = json.dumps([_RESULT] * 40).encode()
    cases += [_harmed("COCO results", name, damage, results) for name, damage in _DAMAGE]
    cases += [
        _text("COCO results", name, json.dumps([{**_RESULT, **change}]))
        for name, change in (
            (
                "counts of 2 million pixels",
                {"segmentation": {"size": [3, 3], "counts": "a" * 10**6}},
            ),
            ("a size of 10^9 a side", {"segmentation": {"size": [10**9, 10**9], "counts": "a2"}}),
            ("counts that are a list", {"segmentation": {"size": [3, 3], "counts": [1, -2]}}),
            ("a score of 10^400", {"score": 10**400}),
            ("an id that is true", {"image_id": True}),
        )
    ]
    cases += [_scored("roads CSV", name, damage, good) for name, damage in _DAMAGE]
    cases += [
        _of_masks(name, damage) for name, damage in (*harm.ANY_FILE, ("truncated", harm.truncated))
    ]
    cases += [
        _vectorized(name, damage)
        for name, damage in (
            *harm.ANY_FILE,
            ("a PNG under a TIFF's name", _as_png),
            ("NaN and infinity", _odd_floats),
            ("16-bit numbers", _sixteen_bits),
            ("2 bands", _two_bands),
            ("a million rows and columns in a few kilobytes", _bomb),
        )
    ]
    cases += [
        _vectorized_many("PNG truncated at random", harm.truncated, ".png"),
        _vectorized_many("PNG, 8 random bits flipped", harm.flipped(8), ".png"),
        _vectorized_many("GeoTIFF truncated at random", harm.truncated, ".tif"),
        _vectorized_many("GeoTIFF, 8 random bits flipped", harm.flipped(8), ".tif"),
        Case("tables", "check: a directory's images missing in the file", _missing_images),
    ]
    return cases


_DAMAGE: tuple[tuple[str, Harm], ...] = (
    *harm.ANY_FILE,
    ("truncated at random", harm.truncated),
    ("8 random bits flipped", harm.flipped(8)),
)


def _harmed(kind: str, name: str, damage: Harm, content: bytes) -> Case:
    """Check a damaged submission."""
    suffix = ".json" if kind.startswith("COCO") else ".csv"

    def play(bench: Bench) -> str:
        path = bench.directory / f"submission{suffix}"
        path.write_bytes(content)
        damage(path, bench.random)
        return _check(bench, path, "" if "random" in name else REFUSED)

    return Case("tables", f"{kind}, check: {name}", play)


def _text(kind: str, name: str, text: str | bytes, outcome: str = REFUSED) -> Case:
    """Check a submission with the given content."""
    suffix = ".json" if kind.startswith("COCO") else ".csv"

    def play(bench: Bench) -> str:
        path = bench.directory / f"submission{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return _check(bench, path, outcome)

    return Case("tables", f"{kind}, check: {name}", play)


def _check(bench: Bench, path: Path, outcome: str) -> str:
    ended = bench.run("check", path)
    bench.must("\x1b" not in ended.stdout + ended.stderr, "an escape sequence reaches the terminal")
    bench.must(len(ended.stdout) + len(ended.stderr) < 20_000, "prints far too much")
    if outcome == REFUSED:
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stdout!r}")
    if outcome == READ:
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.stdout!r}")
    if ended.status == FAILED:
        where = ended.stdout + ended.stderr
        bench.must(path.name in where, f"does not name {path.name}: {where!r}")
        return FOUND_FAULTS if "fault" in ended.stdout else REFUSED
    return READ


def _scored(kind: str, name: str, damage: Harm, content: bytes) -> Case:
    """Score against a damaged truth of roads."""

    def play(bench: Bench) -> str:
        truth, proposal = bench.directory / "truth.csv", bench.directory / "proposal.csv"
        truth.write_bytes(content)
        proposal.write_bytes(content)
        damage(truth, bench.random)
        ended = bench.run("score", truth, proposal, "--json")
        if "random" not in name:
            bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
        if ended.status == FAILED:
            bench.must_say(ended, truth.name)
            return REFUSED
        return READ

    return Case("tables", f"{kind}, score: {name}", play)


def _of_masks(name: str, damage: Harm) -> Case:
    """Check building masks, one of them damaged."""

    def play(bench: Bench) -> str:
        masks = bench.directory / "masks"
        masks.mkdir()
        for chip in ("a", "b"):
            with rasterio.open(
                masks / f"{chip}.TIF", "w", driver="GTiff", dtype="uint8", count=1, height=64,
                width=64, compress="deflate",
            ) as target:  # fmt: skip
                noise = np.random.default_rng(0).integers(0, 2, (1, 64, 64), np.uint8)
                target.write(noise)
        damage(masks / "b.TIF", bench.random)
        ended = bench.run("check", masks)
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stdout!r}")
        bench.must("b.TIF" in ended.stdout + ended.stderr, f"does not name b.TIF: {ended.stdout!r}")
        return FOUND_FAULTS if "fault" in ended.stdout else REFUSED

    return Case("tables", f"mask rasters, check: {name}", play)


def _masks(bench: Bench) -> Path:
    masks = bench.directory / "masks"
    shutil.copytree(bench.material.maps, masks)
    return masks


def _vectorize(bench: Bench, masks: Path) -> Any:
    return bench.run(
        "vectorize", masks, bench.out, "--workers", 0, "--recipe", bench.material.alone
    )


def _vectorized(name: str, damage: Harm) -> Case:
    """Vectorise masks, one of them damaged."""

    def play(bench: Bench) -> str:
        masks = _masks(bench)
        victim = masks / "AOI_99_Made_chip13.tif"
        damage(victim, bench.random)
        ended = _vectorize(bench, masks)
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
        bench.must_say(ended, victim.name)
        shutil.copytree(bench.material.test / "AOI_99_Made_Test_Public" / "PS-MS", bench.test)
        bench.must_be_valid(harmed=["AOI_99_Made_chip13"])
        return "reported"

    return Case("masks", name, play)


def _vectorized_many(name: str, damage: Harm, suffix: str) -> Case:
    """Vectorise copies of a mask, each with random damage."""

    def play(bench: Bench) -> str:
        masks = _masks(bench)
        for number in range(100, 100 + _COPIES):
            copy = masks / f"AOI_99_Made_chip{number}{suffix}"
            source = bench.material.maps / "AOI_99_Made_chip13.tif"
            if suffix == ".tif":
                shutil.copyfile(source, copy)
            else:
                with rasterio.open(source) as maps:
                    cv2.imwrite(str(copy), maps.read(11))
            damage(copy, bench.random)
        ended = _vectorize(bench, masks)
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
        found = sum(
            f"_chip{number}{suffix}" in ended.stderr for number in range(100, 100 + _COPIES)
        )
        return f"{found} reported, {_COPIES - found} read"

    return Case("masks", f"{name}, {_COPIES} files", play)


def _write(path: Path, pixels: Any, **profile: Any) -> None:
    path.unlink()
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype,
        **profile,
    ) as target:  # fmt: skip
        target.write(pixels)


def _odd_floats(path: Path, draw: Any) -> None:
    pixels = np.full((1, 64, 64), np.nan, np.float32)
    pixels[:, ::2] = np.inf
    _write(path, pixels)


def _sixteen_bits(path: Path, draw: Any) -> None:
    _write(path, np.full((1, 64, 64), 700, np.uint16))


def _two_bands(path: Path, draw: Any) -> None:
    _write(path, np.full((2, 64, 64), 7, np.uint8))


def _as_png(path: Path, draw: Any) -> None:
    _, content = cv2.imencode(".png", np.full((64, 64, 3), 9, np.uint8))
    path.write_bytes(content.tobytes())


def _bomb(path: Path, draw: Any) -> None:
    path.unlink()
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=10**6, width=10**6, dtype="uint8", tiled=True,
        blockxsize=16384, blockysize=16384, SPARSE_OK=True, compress="deflate", BIGTIFF="YES",
    ):  # fmt: skip
        return


def _missing_images(bench: Bench) -> str:
    bench.copy_test()
    path = bench.directory / "short.csv"
    path.write_text("\n".join(bench.material.predicted_alone.read_text().splitlines()[:2]) + "\n")
    ended = bench.run("check", path, bench.test)
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
    bench.must("AOI_99_Made_chip15" in ended.stdout, f"names no image: {ended.stdout!r}")
    return FOUND_FAULTS
