"""Judge labels of buildings by the predictions of networks that have not learned from them.

Labels from maps are often shifted by metres, incomplete and outdated. The steps:

1. Predict every tile.
2. Measure a smooth field of shifts (:mod:`satmap.judging.shifts`), and move the labels.
3. Compute the Jaccard index of every tile and building.
4. Decide which tiles the training drops, and which buildings the loss ignores, with or without a
   label.

The second place of the Open Cities AI challenge suggested to filter labels by their Jaccard index
with a prediction.
"""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
import shapely.geometry
from numpy.typing import NDArray

from satmap.data.chip import Chip
from satmap.data.chip_label import ChipLabel, is_chip_label
from satmap.data.imagery import read_stretched
from satmap.data.inventory import Inventory
from satmap.data.judgement import (
    JUDGEMENT,
    JudgedLabel,
    JudgedTile,
    Judgement,
    Reason,
    Thresholds,
)
from satmap.data.label_files import VectorLabels, read_label_file
from satmap.data.own_data import OwnData
from satmap.data.own_labels import (
    Shapes,
    find_label_files,
    in_lon_lat,
    read_own_shapes,
    shapes_near,
)
from satmap.errors import CannotWriteError, SatmapError, error_text
from satmap.io.checksums import FileRecord, record_file
from satmap.io.files import atomic_directory, write_text
from satmap.io.geojson_reader import LON_LAT, project
from satmap.io.progress import track
from satmap.judging.agreement import compare, find_unlabelled, jaccards
from satmap.judging.report import Building, PlaceFigures, TilePicture, write_report
from satmap.judging.shifts import (
    MeasuredTile,
    ShiftField,
    TileShift,
    measure_shifts,
    score_blocks,
)
from satmap.recipes.schema import StretchSettings
from satmap.vectors.georeference import Georeference, metres_per_degree

#: Predicts the buildings of an image, uint8 (h, w); says why its networks may judge it.
Predict = Callable[[Chip], tuple[NDArray[np.uint8], Reason]]

# Ignored buildings are this much wider than their footprint, metres.
_MARGIN_M = 0.5
# A tile with fewer square metres of labels and predictions is not dropped.
_LEAST_TILE_M2 = 50.0
# Strips at the border are ignored if labels were moved by more than this, metres.
_LEAST_STRIP_M = 0.3
# Digits of written degrees and metres.
_DIGITS = {True: 9, False: 4}


@dataclass(frozen=True)
class LabelSet:
    """Labels that belong together, with their tiles.

    Attributes:
        name: the image id; "" for a user's own labels.
        source: file or directory that the judgement refers to.
        files: its vector files.
        tiles: the tiles, chips with georeference.
    """

    name: str
    source: Path
    files: tuple[Path, ...]
    tiles: tuple[Chip, ...]


@dataclass
class _Tile:
    """What is known about a tile so far."""

    chip: Chip
    label_set: LabelSet
    reason: Reason
    map_file: Path
    shift: TileShift | None = None
    before: float = 1.0
    after: float = 1.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    is_dropped: bool = False

    @property
    def georeference(self) -> Georeference:
        placed = self.chip.image.georeference
        assert placed is not None
        return placed

    @property
    def place(self) -> str:
        return f"{self.chip.aoi} {self.chip.scene}".strip()

    def to_lon_lat(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        placed = self.georeference
        return project(placed.to_map(pixels), placed.crs, LON_LAT)

    @property
    def border(self) -> shapely.Polygon:
        width, height = self.chip.image.width, self.chip.image.height
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
        return shapely.Polygon(self.to_lon_lat(corners))

    @property
    def centre(self) -> NDArray[np.float64]:
        return np.array([[self.chip.image.width / 2, self.chip.image.height / 2]])

    def read_map(self) -> NDArray[np.uint8]:
        return np.asarray(cv2.imread(str(self.map_file), cv2.IMREAD_UNCHANGED), np.uint8)


def label_sets_of_challenge(found: Inventory, cut: Inventory) -> list[LabelSet]:
    """Return the labels of a challenge's images.

    Args:
        found: images and scenes as found.
        cut: the same with scenes cut into tiles.
    """
    tiles: dict[str, list[Chip]] = defaultdict(list)
    for chip in cut.chips:
        tiles[chip.scene or chip.image_id].append(chip)
    return [
        LabelSet(chip.image_id, chip.label, (chip.label,), tuple(tiles[chip.image_id]))
        for chip in found.chips
        if chip.label is not None and tiles[chip.image_id]
    ]


def label_sets_of_own(own: OwnData, cut: Inventory) -> list[LabelSet]:
    """Return the labels of a user's own images.

    Raises:
        SatmapError: they are masks, or a shift is given for them.
    """
    vectors, _ = find_label_files(own.labels)
    if not vectors:
        raise SatmapError(
            f"{own.labels}: labels are judged and moved as vectors, but these are masks. Trace "
            "them first, for example with `gdal_polygonize`."
        )
    if own.shift != (0.0, 0.0):
        raise SatmapError("--shift: judging measures the shift itself. Leave the option out.")
    tiles = tuple(chip for chip in cut.chips if chip.label is not None)
    return [LabelSet("", own.labels, tuple(vectors), tiles)]


def judge_labels(
    label_sets: Sequence[LabelSet],
    predict: Predict,
    thresholds: Thresholds,
    stretch: StretchSettings,
    weights: Sequence[FileRecord],
    output: Path,
    directories: Sequence[Path],
) -> tuple[Judgement, str]:
    """Judge labels and write the directory that ``train --judgement`` reads.

    Args:
        label_sets: the labels and their tiles.
        predict: predicts a tile.
        thresholds: for the verdicts.
        stretch: contrast of the imagery in the pictures.
        weights: records of the networks.
        output: the directory to write.
        directories: directories of the challenge's images, whose layout the moved labels get.

    Returns:
        The judgement, and its table by place.

    Raises:
        SatmapError: no tile can be judged.
        CannotWriteError: the output cannot be written.
    """
    with atomic_directory(output) as directory, tempfile.TemporaryDirectory(dir=directory) as maps:
        judging = _Judging(thresholds, directory, Path(maps), stretch)
        judging.predict(label_sets, predict)
        images: dict[str, JudgedLabel] = {}
        own = None
        for label_set in track(label_sets, "judging labels", len(label_sets)):
            try:
                entry = judging.judge(label_set, directories)
            except CannotWriteError:
                raise
            except Exception as error:
                judging.skipped[label_set.name or str(label_set.source)] = error_text(
                    error, label_set.source
                )
                continue
            if label_set.name:
                images[label_set.name] = entry
            else:
                own = entry
        if not images and own is None:
            raise SatmapError(f"no label can be judged: {next(iter(judging.skipped.values()), '')}")
        judgement = Judgement(
            thresholds=thresholds, weights=tuple(weights), images=images, own=own,
            tiles=judging.judged_tiles(), skipped=judging.skipped,
        )  # fmt: skip
        table = write_report(directory, judging.figures(), judgement, judging.pictures())
        write_text(directory / JUDGEMENT, judgement.model_dump_json(indent=1) + "\n")
    return judgement, table


class _Judging:
    """A judgement in the making."""

    def __init__(
        self, thresholds: Thresholds, directory: Path, maps: Path, stretch: StretchSettings
    ) -> None:
        self.thresholds, self.directory, self.maps = thresholds, directory, maps
        self.stretch = stretch
        self.tiles: list[_Tile] = []
        self.measured: list[MeasuredTile] = []
        self.of_set: dict[str, list[_Tile]] = defaultdict(list)
        self.of_place: dict[str, list[_Tile]] = defaultdict(list)
        self.fields: dict[tuple[str, ...], ShiftField] = {}
        self.sizes = Counter[str]()
        self.skipped: dict[str, str] = {}
        self.buildings: dict[str, list[Building]] = defaultdict(list)
        self.unlabelled: dict[str, int] = defaultdict(int)
        self.moved: dict[str, list[str]] = {}

    # First pass

    def predict(self, label_sets: Sequence[LabelSet], predict: Predict) -> None:
        """Predict all tiles, area by area, and measure their shifts."""
        chips = [chip for label_set in label_sets for chip in label_set.tiles]
        self.sizes = Counter(chip.scene or chip.aoi for chip in chips)
        for label_set, chip, shapes in track(self._read(label_sets), "predicting", len(chips)):
            if self.measured and chip.aoi != self.measured[-1].area:
                # Only the scores of one area are kept in memory.
                self._measure()
            try:
                self._predict(label_set, chip, shapes, predict)
            except CannotWriteError:
                raise
            except Exception as error:
                self.skipped[chip.image_id] = error_text(error, chip.image.path)
        if not self.tiles:
            reason = next(iter(self.skipped.values()), "there are no labelled images.")
            raise SatmapError(f"no tile can be judged: {reason}")
        self._measure()

    def _read(self, label_sets: Sequence[LabelSet]) -> Iterator[tuple[LabelSet, Chip, Shapes]]:
        """Yield the tiles in the order of their areas, with the labels around them."""
        for label_set in sorted(label_sets, key=lambda each: each.tiles[0].aoi):
            try:
                shapes = read_footprints(label_set.files)
            except SatmapError as error:
                self.skipped |= {chip.image_id: str(error) for chip in label_set.tiles}
                continue
            for chip in sorted(label_set.tiles, key=lambda each: each.aoi):
                yield label_set, chip, shapes

    def _predict(self, label_set: LabelSet, chip: Chip, shapes: Shapes, predict: Predict) -> None:
        info = chip.image
        if info.georeference is None:
            raise SatmapError(
                f"{info.path}: no georeference, so its labels cannot be moved. Assign one, for "
                "example with `rio edit-info --crs EPSG:4326 --transform ...`."
            )
        probability, reason = predict(chip)
        near, _ = shapes_near(shapes, info.georeference, info.width, info.height)
        gsd_m = info.georeference.gsd_m
        scene = chip.scene or chip.aoi
        scores = score_blocks(probability, near, gsd_m, self.sizes[scene])
        path = self.maps / f"{len(self.tiles)}.png"
        if not cv2.imwrite(str(path), probability):
            raise CannotWriteError(f"{path}: cannot be written. Check that there is space.")
        tile = _Tile(chip, label_set, reason, path)
        ((longitude, latitude),) = tile.to_lon_lat(tile.centre).tolist()
        self.tiles.append(tile)
        self.of_set[label_set.name].append(tile)
        self.measured.append(
            MeasuredTile(
                scene, chip.aoi, (longitude, latitude), gsd_m,
                max(info.width, info.height) * gsd_m, scores,
            )
        )  # fmt: skip

    def _measure(self) -> None:
        """Measure the shifts of the last area's tiles."""
        tiles = self.tiles[-len(self.measured) :]
        for tile, shift in zip(tiles, measure_shifts(self.measured), strict=True):
            tile.shift = shift
            self.of_place[tile.place].append(tile)
        self.measured = []

    # Second pass

    def judge(self, label_set: LabelSet, directories: Sequence[Path]) -> JudgedLabel:
        """Move labels, judge them, and write both."""
        tiles = self.of_set[label_set.name]
        if not tiles:
            raise SatmapError(f"{label_set.source}: none of its tiles could be predicted.")
        shifts = self._field(tuple(sorted({tile.place for tile in tiles})))
        before = read_footprints(label_set.files)
        names = self._write_moved(label_set, before, shifts, directories)
        self.moved[label_set.name] = names
        after = read_footprints([self.directory / name for name in names])
        ignored = self._judge_tiles(tiles, before, after, shifts)
        name = _ignored_name(label_set.name)
        _write_geojson(self.directory / name, ignored, LON_LAT)
        label = names[0] if label_set.name else "labels"
        return JudgedLabel(label=label, ignored=name, source=record_file(label_set.source))

    def _field(self, places: tuple[str, ...]) -> ShiftField:
        """Return the moves of labels at places; all chips of an area share one field."""
        if places not in self.fields:
            self.fields[places] = _field([tile for name in places for tile in self.of_place[name]])
        return self.fields[places]

    def _write_moved(
        self, label_set: LabelSet, known: Shapes, shifts: ShiftField, directories: Sequence[Path]
    ) -> list[str]:
        """Write the moved labels in the layout of their source; return names below the output."""
        tree = shapely.STRtree(known)
        moves = shifts.at(_centres(known))
        names: list[str] = []
        for path in label_set.files:
            labels = read_label_file(path, "polygons", may_be_empty=True)
            name = _name_below(path, label_set, directories)
            if name in names or (self.directory / name).exists():
                name = f"labels/{label_set.name or len(names)}/{path.stem}.geojson"
            names.append(name)
            moved = _moved(labels, known, tree, moves, shifts)
            rows = zip(moved.tolist(), labels.properties, strict=True)
            _write_geojson(self.directory / name, [*rows], labels.crs)
        return names

    def _judge_tiles(
        self, tiles: Sequence[_Tile], before: Shapes, after: Shapes, shifts: ShiftField
    ) -> list[tuple[shapely.Geometry, dict[str, Any]]]:
        """Judge tiles and buildings; return what is ignored, in longitude and latitude."""
        limits, shared = self.thresholds, np.zeros((2, len(after)), np.int64)
        owner = np.full(len(after), -1)
        ignored: list[tuple[shapely.Geometry, dict[str, Any]]] = []
        for number, tile in enumerate(tiles):
            info, gsd_m = tile.chip.image, tile.georeference.gsd_m
            probability, valid = tile.read_map(), self._valid(tile.chip)
            old, _ = shapes_near(before, tile.georeference, info.width, info.height)
            new, index = shapes_near(after, tile.georeference, info.width, info.height)
            first = compare(probability >= 128, old, valid, gsd_m)
            found = compare(probability >= 128, new, valid, gsd_m)
            tile.before, tile.after = first.jaccard, found.jaccard
            tile.counts = np.array([first.shared, first.either, found.shared, found.either])
            shared[0, index] += found.shared_by_building
            shared[1, index] += found.either_by_building
            owner[index[found.either_by_building > 0]] = number
            tile.is_dropped = (
                found.either * gsd_m**2 >= _LEAST_TILE_M2 and found.jaccard < limits.drop
            )
            if tile.is_dropped:
                facts = {"ignored": "dropped tile", "jaccard": round(found.jaccard, 3)}
                ignored.append((tile.border, facts))
                continue
            for part in find_unlabelled(
                probability, found, valid, gsd_m, limits.certain, limits.least_m2
            ):
                placed = shapely.transform(part, tile.to_lon_lat)
                ignored.append((placed, {"ignored": "building without label"}))
                self.unlabelled[tile.place] += 1
        of_building = jaccards(*shared).tolist()
        for shape, value, number in zip(after.tolist(), of_building, owner.tolist(), strict=True):
            if number < 0 or tiles[number].is_dropped:
                continue
            is_ignored = value < limits.ignore
            self.buildings[tiles[number].place].append(Building(value, is_ignored))
            if is_ignored:
                facts = {"ignored": "building", "jaccard": round(value, 3)}
                ignored.append((_buffered(shape, _MARGIN_M), facts))
        ignored += [(part, {"ignored": "border"}) for part in _uncovered(tiles, shifts)]
        return ignored

    def _valid(self, chip: Chip) -> NDArray[np.bool_]:
        """Return the pixels of a tile that count: with data, and not ignored by its label."""
        if is_chip_label(chip.label):
            assert chip.label is not None
            return ~ChipLabel.read(chip.label).ignored
        image = read_stretched(chip.image, self.stretch.low, self.stretch.high)
        return np.asarray(image.any(axis=2))

    # Results

    def judged_tiles(self) -> dict[str, JudgedTile]:
        """Return the facts about each tile, by its id."""
        return {
            tile.chip.image_id: JudgedTile(
                place=tile.place, networks=tile.reason, right_m=round(tile.shift.right_m, 3),
                down_m=round(tile.shift.down_m, 3), error_m=round(tile.shift.error_m, 3),
                evidence=tile.shift.evidence, before=round(tile.before, 4),
                jaccard=round(tile.after, 4), verdict="drop" if tile.is_dropped else "keep",
            )
            for tile in self.tiles
            if tile.shift is not None
        }  # fmt: skip

    def figures(self) -> list[PlaceFigures]:
        """Return the figures of each scene; scenes of one tile are summed up by area."""
        groups: dict[str, list[str]] = defaultdict(list)
        for name, tiles in self.of_place.items():
            groups[name if len(tiles) > 1 else tiles[0].chip.aoi].append(name)
        figures = []
        for group, names in groups.items():
            tiles = [tile for name in names for tile in self.of_place[name]]
            figures.append(
                PlaceFigures.of(
                    group,
                    {tile.chip.image_id: int(tile.counts[3]) for tile in tiles},
                    np.sum([tile.counts for tile in tiles], axis=0).tolist(),
                    [building for name in names for building in self.buildings[name]],
                    sum(self.unlabelled[name] for name in names),
                )
            )
        return figures

    def pictures(self) -> Callable[[str], TilePicture]:
        """Return a function that reads what the picture of a tile shows."""
        by_id = {tile.chip.image_id: tile for tile in self.tiles}

        # Tiles of one scene follow each other only by chance.
        @lru_cache(maxsize=4)
        def shapes_of(name: str) -> tuple[Shapes, Shapes, VectorLabels]:
            moved = [self.directory / each for each in self.moved[name]]
            ignored = self.directory / _ignored_name(name)
            return (
                read_footprints(self.of_set[name][0].label_set.files),
                read_footprints(moved),
                read_label_file(ignored, "polygons", may_be_empty=True),
            )

        def read(image_id: str) -> TilePicture:
            tile = by_id[image_id]
            info, placed = tile.chip.image, tile.georeference

            def on_tile(found: Shapes) -> Shapes:
                return shapes_near(found, placed, info.width, info.height)[0]

            before, after, ignored = shapes_of(tile.label_set.name)
            kinds: dict[str, list[shapely.Geometry]] = defaultdict(list)
            for shape, row in zip(ignored.shapes.tolist(), ignored.properties, strict=True):
                # Dropped tiles beside this one touch it.
                if row["ignored"] != "dropped tile" or tile.is_dropped:
                    kinds[row["ignored"]].append(shape)
            return TilePicture(
                read_stretched(info, self.stretch.low, self.stretch.high, 3),
                placed.gsd_m,
                on_tile(before),
                on_tile(after),
                {kind: on_tile(np.array(parts, np.object_)) for kind, parts in kinds.items()},
                tile.read_map() >= 128,
            )

        return read


def _ignored_name(name: str) -> str:
    """Return the file of ignored polygons of a label set, below the output."""
    return f"ignored/{name or 'own'}.geojson"


def read_footprints(files: Sequence[Path]) -> Shapes:
    """Read the buildings of vector files, in longitude and latitude, each once.

    Raises:
        SatmapError: a file cannot be read.
    """
    if len(files) > 1:
        return read_own_shapes(files, "polygons").shapes
    labels = read_label_file(files[0], "polygons", may_be_empty=True)
    try:
        valid: Shapes = shapely.make_valid(in_lon_lat(labels.shapes, labels.crs))
    except ValueError as error:
        raise SatmapError(f"{files[0]}: {error}.") from error
    return valid


def _field(tiles: Sequence[_Tile]) -> ShiftField:
    """Return the moves around tiles, from the shifts in their pixels."""
    places, moves = [], []
    for tile in tiles:
        shift, gsd_m = tile.shift, tile.georeference.gsd_m
        assert shift is not None
        back = np.array([shift.right_m, shift.down_m]) / gsd_m
        here, there = tile.to_lon_lat(np.concatenate([tile.centre, tile.centre - back]))
        places.append(here)
        moves.append((there - here) * metres_per_degree(float(here[1])))
    side = max(tiles[0].chip.image.width, tiles[0].chip.image.height)
    return ShiftField(np.array(places), np.array(moves), side * tiles[0].georeference.gsd_m)


def _centres(shapes: Shapes) -> NDArray[np.float64]:
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    centres: NDArray[np.float64] = (bounds[:, :2] + bounds[:, 2:]) / 2
    return centres


def _moved(
    labels: VectorLabels,
    known: Shapes,
    tree: shapely.STRtree,
    moves: NDArray[np.float64],
    shifts: ShiftField,
) -> Shapes:
    """Move the polygons of a file; the parts of a building in several files stay together."""
    if not len(labels.shapes):
        return labels.shapes
    shapes = in_lon_lat(labels.shapes, labels.crs)
    own = shifts.at(_centres(shapes))
    part, whole = tree.query(shapely.point_on_surface(shapes), predicate="intersects")
    own[part] = moves[whole]
    xy, index = shapely.get_coordinates(shapes, return_index=True)
    xy = xy + own[index]
    if labels.crs != LON_LAT:
        xy = project(xy, LON_LAT, labels.crs)
    moved: Shapes = shapely.set_coordinates(shapes.copy(), xy)
    return moved


def _buffered(shape: shapely.Geometry, metres: float) -> shapely.Geometry:
    """Grow a shape in longitude and latitude."""
    scale = np.array(metres_per_degree(shapely.get_coordinates(shape)[0, 1]))
    wide = shapely.buffer(shapely.transform(shape, lambda xy: xy * scale), metres, quad_segs=2)
    return shapely.transform(wide, lambda xy: xy / scale)


def _uncovered(tiles: Sequence[_Tile], shifts: ShiftField) -> list[shapely.Geometry]:
    """Return the strips at the border that labels have been moved away from."""
    ground = shapely.union_all([tile.border for tile in tiles], grid_size=1e-8)
    centre = _centres(np.array([ground], np.object_))
    move = shifts.at(centre)[0]
    if np.hypot(*(move * metres_per_degree(float(centre[0, 1])))) < _LEAST_STRIP_M:
        return []
    covered = shapely.transform(ground, lambda xy: xy + move)
    rest = shapely.get_parts(shapely.difference(ground, covered)).tolist()
    return [part for part in rest if part.geom_type == "Polygon"]


def _name_below(path: Path, label_set: LabelSet, directories: Sequence[Path]) -> str:
    """Return the name of moved labels: that of their source below the user's directory."""
    roots = (
        [label_set.source]
        if label_set.source.is_dir()
        else [directory.parent if len(directories) > 1 else directory for directory in directories]
    )
    for root in roots:
        for place in (path, path.absolute()):
            for base in (root, root.absolute()):
                if place.is_relative_to(base):
                    return f"labels/{place.relative_to(base).with_suffix('.geojson').as_posix()}"
    return f"labels/{path.stem}.geojson"


def _write_geojson(path: Path, rows: Sequence[tuple[shapely.Geometry, Any]], crs: str) -> None:
    """Write polygons with their attributes."""
    digits = _DIGITS[crs == LON_LAT]
    features = [
        {
            "type": "Feature",
            "properties": dict(row),
            "geometry": shapely.geometry.mapping(
                shapely.transform(shape, lambda xy: np.round(xy, digits))
            ),
        }
        for shape, row in rows
        if not shape.is_empty
    ]
    content: dict[str, Any] = {"type": "FeatureCollection"}
    if crs != LON_LAT:
        content["crs"] = {"type": "name", "properties": {"name": crs}}
    try:
        text = json.dumps(content | {"features": features})
    except TypeError:
        text = json.dumps(content | {"features": features}, default=str)
    write_text(path, text + "\n")
