"""Tasks whose networks find objects directly, without probability maps.

Every network finds objects in every window of an image, in several symmetries of the square
(test-time augmentation). All candidates are transformed to pixels of the image, and the task merges
them, for example by suppression and voting. Large images are read window by window. The tasks that
satmap ships predict probability maps and do not use this module.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from satmap.networks.ensemble import SYMMETRIES, Symmetry
from satmap.networks.windows import Span, spans
from satmap.tasks.base import PreparedImage, Task


@dataclass(frozen=True)
class WindowCandidates:
    """Objects that one network found in one window, in one symmetry.

    Attributes:
        found: objects in the task's own type, in pixels of the image.
        votes: weight of the network in the ensemble.
        rows, columns: the window. Neighbouring windows overlap; ``kept`` leaves out the part where
            only a neighbouring window counts.
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
        """Return the objects, without waiting."""
        return self.found


class InstanceTask(Task):
    """A task whose networks find objects directly."""

    @abstractmethod
    def predict_window(self, network: nn.Module, pixels: Tensor, category: str | None) -> Any:
        """Find the objects of a window, in its pixels, with one network in evaluation mode.

        ``pixels`` is uint8 (channels, h, w) on the device of the network. ``category`` selects the
        network's head; None for networks with one head.
        """

    @abstractmethod
    def restore(self, found: Any, symmetry: Symmetry, shape: tuple[int, int]) -> Any:
        """Transform objects of a transformed window back to the original, of shape (h, w)."""

    @abstractmethod
    def shift(self, found: Any, left: int, top: int) -> Any:
        """Shift objects from pixels of a window to pixels of the image."""

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
                image.on_window()
        return FoundInstances(self.merge(candidates))

    def result_decoder(self, chip: Any, rating_model: Any = None) -> "AsFound":
        """Return a decoder that changes nothing: the merged objects are the result."""
        return AsFound()


@dataclass(frozen=True)
class AsFound:
    """A decoder that changes nothing."""

    def decode(self, prediction: Any) -> Any:
        """Return the prediction unchanged."""
        return prediction
