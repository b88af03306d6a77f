"""Average the probability maps of an ensemble: test-time augmentation, members and windows.

Every network predicts an image in several symmetries of the square (test-time augmentation). The
probability maps are transformed back, and one weighted mean is taken over all pairs of network and
symmetry. Overlapping windows of a large image are blended (:mod:`satmap.networks.windows`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from satmap.networks.unet import STRIDE
from satmap.networks.windows import blend, spans
from satmap.recipes.schema import Inference
from satmap.runtime.device import autocast

# Smallest margin in pixels: predictions close to the border of the input lack context.
_LEAST_MARGIN = 16


class Pixels(Protocol):
    """Image: an array, or an object that reads the requested pixels from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels."""

    def __getitem__(self, index: tuple[slice, slice], /) -> NDArray[np.uint8]:
        """Return a window given by slices of rows and columns, uint8 (height, width, channels)."""


@dataclass(frozen=True)
class EnsembleMember:
    """Network of an ensemble and its weight in the mean.

    The network is on the device, in evaluation mode. The votes are the number of checkpoints with
    this network: the best and the last checkpoint may hold the same one.
    """

    network: Any
    votes: int = 1


@dataclass(frozen=True)
class Symmetry:
    """Symmetry of the square: an optional flip left to right, then counter-clockwise rotations."""

    quarter_turns: int
    mirrored: bool

    def apply(self, x: Tensor) -> Tensor:
        """Transform ``x`` (..., h, w)."""
        x = x.flip(-1) if self.mirrored else x
        return torch.rot90(x, self.quarter_turns, (-2, -1))

    def undo(self, x: Tensor) -> Tensor:
        """Transform ``x`` (..., h, w) back; the inverse of ``apply``."""
        x = torch.rot90(x, -self.quarter_turns, (-2, -1))
        return x.flip(-1) if self.mirrored else x


#: All eight symmetries. The rotations come first, so that the first four form a group, too.
SYMMETRIES = tuple(Symmetry(turns, mirrored) for mirrored in (False, True) for turns in range(4))


class Strip:
    """Rows of an image's probability maps over its whole width, from the row ``top``.

    A GPU's values are copied to the host asynchronously, so that it can start the next image.
    """

    def __init__(self, top: int, values: Tensor) -> None:
        self.top = top
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            # Only copies into pinned memory are asynchronous.
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(values.device))

    def get(self) -> NDArray[np.uint8]:
        """Wait for the values and return them, uint8 (maps, height, width), 0..255 for 0..1."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: NDArray[np.uint8] = self._values.numpy()
        return values


def predict_maps(
    members: Sequence[EnsembleMember],
    image: Pixels,
    settings: Inference,
    device: torch.device,
    category: str | None = None,
) -> NDArray[np.uint8]:
    """Average the probability maps of all networks and symmetries.

    Args:
        members: networks with the same maps. A network of n channels gets the first n channels of
            the image.
        image: uint8 (height, width, channels).
        settings: test-time augmentation, batch size and windows.
        device: device of the networks.
        category: for networks with one head per category; others ignore it.

    Returns:
        uint8 (maps, height, width), 0..255 for 0..1; always 0 where the image has no data (0 in
        every channel).
    """
    strips = predict_strips(members, image, settings, device, category)
    parts = [strip.get() for strip in strips]
    return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def predict_strips(
    members: Sequence[EnsembleMember],
    image: Pixels,
    settings: Inference,
    device: torch.device,
    category: str | None = None,
    on_window: Callable[[], None] = lambda: None,
) -> Iterator[Strip]:
    """Yield the maps of :func:`predict_maps` strip by strip from the top, for images of any size.

    An image no larger than a window is one strip. For a larger image, one row of windows is kept in
    memory. ``on_window`` is called after each window.
    """

    def predict(rows: slice, columns: slice) -> Tensor:
        maps = _average_window(members, image[rows, columns], settings, device, category)
        on_window()
        return maps

    height, width = image.shape[:2]
    rows, columns = (spans(length, settings.window, settings.overlap) for length in (height, width))
    # Use starmap: a generator would keep a reference to a strip while the next one is predicted.
    return starmap(Strip, blend(rows, columns, predict))


@torch.no_grad()
def _average_window(
    members: Sequence[EnsembleMember],
    image: NDArray[np.uint8],
    settings: Inference,
    device: torch.device,
    category: str | None,
) -> Tensor:
    """Average over networks and symmetries, float32 (maps, height, width) in 0..255."""
    height, width = image.shape[:2]
    maps = len(members[0].network.map_names)
    if not image.any():
        return torch.zeros((maps, height, width), dtype=torch.float32, device=device)
    top, bottom = _margins(height)
    left, right = _margins(width)
    margins = (top, bottom), (left, right), (0, 0)
    shown = mirror_into_gaps(image) if settings.gaps == "mirror" else image
    padded = np.pad(shown, margins, "edge" if settings.padding == "replicate" else "reflect")
    pixels = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    pixels = pixels.to(device, non_blocking=device.type == "cuda")
    geometric = settings.mean == "geometric"
    total = torch.zeros((maps, *pixels.shape[1:]), dtype=torch.float32, device=device)
    for member in members:
        network = member.network
        normalized = network.encoder.normalize(pixels[None, : network.encoder.in_channels])
        for symmetries in _batches(SYMMETRIES[: settings.tta], pixels.shape[1:], settings.batch):
            batch = torch.cat([symmetry.apply(normalized) for symmetry in symmetries])
            heads = [network.category_indices([category] * len(batch))] if category else []
            with autocast(device):
                logits = network(batch.contiguous(memory_format=torch.channels_last), *heads)
            # In place and freed at once: the maps of a window take a hundred megabytes.
            outputs = F.logsigmoid(logits.float()) if geometric else logits.float().sigmoid_()
            del logits, batch
            for symmetry, output in zip(symmetries, outputs, strict=True):
                total.add_(symmetry.undo(output), alpha=member.votes)
            del outputs, output
    votes = sum(member.votes for member in members)
    inside = (slice(top, top + height), slice(left, left + width))
    mean = total[:, *inside]
    if geometric:
        mean.div_(votes * settings.tta).exp_().mul_(255)
    else:
        mean.mul_(255 / (votes * settings.tta))
    return mean.mul_(torch.from_numpy(image.any(axis=2)).to(device))


def mirror_into_gaps(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill pixels without data (0 in every channel) with the mirror image of what is beside them.

    A pixel is mirrored at the nearest pixel with data and gets the value found there. If there is
    no data, it gets the value of the nearest pixel with data.

    Args:
        image: uint8 (height, width, channels).

    Returns:
        The same image if it has no gaps or no data, else a filled copy.
    """
    empty: NDArray[np.bool_] = np.logical_not(image.any(axis=2))
    if not empty.any() or empty.all():
        return image
    height, width = empty.shape
    # OpenCV numbers the pixels with data and finds the number of the nearest one.
    _, nearest = cv2.distanceTransformWithLabels(
        empty.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    full = np.logical_not(empty)
    place_of = np.zeros(int(nearest.max()) + 1, np.int64)
    place_of[nearest[full]] = np.flatnonzero(full)
    rows, columns = np.nonzero(empty)
    near_rows, near_columns = np.divmod(place_of[nearest[empty]], width)
    behind_rows = (2 * near_rows - rows).clip(0, height - 1)
    behind_columns = (2 * near_columns - columns).clip(0, width - 1)
    lacks = empty[behind_rows, behind_columns]
    behind_rows[lacks], behind_columns[lacks] = near_rows[lacks], near_columns[lacks]
    filled = image.copy()
    filled[rows, columns] = image[behind_rows, behind_columns]
    return filled


def _margins(length: int) -> tuple[int, int]:
    """Return the padding before and after that makes a length a multiple of ``STRIDE``."""
    padded = -(-(length + 2 * _LEAST_MARGIN) // STRIDE) * STRIDE
    before = (padded - length) // 2
    return before, padded - length - before


def _batches(
    symmetries: Sequence[Symmetry], shape: Sequence[int], size: int
) -> list[list[Symmetry]]:
    """Split symmetries into batches whose transformed images have the same shape."""
    groups = [list(symmetries)]
    if shape[0] != shape[1]:
        # A quarter turn swaps the sides.
        groups = [[s for s in symmetries if s.quarter_turns % 2 == odd] for odd in (0, 1)]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]
