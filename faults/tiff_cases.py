"""Cases of damaged and odd images."""

import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from faults import harm
from faults.bench import DONE, Bench, rows_of
from faults.case import Case
from faults.harm import Harm

# The image that is damaged.
_VICTIM = 13
_VICTIM_ID = f"AOI_99_Made_chip{_VICTIM}"

# Number of damaged copies in one run of the random cases, and their first number.
_COPIES, _FIRST_COPY = 32, 100

_DEGREES = 2.7e-6
_PLACE = Affine(_DEGREES, 0, -115.0, 0, -_DEGREES, 36.0)


def tiff_cases() -> list[Case]:
    """Return all cases of images."""
    cases = [_one(name, damage, REPORTED) for name, damage in harm.ANY_FILE]
    cases += [
        _one(f"PS-RGB: {name}", damage, REPORTED, "PS-RGB") for name, damage in harm.ANY_FILE[:4]
    ]
    cases += [
        _many("truncated at random", harm.truncated),
        _many("PS-RGB: truncated at random", harm.truncated, "PS-RGB"),
        _many("8 random bits flipped", harm.flipped(8)),
        _many("PS-RGB: 8 random bits flipped", harm.flipped(8), "PS-RGB"),
        _many("2 bits flipped in the header", harm.flipped(2, within=400)),
        _many("PS-RGB: 2 bits flipped in the header", harm.flipped(2, within=400), "PS-RGB"),
        _one("a PNG named as a TIFF", _png, REPORTED),
        _one("a VRT that points to another file", _vrt, REPORTED),
        _one("a VRT that points to a server", _vrt_of_server, REPORTED),
        _one("no bands, by the header", _tag(277, 0), REPORTED),
        _one("4,000,000,000 columns, by the header", _tag(256, 4_000_000_000), REPORTED),
        _one("a million rows and columns in a few kilobytes", _bomb, REPORTED),
        _one("a strip of 1 x 2,000,000 pixels", _made((8, 1, 2_000_000), sparse=True), READ),
        _one("one band instead of eight", _made((1, 128, 128)), REPORTED),
        _one("nine bands", _made((9, 128, 128)), REPORTED),
        _one("a palette", _palette, REPORTED, "PS-RGB"),
        _one("float64", _made((8, 128, 128), "float64"), REPORTED),
        _one("float32 with NaN and infinity", _with_nan, REPORTED),
        _one("complex numbers", _made((8, 128, 128), "complex64"), REPORTED),
        _one("signed 16-bit numbers", _made((8, 128, 128), "int16"), REPORTED),
        _one("all black", _filled(0), WARNED),
        _one("PS-RGB: all black", _filled(0, bands=3, dtype="uint8"), WARNED, "PS-RGB"),
        _one("all white", _filled(65535), READ),
        _one("a single pixel", _made((8, 1, 1)), READ),
        _one("3 x 700 pixels", _made((8, 3, 700)), READ),
        _one("alpha that hides everything", _hidden, WARNED, "PS-RGB"),
        _one("no reference system", _made((8, 128, 128), crs=None, transform=None), READ),
        _one("degrees declared as metres", _made((8, 128, 128), crs="EPSG:32611"), REPORTED),
        _one("a local reference system", _local, REPORTED),
        _one("a rotated grid", _made((8, 96, 96), transform=_PLACE @ Affine.rotation(30)), READ),
        _one("pixels twice as high as wide", _made((8, 96, 96), transform=_stretched(2)), READ),
        _one("a grid upside down", _made((8, 96, 96), transform=_stretched(-1)), READ),
        _one("pixels of width 0", _made((8, 96, 96), transform=_PLACE @ Affine.scale(0, 1)),
             EITHER),
        _one("huge pixels", _made((8, 96, 96), transform=_PLACE @ Affine.scale(4e4)),
             REPORTED),
        _one("a georeference of NaN", _made((8, 96, 96), transform=_PLACE @ Affine.scale(np.nan)),
             EITHER),
        _one("beyond the pole", _made((8, 96, 96), transform=Affine.translation(0, 95) @ _PLACE),
             REPORTED),
        Case("tiff", "an unreadable image, unprivileged user", _unreadable),
        Case("tiff", "PS-MS broken, PS-RGB sound", _other_product),
        Case("tiff", "all images broken", _all_broken),
        Case("tiff", "two directories with the same images", _twice),
        Case("tiff", "spaces, umlauts, a comma and a leading dash in directories' names", _names),
        Case("tiff", "a newline in a directory's name", _line_end),
        Case("tiff", "a name that is not UTF-8", _not_utf8),
        Case("tiff", "an image's name of 255 characters", _long_name),
        Case("tiff", "a directory that links to itself", _circle),
        Case("tiff", "no images at all", _no_images),
    ]  # fmt: skip
    return cases


#: Expected outcomes for the damaged image: an empty row and a report; a row and a warning; a row; a
#: row or a report.
REPORTED, WARNED, READ, EITHER = "reported", "read with a warning", "read", "read or reported"


def _one(name: str, damage: Harm, outcome: str, kind: str = "PS-MS") -> Case:
    """Damage one image; the others must be as undisturbed."""

    def play(bench: Bench) -> str:
        bench.copy_test(kind)
        victim = bench.image(_VICTIM, kind)
        damage(victim, bench.random)
        ended = bench.predict()
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
        # The other product has other colours and therefore other roads.
        harmed = [_VICTIM_ID] if kind == "PS-MS" else list(bench.material.rows(True))
        bench.must_be_valid(harmed=harmed)
        reported = victim.name in ended.stderr or _VICTIM_ID in ended.stderr
        if outcome in (REPORTED, WARNED):
            bench.must(reported, f"does not name {victim.name}: {ended.stderr!r}")
        if outcome == REPORTED:
            bench.must("written as empty" in ended.stderr, f"no report: {ended.stderr!r}")
        if outcome in (READ, WARNED):
            bench.must("written as empty" not in ended.stderr, f"refused: {ended.stderr!r}")
        return f"{outcome if outcome != EITHER else 'reported' if reported else 'read'}"

    return Case("tiff", name, play)


def _many(name: str, damage: Harm, kind: str = "PS-MS") -> Case:
    """Predict copies of one image, each with random damage."""

    def play(bench: Bench) -> str:
        bench.copy_test(kind)
        victim = bench.image(_VICTIM, kind)
        for number in range(_FIRST_COPY, _FIRST_COPY + _COPIES):
            copy = bench.image(number, kind)
            shutil.copyfile(victim, copy)
            damage(copy, bench.random)
        ended = bench.predict()
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
        harmed = () if kind == "PS-MS" else list(bench.material.rows(True))
        bench.must_be_valid(harmed=harmed)
        reported = sum(
            f"_chip{number}.tif" in ended.stderr
            for number in range(_FIRST_COPY, _FIRST_COPY + _COPIES)
        )
        return f"{reported} reported, {_COPIES - reported} read"

    return Case("tiff", f"{name}, {_COPIES} files", play, 300)


# --- damage ---------------------------------------------------------------------------------------


def _made(
    shape: tuple[int, int, int],
    dtype: str = "uint16",
    *,
    sparse: bool = False,
    pixels: NDArray[Any] | None = None,
    **profile: Any,
) -> Harm:
    def write(path: Path, draw: random.Random) -> None:
        options = {"crs": "EPSG:4326", "transform": _PLACE} | profile
        count, height, width = shape
        path.unlink()
        with rasterio.open(
            path, "w", driver="GTiff", dtype=dtype, count=count, height=height, width=width,
            SPARSE_OK=sparse, **{key: value for key, value in options.items() if value is not None},
        ) as target:  # fmt: skip
            if not sparse:
                noise = np.random.default_rng(draw.getrandbits(32)).integers(1, 120, shape)
                target.write(noise.astype(dtype) if pixels is None else pixels)

    return write


def _stretched(factor: float) -> Affine:
    return _PLACE @ Affine.scale(1, factor)


def _filled(value: int, bands: int = 8, dtype: str = "uint16") -> Harm:
    shape = (bands, 128, 128)
    return _made(shape, dtype, pixels=np.full(shape, value, dtype))


def _with_nan(path: Path, draw: random.Random) -> None:
    pixels = np.ones((8, 128, 128), np.float32)
    pixels[:, ::3], pixels[:, 1::3] = np.nan, np.inf
    _made(pixels.shape, "float32", pixels=pixels)(path, draw)


def _hidden(path: Path, draw: random.Random) -> None:
    pixels = np.full((4, 128, 128), 90, np.uint8)
    pixels[3] = 0
    _made(pixels.shape, "uint8", pixels=pixels, photometric="RGB")(path, draw)
    with rasterio.open(path, "r+") as image:
        image.colorinterp = [
            ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha,
        ]  # fmt: skip


def _palette(path: Path, draw: random.Random) -> None:
    _made((1, 128, 128), "uint8", photometric="palette")(path, draw)
    with rasterio.open(path, "r+") as image:
        image.write_colormap(1, {value: (value, 0, 255, 255) for value in range(256)})


def _local(path: Path, draw: random.Random) -> None:
    _made((8, 128, 128), crs='LOCAL_CS["a building site",UNIT["metre",1]]')(path, draw)


def _png(path: Path, draw: random.Random) -> None:
    path.unlink()
    with rasterio.open(
        path, "w", driver="PNG", dtype="uint8", count=3, height=64, width=64
    ) as target:
        target.write(np.ones((3, 64, 64), np.uint8))
    path.with_name(f"{path.name}.aux.xml").unlink(missing_ok=True)


def _vrt(path: Path, draw: random.Random) -> None:
    other = path.with_name(path.name.replace(f"chip{_VICTIM}", "chip14"))
    path.write_text(_vrt_text(str(other)))


def _vrt_of_server(path: Path, draw: random.Random) -> None:
    # A local port without a listener: a connection attempt shows in the messages.
    path.write_text(_vrt_text("/vsicurl/http://127.0.0.1:9/image.tif"))


def _vrt_text(source: str) -> str:
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in range(1, 9)
    )
    return f'<VRTDataset rasterXSize="128" rasterYSize="128">{bands}</VRTDataset>'


def _tag(number: int, value: int) -> Harm:
    """Return a function that changes a tag of the first directory of a little-endian TIFF."""

    def write(path: Path, draw: random.Random) -> None:
        content = bytearray(path.read_bytes())
        (start,) = struct.unpack_from("<I", content, 4)
        (entries,) = struct.unpack_from("<H", content, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            if struct.unpack_from("<H", content, entry)[0] == number:
                # The tag becomes a single 32-bit number.
                struct.pack_into("<HII", content, entry + 2, 4, 1, value)
        path.write_bytes(content)

    return write


def _bomb(path: Path, draw: random.Random) -> None:
    _made(
        (8, 1_000_000, 1_000_000), sparse=True, tiled=True, blockxsize=16384, blockysize=16384,
        compress="deflate", BIGTIFF="YES",
    )(path, draw)  # fmt: skip


# --- single cases ---------------------------------------------------------------------------------


def _unreadable(bench: Bench) -> str:
    bench.copy_test()
    victim = bench.image(_VICTIM)
    victim.chmod(0)
    return _as_nobody(bench, lambda: bench.must_be_valid(harmed=[_VICTIM_ID]), victim.name)


def _as_nobody(bench: Bench, check: Callable[[], None], name: str) -> str:
    within: tuple[str, ...] = ()
    if os.geteuid() == 0:
        within = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        for path in (bench.directory, *(bench.directory / n for n in ("home", "tmp", "output"))):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
    ended = bench.predict(within=within)
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
    bench.must_say(ended, name)
    check()
    return REPORTED


def _other_product(bench: Bench) -> str:
    bench.copy_test()
    bench.copy_test("PS-RGB")
    victim = bench.image(_VICTIM)
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    ended = bench.predict()
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
    bench.must_say(ended, victim.name)
    bench.must_be_valid(harmed=[_VICTIM_ID])
    return WARNED


def _all_broken(bench: Bench) -> str:
    bench.copy_test()
    for number in bench.material.numbers:
        harm.truncated(bench.image(number), bench.random)
        bench.image(number).write_bytes(bench.image(number).read_bytes()[:5000])
    ended = bench.predict()
    bench.must(ended.status == 1, f"status {ended.status}")
    bench.must_say(ended, *(bench.image(number).name for number in bench.material.numbers))
    bench.must_be_valid(harmed=list(bench.material.rows(True)))
    return "status 1, empty rows, all reported"


def _twice(bench: Bench) -> str:
    bench.copy_test()
    shutil.copytree(bench.test / "PS-MS", bench.test / "copy")
    ended = bench.predict()
    bench.must_refuse(ended, "have the id", "Give directories that hold each image only once")
    return "refused"


def _names(bench: Bench) -> str:
    bench.copy_test()
    odd = bench.test / "-rf a, b; Zürich 東京 'x' $(id)"
    (bench.test / "PS-MS").rename(odd)
    ended = bench.predict()
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
    bench.must_be_valid()
    bench.must(len(rows_of(bench.out)) == len(bench.material.numbers), "images are missing")
    return READ


def _line_end(bench: Bench) -> str:
    bench.copy_test()
    (bench.test / "PS-MS").rename(bench.test / "a\nb\x1b[31m")
    odd = bench.test / "a\nb\x1b[31m"
    harm.empty(odd / bench.image(_VICTIM).name, bench.random)
    ended = bench.predict()
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
    bench.must("\x1b" not in ended.stderr + ended.stdout, "an escape sequence reaches the terminal")
    bench.must_be_valid(harmed=[_VICTIM_ID])
    return REPORTED


def _not_utf8(bench: Bench) -> str:
    bench.copy_test()
    victim = bench.image(_VICTIM)
    victim.rename(victim.with_name(os.fsdecode(b"\xff\xfe.tif")))
    ended = bench.predict()
    bench.must_refuse(ended, "names must be UTF-8")
    return "refused"


def _long_name(bench: Bench) -> str:
    bench.copy_test()
    name = f"SN5_roads_test_public_AOI_99_{'M' * 209}_PS-MS_chip{_VICTIM}.tif"
    bench.image(_VICTIM).rename(bench.image(_VICTIM).with_name(name))
    ended = bench.predict("--probabilities", bench.directory / "maps")
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
    bench.must_be_valid(harmed=[_VICTIM_ID])
    return READ


def _circle(bench: Bench) -> str:
    bench.copy_test()
    (bench.test / "PS-MS" / "again").symlink_to(bench.test)
    ended = bench.predict()
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
    bench.must_be_valid()
    return READ


def _no_images(bench: Bench) -> str:
    bench.test.mkdir(parents=True)
    ended = bench.predict()
    bench.must_refuse(ended, "no SpaceNet road images found", "Expected names such as")
    return "refused"
