"""Training state on disk: all that a stopped training needs to go on as if it had not stopped."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from satmap.errors import SatmapError
from satmap.files import atomic_path


@dataclass
class Progress:
    """Where a member's training stands.

    Attributes:
        stage: index of the current stage; equals the number of stages when all is done.
        epoch: epochs finished in the current stage.
        best: score name (``apls``, ``dice``) to the best value so far, over all stages.
        pretrained: whether the encoder began with ImageNet weights.
        history: one record an epoch, for logs and plots.
    """

    stage: int = 0
    epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    pretrained: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(
    path: Path, fingerprint: str, network: nn.Module, optimizer: Optimizer, progress: Progress
) -> None:
    """Write the state, atomically."""
    state = {
        "fingerprint": fingerprint,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
        "torch_random": torch.get_rng_state(),
        "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
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
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
        Progress(**state["progress"])
    # A damaged file can raise nearly anything from inside the unpickler.
    except Exception as error:
        raise SatmapError(
            f"{path}: the training state cannot be read ({error!r:.200}). "
            "Pass --restart to train anew."
        ) from error
    if found != fingerprint:
        raise SatmapError(
            f"{path} was left by a training with another recipe or other chips. "
            "Give another --weights directory, or pass --restart to train anew."
        )
    return state


def restore(state: dict[str, Any], network: nn.Module, optimizer: Optimizer) -> Progress:
    """Put a loaded state back into place.

    Raises:
        SatmapError: it lacks something.
    """
    try:
        return _restore(state, network, optimizer)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SatmapError(
            f"the training state is damaged ({str(error).splitlines()[0]}). "
            "Pass --restart to train anew."
        ) from error


def _restore(state: dict[str, Any], network: nn.Module, optimizer: Optimizer) -> Progress:
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_random"])
    cuda_states: list[Tensor] = state["cuda_random"]
    if torch.cuda.is_available() and len(cuda_states) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda_states)
    return Progress(**state["progress"])
