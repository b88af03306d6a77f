"""Weight files: safetensors that say what network they belong to.

A file can be loaded without any other knowledge, and without running code from it: safetensors
holds bytes and text only. Pickles are read in one place, files of other people's, and with torch's
restricted unpickler (``satmap.weights.pickles``).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from satmap.errors import SatmapError
from satmap.io.text import printable
from satmap.networks.decoders import DECODERS
from satmap.networks.encoders import ENCODERS, adapt_first_conv, pretrained_config
from satmap.networks.unet import UNet, build_network
from satmap.weights.pickles import read_pickle, require_state_dict
from satmap.weights.pretrained import CONTENT_KEY, encoder_part, how_to_get
from satmap.weights.tensor_file import (
    CHECKSUM,
    mismatch,
    read_metadata,
    read_tensors,
    require_weight_file,
    require_weights,
    write_tensors,
)

#: Metadata that ``save_weights`` writes itself, and without which nothing loads.
NETWORK_KEYS = ("architecture", "in_channels", "decoder", "planes")

#: Metadata of imported files: the checkpoint that they count as where their names do not say it.
CHECKPOINT_KEY = "checkpoint"

#: Metadata that ``save_weights`` adds where a network has one head for each of several categories.
CATEGORIES_KEY = "categories"

#: Metadata that is in force once a file is loaded: what inputs are normalised with, if not as the
#: encoder's own weights want it (files of before had none), and the checksum.
_APPLIED_KEYS = ("normalization", CHECKSUM)

#: More bands than any sensor has; what exceeds it is a broken file.
_MOST_CHANNELS = 1024

# What is subtracted from values in 0..1, or divided by, is never so large.
_MOST_SHIFT = 1e6


@dataclass(frozen=True)
class NetworkDescription:
    """What a weight file says of its network, checked but not yet compared with its tensors.

    Attributes:
        architecture: key in ``satmap.networks.encoders.ENCODERS``.
        in_channels: bands of the input.
        decoder_kind: key in ``satmap.networks.decoders.DECODERS``.
        decoder_widths: channels at strides 16, 8, 4 and 2.
        maps: names of the outputs.
        categories: names of the heads; empty for a network with one.
    """

    architecture: str
    in_channels: int
    decoder_kind: str
    decoder_widths: tuple[int, ...]
    maps: tuple[str, ...]
    categories: tuple[str, ...]


def save_weights(path: Path, network: UNet, metadata: Mapping[str, str]) -> None:
    """Write the network's weights, atomically; the same network makes the same bytes.

    Args:
        path: the ``.safetensors`` file.
        network: bare, not wrapped by ``DistributedDataParallel`` or ``torch.compile``.
        metadata: what else to remember: recipe, bands, stretch, epoch, scores.

    Raises:
        SatmapError: the file cannot be written.
        ValueError: ``metadata`` has a key that describes the network.
    """
    taken = set(metadata) & {*NETWORK_KEYS, CATEGORIES_KEY, *_APPLIED_KEYS}
    if taken:
        raise ValueError(f"{sorted(taken)} describe the network and are written by save_weights")
    decoder = {"kind": network.decoder_kind, "widths": network.decoder_widths}
    described = {
        **metadata,
        "architecture": network.encoder.name,
        "in_channels": str(network.encoder.in_channels),
        # Widths alone are a plain decoder, as in the files from before there were others.
        "decoder": json.dumps(decoder if decoder["kind"] != "plain" else decoder["widths"]),
        "planes": json.dumps(network.map_names),
        "normalization": json.dumps({"mean": network.encoder.mean, "std": network.encoder.std}),
    }
    if network.categories:
        described[CATEGORIES_KEY] = json.dumps(network.categories)
    write_tensors(path, network.state_dict(), described)


def load_weights(path: Path) -> tuple[UNet, dict[str, str]]:
    """Build the network that the file describes and give it the file's weights.

    Returns:
        The network on the CPU, float32, in evaluation mode, normalising its input as the file
        says; the file's metadata, as ``read_weights_metadata`` gives it.

    Raises:
        SatmapError: there is no such file, it is not a whole weight file, it was changed after it
            was written, its tensors are not those of the network it describes, or they are not
            finite floating-point numbers.
    """
    metadata = read_weights_metadata(path)
    told = describe_network(path, metadata)
    # Initialising a network only to overwrite it takes longer than all the rest.
    with torch.device("meta"):
        network = build_network(
            told.architecture,
            told.in_channels,
            told.maps,
            told.decoder_widths,
            told.decoder_kind,
            told.categories,
        )
    tensors = read_tensors(path)
    fault = mismatch(network.state_dict(), tensors)
    if fault:
        raise SatmapError(
            f"{path} is not the {told.architecture} network of {told.in_channels} channels and "
            f"{len(told.maps)} planes that it claims to be: {fault}. Copy or train it again."
        )
    require_weights(path, tensors)
    network.to_empty(device="cpu")
    network.load_state_dict(tensors)
    normalization = read_metadata(path).get("normalization")
    if normalization is not None:
        mean, std = _parse_normalization(path, normalization, told.in_channels)
        network.encoder.mean, network.encoder.std = mean, std
    return network.eval(), metadata


def read_weights_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weight file, without reading its tensors.

    Left out is what ``load_weights`` applies by itself: the input's normalisation, the checksum.

    Raises:
        SatmapError: there is no such file, or it is not a whole weight file of satmap's.
    """
    require_weight_file(path, "Train one, or give the folder that holds the trained weights.")
    metadata = read_metadata(path)
    if metadata.get(CONTENT_KEY) == "encoder":
        raise SatmapError(
            f"{path} holds an encoder's ImageNet weights and no network. Move it to imagenet/ in "
            "the directory of weights, where trainings look for it."
        )
    missing = [key for key in NETWORK_KEYS if key not in metadata]
    if missing:
        raise SatmapError(
            f"{path} is a safetensors file without satmap's metadata ({', '.join(missing)}); "
            "only files that satmap wrote say what network they belong to. Move it elsewhere."
        )
    return {key: value for key, value in metadata.items() if key not in _APPLIED_KEYS}


def load_pretrained_encoder(network: UNet, path: Path) -> None:
    """Give the encoder ImageNet weights under timm's names.

    The classifier is dropped, and the first convolution fitted to the network's channels.

    Args:
        network: its encoder is changed in place.
        path: what ``satmap weights fetch`` or ``import`` wrote, timm's ``model.safetensors``, or
            a ``.pth`` with nothing but the state dict.

    Raises:
        SatmapError: there is no such file, it cannot be read, or is for another architecture.
    """
    encoder = network.encoder
    remedy = how_to_get(encoder.name)
    require_weight_file(path, f"It should hold ImageNet weights of {encoder.name}. {remedy}")
    found = (
        read_tensors(path, remedy)
        if path.suffix == ".safetensors"
        else require_state_dict(path, read_pickle(path))
    )
    require_weights(path, found)
    found = encoder_part(encoder, found)
    first = f"{pretrained_config(encoder.name).first_conv}.weight"
    if first in found and found[first].shape[1:2] == (3,) and encoder.in_channels != 3:
        found[first] = adapt_first_conv(found[first], encoder.in_channels)
    names = encoder.timm_names()
    fault = mismatch({names[ours]: value for ours, value in encoder.state_dict().items()}, found)
    if fault:
        raise SatmapError(
            f"{path} does not hold ImageNet weights of {encoder.name}: {fault}. {remedy}"
        )
    encoder.load_state_dict({ours: found[theirs] for ours, theirs in names.items()})


def describe_network(path: Path, metadata: Mapping[str, str]) -> NetworkDescription:
    """What the metadata of ``path`` say of its network.

    Raises:
        SatmapError: they are broken, or name what this version of satmap does not have.
    """
    architecture = metadata["architecture"]
    if architecture not in ENCODERS:
        raise SatmapError(
            f"{path} is for the architecture {architecture!r:.60}, which this version of satmap "
            f"does not have; it has {', '.join(sorted(ENCODERS))}."
        )
    try:
        in_channels = int(metadata["in_channels"])
    except ValueError as error:
        raise SatmapError(
            f"{path} has broken metadata: {printable(error, 100)}. Copy or train it again."
        ) from error
    decoder = _parse_json(path, "decoder", metadata["decoder"])
    if not 1 <= in_channels <= _MOST_CHANNELS:
        raise SatmapError(f"{path} has broken metadata: {in_channels} input channels.")
    kind, widths = "plain", decoder
    if isinstance(decoder, dict) and decoder.keys() == {"kind", "widths"}:
        kind, widths = decoder["kind"], decoder["widths"]
    if (
        not isinstance(widths, list)
        or [type(width) for width in widths] != [int] * 4
        or (not all(1 <= width <= _MOST_CHANNELS for width in widths))
    ):
        raise SatmapError(
            f"{path} has broken metadata: decoder must be four widths, not "
            f"{printable(metadata['decoder'], 80)}."
        )
    if kind not in tuple(DECODERS):
        raise SatmapError(
            f"{path} is for the decoder {kind!r:.60}, which this version of satmap does not have; "
            f"it has {', '.join(DECODERS)}."
        )
    maps = _parse_names(path, "planes", metadata["planes"])
    if not maps:
        raise SatmapError(f"{path} has broken metadata: planes must be a list of different names.")
    categories = _parse_names(path, CATEGORIES_KEY, metadata.get(CATEGORIES_KEY, "[]"))
    if len(categories) == 1:
        raise SatmapError(f"{path} has broken metadata: one category is none.")
    return NetworkDescription(architecture, in_channels, kind, tuple(widths), maps, categories)


def _parse_json(path: Path, key: str, text: str) -> Any:
    try:
        return json.loads(text)
    # Brackets within brackets, thousands deep, are too much for Python's parser.
    except (ValueError, RecursionError) as error:
        raise SatmapError(
            f"{path} has broken metadata: {key} is {printable(text, 60)}, not JSON. Copy or train "
            "it again."
        ) from error


def _parse_names(path: Path, key: str, text: str) -> tuple[str, ...]:
    """Different names, written as a list in JSON."""
    names = _parse_json(path, key, text)
    named = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not named or len(set(names)) != len(names):
        raise SatmapError(
            f"{path} has broken metadata: {key} must be a list of different names, not "
            f"{printable(text, 200)}."
        )
    return tuple(names)


def _parse_normalization(
    path: Path, text: str, in_channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of every channel, checked."""
    content = _parse_json(path, "normalization", text)
    given = [content.get(key) for key in ("mean", "std")] if isinstance(content, dict) else []
    lists = [part for part in given if isinstance(part, list)]
    if (
        [len(part) for part in lists] != [in_channels] * 2
        # Neither texts nor truth values, which Python would count as numbers; NaN is in no range.
        or not all(type(v) in (int, float) and abs(v) < _MOST_SHIFT for part in lists for v in part)
        or not all(value > 0 for value in lists[1])
    ):
        raise SatmapError(
            f"{path} has broken metadata: normalization must be a mean and a std above 0 for each "
            f"of {in_channels} channels, not {printable(text, 80)}. Copy or train it again."
        )
    mean, std = (tuple(float(value) for value in part) for part in lists)
    return mean, std
