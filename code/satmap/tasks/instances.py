"""Tasks whose networks find objects directly, without probability maps.

Large images are read in windows. Every network finds objects in every window, in several symmetries
of the square (test-time augmentation). These candidates are transformed to pixels of the image, and
the task merges them, for example by suppression and voting.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satmap.networks.ensemble import SYMMETRIES, Symmetry
from satmap.networks.windows import spans
from satmap.rasters.gaps import mirror_into_gaps
from satmap.rasters.scene import Box
from satmap.runtime.device import autocast
from satmap.tasks.base import PreparedImage, Task

#: Left, top, right and bottom of a rectangle.
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class WindowCandidates:
    """Objects that one network found in one window, in one symmetry; all in pixels of the image.

    Attributes:
        found: objects in the task's own type.
        votes: weight of the network in the ensemble.
        seen: the window. Neighbouring windows overlap.
        whole: everything that the networks see of the image. Where a window ends at its border, the
            window cuts no objects.
    """

    found: Any
    votes: int
    seen: Corners
    whole: Corners


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
    def place(self, found: Any, scale: NDArray[np.float64], offset: NDArray[np.float64]) -> Any:
        """Transform objects from pixels of a window to pixels of the image.

        A point (x, y) becomes point * ``scale`` + ``offset``; both are float64 (2,).
        """

    @abstractmethod
    def merge(self, candidates: Sequence[WindowCandidates]) -> Any:
        """Merge the candidates of all windows, networks and symmetries into objects."""

    def predict(self, image: PreparedImage, device: torch.device) -> FoundInstances:
        """Find and merge the objects of an image."""
        return FoundInstances(self.merge(self.find(image, device, self.recipe.inference.tta)))

    @torch.no_grad()
    def find(
        self, image: PreparedImage, device: torch.device, symmetries: int
    ) -> list[WindowCandidates]:
        """Find the candidates of all windows and networks of an image, in some symmetries."""
        settings = self.recipe.inference
        height, width = image.pixels.shape[:2]
        inside = image.inside or Box(0, 0, width, height)
        origin = np.array([inside.left, inside.top])
        # The networks' input may have another size than the file.
        scale = np.array(image.shape[::-1]) / (inside.width, inside.height)

        def corners(rows: slice, columns: slice) -> Corners:
            ends = np.array([[columns.start, rows.start], [columns.stop, rows.stop]])
            left, top, right, bottom = ((ends - origin) * scale).ravel().tolist()
            return left, top, right, bottom

        whole = corners(slice(0, height), slice(0, width))
        candidates = []
        for rows in spans(height, settings.window, settings.overlap):
            for columns in spans(width, settings.window, settings.overlap):
                window = image.pixels[rows.read, columns.read]
                if window.any():
                    shown = mirror_into_gaps(window) if settings.gaps == "mirror" else window
                    offset = (np.array([columns.read.start, rows.read.start]) - origin) * scale
                    seen = corners(rows.read, columns.read)
                    candidates += [
                        WindowCandidates(self.place(found, scale, offset), votes, seen, whole)
                        for found, votes in self._window(image, shown, device, symmetries)
                    ]
                image.on_window()
        return candidates

    def _window(
        self,
        image: PreparedImage,
        window: NDArray[np.uint8],
        device: torch.device,
        symmetries: int,
    ) -> list[tuple[Any, int]]:
        """Return what each network found in each symmetry of a window, with its votes."""
        pixels = torch.from_numpy(np.ascontiguousarray(window.transpose(2, 0, 1)))
        found = []
        for member in image.members:
            channels = pixels[: member.network.in_channels].to(device)
            for symmetry in SYMMETRIES[:symmetries]:
                with autocast(device):
                    each = self.predict_window(
                        member.network, symmetry.apply(channels), image.category
                    )
                found.append((self.restore(each, symmetry, window.shape[:2]), member.votes))
        return found

    def result_decoder(self, chip: Any, models: Any = None) -> "AsFound":
        """Return a decoder that changes nothing: the merged objects are the result."""
        return AsFound()


@dataclass(frozen=True)
class AsFound:
    """A decoder that changes nothing."""

    def decode(self, prediction: Any) -> Any:
        """Return the prediction unchanged."""
        return prediction
