"""Process images of any size in windows of bounded size, and blend the results."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Rows or columns of a window: the range that it reads and the part of it that is used.

    Attributes:
        read: range that is computed, in image coordinates.
        kept: range with a weight above 0, in image coordinates.
        fade_in: length at the start of ``kept`` that is blended with the previous window.
        fade_out: length at the end of ``kept`` that is blended with the next window.
    """

    read: slice
    kept: slice
    fade_in: int
    fade_out: int

    @property
    def kept_in_read(self) -> slice:
        """``kept``, relative to the start of ``read``."""
        return slice(self.kept.start - self.read.start, self.kept.stop - self.read.start)

    @property
    def finished(self) -> slice:
        """Range that no later window changes, in image coordinates."""
        return slice(self.kept.start, self.kept.stop - self.fade_out)


def spans(length: int, size: int, overlap: int) -> list[Span]:
    """Divide a length into spans of at most ``size`` that overlap by at least ``2 * overlap``.

    Two windows are blended over ``2 * overlap`` pixels in the middle of their overlap, or over
    fewer where a third window would otherwise join in. Everywhere else a single window is used. A
    length of at most ``size`` is one span.
    """
    if length <= size:
        return [Span(slice(0, length), slice(0, length), 0, 0)]
    step = size - 2 * overlap
    count = -(-(length - 2 * overlap) // step)
    # Spread evenly, so that the last window does not mostly repeat the one before.
    starts = [round(index * (length - size) / (count - 1)) for index in range(count)]
    cuts = [0, *((a + size + b) // 2 for a, b in pairwise(starts)), length]
    fade = min(overlap, min(b - a for a, b in pairwise(cuts)) // 2)
    return [
        Span(
            slice(start, start + size),
            slice(max(first - fade, 0), min(last + fade, length)),
            2 * fade if first > 0 else 0,
            2 * fade if last < length else 0,
        )
        for start, (first, last) in zip(starts, pairwise(cuts), strict=True)
    ]


def window_count(height: int, width: int, size: int, overlap: int) -> int:
    """Return the number of windows of an image, for the arguments of :func:`spans`."""
    return len(spans(height, size, overlap)) * len(spans(width, size, overlap))


def blend(
    rows: Sequence[Span], columns: Sequence[Span], predict: Callable[[slice, slice], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Predict window by window and blend the results, strip by strip.

    Args:
        rows: row spans of the windows, from the top.
        columns: column spans of the windows, from the left.
        predict: returns the maps of a window, given the rows and columns that it reads: float32
            (maps, height, width) in 0..255. The tensor may be modified in place.

    Yields:
        First row of a strip as wide as the image, and its maps, uint8 (maps, height, width), on
        the device of the windows.
    """
    above: Tensor | None = None
    for row in rows:
        strip: Tensor | None = None
        beside: Tensor | None = None
        for column in columns:
            window = predict(row.read, column.read)
            window = window[:, row.kept_in_read, column.kept_in_read]
            window, beside = _join(window, beside, column, 2)
            before = above[:, :, column.finished] if above is not None and row.fade_in else None
            window, end = _join(window, before, row, 1)
            strip = _rounded(strip, window, column, columns)
            if end is not None:
                above = _filled(above, end, column, columns)
        assert strip is not None
        yield row.kept.start, strip


def _rounded(whole: Tensor | None, part: Tensor, column: Span, columns: Sequence[Span]) -> Tensor:
    """Round the finished part of a window into a uint8 strip of the scene's width."""
    if whole is None:
        shape = *part.shape[:2], columns[-1].kept.stop
        whole = torch.empty(shape, dtype=torch.uint8, device=part.device)
    place = whole[:, :, column.finished]
    if part.device.type != "cpu" or not part.numel():
        place.copy_(part.round_())
        return whole
    # Rounds like torch, but in one pass and a third of the time.
    for values, rounded in zip(part.numpy(), place.numpy(), strict=True):
        cv2.convertScaleAbs(values, dst=rounded)
    return whole


def _filled(whole: Tensor | None, part: Tensor, column: Span, columns: Sequence[Span]) -> Tensor:
    """Copy the finished part of a window into a strip of the scene's width."""
    if len(columns) == 1:
        return part
    if whole is None:
        whole = part.new_empty((*part.shape[:2], columns[-1].kept.stop))
    whole[:, :, column.finished] = part
    return whole


def _join(
    window: Tensor, before: Tensor | None, span: Span, axis: int
) -> tuple[Tensor, Tensor | None]:
    """Add the remainder of the previous window; return the finished part and the new remainder."""
    if before is not None:
        shared = window.narrow(axis, 0, span.fade_in)
        shared.mul_(_rising(span.fade_in, axis, window.device)).add_(before)
    if not span.fade_out:
        return window, None
    length = window.shape[axis] - span.fade_out
    weight = _rising(span.fade_out, axis, window.device).flip(axis)
    return window.narrow(axis, 0, length), window.narrow(axis, length, span.fade_out) * weight


def _rising(length: int, axis: int, device: torch.device) -> Tensor:
    """Return half a raised cosine from 0 to 1, float32, along one of three axes; even length."""
    places = (torch.arange(length // 2, dtype=torch.float32, device=device) + 0.5) / length
    lower = torch.sin(places * (math.pi / 2)) ** 2
    shape = [1, 1, 1]
    shape[axis] = length
    # The upper half mirrors the lower, so that a weight and its counterpart sum to exactly one.
    return torch.cat([lower, 1 - lower.flip(0)]).view(shape)
