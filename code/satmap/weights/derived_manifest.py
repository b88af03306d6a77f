"""Write the manifest of weights that were imported or averaged rather than trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from satmap.errors import SatmapError
from satmap.io.checksums import record_file
from satmap.provenance.manifest import (
    RecipeRecord,
    WeightsManifest,
    record_recipe,
    run_here,
    write_manifest,
)
from satmap.weights.header import CONTENT_KEY, read_metadata, read_weights_metadata
from satmap.weights.members import WeightFile


def write_derived_manifest(path: Path, sources: Sequence[Path], command: Sequence[str]) -> None:
    """Write the manifest of a network that was imported or averaged.

    ImageNet weights of an encoder get no manifest: they are not a result of satmap, and their
    metadata name the source.

    Args:
        path: the weight file.
        sources: the files that it was made from.
        command: satmap's arguments.

    Raises:
        SatmapError: a file cannot be read, or the manifest cannot be written.
    """
    if read_metadata(path).get(CONTENT_KEY) == "encoder":
        return
    file = WeightFile(path, read_weights_metadata(path))
    facts: dict[str, Any] = {
        "recipe": _recipe(file),
        "member": file.metadata.get("member"),
        "seeds": {},
        "stage": _number(file.metadata.get("stage")),
        "epoch": _number(file.metadata.get("epoch")),
        "scores": {},
        "data": None,
        "starts_from": [record_file(source) for source in sources],
        "skipped": {},
        "runs": [run_here(command, torch.device("cpu"))],
    }
    write_manifest(path, WeightsManifest, facts)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _recipe(file: WeightFile) -> RecipeRecord | None:
    """Return the recipe in the file; None if this version of satmap cannot read it."""
    try:
        return record_recipe(file.recipe, content=False)
    except SatmapError:
        return None
