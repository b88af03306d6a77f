"""Cases of bad moments: kills, jumping clocks, two runs at once."""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from faults.bench import DONE, FAILED, Bench, Running
from faults.case import Case
from faults.state_cases import many_images, same_network

# Number of kills of a training and of a prediction, each followed by the same command.
_KILLS = 20

_FAKETIME = (
    "/usr/lib/*/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
)


def moment_cases() -> list[Case]:
    """Return all cases of moments, pairs and clocks."""
    return [
        Case("moments", f"train: kill -9 at {_KILLS} random moments", _train_killed, 200),
        Case("moments", f"predict: kill -9 at {_KILLS} random moments", _predict_killed),
        Case("moments", "predict, 2 workers: kill -9 of a worker", _worker_killed),
        Case("moments", "predict: SIGTERM", lambda bench: _ended(bench, signal.SIGTERM)),
        Case("moments", "predict: SIGINT", lambda bench: _ended(bench, signal.SIGINT)),
        Case("moments", "predict: SIGHUP", lambda bench: _ended(bench, signal.SIGHUP)),
        Case("moments", "predict: stopped for 5 s and continued", _stopped),
        Case("moments", "train: SIGTERM", _train_terminated, 200),
        Case("moments", "make-city: kill -9", _city_killed),
        Case("pairs", "train and train, the same recipe", _two_trainings, 300),
        Case("pairs", "train and train, another recipe", _two_recipes, 300),
        Case("pairs", "predict and predict", lambda bench: _two_predictions(bench, 1.0)),
        Case("pairs", "predict and predict, at once", lambda bench: _two_predictions(bench, 0.0)),
        Case("pairs", "predict while train runs", _predict_while_training, 300),
        Case("clock", "mtimes of data and cache in 2200 and 1970", _odd_times, 200),
        Case("clock", "predict: the clock jumps by years, back and forth", _jumping_prediction),
        Case("clock", "train: the clock jumps by years, back and forth", _jumping_training, 300),
        Case("clock", "predict: resumes after a reboot", _other_monotonic),
        Case("clock", "predict: the year 2040", lambda bench: _dated(bench, "@2040-02-29 12:00:0")),
        Case("clock", "predict: the year 1970", lambda bench: _dated(bench, "@1970-01-02 12:00:0")),
    ]  # fmt: skip


# --- killed ---------------------------------------------------------------------------------------


def _training(bench: Bench, recipe: Path | None = None) -> tuple[object, ...]:
    return (
        "train", bench.train, "--recipe", recipe or bench.material.short, "--weights",
        bench.weights, "--cache", bench.cache, "--device", "cpu", "--workers", 0,
        "--save-minutes", "0.001",
    )  # fmt: skip


def _prediction(bench: Bench, *options: object) -> tuple[object, ...]:
    return (
        "predict", bench.test, bench.out, "--weights", bench.material.weights, "--recipe",
        bench.material.alone, *(options or ("--workers", 0)),
    )  # fmt: skip


def _killed_again_and_again(bench: Bench, arguments: Sequence[object], seconds: float) -> int:
    """Start a command and kill it repeatedly; return how many kills found it running."""
    killed = 0
    for _ in range(_KILLS):
        running = bench.start(*arguments)
        if running.wait(bench.random.uniform(0.2, 1.0) * seconds) is not None:
            continue
        killed += 1
        running.kill()
        running.wait(bench.limit_s)
        bench.must(not running.has_orphans(), "left processes behind")
        running.end_all()
    return killed


def _train_killed(bench: Bench) -> str:
    bench.copy_train()
    whole = bench.run(*_training(bench)).seconds
    for place in (bench.weights, bench.cache):
        shutil.rmtree(place)
    killed = _killed_again_and_again(bench, _training(bench), whole)
    _sweep_allowed(bench)
    ended = bench.run(*_training(bench))
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    same_network(bench)
    return f"{killed} kills while running, the same weights"


def _sweep_allowed(bench: Bench) -> None:
    """Age half-written files by an hour, after which satmap removes them."""
    old = time.time() - 7200
    for place in (bench.weights, bench.cache):
        for path in place.glob(".*"):
            os.utime(path, (old, old))


def _predict_killed(bench: Bench) -> str:
    many_images(bench)
    whole = bench.run(*_prediction(bench)).seconds
    wanted = bench.out.read_bytes()
    bench.out.unlink()
    killed = 0
    for _ in range(_KILLS):
        killed += _killed_once(bench, whole)
        if bench.out.exists():
            bench.must(bench.out.read_bytes() == wanted, "other bytes")
            bench.out.unlink()
    ended = bench.run(*_prediction(bench))
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    bench.must(bench.out.read_bytes() == wanted, "other bytes")
    left = bench.left_over()
    bench.must(not left, f"left {left}")
    return f"{killed} kills while running, the same bytes"


def _killed_once(bench: Bench, seconds: float) -> int:
    running = bench.start(*_prediction(bench))
    if running.wait(bench.random.uniform(0.3, 1.0) * seconds) is not None:
        return 0
    running.kill()
    running.wait(bench.limit_s)
    bench.must(not running.has_orphans(), "left processes behind")
    return 1


def _begun(bench: Bench, *options: object) -> Running:
    """Start a prediction and return it once some images are in its journal."""
    many_images(bench)
    journal = bench.out.with_name(f".{bench.out.name}.partial")
    running = bench.start(*_prediction(bench, *options))
    deadline = time.monotonic() + bench.limit_s
    while time.monotonic() < deadline and running.wait(0) is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 2:
            return running
        time.sleep(0.005)
    running.end_all()
    raise RuntimeError("the prediction ended before it could be killed")


def _same_after_all(bench: Bench) -> None:
    ended = bench.run(*_prediction(bench))
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    bench.must_be_valid()


def _worker_killed(bench: Bench) -> str:
    running = _begun(bench, "--workers", 2)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    workers = [
        int(child) for child in children.read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]  # fmt: skip
    os.kill(workers[0], signal.SIGKILL)
    ended = running.wait(bench.limit_s)
    if ended is None:
        running.end_all()
        bench.find("hung")
        return "hung"
    bench.inspect(ended)
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
    bench.must_say(ended, "worker")
    _same_after_all(bench)
    return "refused, resumes"


def _ended(bench: Bench, number: signal.Signals) -> str:
    running = _begun(bench)
    running.kill(number)
    ended = running.wait(30)
    if ended is None:
        running.end_all()
        bench.find(f"not ended 30 s after {number.name}")
        return "hung"
    # By the signal itself where it comes before satmap does.
    bench.inspect(ended, (DONE, 128 + number, -number))
    _same_after_all(bench)
    return f"status {ended.status}, resumes"


def _stopped(bench: Bench) -> str:
    running = _begun(bench)
    running.kill(signal.SIGSTOP)
    time.sleep(5)
    running.kill(signal.SIGCONT)
    ended = running.wait(bench.limit_s)
    if ended is None:
        running.end_all()
        bench.find("hung")
        return "hung"
    bench.inspect(ended, (DONE,))
    bench.must_be_valid()
    return "valid"


def _train_terminated(bench: Bench) -> str:
    bench.copy_train()
    running = bench.start(*_training(bench))
    deadline = time.monotonic() + bench.limit_s
    while not any(bench.weights.glob("*.state.pt")):
        if time.monotonic() > deadline or running.wait(0) is not None:
            running.end_all()
            raise RuntimeError("the training has written no state")
        time.sleep(0.01)
    running.kill(signal.SIGTERM)
    ended = running.wait(60)
    if ended is None:
        running.end_all()
        bench.find("not ended 60 s after SIGTERM")
        return "hung"
    bench.inspect(ended, (DONE, 128 + signal.SIGTERM))
    ended = bench.run(*_training(bench))
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    same_network(bench)
    return "resumes to the same weights"


def _city_killed(bench: Bench) -> str:
    city = bench.directory / "city"
    arguments = ("make-city", city, "--chips", 12, "--test-chips", 4, "--size", 128, "--seed", 3)
    for _ in range(4):
        running = bench.start(*arguments)
        running.wait(bench.random.uniform(0.5, 2.5))
        running.end_all()
        running.wait(bench.limit_s)
    ended = bench.run(*arguments)
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    for path in (bench.material.test.parent).rglob("*.*"):
        same = path.is_dir() or (
            (city / path.relative_to(bench.material.test.parent)).read_bytes() == path.read_bytes()
        )
        bench.must(same, f"{path.name} differs")
    return "rebuilt, the same bytes"


# --- two at once ----------------------------------------------------------------------------------


def _both(bench: Bench, first: Running, second: Running) -> list[int]:
    statuses = []
    # A temporary file of a running process is not left over from the other one.
    both = [(running, running.wait(bench.limit_s)) for running in (first, second)]
    for running, ended in both:
        if ended is None:
            running.end_all()
            bench.find("hung")
            continue
        bench.inspect(ended)
        statuses.append(ended.status)
        if ended.status == FAILED:
            bench.must_say(ended, "another run")
    return statuses


def _two_trainings(bench: Bench) -> str:
    bench.copy_train()
    statuses = _both(bench, bench.start(*_training(bench)), bench.start(*_training(bench)))
    bench.must(DONE in statuses, f"statuses {statuses}: nobody has trained")
    same_network(bench)
    return "one refused" if FAILED in statuses else "both done, the same weights"


def _two_recipes(bench: Bench) -> str:
    bench.copy_train()
    first = bench.start(*_training(bench))
    second = bench.start(*_training(bench, bench.material.alone))
    statuses = _both(bench, first, second)
    bench.must(sorted(statuses) == [DONE, FAILED], f"statuses {statuses}, not one of each")
    return "one refused"


def _two_predictions(bench: Bench, apart_s: float) -> str:
    many_images(bench)
    first = bench.start(*_prediction(bench))
    time.sleep(apart_s)
    statuses = _both(bench, first, bench.start(*_prediction(bench)))
    bench.must(DONE in statuses, f"statuses {statuses}: nobody has predicted")
    bench.must_be_valid()
    return "one refused" if FAILED in statuses else "both done"


def _predict_while_training(bench: Bench) -> str:
    bench.copy_train()
    bench.copy_test()
    training = bench.start(*_training(bench))
    outcomes = []
    deadline = time.monotonic() + bench.limit_s
    while training.wait(0) is None:
        if time.monotonic() > deadline:
            training.end_all()
            bench.find(f"hung: still training after {bench.limit_s:.0f} s")
            break
        ended = bench.run("predict", bench.test, bench.out, "--weights", bench.weights)
        outcomes.append(ended.status)
        bench.out.unlink(missing_ok=True)
    bench.must(set(outcomes) <= {DONE, FAILED}, f"statuses {outcomes}")
    bench.findings[:] = [found for found in bench.findings if "left weights/." not in found
                         and "left cache/." not in found]  # fmt: skip
    return f"{outcomes.count(FAILED)} refused, {outcomes.count(DONE)} valid"


# --- clocks ---------------------------------------------------------------------------------------


def _faketime(directory: Path) -> dict[str, str | None]:
    """Return variables that make a process follow the time in ``directory/clock`` at once."""
    named = os.environ.get("FAKETIME_LIB")
    found = [named] if named else [
        str(path) for pattern in _FAKETIME for path in Path("/").glob(pattern.removeprefix("/"))
    ]  # fmt: skip
    if not found:
        raise RuntimeError("libfaketime is not installed; install it or name it in $FAKETIME_LIB")
    return {
        "LD_PRELOAD": found[0], "FAKETIME_TIMESTAMP_FILE": str(directory / "clock"),
        "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip


def _jumps(bench: Bench, running: Running) -> None:
    """Let the clock jump until the command ends, and check its result."""
    deadline = time.monotonic() + bench.limit_s
    while time.monotonic() < deadline:
        # Replace the file atomically, because a partial offset would be a different one.
        new = bench.directory / "new-clock"
        new.write_text(f"{bench.random.randrange(-20 * 365, 20 * 365):+d}d\n")
        new.replace(bench.directory / "clock")
        if (ended := running.wait(0.2)) is not None:
            bench.inspect(ended)
            bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
            return
    running.end_all()
    bench.find("hung")


def _jumping_prediction(bench: Bench) -> str:
    many_images(bench)
    (bench.directory / "clock").write_text("+0d\n")
    variables = _faketime(bench.directory)
    _jumps(bench, bench.start(*_prediction(bench), environment=variables))
    bench.must_be_valid()
    return "valid"


def _jumping_training(bench: Bench) -> str:
    bench.copy_train()
    (bench.directory / "clock").write_text("+0d\n")
    variables = _faketime(bench.directory)
    _jumps(bench, bench.start(*_training(bench), environment=variables))
    same_network(bench)
    return "the same weights"


def _dated(bench: Bench, date: str) -> str:
    bench.copy_test()
    (bench.directory / "clock").write_text(f"{date}\n")
    ended = bench.predict(environment=_faketime(bench.directory))
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    bench.must_be_valid()
    return "valid"


def _other_monotonic(bench: Bench) -> str:
    running = _begun(bench)
    running.kill()
    running.wait(bench.limit_s)
    within = ("unshare", "-UrT", "--monotonic", "100000000", "--boottime", "100000000")
    ended = bench.run(*_prediction(bench), within=within)
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    bench.must_be_valid()
    return "valid"


def _odd_times(bench: Bench) -> str:
    bench.copy_train()
    ended = bench.run(*_training(bench))
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    for index, path in enumerate([*bench.train.rglob("*.*"), *bench.cache.iterdir()]):
        when = (7.2e9, 0.0)[index % 2]
        os.utime(path, (when, when))
    for path in (*bench.weights.glob("*.safetensors"), *bench.weights.glob("*.state.pt")):
        path.unlink()
    ended = bench.run(*_training(bench))
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    same_network(bench)
    return "the same weights"
