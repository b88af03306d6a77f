"""Rows of a submission by image, loaded on demand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

Id = TypeVar("Id")
Row = TypeVar("Row")


class RowsByImage(Mapping[Id, Sequence[Row]], Generic[Id, Row]):
    """Mapping from images to rows, which are loaded on access and counted.

    Attributes:
        counts: number of rows by image; 0 for images not accessed yet.
    """

    def __init__(
        self, ids: Sequence[Id], keys: Mapping[Id, str], read: Callable[[str], Sequence[Row]]
    ) -> None:
        """Create the mapping. ``read`` returns the rows of a key; an image may lack a key."""
        self.counts = dict.fromkeys(ids, 0)
        self._keys = keys
        self._read = read

    def __getitem__(self, image_id: Id) -> Sequence[Row]:
        if image_id not in self._keys:
            return []
        rows = self._read(self._keys[image_id])
        self.counts[image_id] = len(rows)
        return rows

    def __iter__(self) -> Iterator[Id]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)
