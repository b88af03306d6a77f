"""Weight files: safetensors that say what network they belong to.

A file can be loaded without any other knowledge, and without running code from it: safetensors
holds bytes and text only. Pickles are read in one place, files of other people's, and with torch's
restricted unpickler (``satmap.models.pickles``).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from satmap.errors import SatmapError
from satmap.models.decoders import DECODERS
from satmap.models.encoders import ENCODERS, adapt_first_conv, pretrained_config
from satmap.models.pickles import read_pickle, require_state_dict
from satmap.models.pretrained import encoder_part, how_to_get
from satmap.models.tensor_file import (
    CHECKSUM,
    mismatch,
    read_metadata,
    read_tensors,
    require_file,
    write_tensors,
)
from satmap.models.unet import UNet, build_network

#: Metadata that ``save_weights`` writes itself, and without which nothing loads.
NETWORK_KEYS = ("architecture", "in_channels", "decoder", "planes")

#: Metadata that ``save_weights`` adds where a network has one head for each of several categories.
CATEGORIES_KEY = "categories"

#: Metadata that is in force once a file is loaded: what inputs are normalised with, if not as the
#: encoder's own weights want it (files of before had none), and the checksum.
_APPLIED_KEYS = ("normalization", CHECKSUM)

#: More bands than any sensor has; what exceeds it is a broken file.
_MOST_CHANNELS = 1024


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
        "planes": json.dumps(network.plane_names),
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
            was written, or its tensors are not those of the network it describes.
    """
    metadata = read_weights_metadata(path)
    architecture, in_channels, decoder, planes = _parse_network_keys(path, metadata)
    kind, widths = decoder
    categories = _parse_names(path, CATEGORIES_KEY, metadata.get(CATEGORIES_KEY, "[]"))
    if len(categories) == 1:
        raise SatmapError(f"{path} has broken metadata: one category is none.")
    # Initialising a network only to overwrite it takes longer than all the rest.
    with torch.device("meta"):
        network = build_network(architecture, in_channels, planes, widths, kind, categories)
    tensors = read_tensors(path)
    fault = mismatch(network.state_dict(), tensors)
    if fault:
        raise SatmapError(
            f"{path} is not the {architecture} network of {in_channels} channels and "
            f"{len(planes)} planes that it claims to be: {fault}. Copy or train it again."
        )
    network.to_empty(device="cpu")
    network.load_state_dict(tensors)
    normalization = read_metadata(path).get("normalization")
    if normalization is not None:
        mean, std = _parse_normalization(path, normalization, in_channels)
        network.encoder.mean, network.encoder.std = mean, std
    return network.eval(), metadata


def read_weights_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weight file, without reading its tensors.

    Left out is what ``load_weights`` applies by itself: the input's normalisation, the checksum.

    Raises:
        SatmapError: there is no such file, or it is not a whole weight file of satmap's.
    """
    require_file(path, "Train one, or give the folder that holds the trained weights.")
    metadata = read_metadata(path)
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
    require_file(path, f"It should hold ImageNet weights of {encoder.name}. {remedy}")
    found = (
        read_tensors(path)
        if path.suffix == ".safetensors"
        else require_state_dict(path, read_pickle(path))
    )
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


def _parse_network_keys(
    path: Path, metadata: Mapping[str, str]
) -> tuple[str, int, tuple[str, list[int]], list[str]]:
    """The values of ``NETWORK_KEYS``, checked."""
    architecture = metadata["architecture"]
    if architecture not in ENCODERS:
        raise SatmapError(
            f"{path} is for the architecture {architecture!r}, which this version of satmap does "
            f"not have; it has {', '.join(sorted(ENCODERS))}."
        )
    try:
        in_channels = int(metadata["in_channels"])
        decoder = json.loads(metadata["decoder"])
    except ValueError as error:
        raise SatmapError(
            f"{path} has broken metadata: {error}. Copy or train it again."
        ) from error
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
            f"{path} has broken metadata: decoder must be four widths, not {decoder!r}."
        )
    if kind not in tuple(DECODERS):
        raise SatmapError(
            f"{path} is for the decoder {kind!r}, which this version of satmap does not have; it "
            f"has {', '.join(DECODERS)}."
        )
    planes = _parse_names(path, "planes", metadata["planes"])
    if not planes:
        raise SatmapError(f"{path} has broken metadata: planes must be a list of different names.")
    return architecture, in_channels, (kind, widths), planes


def _parse_names(path: Path, key: str, text: str) -> list[str]:
    """A list of different names, written as JSON."""
    try:
        names = json.loads(text)
    except ValueError as error:
        raise SatmapError(
            f"{path} has broken metadata: {error}. Copy or train it again."
        ) from error
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not named or len(set(names)) != len(names):
        raise SatmapError(
            f"{path} has broken metadata: {key} must be a list of different names, not {names!r}."
        )
    return list(names)


def _parse_normalization(
    path: Path, text: str, in_channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of every channel, checked."""
    try:
        content = json.loads(text)
        mean, std = (tuple(float(value) for value in content[key]) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError) as error:
        raise SatmapError(
            f"{path} has broken metadata: normalization is {text:.80}. Copy or train it again."
        ) from error
    if not (
        len(mean) == len(std) == in_channels
        and all(math.isfinite(value) for value in (*mean, *std))
        and all(value > 0 for value in std)
    ):
        raise SatmapError(
            f"{path} has broken metadata: normalization must be a mean and a std above 0 for each "
            f"of {in_channels} channels, not {text:.80}. Copy or train it again."
        )
    return mean, std
