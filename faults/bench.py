"""Working directory of a case, and the commands that run and are checked there."""

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

#: Exit statuses documented in the README: done, failed, wrong arguments, restart.
DONE, FAILED, WRONG_ARGUMENTS, RESTART = 0, 1, 2, 75

# Output that must never appear, from any library.
_NEVER = re.compile(
    r"Traceback \(most|Segmentation fault|Aborted|core dumped|terminate called|Exception ignored|"
    r"torch\.distributed\.elastic|resource_tracker|CPLE_|^ERROR \d+:|^Warning \d+:|"
    r"(?:User|Runtime|Future|Deprecation|Resource)Warning|^libpng |^\[\w+:\d+@|"
    r"This is an error in satmap|^free\(\)|^malloc",
    re.MULTILINE,
)
# Names of Python exceptions, which mean nothing to users.
_FOREIGN = re.compile(r"\b(?!Satmap)[A-Z]\w*(?:Error|Exception)\b[:(]")

# Temporary files of `satmap.io.files`.
_TEMPORARY = re.compile(r"\..*-[a-z0-9_]{8}(?:\.[^.]*)?(?:-journal|-wal|-shm)?")

_SATMAP = (sys.executable, "-m", "satmap")

# Time within which the children of a killed process must end, seconds.
_ORPHANS_S = 15.0


@dataclass(frozen=True)
class Ended:
    """Result of a command.

    Attributes:
        status: exit status, or minus the number of the signal that killed it.
        stdout: standard output.
        stderr: standard error.
        seconds: run time.
        peak_mb: peak memory of the command or of one of its children that it waited for.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    peak_mb: float


class Running:
    """Running command."""

    def __init__(self, pid: int, logs: tuple[Path, Path]) -> None:
        """Wrap a session leader and the log files of its stdout and stderr."""
        self.pid = pid
        self._logs = logs
        self._started = time.monotonic()
        self._ended: Ended | None = None

    def wait(self, limit_s: float) -> Ended | None:
        """Return the result, or None if the command still runs after ``limit_s`` seconds."""
        deadline = time.monotonic() + limit_s
        while self._ended is None:
            pid, code, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                stdout, stderr = (log.read_text(errors="replace") for log in self._logs)
                seconds = time.monotonic() - self._started
                status = os.waitstatus_to_exitcode(code)
                self._ended = Ended(status, stdout, stderr, seconds, usage.ru_maxrss / 1024)
                break
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return self._ended

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the first process only."""
        if self.wait(0) is None:
            os.kill(self.pid, number)

    def has_orphans(self) -> bool:
        """Return whether processes that it started are still alive after 15 seconds."""
        deadline = time.monotonic() + _ORPHANS_S
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.05)
        return True

    def end_all(self) -> None:
        """Kill the command and all processes that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


@dataclass
class Bench:
    """Working directory and helpers of a case.

    Attributes:
        directory: the case's own directory.
        material: undamaged data, which must not be changed.
        random: random generator for the damage, seeded by campaign and case name.
        limit_s: time limit of a command, seconds.
        forked: start plain commands as forks of this process, which has loaded the libraries,
            instead of as programs. This is several times as fast.
        findings: violated expectations.
        seconds: run time of the slowest command.
        last_stderr: stderr of the last command.
    """

    directory: Path
    material: Material
    random: random.Random
    limit_s: float
    forked: bool = False
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    last_stderr: str = ""
    _runs: int = 0

    @property
    def test(self) -> Path:
        """Directory of the images to predict, filled by :meth:`copy_test`."""
        return self.directory / "data" / "test"

    @property
    def train(self) -> Path:
        """Directory of the training chips, filled by :meth:`copy_train`."""
        return self.directory / "data" / "train"

    @property
    def out(self) -> Path:
        """Path of the submission."""
        return self.directory / "output" / "out.csv"

    @property
    def weights(self) -> Path:
        """Directory of the case's own weights."""
        return self.directory / "weights"

    @property
    def cache(self) -> Path:
        """Directory of the case's own cache of prepared chips."""
        return self.directory / "cache"

    def image(self, number: int, kind: str = "PS-MS") -> Path:
        """Return the path of a test image."""
        return self.test / kind / f"SN5_roads_test_public_AOI_99_Made_{kind}_chip{number}.tif"

    def label(self, number: int) -> Path:
        """Return the path of a training label."""
        name = f"SN5_roads_train_AOI_99_Made_geojson_roads_speed_chip{number}.geojson"
        return self.train / "geojson_roads_speed" / name

    def copy_test(self, kind: str = "PS-MS") -> None:
        """Copy the test images of one product into the case."""
        source = next(self.material.test.iterdir()) / kind
        shutil.copytree(source, self.test / kind)

    def copy_train(self) -> None:
        """Copy the training chips into the case."""
        shutil.copytree(next(self.material.train.iterdir()), self.train)

    def copy_weights(self) -> Path:
        """Copy the weights of the trained network into the case and return the file."""
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
            arguments: arguments of satmap.
            within: command prefix that runs it, such as ``unshare -Urm``.
            environment: changed environment variables; None removes a variable.
            stdin: standard input.
            program: program to start instead of satmap.
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
        # `Running` waits for the process by its id.
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
        """Run a command to its end and check the rules for all commands.

        Args:
            arguments: arguments of satmap.
            within: see :meth:`start`.
            environment: see :meth:`start`.
            stdin: see :meth:`start`.
            program: see :meth:`start`.
            statuses: allowed exit statuses.
        """
        running = self.start(
            *arguments, within=within, environment=environment, stdin=stdin, program=program
        )
        ended = running.wait(self.limit_s)
        if ended is None:
            running.end_all()
            running.wait(_ORPHANS_S)
            self.find(f"hung: still running after {self.limit_s:.0f} s")
            return Ended(DONE, "", "", self.limit_s, 0.0)
        self.inspect(ended, statuses)
        if running.has_orphans():
            running.end_all()
            self.find("left processes behind")
        return ended

    def inspect(
        self, ended: Ended, statuses: Sequence[int] = (DONE, FAILED, WRONG_ARGUMENTS, RESTART)
    ) -> None:
        """Check the rules for all commands: status, messages, temporary files."""
        self.seconds = max(self.seconds, ended.seconds)
        self.last_stderr = ended.stderr
        if ended.status not in statuses:
            self.find(f"ended with status {ended.status}: {ended.stderr.strip()[-200:]}")
        for text in (ended.stdout, ended.stderr):
            if match := _NEVER.search(text) or _FOREIGN.search(text):
                line = text[text.rfind("\n", 0, match.start()) + 1 :].split("\n")[0]
                self.find(f"printed {line[:300]!r}")
        if (
            ended.status == FAILED
            and "satmap: " not in ended.stderr
            and "faults" not in ended.stdout
        ):
            self.find(f"no message: {ended.stderr.strip()[-200:]!r}")
        for place in (self.out.parent, self.weights, self.cache, self.directory / "tmp"):
            for path in place.glob(".*") if place.is_dir() else ():
                if _TEMPORARY.fullmatch(path.name):
                    self.find(f"left {path.relative_to(self.directory)}")

    def find(self, what: str) -> None:
        """Record a finding."""
        self.findings.append(what)

    def must(self, holds: bool, what: str) -> None:
        """Record a finding unless a condition holds."""
        if not holds:
            self.find(what)

    def must_say(self, ended: Ended, *texts: str) -> None:
        """Require that the command's messages contain all texts."""
        for text in texts:
            self.must(
                text in ended.stderr, f"does not say {text!r}: {ended.stderr.strip()[-300:]!r}"
            )

    def must_refuse(self, ended: Ended, *texts: str) -> None:
        """Require that the command failed without output, with a message containing all texts."""
        self.must(ended.status in (FAILED, WRONG_ARGUMENTS), f"status {ended.status}, not 1")
        self.must(not self.out.exists(), f"wrote {self.out.name} nevertheless")
        self.must_say(ended, *texts)

    def predict(self, *options: object, alone: bool = True, **how: object) -> Ended:
        """Predict the test images.

        With ``alone``, each image is vectorised alone, so that bad images cannot change good ones.
        """
        recipe = self.material.alone if alone else self.material.together
        weights = self.weights if self.weights.exists() else self.material.weights
        arguments = ("--weights", weights, "--recipe", recipe, "--workers", 0, *options)
        return self.run("predict", self.test, self.out, *arguments, **how)  # type: ignore[arg-type]

    def left_over(self) -> list[str]:
        """Return the names of files beside the submission and its manifest."""
        wanted = {self.out.name, f"{self.out.name}.manifest.json"}
        return sorted(p.name for p in self.out.parent.iterdir() if p.name not in wanted)

    def must_be_valid(self, *, harmed: Sequence[str] = (), alone: bool = True) -> None:
        """Require a valid submission in which undamaged images are as in an undisturbed run."""
        if not self.out.exists():
            self.find("no submission")
            return
        for fault in check_files(self.out, [self.test])[:3]:
            self.find(f"satmap check, line {fault.line}: {fault.message}")
        good = self.material.rows(alone)
        found = rows_of(self.out)
        for image_id, lines in good.items():
            if image_id not in harmed and found.get(image_id) != lines:
                self.find(f"{image_id} differs from an undisturbed run")


def rows_of(path: Path) -> dict[str, list[str]]:
    """Return the lines of a submission by image."""
    rows: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        rows.setdefault(line.split(",", 1)[0], []).append(line)
    return rows
