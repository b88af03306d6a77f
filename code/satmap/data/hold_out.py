"""Hold out validation chips of a user's images in blocks, so that neighbours stay together."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from satmap.io.geojson_reader import LON_LAT, project
from satmap.vectors.georeference import georeference_from_json, metres_per_degree

# The chips of a block are held out together. Sides of blocks to try, in chips, and the number of
# blocks per fold that a side needs.
_BLOCK_SIDES, _BLOCKS_PER_FOLD = (8, 4, 2), 4


def held_out_sites(
    records: Sequence[Mapping[str, Any]], folds: int
) -> tuple[dict[str, str], list[str]]:
    """Return the unit of each chip that is held out as a whole, and notes on these units.

    Chips are grouped into square blocks. Blocks are as large as possible, but there must be enough
    of them. Chips with a position get blocks on the ground. Chips without one get blocks in their
    image, or the whole image is one block.
    """
    placed: dict[str, tuple[str, float, float]] = {}
    unplaced: dict[str, tuple[str, float, float]] = {}
    metres, pixels = [], []
    scales: dict[str, tuple[float, float]] = {}
    for record in records:
        georeference = georeference_from_json(record["georeference"])
        if georeference is None:
            # A slash keeps it apart from the places.
            unplaced[record["id"]] = f"{record['scene']}/", *record["corner"]
            pixels.append(record["width"])
            continue
        middle = np.array([[record["width"] / 2, record["height"] / 2]])
        ((longitude, latitude),) = project(georeference.to_map(middle), georeference.crs, LON_LAT)
        # The chips of a place have the same scale.
        along_x, along_y = scales.setdefault(record["place"], metres_per_degree(float(latitude)))
        placed[record["id"]] = record["place"], longitude * along_x, latitude * along_y
        metres.append(georeference.gsd_m * record["width"])
    sites: dict[str, str] = {}
    notes: list[str] = []
    if placed:
        sides = [float(np.median(metres)) * count for count in (*_BLOCK_SIDES, 1)]
        blocks, side = _blocks(placed, sides, _BLOCKS_PER_FOLD * folds)
        sites |= blocks
        count = len(set(blocks.values()))
        notes.append(f"validation holds out blocks of {side:.0f} m: {count} blocks")
    if unplaced:
        sides = [math.inf, *(float(np.median(pixels)) * count for count in (*_BLOCK_SIDES, 1))]
        blocks, side = _blocks(unplaced, sides, _BLOCKS_PER_FOLD * folds)
        sites |= blocks
        count, images = len(set(blocks.values())), len({place for place, _, _ in unplaced.values()})
        notes.append(
            f"validation holds out whole images: {count}"
            if count == images
            else f"validation holds out blocks of {side:.0f} pixels: {count} blocks"
        )
    return sites, notes


def _blocks(
    places: Mapping[str, tuple[str, float, float]], sides: Sequence[float], least: int
) -> tuple[dict[str, str], float]:
    """Group positions (place, x, y) by squares of the first side that gives ``least`` of them.

    Returns:
        The square of each, and its side; the last side if none gives enough.
    """
    # Blocks begin at the first chips of their place.
    first: dict[str, tuple[float, float]] = {}
    for place, x, y in places.values():
        left, bottom = first.get(place, (x, y))
        first[place] = min(left, x), min(bottom, y)
    blocks: dict[str, str] = {}
    side = math.inf
    for side in sides:
        blocks = {
            name: f"{place} {int((x - first[place][0]) / side + 0.01)} "
            f"{int((y - first[place][1]) / side + 0.01)}"
            for name, (place, x, y) in places.items()
        }
        if len(set(blocks.values())) >= least:
            break
    return blocks, side
