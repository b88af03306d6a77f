"""Measure how chips without georeference are joined by their borders.

Cuts real scenes (../shared/data/open_cities) into chips of 192 and 256 px, encodes them as JPEG,
shuffles and joins them, and compares the places with the true ones. Then joins as many chips of
1,024 px as the challenge has, for the time:

- of the real scenes, each turned, mirrored and enlarged at random many times, so that no
  cut falls on the same place twice. Only the outermost 16 pixels of a chip are drawn and encoded,
  which are whole blocks of JPEG and therefore as in a whole chip
- of a synthetic texture, of which a tenth is black and a tenth repeats one pattern. Only lines at
  the cuts are drawn.

Reading is measured on the challenge's 40 test chips in the same directory.

Run from the repository: python benchmarks/joining_chips.py [--chips 11481] [--picture DIR]
"""

import argparse
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray

from satmap.data.chip_borders import Place, describe_borders, join_chips, place_chips
from satmap.data.imagery import RGB, read_info
from satmap.recipes.schema import load_recipe

DATA = Path(__file__).resolve().parents[2] / "shared/data/open_cities"
SCENES = (
    "train_tier_1/acc/d41d81a/d41d81a.tif",
    "train_tier_1/acc/d41d81b/d41d81b.tif",
    "train_tier_2/dar/d41d81c/d41d81c.tif",
)

Image = NDArray[np.uint8]


def real_chips(
    size: int, quality: int, noise: float, scale: float
) -> list[tuple[str, int, int, Image]]:
    """Return chips of the real scenes in random order, with scene, column and row."""
    rng = np.random.default_rng(0)
    chips = []
    for name in SCENES:
        with rasterio.open(DATA / name) as source:
            image = (
                source.read((1, 2, 3)).transpose(1, 2, 0) * (source.dataset_mask() > 0)[..., None]
            )
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(
            np.ascontiguousarray(image), None, fx=scale, fy=scale, interpolation=method
        )
        for row in range(image.shape[0] // size):
            for column in range(image.shape[1] // size):
                chip = image[row * size :, column * size :][:size, :size]
                if noise:
                    chip = np.clip(chip + rng.normal(0, noise, chip.shape), 0, 255).astype(np.uint8)
                coded = cv2.imencode(".jpg", chip, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
                chips.append((name, column, row, np.asarray(cv2.imdecode(coded, 1), np.uint8)))
    return [chips[index] for index in rng.permutation(len(chips))]


def report_real(size: int, quality: int, noise: float, scale: float, picture: Path | None) -> None:
    """Join chips of the real scenes and print how many are placed, and how many wrongly."""
    chips = real_chips(size, quality, noise, scale)
    start = time.process_time()
    places = place_chips([describe_borders(chip) for *_, chip in chips])
    seconds = time.process_time() - start
    mosaics = mosaics_of([chip[:3] for chip in chips], places)
    wrong = wrong_in(mosaics)
    content = sum((chip > 8).any(axis=2).mean() > 0.05 for *_, chip in chips)
    placed = sum(place is not None for place in places)
    large = sum(m.total() for m in mosaics if m.total() > 20)
    print(
        f"real, {size} px, JPEG {quality}, noise {noise:g}, scale {scale:g}: {len(chips)} chips, "
        f"{content} with content, placed {placed / content:.1%}, in mosaics of over 20 chips "
        f"{large / content:.1%}, wrong {wrong}, {seconds:.1f} s of CPU"
    )
    if picture:
        picture.mkdir(parents=True, exist_ok=True)
        draw([chip for *_, chip in chips], places, picture / f"{size}-{quality}-{scale:g}.png")


def mosaics_of(
    truth: Sequence[tuple[str | int, int, int]], places: Sequence[Place | None]
) -> list[Counter[tuple[str | int, int, int]]]:
    """Count the chips of each mosaic by their scene and by how far they are moved in it."""
    mosaics: dict[int, Counter[tuple[str | int, int, int]]] = {}
    for (name, column, row), place in zip(truth, places, strict=True):
        if place:
            moves = mosaics.setdefault(place.mosaic, Counter())
            moves[name, column - place.column, row - place.row] += 1
    return list(mosaics.values())


def wrong_in(mosaics: Iterable[Counter[tuple[str | int, int, int]]]) -> int:
    """Return how many chips disagree with most others of their mosaic."""
    return sum(moves.total() - max(moves.values()) for moves in mosaics)


def draw(chips: list[Image], places: list[Place | None], path: Path) -> None:
    """Draw the three largest mosaics beside each other, a 16th of the size."""
    sizes = Counter(place.mosaic for place in places if place)
    small = max(chips[0].shape[0] // 16, 1)
    boards = []
    for mosaic, _ in sizes.most_common(3):
        own = [(p, c) for p, c in zip(places, chips, strict=True) if p and p.mosaic == mosaic]
        side = 1 + max(max(p.column, p.row) for p, _ in own)
        board = np.full((side * small, side * small, 3), (200, 0, 200), np.uint8)
        for p, c in own:
            view = cv2.resize(c, (small, small), interpolation=cv2.INTER_AREA)
            board[
                p.row * small : (p.row + 1) * small, p.column * small : (p.column + 1) * small
            ] = view
        boards.append(board)
    height = max(board.shape[0] for board in boards)
    padded = [np.pad(b, ((0, height - len(b)), (0, 8), (0, 0))) for b in boards]
    cv2.imwrite(str(path), np.concatenate(padded, axis=1)[..., ::-1])


def turned_borders(
    count: int, size: int = 1024
) -> tuple[list[list[NDArray[np.float32]]], list[tuple[str | int, int, int]], int]:
    """Describe the borders of chips of the real scenes, turned, mirrored and enlarged at random.

    Returns:
        The descriptions in random order, scene, column and row of each chip, and the number of
        chips with content at a border.
    """
    rng = np.random.default_rng(0)
    scenes = []
    for name in SCENES:
        with rasterio.open(DATA / name) as source:
            pixels = source.read((1, 2, 3)).transpose(1, 2, 0)
            scenes.append(np.ascontiguousarray(pixels * (source.dataset_mask() > 0)[..., None]))
    found: list[tuple[list[NDArray[np.float32]], tuple[str | int, int, int], bool]] = []
    number = 0
    while len(found) < count:
        scene = scenes[number % len(scenes)]
        angle, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(1, 2.5)
        across = int(zoom * min(scene.shape[:2])) // size
        # From pixels of the enlarged scene to those of the scene, around the middle of both.
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
        if rng.random() < 0.5:
            turn[:, 0] *= -1
        middle = np.array(scene.shape[1::-1]) / 2 - turn @ np.full(2, across * size / 2)
        for row in range(across):
            for column in range(across):
                corner = np.array((column, row)) * size
                chip = drawn_border(scene, turn, middle + turn @ corner, size)
                content = (chip[[0, -1]] > 8).any() or (chip[:, [0, -1]] > 8).any()
                found.append((describe_borders(chip), (number, column, row), bool(content)))
        number += 1
    chosen = [found[index] for index in rng.permutation(count)]
    borders, truth, contents = zip(*chosen, strict=True)
    return list(borders), list(truth), sum(contents)


def drawn_border(
    scene: Image, turn: NDArray[np.float64], corner: NDArray[np.float64], size: int
) -> Image:
    """Draw the outermost 16 pixels of a chip, with JPEG's errors; black inside.

    ``turn`` and ``corner`` lead from a pixel of the chip to its place in the scene.
    """
    chip = np.zeros((size, size, 3), np.uint8)
    rest = size - 16
    for left, top, width, height in (
        (0, 0, size, 16), (0, rest, size, 16), (0, 0, 16, size), (rest, 0, 16, size)
    ):  # fmt: skip
        moved = np.column_stack([turn, corner + turn @ (left, top)])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        part = cv2.warpAffine(scene, moved, (width, height), flags=flags)
        coded = cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
        chip[top : top + height, left : left + width] = np.asarray(cv2.imdecode(coded, 1))
    return chip


def report_turned(count: int) -> None:
    """Print the time, and how many chips are placed and how many wrongly, of enlarged scenes."""
    started = time.process_time()
    borders, truth, content = turned_borders(count)
    drawn = time.process_time()
    places = place_chips(borders)
    seconds = time.process_time() - drawn
    mosaics = mosaics_of(truth, places)
    placed = sum(moves.total() for moves in mosaics)
    large = sum(moves.total() for moves in mosaics if moves.total() > 20)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"turned scenes, 1,024 px: {count} chips, {content} with content, placed "
        f"{placed / content:.1%}, in mosaics of over 20 chips {large / content:.1%}, wrong "
        f"{wrong_in(mosaics)}; drawing and describing {drawn - started:.0f} s of CPU, joining "
        f"{seconds:.0f} s of CPU, {peak:.0f} MB",
        flush=True,
    )


def synthetic_borders(count: int, size: int) -> tuple[list[list[NDArray[np.float32]]], int]:
    """Describe the borders of a square of chips; return them and the number of normal chips."""
    rng = np.random.default_rng(0)
    side = math.ceil(math.sqrt(count))

    def lines() -> Image:
        """Draw four neighbouring lines of a texture, (4, length, 3); the cut is in the middle."""
        noise = rng.normal(size=(24, size)).astype(np.float32)
        texture = 40 * cv2.GaussianBlur(noise, (0, 0), 1.5) * 3 + 110
        return np.repeat(texture[10:14, :, None].clip(9, 255), 3, axis=2).astype(np.uint8)

    across = {(c, r): lines() for c in range(side + 1) for r in range(side)}
    down = {(c, r): lines() for c in range(side) for r in range(side + 1)}
    pattern = lines()
    borders, normal = [], 0
    for index in range(count):
        column, row = index % side, index // side
        image = np.zeros((size, size, 3), np.uint8)
        kind = rng.random()
        if kind > 0.1:
            edges = (
                across[column, row],
                across[column + 1, row],
                down[column, row],
                down[column, row + 1],
            )
            if kind < 0.2:
                edges = (pattern,) * 4
            normal += kind >= 0.2
            image[:, :2] = edges[0][2:].swapaxes(0, 1)
            image[:, -2:] = edges[1][:2].swapaxes(0, 1)
            image[:2], image[-2:] = edges[2][2:], edges[3][:2]
        borders.append(describe_borders(image))
    return borders, normal


def report_time(count: int) -> None:
    """Print the time and memory for the challenge's number of chips."""
    borders, normal = synthetic_borders(count, 1024)
    started = time.process_time()
    places = place_chips(borders)
    seconds = time.process_time() - started
    side = math.ceil(math.sqrt(count))
    mosaics = mosaics_of([(0, index % side, index // side) for index in range(count)], places)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"synthetic, 1,024 px: {count} chips, {normal} neither black nor repeated, placed "
        f"{sum(moves.total() for moves in mosaics)}, wrong {wrong_in(mosaics)}, largest mosaic "
        f"{max(moves.total() for moves in mosaics)}; {seconds:.0f} s of CPU, {peak:.0f} MB",
        flush=True,
    )


def report_reading(count: int) -> None:
    """Print the time to read and describe the challenge's test chips."""
    infos = [read_info(path, RGB) for path in sorted((DATA / "test").glob("*/*.tif"))]
    stretch = load_recipe("small-open-cities").stretch
    started = time.process_time()
    joined = join_chips(infos, stretch.low, stretch.high, 0.1)
    each = (time.process_time() - started) / len(infos)
    placed = sum(found.georeference is not None for found in joined)
    print(
        f"files of 1,024 px: {placed} of {len(infos)} placed; reading takes {each * 1e3:.0f} ms of "
        f"CPU each, {each * count:.0f} s for {count}",
        flush=True,
    )


def main() -> int:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=11_481, help="number of synthetic chips")
    parser.add_argument("--picture", type=Path, help="directory for pictures of the mosaics")
    arguments = parser.parse_args()
    if DATA.exists():
        cases = ((256, 75, 0, 1.0), (192, 75, 0, 1.0), (256, 50, 5, 1.0), (256, 75, 0, 0.5))
        for size, quality, noise, scale in cases:
            report_real(size, quality, noise, scale, arguments.picture)
        report_reading(arguments.chips)
        report_turned(arguments.chips)
    report_time(arguments.chips)
    return 0


if __name__ == "__main__":
    sys.exit(main())
