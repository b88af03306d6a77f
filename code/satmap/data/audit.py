"""Find near-duplicate images within training data, and between training and validation data.

Two images are near-duplicates if their perceptual hashes differ in few bits. The hash is computed
from the low frequencies of a discrete cosine transform (Zauner 2010, "Implementation and
benchmarking of perceptual image hash functions"). It is robust to compression, scaling and changes
of brightness, and one transform gives the hashes of all eight rotations and reflections. Of the
Mapping Challenge's validation images, 93 % are also in training (arXiv 2304.02296).

Two 64-bit hashes that differ in at most three bits agree in at least one of their four 16-bit
parts. All pairs are therefore found by sorting once per part (multi-index hashing, arXiv
1307.2982).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import rasterio
import rasterio.enums
from numpy.typing import NDArray
from scipy import sparse
from scipy.fft import dctn
from scipy.sparse.csgraph import connected_components

from satmap.errors import SatmapError
from satmap.io.progress import track
from satmap.io.walk import walk
from satmap.runtime.resources import available_cores

#: Largest number of bits in which the hashes of near-duplicates differ, by default.
MOST_BITS = 3

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_TIFF = (".tif", ".tiff")
# Side of the transformed image in pixels, frequencies kept per side, parts of the 64-bit hash.
_SIDE, _KEPT, _PARTS = 32, 8, 4
# Images whose standard deviation is a smaller share of their mean have too little contrast to hash.
_FLATTEST = 1e-3
# Number of pairs of hashes compared at a time.
_PAIRS = 1 << 22

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Audit:
    """Near-duplicates of a data set.

    Attributes:
        training, validation: number of images.
        groups: paths of near-duplicates, two or more per group.
        leaked: validation images with a near-duplicate in training.
        flat: images without contrast, which are not compared.
        faults: error message by path, for images that cannot be read.
    """

    training: int
    validation: int
    groups: tuple[tuple[Path, ...], ...]
    leaked: tuple[Path, ...]
    flat: tuple[Path, ...]
    faults: dict[Path, str]

    def summary(self) -> str:
        """Return a readable summary of a few lines."""
        repeated = sum(map(len, self.groups)) - len(self.groups)
        lines = [
            f"{self.training} training and {self.validation} validation images",
            f"{len(self.groups)} groups of near-duplicates; keeping one image of each group "
            f"removes {repeated} images",
        ]
        if self.validation:
            share = 100 * len(self.leaked) / self.validation
            lines.append(
                f"{len(self.leaked)} validation images ({share:.1f} %) are also in training; the "
                f"clean split keeps {self.validation - len(self.leaked)}"
            )
        if self.flat:
            lines.append(f"{len(self.flat)} images have no contrast and were not compared")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """Return the counts and all paths as JSON values."""
        return {
            "training": self.training,
            "validation": self.validation,
            "groups": [[str(path) for path in group] for group in self.groups],
            "leaked": [str(path) for path in self.leaked],
            "flat": [str(path) for path in self.flat],
            "faults": {str(path): fault for path, fault in self.faults.items()},
        }


def audit_images(
    directories: Sequence[Path],
    validation: Sequence[Path] = (),
    *,
    most_bits: int = MOST_BITS,
    turned: bool = False,
) -> Audit:
    """Find near-duplicates among all images under the directories.

    Args:
        directories: directories of training images, or of all images.
        validation: directories of validation images; they may lie within ``directories``.
        most_bits: largest number of bits in which the hashes of near-duplicates differ, 0 to 3.
        turned: whether rotated and mirrored copies count as near-duplicates.

    Raises:
        SatmapError: a directory does not exist, or there are no images.
    """
    held_out = dict.fromkeys(p for p in walk(validation) if p.suffix.lower() in _SUFFIXES)
    known = {path.resolve() for path in held_out}
    images = [
        path
        for path in walk(directories)
        if path.suffix.lower() in _SUFFIXES and path.resolve() not in known
    ]
    paths = [*images, *held_out]
    if not paths:
        raise SatmapError(
            f"no images under {', '.join(map(str, (*directories, *validation)))}. Expected names "
            f"that end in {', '.join(_SUFFIXES)}."
        )
    with ThreadPoolExecutor(available_cores()) as pool:
        read = list(track(pool.map(_read, paths), "reading images", len(paths)))
    faults = {path: x for path, x in zip(paths, read, strict=True) if isinstance(x, str)}
    flat = tuple(path for path, x in zip(paths, read, strict=True) if x is None)
    good = [n for n, x in enumerate(read) if isinstance(x, np.ndarray)]
    hashes = np.array([read[n] for n in good], np.uint64).reshape(-1, 8)
    labels = near_duplicates(hashes if turned else hashes[:, :1], most_bits)
    members: dict[int, list[int]] = {}
    for number, label in zip(good, labels.tolist(), strict=True):
        members.setdefault(label, []).append(number)
    groups = [group for group in members.values() if len(group) > 1]
    leaked = [n for group in groups if group[0] < len(images) for n in group if n >= len(images)]
    return Audit(
        training=len(images),
        validation=len(held_out),
        groups=tuple(tuple(paths[n] for n in group) for group in groups),
        leaked=tuple(paths[n] for n in sorted(leaked)),
        flat=flat,
        faults=faults,
    )


def perceptual_hashes(grey: NDArray[np.float32]) -> Hashes:
    """Compute the hashes of an image, float32 (32, 32), and of its rotations and reflections.

    Returns:
        uint64 (8,), the hash of the unchanged image first.
    """
    low = dctn(grey.astype(np.float64), norm="ortho")[:_KEPT, :_KEPT]
    sign = (-1.0) ** np.arange(_KEPT)
    found = []
    for turned in (low, low.T):
        for rows in (1.0, sign[:, None]):
            for columns in (1.0, sign):
                bits = (turned * rows * columns).ravel()
                # The first coefficient is the mean brightness, which is not used.
                above = bits > np.median(bits[1:])
                above[0] = False
                found.append(np.packbits(above).view(">u8")[0])
    return np.array(found, np.uint64)


def near_duplicates(hashes: Hashes, most_bits: int) -> Ints:
    """Group images that are connected by chains of near-duplicates.

    Args:
        hashes: uint64 (images, variants). The first variant is the unchanged image. Two images are
            near-duplicates if any variant of one is close to the first variant of the other.
        most_bits: largest number of bits in which hashes of near-duplicates differ, 0 to 3.

    Returns:
        int64 (images,), the group number of each image.
    """
    if not 0 <= most_bits < _PARTS:
        raise ValueError(f"most_bits must be 0 to {_PARTS - 1}, not {most_bits}")
    unique, first, which = np.unique(hashes[:, 0], return_index=True, return_inverse=True)
    queries = hashes[first].ravel()
    owner = np.repeat(np.arange(len(unique)), hashes.shape[1])
    ones, others = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for part in range(_PARTS):
        shift = np.uint64(64 // _PARTS * part)
        mask = np.uint64((1 << 64 // _PARTS) - 1)
        keys, wanted = (unique >> shift) & mask, (queries >> shift) & mask
        order = np.argsort(keys, kind="stable")
        begins = np.searchsorted(keys[order], wanted, side="left")
        counts = np.searchsorted(keys[order], wanted, side="right") - begins
        total = np.cumsum(counts)
        at = 0
        while at < len(counts):
            done = int(total[at - 1]) if at else 0
            until = max(at + 1, int(np.searchsorted(total, done + _PAIRS, side="right")))
            size = counts[at:until]
            query = np.repeat(np.arange(at, until), size)
            nth = np.arange(len(query)) - np.repeat(np.cumsum(size) - size, size)
            near = order[begins[query] + nth]
            close = np.bitwise_count(queries[query] ^ unique[near]) <= most_bits
            ones.append(owner[query[close]])
            others.append(near[close])
            at = until
    one, other = np.concatenate(ones), np.concatenate(others)
    graph = sparse.coo_array((np.ones(len(one)), (one, other)), shape=2 * (len(unique),))
    _, group = connected_components(graph, directed=False)
    return np.asarray(group[which], np.int64)


def _read(path: Path) -> Hashes | str | None:
    """Read an image's hashes; None if it has no contrast, an error message if unreadable."""
    try:
        grey = _grey(path)
    except (rasterio.errors.RasterioError, OSError, cv2.error) as error:
        return f"cannot be read: {str(error).splitlines()[0] if str(error) else 'no image'}"
    if not grey.std() > _FLATTEST * max(abs(float(grey.mean())), 1e-9):
        return None
    return perceptual_hashes(grey)


def _grey(path: Path) -> NDArray[np.float32]:
    """Read an image as float32 (32, 32), the unweighted mean of its first three bands."""
    if path.suffix.lower() in _TIFF:
        with rasterio.open(path) as source:
            bands = range(1, min(source.count, 3) + 1)
            height, width = min(source.height, 8 * _SIDE), min(source.width, 8 * _SIDE)
            values = source.read(
                list(bands),
                out_shape=(len(bands), height, width),
                resampling=rasterio.enums.Resampling.average,
            )
        whole = np.nan_to_num(values.astype(np.float32)).mean(axis=0)
    else:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        decoded = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
        if decoded is None:
            raise OSError("neither JPEG nor PNG")
        whole = decoded.astype(np.float32).mean(axis=2)
    return np.asarray(cv2.resize(whole, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.float32)
