"""Rows of a submission by image, read only when they are written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

Id = TypeVar("Id")
Row = TypeVar("Row")


class RowsByImage(Mapping[Id, Sequence[Row]], Generic[Id, Row]):
    """Rows by image, read when they are asked for; it remembers how many they are.

    Attributes:
        counts: by image, 0 of those that were not read.
    """

    def __init__(
        self, ids: Sequence[Id], keys: Mapping[Id, str], read: Callable[[str], Sequence[Row]]
    ) -> None:
        """Begin with nothing read.

        Args:
            ids: of all images, in order.
            keys: what ``read`` takes for an image; one without has no rows.
            read: gives the rows.
        """
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
