"""What the parts of a recipe that belong to its task have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, model_validator

from satmap.settings import Settings

if TYPE_CHECKING:
    from satmap.data.inventory import Inventory
    from satmap.data.view_angles import ViewAngle


class TaskSettings(Settings):
    """The part of a recipe that only its task reads: ``task: {name: roads, ...}``.

    The name alone (``task: roads``) leaves everything else at its defaults.

    Attributes:
        name: the name of the task.
        prediction_keys: keys that training does not depend on: they may change between training
            and prediction.
        best_checkpoints: score to the checkpoint that keeps the network with its best value. The
            first score is the one that counts.
        export_suffixes: suffixes of the formats that results can be exported to.
    """

    prediction_keys: ClassVar[frozenset[str]] = frozenset()
    best_checkpoints: ClassVar[Mapping[str, str]] = {}
    export_suffixes: ClassVar[tuple[str, ...]] = ()

    name: str

    def find_images(
        self, directories: Sequence[Path], bands: int = 1, view_angle: "ViewAngle | None" = None
    ) -> "Inventory":
        """Find images and their labels.

        Args:
            directories: searched to any depth.
            bands: what the networks need at most.
            view_angle: of images whose names do not tell it.

        Raises:
            SatmapError: no image was found, or two files claim to be the same image.
        """
        raise NotImplementedError(f"the task {self.name} does not find images")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class TaskLosses(Settings):
    """The weights of a member's losses; each task has its own."""

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the probability maps that the network learns; none for other networks."""
        return ()

    @property
    def needs_teacher(self) -> bool:
        """Whether the network learns from a trained ensemble."""
        return False


class HeadLoss(Settings):
    """Weights of the losses of one probability map, or several; 0 leaves a loss out."""

    dice: NonNegativeFloat = 0.0
    focal: NonNegativeFloat = 0.0
    bce: NonNegativeFloat = 0.0
