"""Weight files: safetensors that say what network they belong to.

A file can be loaded without any other knowledge, and without running code from it: safetensors
holds bytes and text only. Pickles are read in one place, ImageNet weights that a user names, and
with torch's restricted unpickler.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from satmap.errors import SatmapError
from satmap.files import atomic_path
from satmap.models.decoders import DECODERS
from satmap.models.encoders import (
    ENCODERS,
    adapt_first_conv,
    pretrained_config,
    unused_modules,
)
from satmap.models.unet import UNet, build_network

#: Metadata that ``save_weights`` writes itself, and without which nothing loads.
NETWORK_KEYS = ("architecture", "in_channels", "decoder", "planes")

#: Metadata that ``save_weights`` adds where a network has one head for each of several categories.
CATEGORIES_KEY = "categories"

#: More bands than any sensor has; what exceeds it is a broken file.
_MOST_CHANNELS = 1024


def save_weights(path: Path, network: UNet, metadata: Mapping[str, str]) -> None:
    """Write the network's weights, atomically.

    Args:
        path: the ``.safetensors`` file.
        network: bare, not wrapped by ``DistributedDataParallel`` or ``torch.compile``.
        metadata: what else to remember: recipe, bands, stretch, mean and std, epoch, scores.

    Raises:
        SatmapError: the file cannot be written.
        ValueError: ``metadata`` has one of ``NETWORK_KEYS`` or ``CATEGORIES_KEY``.
    """
    taken = set(metadata) & {*NETWORK_KEYS, CATEGORIES_KEY}
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
    }
    if network.categories:
        described[CATEGORIES_KEY] = json.dumps(network.categories)
    # safetensors refuses other strides, such as those of channels-last networks.
    tensors = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, described))


def load_weights(path: Path) -> tuple[UNet, dict[str, str]]:
    """Build the network that the file describes and give it the file's weights.

    Returns:
        The network on the CPU, float32, in evaluation mode; the file's whole metadata.

    Raises:
        SatmapError: there is no such file, it is not a whole weight file, or its tensors are not
            those of the network it describes.
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
    tensors = _read_safetensors(path)
    fault = _mismatch(network.state_dict(), tensors)
    if fault:
        raise SatmapError(
            f"{path} is not the {architecture} network of {in_channels} channels and "
            f"{len(planes)} planes that it claims to be: {fault}. Copy or train it again."
        )
    network.to_empty(device="cpu")
    network.load_state_dict(tensors)
    return network.eval(), metadata


def read_weights_metadata(path: Path) -> dict[str, str]:
    """The metadata of a weight file, without reading its tensors.

    Raises:
        SatmapError: there is no such file, or it is not a whole weight file of satmap's.
    """
    _require_file(path, "Train one, or give the folder that holds the trained weights.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    missing = [key for key in NETWORK_KEYS if key not in metadata]
    if missing:
        raise SatmapError(
            f"{path} is a safetensors file without satmap's metadata ({', '.join(missing)}); "
            "only files that satmap wrote say what network they belong to. Move it elsewhere."
        )
    return metadata


def load_pretrained_encoder(network: UNet, path: Path) -> None:
    """Give the encoder ImageNet weights, as timm publishes them.

    The classifier is dropped, and the first convolution fitted to the network's channels.

    Args:
        network: its encoder is changed in place.
        path: timm's ``model.safetensors``, or a ``.pth`` with nothing but the state dict.

    Raises:
        SatmapError: there is no such file, it cannot be read, or is for another architecture.
    """
    encoder = network.encoder
    config = pretrained_config(encoder.name)
    _require_file(
        path,
        f"It should hold ImageNet weights of {encoder.name}: model.safetensors of "
        f"https://huggingface.co/{config.hf_hub_id}. To train without, use --from-scratch.",
    )
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    names = encoder.timm_names()
    expected = {names[ours]: value for ours, value in encoder.state_dict().items()}
    unused = tuple(f"{module}." for module in unused_modules(encoder.name))
    found = {name: value for name, value in found.items() if not name.startswith(unused)}
    # Files from before torch 0.4.1 have no counters, and pretrained statistics need none.
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, value)
    first = f"{config.first_conv}.weight"
    if first in found and found[first].shape[1:2] == (3,) and encoder.in_channels != 3:
        found[first] = adapt_first_conv(found[first], encoder.in_channels)
    fault = _mismatch(expected, found)
    if fault:
        raise SatmapError(
            f"{path} does not hold ImageNet weights of {encoder.name}: {fault}. Expected is "
            f"model.safetensors of https://huggingface.co/{config.hf_hub_id}."
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


def _require_file(path: Path, remedy: str) -> None:
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise SatmapError(f"no weight file {path}. {remedy}") from error
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror}. {remedy}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return tensors


def _unreadable(path: Path, error: Exception) -> SatmapError:
    """What to say of a file that safetensors could not open."""
    with path.open("rb") as file:
        start = file.read(9)
    # A zip archive is torch's format since 1.6, a bare pickle the one before. The length of a
    # safetensors header may begin with a pickle's first byte, but the header itself follows it.
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{":
        return SatmapError(
            f"{path} is a PyTorch pickle, not a safetensors file, whatever its name; "
            "satmap does not unpickle weights of networks."
        )
    return SatmapError(
        f"{path} is not a whole safetensors file ({error}). Copy it again, or train it again."
    )


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    # Broken bytes end in whatever error the unpickler happens to meet.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SatmapError(
            f"cannot read {path} as a PyTorch state dict ({reason}). Download it again."
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(value, Tensor) for value in found.values()
    ):
        raise SatmapError(f"{path} holds more than a state dict (names and tensors only).")
    return found


def _mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """How the names and shapes of ``found`` differ from ``expected``; empty where they agree."""
    faults = []
    for what, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has the unknown", sorted(found.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            faults.append(f"it {what} {names[0]}{more}")
    for name, value in expected.items():
        if name in found and found[name].shape != value.shape:
            shapes = f"{list(found[name].shape)} instead of {list(value.shape)}"
            faults.append(f"{name} has the shape {shapes}")
            break
    return ", ".join(faults)
