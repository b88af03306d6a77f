"""Weight files: safetensors that say what network they belong to.

A file can be loaded without any other knowledge, and without running code from it: safetensors
holds bytes and text only. Pickles are read in one place, files of other people's, and with torch's
restricted unpickler (``satmap.weights.pickles``).
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from satmap.errors import SatmapError
from satmap.networks.encoders import adapt_first_conv, pretrained_config
from satmap.networks.unet import UNet, build_network
from satmap.weights.header import (
    CHECKSUM,
    HEADER_KEYS,
    DecoderHeader,
    NetworkHeader,
    Normalization,
    parse_header,
    read_metadata,
    read_weights_metadata,
    require_weight_file,
)
from satmap.weights.pickles import read_pickle, require_state_dict
from satmap.weights.pretrained import encoder_part, how_to_get
from satmap.weights.tensor_file import mismatch, read_tensors, require_weights, write_tensors


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
    taken = set(metadata) & {*HEADER_KEYS, CHECKSUM}
    if taken:
        raise ValueError(f"{sorted(taken)} describe the network and are written by save_weights")
    encoder = network.encoder
    header = NetworkHeader.model_construct(
        architecture=encoder.name,
        in_channels=encoder.in_channels,
        decoder=DecoderHeader.model_validate(
            {"kind": network.decoder_kind, "widths": tuple(network.decoder_widths)}
        ),
        maps=tuple(network.map_names),
        categories=tuple(network.categories),
        normalization=Normalization.model_construct(mean=encoder.mean, std=encoder.std),
    )
    write_tensors(path, network.state_dict(), {**metadata, **header.as_metadata()})


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
    told = parse_header(path, read_metadata(path))
    # Initialising a network only to overwrite it takes longer than all the rest.
    with torch.device("meta"):
        network = build_network(
            told.architecture,
            told.in_channels,
            told.maps,
            told.decoder.widths,
            told.decoder.kind,
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
    if told.normalization:
        network.encoder.mean = told.normalization.mean
        network.encoder.std = told.normalization.std
    return network.eval(), metadata


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
