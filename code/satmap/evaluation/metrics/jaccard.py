"""Jaccard index of Open Cities: intersection over union, pooled over the pixels of all chips."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from satmap.errors import SatmapError
from satmap.evaluation.metrics.figures import Counts, Figures, Report
from satmap.io.text import natural_key
from satmap.submissions.mask_rasters import MaskFile, find_masks, open_mask


def score_masks(truth: Path, proposal: Path) -> Report:
    """Score a directory or an archive of masks chip by chip, with a part of a chip at a time.

    ``total`` and every image have ``jaccard`` and the pixel counts ``tp``, ``fp`` and ``fn``. The
    total pools the pixels, so large chips and those with many buildings weigh more. If both masks
    are empty, the index is 1. ``fair_jaccard`` counts buildings in chips that only the truth has as
    missed, and buildings in chips that only the proposal has as false.

    Raises:
        SatmapError: a directory, archive or raster cannot be read, masks of a chip differ in size,
            or truth and proposal have no chip in common.
    """
    true, found = find_masks(truth), find_masks(proposal)
    chips = sorted(true.keys() | found.keys(), key=natural_key)
    scored = {
        chip: _count(true[chip], found[chip]) for chip in chips if chip in true and chip in found
    }
    if not scored:
        raise SatmapError(
            f"{truth} and {proposal} have no chip in common, of {len(true)} and {len(found)}. "
            "Masks are matched by name: chip.TIF, or chip/chip.tif."
        )
    truth_only = tuple(chip for chip in chips if chip not in found)
    proposal_only = tuple(chip for chip in chips if chip not in true)
    official = sum(scored.values(), Counts())
    missed = sum(_drawn(true[chip]) for chip in truth_only)
    false = sum(_drawn(found[chip]) for chip in proposal_only)
    fair = official + Counts(fp=false, fn=missed)
    return Report(
        metric="jaccard",
        total={**_figures(official), "fair_jaccard": _jaccard(fair), "images": len(scored)},
        aois={},
        images={chip: _figures(pixels) for chip, pixels in scored.items()},
        truth_only=truth_only,
        proposal_only=proposal_only,
    )


def _count(truth: MaskFile, proposal: MaskFile) -> Counts:
    with open_mask(truth) as true, open_mask(proposal) as found:
        if (true.width, true.height) != (found.width, found.height):
            raise SatmapError(
                f"{true.path} has {true.width} x {true.height} px and {found.path} {found.width} x "
                f"{found.height}; both masks of a chip must have the same size."
            )
        parts = (Counts.of_pixels(true.read(rows), found.read(rows)) for rows in true.pieces())
        return sum(parts, Counts())


def _drawn(file: MaskFile) -> int:
    with open_mask(file) as mask:
        return sum(int(mask.read(rows).sum()) for rows in mask.pieces())


def _jaccard(pixels: Counts) -> float:
    union = pixels.tp + pixels.fp + pixels.fn
    return pixels.tp / union if union else 1.0


def _figures(pixels: Counts) -> Figures:
    return {"jaccard": _jaccard(pixels), **asdict(pixels)}


def dice_and_iou(overlaps: Sequence[Counts]) -> dict[str, float]:
    """Return ``dice`` and ``iou``, 0..1, pooled over all pixels; 0 if all masks are empty."""
    pixels = sum(overlaps, Counts())
    union = pixels.tp + pixels.fp + pixels.fn
    return {"dice": 2 * pixels.tp / max(union + pixels.tp, 1), "iou": pixels.tp / max(union, 1)}
