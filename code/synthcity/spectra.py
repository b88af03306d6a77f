"""Materials with their reflectances, and a WorldView-like sensor.

A material is a reflectance in each of the eight WorldView-2 bands. Grey roofs have nearly the
spectrum of asphalt, because colour alone does not identify roads in real cities either.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from synthcity.plan import Float32, Rng

#: Coastal, blue, green, yellow, red, red edge, near infrared 1 and 2.
BANDS = 8
#: Indices of red, green and blue among the eight bands (bands 5, 3, 2 counted from one).
RGB_BANDS = (4, 2, 1)
#: Largest count of the 11-bit sensor; 0 means "no data".
MAX_COUNT = 2047


class Material(IntEnum):
    """Surface materials: row numbers of ``REFLECTANCE`` and ``GRAIN``."""

    (
        ASPHALT, CONCRETE, GRAVEL, SOIL, DIRT_ROAD, LAWN, DRY_GRASS, CROP, STUBBLE, TREE,
        DRY_TREE, WATER, POOL, ROOF_GREY, ROOF_BROWN, ROOF_TILE, ROOF_WHITE, ROOF_METAL,
        CAR_WHITE, CAR_DARK, CAR_RED, CAR_BLUE, CAR_SILVER, GLASS, BRICK, STUCCO,
    ) = range(26)  # fmt: skip


# Eight reflectances, then the strengths of fine (about 2 px) and middle (about 8 px) grain.
_TABLE: dict[Material, tuple[float, ...]] = {
    Material.ASPHALT: (0.090, 0.100, 0.115, 0.125, 0.130, 0.135, 0.140, 0.145, 0.05, 0.05),
    Material.CONCRETE: (0.170, 0.200, 0.240, 0.262, 0.272, 0.283, 0.292, 0.295, 0.05, 0.05),
    Material.GRAVEL: (0.120, 0.145, 0.185, 0.220, 0.235, 0.252, 0.272, 0.285, 0.10, 0.08),
    Material.SOIL: (0.088, 0.108, 0.148, 0.182, 0.200, 0.228, 0.268, 0.290, 0.10, 0.12),
    Material.DIRT_ROAD: (0.112, 0.138, 0.184, 0.222, 0.240, 0.265, 0.300, 0.320, 0.10, 0.10),
    Material.LAWN: (0.034, 0.042, 0.088, 0.072, 0.060, 0.210, 0.420, 0.430, 0.10, 0.12),
    Material.DRY_GRASS: (0.060, 0.074, 0.118, 0.136, 0.142, 0.225, 0.310, 0.330, 0.10, 0.14),
    Material.CROP: (0.030, 0.035, 0.078, 0.055, 0.044, 0.235, 0.500, 0.510, 0.10, 0.10),
    Material.STUBBLE: (0.086, 0.106, 0.154, 0.188, 0.202, 0.238, 0.282, 0.305, 0.10, 0.10),
    Material.TREE: (0.030, 0.034, 0.070, 0.054, 0.044, 0.170, 0.380, 0.390, 0.28, 0.15),
    Material.DRY_TREE: (0.040, 0.047, 0.086, 0.080, 0.068, 0.175, 0.320, 0.330, 0.26, 0.15),
    Material.WATER: (0.046, 0.050, 0.052, 0.038, 0.028, 0.017, 0.010, 0.008, 0.02, 0.04),
    Material.POOL: (0.270, 0.330, 0.330, 0.200, 0.110, 0.055, 0.028, 0.018, 0.03, 0.00),
    Material.ROOF_GREY: (0.096, 0.106, 0.119, 0.127, 0.131, 0.136, 0.142, 0.148, 0.06, 0.05),
    Material.ROOF_BROWN: (0.080, 0.090, 0.112, 0.136, 0.150, 0.165, 0.185, 0.200, 0.07, 0.05),
    Material.ROOF_TILE: (0.078, 0.092, 0.130, 0.182, 0.212, 0.240, 0.272, 0.290, 0.08, 0.05),
    Material.ROOF_WHITE: (0.310, 0.380, 0.420, 0.430, 0.430, 0.430, 0.425, 0.410, 0.03, 0.05),
    Material.ROOF_METAL: (0.250, 0.275, 0.285, 0.288, 0.288, 0.288, 0.288, 0.280, 0.04, 0.06),
    Material.CAR_WHITE: (0.400, 0.470, 0.500, 0.510, 0.510, 0.510, 0.500, 0.490, 0.00, 0.00),
    Material.CAR_DARK: (0.035, 0.036, 0.038, 0.040, 0.042, 0.045, 0.050, 0.052, 0.00, 0.00),
    Material.CAR_RED: (0.050, 0.050, 0.055, 0.110, 0.260, 0.320, 0.360, 0.370, 0.00, 0.00),
    Material.CAR_BLUE: (0.120, 0.170, 0.110, 0.070, 0.065, 0.075, 0.120, 0.130, 0.00, 0.00),
    Material.CAR_SILVER: (0.220, 0.240, 0.250, 0.255, 0.255, 0.255, 0.255, 0.250, 0.00, 0.00),
    Material.GLASS: (0.060, 0.062, 0.060, 0.055, 0.052, 0.050, 0.050, 0.050, 0.00, 0.00),
    Material.BRICK: (0.070, 0.080, 0.100, 0.128, 0.152, 0.174, 0.200, 0.215, 0.05, 0.05),
    Material.STUCCO: (0.160, 0.190, 0.235, 0.268, 0.285, 0.300, 0.315, 0.320, 0.04, 0.05),
}
_ROWS = np.array([_TABLE[material] for material in Material], dtype=np.float32)
#: float32 (materials, 8): reflectance, 0..1.
REFLECTANCE = np.ascontiguousarray(_ROWS[:, :BANDS])
#: float32 (materials, 2): relative strength of fine and of middle grain.
GRAIN = np.ascontiguousarray(_ROWS[:, BANDS:])
#: float32 (8,): white and yellow road paint, worn.
WHITE_PAINT = np.array([0.33, 0.39, 0.43, 0.44, 0.44, 0.44, 0.44, 0.43], dtype=np.float32)
YELLOW_PAINT = np.array([0.10, 0.14, 0.31, 0.42, 0.45, 0.46, 0.46, 0.46], dtype=np.float32)
# Fraction of the light that remains in full shadow per band. It comes from the blue sky.
_SKYLIGHT = np.array([0.46, 0.40, 0.31, 0.26, 0.23, 0.19, 0.15, 0.12], dtype=np.float32)
# Counts at a reflectance of one, and counts added by haze, before the factors of a collect.
_GAIN = np.array([2500, 2500, 2450, 2400, 2350, 2250, 2100, 1900], dtype=np.float32)
_HAZE = np.array([170, 120, 75, 55, 40, 28, 18, 12], dtype=np.float32)
# Variance of the read noise (counts squared) and of the photon noise (counts squared per count).
_READ_NOISE = 4.0
_PHOTON_NOISE = 0.03


@dataclass(frozen=True)
class Sensor:
    """Radiometry of one collect."""

    gain: Float32  # float32 (b,), counts per unit of reflectance in each of its bands
    haze: Float32  # float32 (b,), counts added by haze
    # (x, y), metres of shadow per metre of height; y grows southward
    shadow_per_m: tuple[float, float]


def draw_sensor(rng: Rng) -> Sensor:
    """Draw gain, haze and sun of a collect on a clear morning."""
    exposure = rng.uniform(0.85, 1.15)
    gain = _GAIN * exposure * rng.uniform(0.95, 1.05, BANDS)
    haze = _HAZE * rng.uniform(0.7, 1.3)
    azimuth, elevation = np.radians(rng.uniform(135, 170)), np.radians(rng.uniform(44, 56))
    reach = 1.0 / np.tan(elevation)
    return Sensor(
        gain=gain.astype(np.float32),
        haze=haze.astype(np.float32),
        shadow_per_m=(float(-np.sin(azimuth) * reach), float(np.cos(azimuth) * reach)),
    )


def light(shade: Float32, incidence: Float32 | float = 1.0, sky: Float32 | float = 1.0) -> Float32:
    """Return the light on surfaces, relative to level ground in the sun: float32 (h, w, 8).

    Args:
        shade: (h, w), blocked fraction of the sunlight.
        incidence: (h, w), sunlight on the surface relative to that on level ground.
        sky: (h, w), fraction of the sky visible from the surface.
    """
    sun = np.asarray(incidence * (1.0 - shade))[..., None]
    return np.asarray(
        np.asarray(sky)[..., None] * _SKYLIGHT + sun * (1.0 - _SKYLIGHT), dtype=np.float32
    )


def to_counts(radiance: Float32, sensor: Sensor, rng: Rng) -> NDArray[np.uint16]:
    """Convert relative radiance to noisy 11-bit counts, uint16 (h, w, b), 1..2047."""
    counts = radiance * sensor.gain + sensor.haze
    spread = np.sqrt(_READ_NOISE + _PHOTON_NOISE * counts)
    counts += spread * rng.standard_normal(counts.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(counts), 1, MAX_COUNT), dtype=np.uint16)
