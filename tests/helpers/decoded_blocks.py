"""Decode probability maps in blocks, as `satmap map` does."""

from itertools import product
from pathlib import Path
from typing import Any

from satmap.rasters.map_files import write_maps
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.tasks.result_decoders import MapDecoder


def decode_blocks(
    maps: ProbabilityMaps, decoder: MapDecoder, side: int, place: Path
) -> list[tuple[Box, Any]]:
    """Return the rectangle and the result of each block, decoded with the blocks around it.

    Args:
        maps: maps of the whole scene.
        decoder: the task's decoder.
        side: side of a block, pixels.
        place: directory for the blocks' maps.
    """
    height, width = maps.shape
    blocks = {
        (box.top // side, box.left // side): box
        for box in Box(0, 0, width, height).tiles(side, side)
    }
    for (row, column), box in blocks.items():
        values = maps.values[:, *box.pixels]
        part = ProbabilityMaps(maps.names, values, maps.metres_per_pixel)
        write_maps(place / f"{row}-{column}.tif", part, None)
    found = []
    for (row, column), box in blocks.items():
        around = [
            (place / f"{r}-{c}.tif", blocks[r, c].left - box.left, blocks[r, c].top - box.top)
            for r, c in product((row - 1, row, row + 1), (column - 1, column, column + 1))
            if (r, c) in blocks and (r, c) != (row, column)
        ]
        found.append((box, decoder.decode_file(place / f"{row}-{column}.tif", around)))
    return found
