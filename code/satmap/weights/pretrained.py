"""Encoder files of ImageNet weights: recognising, checking, writing.

A file holds an encoder's tensors under timm's names, without the classifier. pretrainedmodels'
names are timm's but for that of the classifier (timm's ports of these networks were made from it),
and so are torchvision's for ResNets and DenseNets. DenseNet files of before torch 0.4 call the
layers of a block ``norm.1`` where all code since says ``norm1``.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor

from satmap.errors import SatmapError
from satmap.io.text import printable
from satmap.networks.encoders import ENCODERS, Encoder, build_encoder, pretrained_config
from satmap.weights.header import CHECKSUM, CONTENT_KEY, read_metadata
from satmap.weights.tensor_file import mismatch, read_tensors, require_weights, write_tensors

# pretrainedmodels calls every network's classifier so.
_CLASSIFIER = "last_linear."

# Source: update_state_dict in pretrainedmodels/models/torchvision_models.py.
_DENSE_LAYER = re.compile(
    r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))"
)

#: A second directory where encoders' weights are looked for, such as one inside of an image.
ENCODERS_VARIABLE = "SATMAP_ENCODERS"


@dataclass(frozen=True)
class PretrainedEncoder:
    """An encoder's ImageNet weights, checked.

    Attributes:
        name: key in ``ENCODERS``.
        tensors: by timm's names, for three input channels, without the classifier.
    """

    name: str
    tensors: dict[str, Tensor]


def encoder_file(weights: Path, name: str) -> Path:
    """Where an encoder's ImageNet weights belong in a directory of weights."""
    return weights / "imagenet" / f"{name}.safetensors"


def find_encoder_file(weights: Path, name: str) -> Path:
    """Where trainings find an encoder's ImageNet weights.

    Returns:
        ``encoder_file(weights, name)``, unless there is none and the directory of weights that
        ``$SATMAP_ENCODERS`` names has one.
    """
    file = encoder_file(weights, name)
    other = os.environ.get(ENCODERS_VARIABLE)
    if other and not file.exists() and encoder_file(Path(other), name).exists():
        return encoder_file(Path(other), name)
    return file


def how_to_get(name: str) -> str:
    """What to do where an encoder's ImageNet weights are missing or broken."""
    config = pretrained_config(name)
    hub = f"model.safetensors of https://huggingface.co/{config.hf_hub_id}"
    return (
        "`satmap weights fetch`, with the same --recipe, downloads them where there is a network; "
        f"by hand, take {hub if config.hf_hub_id else config.url} and `satmap weights import` it. "
        "To train without, use --from-scratch."
    )


def encoder_part(encoder: Encoder, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a whole ImageNet network belongs to the encoder.

    Args:
        encoder: its values are used for nothing but counters that the file lacks.
        found: tensors by timm's or pretrainedmodels' names.

    Returns:
        ``found`` without the classifier and whatever else timm's network has beyond the encoder;
        names that neither knows stay. Files from before torch 0.4.1 have no counters of batches,
        and pretrained statistics need none: they are added.
    """
    names = encoder.timm_names()
    with torch.device("meta"):
        whole = timm.create_model(ENCODERS[encoder.name].timm_name, pretrained=False)
    beyond = whole.state_dict().keys() - set(names.values())
    part = {
        name: value
        for name, value in _todays_names(found).items()
        if name not in beyond and not name.startswith(_CLASSIFIER)
    }
    for name in names.values():
        if name.endswith(".num_batches_tracked"):
            part.setdefault(name, torch.tensor(0))
    return part


def recognise_encoder(path: Path, found: Mapping[str, Tensor]) -> PretrainedEncoder:
    """The encoder that the tensors of ``path`` are of, told by their names and shapes.

    Raises:
        SatmapError: they are of none; the message says how they differ from the closest.
    """
    faults: list[tuple[int, str, str]] = []
    for name in ENCODERS:
        # Most encoders are told apart by what they call their first layer.
        if f"{pretrained_config(name).first_conv}.weight" not in found:
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

    Args:
        path: see ``encoder_file``.
        encoder: what to write.
        metadata: where the weights are from, such as ``source`` and ``source_sha256``.

    Raises:
        SatmapError: the file cannot be written.
    """
    described = {**metadata, "architecture": encoder.name, CONTENT_KEY: "encoder"}
    # safetensors refuses tensors that share memory, as some files' do.
    write_tensors(path, {k: value.clone() for k, value in encoder.tensors.items()}, described)


def verify_encoder_file(path: Path, name: str, remedy: str) -> str | None:
    """Check that a file holds an encoder's ImageNet weights and is as it was written.

    Args:
        path: the ``.safetensors`` file.
        name: key in ``ENCODERS``.
        remedy: what the user should do if not.

    Returns:
        The recorded SHA-256 that was found right; None where the file records none.

    Raises:
        SatmapError: it does not, or is not.
    """
    tensors = read_tensors(path, remedy)
    fault = mismatch(*_split(name, tensors))
    if fault:
        raise SatmapError(f"{path} does not hold ImageNet weights of {name}: {fault}. {remedy}")
    require_weights(path, tensors)
    return read_metadata(path).get(CHECKSUM)


def _todays_names(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in found.items():
        old = _DENSE_LAYER.fullmatch(name)
        renamed[f"{old[1]}{old[2]}" if old else name] = value
    return renamed


def _split(name: str, found: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the encoder needs, without values, and what ``found`` has of it, by timm's names."""
    with torch.device("meta"):
        encoder = build_encoder(name, 3)
    names = encoder.timm_names()
    expected = {names[ours]: value for ours, value in encoder.state_dict().items()}
    return expected, encoder_part(encoder, found)
