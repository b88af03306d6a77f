"""Third task for tests: trees as points, found by a network without probability maps.

The trees of ``NAME.tif`` are in ``NAME.csv``, one line ``x,y`` in pixels per tree. A result is a
CSV with the columns ``image,x,y,score``; an image without trees has a row with empty numbers.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import PositiveFloat
from torch import Tensor, nn

from satmap.data.cache import EncodedLabel
from satmap.data.chip import Chip
from satmap.data.crops import CachedChip, Geometry, read_image_crop
from satmap.data.imagery import RGB, read_infos
from satmap.data.inventory import Inventory
from satmap.errors import SatmapError
from satmap.evaluation.metrics.figures import Counts, Report
from satmap.evaluation.score import Scoring
from satmap.io.files import write_text
from satmap.networks.ensemble import Symmetry
from satmap.recipes.registry import TaskEntry
from satmap.recipes.schema import Member
from satmap.recipes.task_settings import TaskLosses, TaskSettings
from satmap.submissions.fault import Fault
from satmap.submissions.result_format import ResultFormat
from satmap.tasks.base import Batch, Total
from satmap.tasks.instances import InstanceTask, WindowCandidates
from satmap.vectors.georeference import Georeference

Points = NDArray[np.float64]
CELL = 4
MATCH_PX = 4.0


class TreeSettings(TaskSettings):
    """Part of the recipe; least_score is the score below which trees are dropped."""

    prediction_keys: ClassVar[frozenset[str]] = frozenset({"least_score"})
    best_checkpoints: ClassVar[Mapping[str, str]] = {"f1": "best_f1"}
    name: Literal["trees"] = "trees"
    least_score: PositiveFloat = 0.3

    def find_images(
        self, directories: Sequence[Path], bands: int = 1, view_angle: Any = None
    ) -> Inventory:
        chips, faults = [], {}
        for path in sorted(path for directory in directories for path in directory.glob("*.tif")):
            infos, wrong = read_infos({RGB: path})
            label = path.with_suffix(".csv")
            if wrong:
                faults[path.stem] = wrong[0]
            else:
                chips.append(
                    Chip(path.stem, path.stem, "wood", infos, label if label.exists() else None)
                )
        if not chips and not faults:
            raise SatmapError(f"no images (*.tif) under {directories[0]}.")
        ids = {name: name for name in sorted([chip.image_id for chip in chips] + list(faults))}
        return Inventory(tuple(chips), faults, (), (), ids, (), tuple(directories))


class TreeLosses(TaskLosses):
    """Weights of the two parts of the loss."""

    tree: PositiveFloat = 1.0
    offset: PositiveFloat = 0.1


class TreeNetwork(nn.Module):
    """Predict for every cell of 4 x 4 pixels whether there is a tree, and its position."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layers(images)
        return found


class TreeTask(InstanceTask):
    noun: ClassVar[str] = "trees"
    label_noun: ClassVar[str] = "tree"
    scores: ClassVar[tuple[str, ...]] = ("f1",)
    loss_parts = ("tree", "offset")
    label_fingerprint = "trees"

    def encode(self, chip: Chip, image: NDArray[np.uint8]) -> EncodedLabel:
        assert chip.label is not None
        points = np.loadtxt(chip.label, delimiter=",", ndmin=2).reshape(-1, 2)
        return EncodedLabel({"points": points}, points.tolist(), len(points), (1.0, 1.0))

    def crop(
        self, chip: CachedChip, geometry: Geometry, size: int, channels: int
    ) -> dict[str, NDArray[Any]]:
        matrix = np.vstack([geometry.to_chip(size), [0, 0, 1]])
        points = np.column_stack([chip.read_array("points") - 0.5, np.ones(chip.count)])
        inside = (points @ np.linalg.inv(matrix).T)[:, :2] + 0.5
        inside = inside[((inside >= 0) & (inside < size)).all(axis=1)]
        return {"image": read_image_crop(chip, geometry, size, channels), "points": inside}

    def collate(self, samples: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Any]:
        images = np.stack([sample["image"] for sample in samples])
        return {"image": images, "points": [sample["points"] for sample in samples]}

    def build_network(self, member: Member) -> TreeNetwork:
        return TreeNetwork(member.bands)

    def inputs(self, network: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        return (batch["image"].float() / 255 - 0.5,)

    def loss(
        self, outputs: Tensor, batch: Batch, losses: TreeLosses, total: Total
    ) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = outputs.float()
        target, offsets = torch.zeros_like(outputs[:, 0]), torch.zeros_like(outputs[:, 1:])
        for index, points in enumerate(batch["points"]):
            x, y = (points / CELL).long().T
            target[index, y, x] = 1
            offsets[index, :, y, x] = (points / CELL).float().frac().T
        count = total(target.sum()).clamp(min=1) / max(total(torch.ones(())).item(), 1)
        tree = F.binary_cross_entropy_with_logits(outputs[:, 0], target, reduction="sum") / count
        wrong = (outputs[:, 1:].sigmoid() - offsets).abs().sum(1) * target
        parts = {"tree": losses.tree * tree, "offset": losses.offset * wrong.sum() / count}
        return sum(parts.values(), torch.zeros(())), {k: v.detach() for k, v in parts.items()}

    def score_chip(self, network: nn.Module, chip: CachedChip, device: torch.device) -> Counts:
        image = chip.read_image(chip.shape[2], slice(None), slice(None))
        pixels = torch.from_numpy(image).to(device)
        with torch.no_grad():
            found = suppress(self.predict_window(network, pixels, None))
        return compare(np.array(chip.payload), found[found[:, 2] >= self.recipe.task.least_score])

    def summarize(self, chips: Sequence[Any], scores: Sequence[Counts]) -> dict[str, float]:
        total = sum(scores, Counts())
        return {"f1": 2 * total.tp / max(2 * total.tp + total.fp + total.fn, 1)}

    def predict_window(self, network: nn.Module, pixels: Tensor, category: str | None) -> Points:
        outputs = network(pixels[None].float() / 255 - 0.5)[0].float().sigmoid()
        y, x = torch.nonzero(outputs[0] > 0.1, as_tuple=True)
        at = outputs[:, y, x]
        found = torch.stack([(x + at[1]) * CELL, (y + at[2]) * CELL, at[0]], 1)
        return np.asarray(found, np.float64)

    def restore(self, found: Points, symmetry: Symmetry, shape: tuple[int, int]) -> Points:
        x, y, score = found.T
        height, width = shape[::-1] if symmetry.quarter_turns % 2 else shape
        for _ in range(symmetry.quarter_turns):
            x, y, height, width = height - y, x, width, height
        return np.column_stack([shape[1] - x if symmetry.mirrored else x, y, score])

    def place(self, found: Points, scale: NDArray[Any], offset: NDArray[Any]) -> Points:
        return np.asarray(found * np.array([*scale, 1]) + np.array([*offset, 0]))

    def merge(self, candidates: Sequence[WindowCandidates]) -> Points:
        found = suppress(np.concatenate([each.found for each in candidates]))
        return np.asarray(found[found[:, 2] >= self.recipe.task.least_score])

    def record(
        self, chip: Chip, image_id: str, found: Points, georeference: Georeference | None
    ) -> tuple[str, Points]:
        return image_id, found

    def count(self, record: tuple[str, Points]) -> int:
        return len(record[1])

    def as_json(self, record: tuple[str, Points]) -> list[Any]:
        return [record[0], record[1].tolist()]

    def from_json(self, content: list[Any]) -> tuple[str, Points]:
        return str(content[0]), np.array(content[1], np.float64).reshape(-1, 3)

    def write(
        self, output: Path, ids: Sequence[str], keys: Mapping[str, str],
        read: Callable[[str], tuple[str, Points]],
    ) -> dict[str, int]:  # fmt: skip
        lines, counts = ["image,x,y,score"], {}
        for name in ids:
            points = read(keys[name])[1] if name in keys else np.empty((0, 3))
            lines += [f"{name},{x:.2f},{y:.2f},{s:.3f}" for x, y, s in points] or [f"{name},,,"]
            counts[name] = len(points)
        write_text(output, "\n".join(lines) + "\n")
        return counts


def suppress(points: Points) -> Points:
    """Drop points that are close to a point with a higher score."""
    kept: list[Any] = []
    for point in points[np.argsort(-points[:, 2], kind="stable")]:
        if all(np.hypot(*(point - other)[:2]) > MATCH_PX for other in kept):
            kept.append(point)
    return np.array(kept).reshape(-1, 3)


def compare(truth: Points, found: Points) -> Counts:
    free, tp = list(range(len(truth))), 0
    for point in found:
        near = [index for index in free if np.hypot(*(truth[index] - point[:2])[:2]) <= MATCH_PX]
        tp += bool(near)
        free = [index for index in free if index not in near[:1]]
    return Counts(tp, len(found) - tp, len(truth) - tp)


class TreesCsv(ResultFormat):
    name = "a trees CSV"

    def matches(self, path: Path) -> bool:
        return path.is_file() and path.read_bytes().startswith(b"image,x,y,score")

    def _read(self, path: Path) -> dict[str, Points]:
        rows = list(csv.DictReader(path.read_text().splitlines()))
        found: dict[str, list[list[float]]] = {row["image"]: [] for row in rows}
        for row in rows:
            if row["x"]:
                found[row["image"]].append([float(row["x"]), float(row["y"]), float(row["score"])])
        return {name: np.array(points).reshape(-1, 3) for name, points in found.items()}

    def score(self, truth: Path, proposal: Path) -> Scoring:
        true, found = self._read(truth), self._read(proposal)
        images = {n: vars(compare(true[n][:, :2], found[n])) for n in true if n in found}
        tp, fp, fn = (sum(score[key] for score in images.values()) for key in ("tp", "fp", "fn"))
        total = {"f1": 2 * tp / max(2 * tp + fp + fn, 1), "tp": tp, "fp": fp, "fn": fn}
        return Scoring(Report("trees_f1", total, {"wood": total}, images), "tp")

    def check(self, submission: Path, directories: Sequence[Path]) -> list[Fault]:
        expected = {path.stem for directory in directories for path in directory.glob("*.tif")}
        missing = sorted(expected - set(self._read(submission)))
        return [Fault(None, f"the image {name} is missing") for name in missing]


_M = "tree_task"
ENTRY = TaskEntry(
    "trees", f"{_M}:TreeSettings", f"{_M}:TreeLosses", f"{_M}:TreeTask", f"{_M}:FORMATS"
)
FORMATS = [TreesCsv()]
