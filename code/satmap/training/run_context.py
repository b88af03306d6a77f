"""Where and with what a training runs, and how it reacts to requests to stop."""

import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from satmap.io.checksums import FileRecord
from satmap.provenance.manifest import now
from satmap.recipes.schema import Member
from satmap.runtime.ranks import Ranks
from satmap.runtime.termination import Terminated, ignore_signals, on_signals


class StopRequest:
    """Request to stop by SIGTERM, Ctrl-C or SIGHUP.

    Outside of ``deferred`` a signal raises ``Terminated`` at once. Inside, the running code checks
    ``made`` from time to time, saves its work and raises ``ended()``.

    Attributes:
        made: whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.made = False
        self._number: int = signal.SIGTERM
        self._deferred = False

    def ended(self, message: str | None = None) -> Terminated:
        """Return the exception to raise, also if another process of the job got the signal."""
        return Terminated(self._number, message)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Do not interrupt the block; raise after it if a signal arrived meanwhile."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if self.made and not before:
            raise self.ended()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        ignore_signals()
        self._number, self.made = number, True
        if not self._deferred:
            raise self.ended()


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handle signals while the block runs; does nothing outside the main thread."""
    request = StopRequest()
    with on_signals(request._handle):
        yield request


@dataclass(frozen=True)
class RunInfo:
    """Facts about a training that are only for the manifests of its weights.

    Attributes:
        command: satmap's arguments; empty if called from Python.
        started: start time of this process, UTC.
        time_limit_s: time limit of the training, seconds; None for no limit.
        skipped: image id to the reason, for chips that cannot be used.
        judgement: ``judgement.json`` of judged labels; None for the images' own labels.
    """

    command: tuple[str, ...] = ()
    started: str = field(default_factory=now)
    time_limit_s: float | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    judgement: FileRecord | None = None


@dataclass(frozen=True)
class RunContext:
    """Where a training runs and what it may use.

    Attributes:
        weights: directory of the weight files.
        device: device of the networks.
        workers: processes that cut crops; 0 cuts them in the main process.
        pipes: whether workers pass crops through pipes instead of shared memory.
        restart: whether to discard the state of an earlier training.
        compile: whether to run the networks through ``torch.compile``.
        save_minutes: time between two saved states within a long epoch, minutes.
        tensorboard: directory of TensorBoard's event files; None to write none.
        ranks: the processes that share the work.
        stop: the request to stop.
        info: facts for the manifests.
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
    info: RunInfo = field(default_factory=RunInfo)

    def weight_file(self, member: Member, checkpoint: str) -> Path:
        """Return the file of a checkpoint, such as ``fold0-dpn92-3band.best_apls.safetensors``."""
        return self.weights / f"{member.name}.{checkpoint}.safetensors"

    def state_file(self, member: Member) -> Path:
        """Return the file of the member's train state."""
        return self.weights / f"{member.name}.state.pt"
