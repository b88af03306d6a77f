"""Import published weight files: networks of the reference solution and ImageNet encoders.

Files are recognised by their content, not by their names: published networks have tensors of
encoder stages, bottlenecks and a final layer; encoders are compared with each known encoder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from satmap.errors import SatmapError
from satmap.io.checksums import record_file
from satmap.io.files import require_writable
from satmap.io.text import printable
from satmap.networks.encoders import ENCODERS
from satmap.networks.layers import without_values
from satmap.networks.timm_import import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from satmap.networks.unet import DECODER_WIDTHS, UNet, build_network
from satmap.recipes.schema import LAST, Recipe, member_name
from satmap.weights.header import (
    CHECKPOINT_KEY,
    CHECKSUM,
    read_metadata,
    require_weight_file,
    starts_like_safetensors,
)
from satmap.weights.network_files import save_weights
from satmap.weights.pickles import read_pickle, require_state_dict
from satmap.weights.pretrained import (
    PretrainedEncoder,
    encoder_file,
    recognise_encoder,
    save_encoder,
)
from satmap.weights.tensor_file import mismatch, read_tensors, require_weights

#: Mean and standard deviation of every channel, by the encoder and the number of bands of the
#: published networks. They may differ from those of the ImageNet weights, as for DPN92.
REFERENCE_NORMALIZATION: Mapping[tuple[str, int], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("dpn92", 3): (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ("dpn92", 8): ((0.5,) * 8, (0.5,) * 8),
    ("inception_resnet_v2", 3): ((0.5,) * 3, (0.5,) * 3),
    ("inception_resnet_v2", 8): ((0.5,) * 8, (0.5,) * 8),
}

#: Probability maps of the published networks, in the order of their channels.
REFERENCE_MAPS = (*(f"speed{index}" for index in range(10)), "road", "junction")

#: 1-based PS-MS bands in the order of the channels, by the number of bands.
REFERENCE_BANDS: Mapping[int, tuple[int, ...]] = {3: (5, 3, 2), 8: (5, 3, 2, 1, 4, 6, 7, 8)}

#: Percentiles of every band that the reference maps to 0 and 255.
REFERENCE_STRETCH = (2.0, 98.0)

# Prefix that DataParallel adds to every name; nested wrappers add it twice.
_WRAPPER = re.compile(r"^(module\.)+")

# Keys under which training scripts store the state dict.
_ENVELOPES = ("state_dict", "model")

# Prefix of names in the reference's networks that no encoder has.
_NETWORK = "encoder_stages."

_SCORES = ("dice_best", "apls_best")

# As in spacenet_dpn_unet_dpn92_3_best_apls.
_FOLD_AND_CHECKPOINT = re.compile(r"_(\d+)_(best_apls|best_dice|last)(?:\.\w+)*$")

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class PublishedNetwork:
    """Network that the reference's author trained.

    Attributes:
        network: the network on the CPU, in evaluation mode, with the normalisation of its training.
        metadata: ``bands`` and ``stretch`` of its training, and ``epoch`` and ``scores`` if the
            file has them.
        member: name as a recipe's member; None if the file name does not give the held-out fold.
        checkpoint: ``best_apls``, ``best_dice`` or ``last``; None if the file name lacks it.
    """

    network: UNet
    metadata: dict[str, str]
    member: str | None
    checkpoint: str | None


def import_weights(source: Path, out: Path, recipe: Recipe) -> Path:
    """Convert a published weight file to satmap's format; no code in the file is executed.

    Args:
        source: published file; see ``read_published``.
        out: a directory of weights, or the ``.safetensors`` file to write. In a directory, encoders
            go to ``imagenet/``, and networks are named like members of a recipe, with the fold and
            checkpoint of the source's original name (``..._dpn92_3_best_apls``). The file of a
            network may have any name; that of an encoder must be where trainings look for it.
        recipe: recipe for prediction with the network; it need not have a member of that kind.

    Returns:
        The file written. Its name gives the checkpoint that a network counts as
        (``x.best_apls.safetensors``), otherwise the source's name does, otherwise it is the last.

    Raises:
        SatmapError: the source is not a published weight file, the recipe stretches images
            differently from the network's training, or the file to write has no usable name,
            exists, or cannot be written.
    """
    imported = read_published(source)
    if isinstance(imported, PretrainedEncoder):
        path = _encoder_path(source, out, imported.name)
    else:
        low, high = REFERENCE_STRETCH
        if (recipe.stretch.low, recipe.stretch.high) != (low, high):
            raise SatmapError(
                f"{source} was trained on images stretched between percentiles {low} and {high}, "
                f"but recipe {recipe.name} stretches between {recipe.stretch.low} and "
                f"{recipe.stretch.high}. Pass another --recipe."
            )
        path = _network_path(source, out, imported)
    require_writable(path)
    # The existing file may be a network that took days to train.
    if path.exists():
        raise SatmapError(f"{path} already exists. Remove it, or write to another directory.")
    metadata = {"source": source.name, "source_sha256": record_file(source).sha256}
    if isinstance(imported, PretrainedEncoder):
        save_encoder(path, imported, metadata)
        return path
    metadata |= {
        **imported.metadata,
        "recipe": recipe.model_dump_json(),
        # If the fold is unknown, use the file name as the member's name.
        "member": imported.member or path.stem.partition(".")[0],
        CHECKPOINT_KEY: imported.checkpoint or LAST,
    }
    save_weights(path, imported.network, metadata)
    return path


def _encoder_path(source: Path, out: Path, name: str) -> Path:
    if out.suffix != _SUFFIX:
        return encoder_file(out, name)
    if out.stem in ENCODERS and out.stem != name:
        raise SatmapError(
            f"{out} is the place of weights of {out.stem}, but {source} holds weights of {name}. "
            f"Name the file {name}{_SUFFIX}, or give the directory of weights."
        )
    imagenet = out.parent.name == encoder_file(Path(), name).parent.name
    place = encoder_file(out.parent.parent if imagenet else out.parent, name)
    if out != place:
        # Predictions fail if an encoder's file lies among the networks.
        raise SatmapError(
            f"{source} holds ImageNet weights of {name}, which trainings look for in {place}. "
            "Give that file, or the directory of weights."
        )
    return out


def _network_path(source: Path, out: Path, imported: PublishedNetwork) -> Path:
    if out.suffix == _SUFFIX:
        return out
    if imported.member is None:
        encoder = imported.network.encoder
        example = out / f"{encoder.name}-{encoder.in_channels}band.last{_SUFFIX}"
        raise SatmapError(
            f"{source}: the file name gives no fold and checkpoint, as in ..._3_best_apls. Give "
            f"the file to write, such as {example}."
        )
    return out / f"{imported.member}.{imported.checkpoint}{_SUFFIX}"


def read_published(path: Path) -> PublishedNetwork | PretrainedEncoder:
    """Read a published weight file by ``torch.save`` or safetensors; no code in it is executed.

    It holds one of selim_sef's SpaceNet 5 networks, or ImageNet weights from pretrainedmodels,
    torchvision (ResNets, DenseNets) or timm. The state dict may be nested under the keys
    ``state_dict`` or ``model``.

    Raises:
        SatmapError: the file does not exist, cannot be read safely, holds neither kind of weights,
            is satmap's own, or its tensors cannot be weights (``require_weights``).
    """
    require_weight_file(path, "Give the name of a published weight file.")
    if starts_like_safetensors(path):
        metadata = read_metadata(path)
        if "architecture" in metadata and CHECKSUM in metadata:
            raise SatmapError(
                f"{path} already is a file of satmap and needs no import: copy it to the directory "
                "of weights (an encoder's file to imagenet/ there)."
            )
        content: dict[str, Any] = dict(read_tensors(path))
    else:
        content = read_pickle(path)
    content, inner = _open_envelopes(content)
    tensors = _unwrap(path, require_state_dict(path, inner))
    require_weights(path, tensors)
    if any(name.startswith(_NETWORK) for name in tensors):
        network = _reference_network(path, tensors)
        encoder, member, checkpoint = network.encoder, None, None
        if named := _FOLD_AND_CHECKPOINT.search(path.name):
            member = member_name(int(named[1]), encoder.name, encoder.in_channels)
            checkpoint = named[2]
        return PublishedNetwork(network, _describe(network, content), member, checkpoint)
    return recognise_encoder(path, tensors)


def _open_envelopes(content: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return the entries beside the tensors (epoch, scores) from all levels, and the tensors."""
    beside, inner = dict(content), content
    while key := next((key for key in _ENVELOPES if isinstance(inner.get(key), dict)), None):
        beside = {**inner, **beside}
        inner = inner[key]
    # The value may not be a dictionary; the caller checks it.
    return beside, inner.get(_ENVELOPES[0], inner)


def _unwrap(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from the tensors' names."""
    bare: dict[str, Tensor] = {}
    for wrapped, value in tensors.items():
        name = _WRAPPER.sub("", wrapped)
        if name in bare:
            raise SatmapError(
                f"{path} has two tensors for {printable(name, 120)}, with and without module. "
                "before the name. Save the file with only one of them."
            )
        bare[name] = value
    return bare


def _reference_network(path: Path, tensors: Mapping[str, Tensor]) -> UNet:
    """Build the published network whose tensors, by the reference's names, are given."""
    faults: list[tuple[int, str]] = []
    for (encoder, bands), normalization in REFERENCE_NORMALIZATION.items():
        with without_values():
            network = build_network(encoder, bands, REFERENCE_MAPS)
        names = reference_names(network)
        expected = {names[ours]: value for ours, value in network.state_dict().items()}
        # Files from before torch 0.4.1 have no batch counters.
        found = {
            name: torch.tensor(0) for name in expected if name.endswith(".num_batches_tracked")
        } | dict(tensors)
        fault = mismatch(expected, found)
        if not fault:
            network.to_empty(device="cpu")
            network.load_state_dict({ours: found[theirs] for ours, theirs in names.items()})
            network.encoder.mean, network.encoder.std = normalization
            return network.eval()
        wrong = sum(
            name not in expected or name not in found or expected[name].shape != found[name].shape
            for name in expected.keys() | found.keys()
        )
        faults.append((wrong, f"{encoder} on {bands} bands, but {fault}"))
    known = ", ".join(f"{encoder} on {bands} bands" for encoder, bands in REFERENCE_NORMALIZATION)
    raise SatmapError(
        f"{path} looks like a network of SpaceNet 5's third place, but matches none of the known "
        f"ones: {known}. The closest is {min(faults)[1]}."
    )


def _describe(network: UNet, content: Mapping[str, Any]) -> dict[str, str]:
    low, high = REFERENCE_STRETCH
    described = {
        "bands": json.dumps(REFERENCE_BANDS[network.in_channels]),
        "stretch": json.dumps({"low": low, "high": high}),
    }
    if isinstance(content.get("epoch"), int):
        described["epoch"] = str(content["epoch"])
    scores = {name: content[name] for name in _SCORES if isinstance(content.get(name), int | float)}
    if scores:
        described["scores"] = json.dumps(scores)
    return described


def reference_names(network: UNet) -> dict[str, str]:
    """Map the names in a network's state dict to the reference's names of the same tensors."""
    modules = {"head": "final.0"}
    for index in range(len(DECODER_WIDTHS)):
        from_shallowest = len(DECODER_WIDTHS) - 1 - index
        modules[f"decoder.{index}.skip_conv"] = f"bottlenecks.{index}.seq.0"
        modules[f"decoder.{index}.up_conv"] = f"decoder_stages.{from_shallowest}.layer.1"
    for stage, children in enumerate(network.encoder.stages):
        for index, (child, _) in enumerate(children.named_children()):
            modules[f"encoder.stages.{stage}.{child}"] = f"encoder_stages.{stage}.{index}"
    names = {}
    for ours in network.state_dict():
        # timm's fused norm and activation are two modules in satmap (see NormAct).
        name = ours.replace(".bn.norm.", ".bn.")
        module = next(module for module in modules if name.startswith(f"{module}."))
        names[ours] = modules[module] + name.removeprefix(module)
    return names
