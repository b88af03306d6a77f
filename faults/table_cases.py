"""Tables, lists and masks of submissions and truths, and probability masks, that are odd or no such
thing."""

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

# Damaged masks in one run.
_COPIES = 32


def table_cases() -> list[Case]:
    """All of them."""
    good = (_HEADER + _ROW).encode()
    many = ", ".join(f"{i} {i % 7}" for i in range(10_000))
    cases = []
    for kind, head, row in (
        ("roads CSV", _HEADER, _ROW),
        ("buildings CSV", _BUILDING_HEADER, _BUILDING_ROW),
    ):
        cases += [_harmed(kind, name, done, (head + 40 * row).encode()) for name, done in _DAMAGE]
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
            _text(kind, "an id of a terminal's commands", head + row.replace("AOI", "\x1b[2J"), ""),
            _text(kind, "numbers that are none", head + row.replace("30", "nan")),
        ]  # fmt: skip
    results = json.dumps([_RESULT] * 40).encode()
    cases += [_harmed("COCO results", name, done, results) for name, done in _DAMAGE]
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
    cases += [_scored("roads CSV", name, done, good) for name, done in _DAMAGE]
    cases += [_of_masks(name, done) for name, done in (*harm.ANY_FILE, ("cut off", harm.truncated))]
    cases += [
        _vectorized(name, done)
        for name, done in (
            *harm.ANY_FILE,
            ("a PNG under a TIFF's name", _as_png),
            ("NaN and infinity", _odd_floats),
            ("16-bit numbers", _sixteen_bits),
            ("2 bands", _two_bands),
            ("a million rows and columns in a few kilobytes", _bomb),
        )
    ]
    cases += [
        _vectorized_many("PNG cut off anywhere", harm.truncated, ".png"),
        _vectorized_many("PNG, 8 bits turned anywhere", harm.flipped(8), ".png"),
        _vectorized_many("GeoTIFF cut off anywhere", harm.truncated, ".tif"),
        _vectorized_many("GeoTIFF, 8 bits turned anywhere", harm.flipped(8), ".tif"),
        Case("tables", "check: a directory's images missing in the file", _missing_images),
    ]
    return cases


_DAMAGE: tuple[tuple[str, Harm], ...] = (
    *harm.ANY_FILE,
    ("cut off anywhere", harm.truncated),
    ("8 bits turned anywhere", harm.flipped(8)),
)


def _harmed(kind: str, name: str, done: Harm, content: bytes) -> Case:
    """A submission, harmed and checked."""
    suffix = ".json" if kind.startswith("COCO") else ".csv"

    def play(bench: Bench) -> str:
        path = bench.directory / f"submission{suffix}"
        path.write_bytes(content)
        done(path, bench.random)
        return _check(bench, path, "" if "anywhere" in name else REFUSED)

    return Case("tables", f"{kind}, check: {name}", play)


def _text(kind: str, name: str, text: str | bytes, outcome: str = REFUSED) -> Case:
    """A submission of some content, checked."""
    suffix = ".json" if kind.startswith("COCO") else ".csv"

    def play(bench: Bench) -> str:
        path = bench.directory / f"submission{suffix}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return _check(bench, path, outcome)

    return Case("tables", f"{kind}, check: {name}", play)


def _check(bench: Bench, path: Path, outcome: str) -> str:
    ended = bench.run("check", path)
    bench.must("\x1b" not in ended.printed + ended.said, "an escape sequence reaches the terminal")
    bench.must(len(ended.printed) + len(ended.said) < 20_000, "prints far too much")
    if outcome == REFUSED:
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.printed!r}")
    if outcome == READ:
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.printed!r}")
    if ended.status == FAILED:
        where = ended.printed + ended.said
        bench.must(path.name in where, f"does not name {path.name}: {where!r}")
        return FOUND_FAULTS if "fault" in ended.printed else REFUSED
    return READ


def _scored(kind: str, name: str, done: Harm, content: bytes) -> Case:
    """A truth of roads, harmed."""

    def play(bench: Bench) -> str:
        truth, proposal = bench.directory / "truth.csv", bench.directory / "proposal.csv"
        truth.write_bytes(content)
        proposal.write_bytes(content)
        done(truth, bench.random)
        ended = bench.run("score", truth, proposal, "--json")
        if "anywhere" not in name:
            bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
        if ended.status == FAILED:
            bench.must_say(ended, truth.name)
            return REFUSED
        return READ

    return Case("tables", f"{kind}, score: {name}", play)


def _of_masks(name: str, done: Harm) -> Case:
    """Masks of buildings, one harmed."""

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
        done(masks / "b.TIF", bench.random)
        ended = bench.run("check", masks)
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.printed!r}")
        bench.must("b.TIF" in ended.printed + ended.said, f"does not name b.TIF: {ended.printed!r}")
        return FOUND_FAULTS if "fault" in ended.printed else REFUSED

    return Case("tables", f"mask rasters, check: {name}", play)


def _masks(bench: Bench) -> Path:
    masks = bench.directory / "masks"
    shutil.copytree(bench.material.maps, masks)
    return masks


def _vectorize(bench: Bench, masks: Path) -> Any:
    return bench.run(
        "vectorize", masks, bench.out, "--workers", 0, "--recipe", bench.material.alone
    )


def _vectorized(name: str, done: Harm) -> Case:
    """Masks to vectorise, one harmed."""

    def play(bench: Bench) -> str:
        masks = _masks(bench)
        victim = masks / "AOI_99_Made_chip13.tif"
        done(victim, bench.random)
        ended = _vectorize(bench, masks)
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.said[-300:]!r}")
        bench.must_say(ended, victim.name)
        shutil.copytree(bench.material.test / "AOI_99_Made_Test_Public" / "PS-MS", bench.test)
        bench.must_be_valid(harmed=["AOI_99_Made_chip13"])
        return "reported"

    return Case("masks", name, play)


def _vectorized_many(name: str, done: Harm, suffix: str) -> Case:
    """Copies of a mask, each harmed by lot."""

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
            done(copy, bench.random)
        ended = _vectorize(bench, masks)
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.said[-300:]!r}")
        found = sum(f"_chip{number}{suffix}" in ended.said for number in range(100, 100 + _COPIES))
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
    bench.must("AOI_99_Made_chip15" in ended.printed, f"names no image: {ended.printed!r}")
    return FOUND_FAULTS
