"""Read and write weight files: safetensors files that describe their network.

A file can be loaded without further information and without running code from it, because
safetensors holds only bytes and text.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from satmap.errors import SatmapError
from satmap.networks.encoders import Encoder, adapt_first_conv, pretrained_config
from satmap.networks.layers import without_values
from satmap.networks.unet import UNet, build_network
from satmap.recipes.schema import Recipe
from satmap.weights.header import (
    CHECKSUM,
    FORMAT_KEY,
    HEADER_KEYS,
    DecoderHeader,
    NetworkHeader,
    Normalization,
    parse_header,
    read_metadata,
    read_weights_metadata,
    require_weight_file,
)
from satmap.weights.members import WeightFile
from satmap.weights.pickles import read_pickle, require_state_dict
from satmap.weights.pretrained import encoder_part, how_to_get
from satmap.weights.tensor_file import mismatch, read_tensors, require_weights, write_tensors


def save_weights(
    path: Path, network: UNet, metadata: Mapping[str, str], half: bool = False
) -> None:
    """Write the network's weights, atomically; the same network gives the same bytes.

    Args:
        path: the ``.safetensors`` file.
        network: not wrapped by ``DistributedDataParallel`` or ``torch.compile``.
        metadata: further metadata: recipe, bands, stretch, epoch, scores.
        half: store the filters in half precision. Biases and statistics stay in single precision,
            because small variances would lose most of their digits.

    Raises:
        SatmapError: the file cannot be written.
        ValueError: ``metadata`` has a key that describes the network.
    """
    taken = set(metadata) & {*HEADER_KEYS, CHECKSUM, FORMAT_KEY}
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
    tensors = network.state_dict()
    if half:
        tensors = {name: v.half() if v.dim() > 1 else v for name, v in tensors.items()}
    write_tensors(path, tensors, {**metadata, **header.as_metadata()})


def load_weights(path: Path) -> tuple[UNet, dict[str, str]]:
    """Build the network that the file describes and give it the file's weights.

    Returns:
        The network on the CPU, in float32 and evaluation mode, with the file's input
        normalisation; and the file's metadata, as from ``read_weights_metadata``.

    Raises:
        SatmapError: the file is missing, incomplete, changed after it was written, or its tensors
            do not match the network that it describes or are not finite floating-point numbers.
    """
    metadata = read_weights_metadata(path)
    header = parse_header(path, read_metadata(path))
    # Skip the initialisation, which takes longer than all other steps and would be overwritten.
    with without_values():
        network = build_network(
            header.architecture,
            header.in_channels,
            header.maps,
            header.decoder.widths,
            header.decoder.kind,
            header.categories,
        )
    tensors = read_tensors(path)
    fault = mismatch(network.state_dict(), tensors)
    if fault:
        raise SatmapError(
            f"{path} is not the {header.architecture} network of {header.in_channels} channels and "
            f"{len(header.maps)} maps that it claims to be: {fault}. Copy or train it again."
        )
    require_weights(path, tensors)
    # `Module.to_empty` would import torch's compiler.
    kinds = {name: value.dtype for name, value in network.state_dict().items()}
    tensors = {name: value.to(kinds[name], copy=True) for name, value in tensors.items()}
    network.load_state_dict(tensors, assign=True)
    if header.normalization:
        network.encoder.mean = header.normalization.mean
        network.encoder.std = header.normalization.std
    return network.eval(), metadata


def shrink_weights(output: Path, file: Path) -> None:
    """Write a network of a weight file in half precision, with the same metadata.

    The result takes half the space. Its probability maps differ from the original's by less than
    a step of uint8 almost everywhere.

    Raises:
        SatmapError: the file cannot be read, or the result cannot be written.
    """
    network, metadata = load_weights(file)
    others = {key: value for key, value in metadata.items() if key not in HEADER_KEYS}
    save_weights(output, network, others, half=True)


def set_recipe(output: Path, file: Path, recipe: Recipe) -> None:
    """Write a network with another recipe, which differs only in settings of the prediction.

    These are those of ``inference`` and of the vectoriser, for example fitted ones.

    Raises:
        SatmapError: the file cannot be read, the recipe trains other networks than the file's, or
            the result cannot be written.
    """
    metadata = read_metadata(file)
    known = WeightFile(file, metadata).recipe
    if known.training_fingerprint != recipe.training_fingerprint:
        raise SatmapError(
            f"recipe {recipe.name} trains other networks than that of {file}, {known.name}. Change "
            "only settings of the prediction, in a copy that `satmap weights get-recipe` writes."
        )
    kept = {key: value for key, value in metadata.items() if key not in (CHECKSUM, FORMAT_KEY)}
    write_tensors(output, read_tensors(file), kept | {"recipe": recipe.model_dump_json()})


def load_pretrained_encoder(encoder: Encoder, path: Path) -> None:
    """Load ImageNet weights with timm's names into an encoder.

    The classifier is dropped, and the first convolution is adapted to the encoder's channels. The
    file comes from ``satmap weights fetch`` or ``import``, is timm's ``model.safetensors``, or a
    ``.pth`` that holds only the state dict.

    Raises:
        SatmapError: the file does not exist, cannot be read, or is for another architecture.
    """
    remedy = how_to_get(encoder.name)
    require_weight_file(path, f"It should hold ImageNet weights of {encoder.name}. {remedy}")
    if path.suffix == ".safetensors":
        found = read_tensors(path, remedy)
    else:
        try:
            found = require_state_dict(path, read_pickle(path))
        except SatmapError as error:
            raise SatmapError(f"{error} {remedy}") from error
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


def load_trained_network(network: UNet, path: Path) -> list[str]:
    """Load the weights of a trained network into another one, to train it further.

    Encoder, decoder and input normalisation are loaded, and the head's channels of the maps, and of
    the categories if there are any, that both networks have.

    Returns:
        The maps of ``network`` that stay untrained, with their categories.

    Raises:
        SatmapError: the file cannot be loaded, or encoder or decoder differ.
    """
    other, _ = load_weights(path)
    for name in ("encoder", "decoder"):
        ours, theirs = network.get_submodule(name), other.get_submodule(name)
        if fault := mismatch(ours.state_dict(), theirs.state_dict()):
            raise SatmapError(
                f"{path} cannot be the start of this training, because its {name} differs: {fault}."
            )
        ours.load_state_dict(theirs.state_dict())
    network.encoder.mean, network.encoder.std = other.encoder.mean, other.encoder.std
    known = {head: channel for channel, head in enumerate(_heads(other))}
    untrained = []
    with torch.no_grad():
        for channel, head in enumerate(_heads(network)):
            if head not in known:
                untrained.append(" ".join(filter(None, head)))
                continue
            for name, parameter in network.head.named_parameters():
                parameter[channel] = other.head.get_parameter(name)[known[head]]
    return untrained


def _heads(network: UNet) -> list[tuple[str, str]]:
    """Return map and category of every channel of the head."""
    return [(name, kind) for kind in network.categories or ("",) for name in network.map_names]
