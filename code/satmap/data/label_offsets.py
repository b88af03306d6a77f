"""Report how far a user's labels lie from what the images show, place by place."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rasterio

from satmap.data.chip_label import CHIP_LABEL_SUFFIX, ChipLabel
from satmap.data.registration import measure_offset

# Chips from which the offset of labels is measured, per place.
_MEASURED = 60
# With fewer chips, a place is measured together with others.
_FEW_CHIPS = 5
# Smallest offset that is worth a warning, metres and pixels. The middle of a wide road is uncertain
# by metres.
_FAR_M, _FAR_PX = {"buildings": 0.75, "roads": 2.5}, {"buildings": 2.0, "roads": 4.0}


def offset_notes(
    records: Sequence[Mapping[str, Any]], directory: Path, advice: bool = True
) -> list[str]:
    """Measure the offset between labels and images at every place.

    Args:
        records: facts about the chips, as :func:`satmap.data.own_cutting.cut_chip` returns them,
            with their place as ``aoi``.
        directory: where the chips are.
        advice: whether to name the option that moves the labels.

    Returns:
        Lines for the user.
    """
    places: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["objects"]:
            places[record["aoi"]].append(record)
    # Single chips tell little, so those of small places are measured together.
    together: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for aoi, members in places.items():
        place = members[0]["georeference"]
        size = f"{math.sqrt(math.prod(place[2])):.1g} m per pixel" if place else "their size"
        few = len(members) < _FEW_CHIPS and len(places) > 1
        together[f"the small places with {size}" if few else aoi] += members
    notes, fitting, unclear = [], [], []
    for aoi, members in together.items():
        chosen = sorted(members, key=lambda r: (-r["objects"], r["id"]))[:_MEASURED]
        chips = []
        for record in chosen:
            label = ChipLabel.read(directory / f"{record['id']}{CHIP_LABEL_SUFFIX}")
            with rasterio.open(directory / f"{record['id']}.tif", driver="GTiff") as file:
                chips.append((file.read().transpose(1, 2, 0), label.shapes))
        georeference = chosen[0]["georeference"]
        metres = math.sqrt(math.prod(georeference[2])) if georeference else None
        offset = measure_offset(chips, metres)
        if offset is None or not offset.is_certain:
            unclear.append(aoi)
            continue
        kind = "roads" if chips[0][1][0].geom_type == "LineString" else "buildings"
        far = math.hypot(offset.right, offset.down)
        if far * (metres or 1.0) < (_FAR_M if metres else _FAR_PX)[kind]:
            fitting.append(aoi)
        elif metres:
            east, north = offset.right * metres, -offset.down * metres
            notes.append(
                f"offset at {aoi}: the labels lie {_direction(east, north)} of what the images "
                f"show ({offset.chips} chips, give or take {offset.error * metres:.1f} m)"
                + (f". If you agree: --shift={-east:.1f},{-north:.1f}" if advice else "")
            )
        else:
            notes.append(
                f"offset in {aoi}: the labels lie {offset.right:+.1f} pixels to the right and "
                f"{offset.down:+.1f} down of what the images show ({offset.chips} chips)"
            )
    if fitting:
        notes.append(f"offset at {_some(fitting)}: the labels fit the images")
    if unclear:
        notes.append(f"offset at {_some(unclear)}: not measurable")
    return notes


def _direction(east: float, north: float) -> str:
    sides = []
    if abs(east) >= 0.05:
        sides.append(f"{abs(east):.1f} m {'east' if east > 0 else 'west'}")
    if abs(north) >= 0.05:
        sides.append(f"{abs(north):.1f} m {'north' if north > 0 else 'south'}")
    return " and ".join(sides)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} places such as {names[0]}"
