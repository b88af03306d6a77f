"""Where a training runs and what it may use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from satmap.provenance.manifest import now
from satmap.recipe import Member
from satmap.runtime.ranks import Ranks
from satmap.training.interruption import StopRequest


@dataclass(frozen=True)
class Circumstances:
    """What the manifests of weights tell of a training and nothing else needs to know.

    Attributes:
        command: satmap's arguments; empty if it was called from Python.
        started: when this process began, in UTC.
        time_limit_s: seconds that the training may take; None for no limit.
        skipped: id to the reason, for chips that cannot be used.
    """

    command: tuple[str, ...] = ()
    started: str = field(default_factory=now)
    time_limit_s: float | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Workplace:
    """Where a training runs and what it may use.

    Attributes:
        weights: directory of the weight files.
        device: where networks run.
        workers: processes that cut crops; 0 cuts them in the main process.
        pipes: workers hand crops over through pipes, not in shared memory.
        restart: forget the state of an earlier training.
        compile: run the networks through ``torch.compile``.
        save_minutes: how much work a kill may cost where an epoch is longer than that.
        tensorboard: directory of TensorBoard's event files; None for none.
        ranks: the processes that share the work at hand.
        stop: whether the process was asked to end.
        circumstances: what manifests tell of the training.
    """

    weights: Path
    device: torch.device
    workers: int = 0
    pipes: bool = False
    restart: bool = False
    compile: bool = False
    save_minutes: float = 10.0
    tensorboard: Path | None = None
    ranks: Ranks = field(default_factory=Ranks)
    stop: StopRequest = field(default_factory=StopRequest)
    circumstances: Circumstances = field(default_factory=Circumstances)

    def weight_file(self, member: Member, checkpoint: str) -> Path:
        """The file of a checkpoint, ``fold0-dpn92-3band.best_apls.safetensors``."""
        return self.weights / f"{member.name}.{checkpoint}.safetensors"

    def state_file(self, member: Member) -> Path:
        """The file of the member's training state."""
        return self.weights / f"{member.name}.state.pt"
