"""A training step passes through few files, so that a reader can follow it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import satmap
from satmap.recipes.schema import parse_recipe
from satmap.training import train as training
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train
from tiny_trainings import road_member, road_recipe, stage

pytestmark = pytest.mark.usefixtures("tiny_encoders")

# Number of source files that one step may use, from cutting the crops to the progress bar.
MOST_FILES = 14

SOURCE = str(Path(satmap.__file__).parent)


@contextmanager
def recording(files: set[str]) -> Iterator[None]:
    """Add the files of all satmap functions that are called meanwhile, also by the backward."""

    def record(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(SOURCE):
            files.add(str(Path(frame.f_code.co_filename).relative_to(SOURCE)))

    before = sys.getprofile()
    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(before)


def test_a_training_step_passes_through_few_files(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: set[str] = set()
    original = training._train_step

    def traced(*arguments: Any) -> None:
        with recording(files):
            original(*arguments)

    monkeypatch.setattr(training, "_train_step", traced)
    # A progress bar, as in a terminal.
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    recipe = parse_recipe(
        road_recipe(road_member(stages=[stage(passes=4)]), optimizer={"ema_decay": 0.9}), "test"
    )
    context = RunContext(tmp_path / "weights", torch.device("cpu"))
    train([city / "train"], recipe, context, TrainingOptions(city.parent / "test-cache"))
    assert {"data/crops.py", "networks/unet.py", "training/train.py"} <= files
    assert len(files) <= MOST_FILES, "\n".join(sorted(files))
