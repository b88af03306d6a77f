"""Small building networks for the benchmarks, trained and applied as by the commands."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from satmap.prediction.run import predict
from satmap.recipes.schedules import CosineSchedule
from satmap.recipes.schema import DecoderSettings, Member, Recipe, Stage, load_recipe
from satmap.tasks.buildings.settings import BuildingHeadLoss, BuildingLosses
from satmap.training.run_context import RunContext
from satmap.training.train_ensemble import TrainingOptions, train

_ENCODER, _WIDTHS = "resnet18", (128, 96, 64, 32)
_SCHEDULE = CosineSchedule(peak=2e-3, final=2e-5, warmup=0.1)


def small_recipe(
    shipped: Recipe,
    *,
    seed: int,
    crop: int,
    passes: int,
    epochs: int = 6,
    folds: Sequence[int | None] = (None,),
    losses: BuildingLosses | None = None,
) -> Recipe:
    """Shrink a shipped recipe to a ResNet18 from scratch and one short stage, for a CPU.

    Args:
        shipped: the recipe that provides everything else: task, view angles, losses, vectoriser.
        seed: seed of networks, crops and folds.
        crop: side of a crop, pixels; a step uses four crops.
        passes: crops per chip and epoch.
        epochs: number of epochs, with one validation at the end if chips are held out.
        folds: folds of the members; a member with fold None learns from all chips.
        losses: losses that replace the shipped ones.
    """
    first = shipped.members[0]
    stage = Stage(
        crop=crop, batch=4, epochs=epochs, passes=passes, validate_every=epochs, schedule=_SCHEDULE
    )
    members = tuple(
        Member(
            fold=fold,
            encoder=_ENCODER,
            pretrained=False,
            bands=first.bands,
            decoder=DecoderSettings(widths=_WIDTHS),
            losses=losses or first.losses,
            stages=(stage,),
        )
        for fold in folds
    )
    inference = shipped.inference.model_copy(update={"checkpoints": ("last",)})
    changed = {
        "seed": seed, "folds": max(2, len(folds)), "members": members, "inference": inference
    }  # fmt: skip
    return shipped.model_copy(update=changed)


def challenge_recipe(seed: int, *, weighted: bool = True) -> Recipe:
    """Return a small Mapping Challenge recipe: two networks, each with one half held out.

    Args:
        seed: seed of networks, crops and halves.
        weighted: whether the cross entropy uses the weight maps.
    """
    cross_entropy = {"weighted": 1.0} if weighted else {"bce": 1.0}
    losses = BuildingLosses(building=BuildingHeadLoss(dice=0.5, **cross_entropy))
    shipped = load_recipe("mapping-challenge")
    one_view = shipped.inference.model_copy(update={"tta": 1})
    shipped = shipped.model_copy(update={"inference": one_view})
    return small_recipe(shipped, seed=seed, crop=128, passes=9, folds=(0, 1), losses=losses)


def trained(
    recipe: Recipe, directory: Path, weights: Path, cache: Path, folds: tuple[int, ...] = ()
) -> float:
    """Train the untrained networks of the given folds or of all; return the CPU seconds."""
    started = time.process_time()
    context = RunContext(weights, torch.device("cpu"))
    train([directory], recipe, context, TrainingOptions(cache, folds=folds))
    return time.process_time() - started


@dataclass(frozen=True)
class Half:
    """Network of the small Mapping Challenge recipe, with its out-of-fold predictions.

    Attributes:
        recipe: its recipe.
        weights: directory of its weights.
        out: CSV of the buildings found in the held-out half of the images.
        maps: directory of the probability maps of that half.
        seconds: CPU time of its training in this run, 0 if it was trained before.
    """

    recipe: Recipe
    weights: Path
    out: Path
    maps: Path
    seconds: float


def half(images: Path, work: Path, seed: int, fold: int, *, weighted: bool) -> Half:
    """Train on one half of the images and predict the other, unless already done."""
    name = f"{'weighted' if weighted else 'plain'}{seed}-{fold}"
    weights, out, maps = work / name, work / f"{name}.csv", work / f"{name}-maps"
    recipe = challenge_recipe(seed, weighted=weighted)
    seconds = trained(recipe, images, weights, work / "cache", (fold,))
    predicted(images, out, weights, maps=maps, out_of_fold=True)
    return Half(recipe, weights, out, maps, seconds)


def predicted(
    directory: Path,
    output: Path,
    weights: Path,
    *,
    maps: Path | None = None,
    out_of_fold: bool = False,
) -> Path:
    """Predict with the networks and write ``output``, unless already done."""
    if not output.exists():
        predict([directory], output, weights, "cpu", maps=maps, out_of_fold=out_of_fold)
    return output
