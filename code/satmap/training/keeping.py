"""Which weights of a training are kept."""

import json
from collections.abc import Sequence
from pathlib import Path

from satmap.errors import SatmapError
from satmap.models.unet import UNet
from satmap.models.weights import save_weights
from satmap.provenance.manifest import manifest_path
from satmap.recipe import Member, Recipe
from satmap.training.checkpoint import Progress
from satmap.training.objectives import objective_of
from satmap.training.workplace import Workplace


def require_finite(network: UNet, member: Member, progress: Progress, place: Workplace) -> None:
    """Fail before weights that are worth nothing replace others.

    Raises:
        SatmapError: a weight is infinite or not a number.
    """
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise SatmapError(
            f"{member.name}: the weights are not finite after epoch {progress.epoch + 1}. The "
            f"checkpoints so far are intact in {place.weights}; lower the learning rate."
        )


def keep_checkpoints(
    network: UNet,
    member: Member,
    recipe: Recipe,
    record: dict[str, float],
    progress: Progress,
    place: Workplace,
    held_out: Sequence[str],
) -> list[Path]:
    """Write the last weights, and the best where a score is a new best.

    Returns:
        The files written.

    Raises:
        SatmapError: a file cannot be written.
    """
    objective = objective_of(recipe)
    scores = {name: round(record[name], 5) for name in objective.scores if name in record}
    metadata = {
        "recipe": recipe.model_dump_json(),
        "member": member.name,
        "stage": f"{record['stage']:.0f}",
        "epoch": f"{record['epoch']:.0f}",
        "scores": json.dumps(scores),
        "held_out": json.dumps(held_out),
    }
    written = [place.weight_file(member, "last")]
    for score, checkpoint in objective.best.items():
        file = place.weight_file(member, checkpoint)
        if score in record and record[score] > progress.best.get(score, -1.0):
            progress.best[score] = record[score]
            save_weights(file, network, metadata)
            written.append(file)
        elif score not in progress.best:
            # Left by an earlier training that this one replaces.
            file.unlink(missing_ok=True)
            manifest_path(file).unlink(missing_ok=True)
    save_weights(written[0], network, metadata)
    return written
