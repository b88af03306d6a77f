"""Layout of chips and tiles: pixel grid, georeference and windows in the city."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from shapely import Polygon, box
from shapely.affinity import translate

from synthcity.noise import Window
from synthcity.paint import Grid
from synthcity.plan import MAX_WARP_M, Box
from synthcity.solids import Solid

# Pixels are square in degrees, as in SpaceNet: about 0.30 m high and 0.24 m wide here.
_PIXEL_DEG = 2.7e-6

_LATITUDE, _LONGITUDE = 36.12, -115.2

# Minimum numbers of chips for a chip without roads and for a swath edge.
_GREEN_FROM_CHIPS, _SWATH_FROM_CHIPS = 12, 4

# Distance between the green and road centre lines, so that no asphalt reaches into its chip.
_GREEN_MARGIN_M = MAX_WARP_M + 12.0

#: SpaceNet 4's resampled pixels, metres.
OBLIQUE_PIXEL_M = 0.5

_UTM_16N = "EPSG:32616"

_EASTING, _NORTHING = 732701, 3730539

# Offset of the test city to the east, metres. It is large enough to keep tile names unique.
_TEST_OFFSET_M = 90_000


@dataclass(frozen=True)
class Survey:
    """Chips of one split: a block of windows of one city, row by row.

    Attributes:
        chips: number of chips; the last row of the block may be incomplete.
        first: number of the first chip.
        size: side of a chip, pixels.
        columns: number of chips per row.
        west: longitude of the block's north-west corner, degrees.
        mirrored: true if the green lies in the north-east and the swath ends in the north-west,
            false for the opposite.
    """

    chips: int
    first: int
    size: int
    columns: int
    west: float
    mirrored: bool

    @property
    def rows(self) -> int:
        """Number of rows; the last one may be incomplete."""
        return -(-self.chips // self.columns)

    @property
    def grid(self) -> Grid:
        """Pixel size, one value for the whole city, with an error below 0.02 % over 2 km."""
        across, down = metres_per_degree(_LATITUDE)
        return Grid(_PIXEL_DEG * across, _PIXEL_DEG * down)

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the block, metres."""
        grid = self.grid
        return self.columns * self.size * grid.x_m, self.rows * self.size * grid.y_m

    @property
    def east(self) -> float:
        """Longitude of the block's eastern side, degrees."""
        return self.west + self.columns * self.size * _PIXEL_DEG

    @property
    def north(self) -> float:
        """Latitude of the block's northern side, degrees; all blocks have the same middle."""
        return _LATITUDE + 0.5 * self.rows * self.size * _PIXEL_DEG

    def numbers(self) -> range:
        """Numbers of the chips."""
        return range(self.first, self.first + self.chips)

    def window(self, number: int) -> Window:
        """Return the pixels of a chip in the city's grid."""
        row, column = divmod(number - self.first, self.columns)
        return Window(column * self.size, row * self.size, self.size, self.size)

    def transform(self, number: int) -> Affine:
        """Return the transform from pixels of a chip to longitude and latitude."""
        window = self.window(number)
        west = self.west + window.column * _PIXEL_DEG
        north = self.north - window.row * _PIXEL_DEG
        return Affine(_PIXEL_DEG, 0.0, west, 0.0, -_PIXEL_DEG, north)

    def green(self) -> Box | None:
        """Return a corner chip with a margin, to keep free of roads; None in small cities."""
        if self.chips < _GREEN_FROM_CHIPS:
            return None
        rim = _GREEN_MARGIN_M
        width, height = self.size * self.grid.x_m, self.size * self.grid.y_m
        west = self.extent[0] - width if self.mirrored else 0.0
        return Box(west - rim, -rim, west + width + rim, height + rim)

    def valid(self, number: int) -> NDArray[np.bool_]:
        """Return the pixels of a chip within the swath, bool (size, size)."""
        window = self.window(number)
        x = window.column + np.arange(window.width)[None, :] + 0.5
        y = window.row + np.arange(window.height)[:, None] + 0.5
        if self.chips < _SWATH_FROM_CHIPS:
            return np.ones((window.height, window.width), dtype=bool)
        inward = x if self.mirrored else self.columns * self.size - x
        return np.asarray(inward / self._swath[0] + y / self._swath[1] >= 1)

    def seen(self, number: int) -> Polygon:
        """Return the part of a chip within the swath as a polygon, city metres."""
        window = self.window(number)
        x, y = self.grid.x_m, self.grid.y_m
        chip = box(
            window.column * x,
            window.row * y,
            (window.column + window.width) * x,
            (window.row + window.height) * y,
        )
        if self.chips < _SWATH_FROM_CHIPS:
            return chip
        corner = 0.0 if self.mirrored else self.extent[0]
        inner = corner + self._swath[0] * x * (1 if self.mirrored else -1)
        return chip.difference(Polygon([(corner, 0), (inner, 0), (corner, self._swath[1] * y)]))

    @property
    def _swath(self) -> tuple[float, float]:
        """Legs of the triangle that the swath's edge cuts off the block, pixels."""
        return 0.45 * self.size, 0.8 * self.size


def make_surveys(
    chips: int, test_chips: int, size: int, rng: np.random.Generator
) -> tuple[Survey, Survey]:
    """Make the training and the test survey; the test city lies a kilometre to the east."""
    train = Survey(chips, 0, size, _columns(chips), _LONGITUDE, bool(rng.random() < 0.5))
    test = Survey(
        test_chips, chips, size, _columns(test_chips), train.east + 0.011, bool(rng.random() < 0.5)
    )
    return train, test


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Return metres per degree of longitude and of latitude on the WGS 84 ellipsoid."""
    semi_major, eccentricity2 = 6378137.0, 6.69437999014e-3
    sine = math.sin(math.radians(latitude))
    curvature = 1 - eccentricity2 * sine * sine
    normal = semi_major / math.sqrt(curvature)
    meridian = semi_major * (1 - eccentricity2) / curvature**1.5
    radian = math.pi / 180
    return normal * math.cos(math.radians(latitude)) * radian, meridian * radian


def _columns(chips: int) -> int:
    """Choose the number of columns so that the block is about square."""
    across, down = metres_per_degree(_LATITUDE)
    return max(1, int(np.ceil(np.sqrt(chips * down / across))))


@dataclass(frozen=True)
class Tile:
    """Location of an image.

    Attributes:
        name: unique name in its city, e.g. ``732701_3730539`` or ``img12``.
        window: its pixels in the city's grid.
        grid: pixel size.
        transform: transform from pixel (column, row) to coordinates of ``crs``.
        crs: coordinate reference system, in a form that rasterio accepts.
        valid: bool (h, w), pixels within the swath of every view angle.
        seen: the valid area as a polygon in city metres; labels lie within it.
    """

    name: str
    window: Window
    grid: Grid
    transform: Affine
    crs: str
    valid: NDArray[np.bool_]
    seen: Polygon


def survey_tiles(survey: Survey) -> list[Tile]:
    """Return the chips of a survey as tiles, named by their numbers."""
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
    """Return a block of tiles in UTM, row by row, named by their south-west corners.

    Args:
        count: number of tiles; the last row of the block may be incomplete.
        size: side of a tile, pixels.
        test: whether the tiles belong to the test city.
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
    """Return width and height of a block of tiles, metres."""
    grid = tiles[0].grid
    width = max(tile.window.column + tile.window.width for tile in tiles)
    height = max(tile.window.row + tile.window.height for tile in tiles)
    return width * grid.x_m, height * grid.y_m


def move_to_buildings(
    tiles: list[Tile], solids: Sequence[Solid], room: tuple[float, float], step_m: float = 25.0
) -> list[Tile]:
    """Move a block of tiles within its city to the place with most buildings.

    Args:
        tiles: the block, which starts in the city's north-west corner.
        solids: the buildings.
        room: maximum movement to the east and to the south, metres; negative means no movement.
        step_m: distance between candidate positions, metres.

    Returns:
        The tiles with new windows in the city; names and coordinates do not change.
    """
    if not solids:
        return tiles
    grid = tiles[0].grid
    width, height = extent(tiles)
    centres = np.array([(s.footprint.centroid.x, s.footprint.centroid.y) for s in solids])
    # The square root favours a street of houses over one hall or many sheds.
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
