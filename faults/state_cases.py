"""Cases of satmap's own damaged files: train states, caches, journals, probability maps."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from faults import harm
from faults.bench import DONE, FAILED, Bench
from faults.case import Case
from faults.harm import Harm
from faults.label_cases import train

REFUSED, ANEW = "refused, --restart trains again", "rebuilt, the same bytes"

_DAMAGE: tuple[tuple[str, Harm], ...] = (
    *harm.ANY_FILE,
    ("truncated at random", harm.truncated),
    ("64 random bits flipped", harm.flipped(64)),
)


def state_cases() -> list[Case]:
    """Return all cases of states."""
    cases = [
        _state(name, damage)
        for name, damage in _DAMAGE
        if damage not in (harm.dangling, harm.looped)
    ]
    cases += [_cache(name, damage) for name, damage in _DAMAGE]
    cases += [_journal(name, damage) for name, damage in _DAMAGE if damage is not harm.looped]
    cases += [
        Case("states", "training: missing weights with a train state", _weights_gone),
        Case("states", "training: another recipe's state", _other_recipe),
        Case("states", "training: a cache that is a file", _cache_is_file),
        Case("states", "prediction: truncated probability maps in the store", _maps_cut),
        Case("states", "prediction: another network's journal", _other_network),
        Case("states", "prediction: an image changed before the resume", _changed_image),
    ]
    return cases


def _finished(bench: Bench) -> Path:
    """Copy data, cache and weights of an undisturbed training; return its train state."""
    bench.copy_train()
    shutil.copytree(bench.material.trained, bench.weights)
    (state,) = bench.weights.glob("*.state.pt")
    return state


def same_network(bench: Bench) -> None:
    """Require that the last weights equal those of the undisturbed training to the last bit."""
    name = bench.material.network.name
    ours, theirs = bench.weights / name, bench.material.trained / name
    bench.must(
        ours.exists() and ours.read_bytes() == theirs.read_bytes(),
        "the weights differ from an undisturbed training",
    )


def _state(name: str, damage: Harm) -> Case:
    def play(bench: Bench) -> str:
        state = _finished(bench)
        damage(state, bench.random)
        status = train(bench)
        message = bench.last_stderr
        if status == DONE and "flipped" in name:
            # The damage may be in the network, which is no longer needed.
            return "read"
        bench.must(status == FAILED, f"status {status}, not 1")
        bench.must(state.name in message and "--restart" in message, f"does not help: {message!r}")
        if state.is_dir():
            state.rmdir()
        bench.must(train(bench, "--restart") == DONE, f"--restart: {bench.last_stderr!r}")
        same_network(bench)
        return REFUSED

    return Case("states", f"training's state: {name}", play, 200)


def _cache(name: str, damage: Harm) -> Case:
    def play(bench: Bench) -> str:
        bench.copy_train()
        bench.must(train(bench) == DONE, f"undisturbed: {bench.last_stderr!r}")
        shutil.rmtree(bench.weights)
        chips = sorted(bench.cache.iterdir())
        for path in chips[:4]:
            damage(path, bench.random)
        status = train(bench)
        if status != DONE and chips[0].is_dir():
            bench.must(status == FAILED, f"status {status}")
            bench.must(
                str(bench.cache) in bench.last_stderr, f"names no file: {bench.last_stderr!r}"
            )
            return "refused"
        bench.must(status == DONE, f"status {status}: {bench.last_stderr!r}")
        if status == DONE and "flipped" not in name:
            same_network(bench)
        return ANEW if "flipped" not in name else "read or rebuilt"

    return Case("states", f"cache: {name}", play, 200)


def killed_prediction(bench: Bench, after_images: int = 2) -> Path:
    """Predict, kill it once some images are in the journal, and return the journal."""
    journal = bench.out.with_name(f".{bench.out.name}.partial")

    def written() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    _predict_until(bench, bench.material.alone, lambda: written() > after_images)
    return journal


def _predict_until(bench: Bench, recipe: Path, reached: Callable[[], bool]) -> None:
    """Predict and kill it as soon as ``reached`` is true, unless it ends before."""
    running = bench.start(
        "predict", bench.test, bench.out, "--weights", bench.material.weights,
        "--recipe", recipe, "--workers", 0,
    )  # fmt: skip
    deadline = time.monotonic() + bench.limit_s
    while time.monotonic() < deadline and running.wait(0) is None:
        if reached():
            running.kill(signal.SIGKILL)
            break
        time.sleep(0.002)
    if running.wait(bench.limit_s) is None:
        running.end_all()
        raise RuntimeError(f"the prediction has not ended within {bench.limit_s:.0f} s")


def many_images(bench: Bench) -> None:
    """Copy enough images that a prediction can be killed midway."""
    bench.copy_test()
    for number in range(100, 130):
        os.link(bench.image(12), bench.image(number))


def _journal(name: str, damage: Harm) -> Case:
    def play(bench: Bench) -> str:
        many_images(bench)
        journal = killed_prediction(bench)
        if not journal.exists():
            bench.find("the prediction ended before it could be killed")
            return "not played"
        damage(journal, bench.random)
        ended = bench.predict()
        if damage in (harm.directory, harm.pipe):
            bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
            bench.must_say(ended, journal.name)
            return "refused"
        bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
        bench.must_be_valid()
        bench.must(not journal.exists(), "the journal is still there")
        return ANEW

    return Case("states", f"prediction's journal: {name}", play, 200)


def _maps_cut(bench: Bench) -> str:
    bench.copy_test()
    store = bench.out.with_name(f".{bench.out.name}.maps")
    _predict_until(bench, bench.material.together, lambda: len([*store.glob("[!.]*.tif")]) >= 2)
    damaged = sorted(store.glob("[!.]*.tif"))[0]
    harm.truncated(damaged, bench.random)
    ended = bench.predict(alone=False)
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    bench.must_be_valid(alone=False)
    return ANEW


def _other_network(bench: Bench) -> str:
    many_images(bench)
    journal = killed_prediction(bench)
    bench.must(journal.exists(), "the prediction ended before it could be killed")
    file = bench.copy_weights()
    other = bench.material.trained / file.name
    shutil.copy2(other, file)
    arguments = ("--weights", bench.weights, "--workers", 0)
    bench.run("predict", bench.test, bench.out, *arguments)
    first = bench.out.read_bytes()
    bench.out.unlink()
    bench.run("predict", bench.test, bench.out, *arguments)
    bench.must(first == bench.out.read_bytes(), "rows of two networks are mixed")
    return ANEW


def _changed_image(bench: Bench) -> str:
    many_images(bench)
    journal = killed_prediction(bench)
    bench.must(journal.exists(), "the prediction ended before it could be killed")
    shutil.copyfile(bench.image(14), bench.directory / "other")
    (bench.directory / "other").replace(bench.image(12))
    ended = bench.predict()
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr!r}")
    bench.must_be_valid(harmed=["AOI_99_Made_chip12"])
    rows = [line for line in bench.out.read_text().splitlines() if "chip12," in line]
    wanted = [
        line.replace("chip14,", "chip12,")
        for line in bench.material.predicted_alone.read_text().splitlines()
        if "chip14," in line
    ]
    bench.must(rows == wanted, "the old image's rows are still there")
    return ANEW


def _weights_gone(bench: Bench) -> str:
    _finished(bench)
    (bench.weights / bench.material.network.name).unlink()
    bench.must(train(bench) == FAILED, "the loss goes unnoticed")
    bench.must("--restart" in bench.last_stderr, f"does not help: {bench.last_stderr!r}")
    return "refused"


def _other_recipe(bench: Bench) -> str:
    _finished(bench)
    before = {path: path.read_bytes() for path in bench.weights.glob("*.*") if path.is_file()}
    ended = bench.run(
        "train", bench.train, "--recipe", bench.material.alone, "--weights", bench.weights,
        "--cache", bench.cache, "--device", "cpu",
    )  # fmt: skip
    bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
    bench.must_say(ended, "another recipe", "--restart")
    _unchanged(bench, before)
    return "refused, weights unchanged"


def _unchanged(bench: Bench, before: Mapping[Path, bytes]) -> None:
    for path, content in before.items():
        bench.must(path.read_bytes() == content, f"{path.name} has changed")


def _cache_is_file(bench: Bench) -> str:
    bench.copy_train()
    bench.cache.write_text("")
    bench.must(train(bench) == FAILED, "not refused")
    bench.must(str(bench.cache) in bench.last_stderr, f"names no place: {bench.last_stderr!r}")
    return "refused"
