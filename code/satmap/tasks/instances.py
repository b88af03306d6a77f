"""Tasks whose networks find objects directly, without probability maps.

Every network looks at every window of an image in several symmetries of the square (test-time
augmentation). All candidates are brought into the pixels of the image, and the task merges them,
for example by suppression and voting. Large images are read window by window. The tasks that satmap
ships predict probability maps and do not use this module.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from satmap.networks.ensemble import SYMMETRIES, Symmetry
from satmap.rasters.windows import Span, spans
from satmap.tasks.base import PreparedImage, Task


@dataclass(frozen=True)
class WindowCandidates:
    """What one network found in one window, in one symmetry.

    Attributes:
        found: the task's own form of objects, in pixels of the image.
        votes: weight of the network in the ensemble.
        rows, columns: the window. Neighbouring windows overlap; ``kept`` is the part of the window
            that no other window is responsible for alone.
    """

    found: Any
    votes: int
    rows: Span
    columns: Span


@dataclass(frozen=True)
class FoundInstances:
    """The merged objects of an image."""

    found: Any

    def get(self) -> Any:
        """The objects; there is nothing to wait for."""
        return self.found


class InstanceTask(Task):
    """A task whose networks find objects directly."""

    @abstractmethod
    def predict_window(self, network: nn.Module, pixels: Tensor, category: str | None) -> Any:
        """Find the objects of a window with one network.

        Args:
            network: in evaluation mode.
            pixels: uint8 (channels, h, w), on the device of the network.
            category: the head of the network for this image; None for networks with one head.

        Returns:
            Objects in pixels of the window.
        """

    @abstractmethod
    def restore(self, found: Any, symmetry: Symmetry, shape: tuple[int, int]) -> Any:
        """Bring objects of a transformed window back.

        Args:
            found: what ``predict_window`` found in the transformed window.
            symmetry: how the window was transformed.
            shape: height and width of the window before.
        """

    @abstractmethod
    def shift(self, found: Any, left: int, top: int) -> Any:
        """Move objects from the pixels of a window to those of the image."""

    @abstractmethod
    def merge(self, candidates: Sequence[WindowCandidates]) -> Any:
        """Merge the candidates of all windows, networks and symmetries into objects."""

    @torch.no_grad()
    def predict(self, image: PreparedImage, device: torch.device) -> FoundInstances:
        """Find and merge the objects of an image."""
        settings = self.recipe.inference
        height, width = image.pixels.shape[:2]
        candidates = []
        for rows in spans(height, settings.window, settings.overlap):
            for columns in spans(width, settings.window, settings.overlap):
                window = image.pixels[rows.read, columns.read]
                pixels = torch.from_numpy(np.ascontiguousarray(window.transpose(2, 0, 1)))
                for member in image.members:
                    channels = pixels[: member.network.in_channels].to(device)
                    for symmetry in SYMMETRIES[: settings.tta]:
                        found = self.predict_window(
                            member.network, symmetry.apply(channels), image.category
                        )
                        found = self.restore(found, symmetry, window.shape[:2])
                        found = self.shift(found, columns.read.start, rows.read.start)
                        candidates.append(WindowCandidates(found, member.votes, rows, columns))
        return FoundInstances(self.merge(candidates))

    def decoder(self, chip: Any, rating_model: Any = None) -> "AsFound":
        """The objects are the result already."""
        return AsFound()


@dataclass(frozen=True)
class AsFound:
    """A decoder that changes nothing."""

    def decode(self, prediction: Any) -> Any:
        """The prediction itself."""
        return prediction
