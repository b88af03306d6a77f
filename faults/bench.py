"""A case's own place on disk, and the commands that are run there and looked at."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from faults.forks import fork
from faults.material import Material
from satmap.evaluation.check import check_files

#: Exit statuses that the README names: done, cannot be, wrong arguments, try again.
DONE, FAILED, WRONG_ARGUMENTS, RESTART = 0, 1, 2, 75

# What must never be seen, by whichever library.
_NEVER = re.compile(
    r"Traceback \(most|Segmentation fault|Aborted|core dumped|terminate called|Exception ignored|"
    r"torch\.distributed\.elastic|resource_tracker|CPLE_|^ERROR \d+:|^Warning \d+:|"
    r"(?:User|Runtime|Future|Deprecation|Resource)Warning|^libpng |^\[\w+:\d+@|"
    r"This is an error in satmap|^free\(\)|^malloc",
    re.MULTILINE,
)
# The names of Python's exceptions are no words for users.
_FOREIGN = re.compile(r"\b(?!Satmap)[A-Z]\w*(?:Error|Exception)\b[:(]")

# Temporary files of `satmap.io.files`.
_TEMPORARY = re.compile(r"\..*-[a-z0-9_]{8}(?:\.[^.]*)?(?:-journal|-wal|-shm)?")

_SATMAP = (sys.executable, "-m", "satmap")

# Processes that a killed one leaves end by themselves, soon.
_ORPHANS_S = 15.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; minus the signal that killed it.
        printed: stdout.
        said: stderr.
        seconds: it took.
        peak_mb: greatest memory of it, or of one of the processes that it waited for.
    """

    status: int
    printed: str
    said: str
    seconds: float
    peak_mb: float


class Running:
    """A command at work."""

    def __init__(self, pid: int, logs: tuple[Path, Path]) -> None:
        """Of a process that leads a session of its own, and where it writes."""
        self.pid = pid
        self._logs = logs
        self._started = time.monotonic()
        self._ended: Ended | None = None

    def wait(self, limit_s: float) -> Ended | None:
        """How it ended; None if it is still at work after so many seconds."""
        deadline = time.monotonic() + limit_s
        while self._ended is None:
            pid, code, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                printed, said = (log.read_text(errors="replace") for log in self._logs)
                seconds = time.monotonic() - self._started
                status = os.waitstatus_to_exitcode(code)
                self._ended = Ended(status, printed, said, seconds, usage.ru_maxrss / 1024)
                break
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return self._ended

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the first process alone."""
        if self.wait(0) is None:
            os.kill(self.pid, number)

    def has_orphans(self) -> bool:
        """Whether processes that it started are still there after a while."""
        deadline = time.monotonic() + _ORPHANS_S
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.05)
        return True

    def end_all(self) -> None:
        """Kill it with all that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


@dataclass
class Bench:
    """Where a case works.

    Attributes:
        directory: its own.
        material: what is good, not to be changed.
        random: draws what is harmed, by the campaign's seed and the case's name.
        limit_s: what a command may take.
        forked: start plain commands as forks of this process, which has loaded the libraries, and
            not as programs: several times as fast.
        findings: what was not as it must be.
        seconds: of the slowest command.
        last_said: stderr of the last command.
    """

    directory: Path
    material: Material
    random: random.Random
    limit_s: float
    forked: bool = False
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    last_said: str = ""
    _runs: int = 0

    @property
    def test(self) -> Path:
        """Images to predict, once :meth:`copy_test` has put them there."""
        return self.directory / "data" / "test"

    @property
    def train(self) -> Path:
        """Chips to train with, once :meth:`copy_train` has put them there."""
        return self.directory / "data" / "train"

    @property
    def out(self) -> Path:
        """The submission."""
        return self.directory / "output" / "out.csv"

    @property
    def weights(self) -> Path:
        """Weights of the case's own."""
        return self.directory / "weights"

    @property
    def cache(self) -> Path:
        """The case's own cache of prepared chips."""
        return self.directory / "cache"

    def image(self, number: int, kind: str = "PS-MS") -> Path:
        """Path of a test image."""
        return self.test / kind / f"SN5_roads_test_public_AOI_99_Made_{kind}_chip{number}.tif"

    def label(self, number: int) -> Path:
        """Path of a training label."""
        name = f"SN5_roads_train_AOI_99_Made_geojson_roads_speed_chip{number}.geojson"
        return self.train / "geojson_roads_speed" / name

    def copy_test(self, kind: str = "PS-MS") -> None:
        """Put the test images of one product in place."""
        source = next(self.material.test.iterdir()) / kind
        shutil.copytree(source, self.test / kind)

    def copy_train(self) -> None:
        """Put the training chips in place."""
        shutil.copytree(next(self.material.train.iterdir()), self.train)

    def copy_weights(self) -> Path:
        """Put the weights of the trained network in place; gives the file."""
        self.weights.mkdir(exist_ok=True)
        return Path(shutil.copy2(self.material.network, self.weights))

    def start(
        self,
        *arguments: object,
        within: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        program: Sequence[str] = _SATMAP,
    ) -> Running:
        """Start a command.

        Args:
            arguments: of satmap.
            within: a command that is to run it, such as ``unshare -Urm``.
            environment: variables that are different; None for one that is not there.
            stdin: where it reads.
            program: what to start instead of satmap.
        """
        self._runs += 1
        home, temporary = self.directory / "home", self.directory / "tmp"
        for path in (home, temporary, self.out.parent):
            path.mkdir(exist_ok=True)
        variables: dict[str, str | None] = {
            **os.environ, "HOME": str(home), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1",
            "SATMAP_CACHE": str(self.cache), **(environment or {}),
        }  # fmt: skip
        logs = (
            self.directory / f"{self._runs}.stdout",
            self.directory / f"{self._runs}.stderr",
        )
        given = {name: value for name, value in variables.items() if value is not None}
        if self.forked and not within and environment is None and program == _SATMAP:
            return Running(fork(arguments, self.directory, given, logs), logs)
        with logs[0].open("wb") as stdout, logs[1].open("wb") as stderr:
            process = subprocess.Popen(
                [*within, *program, *map(str, arguments)],
                cwd=self.directory,
                env=given,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        # Waited for by `Running`, by its number.
        process.returncode = 0
        return Running(process.pid, logs)

    def run(
        self,
        *arguments: object,
        within: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        program: Sequence[str] = _SATMAP,
        statuses: Sequence[int] = (DONE, FAILED, WRONG_ARGUMENTS, RESTART),
    ) -> Ended:
        """Run a command to its end, and look at what every command must keep to.

        Args:
            arguments: of satmap.
            within: as of :meth:`start`.
            environment: as of :meth:`start`.
            stdin: as of :meth:`start`.
            program: as of :meth:`start`.
            statuses: with which it may end.
        """
        running = self.start(
            *arguments, within=within, environment=environment, stdin=stdin, program=program
        )
        ended = running.wait(self.limit_s)
        if ended is None:
            running.end_all()
            running.wait(_ORPHANS_S)
            self.find(f"hung: not done after {self.limit_s:.0f} s")
            return Ended(DONE, "", "", self.limit_s, 0.0)
        self.inspect(ended, statuses)
        if running.has_orphans():
            running.end_all()
            self.find("left processes behind")
        return ended

    def inspect(
        self, ended: Ended, statuses: Sequence[int] = (DONE, FAILED, WRONG_ARGUMENTS, RESTART)
    ) -> None:
        """Look at what every command must keep to: status, messages, temporary files."""
        self.seconds = max(self.seconds, ended.seconds)
        self.last_said = ended.said
        if ended.status not in statuses:
            self.find(f"ended with status {ended.status}: {ended.said.strip()[-200:]}")
        for text in (ended.printed, ended.said):
            if match := _NEVER.search(text) or _FOREIGN.search(text):
                line = text[text.rfind("\n", 0, match.start()) + 1 :].split("\n")[0]
                self.find(f"printed {line[:300]!r}")
        if (
            ended.status == FAILED
            and "satmap: " not in ended.said
            and "faults" not in ended.printed
        ):
            self.find(f"no message: {ended.said.strip()[-200:]!r}")
        for place in (self.out.parent, self.weights, self.cache, self.directory / "tmp"):
            for path in place.glob(".*") if place.is_dir() else ():
                if _TEMPORARY.fullmatch(path.name):
                    self.find(f"left {path.relative_to(self.directory)}")

    def find(self, what: str) -> None:
        """Note that something is not as it must be."""
        self.findings.append(what)

    def must(self, holds: bool, what: str) -> None:
        """Note it if a condition does not hold."""
        if not holds:
            self.find(what)

    def must_say(self, ended: Ended, *texts: str) -> None:
        """The command's messages must hold all of the texts."""
        for text in texts:
            self.must(text in ended.said, f"does not say {text!r}: {ended.said.strip()[-300:]!r}")

    def must_refuse(self, ended: Ended, *texts: str) -> None:
        """The command must have ended with a message that holds the texts, and no output."""
        self.must(ended.status in (FAILED, WRONG_ARGUMENTS), f"status {ended.status}, not 1")
        self.must(not self.out.exists(), f"wrote {self.out.name} all the same")
        self.must_say(ended, *texts)

    def predict(self, *options: object, alone: bool = True, **how: object) -> Ended:
        """Predict the test images; each for itself, so that bad ones cannot change good ones."""
        recipe = self.material.alone if alone else self.material.together
        weights = self.weights if self.weights.exists() else self.material.weights
        arguments = ("--weights", weights, "--recipe", recipe, "--workers", 0, *options)
        return self.run("predict", self.test, self.out, *arguments, **how)  # type: ignore[arg-type]

    def left_over(self) -> list[str]:
        """What lies beside the submission and its manifest."""
        wanted = {self.out.name, f"{self.out.name}.manifest.json"}
        return sorted(p.name for p in self.out.parent.iterdir() if p.name not in wanted)

    def must_be_valid(self, *, harmed: Sequence[str] = (), alone: bool = True) -> None:
        """The submission must be one that organisers take, and unharmed images as undisturbed."""
        if not self.out.exists():
            self.find("no submission")
            return
        for fault in check_files(self.out, [self.test])[:3]:
            self.find(f"satmap check, line {fault.line}: {fault.message}")
        good = self.material.rows(alone)
        found = rows_of(self.out)
        for image_id, lines in good.items():
            if image_id not in harmed and found.get(image_id) != lines:
                self.find(f"{image_id} is not as in an undisturbed run")


def rows_of(path: Path) -> dict[str, list[str]]:
    """The lines of a submission by image."""
    rows: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        rows.setdefault(line.split(",", 1)[0], []).append(line)
    return rows
