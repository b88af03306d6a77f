"""Average the weights of several networks into one network.

Source: model soups, https://arxiv.org/abs/2203.05482. Checkpoints of one training, or of trainings
with the same initial weights, lie in the same basin of the loss. Their average scores about as well
as their ensemble, at the cost of a single network.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from satmap.errors import SatmapError
from satmap.networks.unet import UNet
from satmap.weights.header import HEADER_KEYS
from satmap.weights.members import (
    BAND_MEAN_KEY,
    BAND_STD_KEY,
    GSD_KEY,
    WeightFile,
    trained_bands,
    trained_gsd,
)
from satmap.weights.network_files import load_weights, save_weights

# Metadata about the training data, which are averaged.
_STATISTICS = (GSD_KEY, BAND_MEAN_KEY, BAND_STD_KEY)


def average_weights(output: Path, files: Sequence[Path]) -> None:
    """Average two or more networks of the same architecture and write the result.

    Batch-norm statistics are averaged like weights; counters come from the first file. Metadata
    that all files share are kept, except scores; pixel size and statistics of the training images
    are averaged. The recipe comes from the first file, and the held-out images are those that all
    files held out.

    Raises:
        SatmapError: there are fewer than two files, one cannot be read, or the networks differ in
            architecture or input normalisation.
    """
    if len(files) < 2:
        raise SatmapError("averaging needs two or more weight files.")
    network, first = load_weights(files[0])
    metadata = [first]
    expected = _kind(network, first)
    mean = network.state_dict()
    for number, file in enumerate(files[1:], 2):
        other, described = load_weights(file)
        for key, found in _kind(other, described).items():
            if found != expected[key]:
                raise SatmapError(
                    f"{file} has the {key} {found}, but {files[0]} has {expected[key]}: only "
                    "networks of the same architecture and normalisation can be averaged."
                )
        metadata.append(described)
        for name, value in other.state_dict().items():
            if value.is_floating_point():
                mean[name] += (value - mean[name]) / number
    if not all(bool(torch.isfinite(value).all()) for value in mean.values()):
        raise SatmapError("the average is not finite: one of the files holds NaN or infinities.")
    save_weights(output, network, _merge(metadata, files))


def _kind(network: UNet, metadata: Mapping[str, str]) -> dict[str, object]:
    """Return what networks must have in common to be averaged."""
    normalization = network.encoder.mean, network.encoder.std
    return {key: metadata.get(key) for key in HEADER_KEYS} | {"normalization": normalization}


def _merge(metadata: Sequence[Mapping[str, str]], files: Sequence[Path]) -> dict[str, str]:
    first = metadata[0]
    merged = {
        key: value
        for key, value in first.items()
        if key not in (*HEADER_KEYS, "scores", "held_out", *_STATISTICS)
        and (key == "recipe" or all(other.get(key) == value for other in metadata))
    }
    if all("held_out" in other for other in metadata):
        sets = [set(json.loads(other["held_out"])) for other in metadata]
        merged["held_out"] = json.dumps(sorted(set.intersection(*sets)))
    described = [WeightFile(*pair) for pair in zip(files, map(dict, metadata), strict=True)]
    gsd = trained_gsd(described)
    if gsd is not None:
        merged[GSD_KEY] = json.dumps(round(gsd, 4))
    if statistics := trained_bands(described):
        for key, values in zip((BAND_MEAN_KEY, BAND_STD_KEY), statistics, strict=True):
            merged[key] = json.dumps([round(value, 2) for value in values])
    return merged | {"averaged": json.dumps([file.name for file in files])}
