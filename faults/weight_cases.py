"""Cases of damaged weights."""

import struct
from pathlib import Path
from typing import Any

import torch

from faults import harm
from faults.bench import DONE, FAILED, Bench
from faults.case import Case
from faults.harm import Harm

REFUSED, READ = "refused", "read"

# Number of random draws, with one command each.
_DRAWS = 8


def weight_cases() -> list[Case]:
    """Return all cases of weights."""
    cases = [_shown(name, damage) for name, damage in harm.ANY_FILE]
    cases += [
        _drawn("truncated at random", harm.truncated),
        _drawn("1 random bit flipped", harm.flipped(1)),
        _drawn("1 bit flipped in the header", harm.flipped(1, within=3000)),
        _drawn("bytes appended at the end", lambda path, draw: _append(path, draw.randbytes(9))),
        _shown("a header of 2^60 bytes", _header_length(1 << 60)),
        _shown("a header of 100 MB of brackets", _header(b"[", 100_000_000)),
        _shown("a header that is a list", _header(b"[]")),
        _shown("a pickle instead of weights", _pickle),
        _imported("a pickle that runs a command", _evil_pickle),
        _imported("a truncated pickle", _cut_pickle),
        _imported("noise", lambda path, draw: _write(path, draw.randbytes(5000))),
        _imported("an empty zip", lambda path, draw: _write(path, b"PK\5\6" + bytes(18))),
        _predicted("1 random bit flipped", harm.flipped(1)),
        _predicted("truncated", harm.truncated),
        _predicted("a link to nothing", harm.dangling),
        _predicted("a pipe", harm.pipe),
        _predicted("a directory in its place", harm.directory),
        Case("weights", "predict: no weights at all", _none),
        Case("weights", "predict: one of two networks broken", _one_of_two),
        Case("weights", "predict: an unfinished file of a killed writer", _left_over),
    ]
    return cases


def _shown(name: str, damage: Harm, draws: int = 1) -> Case:
    def play(bench: Bench) -> str:
        for _ in range(draws):
            file = bench.copy_weights()
            damage(file, bench.random)
            ended = bench.run("weights", "show", file)
            bench.must(
                ended.status == FAILED, f"status {ended.status}, not 1: {ended.stdout[:200]!r}"
            )
            bench.must_say(ended, file.name)
        return REFUSED

    return Case("weights", f"show: {name}", play)


def _drawn(name: str, damage: Harm) -> Case:
    return _shown(f"{name}, {_DRAWS} times", damage, _DRAWS)


def _imported(name: str, damage: Harm) -> Case:
    def play(bench: Bench) -> str:
        file = bench.directory / "spacenet_dpn_unet_dpn92_3_0_best_apls"
        damage(file, bench.random)
        ended = bench.run("weights", "import", file, bench.weights)
        bench.must(ended.status == FAILED, f"status {ended.status}, not 1")
        bench.must_say(ended, file.name)
        bench.must(not (bench.directory / "harmed").exists(), "ran code of a pickle")
        return REFUSED

    return Case("weights", f"import: {name}", play)


def _predicted(name: str, damage: Harm) -> Case:
    def play(bench: Bench) -> str:
        bench.copy_test()
        file = bench.copy_weights()
        damage(file, bench.random)
        ended = bench.predict()
        bench.must_refuse(ended, bench.weights.name)
        # After the repair it must work as usual.
        if file.is_dir():
            file.rmdir()
        file.unlink(missing_ok=True)
        bench.copy_weights()
        bench.must(bench.predict().status == DONE, "does not work after the repair")
        bench.must_be_valid()
        return REFUSED

    return Case("weights", f"predict: {name}", play)


def _none(bench: Bench) -> str:
    bench.copy_test()
    bench.weights.mkdir()
    bench.must_refuse(bench.predict(), "no weights", "train.sh")
    return REFUSED


def _one_of_two(bench: Bench) -> str:
    bench.copy_test()
    file = bench.copy_weights()
    other = file.with_name("fold1-resnet18-3band.last.safetensors")
    other.write_bytes(file.read_bytes()[:1_000_000])
    bench.must_refuse(bench.predict(), other.name)
    return REFUSED


def _left_over(bench: Bench) -> str:
    bench.copy_test()
    file = bench.copy_weights()
    file.with_name(".fold0-resnet18-3band.last-ab12cd34.safetensors").write_bytes(b"half")
    ended = bench.predict()
    # The training removes the file, not the prediction.
    file.with_name(".fold0-resnet18-3band.last-ab12cd34.safetensors").unlink()
    bench.findings[:] = [found for found in bench.findings if "ab12cd34" not in found]
    bench.must(ended.status == DONE, f"status {ended.status}: {ended.stderr[-300:]!r}")
    bench.must_be_valid()
    return READ


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def _header_length(length: int) -> Harm:
    def damage(path: Path, draw: Any) -> None:
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return damage


def _header(header: bytes, times: int = 1) -> Harm:
    def damage(path: Path, draw: Any) -> None:
        path.write_bytes(struct.pack("<Q", len(header) * times) + header * times)

    return damage


def _pickle(path: Path, draw: Any) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


class _Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harmed"),))


def _evil_pickle(path: Path, draw: Any) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}, "epoch": _Evil()}, path)


def _cut_pickle(path: Path, draw: Any) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3000)}}, path)
    harm.truncated(path, draw)
