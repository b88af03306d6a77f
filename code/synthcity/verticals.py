"""Cities of buildings seen almost from above, all eight bands, in pixels of about 0.3 m."""

from collections.abc import Iterator

import numpy as np

from synthcity.halves import Half, make_half, noise
from synthcity.oblique import Photograph, photograph
from synthcity.plan import Box
from synthcity.spectra import BANDS, Sensor, draw_sensor
from synthcity.survey import make_surveys
from synthcity.tiles import Tile, surveyed_tiles
from synthcity.view_angles import ViewAngle

_ALL = tuple(range(BANDS))


def surveyed(
    chips: int, test_chips: int, size: int, seed: int
) -> list[tuple[list[Tile], Box | None]]:
    """Tiles of the training and of the test city, and the land of each to keep free."""
    surveys = make_surveys(chips, test_chips, size, np.random.default_rng((seed, 0)))
    return [(surveyed_tiles(survey), survey.green() if survey.chips else None)
            for survey in surveys]  # fmt: skip


def vertical_city(
    tiles: list[Tile], green: Box | None, seed: int, order: int
) -> tuple[Sensor, Half]:
    """The sensor of all tiles, and one half of the city under its sun."""
    sensor = draw_sensor(np.random.default_rng((seed, 1)))
    return sensor, make_half(tiles, green, sensor.shadow_per_m, (seed, 2, order))


def verticals(
    city: Half, sensor: Sensor, seed: int, order: int
) -> Iterator[tuple[Tile, Photograph]]:
    """Every tile from almost above, all eight bands."""
    rng = noise(seed, order)
    above = ViewAngle(float(rng.uniform(1, 6)), float(rng.uniform(0, 360)), 0.31)
    for number, (tile, site) in enumerate(city.sites()):
        shot = photograph(site, above, sensor, _ALL, noise(seed, order, number))
        shot.counts[~tile.valid] = 0
        yield tile, shot
