"""Cases of odd machines and shells: limits, locales, closed streams, missing variables."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from faults.bench import DONE, FAILED, WRONG_ARGUMENTS, Bench, Ended
from faults.case import Case

VALID, REFUSED, EITHER = "valid", "refused", ""

_ROOT = Path(__file__).parents[1]


def machine_cases() -> list[Case]:
    """Return all cases of machines."""
    nowhere = "/nowhere/at/all"
    return [
        _predicted("HOME unset", environment={"HOME": None}),
        _predicted("HOME nowhere", environment={"HOME": nowhere}),
        _predicted("TMPDIR nowhere", environment={"TMPDIR": nowhere}),
        _predicted("no variables but PATH", within=("env", "-i", f"PATH={os.environ['PATH']}",
                   f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS=1")),
        _predicted("locale C", environment={"LC_ALL": "C", "PYTHONUTF8": "0",
                                            "PYTHONCOERCECLOCALE": "0"}),
        _predicted("a missing locale", environment={"LC_ALL": "xx_XX.koi8"}),
        _predicted("PYTHONHASHSEED=1", environment={"PYTHONHASHSEED": "1"}),
        _predicted("PYTHONHASHSEED=77", environment={"PYTHONHASHSEED": "77"}),
        _predicted("python -O", environment={"PYTHONOPTIMIZE": "1"}),
        _predicted("OMP_NUM_THREADS of nonsense", environment={"OMP_NUM_THREADS": "many"},
                   outcome=EITHER),
        _predicted("COLUMNS=0 and TERM=dumb", environment={"COLUMNS": "0", "TERM": "dumb"}),
        _predicted("umask 777", within=_shell('umask 777; exec "$@"'), outcome=EITHER),
        _predicted("umask 077", within=_shell('umask 077; exec "$@"')),
        _predicted("stdin closed", within=_shell('exec "$@" <&-')),
        _predicted("stdout closed", within=_shell('exec "$@" >&-')),
        _predicted("stderr closed", within=_shell('exec "$@" 2>&-')),
        _predicted("all three closed", within=_shell('exec "$@" <&- >&- 2>&-')),
        _predicted("stdout on a full disk", within=_shell('exec "$@" >/dev/full'), outcome=EITHER),
        _predicted("64 open files", within=("prlimit", "--nofile=64")),
        _predicted("64 open files, 2 workers", within=("prlimit", "--nofile=64"),
                   options=("--workers", 2)),
        _predicted("20 open files", within=("prlimit", "--nofile=20"), outcome=EITHER),
        _predicted("1 GB of address space", within=("prlimit", f"--as={10**9}"), outcome=EITHER),
        _predicted("2 GB of address space, 2 workers", within=("prlimit", f"--as={2 * 10**9}"),
                   options=("--workers", 2), outcome=EITHER),
        _predicted("files of 1,000 bytes at most", within=("prlimit", "--fsize=1000"),
                   outcome=EITHER),
        _predicted("a stack of 256 KB", within=("prlimit", "--stack=262144"), outcome=EITHER),
        _predicted("one core", within=("taskset", "-c", "0")),
        _predicted("SIGPIPE, SIGHUP and SIGCHLD ignored",
                   within=_shell("trap '' PIPE HUP CHLD; exec \"$@\"")),
        _predicted("3 workers", options=("--workers", 3)),
        _predicted("2 processes", options=("--processes", 2)),
        _refused("--device cuda without a GPU", "--device", "cuda"),
        _refused("--device of nonsense", "--device", "toaster"),
        _refused("--workers -1", "--workers", "-1"),
        _refused("--workers of Arabic digits", "--workers", "٣"),
        _refused("an unknown option", "--speed", "high"),
        _refused("an unknown recipe", "--recipe", "sn9"),
        _refused("--export of an unknown format", "--export", "roads.shp"),
        Case("machine", "score | head -1", _head),
        Case("machine", "score --json to a closed pipe", _gone_reader),
        Case("machine", "check of a million rows to a closed pipe", _gone_reader_of_many),
        Case("machine", "run from a directory that was deleted", _deleted_directory),
        Case("machine", "test.sh from elsewhere, with spaces", _script),
        Case("machine", "test.sh without arguments", _script_alone),
        Case("machine", "train.sh without ImageNet weights", _train_script),
    ]  # fmt: skip


def _shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script, "sh")


def _predicted(
    name: str,
    *,
    within: tuple[str, ...] = (),
    environment: Mapping[str, str | None] | None = None,
    options: tuple[object, ...] = (),
    outcome: str = VALID,
) -> Case:
    """Predict on an odd machine and expect the bytes of an undisturbed run or a clear refusal."""

    def play(bench: Bench) -> str:
        bench.copy_test()
        ended = bench.predict(*options, within=within, environment=environment)
        return _took(bench, ended, outcome)

    return Case("machine", f"predict: {name}", play)


def _took(bench: Bench, ended: Ended, outcome: str) -> str:
    if outcome == VALID or ended.status == DONE:
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
        bench.must_be_valid()
        return VALID
    bench.must(ended.status == FAILED, f"status {ended.status}: {ended.stderr!r}")
    bench.must(bench.predict().status == DONE, "does not resume on a sound machine")
    bench.must_be_valid()
    return REFUSED


def _refused(name: str, *options: str) -> Case:
    def play(bench: Bench) -> str:
        bench.copy_test()
        ended = bench.run(
            "predict", bench.test, bench.out, "--weights", bench.material.weights, *options
        )
        bench.must(ended.status in (FAILED, WRONG_ARGUMENTS), f"status {ended.status}")
        bench.must(not bench.out.exists(), "wrote a submission nevertheless")
        bench.must(options[-1] in ended.stderr or options[0] in ended.stderr, f"{ended.stderr!r}")
        return REFUSED

    return Case("machine", f"predict: {name}", play)


def _score(bench: Bench, *options: str) -> tuple[str, ...]:
    truth = str(bench.material.predicted_alone)
    return (sys.executable, "-m", "satmap", "score", truth, truth, *options)


def _piped(bench: Bench, command: tuple[str, ...], reader: str) -> Ended:
    script = f'"$@" | {reader}'
    return bench.run(program=("sh", "-c", script, "sh", *command))


def _head(bench: Bench) -> str:
    ended = _piped(bench, _score(bench, "--per-image"), "head -1")
    bench.must(bool(ended.stdout.strip()), "printed nothing")
    return "a line"


def _gone_reader(bench: Bench) -> str:
    _piped(bench, _score(bench, "--json"), "true")
    return "a line on stderr at most"


def _gone_reader_of_many(bench: Bench) -> str:
    path = bench.directory / "many.csv"
    row = 'AOI_1_A_chip{},"LINESTRING (0 0, 9 9)",-1,1\n'
    rows = "".join(row.format(number) for number in range(100_000))
    path.write_text(f"ImageId,WKT_Pix,length_m,travel_time_s\n{rows}")
    _piped(bench, (sys.executable, "-m", "satmap", "check", str(path)), "head -2")
    return "a line on stderr at most"


def _deleted_directory(bench: Bench) -> str:
    bench.copy_test()
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    return _took(bench, bench.predict(within=_shell(script)), EITHER)


def _script(bench: Bench) -> str:
    bench.copy_test()
    data = bench.directory / "a place with spaces"
    shutil.copytree(bench.test, data)
    ended = bench.run(
        data, bench.out, "--recipe", bench.material.alone, "--workers", 0,
        program=(str(_ROOT / "test.sh"),),
        environment={"WEIGHTS_DIR": str(bench.material.weights)},
    )  # fmt: skip
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    bench.must_be_valid()
    return VALID


def _script_alone(bench: Bench) -> str:
    ended = bench.run(program=(str(_ROOT / "test.sh"),))
    bench.must(ended.status in (FAILED, WRONG_ARGUMENTS), f"status {ended.status}")
    return REFUSED


def _train_script(bench: Bench) -> str:
    ended = bench.run(
        bench.material.train, program=(str(_ROOT / "train.sh"),),
        environment={
            "WEIGHTS_DIR": str(bench.weights), "SATMAP_ENCODERS": str(bench.directory / "none"),
        },
    )  # fmt: skip
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
    bench.must_say(ended, "weights fetch")
    return REFUSED
