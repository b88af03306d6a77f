"""Near-duplicate images, and folds that keep them together."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from building_recipes import BUILDING_RECIPE
from satmap.cli import main
from satmap.data.audit import audit_images, near_duplicates, perceptual_hashes
from satmap.data.chip import Chip
from satmap.data.folds import assign_folds, duplicate_groups
from satmap.data.imagery import ImageInfo
from satmap.errors import SatmapError
from satmap.weights.header import read_metadata
from synthetic_chips import square, write_coco


def scene(seed: int, size: int = 120) -> NDArray[np.uint8]:
    rough = np.random.default_rng(seed).standard_normal((size, size, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(rough, (0, 0), 6)
    return np.asarray(np.clip(smooth / smooth.std() * 40 + 120, 0, 255), np.uint8)


def test_compressed_scaled_and_brighter_images_are_found(tmp_path: Path) -> None:
    train, validation = tmp_path / "train", tmp_path / "val"
    train.mkdir()
    validation.mkdir()
    for seed in range(12):
        cv2.imwrite(str(train / f"{seed}.png"), scene(seed))
    cv2.imwrite(str(train / "again.jpg"), scene(3), [cv2.IMWRITE_JPEG_QUALITY, 60])
    cv2.imwrite(str(validation / "scaled.png"), cv2.resize(scene(5), (90, 90)))
    cv2.imwrite(str(validation / "turned.png"), np.rot90(scene(7)).copy())
    cv2.imwrite(str(validation / "new.png"), scene(100))
    grey = scene(6).mean(axis=2)
    with rasterio.open(
        validation / "brighter.tif", "w", driver="GTiff", width=120, height=120, count=1,
        dtype="uint16",
    ) as file:  # fmt: skip
        file.write((grey * 20 + 300).astype(np.uint16), 1)
    cv2.imwrite(str(validation / "flat.png"), np.full((50, 50), 9, np.uint8))
    (train / "broken.jpg").write_bytes(b"no image")

    found = audit_images([tmp_path], [validation])
    assert (found.training, found.validation) == (14, 5)
    names = {tuple(sorted(path.name for path in group)) for group in found.groups}
    assert names == {("3.png", "again.jpg"), ("5.png", "scaled.png"), ("6.png", "brighter.tif")}
    assert {path.name for path in found.leaked} == {"scaled.png", "brighter.tif"}
    assert [path.name for path in found.flat] == ["flat.png"]
    assert [path.name for path in found.faults] == ["broken.jpg"]
    turned = audit_images([tmp_path], [validation], turned=True)
    assert {path.name for path in turned.leaked} == {"scaled.png", "brighter.tif", "turned.png"}


def test_the_eight_views_follow_from_one_transform() -> None:
    grey = cv2.resize(scene(1).mean(axis=2).astype(np.float32), (32, 32))
    views = [np.rot90(x, k) for x in (grey, grey.T) for k in range(4)]
    assert {int(perceptual_hashes(view)[0]) for view in views} == set(
        perceptual_hashes(grey).tolist()
    )


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(0, 3))
def test_groups_equal_those_of_all_pairs(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 12, dtype=np.uint64)
    hashes = np.concatenate([hashes, hashes])
    for number in range(12, 24):
        for place in rng.choice(64, rng.integers(0, 6), replace=False).tolist():
            hashes[number] ^= np.uint64(1 << place)
    group = near_duplicates(hashes[:, None], bits)
    # Slow reference: spread group numbers over all near pairs until nothing changes.
    own = list(range(24))
    for _ in range(4):
        for a in range(24):
            for b in range(24):
                if int(hashes[a] ^ hashes[b]).bit_count() <= bits:
                    own[a] = own[b] = min(own[a], own[b])
    assert all((group[a] == group[b]) == (own[a] == own[b]) for a in range(24) for b in range(24))


def test_folds_keep_groups_together_and_stay_even() -> None:
    chips = [(f"a{n}", "A") for n in range(40)] + [(f"b{n}", "B") for n in range(20)]
    groups = [[f"a{n}" for n in range(9)], ["a10", "a11"], ["b1", "b2", "b3"], ["unknown", "b5"]]
    folds = assign_folds(chips, 4, 0, groups)
    assert folds.keys() == dict(chips).keys()
    for group in groups:
        assert len({folds[name] for name in group if name in folds}) == 1
    for area, each in (("a", 10), ("b", 5)):
        counts = np.bincount([fold for name, fold in folds.items() if name.startswith(area)])
        assert counts.tolist() == [each] * 4
    assert assign_folds(chips, 4, 0, [["unknown"]]) == assign_folds(chips, 4, 0)


def test_the_command_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SatmapError, match="no images"):
        audit_images([tmp_path])
    (tmp_path / "val").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), scene(1))
    cv2.imwrite(str(tmp_path / "val/b.png"), scene(1))
    arguments = ["audit", str(tmp_path), "--validation", str(tmp_path / "val")]
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *extra])
        assert stopped.value.code == 0
        output = capsys.readouterr().out
    assert json.loads(output)["leaked"] == [str(tmp_path / "val/b.png")]


# --- training -------------------------------------------------------------------------------------


def write_recipe(path: Path) -> Path:
    content = yaml.safe_load(BUILDING_RECIPE)
    content["members"][0]["stages"] = [content["members"][0]["stages"][1]]
    path.write_text(yaml.safe_dump(content))
    return path


def test_training_keeps_near_duplicates_in_one_fold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_coco(data, {number: [square(20, 30, 40)] for number in range(8)})
    for number in range(8):
        # 0 and 1 are near-duplicates, and so are 2, 3 and 4. The ids alone would split them.
        seed = {1: 0, 3: 2, 4: 2}.get(number, number)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95 - number]
        picture = cv2.resize(scene(seed), (96, 96))
        cv2.imwrite(str(data / f"images/{number:012d}.jpg"), picture, quality)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments)])
        read = capsys.readouterr()
        return int(stopped.value.code or 0), read.out, read.err

    report = tmp_path / "audit.json"
    # Relative paths work too.
    monkeypatch.chdir(tmp_path)
    _, printed, _ = run("audit", "data", "--json")
    report.write_text(printed)
    recipe, common = write_recipe(tmp_path / "r.yaml"), ("--device", "cpu", "--workers", 0)

    def folds(weights: Path, *flags: object) -> tuple[set[str], str]:
        options = ("--recipe", recipe, "--weights", weights, "--cache", tmp_path / "cache")
        status, message, error = run("train", data, *options, *common, *flags)
        assert status == 0, error
        (file,) = weights.glob("*.last.safetensors")
        return set(json.loads(read_metadata(file)["held_out"])), message

    dealt = assign_folds([(str(n), "mapping-challenge") for n in range(8)], 2, 0)
    plain = {name for name, fold in dealt.items() if fold == 0}
    audited, message = folds(tmp_path / "audited", "--audit", report)
    assert "2 groups of near-duplicates with 5 chips or places" in message
    apart = [
        group for group in ({"0", "1"}, {"2", "3", "4"}) if 0 < len(group & plain) < len(group)
    ]
    assert apart, "the folds keep them together by chance: choose others"
    for group in ({"0", "1"}, {"2", "3", "4"}):
        assert len(group & audited) in (0, len(group))
    assert len(audited) in (3, 4, 5)
    # A report of another directory and other files are refused.
    options = ("--recipe", recipe, "--weights", tmp_path / "w", "--cache", tmp_path / "cache")
    for text, message in (
        (printed.replace("data/images", "elsewhere"), "names none of the images"),
        ("{}", "not a report of near-duplicates"),
        ('{"groups": [[1]]}', "values that are not paths"),
        ('{"groups": [["a\\u0000"]]}', "not a report of near-duplicates"),
    ):
        report.write_text(text)
        status, _, error = run("train", data, *options, *common, "--audit", report)
        assert status == 1 and message in error
    status, _, error = run("train", data, *options, *common, "--audit", tmp_path / "none.json")
    assert status == 1 and "none.json: cannot be read" in error


def test_view_angles_of_one_place_join_their_groups(tmp_path: Path) -> None:
    def chip(name: str, place: str = "") -> Chip:
        infos = {
            product: ImageInfo(tmp_path / f"{name}-{product}.tif", product, 9, 9, 3, "uint8", None)
            for product in ("PS-RGB", "PS-MS")
        }
        return Chip(name, name, "A", infos, None, place=place)

    chips = [chip("a", "tile"), chip("b", "tile"), chip("c"), chip("d"), chip("e")]
    groups = [["a-PS-MS", "c-PS-RGB"], ["b-PS-RGB", "d-PS-MS"], ["e-PS-MS", "e-PS-RGB", "other"]]
    report = tmp_path / "audit.json"
    report.write_text(
        json.dumps({"groups": [[str(tmp_path / f"{n}.tif") for n in group] for group in groups]})
    )
    assert duplicate_groups(report, chips) == [["c", "d", "tile"]]
    report.write_text(json.dumps({"groups": []}))
    assert duplicate_groups(report, chips) == []
