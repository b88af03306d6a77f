"""Windows into one image, without seams and without ever holding more than a row of windows.

Along each axis the weight of a window rises like a raised cosine over what it shares with the one
before, whose weight falls as much, so that weights sum to one. What no later window adds to is
finished at once; only the rows that the next row of windows shares wait, on the device. Of a scene
of 30,000 columns both are hundreds of megabytes: they are filled in place, window after window.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from satmap.inference.windows import Span


def blend(
    rows: Sequence[Span], columns: Sequence[Span], predict: Callable[[slice, slice], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Predict window after window and blend them, strip after strip.

    Args:
        rows: of the windows, from the top.
        columns: of the windows, from the left.
        predict: gives the planes of a window by the rows and columns that it reads, float32
            (planes, height, width) in 0..255; it may be changed afterwards.

    Yields:
        The first row of a strip as wide as the image, and its planes, uint8 (planes, height,
        width), on the device of the windows.
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
            strip = _filled(strip, window.round().to(torch.uint8), column, columns)
            if end is not None:
                above = _filled(above, end, column, columns)
        assert strip is not None
        yield row.kept.start, strip


def _filled(whole: Tensor | None, part: Tensor, column: Span, columns: Sequence[Span]) -> Tensor:
    """Put what is finished of a window where it belongs in rows of the scene's width."""
    if len(columns) == 1:
        return part
    if whole is None:
        whole = part.new_empty((*part.shape[:2], columns[-1].kept.stop))
    whole[:, :, column.finished] = part
    return whole


def _join(
    window: Tensor, before: Tensor | None, span: Span, axis: int
) -> tuple[Tensor, Tensor | None]:
    """Add what the windows before left; give what is finished and what waits for the next."""
    if before is not None:
        shared = window.narrow(axis, 0, span.fade_in)
        shared.mul_(_rising(span.fade_in, axis, window.device)).add_(before)
    if not span.fade_out:
        return window, None
    length = window.shape[axis] - span.fade_out
    weight = _rising(span.fade_out, axis, window.device).flip(axis)
    return window.narrow(axis, 0, length), window.narrow(axis, length, span.fade_out) * weight


def _rising(length: int, axis: int, device: torch.device) -> Tensor:
    """Half a raised cosine from 0 to 1, float32, along one of three axes; length is even."""
    places = (torch.arange(length // 2, dtype=torch.float32, device=device) + 0.5) / length
    lower = torch.sin(places * (math.pi / 2)) ** 2
    shape = [1, 1, 1]
    shape[axis] = length
    # The upper half from the lower one: a weight and its counterpart then sum to one exactly.
    return torch.cat([lower, 1 - lower.flip(0)]).view(shape)
