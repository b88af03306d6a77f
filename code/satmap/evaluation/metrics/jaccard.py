"""Jaccard index of Open Cities: intersection over union, pooled over the pixels of all chips."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from satmap.errors import SatmapError
from satmap.evaluation.metrics.figures import Figures, Report
from satmap.io.text import natural_key
from satmap.submissions.mask_rasters import find_masks, open_mask


class _Pixels(NamedTuple):
    """Numbers of building pixels: in both masks, only in the proposal, only in the truth."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def jaccard(self) -> float:
        union = sum(self)
        return self.tp / union if union else 1.0


def score_masks(truth: Path, proposal: Path) -> Report:
    """Score a directory of masks chip by chip, with only a part of one chip in memory.

    ``total`` and every image have ``jaccard`` and the pixel counts ``tp``, ``fp`` and ``fn``. The
    total pools the pixels, so large chips and those with many buildings weigh more. If both masks
    are empty, the index is 1. ``fair_jaccard`` counts buildings in chips that only the truth has as
    missed, and buildings in chips that only the proposal has as false.

    Raises:
        SatmapError: a directory or raster cannot be read, masks of a chip differ in size, or the
            directories have no chip in common.
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
    missed = (_Pixels(fn=_drawn(true[chip])) for chip in truth_only)
    false = (_Pixels(fp=_drawn(found[chip])) for chip in proposal_only)
    official = _sum(iter(scored.values()))
    fair = _sum(iter([official, *missed, *false]))
    return Report(
        metric="jaccard",
        total={**_figures(official), "fair_jaccard": fair.jaccard, "images": len(scored)},
        aois={},
        images={chip: _figures(pixels) for chip, pixels in scored.items()},
        truth_only=truth_only,
        proposal_only=proposal_only,
    )


def _count(truth: Path, proposal: Path) -> _Pixels:
    with ExitStack() as stack:
        true, found = (stack.enter_context(open_mask(path)) for path in (truth, proposal))
        if (true.width, true.height) != (found.width, found.height):
            raise SatmapError(
                f"{truth} has {true.width} x {true.height} px and {proposal} {found.width} x "
                f"{found.height}; both masks of a chip must have the same size."
            )
        tp = fp = fn = 0
        for rows in true.pieces():
            a, b = true.read(rows), found.read(rows)
            both = int((a & b).sum())
            tp += both
            fp += int(b.sum()) - both
            fn += int(a.sum()) - both
    return _Pixels(tp, fp, fn)


def _drawn(path: Path) -> int:
    with open_mask(path) as mask:
        return sum(int(mask.read(rows).sum()) for rows in mask.pieces())


def _sum(counts: Iterator[_Pixels]) -> _Pixels:
    return _Pixels(*map(sum, zip(*counts, strict=True)))


def _figures(pixels: _Pixels) -> Figures:
    return {"jaccard": pixels.jaccard, **pixels._asdict()}


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of a predicted mask and its label.

    Attributes:
        both, predicted, labelled: pixels in both masks, in the predicted mask, in the label.
    """

    both: int
    predicted: int
    labelled: int

    @classmethod
    def of(cls, predicted: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> Self:
        """Count the pixels of two masks, bool (h, w)."""
        return cls(int((predicted & labelled).sum()), int(predicted.sum()), int(labelled.sum()))


def dice_and_iou(overlaps: Sequence[Overlap]) -> dict[str, float]:
    """Return ``dice`` and ``iou``, 0..1, pooled over all pixels; 0 if all masks are empty."""
    both = sum(overlap.both for overlap in overlaps)
    sizes = sum(overlap.predicted + overlap.labelled for overlap in overlaps)
    return {"dice": 2 * both / max(sizes, 1), "iou": both / max(sizes - both, 1)}
