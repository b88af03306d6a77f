"""Where a training runs and what it may use."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from satmap.recipe import Member
from satmap.training.interruption import StopRequest
from satmap.training.ranks import Ranks


@dataclass(frozen=True)
class Workplace:
    """Where a training runs and what it may use.

    Attributes:
        weights: directory of the weight files.
        device: where networks run.
        workers: processes that cut crops; 0 cuts them in the main process.
        restart: forget the state of an earlier training.
        compile: run the networks through ``torch.compile``.
        save_minutes: how much work a kill may cost where an epoch is longer than that.
        tensorboard: directory of TensorBoard's event files; None for none.
        ranks: the processes that share the work at hand.
        stop: whether the process was asked to end.
    """

    weights: Path
    device: torch.device
    workers: int = 0
    restart: bool = False
    compile: bool = False
    save_minutes: float = 10.0
    tensorboard: Path | None = None
    ranks: Ranks = field(default_factory=Ranks)
    stop: StopRequest = field(default_factory=StopRequest)

    def weight_file(self, member: Member, checkpoint: str) -> Path:
        """The file of a checkpoint, ``fold0-dpn92-3band.best_apls.safetensors``."""
        return self.weights / f"{member.name}.{checkpoint}.safetensors"

    def state_file(self, member: Member) -> Path:
        """The file of the member's training state."""
        return self.weights / f"{member.name}.state.pt"
