"""Base classes of the parts of a recipe that belong to its task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, model_validator

from satmap.settings import Settings

if TYPE_CHECKING:
    from satmap.data.inventory import Inventory
    from satmap.data.view_angles import ViewAngle


class TaskSettings(Settings):
    """Settings of a recipe's task: ``task: {name: roads, ...}``.

    The name alone (``task: roads``) means default settings.

    Attributes:
        name: name of the task.
        prediction_keys: keys that may change between training and prediction.
        best_checkpoints: score to the checkpoint with its best value. The first score is the main
            one.
        submission_suffixes: suffixes of the formats of submissions.
        export_suffixes: suffixes of the formats that results can be exported to.
    """

    prediction_keys: ClassVar[frozenset[str]] = frozenset()
    best_checkpoints: ClassVar[Mapping[str, str]] = {}
    submission_suffixes: ClassVar[tuple[str, ...]] = (".csv",)
    export_suffixes: ClassVar[tuple[str, ...]] = ()

    name: str

    def find_images(
        self, directories: Sequence[Path], bands: int = 1, view_angle: "ViewAngle | None" = None
    ) -> "Inventory":
        """Find images and their labels.

        Args:
            directories: searched to any depth.
            bands: largest number of bands that a network needs.
            view_angle: off-nadir angle, for images whose names lack it.

        Raises:
            SatmapError: no image was found, or two files claim to be the same image.
        """
        raise NotImplementedError(f"the task {self.name} does not find images")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class TaskLosses(Settings):
    """Weights of a member's losses; each task has its own subclass."""

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the probability maps that the network learns; none for other networks."""
        return ()


class HeadLoss(Settings):
    """Weights of the losses of one or more probability maps; 0 leaves a loss out."""

    dice: NonNegativeFloat = 0.0
    focal: NonNegativeFloat = 0.0
    bce: NonNegativeFloat = 0.0
