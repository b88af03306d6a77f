"""Tasks whose networks predict probability maps.

The engine averages the maps of symmetries, ensemble members and windows
(:mod:`satmap.networks.ensemble`). A task defines how its labels are drawn, its losses
(:mod:`satmap.tasks.losses`), and how probability maps are vectorised.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satmap.data.cache import EncodedLabel
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip, Geometry, read_crop
from satmap.errors import SatmapError
from satmap.io.text import printable
from satmap.networks.ensemble import EnsembleMember, Strip, predict_maps, predict_strips
from satmap.networks.unet import UNet, build_network
from satmap.rasters.probability_maps import ProbabilityMaps, resize_maps
from satmap.recipes.schema import Member
from satmap.tasks.base import Batch, PreparedImage, Task
from satmap.tasks.result_decoders import NO_MODELS, FittedModels, MapDecoder
from satmap.weights.members import WeightFile
from satmap.weights.network_files import (
    load_trained_network,
    load_weights,
    save_weights,
)


@dataclass(frozen=True)
class PendingMaps:
    """Named probability maps of an image, in strips that the device may still be computing."""

    names: tuple[str, ...]
    strips: list[Strip]
    image: PreparedImage

    def get(self) -> ProbabilityMaps:
        """Wait for the maps and resize them to the size of the image's file. Call it once."""
        parts = [strip.get() for strip in self.strips]
        tops = [strip.top for strip in self.strips]
        # The maps are copied below, and the originals take a hundred megabytes.
        self.strips.clear()
        if (inside := self.image.inside) is not None:
            parts = [
                part[:, max(inside.top - top, 0) : max(inside.bottom - top, 0),
                     inside.left : inside.right]
                for top, part in zip(tops, parts, strict=True)
            ]  # fmt: skip
        values = np.concatenate(parts, axis=1)
        del parts
        values = resize_maps(values, self.image.shape)
        return ProbabilityMaps(self.names, values, self.image.metres_per_pixel)


class DenseTask(Task):
    """A task whose networks predict probability maps.

    Attributes:
        file_maps: number of bands of a raster to the names of its probability maps, for rasters of
            other programs.
        ignored_bit: bit in the first byte of targets that marks ignored pixels; 0 for none.
        target_bytes: bytes per pixel of targets; with 1 they are (h, w), else (h, w, bytes).
    """

    file_maps: ClassVar[Mapping[int, tuple[str, ...]]]
    ignored_bit: ClassVar[int] = 0
    target_bytes: ClassVar[int] = 1

    @cached_property
    def map_names(self) -> tuple[str, ...]:
        """Names of the networks' probability maps."""
        return self.recipe.map_names

    @property
    def values_per_pixel(self) -> int:  # type: ignore[override]
        """Number of probability maps."""
        return len(self.map_names)

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the networks' heads; none for networks with one head."""
        return ()

    # Training

    def encode_unlabelled(self, image: NDArray[np.uint8]) -> EncodedLabel:
        """Return a target in which all pixels are ignored.

        Raises:
            SatmapError: the task cannot ignore pixels.
        """
        if not self.ignored_bit:
            return super().encode_unlabelled(image)
        shape = image.shape[:2] if self.target_bytes == 1 else (*image.shape[:2], self.target_bytes)
        target = np.zeros(shape, np.uint8)
        (target if target.ndim == 2 else target[..., 0])[:] = self.ignored_bit
        return EncodedLabel({"target": target}, [], 0, (1.0, 1.0))

    def crop(
        self, chip: CachedChip, geometry: Geometry, size: int, channels: int
    ) -> dict[str, NDArray[Any]]:
        """Cut the image and the target.

        Returns:
            ``image`` uint8 (channels, size, size), ``target`` uint8 (size, size) or (size, size,
            bytes).
        """
        image, target = read_crop(chip, geometry, size, channels)
        return {"image": image, "target": target}

    def build_network(self, member: Member) -> UNet:
        """Make the UNet of a member."""
        return build_network(
            member.encoder,
            member.bands,
            self.map_names,
            member.decoder.widths,
            member.decoder.kind,
            self.categories,
        )

    def load_start(self, network: nn.Module, file: Path) -> list[str]:
        """Load a trained UNet: encoder, decoder, and the maps of the same name and category."""
        assert isinstance(network, UNet)
        return load_trained_network(network, file)

    def inputs(self, network: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return the normalised images and, for networks with several heads, the head indices."""
        assert isinstance(network, UNet)
        image = network.encoder.normalize(batch["image"])
        image = image.contiguous(memory_format=torch.channels_last)
        heads = network.category_indices([chip.category or "" for chip in batch.chips])
        return (image,) if heads is None else (image, heads)

    def score_chip(self, network: nn.Module, chip: CachedChip, device: torch.device) -> Any:
        """Predict a whole chip with one network, decode it and compare it with the label.

        There is no test-time augmentation: validation compares checkpoints, not ensembles.
        """
        assert isinstance(network, UNet)
        settings = self.recipe.inference.model_copy(update={"tta": 1})
        image, target = chip.read()
        members = [EnsembleMember(network)]
        values = predict_maps(members, image, settings, device, chip.category)
        ignored = (target if target.ndim == 2 else target[..., 0]) & self.ignored_bit
        if ignored.any():
            values = values * (ignored == 0)
        maps = ProbabilityMaps(network.map_names, values, chip.metres_per_pixel)
        return self.score_maps(maps, chip, target)

    @abstractmethod
    def score_maps(self, maps: ProbabilityMaps, chip: CachedChip, target: NDArray[np.uint8]) -> Any:
        """Vectorise one network's probability maps of a chip and score the result.

        The maps and the ``target``, which ``encode`` drew, have the size of the network's input.
        """

    # Weights

    def save_network(self, path: Path, network: nn.Module, metadata: Mapping[str, str]) -> None:
        """Write a UNet's weights, atomically."""
        assert isinstance(network, UNet)
        save_weights(path, network, metadata)

    def check_weights(self, file: WeightFile) -> None:
        """Check that a network has the probability maps and heads of the recipe."""
        network, name = file.network, self.recipe.name
        if network.categories and not self.categories:
            raise SatmapError(
                f"{file.path} has a head for each of {_list(network.categories)}, but images of "
                f"{self.noun} have no category to choose one by. Move it elsewhere."
            )
        if network.categories != self.categories:
            raise SatmapError(
                f"{file.path} has heads for {_list(network.categories) or 'no categories'}, but "
                f"the recipe {name} for {_list(self.categories)}. Move it elsewhere."
            )
        if set(network.maps) != set(self.map_names):
            raise SatmapError(
                f"{file.path} predicts the probability maps {_list(network.maps)}, but "
                f"{self.noun} need {_list(self.map_names)}. Move it elsewhere."
            )

    def load_ensemble(
        self, files: Sequence[WeightFile], device: torch.device
    ) -> list[EnsembleMember]:
        """Load the networks of an ensemble, with their probability maps in one order.

        The order is that of the recipe, or that of the first network if it has other maps.
        """
        first = files[0]
        names = self.map_names
        if set(names) != set(first.network.maps):
            names = first.network.maps
        members = []
        for file in files:
            network, _ = load_weights(file.path)
            if (
                set(network.map_names) != set(names)
                or network.categories != first.network.categories
            ):
                raise SatmapError(
                    f"{first.path} and {file.path} cannot be averaged: the first gives "
                    f"{_outputs(first.network.maps, first.network.categories)}, the second "
                    f"{_outputs(network.map_names, network.categories)}. Move one elsewhere."
                )
            network.order_maps(names)
            network.to(device).to(memory_format=torch.channels_last)
            members.append(EnsembleMember(network, file.votes))
        return members

    # Prediction

    def predict(self, image: PreparedImage, device: torch.device) -> PendingMaps:
        """Average the probability maps of all networks and symmetries."""
        return PendingMaps(self.map_names, list(self.predict_strips(image, device)), image)

    def predict_strips(self, image: PreparedImage, device: torch.device) -> Iterator[Strip]:
        """Predict like ``predict``, but yield the maps in strips from the top, for large images."""
        settings = self.recipe.inference
        return predict_strips(
            image.members, image.pixels, settings, device, image.category, image.on_window
        )

    @abstractmethod
    def result_decoder(self, chip: Chip, models: FittedModels = NO_MODELS) -> MapDecoder:
        """Return the decoder that turns the probability maps of an image into its result."""

    def image_id_of(self, stem: str) -> str | None:
        """Return the image id in a raster's name without suffix; None if it has another format."""
        return None


def _list(names: Sequence[str]) -> str:
    return printable(", ".join(names), 300)


def _outputs(maps: Sequence[str], categories: Sequence[str]) -> str:
    heads = f" for each of {_list(categories)}" if categories else ""
    return f"{_list(maps)}{heads}"
