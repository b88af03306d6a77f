"""Report of a judgement: a table by place, and pictures of tiles with good and bad labels."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satmap.data.judgement import JudgedTile, Judgement
from satmap.errors import SatmapError
from satmap.io.files import write_text
from satmap.io.text import padded
from satmap.report.panels import (
    PURPLE,
    SKY_BLUE,
    WHITE,
    Colour,
    Ground,
    Key,
    Panel,
    Picture,
    Units,
    compose,
    write_picture,
)
from satmap.report.pictures import FALSE, MISSED

# Number of tiles with the best and with the worst labels that are drawn.
_DRAWN = 4
_BEFORE: Colour = MISSED
_REASONS: dict[str, tuple[str, Colour]] = {
    "building": ("ignored label", FALSE),
    "building without label": ("ignored, without label", PURPLE),
    "dropped tile": ("dropped tile", MISSED),
}


@dataclass(frozen=True)
class Building:
    """A labelled building: its Jaccard index, NaN if unknown, and whether it is ignored."""

    jaccard: float
    is_ignored: bool


@dataclass(frozen=True)
class PlaceFigures:
    """Figures of a scene, or of all scenes of an area that have one tile.

    Attributes:
        name: the place.
        tiles: by the id of each tile, its number of pixels with moved labels or predictions.
        before, after: Jaccard index of all its pixels with the original and the moved labels.
        kept, ignored: number of labelled buildings, outside of dropped tiles.
        unlabelled: number of ignored predicted buildings without label.
    """

    name: str
    tiles: Mapping[str, int]
    before: float
    after: float
    kept: int
    ignored: int
    unlabelled: int

    @classmethod
    def of(
        cls,
        name: str,
        tiles: Mapping[str, int],
        counts: Sequence[int],
        buildings: Sequence[Building],
        unlabelled: int,
    ) -> "PlaceFigures":
        """Sum up tiles and buildings.

        ``counts`` are numbers of pixels: those in both labels and prediction, and those in either,
        first for the original labels and then for the moved ones.
        """
        shared, either, moved_shared, moved_either = counts
        ignored = sum(building.is_ignored for building in buildings)
        return cls(
            name, tiles, shared / either if either else 1.0,
            moved_shared / moved_either if moved_either else 1.0,
            len(buildings) - ignored, ignored, unlabelled,
        )  # fmt: skip


@dataclass(frozen=True)
class TilePicture:
    """What the picture of a tile shows; all shapes are polygons in pixels.

    Attributes:
        image: uint8 (h, w, channels).
        gsd_m: size of a pixel.
        before, after: original and moved labels.
        ignored: ignored polygons by reason.
        predicted: building pixels, bool (h, w).
    """

    image: NDArray[np.uint8]
    gsd_m: float
    before: NDArray[np.object_]
    after: NDArray[np.object_]
    ignored: Mapping[str, NDArray[np.object_]]
    predicted: NDArray[np.bool_]


def write_report(
    directory: Path,
    places: Sequence[PlaceFigures],
    judgement: Judgement,
    read: Callable[[str], TilePicture],
) -> str:
    """Write ``report.md`` and its pictures; return the table by place.

    Args:
        directory: of the judgement.
        places: their figures.
        judgement: the verdicts.
        read: returns what the picture of a tile shows, by the tile's id.
    """
    table = _table(places, judgement.tiles)
    limits = judgement.thresholds
    lines = [
        "# Judgement of labels", "", *table, "",
        "`right m` and `down m` say how far the labels lay from the buildings, in metres; they "
        "were moved back. 80 % of the resampled measurements lie within `error` of this shift. "
        "`spread` is its standard deviation over the tiles. `from` says where the shift was "
        "measured: on the tile and those around it, the scene, or the area. With `none` no shift "
        "was certain, and the labels stayed. `networks` says whether the networks had held the "
        "tiles out or had never seen them. `before` and `after` are the Jaccard index without and "
        "with the move.", "",
        f"Tiles with a Jaccard index below {limits.drop:g} are dropped. The loss ignores buildings "
        f"below {limits.ignore:g}. It also ignores predicted buildings without a label if they "
        f"have at least {limits.least_m2:g} square metres and a mean probability of at least "
        f"{limits.certain:g}.", "",
    ]  # fmt: skip
    dropped = sum(tile.verdict == "drop" for tile in judgement.tiles.values())
    if 2 * dropped > len(judgement.tiles):
        note = (
            f"{dropped} of {len(judgement.tiles)} tiles are dropped. Either the labels are bad or "
            "the networks are weak. Look at the pictures. If the networks are weak, lower --drop "
            "and --ignore."
        )
        table += ["", note]
        lines += [note, ""]
    if judgement.skipped:
        lines += ["Not judged:", ""]
        lines += [f"- {name}: {reason}" for name, reason in judgement.skipped.items()] + [""]
    for heading, tiles in _chosen(places, judgement.tiles).items():
        lines += [f"## {heading}", ""]
        for name in tiles:
            tile = judgement.tiles[name]
            text = f"{name}: Jaccard {tile.before:.2f} before, {tile.jaccard:.2f} after"
            text += ", dropped" if tile.verdict == "drop" else ""
            try:
                write_picture(directory / f"pictures/{name}.jpg", _draw(text, tile, read(name)))
            except SatmapError as error:
                lines += [f"{text}: no picture ({error})", ""]
                continue
            lines += [f"![{text}](pictures/{name}.jpg)", ""]
    write_text(directory / "report.md", "\n".join(lines))
    return "\n".join(table)


def _table(places: Sequence[PlaceFigures], tiles: Mapping[str, JudgedTile]) -> list[str]:
    header = (
        "place", "tiles", "dropped", "networks", "from", "right m", "down m", "error", "spread",
        "before", "after", "buildings", "ignored", "unlabelled",
    )  # fmt: skip
    rows = [header]
    for place in places:
        members = [tiles[name] for name in place.tiles]
        shifts = np.array([(tile.right_m, tile.down_m) for tile in members])
        right, down = shifts.mean(axis=0).tolist()
        spread = float(np.hypot(*shifts.std(axis=0)))
        error = float(np.mean([tile.error_m for tile in members]))
        rows.append((
            place.name, str(len(members)), str(sum(tile.verdict == "drop" for tile in members)),
            _counts([tile.networks for tile in members]),
            _counts([tile.evidence for tile in members]),
            f"{right:+.2f}", f"{down:+.2f}", f"{error:.2f}", f"{spread:.2f}", f"{place.before:.3f}",
            f"{place.after:.3f}", str(place.kept + place.ignored), str(place.ignored),
            str(place.unlabelled),
        ))  # fmt: skip
    first, *others = padded(rows)
    rule = ["-" * len(cell) for cell in first]
    return [f"| {' | '.join(row)} |" for row in (first, rule, *others)]


def _counts(values: Sequence[str]) -> str:
    """Return each value with its count; without a count if all are the same."""
    numbers = Counter(values)
    if len(numbers) == 1:
        return values[0]
    return ", ".join(f"{value} {number}" for value, number in numbers.most_common())


def _chosen(
    places: Sequence[PlaceFigures], tiles: Mapping[str, JudgedTile]
) -> dict[str, list[str]]:
    """Choose the tiles to draw: the worst, the best, and those that gained most."""
    pixels = {name: count for place in places for name, count in place.tiles.items() if count}
    # Tiles with little on them show little.
    least = float(np.median([*pixels.values()])) / 2 if pixels else 0
    shown = [name for name, count in pixels.items() if count >= least]
    order = sorted(shown, key=lambda name: tiles[name].jaccard)
    worst = order[:_DRAWN]
    best = [name for name in reversed(order) if name not in worst][:_DRAWN]
    gains = sorted(shown, key=lambda name: tiles[name].before - tiles[name].jaccard)
    gained = [name for name in gains if name not in (*worst, *best)][:_DRAWN]
    chosen = {"Worst labels": worst, "Best labels": best, "Most gained by moving": gained}
    return {heading: names for heading, names in chosen.items() if names}


def _draw(text: str, tile: JudgedTile, shown: TilePicture) -> Picture:
    """Draw labels before and after, and what is ignored."""
    ground = Ground.of_image(np.ascontiguousarray(shown.image[..., :3]), shown.gsd_m)
    if shown.image.shape[2] < 3:
        ground = Ground.of_image(np.repeat(shown.image[..., :1], 3, axis=2), shown.gsd_m)
    panel = ground.panel()
    ground.view.draw_outlines(panel, shown.before, _BEFORE, 2)
    ground.view.draw_outlines(panel, shown.after, WHITE, 2)
    keys = [
        Key(f"labels before ({len(shown.before)})", _BEFORE, "area"),
        Key("moved", WHITE, "area"),
    ]
    note = (
        f"labels lay {tile.right_m:+.1f} m right, {tile.down_m:+.1f} m down "
        f"(error {tile.error_m:.1f} m, from {tile.evidence})"
    )
    labels = Panel(ground.with_scale_bar(panel, Units.KMH), "labels", keys, [note])
    panel = ground.panel()
    predicted = _tinted(panel, shown.predicted)
    ground.view.draw_outlines(predicted, shown.after, WHITE, 1)
    keys = [Key("kept label", WHITE, "area"), Key("predicted", SKY_BLUE, "area")]
    for kind, (name, colour) in _REASONS.items():
        if len(shapes := shown.ignored.get(kind, ())):
            ground.view.draw_outlines(predicted, shapes, colour, 2)
            keys.append(Key(name, colour, "area"))
    verdicts = Panel(ground.with_scale_bar(predicted, Units.KMH), "judgement", keys)
    return compose([text], [labels, verdicts])


def _tinted(panel: Picture, mask: NDArray[np.bool_]) -> Picture:
    """Mix a colour into the pixels of a mask, which is resized to the panel."""
    height, width = panel.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    inside = mask[np.ix_(rows, columns)]
    tinted = panel.copy()
    tinted[inside] = (0.55 * panel[inside] + 0.45 * np.array(SKY_BLUE)).astype(np.uint8)
    return tinted
