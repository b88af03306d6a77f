"""Choosing the networks of an ensemble from a directory of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from satmap.errors import SatmapError
from satmap.models.unet import UNet
from satmap.models.weights import load_weights, read_weights_metadata


@dataclass(frozen=True)
class WeightFile:
    """A trained network on disk.

    Attributes:
        path: the file, named ``member.checkpoint.safetensors``.
        metadata: what ``save_weights`` wrote, ``recipe``, ``member``, ``stage``, ``epoch``, ...
    """

    path: Path
    metadata: dict[str, str]

    @property
    def checkpoint(self) -> str:
        """``best_apls``, ``best_dice`` or ``last``."""
        return self.path.name.removesuffix(".safetensors").rpartition(".")[2]

    @property
    def bands(self) -> int:
        """Channels that the network sees."""
        return int(self.metadata["in_channels"])

    @property
    def moment(self) -> tuple[str, ...]:
        """Member, stage and epoch: two files of one moment hold the same network."""
        return tuple(self.metadata.get(key, self.path.name) for key in ("member", "stage", "epoch"))


def find_weights(directory: Path) -> list[WeightFile]:
    """All weight files directly in the directory, sorted by name.

    Raises:
        SatmapError: there are none, or one is not a weight file.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise SatmapError(
            f"no weights (*.safetensors) in {directory}. Run train.sh first, or give the right "
            "directory with --weights."
        )
    return [WeightFile(path, read_weights_metadata(path)) for path in paths]


def recipe_of(files: Sequence[WeightFile]) -> str:
    """The recipe that all the files were trained with.

    Raises:
        SatmapError: they come from several recipes, or do not say.
    """
    names = sorted({file.metadata.get("recipe", "?") for file in files})
    if len(names) > 1 or names == ["?"]:
        raise SatmapError(
            f"the weights come from the recipes {', '.join(names)}; say which with --recipe."
        )
    return names[0]


def choose(
    files: Sequence[WeightFile], recipe: str, checkpoints: Sequence[str]
) -> list[WeightFile]:
    """The files of a recipe and of the wanted kinds, each network once.

    The best and the last checkpoint are often the same network; it then counts and computes once.

    Raises:
        SatmapError: nothing is left.
    """
    chosen: dict[tuple[str, ...], WeightFile] = {}
    for file in files:
        if file.metadata.get("recipe") == recipe and file.checkpoint in checkpoints:
            chosen.setdefault(file.moment, file)
    if not chosen:
        found = ", ".join(f"{f.path.name} ({f.metadata.get('recipe', '?')})" for f in files)
        raise SatmapError(
            f"no weights of recipe {recipe} with checkpoint {' or '.join(checkpoints)}; there are "
            f"{found}. Pass the recipe that they were trained with."
        )
    return list(chosen.values())


def load_ensemble(files: Sequence[WeightFile]) -> list[UNet]:
    """The networks, on the CPU, in evaluation mode."""
    return [load_weights(file.path)[0] for file in files]
