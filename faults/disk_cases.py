"""Disks that are full, read-only or out of inodes.

The disk is a small tmpfs in the command's own mount namespace. Its final content is copied back, so
that the same command can resume with enough space.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from faults.bench import DONE, FAILED, Bench, Ended
from faults.case import Case
from faults.label_cases import train
from faults.state_cases import same_network

_SMALL_DISK = """
mount -t tmpfs -o "$1" tmpfs "$2" && cp -a "$3/." "$2/" || exit 99
kept=$3 place=$2
shift 3
"$@"
status=$?
cp -a "$place/." "$kept/" || exit 98
exit $status
"""
_READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 99
shift
exec "$@"
"""

REFUSED = "refused, resumes with space"


def disk_cases() -> list[Case]:
    """Return all cases of disks."""
    return [
        *(_city(size) for size in ("size=200k", "size=700k", "size=1m", "size=1g,nr_inodes=12")),
        *(_training("cache", size) for size in ("size=4k", "size=400k", "size=1g,nr_inodes=6")),
        *(
            _training("weights", size)
            for size in ("size=4k", "size=60m", "size=120m", "size=182m", "size=1g,nr_inodes=7")
        ),
        *(_prediction(size) for size in ("size=4k", "size=8k", "size=1g,nr_inodes=2")),
        *(_prediction(size, alone=False) for size in ("size=40k", "size=120k", "size=190k")),
        *(_maps(size) for size in ("size=4k", "size=200k")),
        *(_exported(suffix) for suffix in ("geojson", "gpkg", "fgb", "zip", "graphml", "osm")),
        Case("disk", "vectorize: no space for the output", _vectorized),
        Case("disk", "score --plot: no space for pictures", _plotted),
        Case("disk", "overlay: no space for pictures", _drawn),
        Case("disk", "weights average: no space", _averaged),
        Case("disk", "predict: no space in the temporary directory", _no_temporary),
        Case("disk", "predict: no shared memory, 2 workers", _no_shared_memory),
        *(
            Case("disk", f"train: {size} of shared memory, 2 workers", _train_shared(size), 300)
            for size in ("4k", "200k")
        ),
        Case("disk", "predict: the output's directory is read-only", _output_read_only),
        Case("disk", "predict: data and weights are read-only", _inputs_read_only),
        Case("disk", "train: data are read-only", _train_read_only, 200),
        Case("disk", "train: the weights' directory is read-only", _weights_read_only),
        Case("disk", "train: the cache is read-only", _cache_read_only),
        Case("disk", "predict: OUT.csv is /dev/full", _dev_full),
        Case("disk", "predict: OUT.csv is a directory", _out_directory),
        Case("disk", "predict: the parent of OUT.csv is a file", _out_below_file),
        Case("disk", "predict: an older OUT.csv, no space for a new one", _older),
    ]


def small_disk(options: str, place: Path, kept: Path) -> tuple[str, ...]:
    """Return a command prefix with a small disk at ``place``, filled from and saved to ``kept``."""
    place.mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    return ("unshare", "-Urm", "sh", "-c", _SMALL_DISK, "sh", options, str(place), str(kept))


def read_only(place: Path) -> tuple[str, ...]:
    """Return a command prefix that makes a directory read-only."""
    return ("unshare", "-Urm", "sh", "-c", _READ_ONLY, "sh", str(place))


def _put_back(place: Path, kept: Path) -> None:
    """Restore the content of the small disk to ``place`` on the normal disk."""
    shutil.rmtree(place)
    kept.rename(place)


def _city(options: str) -> Case:
    def play(bench: Bench) -> str:
        place, kept = bench.directory / "city", bench.directory / "kept"
        arguments = ("make-city", place, "--chips", 6, "--test-chips", 2, "--size", 128)
        ended = bench.run(*arguments, within=small_disk(options, place, kept))
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
        bench.must_say(ended, "cannot write")
        for path in kept.rglob("*.tif"):
            try:
                with rasterio.open(path) as image:
                    image.read()
            except RasterioError:
                bench.find(f"left a broken {path.name}")
        hidden = [path.name for path in kept.rglob(".*")]
        bench.must(not hidden, f"left {hidden}")
        _put_back(place, kept)
        bench.must(bench.run(*arguments).status == DONE, "does not resume with space")
        bench.run("make-city", bench.directory / "whole", *arguments[2:])
        _same_tree(bench, place, bench.directory / "whole")
        return REFUSED

    return Case("disk", f"make-city: {options}", play)


def _same_tree(bench: Bench, found: Path, wanted: Path) -> None:
    files = {path.relative_to(wanted) for path in wanted.rglob("*") if path.is_file()}
    ours = {path.relative_to(found) for path in found.rglob("*") if path.is_file()}
    bench.must(files == ours, f"other files: {sorted(map(str, files ^ ours))[:5]}")
    for path in files & ours:
        same = (found / path).read_bytes() == (wanted / path).read_bytes()
        bench.must(same, f"{path} differs")


def _train_on(bench: Bench, within: tuple[str, ...], *options: object) -> Ended:
    return bench.run(
        "train", bench.train, "--recipe", bench.material.short, "--weights", bench.weights,
        "--cache", bench.cache, "--device", "cpu", "--workers", 0, *options, within=within,
    )  # fmt: skip


def _training(what: str, options: str) -> Case:
    def play(bench: Bench) -> str:
        bench.copy_train()
        place = bench.cache if what == "cache" else bench.weights
        kept = bench.directory / "kept"
        ended = _train_on(bench, small_disk(options, place, kept))
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
        bench.must_say(ended, "cannot write", str(place))
        hidden = [path.name for path in kept.rglob(".*")]
        bench.must(not hidden, f"left {hidden}")
        _put_back(place, kept)
        bench.must(train(bench) == DONE, f"does not resume with space: {bench.last_stderr!r}")
        same_network(bench)
        return REFUSED

    return Case("disk", f"train, {what}: {options}", play, 200)


def _prediction(options: str, alone: bool = True) -> Case:
    def play(bench: Bench) -> str:
        bench.copy_test()
        kept = bench.directory / "kept"
        ended = bench.predict(within=small_disk(options, bench.out.parent, kept), alone=alone)
        return _goes_on(bench, ended, kept, alone)

    how = "alone" if alone else "with neighbours' maps"
    return Case("disk", f"predict {how}: {options}", play)


def _goes_on(bench: Bench, ended: Ended, kept: Path, alone: bool = True) -> str:
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
    bench.must_say(ended, "cannot write")
    bench.must(not (kept / bench.out.name).exists(), "left a part of the submission")
    _put_back(bench.out.parent, kept)
    ended = bench.predict(alone=alone)
    bench.must(ended.status == DONE, f"does not resume with space: {ended.stderr!r}")
    bench.must_be_valid(alone=alone)
    left = bench.left_over()
    bench.must(not left, f"left {left}")
    return REFUSED


def _maps(options: str) -> Case:
    def play(bench: Bench) -> str:
        bench.copy_test()
        place, kept = bench.directory / "maps", bench.directory / "kept"
        ended = bench.predict("--probabilities", place, within=small_disk(options, place, kept))
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
        bench.must_say(ended, "cannot write", str(place))
        _put_back(place, kept)
        ended = bench.predict("--probabilities", place)
        bench.must(ended.status == DONE, f"does not resume with space: {ended.stderr!r}")
        bench.must_be_valid()
        names = sorted(path.name for path in place.iterdir())
        wanted = sorted(path.name for path in bench.material.maps.iterdir())
        bench.must(names == wanted, f"maps {names}")
        return REFUSED

    return Case("disk", f"predict --probabilities: {options}", play)


def _exported(suffix: str) -> Case:
    def play(bench: Bench) -> str:
        bench.copy_test()
        place, kept = bench.directory / "exports", bench.directory / "kept"
        within = small_disk("size=4k", place, kept)
        ended = bench.predict("--export", place / f"roads.{suffix}", within=within)
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
        bench.must_say(ended, "cannot write", f"roads.{suffix}")
        left = [path.name for path in kept.iterdir()]
        bench.must(not left, f"left {left}")
        ended = bench.predict("--export", place / f"roads.{suffix}")
        bench.must(ended.status == DONE, f"does not resume with space: {ended.stderr!r}")
        bench.must_be_valid()
        return REFUSED

    return Case("disk", f"predict --export roads.{suffix}: size=4k", play)


def _vectorized(bench: Bench) -> str:
    kept = bench.directory / "kept"
    kept.mkdir()
    (kept / "filler").write_bytes(bytes(4096))
    ended = bench.run(
        "vectorize", bench.material.maps, bench.out, "--workers", 0, "--recipe",
        bench.material.alone, within=small_disk("size=4k", bench.out.parent, kept),
    )  # fmt: skip
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
    bench.must_say(ended, "cannot write", bench.out.name)
    bench.must([path.name for path in kept.iterdir()] == ["filler"], "left something")
    return "refused"


def _pictures(bench: Bench, *arguments: object) -> str:
    place, kept = bench.directory / "pictures", bench.directory / "kept"
    ended = bench.run(*arguments, within=small_disk("size=20k", place, kept))
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
    bench.must_say(ended, "cannot write", "pictures")
    hidden = [path.name for path in kept.rglob(".*")]
    bench.must(not hidden, f"left {hidden}")
    return "refused"


def _plotted(bench: Bench) -> str:
    truth = bench.material.predicted_alone
    return _pictures(bench, "score", truth, truth, "--plot", bench.directory / "pictures")


def _drawn(bench: Bench) -> str:
    bench.copy_test()
    pictures = bench.directory / "pictures"
    return _pictures(bench, "overlay", bench.material.predicted_alone, pictures, bench.test)


def _averaged(bench: Bench) -> str:
    place, kept = bench.directory / "averages", bench.directory / "kept"
    out = place / "soup.last.safetensors"
    file = bench.material.network
    ended = bench.run(
        "weights", "average", out, file, file, within=small_disk("size=9m", place, kept)
    )
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
    bench.must(not [*kept.iterdir()], f"left {[*kept.iterdir()]}")
    return "refused"


def _no_temporary(bench: Bench) -> str:
    bench.copy_test()
    place, kept = bench.directory / "tmp", bench.directory / "kept"
    kept.mkdir()
    (kept / "filler").write_bytes(bytes(4096))
    ended = bench.predict(within=small_disk("size=4k", place, kept))
    return _valid(bench, ended)


def _valid(bench: Bench, ended: Ended) -> str:
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    bench.must_be_valid()
    return "valid"


def _no_shared_memory(bench: Bench) -> str:
    bench.copy_test()
    within = small_disk("size=4k", Path("/dev/shm"), bench.directory / "kept")
    ended = bench.predict("--workers", 2, within=within)
    bench.must_refuse(ended, "/dev/shm", "--workers 0")
    return _valid(bench, bench.predict("--workers", 0, within=within))


def _train_shared(size: str) -> Callable[[Bench], str]:
    def play(bench: Bench) -> str:
        bench.copy_train()
        within = small_disk(f"size={size}", Path("/dev/shm"), bench.directory / "kept")
        ended = _train_on(bench, within, "--workers", 2)
        # It runs more slowly, through pipes or without workers, and says so.
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
        for text in ("/dev/shm", "--shm-size"):
            bench.must(text in ended.stdout, f"does not print {text}: {ended.stdout[:300]!r}")
        same_network(bench)
        return "valid"

    return play


def _output_read_only(bench: Bench) -> str:
    bench.copy_test()
    bench.out.parent.mkdir()
    ended = bench.predict(within=read_only(bench.out.parent))
    bench.must_refuse(ended, "cannot write", bench.out.name)
    return "refused"


def _inputs_read_only(bench: Bench) -> str:
    bench.copy_test()
    within = (*read_only(bench.test), *read_only(bench.material.weights))
    return _valid(bench, bench.predict(within=within))


def _train_read_only(bench: Bench) -> str:
    bench.copy_train()
    ended = _train_on(bench, read_only(bench.train))
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    same_network(bench)
    return "valid"


def _weights_read_only(bench: Bench) -> str:
    bench.copy_train()
    bench.weights.mkdir()
    return _refused(bench, _train_on(bench, read_only(bench.weights)), str(bench.weights))


def _cache_read_only(bench: Bench) -> str:
    bench.copy_train()
    bench.cache.mkdir()
    return _refused(bench, _train_on(bench, read_only(bench.cache)), str(bench.cache))


def _refused(bench: Bench, ended: Ended, *texts: Any) -> str:
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
    bench.must_say(ended, *texts)
    return "refused"


def _predict_to(bench: Bench, out: Path) -> Ended:
    bench.copy_test()
    return bench.run("predict", bench.test, out, "--weights", bench.material.weights)


def _dev_full(bench: Bench) -> str:
    return _refused(bench, _predict_to(bench, Path("/dev/full")), "/dev/full")


def _out_directory(bench: Bench) -> str:
    bench.out.mkdir(parents=True)
    return _refused(bench, _predict_to(bench, bench.out), "is a directory")


def _out_below_file(bench: Bench) -> str:
    (bench.directory / "file").write_text("")
    return _refused(bench, _predict_to(bench, bench.directory / "file" / "out.csv"), "file")


def _older(bench: Bench) -> str:
    bench.copy_test()
    kept = bench.directory / "kept"
    kept.mkdir()
    old = bench.material.predicted_together.read_bytes()
    (kept / bench.out.name).write_bytes(old)
    ended = bench.predict(within=small_disk("size=12k", bench.out.parent, kept))
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1: {ended.stderr!r}")
    bench.must((kept / bench.out.name).read_bytes() == old, "the older file is damaged")
    return "refused, the older file unchanged"
