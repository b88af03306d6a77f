"""Synthetic blocks of houses, attached or detached, at any angle, with exact or degraded maps.

Border and contact follow the definitions of the training targets. The border is the set of pixels
of a building with a 3 x 3 neighbour outside it. Contact is ground within three pixels of two
buildings.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray
from shapely.affinity import rotate

from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.tasks.buildings.settings import BORDER, BUILDING, CONTACT

METRES_PER_PIXEL = (0.5, 0.5)

Labels = NDArray[np.int32]

_CONTACT_PX = 3
_ANNEX = 0.4


@dataclass(frozen=True)
class Blocks:
    """Houses, and the pairs of them that share a wall.

    Attributes:
        labels: int32 (size, size), 0 outside, 1..n; the later house where houses overlap.
        pairs: pairs of attached houses.
    """

    labels: Labels
    pairs: tuple[tuple[int, int], ...]


def made_blocks(
    seed: int, size: int, degrees: float, sides: tuple[int, int], alone: float = 0.4
) -> Blocks:
    """Draw rows of houses.

    Args:
        seed: random seed.
        size: side of the image, pixels.
        degrees: angle of the rows.
        sides: minimum and maximum side of a house, pixels.
        alone: fraction of houses with a gap before them.
    """
    rng = np.random.default_rng(seed)
    least, most = sides
    shapes: list[shapely.Geometry] = []
    walls = []
    reach = size * 0.75
    y = -reach
    while y < reach:
        x, after_gap = -reach, True
        while x < reach:
            width, depth = rng.uniform(least, most, 2)
            shape = shapely.box(x, y, x + width, y + depth)
            if rng.random() < _ANNEX:
                # L-shaped: a corner behind is garden.
                cut = shapely.box(x, y + depth * 0.6, x + width * 0.4, y + depth)
                shape = shape.difference(cut)
            if not after_gap:
                walls.append((len(shapes), len(shapes) + 1))
            shapes.append(shape)
            after_gap = bool(rng.random() < alone)
            x += width + (rng.uniform(4, 12) if after_gap else 0)
        y += most + rng.uniform(6, 16)
    turned = rotate(shapely.GeometryCollection(shapes), degrees, origin=(0, 0))
    placed = shapely.transform(list(shapely.get_parts(turned)), lambda xy: xy + size / 2)
    numbered = [(shape, number) for number, shape in enumerate(placed, 1)]
    labels = rasterio.features.rasterize(numbered, out_shape=(size, size), dtype="int32")
    sizes = np.bincount(labels.ravel(), minlength=len(shapes) + 1)
    # What the image's edge leaves of a house is a house only if it is large enough.
    enough = sizes >= 0.5 * least * least
    enough[0] = False
    number = np.where(enough, np.cumsum(enough, dtype=np.int32), 0)
    pairs = ((int(number[a]), int(number[b])) for a, b in walls)
    return Blocks(number[labels], tuple(pair for pair in pairs if all(pair)))


def maps_of_labels(
    labels: Labels, blur: float = 0.0, noise: float = 0.0, seed: int = 0
) -> ProbabilityMaps:
    """Return the body, border and contact maps of houses.

    Args:
        labels: see :class:`Blocks`.
        blur: sigma of the blur, pixels.
        noise: standard deviation of smooth noise, relative to 1.
        seed: seed of the noise.
    """
    rng = np.random.default_rng(seed)
    values = labels.astype(np.float32)
    square = np.ones((3, 3), np.uint8)
    border = (labels > 0) & (cv2.dilate(values, square) != cv2.erode(values, square))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, 2 * (2 * _CONTACT_PX + 1,))
    most = cv2.dilate(values, disc)
    other = np.where(labels > 0, values.max() + 1 - values, 0).astype(np.float32)
    contact = (labels == 0) & (
        cv2.dilate(other, disc) != np.where(most, values.max() + 1 - most, 0)
    )
    maps = np.stack([labels > 0, border, contact]).astype(np.float32)
    for probability_map in maps:
        if blur:
            probability_map[:] = cv2.GaussianBlur(probability_map, (0, 0), blur)
        if noise:
            rough = rng.standard_normal(labels.shape, np.float32)
            smooth = cv2.GaussianBlur(rough, (0, 0), 2.0)
            probability_map += smooth * (noise / smooth.std())
    drawn = np.clip(np.rint(maps * 255), 0, 255).astype(np.uint8)
    return ProbabilityMaps((BUILDING, BORDER, CONTACT), drawn, METRES_PER_PIXEL)


def share_apart(blocks: Blocks, found: Labels) -> float:
    """Return the fraction of attached pairs that are separated.

    A pair is separated if different buildings cover most of each house.
    """
    cover = [0]
    for house in range(1, int(blocks.labels.max()) + 1):
        counts = np.bincount(found[blocks.labels == house], minlength=2)
        # A house without any building does not count as separated.
        cover.append(int(counts[1:].argmax()) + 1 if counts[1:].any() else 0)
    return float(
        np.mean([cover[a] != cover[b] and cover[a] * cover[b] > 0 for a, b in blocks.pairs])
    )
