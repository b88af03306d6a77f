import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from full_disks import full_disk
from satmap.errors import CannotWriteError, SatmapError
from satmap.evaluation.metrics.jaccard import score_masks
from satmap.io.checksums import record_file
from satmap.submissions import mask_rasters
from satmap.submissions.formats import Format, detect
from satmap.submissions.mask_rasters import (
    check_masks,
    encode_mask,
    find_masks,
    open_mask,
    read_mask,
)
from satmap.submissions.output_checks import require_map_output
from satmap.vectors.georeference import Georeference

Mask = NDArray[np.bool_]

MASK = np.array([[0, 1, 1], [0, 0, 1]], np.bool_)


def write_raster(path: Path, pixels: NDArray[Any], **profile: Any) -> None:
    """Write a raster (h, w) or (bands, h, w), as other programs do."""
    bands = pixels if pixels.ndim == 3 else pixels[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(bands),
        height=bands.shape[1],
        width=bands.shape[2],
        dtype=bands.dtype,
        **profile,
    ) as sink:
        sink.write(bands)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a mask in the organisers' format."""
    write_raster(path, mask.astype(np.uint8), compress="deflate")


def write_masks(directory: Path, masks: Mapping[str, Mask]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for chip, mask in masks.items():
        write_mask(directory / f"{chip}.TIF", mask)
    return directory


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels",
    [
        MASK.astype(np.uint8) * 255,
        MASK.astype(np.int16),
        MASK.astype(np.float32),
        np.where(MASK, [1, 255, 1], 0).astype(np.uint8),
    ],
)
def test_masks_of_other_programs(tmp_path: Path, pixels: NDArray[Any]) -> None:
    write_raster(tmp_path / "chip.tif", pixels)
    assert np.array_equal(read_mask(tmp_path / "chip.tif"), MASK)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 7]], np.uint8), "a pixel of value 7"),
        (np.array([[0.5, 1]], np.float32), "a pixel of value 0.5"),
        (np.array([[np.nan, 1]], np.float32), "a pixel of value nan"),
        (np.zeros((3, 2, 2), np.uint8), "3 bands"),
    ],
)
def test_rasters_that_are_not_masks(tmp_path: Path, pixels: NDArray[Any], message: str) -> None:
    write_raster(tmp_path / "chip.tif", pixels)
    with pytest.raises(SatmapError, match=rf"chip\.tif: {message}"):
        read_mask(tmp_path / "chip.tif")


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "chip.TIF"
    with pytest.raises(SatmapError, match=r"chip\.TIF: not a readable raster"):
        read_mask(path)
    path.write_text("no raster")
    with pytest.raises(SatmapError, match=r"chip\.TIF: not a readable raster"):
        read_mask(path)
    write_mask(path, np.random.default_rng(0).random((600, 600)) < 0.5)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(SatmapError, match=r"chip\.TIF: its pixels cannot be read"):
        read_mask(path)
    (fault,) = check_masks(tmp_path)
    assert fault.message.startswith("chip.TIF: its pixels cannot be read")


def test_large_masks_are_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.random.default_rng(0).random((30, 7)) < 0.5
    write_mask(tmp_path / "chip.TIF", mask)
    for pixels, pieces in ((1, 30), (27, 10), (28, 8), (10_000, 1)):
        monkeypatch.setattr(mask_rasters, "_PIECE_PIXELS", pixels)
        with open_mask(tmp_path / "chip.TIF") as raster:
            assert (raster.width, raster.height) == (7, 30)
            read = [raster.read(rows) for rows in raster.pieces()]
        assert len(read) == pieces
        assert np.array_equal(np.concatenate(read), mask)


# --- finding --------------------------------------------------------------------------------------


def test_masks_are_found_flat_and_in_folders_of_their_name(tmp_path: Path) -> None:
    names = ["c10.TIF", "c9.tif", "c8/c8.tiff", "c7/c7.TIF"]
    others = ["c6/c5.tif", "c4.png", ".c3.TIF", "c2/notes.txt", "c2.TIF/c1.tif"]
    for name in (*names, *others):
        write_raster(tmp_path / name, MASK.astype(np.uint8))
    found = find_masks(tmp_path)
    assert list(found) == ["c7", "c8", "c9", "c10"]
    assert {mask.path for mask in found.values()} == {tmp_path / name for name in names}


@pytest.mark.parametrize(("one", "two"), [("c.TIF", "c.tif"), ("c.TIF", "c/c.tif")])
def test_two_masks_of_a_chip(tmp_path: Path, one: str, two: str) -> None:
    for name in (one, two):
        write_raster(tmp_path / name, MASK.astype(np.uint8))
    with pytest.raises(SatmapError, match="both masks of the chip c; remove one") as error:
        find_masks(tmp_path)
    assert str(tmp_path / one) in str(error.value)
    assert str(tmp_path / two) in str(error.value)


def test_invalid_directories(tmp_path: Path) -> None:
    for read in (find_masks, check_masks):
        with pytest.raises(SatmapError, match=r"cannot read .*none"):
            read(tmp_path / "none")


# --- writing and archives -------------------------------------------------------------------------

CHIPS = {"c2": MASK, "c10": np.ones((5, 6), np.bool_), "c3": np.zeros((3, 2), np.bool_)}


def write(output: Path, masks: Mapping[str, Mask] = CHIPS) -> Path:
    encoded = ((chip, encode_mask(mask.__getitem__, mask.shape)) for chip, mask in masks.items())
    mask_rasters.write_masks(output, encoded)
    return output


@pytest.mark.parametrize("name", ["masks", "masks.zip", "masks.tgz", "MASKS.ZIP"])
def test_written_masks_are_read_back_and_have_the_same_bytes_every_time(
    tmp_path: Path, name: str
) -> None:
    first, second = write(tmp_path / "a" / name), write(tmp_path / "b" / name)
    assert record_file(first).sha256 == record_file(second).sha256
    found = find_masks(first)
    assert list(found) == ["c2", "c3", "c10"]
    for chip, mask in found.items():
        assert np.array_equal(read_mask(mask), CHIPS[chip])
    sizes = {chip: (mask.shape[1], mask.shape[0]) for chip, mask in CHIPS.items()}
    assert check_masks(first, sizes) == []
    assert detect(first) is Format.MASKS
    assert score_masks(first, second).total["jaccard"] == 1
    # A result replaces an older one, and nothing else is left.
    write(second, {"c2": ~MASK})
    assert record_file(first).sha256 != record_file(second).sha256
    assert list(find_masks(second)) == ["c2"]
    assert [path.name for path in second.parent.iterdir()] == [name]


def test_a_mask_is_compressed_has_one_byte_per_pixel_and_keeps_its_place(tmp_path: Path) -> None:
    place = Georeference(
        rasterio.crs.CRS.from_epsg(32736).to_wkt(), Affine(2, 0, 5, 0, -2, 9), (2, 2)
    )
    mask = np.random.default_rng(0).random((700, 9000)) < 0.001
    (tmp_path / "c.TIF").write_bytes(encode_mask(mask.__getitem__, mask.shape, place))
    with rasterio.open(tmp_path / "c.TIF") as source:
        assert (source.count, source.dtypes, source.compression.value) == (1, ("uint8",), "DEFLATE")
        assert (source.crs.to_epsg(), source.transform) == (32736, place.transform)
        assert np.array_equal(source.read(1), mask)
    assert (tmp_path / "c.TIF").stat().st_size < mask.size / 50


def test_faults_of_archives(tmp_path: Path) -> None:
    mask = encode_mask(MASK.__getitem__, MASK.shape)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("masks/c1.TIF", "c2.tif", "c3.TIF", "masks/c3.TIF", "readme.txt"):
            archive.writestr(name, mask)
        archive.writestr("__MACOSX/c4.TIF", mask)
        archive.writestr("c5.TIF", mask[:40])
    with pytest.raises(SatmapError, match=r"a\.zip/c3\.TIF and .*masks/c3\.TIF are both masks"):
        find_masks(tmp_path / "a.zip")
    messages = [fault.message for fault in check_masks(tmp_path / "a.zip", {"c3": (3, 2)})]
    assert [message.split(" (")[0] for message in messages] == [
        "masks/c1.TIF: must be c1.TIF, in the archive itself",
        "masks/c1.TIF: unknown chip c1",
        "c2.tif: must be c2.TIF, in the archive itself",
        "c2.tif: unknown chip c2",
        "masks/c3.TIF: the chip c3 has another mask in c3.TIF",
        "c5.TIF: unknown chip c5",
        "c5.TIF: not a readable raster",
        "readme.txt: not a chip's mask",
    ]
    # Truncated, encrypted and empty archives.
    for name in ("masks.zip", "masks.tgz"):
        whole = write(tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SatmapError, match="the archive cannot be read"):
            find_masks(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "b.zip", "w"):
        pass
    assert [fault.message for fault in check_masks(tmp_path / "b.zip")] == [
        "the archive has no masks"
    ]


def test_archives_that_claim_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_rasters, "_MOST_UNPACKED", 500)
    with pytest.raises(SatmapError, match="unpack it and give the directory"):
        find_masks(write(tmp_path / "masks.tgz"))


@pytest.mark.parametrize("name", ["masks", "masks.zip", "masks.tgz"])
def test_a_full_disk_keeps_the_older_result(tmp_path: Path, name: str) -> None:
    output = write(tmp_path / name, {"c2": MASK})
    noise = {"c3": np.random.default_rng(0).random((500, 500)) < 0.5}
    with full_disk(4096), pytest.raises(CannotWriteError, match=r"cannot write .*masks"):
        write(output, noise)
    assert list(find_masks(output)) == ["c2"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(CannotWriteError, match="cannot be the name of a mask"):
        write(output, {"../c4": MASK})


def test_only_a_directory_of_masks_is_replaced(tmp_path: Path) -> None:
    require_map_output(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    require_map_output(tmp_path / "empty")
    masks = write(tmp_path / "masks")
    # They may be labels.
    with pytest.raises(CannotWriteError, match="holds other things than masks"):
        require_map_output(masks)
    (tmp_path / "masks.manifest.json").write_text("{}")
    require_map_output(masks)
    image = np.full((3, 8, 8), 7, np.uint8)
    write_raster(tmp_path / "images/c1.TIF", image)
    write_raster(tmp_path / "chips/c1/c1.tif", image)
    for name in ("images", "chips"):
        with pytest.raises(CannotWriteError, match="holds other things than masks"):
            require_map_output(tmp_path / name)


# --- checking -------------------------------------------------------------------------------------


def test_files_that_the_organisers_accept_have_no_fault(tmp_path: Path) -> None:
    write_masks(tmp_path, {"c2": MASK, "c10": np.ones((5, 6), np.bool_)})
    write_raster(tmp_path / "c3.TIF", MASK.astype(np.uint8))  # not compressed
    (tmp_path / ".DS_Store").write_text("of no interest")
    assert check_masks(tmp_path) == []
    assert check_masks(tmp_path, {"c2": (3, 2), "c10": (6, 5), "c3": (3, 2)}) == []


@pytest.mark.parametrize(
    ("name", "pixels", "messages"),
    [
        ("c.TIF", np.zeros((2, 2, 3), np.uint8), ["2 bands; there must be one"]),
        ("c.TIF", np.zeros((2, 3), np.uint16), ["pixels of type uint16; they must be uint8"]),
        ("c.TIF", MASK * np.uint8(255), ["a pixel of value 255; there must be only 0 and 1"]),
        ("c.TIF", np.zeros((3, 2), np.uint8), ["2 x 3 px, but the chip has 3 x 2"]),
        ("c.tif", np.zeros((2, 3), np.uint8), ["must be c.TIF, in the directory itself"]),
        ("c/c.TIF", np.zeros((2, 3), np.uint8), ["must be c.TIF, in the directory itself"]),
        ("d.TIF", np.zeros((9, 9), np.uint8), ["unknown chip d"]),
        ("c.png.aux.xml", np.zeros((2, 3), np.uint8), ["not a chip's mask"]),
        ("e/c.TIF", np.zeros((2, 3), np.uint8), ["not a chip's mask"]),
        (
            "c.tif",
            np.full((2, 2, 2), 3, np.int32),
            [
                "must be c.TIF, in the directory itself",
                "2 x 2 px, but the chip has 3 x 2",
                "2 bands; there must be one",
                "pixels of type int32; they must be uint8",
                "a pixel of value 3; there must be only 0 and 1",
            ],
        ),
    ],
)
def test_each_fault_is_found(
    tmp_path: Path, name: str, pixels: NDArray[Any], messages: list[str]
) -> None:
    write_masks(tmp_path, {"b": MASK})
    write_raster(tmp_path / name, pixels)
    faults = check_masks(tmp_path, {"b": (3, 2), "c": (3, 2)})
    found = [fault.message for fault in faults if fault.message != "missing chip c"]
    assert found == [f"{name}: {message}" for message in messages]
    assert {fault.line for fault in faults} == {None}
    assert len(found) < len(faults) or name.lower().endswith("c.tif")


def test_missing_and_duplicate_chips_and_no_masks(tmp_path: Path) -> None:
    sizes = dict.fromkeys(["c10", "c9", "c1"], (3, 2))
    assert [fault.message for fault in check_masks(tmp_path, sizes)] == [
        "missing chip c1", "missing chip c9", "missing chip c10", "the directory has no masks",
    ]  # fmt: skip
    write_masks(tmp_path, {"c1": MASK, "c9": MASK})
    write_raster(tmp_path / "c1.tif", MASK.astype(np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "c9.TIF").write_text("no raster")
    faults = [fault.message for fault in check_masks(tmp_path, sizes)]
    assert faults[0] == "c1.tif: the chip c1 has another mask in c1.TIF"
    assert faults[1].startswith("c9.TIF: not a readable raster (")
    assert faults[2:] == ["empty: not a chip's mask", "missing chip c10"]


# --- the Jaccard index ----------------------------------------------------------------------------


def test_hand_computed_scores(tmp_path: Path) -> None:
    # Chip 2: 3 true pixels, 2 found, 1 of them right: 1 / 4. Chip 10: 8 of 8. Pooled: 9 / 12.
    truth = {"c2": MASK, "c10": np.ones((2, 4), np.bool_)}
    found = {"c2": np.array([[1, 1, 0], [0, 0, 0]], np.bool_), "c10": np.ones((2, 4), np.bool_)}
    report = score_masks(
        write_masks(tmp_path / "truth", truth), write_masks(tmp_path / "found", found)
    )
    assert report.metric == "jaccard"
    assert report.total == {
        "jaccard": 0.75, "tp": 9, "fp": 1, "fn": 2, "fair_jaccard": 0.75, "images": 2,
    }  # fmt: skip
    assert dict(report.images) == {
        "c2": {"jaccard": 0.25, "tp": 1, "fp": 1, "fn": 2},
        "c10": {"jaccard": 1.0, "tp": 8, "fp": 0, "fn": 0},
    }
    assert list(report.images) == ["c2", "c10"]
    assert (report.aois, report.truth_only, report.proposal_only) == ({}, (), ())
    assert {type(report.total[key]) for key in ("tp", "fp", "fn")} == {int}


def test_chips_on_one_side_only(tmp_path: Path) -> None:
    truth = {"both": MASK, "t2": np.ones((2, 2), np.bool_), "t10": MASK}
    found = {"both": MASK, "p": np.ones((5, 1), np.bool_)}
    report = score_masks(
        write_masks(tmp_path / "truth", truth), write_masks(tmp_path / "found", found)
    )
    assert report.total == {
        "jaccard": 1, "tp": 3, "fp": 0, "fn": 0, "fair_jaccard": 3 / (3 + 4 + 3 + 5), "images": 1,
    }  # fmt: skip
    assert (report.truth_only, report.proposal_only) == (("t2", "t10"), ("p",))
    assert list(report.images) == ["both"]


def test_the_index_of_empty_masks_is_one(tmp_path: Path) -> None:
    empty = {"c": np.zeros((2, 2), np.bool_)}
    report = score_masks(write_masks(tmp_path / "a", empty), write_masks(tmp_path / "b", empty))
    assert report.total["jaccard"] == report.total["fair_jaccard"] == 1
    assert report.images["c"]["jaccard"] == 1
    full = {"c": np.ones((2, 2), np.bool_)}
    report = score_masks(tmp_path / "a", write_masks(tmp_path / "b", full))
    assert report.total["jaccard"] == 0


def test_masks_that_cannot_be_compared(tmp_path: Path) -> None:
    truth = write_masks(tmp_path / "truth", {"c": MASK})
    found = write_masks(tmp_path / "found", {"c": MASK.T})
    with pytest.raises(SatmapError, match=r"truth/c\.TIF has 3 x 2 px and .*found/c\.TIF 2 x 3"):
        score_masks(truth, found)
    with pytest.raises(SatmapError, match="no chip in common, of 1 and 1"):
        score_masks(truth, write_masks(tmp_path / "other", {"C": MASK}))


def test_names_and_values_may_differ(tmp_path: Path) -> None:
    truth = write_masks(tmp_path / "truth", {"c": MASK})
    write_raster(tmp_path / "found" / "c" / "c.tif", MASK.astype(np.uint8) * 255)
    assert score_masks(truth, tmp_path / "found").total["jaccard"] == 1


chips = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.integers(0, 2**12 - 1), min_size=1, max_size=3
).map(
    lambda coded: {
        chip: np.array([code >> i & 1 for i in range(12)], np.bool_).reshape(4, 3)
        for chip, code in coded.items()
    }
)


@settings(max_examples=60, deadline=None)
@given(truth=chips, found=chips)
def test_figures_equal_the_plain_definition(
    truth: dict[str, Mask], found: dict[str, Mask], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("chips")
    a, b = write_masks(directory / "a", truth), write_masks(directory / "b", found)
    common = sorted(truth.keys() & found.keys())
    if not common:
        with pytest.raises(SatmapError, match="no chip in common"):
            score_masks(a, b)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_rasters, "_PIECE_PIXELS", 6)
        report = score_masks(a, b)

    def plain(pairs: list[tuple[bool, bool]]) -> float:
        union = sum(p or q for p, q in pairs)
        return sum(p and q for p, q in pairs) / union if union else 1.0

    def pixels(chip: str) -> list[tuple[bool, bool]]:
        none = np.zeros((4, 3), np.bool_)
        sides = truth.get(chip, none).ravel(), found.get(chip, none).ravel()
        return list(zip(sides[0].tolist(), sides[1].tolist(), strict=True))

    assert report.total["jaccard"] == plain([pair for chip in common for pair in pixels(chip)])
    every = [pair for chip in truth.keys() | found.keys() for pair in pixels(chip)]
    assert report.total["fair_jaccard"] == plain(every)
    assert {chip: figures["jaccard"] for chip, figures in report.images.items()} == {
        chip: plain(pixels(chip)) for chip in common
    }
