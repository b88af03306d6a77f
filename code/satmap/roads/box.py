"""Rectangles of pixels: images, windows, tiles, margins."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels.

    Attributes:
        left, top: its first column and row.
        width, height: its size.
    """

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The column behind its last."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The row behind its last."""
        return self.top + self.height

    def grown(self, x: int, y: int) -> "Box":
        """The same with a margin on all sides."""
        return Box(self.left - x, self.top - y, self.width + 2 * x, self.height + 2 * y)

    def overlap(self, other: "Box") -> "Box | None":
        """What two rectangles share; None if that is nothing."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        width = min(self.right, other.right) - left
        height = min(self.bottom, other.bottom) - top
        return Box(left, top, width, height) if width > 0 and height > 0 else None

    def seen_from(self, other: "Box") -> "Box":
        """The same where the other's first pixel is column 0, row 0."""
        return Box(self.left - other.left, self.top - other.top, self.width, self.height)

    def tiles(self, width: int, height: int) -> list["Box"]:
        """The rectangle in parts of that size, those at its right and bottom smaller; by rows."""
        return [
            Box(left, top, min(width, self.right - left), min(height, self.bottom - top))
            for top in range(self.top, self.bottom, height)
            for left in range(self.left, self.right, width)
        ]

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and columns of an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, outer: "Box") -> tuple[slice, slice]:
        """Rows and columns of an array of ``outer``'s size that are this rectangle's."""
        rows = slice(self.top - outer.top, self.bottom - outer.top)
        return rows, slice(self.left - outer.left, self.right - outer.left)
