"""Undamaged material: a synthetic city, recipes, a trained network and its predictions."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_RECIPE = """
name: faults
description: a small network of few epochs, unsure of everything, so thresholds are low
task: {name: roads, neighbours: NEIGHBOURS, vectorizer: {high: 0.25, low: 0.12, component_m: 5}}
folds: 2
members:
  - fold: 0
    encoder: resnet18
    pretrained: false
    decoder: [16, 16, 16, 16]
    losses: {road: {dice: 0.5, focal: 2}, speed: {focal: 2}, junction: {focal: 1}}
    stages:
      - crop: 64
        batch: 4
        epochs: EPOCHS
        passes: PASSES
        validate_every: EPOCHS
        schedule: {kind: cosine, peak: 3.0e-3}
inference: {tta: 1, checkpoints: [last]}
"""

# Time limit of each command that makes the material, seconds.
_LIMIT_S = 1800

#: Numbers of the synthetic test chips.
TEST_CHIPS = (12, 13, 14, 15)


@dataclass(frozen=True)
class Material:
    """Paths of undamaged files, which no case may change.

    Attributes:
        train, test: directories of chips.
        alone, together: recipes of the network that vectorise images alone, and with their
            neighbours.
        short: recipe of a training that takes seconds.
        network: the trained weights.
        predicted_alone, predicted_together: submissions of undisturbed runs.
        maps: probability maps of ``predicted_together``, rasters for the vectoriser.
        trained: directory of weights of an undisturbed training with the short recipe.
    """

    train: Path
    test: Path
    alone: Path
    together: Path
    short: Path
    network: Path
    predicted_alone: Path
    predicted_together: Path
    maps: Path
    trained: Path

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the test chips."""
        return TEST_CHIPS

    @property
    def weights(self) -> Path:
        """Directory of the trained weights."""
        return self.network.parent

    def rows(self, alone: bool) -> dict[str, list[str]]:
        """Return the lines of an undisturbed submission by image."""
        rows: dict[str, list[str]] = {}
        path = self.predicted_alone if alone else self.predicted_together
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            rows.setdefault(line.split(",", 1)[0], []).append(line)
        return rows


def make_material(directory: Path) -> Material:
    """Make the material by the real commands, or reuse that of an earlier campaign."""
    directory.mkdir(parents=True, exist_ok=True)
    city, cache = directory / "city", directory / "cache"
    recipes = {
        "alone.yaml": {"EPOCHS": 4, "PASSES": 12, "NEIGHBOURS": "false"},
        "together.yaml": {"EPOCHS": 4, "PASSES": 12, "NEIGHBOURS": "true"},
        "short.yaml": {"EPOCHS": 2, "PASSES": 1, "NEIGHBOURS": "true"},
    }
    for name, values in recipes.items():
        text = _RECIPE
        for key, value in values.items():
            text = text.replace(key, str(value))
        (directory / name).write_text(text)
    material = Material(
        train=city / "train",
        test=city / "test",
        alone=directory / "alone.yaml",
        together=directory / "together.yaml",
        short=directory / "short.yaml",
        network=directory / "weights" / "fold0-resnet18-3band.last.safetensors",
        predicted_alone=directory / "alone.csv",
        predicted_together=directory / "together.csv",
        maps=directory / "maps",
        trained=directory / "trained",
    )
    if not material.test.exists():
        _satmap("make-city", city, "--chips", 12, "--test-chips", 4, "--size", 128, "--seed", 3)
    training: tuple[object, ...] = ("--cache", cache, "--device", "cpu", "--workers", 0)
    if not material.network.exists():
        kept = directory / "training"
        _satmap("train", material.train, "--recipe", material.alone, "--weights", kept, *training)
        material.weights.mkdir()
        (kept / material.network.name).rename(material.network)
    if not material.trained.exists():
        left = directory / "being-trained"
        _satmap("train", material.train, "--recipe", material.short, "--weights", left, *training)
        left.rename(material.trained)
    for recipe, output, more in (
        (material.alone, material.predicted_alone, ()),
        (material.together, material.predicted_together, ("--probabilities", material.maps)),
    ):
        if not output.exists():
            _satmap(
                "predict", material.test, output, "--weights", material.weights, "--recipe", recipe,
                "--device", "cpu", "--workers", 0, *more,
            )  # fmt: skip
    if sum("EMPTY" in line for line in material.predicted_alone.read_text().splitlines()) > 2:
        raise RuntimeError("the campaign's network finds almost no roads; give another seed")
    return material


def _satmap(*arguments: object) -> None:
    command = [sys.executable, "-m", "satmap", *map(str, arguments)]
    # The same number of threads as in the cases, because it affects the rounding of sums.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env=environment, timeout=_LIMIT_S
    )
