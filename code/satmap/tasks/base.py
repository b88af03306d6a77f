"""The interface between the engine and a task.

The engine manages memory, time, processes, windows, order, resuming, progress and provenance, and
does not depend on any task. A :class:`Task` defines everything else: how images and labels are
found, how labels are encoded for training, the network and its loss, how predictions are merged and
decoded into vectors, and how results are written, scored, drawn and tuned.

Most tasks predict probability maps: see :class:`satmap.tasks.dense.DenseTask`. Tasks whose networks
find objects directly start from :class:`satmap.tasks.instances.InstanceTask`. Tasks are registered
in :mod:`satmap.recipes.registry`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from satmap.data.cache import EncodedLabel
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip, Geometry
from satmap.data.imagery import ImageInfo
from satmap.data.inventory import Inventory
from satmap.data.judgement import judged_inventory
from satmap.data.label_files import Kind
from satmap.data.neighbours import ImageFootprint, Neighbour
from satmap.data.scenes import cut_scenes
from satmap.data.view_angles import ViewAngle
from satmap.errors import SatmapError
from satmap.networks.encoders import Encoder
from satmap.networks.ensemble import EnsembleMember, Pixels
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.rasters.scene import Box
from satmap.recipes.registry import find_task
from satmap.recipes.schema import Member, Recipe, default_recipe
from satmap.tasks.calibration import CALIBRATION_FILE, check_calibration
from satmap.tasks.result_decoders import NO_MODELS, FittedModels, ResultDecoder
from satmap.tuning.chips import Tuning, TuningRequest
from satmap.vectors.georeference import Georeference
from satmap.weights.header import CONTENT_KEY, TASK_CONTENT
from satmap.weights.members import WeightFile
from satmap.weights.network_files import load_pretrained_encoder
from satmap.weights.tensor_file import mismatch, read_tensors, write_tensors

#: Adds up a tensor over all processes that share a batch.
Total = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PreparedImage:
    """An image that is ready for the networks.

    Attributes:
        info: the file that was read. It is the RGB image where the multispectral one is broken.
        pixels: uint8 (height, width, channels) in the networks' input size. A large image is read
            window by window.
        members: the networks that the image has enough channels for.
        metres_per_pixel: along x and y.
        notes: warnings for the user.
        category: the network head for this image; None for networks with one head.
        is_large: whether the image's result is too large to be held in memory.
        inside: the part of ``pixels`` to predict; the rest only shows the networks what is around
            it. None for all.
        on_window: called after each window that the networks have predicted.
    """

    info: ImageInfo
    pixels: Pixels
    members: Sequence[EnsembleMember]
    metres_per_pixel: tuple[float, float]
    notes: tuple[str, ...]
    category: str | None = None
    is_large: bool = False
    inside: Box | None = None
    on_window: Callable[[], None] = lambda: None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the file."""
        return self.info.height, self.info.width


@dataclass(frozen=True)
class Batch:
    """Training samples on the device.

    Attributes:
        tensors: what the task's ``collate`` returned, by name; ``image`` is uint8 (n, channels, h,
            w).
        chips: the chip that each sample was cut from.
    """

    tensors: Mapping[str, Any]
    chips: Sequence[CachedChip]

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(self.chips)


class PendingResult(Protocol):
    """The prediction of an image, which the device may still be working on."""

    def get(self) -> Any:
        """Wait for the prediction and return it as the task's decoder expects it."""


class Task(ABC):
    """A kind of objects to map, with the settings of one recipe.

    Attributes:
        noun: the objects, in the plural: ``roads``.
        label_noun: one object of a label, in the singular: ``road``.
        scores: names of the validation scores, in the order in which they are shown. Plateau
            schedules use the first.
        default_metres_per_pixel: pixel size of images without georeference; None if the task does
            not need the pixel size.
        input_px: longer side of the networks' input; None for the size of the file.
        label_kind: geometries of users' own labels; None if the task does not read these.
    """

    label_kind: ClassVar[Kind | None] = None
    noun: ClassVar[str]
    label_noun: ClassVar[str]
    scores: ClassVar[tuple[str, ...]]
    default_metres_per_pixel: float | None = None
    input_px: int | None = None

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    # Images and labels

    def find_images(
        self,
        directories: Sequence[Path],
        view_angle: ViewAngle | None = None,
        *,
        cache: Path | None = None,
        judgement: Path | None = None,
    ) -> Inventory:
        """Find the images and their labels; see :meth:`TaskSettings.find_images`.

        With a ``cache``, the directory of prepared chips, labelled scenes are replaced by the tiles
        that the networks learn from if the recipe has ``tiles``. Without one, scenes stay whole.
        With a ``judgement``, the directory of judged labels, these replace the images' own.
        """
        # Of all rounds, so that training and prediction choose the same images.
        bands = self.recipe.bands
        found: Inventory = self.recipe.task.find_images(directories, bands, view_angle)
        if judgement is not None:
            found = judged_inventory(found, judgement)
        if cache is None or self.recipe.tiles is None:
            return found
        return cut_scenes(found, self, bands, cache)

    def category(self, chip: Chip) -> str | None:
        """Return the network head for an image; None for networks with one head.

        Raises:
            SatmapError: the category of the image is not known.
        """
        return None

    @property
    @abstractmethod
    def label_fingerprint(self) -> str:
        """Text that changes with every setting that ``encode`` depends on."""

    @abstractmethod
    def encode(self, chip: Chip, image: NDArray[np.uint8]) -> EncodedLabel:
        """Encode the label of a chip for training.

        ``image`` is uint8 (h, w, channels) in the networks' input size, with 0 in all channels
        where there is no data.

        Raises:
            SatmapError: the label is missing or unusable.
        """

    def encode_unlabelled(self, image: NDArray[np.uint8]) -> EncodedLabel:
        """Encode an image without label, as ``encode`` does, for training with pseudo-labels."""
        raise SatmapError(f"networks for {self.noun} cannot learn from unlabelled images.")

    def trace_mask(
        self, mask: NDArray[np.bool_], metres_per_pixel: tuple[float, float]
    ) -> list[shapely.Geometry]:
        """Trace the objects of a user's mask (height, width): geometries in pixels."""
        raise SatmapError(f"labels of {self.noun} cannot be masks.")

    def load_payload(self, payload: Any) -> Any:
        """Convert the JSON payload of an :class:`EncodedLabel` to the labels that scoring needs."""
        return payload

    # Training

    @abstractmethod
    def crop(
        self, chip: CachedChip, geometry: Geometry, size: int, channels: int
    ) -> dict[str, NDArray[Any]]:
        """Cut a training sample of ``size`` x ``size`` pixels from a chip.

        Returns:
            Arrays by name; ``image`` is uint8 (channels, size, size).
        """

    def collate(self, samples: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Any]:
        """Join samples into a batch of arrays, or lists of arrays, by name."""
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    @abstractmethod
    def build_network(self, member: Member) -> nn.Module:
        """Make the untrained network of an ensemble member."""

    def load_encoder(self, network: nn.Module, file: Path) -> None:
        """Load the ImageNet weights of a file into the network's encoder."""
        if (encoder := _encoder_of(network)) is None:
            raise SatmapError(f"networks for {self.noun} cannot start from {file}.")
        load_pretrained_encoder(encoder, file)

    def load_start(self, network: nn.Module, file: Path) -> list[str]:
        """Load the weights of a trained network into an untrained one, which then learns further.

        Encoder and decoder must be the same. Heads are loaded where name and shape are the same.

        Returns:
            Names of the heads that stay untrained.

        Raises:
            SatmapError: the file is damaged, or its network differs.
        """
        raise SatmapError(f"networks for {self.noun} cannot start from {file}.")

    def encoder_parameters(self, network: nn.Module) -> list[nn.Parameter]:
        """Return the parameters whose learning rate a stage scales by its ``encoder_rate``."""
        if (encoder := _encoder_of(network)) is None:
            raise SatmapError(
                f"networks for {self.noun} have no encoder. Leave `encoder_rate` out of the recipe."
            )
        return list(encoder.parameters())

    def freeze_encoder(self, network: nn.Module, frozen: bool, stages: int | None) -> None:
        """Freeze or unfreeze the first ``stages`` of the encoder, or all of it.

        Only networks that started from ImageNet weights or another network are ever frozen.
        """
        if (encoder := _encoder_of(network)) is not None:
            count = len(encoder.stages) if stages is None else stages
            encoder.freeze(count if frozen else 0)

    @property
    @abstractmethod
    def loss_parts(self) -> tuple[str, ...]:
        """Names of the parts of the loss, in the order in which they are shown."""

    @abstractmethod
    def inputs(self, network: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments of the network's forward pass for a batch."""

    @abstractmethod
    def loss(
        self, outputs: Any, batch: Batch, losses: Any, total: Total
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch from the network's outputs.

        ``losses`` are the weights of the recipe's stage. ``total`` sums a tensor over the processes
        that share the batch.

        Returns:
            The loss, whose mean over the processes is the loss of the whole batch, and its detached
            parts by name.
        """

    @abstractmethod
    def score_chip(self, network: nn.Module, chip: CachedChip, device: torch.device) -> Any:
        """Predict a chip with one network and score it; the score must be small enough to send."""

    @abstractmethod
    def summarize(self, chips: Sequence[CachedChip], scores: Sequence[Any]) -> dict[str, float]:
        """Compute the validation scores, each 0..1, from the scores of all chips."""

    def draw(self, chip: CachedChip, score: Any) -> NDArray[np.uint8]:
        """Draw prediction and truth side by side, uint8 (h, w, 3); by default only the image."""
        image = chip.read_image(3, slice(None), slice(None)).transpose(1, 2, 0)
        return np.ascontiguousarray(image)

    # Weights

    def save_network(self, path: Path, network: nn.Module, metadata: Mapping[str, str]) -> None:
        """Write a weight file, atomically; raise SatmapError if it cannot be written."""
        described = {
            **metadata,
            CONTENT_KEY: TASK_CONTENT,
            "architecture": self.recipe.task.name,
            "in_channels": str(network.in_channels),
        }
        write_tensors(path, network.state_dict(), described)

    def check_weights(self, file: WeightFile) -> None:
        """Raise SatmapError if the network of a weight file cannot be used for the recipe."""
        if file.metadata.get("architecture") != self.recipe.task.name:
            raise SatmapError(f"{file.path} does not find {self.noun}. Move it elsewhere.")

    def load_ensemble(
        self, files: Sequence[WeightFile], device: torch.device
    ) -> list[EnsembleMember]:
        """Load the networks of an ensemble onto the device, in evaluation mode.

        Raises:
            SatmapError: a file cannot be loaded, or the networks do not fit together.
        """
        members = []
        for file in files:
            named = {member.name: member for member in file.recipe.ensemble}
            member = named.get(file.metadata.get("member", ""))
            if member is None:
                raise SatmapError(f"{file.path} does not say which member of its recipe it is.")
            network, tensors = self.build_network(member), read_tensors(file.path)
            if fault := mismatch(network.state_dict(), tensors):
                raise SatmapError(
                    f"{file.path} does not hold the network that its metadata name: {fault}."
                )
            network.load_state_dict(tensors)
            members.append(EnsembleMember(network.to(device).eval(), file.votes))
        return members

    def confidence_features(self, with_selection: bool = False) -> tuple[str, ...]:
        """Return the names of what the confidence of an object is computed from.

        ``with_selection`` says whether a selection model chooses the objects. Tasks without
        confidences have no features.
        """
        return ()

    def find_models(self, weights: Path) -> FittedModels:
        """Find the models beside the networks that choose and rate objects.

        Raises:
            SatmapError: a model cannot be read, or is for other objects.
        """
        return FittedModels(calibration=self.find_calibration(weights / CALIBRATION_FILE))

    def find_calibration(self, path: Path, with_selection: bool = False) -> Path | None:
        """Return the path of a calibration if the file exists, and is for this task.

        Raises:
            SatmapError: it cannot be read, or is for other objects.
        """
        features = self.confidence_features(with_selection)
        if not features or not path.exists():
            return None
        check_calibration(path, self.recipe.task.name, features)
        return path.resolve()

    # Prediction

    #: Number of predicted values per pixel; decides which images are large.
    values_per_pixel: int = 1

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the probability maps that ``predict --probabilities`` writes, if any."""
        return ()

    def maps_of(self, prediction: Any) -> ProbabilityMaps | None:
        """Return the probability maps of a prediction, if it has any."""
        return None

    @abstractmethod
    def predict(self, image: PreparedImage, device: torch.device) -> PendingResult:
        """Run all networks on an image and merge their predictions.

        The predictions of test-time augmentations, ensemble members and overlapping windows become
        one prediction.
        """

    @abstractmethod
    def result_decoder(self, chip: Chip, models: FittedModels = NO_MODELS) -> ResultDecoder:
        """Return the decoder that turns the prediction of an image into its result.

        Raises:
            SatmapError: the settings depend on the category of the image, which is not known.
        """

    def find_neighbours(self, footprints: Sequence[ImageFootprint]) -> list[list[Neighbour]]:
        """Find the neighbours that each image is decoded with; by default there are none."""
        return [[] for _ in footprints]

    # Results

    def with_georeference(self, found: Any, georeference: Georeference | None) -> Any:
        """Return the result of an image with its position, for the Python library."""
        return found

    @abstractmethod
    def record(
        self, chip: Chip, image_id: str, found: Any, georeference: Georeference | None
    ) -> Any:
        """Join the result ``found`` of an image with its id in the output and its position."""

    @abstractmethod
    def as_json(self, record: Any) -> list[Any]:
        """Convert a record to JSON values, for the journal of finished images."""

    @abstractmethod
    def from_json(self, content: list[Any]) -> Any:
        """Convert JSON values back to the same record, exactly.

        Raises:
            ValueError, TypeError: the content is not a record.
            shapely.errors.ShapelyError: the content holds a damaged geometry.
        """

    def join_blocks(
        self,
        image_id: str,
        size: tuple[int, int],
        blocks: Sequence[tuple[Box, Any]],
        georeference: Georeference | None,
    ) -> Any:
        """Join the records of the blocks of a map into one record, without gaps or duplicates.

        The blocks were decoded with their neighbours. The result must not depend on their order.

        Args:
            image_id: the map's id in the output.
            size: height and width of the map.
            blocks: rectangle of each block in the map, and its record, in pixels of the block.
            georeference: of the map's pixels; None if not known.

        Raises:
            SatmapError: the task cannot make maps.
        """
        raise SatmapError(
            f"networks for {self.noun} cannot map whole scenes. Use `satmap predict`."
        )

    def check_outputs(self, output: Path, chips: Sequence[Chip]) -> None:
        """Raise SatmapError if the format of the submission cannot hold these images."""
        return

    @abstractmethod
    def write(
        self,
        output: Path,
        ids: Sequence[str],
        keys: Mapping[str, str],
        read: Callable[[str], Any],
    ) -> dict[str, int]:
        """Write the submission, with one image in memory at a time.

        ``ids`` are the ids of all images, in the order of the file. Images that have a record have
        a key in ``keys``, and ``read`` returns the record of a key.

        Returns:
            Number of objects by id.

        Raises:
            CannotWriteError: the file cannot be written.
        """

    def export(
        self, path: Path, records: Callable[[], Iterator[Any]], crs: str | None = None
    ) -> dict[str, str]:
        """Write a further file, in the format of its suffix.

        Each call of ``records`` returns a new iterator over the records of all images. ``crs`` is
        the reference system of the file (:func:`satmap.vectors.georeference.reference_system`);
        None for that of the images if they share a projected one, else longitude and latitude.
        Formats that demand longitude and latitude ignore it.

        Returns:
            Image id to problem, for images that the format cannot hold and that are left out.

        Raises:
            CannotWriteError: the file cannot be written.
        """
        raise SatmapError(f"{path}: {self.noun} cannot be exported to this format.")

    def keep_confident(self, record: Any, least: float | None) -> Any:
        """Return a record without the objects whose confidence is below ``least``; None for all."""
        if least is None:
            return record
        raise SatmapError(f"--least-confidence: {self.noun} have no confidence.")

    @abstractmethod
    def count(self, record: Any) -> int:
        """Return the number of objects in a record."""

    @property
    def export_suffixes(self) -> tuple[str, ...]:
        """Suffixes that ``export`` supports."""
        suffixes: tuple[str, ...] = self.recipe.task.export_suffixes
        return suffixes

    # Tuning

    def tune(self, request: TuningRequest) -> Tuning:
        """Fit the settings of the decoder to stored predictions with known truth.

        Raises:
            SatmapError: the task has no settings to fit, or the data do not suffice.
        """
        raise SatmapError(f"the task {self.recipe.task.name} has no settings to tune.")


def task_of(recipe: Recipe) -> Task:
    """Make the task of a recipe."""
    task: Task = find_task(recipe.task.name).task_type()(recipe)
    return task


def default_task(name: str, **settings: Any) -> Task:
    """Make a task for work without networks; ``settings`` override its defaults.

    Raises:
        SatmapError: there is no such task.
    """
    return task_of(default_recipe(name, **settings))


def _encoder_of(network: nn.Module) -> Encoder | None:
    """Return the encoder of a network; None if it has none of satmap's."""
    encoder = getattr(network, "encoder", None)
    return encoder if isinstance(encoder, Encoder) else None
