"""What a task makes of planes. The pipeline knows no task by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from satmap.data.chip import Chip
from satmap.prediction.journal import Journal, RecordCodec
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import Recipe
from satmap.tasks.buildings.maps import BuildingDecoder
from satmap.tasks.roads.maps import RoadDecoder
from satmap.vectors.georeference import Georeference


class Decoder(RecordCodec, Protocol):
    """A task as prediction sees it; small enough to be sent to workers with every image."""

    @property
    def noun(self) -> str:
        """What is found, in the plural."""

    @property
    def uses_neighbours(self) -> bool:
        """Whether what lies around an image helps to find what is in it."""

    def for_image(self, chip: Chip) -> "Decoder":
        """The same with the settings of an image.

        Raises:
            SatmapError: they depend on what nobody knows of it.
        """

    def vectorize(self, maps: ProbabilityMaps) -> Any:
        """What there is in an image, by its planes."""

    def vectorize_stored(self, stored: Path, neighbours: Sequence[tuple[Path, int, int]]) -> Any:
        """The same from planes in a file, with what lies around them.

        Args:
            stored: the planes.
            neighbours: those around them, there or not, and at which of their columns and rows each
                one's first pixel lies.

        Raises:
            SatmapError: the planes are gone, or damaged.
        """

    def record(
        self, chip: Chip, image_id: str, found: Any, georeference: Georeference | None
    ) -> Any:
        """What the journal holds of an image.

        Args:
            chip: the image.
            image_id: its id as it stands in the file.
            found: what ``vectorize`` gave.
            georeference: where its pixels lie; None if nobody knows.
        """

    def require_output(self, output: Path, exports: Sequence[Path], chips: Sequence[Chip]) -> None:
        """Fail before the work if the images cannot be written like that.

        Raises:
            SatmapError: a format that is not the task's, or not these images'.
        """

    def write(
        self, output: Path, ids: Sequence[str], keys: Mapping[str, str], journal: Journal
    ) -> dict[str, int]:
        """Write the submission, one image in memory at a time.

        Args:
            output: the file.
            ids: of every image of it, in its order.
            keys: id to key in the journal, of the images that were predicted.
            journal: with what was found.

        Returns:
            How much was found by id.

        Raises:
            CannotWriteError: it cannot be written.
        """

    def export(self, path: Path, images: Callable[[], Iterator[Any]]) -> list[str]:
        """Write a further file, in the format that its suffix names.

        Args:
            path: the file.
            images: gives what the journal holds of each image, from the first.

        Returns:
            What is wrong with images that the format cannot hold, and are left out.

        Raises:
            CannotWriteError: it cannot be written.
        """


def decoder_of(recipe: Recipe, confidence: Path | None = None) -> Decoder:
    """What a recipe's task makes of planes; ``confidence`` is a file of a model of buildings."""
    if recipe.task == "roads":
        return RoadDecoder(recipe.roads, recipe.inference.default_metres_per_pixel)
    return BuildingDecoder(recipe.buildings, recipe.view_angles, confidence=confidence)
