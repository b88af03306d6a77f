"""Validation as in the challenge: whole chips, vectorised and scored by the official metric."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from satmap.data.crops import CachedChip
from satmap.report.panels import write_picture
from satmap.tasks.base import Task
from satmap.training.run_context import RunContext

# Number of chips to draw, spread over the list.
_PICTURES = 4


def validate(
    network: nn.Module,
    task: Task,
    chips: Sequence[CachedChip],
    context: RunContext,
    pictures: Path | None = None,
) -> dict[str, float]:
    """Score a network on chips that it was not trained with.

    All processes share the one or more chips. Process 0 draws a few of them into the directory
    ``pictures``, if it is given.

    Returns:
        The task's scores, all 0..1.

    Raises:
        Terminated: the process was asked to end.
    """
    network.eval()
    ranks, stop = context.ranks, context.stop
    own: list[Any] = []
    for chip in chips[ranks.rank :: ranks.world]:
        if stop.made:
            break
        own.append(task.score_chip(network, chip, context.device))
    if any(ranks.agree(stop.made)):
        raise stop.ended(
            "stopped during a validation; run the same command again to resume with it"
            if ranks.first
            else ""
        )
    shares = ranks.gather(own)
    scores = [shares[i % ranks.world][i // ranks.world] for i in range(len(chips))]
    if pictures is not None:
        ranks.on_first(lambda: _draw(chips, scores, task, pictures))
    return task.summarize(chips, scores)


def _draw(chips: Sequence[CachedChip], scores: Sequence[Any], task: Task, directory: Path) -> None:
    for index in range(0, len(chips), -(-len(chips) // _PICTURES)):
        picture = task.draw(chips[index], scores[index])
        write_picture(directory / f"{chips[index].image_id}.png", picture)
