"""The training of one member: stages, epochs, steps."""

import json
import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from satmap.data.cache import CachedChip
from satmap.data.crops import CropDataset
from satmap.device import autocast
from satmap.errors import SatmapError
from satmap.models.unet import UNet
from satmap.models.weights import save_weights
from satmap.recipe import Member, Recipe, Stage
from satmap.training.checkpoint import Progress, load_state, restore, save_state
from satmap.training.losses import road_loss
from satmap.training.schedule import learning_rate
from satmap.training.validation import validate

_SCORES = ("apls", "apls_time", "dice", "iou")

# Score of an epoch -> the checkpoint that keeps its best.
_BEST = {"apls": "best_apls", "dice": "best_dice"}


@dataclass(frozen=True)
class Workplace:
    """Where a training runs and what it may use.

    Attributes:
        weights: directory of the weight files.
        device: where networks run.
        workers: processes that cut crops; 0 cuts them in the main process.
        restart: forget the state of an earlier training.
    """

    weights: Path
    device: torch.device
    workers: int = 0
    restart: bool = False

    def weight_file(self, member: Member, checkpoint: str) -> Path:
        """The file of a checkpoint, ``fold0-dpn92-3band.best_apls.safetensors``."""
        return self.weights / f"{member.name}.{checkpoint}.safetensors"

    def state_file(self, member: Member) -> Path:
        """The file of the member's training state."""
        return self.weights / f"{member.name}.state.pt"


def train_member(
    network: UNet,
    member: Member,
    recipe: Recipe,
    training: Sequence[CachedChip],
    validation: Sequence[CachedChip],
    place: Workplace,
    *,
    pretrained: bool = False,
) -> Progress:
    """Train one network through all stages, going on from where an earlier call stopped.

    After every validation the last weights, and the best if they are, go to ``place.weights``;
    after every epoch the whole training state does.

    Args:
        network: initialised; changed in place.
        member: what to train.
        recipe: the recipe that ``member`` is of.
        training: chips to learn from, at least one.
        validation: chips to score; without any there are no best checkpoints, only the last.
        place: device and directories.
        pretrained: the encoder has ImageNet weights. Only such a one is ever frozen.

    Raises:
        SatmapError: the loss is not finite, or a left-over state does not fit.
    """
    fingerprint = _fingerprint(recipe, member, training, validation)
    learned = {chip.image_id for chip in training}
    held_out = [chip.image_id for chip in validation if chip.image_id not in learned]
    state_file = place.state_file(member)
    state = None if place.restart else load_state(state_file, fingerprint)
    progress = Progress(**state["progress"]) if state else Progress(pretrained=pretrained)
    if progress.stage == len(member.stages):
        if not place.weight_file(member, "last").exists():
            raise SatmapError(
                f"{member.name} is trained according to {state_file}, but its weights are gone. "
                "Put them back, or pass --restart to train anew."
            )
        print(f"{member.name}: already trained", flush=True)
        return progress
    network.to(place.device).to(memory_format=torch.channels_last)
    while progress.stage < len(member.stages):
        stage = member.stages[progress.stage]
        optimizer = _make_optimizer(network, recipe)
        if state:
            progress, state = restore(state, network, optimizer), None
            print(
                f"{member.name}: going on after epoch {progress.epoch} of stage "
                f"{progress.stage + 1}",
                flush=True,
            )
        dataset = CropDataset(
            training,
            stage.crop,
            member.bands,
            stage.passes,
            recipe.augmentation,
            # Members and stages draw different crops.
            seed=member_seed(recipe, member, progress.stage),
        )
        while progress.epoch < stage.epochs:
            record = _train_epoch(network, optimizer, dataset, member, recipe, progress, place)
            progress.epoch += 1
            if progress.epoch % stage.validate_every == 0 or progress.epoch == stage.epochs:
                if validation:
                    record |= validate(network, validation, recipe, place.device)
                _keep_checkpoints(network, member, recipe, record, progress, place, held_out)
            progress.history.append(record)
            print(_line(member, stage, progress, record), flush=True)
            if progress.epoch == stage.epochs:
                # The next stage starts with an optimizer that has seen nothing.
                progress.stage, progress.epoch = progress.stage + 1, 0
                optimizer = _make_optimizer(network, recipe)
                save_state(state_file, fingerprint, network, optimizer, progress)
                break
            save_state(state_file, fingerprint, network, optimizer, progress)
    return progress


def _train_epoch(
    network: UNet,
    optimizer: Optimizer,
    dataset: CropDataset,
    member: Member,
    recipe: Recipe,
    progress: Progress,
    place: Workplace,
) -> dict[str, float]:
    """One epoch; gives its mean losses and speed."""
    stage = member.stages[progress.stage]
    loader = _loader(dataset, stage, progress, place)
    steps = len(loader)
    network.train()
    frozen = progress.pretrained and progress.epoch < stage.freeze_encoder_epochs
    network.freeze_encoder(frozen, stage.freeze_encoder_stages)
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=place.device))
    rate = 0.0
    started = time.perf_counter()
    bar = tqdm(loader, desc=f"{member.name} epoch {progress.epoch + 1}", leave=False, disable=None)
    for step, (images, targets, numbers) in enumerate(bar):
        rate = learning_rate(stage.schedule, progress.epoch * steps + step, steps, stage.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = images.to(place.device, non_blocking=True)
        targets = targets.to(place.device, non_blocking=True)
        pixels = network.encoder.normalize(images).contiguous(memory_format=torch.channels_last)
        with autocast(place.device):
            logits = network(pixels)
        loss, parts = road_loss(logits, network.plane_names, targets, member.losses)
        if not torch.isfinite(loss):
            raise SatmapError(
                f"{member.name}: the loss is {loss.item()} at epoch {progress.epoch + 1}, step "
                f"{step + 1}, on crops of {_names(dataset, numbers)}. The checkpoints so far are "
                f"intact in {place.weights}; lower the learning rate or look at these chips."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.optimizer.clip_norm)
        optimizer.step()
        for name, value in {"loss": loss.detach(), **parts}.items():
            sums[name] += value
        if not bar.disable:
            bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{rate:.1e}")
    seconds = time.perf_counter() - started
    return {
        "stage": float(progress.stage + 1),
        "epoch": float(progress.epoch + 1),
        "learning_rate": rate,
        "seconds": seconds,
        "ms_per_step": 1000 * seconds / steps,
        "crops_per_second": steps * min(stage.batch, len(dataset)) / seconds,
        **{name: float(total) / steps for name, total in sums.items()},
    }


def _loader(
    dataset: CropDataset, stage: Stage, progress: Progress, place: Workplace
) -> DataLoader[tuple[Tensor, Tensor, int]]:
    """Batches of the epoch, in an order that depends on the seed and the epoch alone."""
    dataset.set_epoch(progress.epoch)
    order = torch.Generator().manual_seed(dataset.seed + progress.epoch)
    return DataLoader(
        dataset,
        stage.batch,
        sampler=RandomSampler(dataset, generator=order),
        num_workers=place.workers,
        # A short last batch has noisy statistics; a tiny data set is one short batch.
        drop_last=len(dataset) >= stage.batch,
        pin_memory=place.device.type == "cuda",
        generator=order,
    )


def _names(dataset: CropDataset, numbers: Tensor) -> str:
    return ", ".join(dict.fromkeys(dataset.chips[number].image_id for number in numbers.tolist()))


def _keep_checkpoints(
    network: UNet,
    member: Member,
    recipe: Recipe,
    record: dict[str, float],
    progress: Progress,
    place: Workplace,
    held_out: Sequence[str],
) -> None:
    """Write the last weights, and the best where a score is a new best."""
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise SatmapError(
            f"{member.name}: the weights are not finite after epoch {progress.epoch}. The "
            f"checkpoints so far are intact in {place.weights}; lower the learning rate."
        )
    scores = {name: round(record[name], 5) for name in _SCORES if name in record}
    metadata = {
        "recipe": recipe.model_dump_json(),
        "member": member.name,
        "stage": f"{record['stage']:.0f}",
        "epoch": f"{record['epoch']:.0f}",
        "scores": json.dumps(scores),
        "held_out": json.dumps(held_out),
    }
    for score, checkpoint in _BEST.items():
        file = place.weight_file(member, checkpoint)
        if score in record and record[score] > progress.best.get(score, -1.0):
            progress.best[score] = record[score]
            save_weights(file, network, metadata)
        elif score not in progress.best:
            # Left by an earlier training that this one replaces.
            file.unlink(missing_ok=True)
    save_weights(place.weight_file(member, "last"), network, metadata)


def _make_optimizer(network: UNet, recipe: Recipe) -> Optimizer:
    settings = recipe.optimizer
    kind = Adam if settings.name == "adam" else AdamW
    return kind(network.parameters(), lr=0.0, weight_decay=settings.weight_decay)


def member_seed(recipe: Recipe, member: Member, stage: int) -> int:
    """A seed of its own for every member and stage, whatever else the recipe trains."""
    return zlib.crc32(f"{recipe.seed} {member.name} {stage}".encode())


def _fingerprint(
    recipe: Recipe,
    member: Member,
    training: Sequence[CachedChip],
    validation: Sequence[CachedChip],
) -> str:
    """What a state must agree on to be gone on with."""
    chips = [[chip.image_id for chip in part] for part in (training, validation)]
    return json.dumps([recipe.training_fingerprint, member.name, *chips])


def _line(member: Member, stage: Stage, progress: Progress, record: dict[str, float]) -> str:
    scores = "  ".join(f"{name} {record[name]:.3f}" for name in _SCORES if name in record)
    return (
        f"{member.name}  stage {progress.stage + 1}/{len(member.stages)}  "
        f"epoch {progress.epoch}/{stage.epochs}  loss {record['loss']:.3f}  "
        f"{record['ms_per_step']:.0f} ms/step  {record['crops_per_second']:.1f} crops/s  {scores}"
    ).rstrip()
