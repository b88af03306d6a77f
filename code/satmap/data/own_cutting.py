"""Cut a user's images and labels into chips on disk, and report how the two fit together."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from satmap.data.audit import audit_images
from satmap.data.chip_label import CHIP_LABEL_SUFFIX, ChipLabel
from satmap.data.folds import merge_groups
from satmap.data.label_offsets import offset_notes
from satmap.data.overlaps import overlapping_pairs
from satmap.data.own_labels import OwnShapes, rasterize_polygons, read_mask_label
from satmap.data.own_scenes import OwnPlan, OwnScene
from satmap.errors import CannotWriteError, SatmapError, error_text
from satmap.io.files import atomic_path
from satmap.io.progress import track
from satmap.io.text import counted
from satmap.rasters.scene import Box
from satmap.runtime.resources import available_cores
from satmap.vectors.georeference import Georeference, georeference_as_json

if TYPE_CHECKING:
    from satmap.tasks.base import Task

# Chips have about this width and height. Images up to one and a half of it stay whole.
_CHIP_PX = 512
# Pixels around a chip from which masks are traced, and into which lines continue.
_MARGIN_PX = 64
# Chips with less ground that counts are left out.
_LEAST_SEEN = 0.05
# Up to this number, places are areas of their own.
_MOST_AREAS = 20


def cut_chips(plan: OwnPlan, task: "Task", directory: Path) -> dict[str, Any]:
    """Write all chips and return the content of the index; adds to the plan's ``unread``."""
    jobs = []
    for scene in plan.scenes:
        width, height = scene.mosaic.width, scene.mosaic.height
        tiles = Box(0, 0, width, height).tiles(_even(width), _even(height))
        boxes = [box for box in tiles if scene.mosaic.covered(box) is not None]
        for number, box in enumerate(boxes):
            jobs.append((scene, box, scene.name if len(boxes) == 1 else f"{scene.name}_{number}"))

    def attempt(job: tuple[OwnScene, Box, str]) -> dict[str, Any] | str:
        scene, box, image_id = job
        try:
            return cut_chip(scene, box, image_id, plan.labels, task, directory)
        except CannotWriteError:
            raise
        except Exception as error:
            return error_text(error, Path(scene.mosaic.layers[0].sources[0].name))

    records, faults, seen, left_out = [], dict(plan.faults), np.zeros(4), 0
    with ThreadPoolExecutor(available_cores()) as pool:
        results = track(pool.map(attempt, jobs), "cutting chips", len(jobs))
        for (_, _, image_id), result in zip(jobs, results, strict=True):
            if isinstance(result, str):
                faults[image_id] = result
                continue
            seen += result.pop("pixels")
            plan.unread.update(result.pop("faults"))
            if result["kept"]:
                records.append(result)
            else:
                left_out += 1
    faults |= plan.unread
    if not records:
        reason = next(iter(faults.values()), "no image shows ground that counts.")
        raise SatmapError(f"no chip can be cut from the images: {reason}")
    notes = [*plan.notes, _ignored_note(seen, left_out)]
    places = {record["place"] for record in records}
    for record in records:
        # Many places, such as one per image, are one area.
        few = len(places) <= _MOST_AREAS
        record["aoi"] = (few and record["place"]) or record["folder"]
    notes += offset_notes(records, directory)
    return {
        "chips": records,
        "faults": faults,
        "notes": [note for note in notes if note],
        "unlabelled": [[s.name, s.width, s.height, len(s.bands), s.dtype] for s in plan.unlabelled],
        "labels_without_image": list(map(str, plan.unused_labels)),
        "duplicates": _duplicates(records, directory),
    }


def _even(side: int) -> int:
    """Return the side of equal chips of about the usual size."""
    return math.ceil(side / max(1, round(side / _CHIP_PX)))


def cut_chip(
    scene: OwnScene,
    box: Box,
    image_id: str,
    labels: OwnShapes | None,
    task: "Task",
    directory: Path,
) -> dict[str, Any]:
    """Write a chip and its label, unless nearly all of it is ignored.

    Args:
        scene: what to cut from.
        box: rectangle of the scene's mosaic; it may reach beyond it.
        image_id: name of the files.
        labels: the labels that ``scene.index`` refers to; None for polygons and masks.
        task: what the labels show.
        directory: where to write.

    Returns:
        Facts for the index, as JSON values: ``kept``, the number of ``pixels`` (all, without data,
        in voids, outside the area), ``faults`` by raster, and of chips that were written ``id``,
        ``width``, ``objects`` and so on.

    Raises:
        SatmapError: the mask cannot be read, or the files cannot be written.
    """
    mosaic = scene.mosaic
    unreadable: dict[str, str] = {}
    pixels = mosaic.read(box, unreadable)
    shape = pixels.shape[:2]
    empty = ~pixels.any(axis=2)
    void = rasterize_polygons(scene.voids, box) & ~empty
    outside = np.zeros(shape, np.bool_)
    if scene.area is not None:
        outside = ~rasterize_polygons(scene.area, box) & ~empty & ~void
    ignored = void | outside if scene.trains_empty else empty | void | outside
    counts = [int(part.sum()) for part in (empty, void, outside)]
    facts: dict[str, Any] = {
        "pixels": [ignored.size, *counts], "kept": False, "faults": unreadable,
    }  # fmt: skip
    if ignored.mean() > 1 - _LEAST_SEEN or empty.all():
        return facts
    label = _label(scene, box, ignored, labels, task)
    georeference = mosaic.georeference_of(box)
    _write_image(directory / f"{image_id}.tif", pixels, georeference)
    label.write(directory / f"{image_id}{CHIP_LABEL_SUFFIX}")
    return facts | {
        "kept": True,
        "id": image_id,
        "scene": scene.name,
        "place": scene.place,
        "corner": (box.left, box.top),
        "folder": Path(mosaic.layers[0].sources[0].name).parent.name or "images",
        "width": box.width,
        "height": box.height,
        "bands": pixels.shape[2],
        "objects": len(label.shapes),
        "georeference": georeference_as_json(georeference),
        "metres": scene.metres,
    }


def _label(
    scene: OwnScene,
    box: Box,
    ignored: NDArray[np.bool_],
    labels: OwnShapes | None,
    task: "Task",
) -> ChipLabel:
    """Return the label of a rectangle of a scene, in its pixels."""
    is_lines = task.label_kind == "lines"
    margin = _MARGIN_PX if is_lines else 0
    mask = index = None
    if scene.mask is not None:
        around = box.grown(margin, margin).overlap(Box(0, 0, scene.mask.width, scene.mask.height))
        assert around is not None
        wide = read_mask_label(scene.mask, around)
        mask = wide[box.within(around)]
        metres = scene.metres or (1.0, 1.0)
        found = np.array(task.trace_mask(wide, metres), np.object_)
        corner = np.array([around.left, around.top])
        found = shapely.transform(found, lambda xy: xy + corner)
    else:
        near = np.flatnonzero(
            shapely.intersects(scene.shapes, shapely.box(*box.grown(margin, margin).bounds))
        )
        found = scene.shapes[near]
        if not is_lines:
            found = shapely.make_valid(found)
        index = scene.index[near]
    found = shapely.transform(found, lambda xy: xy - (box.left, box.top))
    ground = shapely.box(-margin, -margin, box.width + margin, box.height + margin)
    clipped = shapely.intersection(found, ground)
    if ignored.any():
        raster = ignored.astype(np.uint8)
        hidden = [
            shapely.geometry.shape(outline)
            for outline, _ in rasterio.features.shapes(raster, mask=ignored)
        ]
        clipped = shapely.difference(clipped, shapely.union_all(hidden))
    kinds = ("LineString",) if is_lines else ("Polygon",)
    parts, owners = shapely.get_parts(clipped, return_index=True)
    # An intersection of touching shapes may be a collection.
    parts, inner = shapely.get_parts(parts, return_index=True)
    owners = owners[inner]
    right = np.isin([part.geom_type for part in parts], kinds)
    right &= (shapely.length(parts) >= 1) if is_lines else (shapely.area(parts) >= 1)
    parts, owners = parts[right], owners[right]
    return ChipLabel(
        parts,
        ignored,
        None if mask is None or not is_lines else mask,
        scene.metres,
        *(
            ()
            if labels is None or index is None or not is_lines
            else (
                tuple(labels.speeds_mph[index[owners]].tolist()),
                tuple(labels.widths_m[index[owners]].tolist()),
                tuple(labels.levels[index[owners]].tolist()),
            )
        ),
    )


def _write_image(path: Path, pixels: NDArray[np.uint8], georeference: Georeference | None) -> None:
    height, width, bands = pixels.shape
    profile: dict[str, Any] = {
        "driver": "GTiff", "height": height, "width": width, "count": bands, "dtype": "uint8",
        "compress": "deflate", "nodata": 0,
    }  # fmt: skip
    if georeference is not None:
        profile |= {"crs": georeference.crs, "transform": georeference.transform}
    try:
        with atomic_path(path) as temporary, rasterio.open(temporary, "w", **profile) as file:
            file.write(pixels.transpose(2, 0, 1))
    except RasterioError as error:
        raise CannotWriteError(f"{path}: cannot be written ({error}).") from error


def _ignored_note(pixels: NDArray[np.float64], left_out: int) -> str:
    total, *parts = pixels.tolist()
    names = ("no data", "voids", "outside --area")
    shares = [
        f"{name} {100 * part / total:.1f} %"
        for name, part in zip(names, parts, strict=True)
        if part
    ]
    note = f"ignored by training: {', '.join(shares)}" if shares else ""
    if left_out:
        note += "; " if note else ""
        note += f"{counted(left_out, 'chip')} left out, because training would ignore nearly all"
    return note


def _duplicates(records: Sequence[Mapping[str, Any]], directory: Path) -> list[list[str]]:
    """Find near-duplicates among chips without position; returns groups of ids."""
    unplaced = [record for record in records if record["georeference"] is None]
    if not unplaced:
        return []
    ids = [record["id"] for record in unplaced]
    # Hashes also find copies of images without texture.
    groups = [{path.stem for path in group} & {*ids} for group in audit_images([directory]).groups]
    paths = [directory / f"{name}.tif" for name in ids]
    pairs = overlapping_pairs(paths, [record["scene"] for record in unplaced])
    return merge_groups([*groups, *({ids[one], ids[other]} for one, other in pairs)])
