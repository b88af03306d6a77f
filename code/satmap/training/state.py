"""The train state: everything that a stopped training needs to resume as if it had not stopped."""

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
    """The exponential moving average of a network over the steps of a training.

    The mean usually scores better than the weights themselves (for example arXiv 1905.11946).
    Batch-norm statistics are averaged like weights; counters are copied. The first steps weigh
    more, for they are far from where the training ends: the decay is at most (1 + n) / (10 + n)
    after n steps.

    Attributes:
        network: the mean, a network of its own.
        steps: how many steps are in it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the network's present state into the mean."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        present = network.state_dict()
        for name, mean in self.network.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(present[name], 1 - decay)
            else:
                mean.copy_(present[name])


# Raise when the content of a state changes.
_VERSION = 3


@dataclass
class Progress:
    """Where a member's training stands.

    Attributes:
        stage: index of the current stage; equals the number of stages when all is done.
        epoch: epochs finished in the current stage.
        schedule: how far the stage's schedule is, in epochs of the recipe. Under a time limit an
            epoch may be more or less than one of these; the stage ends at the recipe's number.
        step: optimizer steps done in the epoch under way.
        sums: of each loss over these steps, for every rank.
        seconds: time spent in the epoch under way.
        stage_seconds: time spent in the current stage before it, validations included.
        step_seconds: duration of a step in the epoch before; 0 while not known.
        validation_seconds: duration of the last validation; 0 while not known.
        saving_seconds: how long the last epoch's weights, state and log took to write.
        validated_at: ``stage_seconds`` after the last validation.
        split: in how many parts a batch is computed, for lack of memory.
        world: ranks that shared the work.
        best: score name (``apls``, ``dice``) to the best value so far, over all stages.
        pretrained: whether the encoder began with ImageNet weights.
        history: one record an epoch, for logs and plots.
        starts_from: the files that the network began with, as ``FileRecord`` writes them.
        runs: the runs that had a part in it, as ``TrainingRun`` writes them.
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
        """The beginning of the stage after this one."""
        return Progress(
            stage=self.stage + 1,
            world=self.world,
            best=self.best,
            pretrained=self.pretrained,
            history=self.history,
            starts_from=self.starts_from,
            runs=self.runs,
        )


@dataclass
class TrainState:
    """What a training changes.

    Attributes:
        network: bare, not wrapped.
        optimizer: of the network's parameters.
        average: the mean of its weights, where the recipe wants one.
    """

    network: nn.Module
    optimizer: Optimizer
    average: MovingAverage | None = None

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.average.network if self.average else self.network

    def step(self, name: str, device: torch.device) -> None:
        """Change the weights by the gradients.

        Args:
            name: of the member, for the error.
            device: likewise.

        Raises:
            SatmapError: the memory does not suffice. A step that was half made cannot be repeated,
                and smaller batches would not help: their memory is free by now.
        """
        try:
            self.optimizer.step()
            if self.average:
                self.average.update(self.network)
        except torch.OutOfMemoryError as error:
            raise SatmapError(
                f"{name}: the memory of {device} does not suffice for the optimizer. Free what "
                "else is on it and start the same command again, which resumes from the last "
                "state, or use a smaller encoder."
            ) from error


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators that this process draws from."""
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
    """Write the state, atomically.

    Args:
        path: the file.
        fingerprint: what must be the same for it to be gone on with.
        train_state: the network and what belongs to it.
        progress: where it stands.
        random: ``random_state`` of every rank.
    """
    average = train_state.average
    state = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "network": train_state.network.state_dict(),
        "optimizer": train_state.optimizer.state_dict(),
        "average": average and {"network": average.network.state_dict(), "steps": average.steps},
        "progress": vars(progress),
        "random": random,
    }
    write_state(path, state)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a whole state, atomically."""
    # Through memory: torch's own writer reports a full disk in no way that can be told apart.
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read a state, None where there is none.

    Raises:
        SatmapError: the file cannot be read, or belongs to another recipe or other data.
    """
    if not path.exists():
        return None
    try:
        refuse_pipe(path)
    except SatmapError as error:
        raise SatmapError(f"{error} Or pass --restart to train anew.") from error
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
        if state.get("version") != _VERSION:
            raise SatmapError(
                f"{path} was left by another version of satmap. Go on with that one, or pass "
                "--restart to train anew."
            )
        Progress(**state["progress"])
    except SatmapError:
        raise
    # A damaged file can raise nearly anything from inside the unpickler.
    except Exception as error:
        raise SatmapError(
            f"{path}: the training state cannot be read, for it is damaged or something else. "
            "Put back a copy of it, or pass --restart to train anew."
        ) from error
    if found != fingerprint:
        raise SatmapError(
            f"{path} was left by a training with another recipe or other chips. "
            "Give another --weights directory, or pass --restart to train anew."
        )
    return state


def save_split(path: Path, split: int) -> None:
    """Note in a state on disk, if there is one, that batches must be split so often."""
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["progress"]["split"] = split
        write_state(path, state)


def restore(
    state: dict[str, Any], train_state: TrainState, device: torch.device, rank: int
) -> Progress:
    """Put a loaded state back into place.

    Raises:
        SatmapError: it lacks something.
    """
    try:
        return _restore(state, train_state, device, rank)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise SatmapError(
            f"the training state is damaged ({str(error).splitlines()[0]}). "
            "Pass --restart to train anew."
        ) from error


def _restore(
    state: dict[str, Any], train_state: TrainState, device: torch.device, rank: int
) -> Progress:
    train_state.network.load_state_dict(state["network"])
    train_state.optimizer.load_state_dict(state["optimizer"])
    if train_state.average:
        train_state.average.network.load_state_dict(state["average"]["network"])
        train_state.average.steps = state["average"]["steps"]
    # With more ranks than before the new ones repeat the draws of the old: there are hardly any,
    # for crops have seeds of their own.
    random = state["random"][rank % len(state["random"])]
    torch.set_rng_state(random["cpu"])
    if device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], device)
    return Progress(**state["progress"])
