"""Find images that show the same ground: copies, crops, and shifted or re-encoded versions.

Local features (ORB, Rublee et al. 2011) are compared through buckets of equal bits of their
descriptors (locality-sensitive hashing, Indyk and Motwani 1998), so the time grows with the number
of images, not its square. Two images overlap if one similarity transform maps enough features of
one onto the other.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray

from satmap.io.progress import track
from satmap.runtime.resources import available_cores

# Features per image, and the pixels of an image's longer side from which they are computed.
_FEATURES, _SIDE = 300, 512
# Side of the square of pixels that a feature depends on. Pixels at least as bright as _WHITE may be
# without data.
_PATCH_PX, _WHITE = 31, 252
# Number of times that descriptors are sorted into buckets, and the bits that agree in a bucket.
# Larger buckets hold what many images show, such as crossings of lines.
_TABLES, _BITS, _LARGEST_BUCKET = 8, 20, 24
# Least number of buckets that two images must share to be compared, and the most comparisons per
# image.
_LEAST_VOTES, _MOST_COMPARED = 4, 6
# Two images overlap if one transform maps at least this many features to within this distance of
# their counterparts.
_LEAST_INLIERS, _NEAR_PX = 15, 3.0
# Descriptors of the same place differ in at most this many of 256 bits.
_MOST_BITS = 64

Features = tuple[NDArray[np.float32], NDArray[np.uint8]]


def overlapping_pairs(paths: Sequence[Path], scenes: Sequence[str]) -> list[tuple[int, int]]:
    """Find images that overlap, for example as crops of one picture.

    Args:
        paths: GeoTIFFs of 8 bits.
        scenes: picture that each was cut from; images of the same picture are not compared.

    Returns:
        Pairs of indices, the smaller first. Images with little texture are in none.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        found = list(track(pool.map(_features, paths), "comparing images", len(paths)))
        wanted = _candidates(found, scenes)
        same = pool.map(lambda pair: _overlap(found[pair[0]], found[pair[1]]), wanted)
        return [pair for pair, is_same in zip(wanted, same, strict=True) if is_same]


def _features(path: Path) -> Features:
    """Return the positions (n, 2) and descriptors (n, 32) of an image's features."""
    with rasterio.open(path, driver="GTiff") as file:
        reduce = max(1, round(max(file.height, file.width) / _SIDE))
        shape = min(file.count, 3), file.height // reduce, file.width // reduce
        bands = file.read(list(range(1, shape[0] + 1)), out_shape=shape)
    grey = cv2.equalizeHist(bands.mean(axis=0).astype(np.uint8))
    # Use no features at black or white parts without data: their edges look alike in many images.
    shown = ((bands > 0).any(axis=0) & (bands < _WHITE).any(axis=0)).astype(np.uint8)
    solid = cv2.morphologyEx(shown, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    inside = np.asarray(cv2.erode(solid, np.ones((_PATCH_PX, _PATCH_PX), np.uint8)), np.uint8)
    corners, descriptors = cv2.ORB.create(_FEATURES).detectAndCompute(grey, inside)
    if not corners:
        return np.empty((0, 2), np.float32), np.empty((0, 32), np.uint8)
    return np.array([corner.pt for corner in corners], np.float32), np.asarray(descriptors)


def _candidates(found: Sequence[Features], scenes: Sequence[str]) -> list[tuple[int, int]]:
    """Return the pairs of images that share the most buckets."""
    owner = np.repeat(np.arange(len(found)), [len(places) for places, _ in found])
    if not len(owner):
        return []
    bits = np.unpackbits(np.concatenate([descriptors for _, descriptors in found]), axis=1)
    random = np.random.default_rng(0)
    votes: Counter[tuple[int, int]] = Counter()
    for _ in range(_TABLES):
        chosen = random.choice(bits.shape[1], _BITS, replace=False)
        keys = bits[:, chosen] @ (1 << np.arange(_BITS))
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        for bucket in np.split(owner[order], starts[1:]):
            if 1 < len(bucket) <= _LARGEST_BUCKET:
                members = sorted(set(bucket.tolist()))
                votes.update(
                    (one, other)
                    for number, one in enumerate(members)
                    for other in members[number + 1 :]
                    if scenes[one] != scenes[other]
                )
    compared: Counter[int] = Counter()
    pairs = []
    for pair, count in sorted(votes.items(), key=lambda item: (-item[1], item[0])):
        if count < _LEAST_VOTES:
            break
        # Leave a pair out only if both images were compared often enough. Else one image that
        # resembles many others would use up their comparisons.
        if min(compared[pair[0]], compared[pair[1]]) < _MOST_COMPARED:
            compared.update(pair)
            pairs.append(pair)
    return sorted(pairs)


def _overlap(one: Features, other: Features) -> bool:
    """Return whether a rotation, scaling and shift maps enough features onto each other."""
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(one[1], other[1])
    near = [match for match in matches if match.distance <= _MOST_BITS]
    if len(near) < _LEAST_INLIERS:
        return False
    cv2.setRNGSeed(0)
    _, inliers = cv2.estimateAffinePartial2D(
        one[0][[match.queryIdx for match in near]],
        other[0][[match.trainIdx for match in near]],
        ransacReprojThreshold=_NEAR_PX,
    )
    return inliers is not None and int(inliers.sum()) >= _LEAST_INLIERS
