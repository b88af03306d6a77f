import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from repository import SHARED
from satmap.errors import SatmapError
from satmap.evaluation.metrics.coco_ap import score_coco
from satmap.submissions import coco_json, coco_masks, json_list
from satmap.submissions.coco_json import (
    Detection,
    check_coco_results,
    read_coco_results,
    read_coco_truth,
    write_coco_results,
)
from satmap.submissions.coco_masks import CocoMask
from satmap.submissions.fault import Fault

CHALLENGE = SHARED / "data" / "buildings_mapping_challenge"
needs_challenge = pytest.mark.skipif(not CHALLENGE.is_dir(), reason="no shared data here")

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]

# 4 columns and 3 rows. In column order: 3 pixels of background, 2 of the building, 7 of background.
SIZE = (4, 3)
BUILDING = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], np.bool_)
ENTRY: Mapping[str, Any] = {
    "image_id": 7,
    "category_id": 100,
    "score": 0.5,
    "segmentation": {"size": [3, 4], "counts": "327"},
    "bbox": [1, 0, 1, 2],
}
LINE = json.dumps(ENTRY)


def drawn(x: int, y: int, width: int, height: int, size: tuple[int, int] = (20, 20)) -> Mask:
    """Return a box in an image of ``size`` (width, height)."""
    mask = np.zeros(size[::-1], np.bool_)
    mask[y : y + height, x : x + width] = True
    return mask


def whole(mask: Mask, score: float = 0.5) -> Detection:
    return Detection(mask, (0, 0), score)


def write_truth(path: Path, boxes: Mapping[int, Sequence[Box]], size: int = 20) -> Path:
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": 100,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "area": w * h,
            "bbox": [x, y, w, h],
        }
        for number, (image_id, x, y, w, h) in enumerate(
            (image_id, *box) for image_id, record in boxes.items() for box in record
        )
    ]
    images = [{"id": image_id, "width": size, "height": size} for image_id in boxes]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 100}]}
    path.write_text(json.dumps(content))
    return path


def write_boxes(
    path: Path, boxes: Mapping[int, Sequence[tuple[Box, float]]], size: int = 20
) -> Path:
    found = {
        image_id: [whole(drawn(*box, (size, size)), score) for box, score in record]
        for image_id, record in boxes.items()
    }
    write_coco_results(path, found, dict.fromkeys(boxes, (size, size)))
    return path


def faults_of(tmp_path: Path, *lines: str, images: Any = None) -> list[Fault]:
    """Return the faults of a file with these entries; the first is on line 2."""
    path = tmp_path / "results.json"
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    return check_coco_results(path, images)


def changed(**changes: Any) -> str:
    return json.dumps({**ENTRY, **changes})


def runs(counts: str, size: Sequence[int] = (3, 4)) -> str:
    return changed(segmentation={"size": list(size), "counts": counts})


def slow_runs(counts: bytes) -> list[int] | None:
    """Decode run lengths by the format's definition; None if invalid."""
    numbers: list[int] = []
    value = digits = 0
    for letter in counts:
        code = letter - 48
        if not 0 <= code < 64:
            return None
        value += (code % 32) * 32**digits
        digits += 1
        if code < 32:
            if code >= 16:
                value -= 32**digits
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            if digits > 7 or not 0 <= numbers[-1] < 2**32:
                return None
            value = digits = 0
    return None if digits else numbers


def pixels(mask: CocoMask) -> Mask:
    """Return a mask as bool (h, w)."""
    lengths = slow_runs(mask.counts)
    assert lengths is not None
    drawn = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return drawn.reshape(mask.size[::-1]).T


# --- writing --------------------------------------------------------------------------------------


def test_one_entry_per_line(tmp_path: Path) -> None:
    # Image 12: runs of 3, 2, 1, 2, 4 pixels, stored as differences from the fourth: 2 - 2, 4 - 1.
    two = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], np.bool_)
    path = tmp_path / "new" / "results.json"
    found = {12: [whole(two, 1)], 3: [], 7: [whole(BUILDING)]}
    write_coco_results(path, found, {7: SIZE, 12: SIZE, 3: SIZE})
    second = changed(
        image_id=12,
        score=1.0,
        segmentation={"size": [3, 4], "counts": "32103"},
        bbox=[1, 0, 2, 2],
    )
    assert path.read_text() == f"[\n{LINE},\n{second}\n]\n"


def test_a_cropped_mask_is_placed_at_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    cut = np.array([[0, 255], [0, 3]], np.uint8)
    write_coco_results(path, {7: [Detection(cut, (0, 0), 0.5)]}, {7: SIZE})
    assert path.read_text() == f"[\n{LINE}\n]\n"
    write_coco_results(path, {7: [Detection(cut, (2, 1), 0.5)]}, {7: SIZE})
    ((result,),) = read_coco_results(path).values()
    assert pixels(result.mask).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]


def test_detections_that_cannot_score_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    empty = np.zeros((3, 4), np.bool_)
    found = {7: [whole(BUILDING, 0.3), whole(empty, 0.9), whole(BUILDING, 0.5)]}
    write_coco_results(path, found, {7: SIZE})
    assert path.read_text() == f"[\n{LINE}\n]\n"
    many = [whole(drawn(i % 20, i // 20, 1, 1), i / 200) for i in range(130)]
    write_coco_results(path, {1: many}, {1: (20, 20)})
    (results,) = read_coco_results(path).values()
    assert [result.score for result in results] == [i / 200 for i in range(129, 29, -1)]
    assert check_coco_results(path) == []


def test_without_detections_the_list_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    none: list[dict[int, list[Detection]]] = [{}, {7: []}, {7: [whole(BUILDING & False)]}]
    for found in none:
        write_coco_results(path, found, {7: SIZE})
        assert path.read_text() == "[]\n"
    assert read_coco_results(path) == {}
    (fault,) = check_coco_results(path)
    assert fault.line is None
    assert "empty" in fault.message


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        (whole(BUILDING, math.nan), "finite"),
        (whole(BUILDING, math.inf), "finite"),
        (Detection(BUILDING, (1, 0), 1), "beyond the image"),
        (Detection(BUILDING, (0, -1), 1), "beyond the image"),
        (Detection(BUILDING[0], (0, 0), 1), "shape"),
    ],
)
def test_writer_refuses_invalid_detections(
    tmp_path: Path, detection: Detection, message: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        write_coco_results(path, {1: [whole(BUILDING)], 7: [detection]}, {1: SIZE, 7: SIZE})
    with pytest.raises(ValueError, match="no size is given for image 7"):
        write_coco_results(path, {7: [whole(BUILDING)]}, {})
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_writer_names_unwritable_paths(tmp_path: Path) -> None:
    with pytest.raises(SatmapError, match="directory"):
        write_coco_results(tmp_path, {}, {})


small_masks = st.lists(st.booleans(), min_size=12, max_size=12).map(
    lambda pixels: np.array(pixels, np.bool_).reshape(3, 4)
)
detections = st.dictionaries(
    st.integers(0, 3),
    st.lists(st.builds(whole, small_masks, st.sampled_from([0.1, 0.5, 1 / 3, -2.0])), max_size=6),
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(found=detections, seed=st.integers(0, 99))
def test_written_files_have_no_faults_whatever_the_order(
    found: dict[int, list[Detection]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "results.json"
    sizes = dict.fromkeys(range(4), SIZE)
    write_coco_results(path, found, sizes)
    text = path.read_text()
    shuffle = random.Random(seed)
    mixed = {
        image_id: shuffle.sample(found[image_id], len(found[image_id]))
        for image_id in shuffle.sample(sorted(found), len(found))
    }
    write_coco_results(path, mixed, sizes)
    assert path.read_text() == text
    assert [f for f in check_coco_results(path, sizes) if "list is empty" not in f.message] == []
    kept = {
        (image_id, detection.mask.tobytes())
        for image_id, record in found.items()
        for detection in record
        if detection.mask.any()
    }
    read = {
        (image_id, pixels(result.mask).tobytes()): result.score
        for image_id, record in read_coco_results(path).items()
        for result in record
    }
    assert read.keys() == kept
    for (image_id, mask), score in read.items():
        equal = [d.score for d in found[image_id] if d.mask.tobytes() == mask]
        assert score == max(equal)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"[{LINE}]",
        f"\ufeff [ {LINE} ]\n\n",
        json.dumps([ENTRY], indent=2),
        json.dumps([ENTRY], indent=2).replace("\n", "\r\n"),
        f"[{changed(bbox=None, note='[}{', image_id=7)}]",
        json.dumps([{key: value for key, value in ENTRY.items() if key != "bbox"}]),
    ],
)
def test_variants_read_alike(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text.encode())
    ((image_id, (result,)),) = read_coco_results(path).items()
    assert (image_id, result.score) == (7, 0.5)
    assert np.array_equal(pixels(result.mask), BUILDING)


@pytest.mark.parametrize("piece", [1, 2, 7, 50, 200, 1000])
def test_files_are_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(json_list, "_PIECE_CHARACTERS", piece)
    monkeypatch.setattr(coco_json, "_BATCH_CHARACTERS", 300)
    faulty = changed(score="é€\U0001f3e0")
    faults = faults_of(tmp_path, LINE, "12345", "\n" + faulty, changed(image_id=1), "true", LINE)
    assert [(fault.line, fault.message[:7]) for fault in faults] == [
        (3, "entry 1"), (5, "entry 2"), (7, "entry 4"), (8, "entry 5"),
    ]  # fmt: skip


@pytest.mark.parametrize("piece", [16, 1 << 20])
def test_a_truncated_file_is_an_error_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(json_list, "_PIECE_CHARACTERS", piece)
    path = tmp_path / "results.json"
    text = f"[\n{LINE},\n{changed(image_id=8)}\n]"
    for end in range(len(text)):
        path.write_text(text[:end])
        (fault,) = check_coco_results(path)
        assert fault.line == text[:end].count("\n") + 1
        assert "JSON" in fault.message or not text[:end].strip()
        with pytest.raises(SatmapError, match=rf"results\.json, line {fault.line}: "):
            read_coco_results(path)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "does not begin with"),
        ("{}", 1, "is an object"),
        ('\n "[]"', 2, "does not begin with"),
        (f"[\n{LINE}\n{LINE}\n]", 3, "lacks a comma"),
        (f"[\n{LINE},\n]", 3, "not JSON: Expecting value"),
        (f"[\n{LINE}\n]\n]", 4, "follows the end"),
        ('[\n{"image_id": 7,\n\n "score": x}]', 4, "Expecting value, in the entry that .* line 2"),
        (f"[\n{LINE},\n{'[' * 100_000}", 3, "too deep"),
        (f'[\n{LINE},\n{{"image_id": {"9" * 5000}}}]', 3, "not JSON: .*digits"),
    ],
)
def test_files_that_are_not_json_lists(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(SatmapError, match=rf"results\.json, line {line}: .*{message}"):
        read_coco_results(path)
    assert check_coco_results(path)[-1].line == line


def test_files_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(f"[\n{LINE},\n".encode() + b'{"image_id": "\xff"}]')
    with pytest.raises(SatmapError, match="line 3: the line is not UTF-8"):
        read_coco_results(path)
    assert [fault.line for fault in check_coco_results(path)] == [3]
    for read in (read_coco_results, read_coco_truth, check_coco_results):
        with pytest.raises(SatmapError, match=r"cannot read .*none\.json"):
            read(tmp_path / "none.json")
    path.write_bytes(b"\xef\xbb\xbf[" + LINE.encode() + b"]")
    assert [fault.line for fault in check_coco_results(path)] == [1]


# --- checking -------------------------------------------------------------------------------------

# Faults that prevent scoring, and faults that do not.
UNREADABLE = [
    ("17", "not an object"),
    ("[]", "not an object"),
    (json.dumps({k: v for k, v in ENTRY.items() if k != "image_id"}), "no image_id"),
    (json.dumps({k: v for k, v in ENTRY.items() if k != "score"}), "no score"),
    (json.dumps({k: v for k, v in ENTRY.items() if k != "category_id"}), "no category_id"),
    (json.dumps({k: v for k, v in ENTRY.items() if k != "segmentation"}), "no segmentation"),
    (changed(image_id="7"), "image_id must be an integer"),
    (changed(image_id=7.0), "image_id must be an integer"),
    (changed(image_id=True), "image_id must be an integer"),
    (changed(image_id=10**30), "image_id must be an integer"),
    (changed(category_id=1), "category_id must be 100"),
    (changed(category_id="100"), "category_id must be 100"),
    (changed(score=None), "score must be a finite number"),
    (changed(score="0.5"), "score must be a finite number"),
    (changed(score=True), "score must be a finite number"),
    (changed(score=math.nan), "score must be a finite number"),
    (changed(score=-math.inf), "score must be a finite number"),
    (changed(score=10**400), "score must be a finite number"),
    (changed(segmentation=[[0, 0, 1, 0, 1, 1]]), "segmentation must be an object"),
    (changed(segmentation={"size": [3, 4]}), "segmentation must be an object"),
    (changed(segmentation={"size": [3, 4], "counts": [3, 2, 7]}), "counts must be text"),
    (runs("327", [3]), "size must be"),
    (changed(segmentation={"size": [3.0, 4], "counts": "327"}), "size must be"),
    (runs("327", [0, 4]), "size must be"),
    (runs("327", [-3, -4]), "size must be"),
    (runs("327", [2**16, 2**16]), "size must be"),
    (runs(""), "sum to 0, not to 3 x 4 = 12"),
    (runs("326"), "sum to 11, not to 3 x 4 = 12"),
    (runs("328"), "sum to 13, not to 3 x 4 = 12"),
    (runs("327P"), "not compressed run lengths"),  # continues after the end
    (runs("3 2 7"), "not compressed run lengths"),  # blanks are no digits
    (runs("32\x007"), "not compressed run lengths"),
    (runs("32é"), "not compressed run lengths"),
    (runs("32p"), "not compressed run lengths"),
    (runs("3O:"), "not compressed run lengths"),  # -1, which the next run balances
    (runs("PPPPPPP0<"), "not compressed run lengths"),  # a number of eight characters
]
FAULTY = [
    (json.dumps({k: v for k, v in ENTRY.items() if k != "bbox"}), "no bbox"),
    (changed(bbox=[1, 0, 1]), "bbox must be four finite numbers"),
    (changed(bbox=[1, 0, 1, math.nan]), "bbox must be four finite numbers"),
    (changed(bbox="1, 0, 1, 2"), "bbox must be four finite numbers"),
    (changed(bbox=[1, 0, 1, 3.5]), r"bbox must be [1, 0, 1, 2]"),
    (changed(bbox=[2.5, 0, 1, 2]), r"bbox must be [1, 0, 1, 2]"),
    (runs("<").replace("[1, 0, 1, 2]", "[0, 0, 0, 0]"), "mask is empty"),
    (changed(image_id=9), "unknown image 9"),
    (changed(image_id=8), "size must be [5, 4], as of the image"),
]


@pytest.mark.parametrize(("entry", "message"), UNREADABLE + FAULTY)
def test_each_fault_is_found(tmp_path: Path, entry: str, message: str) -> None:
    sizes = {1: SIZE, 2: SIZE, 7: SIZE, 8: (4, 5)}
    faults = faults_of(tmp_path, changed(image_id=1), entry, changed(image_id=2), images=sizes)
    assert [(fault.line, fault.message[:9]) for fault in faults] == [(3, "entry 1: ")]
    assert message in faults[0].message
    path = tmp_path / "results.json"
    if (entry, message) in UNREADABLE:
        with pytest.raises(SatmapError, match=r"results\.json, line 3: entry 1: ") as error:
            read_coco_results(path)
        assert message in str(error.value)
    else:
        assert sum(map(len, read_coco_results(path).values())) == 3


def test_all_faults_of_an_entry_are_reported(tmp_path: Path) -> None:
    faults = faults_of(tmp_path, changed(image_id=None, score="x", bbox=[1, 2]), "{}")
    assert [fault.line for fault in faults] == [2, 2, 2, 3, 3, 3, 3]


def test_boxes_with_or_without_their_last_pixel_pass(tmp_path: Path) -> None:
    for box in ([1, 0, 1, 2], [1.0, 0.0, 0.0, 1.0], [0.4, 0, 2, 2.3]):
        assert faults_of(tmp_path, changed(bbox=box)) == []


def test_duplicate_masks_of_an_image(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path, LINE, changed(image_id=1), changed(score=0.25), runs("<").replace("<", "336"),
        images={1: SIZE, 7: SIZE},
    )  # fmt: skip
    assert faults == [Fault(4, "entry 2: image 7 already has this mask in entry 0")]


def test_the_evaluation_takes_a_hundred_detections_of_an_image(tmp_path: Path) -> None:
    def entry(image_id: int, i: int, score: float) -> str:
        # The pixel i of the column order, in an image of one column.
        counts = "".join(map(number, [i, 1, 199 - i]))
        return changed(
            image_id=image_id,
            score=score,
            segmentation={"size": [200, 1], "counts": counts},
            bbox=[0, i, 1, 1],
        )

    def number(value: int) -> str:
        return chr(48 + value) if value < 16 else chr(80 + value % 32) + chr(48 + value // 32)

    # In image 2, the last three and the sixth have the lowest scores; ties keep the file's order.
    scores = [0.1 if i in (5, 100, 101, 102) else 0.9 for i in range(103)]
    lines = [entry(2, i, score) for i, score in enumerate(scores)]
    lines += [entry(1, i, 0.5) for i in range(100)]
    (fault,) = faults_of(tmp_path, *lines)
    assert fault.line == 102
    assert "entry 100: image 2 has 103 detections" in fault.message


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(48, 66) | st.integers(48, 111) | st.integers(40, 120), max_size=9).map(
            bytes
        ),
        max_size=6,
    )
)
def test_run_lengths_are_measured_as_defined(counts: list[bytes]) -> None:
    sound, totals = coco_masks.measure_runs(counts)
    expected = [slow_runs(text) for text in counts]
    assert sound.tolist() == [lengths is not None for lengths in expected]
    for lengths, total in zip(expected, totals.tolist(), strict=True):
        assert lengths is None or total == sum(lengths)


@settings(max_examples=200, deadline=None)
@given(counts=st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=8))
def test_only_masks_of_the_whole_image_reach_the_library(
    counts: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "results.json"
    path.write_text(f"[{runs(counts)}]")
    lengths = slow_runs(counts.encode())
    if lengths is not None and sum(lengths) == 12:
        ((result,),) = read_coco_results(path).values()
        assert (result.mask.size, result.mask.counts) == ((3, 4), counts.encode())
    else:
        with pytest.raises(SatmapError, match="line 1: entry 0"):
            read_coco_results(path)


# --- the truth ------------------------------------------------------------------------------------


def test_polygons_are_drawn(tmp_path: Path) -> None:
    path = write_truth(tmp_path / "annotation.json", {5: [(2, 3, 4, 5)], 6: []})
    content = json.loads(path.read_text())
    content["images"][0]["height"] = 10
    # A second part of the same building, mostly outside the image.
    content["annotations"][0]["segmentation"].append([18, 8, 99, 8, 99, 50, 18, 50])
    path.write_text(json.dumps(content))
    truth = read_coco_truth(path)
    assert truth.sizes == {5: (20, 10), 6: (20, 20)}
    ((image_id, (building,)),) = truth.buildings.items()
    assert image_id == 5
    assert not building.crowd
    expected = drawn(2, 3, 4, 5, (20, 10)) | drawn(18, 8, 2, 2, (20, 10))
    assert np.array_equal(pixels(building.mask), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "images must be a list"),
        ({"images": [5]}, "images must be a list of objects"),
        ({"images": [{"width": 9, "height": 3}]}, r"images\[0\] needs an integer id"),
        ({"images": [{"id": 2**63}]}, r"images\[0\] needs an integer id"),
        ({"images": [{"id": 5}]}, r"images\[0\] needs width and height as integers"),
        ({"images": [{"id": 5, "width": 0, "height": 3}]}, r"images\[0\] has the size 0 x 3"),
        ({"images": [{"id": 5, "width": 9, "height": 3}] * 2}, r"images\[1\] repeats the id 5"),
        ({"annotations": {}}, "annotations must be a list"),
        ({"annotations": [{"image_id": 6}]}, r"annotations\[0\] refers to the image 6"),
        ({"annotations": [{"image_id": 5}]}, r"annotations\[0\] has category_id null"),
        (
            {
                "annotations": [
                    {"image_id": 5, "category_id": 100, "iscrowd": 1, "segmentation": {}}
                ]
            },
            r"annotations\[0\] is a crowd without polygons",
        ),
        *(
            (
                {"annotations": [{"image_id": 5, "category_id": 100, "segmentation": polygons}]},
                r"annotations\[0\] must have a segmentation of polygons",
            )
            for polygons in (
                None,
                [],
                [[0, 0, 1, 1]],
                [[0, 0, 1, 0, 1, 1, 2]],
                [[0, 0, 1, 0, 1, math.nan]],
                [[0, 0, 1, 0, 1, 1e300]],
                [[0, 0, 1, 0, 1, 10**400]],
                [[0, 0, 1, 0, 1, "1"]],
                [[0, 0, 1, 0, 1, True]],
                [[0, 0, 1, 0, 1, 1], [0, 0, 1, 1]],
                {"size": [3, 4], "counts": "327"},
            )
        ),
    ],
)
def test_errors_of_the_truth_name_the_place(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write_truth(tmp_path / "annotation.json", {5: [(2, 3, 4, 5)]})
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SatmapError, match=rf"annotation\.json: .*{message}"):
        read_coco_truth(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"images": [}', "line 2: not JSON"),
        ("[]", "not COCO annotations"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_invalid_truths(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "annotation.json"
    path.write_text(text)
    with pytest.raises(SatmapError, match=message):
        read_coco_truth(path)


# --- scoring --------------------------------------------------------------------------------------


def test_hand_computed_scores(tmp_path: Path) -> None:
    # Four buildings; detections by descending score: right (IoU 1), false, right (IoU 8/12), false.
    truth = write_truth(
        tmp_path / "truth.json",
        {1: [(0, 0, 4, 4), (10, 0, 3, 4)], 2: [(0, 0, 4, 4), (10, 10, 4, 4)]},
    )
    results = write_boxes(
        tmp_path / "results.json",
        {
            1: [((0, 0, 4, 4), 0.9), ((0, 10, 4, 4), 0.8), ((10, 0, 2, 4), 0.7)],
            2: [((10, 0, 4, 4), 0.6)],
        },
    )
    report = score_coco(truth, results)
    # Recall 1/4 with precision 1, recall 1/2 with precision 2/3: 26 and 25 of 101 points.
    ap50 = (26 * 1 + 25 * 2 / 3) / 101
    # At six of the ten thresholds (IoU .70 and higher) only the first is right.
    ap = (4 * ap50 + 6 * 26 / 101) / 10
    assert report.metric == "coco_ap"
    assert report.total == pytest.approx(
        {
            "ap50": ap50, "ar50": 0.5, "ap": ap,
            "fair_ap50": ap50, "fair_ar50": 0.5, "fair_ap": ap, "images": 2,
        }
    )  # fmt: skip
    # The first image by itself: recall 1/2 with precision 1, recall 1 with precision 2/3.
    ap50 = (51 * 1 + 50 * 2 / 3) / 101
    ap = (4 * ap50 + 6 * 51 / 101) / 10
    assert list(report.images) == ["1", "2"]
    assert report.images["1"] == pytest.approx({"ap50": ap50, "ar50": 1, "ap": ap})
    assert report.images["2"] == {"ap50": 0, "ar50": 0, "ap": 0}
    assert (report.aois, report.truth_only, report.proposal_only) == ({}, (), ())


def test_identical_results_score_one_with_annotation_ids_from_zero(tmp_path: Path) -> None:
    # The library takes the id 0 of an annotation for "no match".
    boxes: dict[int, list[Box]] = {10: [(0, 0, 4, 4), (5, 5, 9, 3)], 9: [(1, 1, 6, 6)], 8: []}
    truth = write_truth(tmp_path / "truth.json", boxes)
    found = {image_id: [(box, 0.5) for box in record] for image_id, record in boxes.items()}
    report = score_coco(truth, write_boxes(tmp_path / "results.json", found))
    assert [report.total[key] for key in ("ap50", "ar50", "ap")] == pytest.approx([1, 1, 1])
    assert list(report.images) == ["9", "10"]
    for figures in report.images.values():
        assert list(figures.values()) == pytest.approx([1, 1, 1])
    # An empty image without detections does not lower the score.
    assert report.truth_only == ()


def test_more_masks_than_the_library_measures_at_once(tmp_path: Path) -> None:
    boxes = {i: [(x, y, 3, 4) for x in (0, 5) for y in (0, 5)] for i in range(80)}
    truth = write_truth(tmp_path / "truth.json", boxes)
    found = {i: [(box, 0.5) for box in record] for i, record in boxes.items()}
    report = score_coco(truth, write_boxes(tmp_path / "results.json", found))
    assert report.total["ap"] == pytest.approx(1)
    assert list(report.images)[:11] == [str(i) for i in range(11)]


def test_without_results(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", {2: [(0, 0, 4, 4)], 10: [(0, 0, 4, 4)], 3: []})
    results = tmp_path / "results.json"
    results.write_text("[]")
    report = score_coco(truth, results)
    assert set(report.total.values()) == {0, 3}
    assert report.truth_only == ("2", "10")
    # With results for one image, all buildings of the other count as missed.
    write_boxes(results, {10: [((0, 0, 4, 4), 0.5)]})
    report = score_coco(truth, results)
    assert report.total["ap50"] == report.total["fair_ap50"] == pytest.approx(51 / 101)
    assert report.truth_only == ("2",)


def test_results_for_images_missing_in_the_truth(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", {1: [(0, 0, 4, 4)]})
    results = write_boxes(
        tmp_path / "results.json",
        {0: [((0, 0, 4, 4), 0.9)], 1: [((0, 0, 4, 4), 0.5)], 30: [((0, 0, 4, 4), 0.4)]},
    )
    report = score_coco(truth, results)
    assert report.total["ap50"] == pytest.approx(1)
    # A false detection has a higher score than the right one.
    assert report.total["fair_ap50"] == pytest.approx(0.5)
    assert report.total["fair_ar50"] == report.total["ar50"] == 1
    assert report.proposal_only == ("0", "30")
    assert list(report.images) == ["1"]


def test_without_buildings_there_is_no_score(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", {1: []})
    results = write_boxes(tmp_path / "results.json", {1: [((0, 0, 4, 4), 0.9)]})
    report = score_coco(truth, results)
    assert {report.total[key] for key in ("ap50", "ar50", "ap", "fair_ap")} == {None}
    assert report.images == {}


def test_detections_in_crowds_do_not_count(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", {1: [(0, 0, 9, 9), (10, 10, 4, 4)]})
    content = json.loads(truth.read_text())
    content["annotations"][0]["iscrowd"] = 1
    truth.write_text(json.dumps(content))
    results = write_boxes(
        tmp_path / "results.json", {1: [((2, 2, 3, 3), 0.9), ((10, 10, 4, 4), 0.5)]}
    )
    assert score_coco(truth, results).total["ap"] == pytest.approx(1)


def test_masks_of_another_size_are_an_error(tmp_path: Path) -> None:
    truth = write_truth(tmp_path / "truth.json", {1: [(0, 0, 4, 4)]})
    results = write_boxes(tmp_path / "results.json", {1: [((0, 0, 4, 4), 0.9)]}, size=19)
    with pytest.raises(SatmapError, match=r"image 1 .* 19 x 19, but the image has 20 x 20"):
        score_coco(truth, results)


def test_scoring_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write_truth(tmp_path / "truth.json", {1: [(0, 0, 4, 4)]})
    score_coco(truth, write_boxes(tmp_path / "results.json", {1: [((0, 0, 4, 4), 0.9)]}))
    assert capsys.readouterr() == ("", "")


def plain_figures(
    truth: Mapping[int, Sequence[Box]], results: Mapping[int, Sequence[tuple[Box, float]]]
) -> list[float] | None:
    """Compute ap50, ar50 and ap by their definition."""
    buildings = sum(map(len, truth.values()))
    if not buildings:
        return None
    precisions, recalls = [], []
    for threshold in np.linspace(0.5, 0.95, 10):
        marks = []  # score and whether it is right
        for image_id in sorted(results):
            free = [drawn(*box) for box in truth[image_id]]
            for box, score in sorted(results[image_id], key=lambda result: -result[1]):
                mask = drawn(*box)
                ious = [(mask & other).sum() / (mask | other).sum() for other in free]
                # COCO takes the last of equal overlaps.
                best = max(reversed(range(len(ious))), key=lambda i: ious[i], default=None)
                right = best is not None and ious[best] >= threshold
                if right and best is not None:
                    del free[best]
                marks.append((score, right))
        marks.sort(key=lambda mark: -mark[0])
        curve = [
            (right / buildings, right / count)
            for count, right in enumerate(np.cumsum([mark[1] for mark in marks]), 1)
        ]
        points = [
            max((precision for recall, precision in curve if recall >= level), default=0)
            for level in np.linspace(0, 1, 101)
        ]
        precisions.append(float(np.mean(points)))
        recalls.append(max((recall for recall, _ in curve), default=0))
    return [precisions[0], recalls[0], float(np.mean(precisions))]


# Few odd side lengths near few positions give IoUs from 0 to 1 with rare ties per box.
boxes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(2, 7), st.integers(3, 8))
scored_boxes = st.lists(boxes, max_size=5, unique=True)


@settings(max_examples=150, deadline=None)
@given(
    truth=st.fixed_dictionaries({1: scored_boxes, 5: scored_boxes, 30: scored_boxes}),
    found=st.fixed_dictionaries({1: scored_boxes, 5: scored_boxes, 30: scored_boxes}),
    seed=st.integers(0, 999),
)
def test_figures_equal_the_plain_definition(
    truth: dict[int, list[Box]],
    found: dict[int, list[Box]],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    chance = random.Random(seed)
    # Some detections are the true boxes, so that strict thresholds are met too.
    results = {
        image_id: [
            (box, chance.random())
            for box in {*record, *chance.sample(truth[image_id], len(truth[image_id]) // 2)}
        ]
        for image_id, record in found.items()
    }
    directory = tmp_path_factory.getbasetemp()
    path = write_boxes(directory / "results.json", results)
    true = write_truth(directory / "truth.json", truth)
    report = score_coco(true, path)
    expected = plain_figures(truth, results)
    figures = [report.total[key] for key in ("ap50", "ar50", "ap")]
    assert figures == ([None] * 3 if expected is None else pytest.approx(expected))
    for image_id in truth:
        own = plain_figures({image_id: truth[image_id]}, {image_id: results[image_id]})
        if own is None:
            assert str(image_id) not in report.images
        else:
            assert list(report.images[str(image_id)].values()) == pytest.approx(own)
    # The order of entries with distinct scores changes nothing.
    entries = json.loads(path.read_text())
    chance.shuffle(entries)
    path.write_text(json.dumps(entries))
    assert score_coco(true, path) == report


# --- the challenge's own files --------------------------------------------------------------------


@needs_challenge
@pytest.mark.parametrize("part", ["train", "val"])
def test_real_truths(tmp_path: Path, part: str) -> None:
    annotations = CHALLENGE / part / "annotation.json"
    truth = read_coco_truth(annotations)
    found = {
        image_id: [whole(pixels(building.mask), 1 / (i + 2)) for i, building in enumerate(record)]
        for image_id, record in truth.buildings.items()
    }
    results = tmp_path / "results.json"
    write_coco_results(results, found, truth.sizes)
    assert check_coco_results(results, truth.sizes) == []
    total = score_coco(annotations, results).total
    assert [total[key] for key in ("ap50", "ar50", "ap")] == pytest.approx([1, 1, 1])
    # Every second building: recall .5 without false positives, 51 of 101 points.
    half = {image_id: record[::2] for image_id, record in found.items()}
    write_coco_results(results, half, truth.sizes)
    recall = sum(map(len, half.values())) / sum(map(len, found.values()))
    total = score_coco(annotations, results).total
    assert total["ar50"] == pytest.approx(recall)
    assert total["ap"] == total["ap50"] == pytest.approx((math.floor(100 * recall) + 1) / 101)
