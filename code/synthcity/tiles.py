"""Where the tiles of a city of buildings lie, in degrees or in metres."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from shapely import Polygon, box
from shapely.affinity import translate

from synthcity.noise import Window
from synthcity.paint import Grid
from synthcity.solids import Solid
from synthcity.survey import Survey

#: SpaceNet 4's resampled pixels, metres.
OBLIQUE_PIXEL_M = 0.5

_UTM_16N = "EPSG:32616"
_EASTING, _NORTHING = 732701, 3730539

# The test city lies so far to the east that no tile's name comes twice, metres.
_TEST_OFFSET_M = 90_000


@dataclass(frozen=True)
class Tile:
    """An image's place.

    Attributes:
        name: what tells it from others of its city, ``732701_3730539`` or ``img12``.
        window: its pixels in the city's grid.
        grid: their size.
        transform: pixel (column, row) to coordinates of ``crs``.
        crs: reference system as rasterio takes it.
        valid: bool (h, w), what the sensor saw in every look.
        seen: the same as a polygon in city metres: where labels may lie.
    """

    name: str
    window: Window
    grid: Grid
    transform: Affine
    crs: str
    valid: NDArray[np.bool_]
    seen: Polygon


def surveyed_tiles(survey: Survey) -> list[Tile]:
    """The chips of a survey in degrees, named by their numbers."""
    return [
        Tile(
            f"img{number}",
            survey.window(number),
            survey.grid,
            survey.transform(number),
            "EPSG:4326",
            survey.valid(number),
            survey.seen(number),
        )
        for number in survey.numbers()
    ]


def oblique_tiles(count: int, size: int, *, test: bool) -> list[Tile]:
    """A block of tiles in UTM, row by row, named by their south-west corners.

    Args:
        count: tiles; the last row of the block may be incomplete.
        size: side of a tile, pixels.
        test: whether they belong to the test city.
    """
    grid = Grid(OBLIQUE_PIXEL_M, OBLIQUE_PIXEL_M)
    columns = max(1, int(np.ceil(np.sqrt(count))))
    side = size * OBLIQUE_PIXEL_M
    tiles = []
    for number in range(count):
        row, column = divmod(number, columns)
        west = _EASTING + _TEST_OFFSET_M * test + column * side
        north = _NORTHING - row * side
        corner = column * side, row * side
        tiles.append(
            Tile(
                f"{int(west)}_{int(north - side)}",
                Window(column * size, row * size, size, size),
                grid,
                Affine(OBLIQUE_PIXEL_M, 0.0, west, 0.0, -OBLIQUE_PIXEL_M, north),
                _UTM_16N,
                np.ones((size, size), dtype=bool),
                box(*corner, corner[0] + side, corner[1] + side),
            )
        )
    return tiles


def extent(tiles: list[Tile]) -> tuple[float, float]:
    """Width and height of the block of tiles, metres."""
    grid = tiles[0].grid
    width = max(tile.window.column + tile.window.width for tile in tiles)
    height = max(tile.window.row + tile.window.height for tile in tiles)
    return width * grid.x_m, height * grid.y_m


def finished_with(
    tiles: list[Tile], solids: Sequence[Solid], room: tuple[float, float], step_m: float = 25.0
) -> list[Tile]:
    """Move a block of tiles within its city to where most is built.

    Args:
        tiles: the block, which starts in the city's north-west corner.
        solids: the buildings.
        room: how far it may move eastward and southward, metres; nowhere if that is less than 0.
        step_m: places tried are so far apart.

    Returns:
        The same tiles with other pixels of the city; names and coordinates stay.
    """
    if not solids:
        return tiles
    grid = tiles[0].grid
    width, height = extent(tiles)
    centres = np.array([(s.footprint.centroid.x, s.footprint.centroid.y) for s in solids])
    # Neither one hall nor many sheds are worth as much as a street of houses.
    worth = np.sqrt([s.footprint.area for s in solids])
    best, place = -1.0, (0.0, 0.0)
    for x in np.arange(0.0, max(0.0, room[0]) + 1e-9, step_m):
        for y in np.arange(0.0, max(0.0, room[1]) + 1e-9, step_m):
            inside = ((centres >= (x, y)) & (centres < (x + width, y + height))).all(axis=1)
            if worth[inside].sum() > best:
                best, place = float(worth[inside].sum()), (float(x), float(y))
    column, row = round(place[0] / grid.x_m), round(place[1] / grid.y_m)
    return [
        replace(
            tile,
            window=replace(
                tile.window, column=tile.window.column + column, row=tile.window.row + row
            ),
            seen=translate(tile.seen, column * grid.x_m, row * grid.y_m),
        )
        for tile in tiles
    ]
