"""Recipes for trainings of seconds, and tiny encoders whose states are written at once."""

import os
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from repository import ROOT
from satmap.networks.encoders import ENCODERS, EncoderSpec
from satmap.recipes.encoder_names import ENCODER_NAMES


def add_tiny_encoders(patch: pytest.MonkeyPatch) -> None:
    """Add ``tiny``, a fiftieth of ResNet18, and the smallest encoders of two other timm families.

    The first and the last are timm's own test models; ``tiny_senet`` has half the blocks of
    ``se_resnext50_32x4d``.
    """
    resnet, senet, convnext = (
        ENCODERS[name] for name in ("resnet18", "se_resnext50_32x4d", "convnext_tiny")
    )
    specs = {
        "tiny": EncoderSpec("test_resnet.r160_in1k", (32, 32, 48, 192, 96), resnet.stages),
        "tiny_senet": EncoderSpec("legacy_seresnext26_32x4d.in1k", senet.channels, senet.stages),
        "tiny_convnext": EncoderSpec(
            "test_convnext.r160_in1k", (24, 32, 48, 64), convnext.stages, convnext.strides
        ),
    }
    for name, spec in specs.items():
        patch.setitem(cast(dict[str, EncoderSpec], ENCODERS), name, spec)
    for module in ("satmap.recipes.schema", "satmap.weights.header"):
        patch.setattr(f"{module}.ENCODER_NAMES", (*ENCODER_NAMES, *specs))


# What Python runs first in the processes of `tiny_commands`. The names of encoders are enough for
# processes that only start others. Processes that Python starts for itself need nothing.
_STARTUP = """
import os
import sys

line = " ".join(sys.orig_argv)
if " -m satmap " in line:
    from satmap.recipes import encoder_names, schema

    encoder_names.ENCODER_NAMES += ("tiny",)
    schema.ENCODER_NAMES = encoder_names.ENCODER_NAMES
    starts_others = "--processes 2" in line or "torch.distributed.run" in line
    if "RANK" in os.environ or not starts_others:
        import pytest

        import satmap.runtime.device
        from tiny_trainings import add_tiny_encoders

        add_tiny_encoders(pytest.MonkeyPatch())
        if " train " in line:
            satmap.runtime.device._fast_bfloat16 = lambda device: False
"""


def tiny_commands(place: Path) -> dict[str, str]:
    """Return the environment in which ``python -m satmap`` knows the tiny encoders.

    Trainings do not use bfloat16 in it, like those of ``forked_ranks``.

    Args:
        place: directory for a start-up file.
    """
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(_STARTUP)
    paths = (place, ROOT / "tests/helpers", ROOT / "code")
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}


def stage(**changes: object) -> dict[str, Any]:
    """Return a stage of one epoch of small crops; ``peak`` is the peak learning rate."""
    peak = changes.pop("peak", 1e-3)
    schedule = {"kind": "cosine", "peak": peak}
    return {"crop": 64, "batch": 4, "epochs": 1, "schedule": schedule} | changes


def road_member(**changes: object) -> dict[str, Any]:
    """Return a road network with one stage."""
    losses = {"road": {"dice": 0.5, "focal": 2}, "speed": {"focal": 2}, "junction": {"focal": 1}}
    return {
        "fold": 0, "encoder": "tiny", "pretrained": False, "decoder": [16, 16, 16, 16],
        "losses": losses, "stages": [stage()],
    } | changes  # fmt: skip


def road_recipe(*members: dict[str, Any], **changes: object) -> str:
    """Return the text of a road recipe with two folds and one view."""
    content = {
        "name": "test", "description": "seconds long", "task": "roads", "folds": 2,
        "members": [*members] or [road_member()], "inference": {"tta": 1},
    } | changes  # fmt: skip
    return yaml.safe_dump(content)


#: A member with eight bands and two stages, and a recipe of one such member with ResNet18.
TWO_STAGE_MEMBER = road_member(
    bands=8,
    losses={
        "road": {"dice": 0.5, "focal": 2, "bce": 0.1},
        "speed": {"dice": 0.1, "focal": 2, "bce": 1},
        "junction": {"dice": 0.1, "focal": 1},
    },
    stages=[
        stage(epochs=2, passes=2, peak=2e-3),
        stage(crop=96, batch=2, schedule={"kind": "steps", "rates": {0: 1e-4}}),
    ],
)

TWO_STAGE_RECIPE = road_recipe({**TWO_STAGE_MEMBER, "encoder": "resnet18"})
