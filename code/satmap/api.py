"""The Python library: load networks, map images, vectorise probability maps, score results.

>>> import satmap
>>> predictor = satmap.load("weights")
>>> roads = predictor("town.tif")
>>> graph = roads.to_networkx()
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from satmap.data.chip import Chip
from satmap.data.imagery import RGB, ImageInfo, read_info, resize_image
from satmap.data.view_angles import parse_view_angle, view_angle_of_name
from satmap.errors import SatmapError
from satmap.evaluation.metrics.apls import METRES_PER_PIXEL
from satmap.evaluation.metrics.figures import Report
from satmap.evaluation.score import score_files
from satmap.networks.ensemble import EnsembleMember
from satmap.prediction.images import prepare_image
from satmap.prediction.outputs import check_models, record_networks
from satmap.rasters.map_files import read_map_file
from satmap.rasters.probability_maps import ProbabilityMaps
from satmap.recipes.schema import load_recipe
from satmap.runtime.device import pick_device
from satmap.tasks.base import PreparedImage, Task, default_task, task_of
from satmap.tasks.dense import DenseTask
from satmap.tasks.result_decoders import NO_MODELS, FittedModels
from satmap.weights.header import read_weights_metadata
from satmap.weights.members import WeightFile, choose, find_weights, recipe_of
from satmap.weights.starters import starter_weights as starter_weights


@dataclass(frozen=True)
class Predictor:
    """An ensemble of networks that maps images.

    Attributes:
        task: the task of the networks.
        members: the networks, on the device.
        device: device of the networks.
        models: the models beside the networks, which choose and rate objects.
    """

    task: Task
    members: Sequence[EnsembleMember]
    device: torch.device
    models: FittedModels = NO_MODELS

    def __call__(
        self,
        image: str | Path | NDArray[np.uint8],
        *,
        metres_per_pixel: float | None = None,
        view_angle: str | float | None = None,
    ) -> Any:
        """Map an image.

        Args:
            image: a raster file, or an array (h, w, channels), uint8, stretched as the networks
                expect it (``recipe.stretch``), channels in the order red, green, blue, ...
            metres_per_pixel: pixel size of an array, or of a file without georeference; None for
                the recipe's default.
            view_angle: off-nadir angle of an image whose name lacks it, such as ``32`` or
                ``"32south"``; only networks with ``view_angle_heads`` need it.

        Returns:
            For roads a :class:`~satmap.vectors.road_graph.RoadGraph`, for buildings a list of
            :class:`~satmap.vectors.buildings.Building`, in pixels of the image. Both have
            ``to_geodataframe()``, road graphs also ``to_networkx()``. For masks (task ``raster``)
            an array, bool (h, w).

        Raises:
            SatmapError: the image cannot be read, has too few channels, or its view angle is needed
                and unknown.
        """
        chip, prepared = self._prepare(image, metres_per_pixel, view_angle)
        prediction = self.task.predict(prepared, self.device).get()
        found = self.task.result_decoder(chip, self.models).decode(prediction)
        return self.task.with_georeference(found, prepared.info.georeference)

    def probabilities(
        self,
        image: str | Path | NDArray[np.uint8],
        *,
        metres_per_pixel: float | None = None,
        view_angle: str | float | None = None,
    ) -> ProbabilityMaps:
        """Predict the averaged probability maps of an image, uint8, 0..255 for 0..1.

        Takes the same arguments as calling the predictor.

        Raises:
            SatmapError: the image cannot be read, or the networks have no probability maps.
        """
        if not isinstance(self.task, DenseTask):
            raise SatmapError(f"networks for {self.task.noun} have no probability maps.")
        _, prepared = self._prepare(image, metres_per_pixel, view_angle)
        return self.task.predict(prepared, self.device).get()

    def _prepare(
        self,
        image: str | Path | NDArray[np.uint8],
        metres: float | None,
        view_angle: str | float | None,
    ) -> tuple[Chip, PreparedImage]:
        if isinstance(image, np.ndarray):
            return self._prepare_array(image, metres, view_angle)
        info = read_info(Path(image), RGB)
        chip = _chip(info, view_angle)
        prepared = prepare_image(chip, self.members, self.task)
        size = prepared.metres_per_pixel
        if metres is not None and info.georeference is None:
            size = (metres, metres)
        return chip, replace(prepared, is_large=False, metres_per_pixel=size)

    def _prepare_array(
        self, image: NDArray[np.uint8], metres: float | None, view_angle: str | float | None
    ) -> tuple[Chip, PreparedImage]:
        if image.ndim != 3 or image.dtype != np.uint8:
            raise SatmapError(
                f"an image must be an array (h, w, channels) of uint8, not {image.shape} of "
                f"{image.dtype}."
            )
        height, width, channels = image.shape
        info = ImageInfo(Path("array"), RGB, width, height, channels, "uint8", None)
        chip = _chip(info, view_angle)
        chip.require_channels(max(member.network.in_channels for member in self.members))
        size = metres or self.task.default_metres_per_pixel or 1.0
        category = self.task.category(chip)
        pixels = resize_image(image, self.task.input_px)
        return chip, PreparedImage(info, pixels, self.members, (size, size), (), category)


def load(weights: str | Path, *, device: str = "auto", recipe: str | None = None) -> Predictor:
    """Load the networks of a directory, or one weight file.

    Args:
        weights: a weight file, or a directory of weights, in which all checkpoints of the recipe
            are averaged.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        recipe: name or path of the recipe to predict with; None for that of the weights.

    Raises:
        SatmapError: there are no weights, they cannot be loaded, a model beside them was fitted to
            other networks, or the device does not exist.
    """
    path = Path(weights)
    is_file = not path.is_dir()
    files = [WeightFile(path, read_weights_metadata(path))] if is_file else find_weights(path)
    chosen = load_recipe(recipe) if recipe else recipe_of(files)
    if not is_file:
        files = choose(files, chosen)
    task = task_of(chosen)
    for file in files:
        task.check_weights(file)
    target = pick_device(device)
    models = NO_MODELS if is_file else task.find_models(path)
    if models.files:
        check_models(models, record_networks(files))
    return Predictor(task, task.load_ensemble(files, target), target, models)


def vectorize(
    maps: str | Path | ProbabilityMaps | NDArray[np.uint8],
    task: str = "roads",
    *,
    metres_per_pixel: float | None = None,
    view_angle: str | float | None = None,
    recipe: str | None = None,
) -> Any:
    """Turn probability maps into vectors.

    Args:
        maps: a raster file, or an array (maps, h, w) or (h, w), uint8, 0..255 for 0..1, with the
            task's maps in their order.
        task: ``roads``, ``buildings`` or ``raster``.
        metres_per_pixel: pixel size of an array, or of a file without georeference; None for the
            recipe's default.
        view_angle: as for calling a :class:`Predictor`.
        recipe: name or path of the recipe with the vectoriser's settings; None for the defaults.

    Returns:
        As for calling a :class:`Predictor`.

    Raises:
        SatmapError: the maps cannot be read, or are not those of the task.
    """
    chosen = task_of(load_recipe(recipe)) if recipe else default_task(task)
    if not isinstance(chosen, DenseTask):
        raise SatmapError(f"{chosen.noun} are not made of probability maps.")
    georeference, path = None, Path("array")
    metres = metres_per_pixel or chosen.default_metres_per_pixel or 1.0
    if isinstance(maps, (str, Path)):
        path = Path(maps)
        values, georeference = read_map_file(path, metres, chosen.file_maps)
    elif isinstance(maps, ProbabilityMaps):
        values = maps
    else:
        stacked = maps[None] if maps.ndim == 2 else maps
        names = chosen.file_maps.get(len(stacked))
        if names is None:
            raise SatmapError(
                f"{len(stacked)} probability maps, but {chosen.noun} have "
                f"{' or '.join(map(str, chosen.file_maps))}."
            )
        values = ProbabilityMaps(names, stacked, (metres, metres))
    height, width = values.shape
    info = ImageInfo(path, "maps", width, height, len(values.names), "uint8", georeference)
    found = chosen.result_decoder(_chip(info, view_angle)).decode(values)
    return chosen.with_georeference(found, georeference)


def score(
    truth: str | Path, result: str | Path, *, metres_per_pixel: float | None = None
) -> Report:
    """Score a result with the metric of its challenge.

    Truth and result are files or directories of the same kind.

    ``metres_per_pixel`` is the pixel size; None means that of the official road scorer.

    Returns:
        The figures in total, by area of interest and by image; ``to_json()`` gives what
        ``satmap score --json`` prints.

    Raises:
        SatmapError: the files cannot be read, are of different kinds or have no image in common.
    """
    metres = METRES_PER_PIXEL if metres_per_pixel is None else metres_per_pixel
    return score_files(Path(truth), Path(result), metres_per_pixel=metres).report


def _chip(info: ImageInfo, view_angle: str | float | None) -> Chip:
    name = info.path.stem
    try:
        given = None if view_angle is None else parse_view_angle(str(view_angle))
    except ValueError as error:
        raise SatmapError(f"view_angle: {error}.") from error
    angle = view_angle_of_name(name) or given
    return Chip(name, name, "", {info.product: info}, None, view_angle=angle)
