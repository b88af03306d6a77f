"""Layout of chips and tiles: pixel grid, georeference and windows in the city."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from shapely import Polygon, box, get_coordinates
from shapely.affinity import translate

from synthcity.noise import Grid, Window
from synthcity.plan import MAX_WARP_M, Box, FloatArray, Rng
from synthcity.solids import Solid
from synthcity.views import coverage

# Pixels are square in degrees, as in SpaceNet: about 0.30 m high and 0.24 m wide here.
_PIXEL_DEG = 2.7e-6
_LATITUDE, _LONGITUDE = 36.12, -115.2
# Minimum numbers of chips for a chip without roads and for a swath edge.
_GREEN_FROM_CHIPS, _SWATH_FROM_CHIPS = 12, 4
# Legs of the triangle that the swath's edge cuts off, as fractions of a chip's side.
_SWATH = (0.45, 0.8)
# Distance between the green and road centre lines, so that no asphalt reaches into its chip.
_GREEN_MARGIN_M = MAX_WARP_M + 12.0
#: SpaceNet 4's resampled pixels, metres.
OBLIQUE_PIXEL_M = 0.5
_EASTING, _NORTHING = 732701, 3730539
# Offset of the test city to the east, metres. It is large enough to keep tile names unique.
_TEST_OFFSET_M = 90_000


@dataclass(frozen=True)
class Tile:
    """Location of an image."""

    name: str  # unique name in its city, e.g. ``732701_3730539``, or the number of the chip
    window: Window  # its pixels in the city's grid
    grid: Grid  # pixel size
    transform: Affine  # transform from pixel (column, row) to coordinates of ``crs``
    crs: str  # coordinate reference system, in a form that rasterio accepts
    seen: Polygon  # the area within the swath as a polygon in city metres; labels lie within it

    def pixels(self, metres: FloatArray) -> FloatArray:
        """Convert city metres to pixels of the tile, rounded to hundredths, float64 (n, 2)."""
        scale, corner = (self.grid.x_m, self.grid.y_m), (self.window.column, self.window.row)
        # Adding zero turns -0.0 into 0.0, which is written without a sign.
        return np.asarray(np.round(metres / scale - corner, 2) + 0.0, dtype=np.float64)

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """Pixels within the swath, bool (h, w)."""
        x, y = (
            np.arange(n, dtype=np.float64) + 0.5 for n in (self.window.width, self.window.height)
        )
        scale, corner = (self.grid.x_m, self.grid.y_m), (self.window.column, self.window.row)
        ring = get_coordinates(self.seen.exterior)[:-1] / scale - corner
        return coverage([np.round(ring, 6)], x, y)


@dataclass(frozen=True)
class Block:
    """Tiles of one split, row by row, with the size of their city in metres."""

    tiles: list[Tile]  # the tiles
    width: float  # extent of the tiles in x
    height: float  # extent of the tiles in y
    # a corner chip with a margin, to keep free of roads; None in small cities
    green: Box | None = None


def make_blocks(chips: int, test_chips: int, size: int, rng: Rng) -> tuple[Block, Block]:
    """Lay out the training and the test chips; the test city lies a kilometre to the east.

    Chips are numbered through both cities. Their pixels are square in degrees.
    """
    mirrored = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    east = _LONGITUDE + _columns(chips) * size * _PIXEL_DEG + 0.011
    return (
        chip_block(chips, 0, size, _LONGITUDE, mirrored=mirrored[0]),
        chip_block(test_chips, chips, size, east, mirrored=mirrored[1]),
    )


def _columns(chips: int) -> int:
    """Choose the number of columns so that the block is about square."""
    across, down = metres_per_degree(_LATITUDE)
    return max(1, int(np.ceil(np.sqrt(chips * down / across))))


def chip_block(chips: int, first: int, size: int, west: float, *, mirrored: bool) -> Block:
    """Lay out the chips of one city.

    Args:
        chips: number of chips; the last row of the block may be incomplete.
        first: number of the first chip.
        size: side of a chip, pixels.
        west: longitude of the block's north-west corner, degrees.
        mirrored: true if the green lies in the north-east and the swath ends in the north-west,
            false for the opposite.
    """
    columns = _columns(chips)
    rows = -(-chips // columns)
    across, down = metres_per_degree(_LATITUDE)
    # One pixel size for the whole city, with an error below 0.02 % over 2 km.
    grid = Grid(_PIXEL_DEG * across, _PIXEL_DEG * down)
    width, height = columns * size * grid.x_m, rows * size * grid.y_m
    north = _LATITUDE + 0.5 * rows * size * _PIXEL_DEG
    corner, inward = (0.0, 1) if mirrored else (width, -1)
    reach_x, reach_y = _SWATH[0] * size * grid.x_m, _SWATH[1] * size * grid.y_m
    beyond = Polygon([(corner, 0), (corner + inward * reach_x, 0), (corner, reach_y)])
    tiles = []
    for i in range(chips):
        window = Window(i % columns * size, i // columns * size, size, size)
        seen = box(*window.metres(grid))
        if chips >= _SWATH_FROM_CHIPS:
            seen = seen.difference(beyond)
        place = west + window.column * _PIXEL_DEG, north - window.row * _PIXEL_DEG
        transform = Affine(_PIXEL_DEG, 0.0, place[0], 0.0, -_PIXEL_DEG, place[1])
        tiles.append(Tile(str(first + i), window, grid, transform, "EPSG:4326", seen))
    green = None
    if chips >= _GREEN_FROM_CHIPS:
        rim, side = _GREEN_MARGIN_M, (size * grid.x_m, size * grid.y_m)
        left = width - side[0] if mirrored else 0.0
        green = Box(left - rim, -rim, left + side[0] + rim, side[1] + rim)
    return Block(tiles, width, height, green)


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Return metres per degree of longitude and of latitude on the WGS 84 ellipsoid."""
    semi_major, eccentricity2 = 6378137.0, 6.69437999014e-3
    sine = math.sin(math.radians(latitude))
    curvature = 1 - eccentricity2 * sine * sine
    normal = semi_major / math.sqrt(curvature)
    meridian = semi_major * (1 - eccentricity2) / curvature**1.5
    radian = math.pi / 180
    return normal * math.cos(math.radians(latitude)) * radian, meridian * radian


def oblique_block(count: int, size: int, *, test: bool) -> Block:
    """Lay out tiles of ``size`` pixels in UTM, named by their south-west corners.

    ``test`` says whether they belong to the test city. The last row may be incomplete.
    """
    grid = Grid(OBLIQUE_PIXEL_M, OBLIQUE_PIXEL_M)
    columns = max(1, int(np.ceil(np.sqrt(count))))
    side = size * OBLIQUE_PIXEL_M
    tiles = []
    for number in range(count):
        row, column = divmod(number, columns)
        west = _EASTING + _TEST_OFFSET_M * test + column * side
        north = _NORTHING - row * side
        window = Window(column * size, row * size, size, size)
        transform = Affine(OBLIQUE_PIXEL_M, 0.0, west, 0.0, -OBLIQUE_PIXEL_M, north)
        name, seen = f"{int(west)}_{int(north - side)}", box(*window.metres(grid))
        tiles.append(Tile(name, window, grid, transform, "EPSG:32616", seen))
    return Block(tiles, min(count, columns) * side, -(-count // columns) * side)


def move_to_buildings(
    block: Block, solids: Sequence[Solid], room: tuple[float, float], step_m: float = 25.0
) -> list[Tile]:
    """Move a block of tiles within its city to the place with most buildings.

    ``room`` is the maximum movement to the east and to the south, metres; negative means none.
    Names and coordinates of the tiles do not change, only their windows in the city.
    """
    grid = block.tiles[0].grid
    centres = np.array([s.footprint.centroid.coords[0] for s in solids]).reshape(-1, 2)
    # The square root favours a street of houses over one hall or many sheds.
    worth = np.sqrt([s.footprint.area for s in solids])
    steps = [np.arange(0.0, max(0.0, length) + 1e-9, step_m) for length in room]
    places = [(x, y) for x in steps[0] for y in steps[1]]
    size = block.width, block.height
    inside = [((centres >= p) & (centres < np.add(p, size))).all(axis=1) for p in places]
    x, y = places[int(np.argmax([worth[held].sum() for held in inside]))]
    right, down = round(x / grid.x_m), round(y / grid.y_m)
    moved = []
    for tile in block.tiles:
        corner = tile.window.column + right, tile.window.row + down
        window = Window(*corner, tile.window.width, tile.window.height)
        seen = translate(tile.seen, right * grid.x_m, down * grid.y_m)
        moved.append(replace(tile, window=window, seen=seen))
    return moved
