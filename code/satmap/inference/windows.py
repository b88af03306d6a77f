"""Images of any size in windows of bounded size, whose results are blended into one another."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Span:
    """The rows, or the columns, of a window: what it reads and how much of that counts.

    Attributes:
        read: what is computed, counted in the image.
        kept: what has a weight above 0, counted in the image.
        fade_in: the first so many of ``kept`` are blended with the window before.
        fade_out: the last so many of ``kept`` are blended with the window behind.
    """

    read: slice
    kept: slice
    fade_in: int
    fade_out: int

    @property
    def kept_in_read(self) -> slice:
        """The same as ``kept``, counted from the start of ``read``."""
        return slice(self.kept.start - self.read.start, self.kept.stop - self.read.start)

    @property
    def finished(self) -> slice:
        """What no later window adds to, counted in the image."""
        return slice(self.kept.start, self.kept.stop - self.fade_out)


def spans(length: int, size: int, overlap: int) -> list[Span]:
    """Spans of at most ``size`` pixels that overlap by at least ``2 * overlap``.

    Two windows are blended over ``2 * overlap`` pixels in the middle of what they share, less
    where windows are so close that a third would join in; everywhere else one window counts alone.
    A length of no more than ``size`` is one span.
    """
    if length <= size:
        return [Span(slice(0, length), slice(0, length), 0, 0)]
    step = size - 2 * overlap
    count = -(-(length - 2 * overlap) // step)
    # Spread evenly, so that the last window is not a sliver that repeats most of the one before.
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
