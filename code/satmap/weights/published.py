"""Weight files of other people: the reference's published networks, ImageNet encoders.

Files are told by what is in them, not by their names: published networks have stages, bottlenecks
and a final layer (``satmap.weights.published``), encoders are matched with each one known.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from satmap.errors import SatmapError
from satmap.io.text import printable
from satmap.networks.encoders import ENCODERS, child_name
from satmap.networks.unet import DECODER_WIDTHS, UNet, build_network
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights.header import (
    CHECKSUM,
    read_metadata,
    require_weight_file,
    starts_like_safetensors,
)
from satmap.weights.pickles import read_pickle, require_state_dict
from satmap.weights.pretrained import PretrainedEncoder, recognise_encoder
from satmap.weights.tensor_file import mismatch, read_tensors, require_weights

#: Encoder and number of bands of the published networks -> mean and standard deviation of every
#: channel. Not those of the encoders' ImageNet weights: DPN92 was trained with others.
REFERENCE_NORMALIZATION: Mapping[tuple[str, int], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("dpn92", 3): (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ("dpn92", 8): ((0.5,) * 8, (0.5,) * 8),
    ("inception_resnet_v2", 3): ((0.5,) * 3, (0.5,) * 3),
    ("inception_resnet_v2", 8): ((0.5,) * 8, (0.5,) * 8),
}

#: Number of bands -> which of a PS-MS image's, counted from 1, in the order of the channels.
REFERENCE_BANDS: Mapping[int, tuple[int, ...]] = {3: (5, 3, 2), 8: (5, 3, 2, 1, 4, 6, 7, 8)}

#: Percentiles of every band that became 0 and 255.
REFERENCE_STRETCH = (2.0, 98.0)


def reference_to_ours(name: str, encoder: str) -> str:
    """Our name of the tensor that the reference's state dict calls ``name``.

    Args:
        name: such as ``bottlenecks.0.seq.0.weight``.
        encoder: key in ``ENCODERS``.

    Raises:
        SatmapError: the reference has no such name.
    """
    module, _, leaf = _rename(name, _modules(encoder)).rpartition(".")
    # timm's fused norm and activation are two modules here (see NormAct).
    return f"{module}.norm.{leaf}" if module.endswith(".bn") else f"{module}.{leaf}"


def ours_to_reference(name: str, encoder: str) -> str:
    """The reference's name of our tensor ``name``: the way back of ``reference_to_ours``.

    Raises:
        SatmapError: our network has no such name.
    """
    reference = {ours: theirs for theirs, ours in _modules(encoder).items()}
    return _rename(name.replace(".bn.norm.", ".bn."), reference)


def _modules(encoder: str) -> dict[str, str]:
    """Modules of the reference, each with our name of it."""
    names = {"final.0": "head"}
    for index in range(len(DECODER_WIDTHS)):
        names[f"bottlenecks.{index}.seq.0"] = f"decoder.{index}.skip_conv"
        from_shallowest = len(DECODER_WIDTHS) - 1 - index
        names[f"decoder_stages.{from_shallowest}.layer.1"] = f"decoder.{index}.up_conv"
    for stage, paths in enumerate(ENCODERS[encoder].stages):
        for index, path in enumerate(paths):
            names[f"encoder_stages.{stage}.{index}"] = f"encoder.stages.{stage}.{child_name(path)}"
    return names


def _rename(name: str, modules: dict[str, str]) -> str:
    for old, new in modules.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    raise SatmapError(f"no tensor {name!r} in this network; its modules are {', '.join(modules)}.")


# DataParallel puts it before every name, and twice where it wraps itself.
_WRAPPER = "module."

# What trainings put around the tensors.
_ENVELOPES = ("state_dict", "model")

# What a name of the reference's begins with, and no name of an encoder's does.
_NETWORK = "encoder_stages."

_SCORES = ("dice_best", "apls_best")

# As in spacenet_dpn_unet_dpn92_3_best_apls.
_FOLD_AND_CHECKPOINT = re.compile(r"_(\d+)_(best_apls|best_dice|last)(?:\.\w+)*$")


@dataclass(frozen=True)
class PublishedNetwork:
    """A network that the reference's author trained.

    Attributes:
        network: on the CPU, in evaluation mode, with the normalisation it was trained with.
        metadata: ``bands`` and ``stretch`` that it was shown, ``epoch`` and ``scores`` where the
            file has them.
        fold: the fold held out, where the file's name says it.
        checkpoint: ``best_apls``, ``best_dice`` or ``last``, where the file's name says it.
    """

    network: UNet
    metadata: dict[str, str]
    fold: int | None
    checkpoint: str | None


def read_published(path: Path) -> PublishedNetwork | PretrainedEncoder:
    """Read a weight file that somebody else wrote; nothing of it is run.

    Args:
        path: what ``torch.save`` or safetensors wrote: selim_sef's SpaceNet 5 networks, or ImageNet
            weights as pretrainedmodels, torchvision (ResNets, DenseNets) or timm publish them;
            the state dict itself or inside of others' ``state_dict`` or ``model``.

    Raises:
        SatmapError: there is no such file, it cannot be read safely, is neither, is satmap's own,
            or its tensors are no network's (``require_weights``).
    """
    require_weight_file(path, "Give the name of a published weight file.")
    if starts_like_safetensors(path):
        metadata = read_metadata(path)
        if "architecture" in metadata and CHECKSUM in metadata:
            raise SatmapError(
                f"{path} is satmap's own file already and needs no import: put it into the "
                "directory of weights as it is (an encoder's into imagenet/ there)."
            )
        content: dict[str, Any] = dict(read_tensors(path))
    else:
        content = read_pickle(path)
    content, inner = _open_envelopes(content)
    tensors = _unwrap(path, require_state_dict(path, inner))
    require_weights(path, tensors)
    if any(name.startswith(_NETWORK) for name in tensors):
        network = _reference_network(path, tensors)
        named = _FOLD_AND_CHECKPOINT.search(path.name)
        return PublishedNetwork(
            network,
            _describe(network, content),
            int(named[1]) if named else None,
            named[2] if named else None,
        )
    return recognise_encoder(path, tensors)


def _open_envelopes(content: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What lies beside the tensors (epoch, scores), from every envelope, and the tensors."""
    beside, inner = dict(content), content
    while True:
        key = next((key for key in _ENVELOPES if isinstance(inner.get(key), dict)), None)
        if key is None:
            # What stands in the tensors' place may be no dictionary at all.
            return beside, inner.get(_ENVELOPES[0], inner)
        beside = {**inner, **beside}
        inner = inner[key]


def _unwrap(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without what wrappers put before them."""
    bare: dict[str, Tensor] = {}
    for wrapped, value in tensors.items():
        name = wrapped
        while name.startswith(_WRAPPER):
            name = name.removeprefix(_WRAPPER)
        if name in bare:
            raise SatmapError(
                f"{path} has two tensors for {printable(name, 120)}, with and without {_WRAPPER} "
                "before the name, and nothing says which counts. Save it with one of them."
            )
        bare[name] = value
    return bare


def source_metadata(path: Path, source: str) -> dict[str, str]:
    """Where weights are from: ``source``, a name or an address, and the SHA-256 of its bytes."""
    with path.open("rb") as file:
        return {"source": source, "source_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _reference_network(path: Path, tensors: Mapping[str, Tensor]) -> UNet:
    """The published network that the tensors, under the reference's names, are of."""
    faults: list[tuple[int, str]] = []
    for encoder, bands in REFERENCE_NORMALIZATION:
        with torch.device("meta"):
            network = build_network(encoder, bands, ROAD_MAPS)
        expected = {
            ours_to_reference(name, encoder): value for name, value in network.state_dict().items()
        }
        # Files from before torch 0.4.1 have no counters of batches.
        found = {
            name: torch.tensor(0) for name in expected if name.endswith(".num_batches_tracked")
        } | dict(tensors)
        fault = mismatch(expected, found)
        if not fault:
            network.to_empty(device="cpu")
            network.load_state_dict(
                {reference_to_ours(name, encoder): value for name, value in found.items()}
            )
            network.encoder.mean, network.encoder.std = REFERENCE_NORMALIZATION[encoder, bands]
            return network.eval()
        odd = expected.keys() ^ found.keys()
        wrong = [
            name for name in expected.keys() - odd if expected[name].shape != found[name].shape
        ]
        faults.append((len(odd) + len(wrong), f"{encoder} on {bands} bands, but {fault}"))
    known = ", ".join(f"{encoder} on {bands} bands" for encoder, bands in REFERENCE_NORMALIZATION)
    raise SatmapError(
        f"{path} looks like a network of SpaceNet 5's third place, of which these are known: "
        f"{known}. It comes closest to {min(faults)[1]}."
    )


def _describe(network: UNet, content: Mapping[str, Any]) -> dict[str, str]:
    low, high = REFERENCE_STRETCH
    described = {
        "bands": json.dumps(REFERENCE_BANDS[network.encoder.in_channels]),
        "stretch": json.dumps({"low": low, "high": high}),
    }
    if isinstance(content.get("epoch"), int):
        described["epoch"] = str(content["epoch"])
    scores = {name: content[name] for name in _SCORES if isinstance(content.get(name), int | float)}
    if scores:
        described["scores"] = json.dumps(scores)
    return described
