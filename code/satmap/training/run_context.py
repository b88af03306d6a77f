"""Asked to end, a training ends at the next moment that costs nothing."""

import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from satmap.provenance.manifest import now
from satmap.recipes.schema import Member
from satmap.runtime.ranks import Ranks
from satmap.runtime.termination import Terminated, ignore_signals, on_signals


class StopRequest:
    """Whether SIGTERM, Ctrl-C or SIGHUP has come.

    Outside of ``deferred`` it ends what is running by ``Terminated``; inside, whoever works
    looks at ``made`` from time to time, keeps the work and raises ``ended`` by himself.
    """

    def __init__(self) -> None:
        self._number = 0
        self._deferred = False

    @property
    def made(self) -> bool:
        """Whether it has come."""
        return bool(self._number)

    def ended(self, message: str | None = None) -> Terminated:
        """What to raise; also where the request was made to another process of the job."""
        return Terminated(self._number or signal.SIGTERM, message)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block finish what it must not leave half done."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if self.made and not before:
            raise self.ended()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        ignore_signals()
        self._number = number
        if not self._deferred:
            raise self.ended()


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen to signals while the block runs; not in threads, where they never arrive."""
    request = StopRequest()
    with on_signals(request._handle):
        yield request


@dataclass(frozen=True)
class RunInfo:
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
class RunContext:
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
        info: what manifests tell of the training.
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
        """The file of a checkpoint, ``fold0-dpn92-3band.best_apls.safetensors``."""
        return self.weights / f"{member.name}.{checkpoint}.safetensors"

    def state_file(self, member: Member) -> Path:
        """The file of the member's training state."""
        return self.weights / f"{member.name}.state.pt"
