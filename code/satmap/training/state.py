"""The train state: everything that a stopped training needs to resume exactly."""

import copy
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from satmap.errors import SatmapError
from satmap.io.files import atomic_path, refuse_pipe


class MovingAverage:
    """Exponential moving average of a network's weights over a number of training steps.

    The average usually scores better than the weights themselves (for example arXiv 1905.11946).
    Batch-norm statistics are averaged like weights; counters are copied. After n steps the decay is
    at most (1 + n) / (10 + n), so that the average forgets the first weights quickly.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the network's current state to the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        present = network.state_dict()
        for name, mean in self.network.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(present[name], 1 - decay)
            else:
                mean.copy_(present[name])


# Increase this when the content of a state changes.
_VERSION = 3


@dataclass
class Progress:
    """Progress of a member's training.

    Attributes:
        stage: index of the current stage; the number of stages when the training is complete.
        epoch: finished epochs of the current stage.
        schedule: position in the stage's schedule, in epochs of the recipe. Under a time limit an
            epoch may cover more or less than one of these. The stage ends at the recipe's number.
        step: finished optimizer steps of the current epoch.
        sums: sums of each loss over these steps, for every process.
        seconds: time spent in the current epoch.
        stage_seconds: time spent in the current stage before this epoch, with validations.
        step_seconds: duration of a step in the previous epoch; 0 if not known yet.
        validation_seconds: duration of the last validation; 0 if not known yet.
        saving_seconds: time to write weights, state and log after the last epoch.
        validated_at: ``stage_seconds`` after the last validation.
        split: number of parts in which a batch is computed to save memory.
        world: number of processes that shared the work.
        best: score name (``apls``, ``dice``) to the best value so far, over all stages.
        pretrained: whether the encoder started from trained weights.
        history: one record per epoch, for logs and plots.
        starts_from: the files that the network was initialised from, as ``FileRecord`` dumps.
        runs: the runs of this training, as ``TrainingRun`` dumps.
    """

    stage: int = 0
    epoch: int = 0
    schedule: float = 0.0
    step: int = 0
    sums: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    stage_seconds: float = 0.0
    step_seconds: float = 0.0
    validation_seconds: float = 0.0
    saving_seconds: float = 0.0
    validated_at: float = 0.0
    split: int = 1
    world: int = 1
    best: dict[str, float] = field(default_factory=dict)
    pretrained: bool = False
    history: list[dict[str, float]] = field(default_factory=list)
    starts_from: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def next_stage(self) -> "Progress":
        """Return the progress at the start of the next stage."""
        kept = ("world", "best", "pretrained", "history", "starts_from", "runs")
        return Progress(stage=self.stage + 1, **{name: getattr(self, name) for name in kept})


@dataclass
class TrainState:
    """The unwrapped network, its optimizer and, if the recipe has one, its moving average."""

    network: nn.Module
    optimizer: Optimizer
    average: MovingAverage | None = None

    @property
    def result(self) -> nn.Module:
        """The network that is validated and saved: the average if there is one."""
        return self.average.network if self.average else self.network

    def step(self, member: str, device: torch.device) -> None:
        """Make an optimizer step. Member and device are named in the error message.

        Raises:
            SatmapError: the memory does not suffice. Smaller batches would not help, because the
                memory of the batch is free at this point, and a partial step cannot be repeated.
        """
        try:
            self.optimizer.step()
            if self.average:
                self.average.update(self.network)
        except torch.OutOfMemoryError as error:
            raise SatmapError(
                f"{member}: the memory of {device} does not suffice for the optimizer. Stop other "
                "programs that use it and run the same command again to resume from the last "
                "state, or use a smaller encoder."
            ) from error


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's random number generators in this process."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def save_state(
    path: Path,
    fingerprint: str,
    train_state: TrainState,
    progress: Progress,
    random: list[dict[str, Tensor]],
) -> None:
    """Write the train state, atomically. ``random`` is the ``random_state`` of every process."""
    average = train_state.average
    content = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "network": train_state.network.state_dict(),
        "optimizer": train_state.optimizer.state_dict(),
        "average": average and {"network": average.network.state_dict(), "steps": average.steps},
        "progress": vars(progress),
        "random": random,
    }
    _write(path, content)


def _write(path: Path, state: dict[str, Any]) -> None:
    # Through memory, because torch's writer reports a full disk like any other error.
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read a train state; None if there is no file.

    Raises:
        SatmapError: the file cannot be read, or belongs to another recipe or other data.
    """
    if not path.exists():
        return None
    try:
        refuse_pipe(path)
    except SatmapError as error:
        raise SatmapError(f"{error} Or pass --restart to train again.") from error
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
        if state.get("version") != _VERSION:
            raise SatmapError(
                f"{path} was left by another version of satmap. Resume with that version, or "
                "pass --restart to train again."
            )
        Progress(**state["progress"])
    except SatmapError:
        raise
    # A damaged file can raise nearly anything from inside the unpickler.
    except Exception as error:
        raise SatmapError(
            f"{path}: the training state cannot be read; it is damaged or another kind of file. "
            "Put back a copy of it, or pass --restart to train again."
        ) from error
    if found != fingerprint:
        raise SatmapError(
            f"{path} was left by a training with another recipe or other chips. "
            "Give another --weights directory, or pass --restart to train again."
        )
    return state


def save_split(path: Path, split: int) -> None:
    """Write the number of parts of a batch into an existing state file."""
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["progress"]["split"] = split
        _write(path, state)


def restore(
    state: dict[str, Any], train_state: TrainState, device: torch.device, rank: int
) -> Progress:
    """Restore a loaded state into the network, optimizer, average and random generators.

    Raises:
        SatmapError: the state is damaged.
    """
    try:
        train_state.network.load_state_dict(state["network"])
        train_state.optimizer.load_state_dict(state["optimizer"])
        if train_state.average:
            train_state.average.network.load_state_dict(state["average"]["network"])
            train_state.average.steps = state["average"]["steps"]
        # With more processes than before, the new ones reuse the generator states of the others.
        # That matters little, because crops have their own seeds.
        random = state["random"][rank % len(state["random"])]
        torch.set_rng_state(random["cpu"])
        if device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], device)
        return Progress(**state["progress"])
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise SatmapError(
            f"the training state is damaged ({str(error).splitlines()[0]}). "
            "Pass --restart to train again."
        ) from error
