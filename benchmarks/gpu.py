"""Measure every figure that needs a GPU and write a Markdown table.

    .venv/bin/python benchmarks/gpu.py WORK                        # about 20 minutes on one H100
    .venv/bin/python benchmarks/gpu.py WORK --device cpu --tiny    # smoke test, minutes

Each row is one run of another benchmark, or of ``satmap train`` on all GPUs against one (NCCL; two
processes and gloo on a CPU). WORK keeps the output of the runs and the table ``gpu.md``, which is
rewritten after each run. A run that fails loses only its own row, and the exit status is then 1.
"""

import argparse
import csv
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from satmap.io.files import write_text

_HERE = Path(__file__).parent

# One network on all GPUs: crops as in the reference's first stage, one batch per GPU.
_RECIPE = """
name: gpus
description: one network on all GPUs
task: roads
folds: 2
members:
  - fold: 0
    encoder: {encoder}
    pretrained: false
    losses:
      road: {{dice: 0.5, focal: 2, bce: 0.1}}
      speed: {{dice: 0.1, focal: 2, bce: 1}}
      junction: {{dice: 0.1, focal: 1, bce: 0}}
    stages:
      - crop: {crop}
        batch: {batch}
        epochs: 2
        passes: {passes}
        validate_every: 2
        sync_batch_norm: true
        schedule: {{kind: cosine, peak: 5.0e-4}}
inference: {{tta: 1}}
"""


@dataclass(frozen=True)
class Figure:
    """Row of the table.

    Attributes:
        name: the measured quantity.
        wanted: the target.
        measure: function that writes a log to the given file and returns the result as text.
    """

    name: str
    wanted: str
    measure: Callable[[Path], str]


class BenchmarkError(Exception):
    """Failed run, with a short reason."""


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a smoke test, not for speed")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    failed = False
    for number, figure in enumerate(_figures(options.work, options.device, tiny=options.tiny)):
        try:
            result = figure.measure(options.work / f"{number:02d}.log")
        except BenchmarkError as error:
            result, failed = f"failed: {error}", True
        rows.append(f"| {figure.name} | {figure.wanted} | {result} |")
        print(rows[-1], flush=True)
        write_text(options.work / "gpu.md", _table(rows, options.device))
    sys.exit(1 if failed else 0)


def _figures(work: Path, device: str, *, tiny: bool) -> list[Figure]:
    figures = []
    steps = [("dpn92", 384, 10), ("inception_resnet_v2", 384, 10), ("dpn92", 512, 4)]
    for encoder, crop, batch in [("resnet18", 64, 2)] if tiny else steps:
        size = ["--encoder", encoder, "--crop", str(crop), "--batch", str(batch)]
        # Compilation takes minutes on a CPU.
        for flags in [[]] if tiny else [[], ["--compile"]]:
            command = ["training.py", "--device", device, *size, "--steps", "2" if tiny else "30"]
            figures.append(
                Figure(
                    f"training step, {' '.join([*size, *flags])}",
                    "3 times the reference's way",
                    _benchmark([*command, *flags], r"ratio .*|.* of the peak .*"),
                )
            )
    small = ["--chips", "2", "--size", "64", "--workers", "0"] if tiny else []
    predict = ["prediction.py", "--device", device, *small]
    wanted = r"ours: (.*)|(ratio .*)|(GPU memory .*)"
    full = ["--networks", "2"] if tiny else ["--full"]
    single = ["--ours-only"] if tiny else []
    figures += [
        Figure(
            "the full ensemble: 12 networks, 8 views, 1300 px",
            "0.4 s a chip, 20 km2 a minute",
            _benchmark([*predict, *full], wanted),
        ),
        Figure(
            "sn5-roads-single: 1 network, 1 view, 1300 px",
            "150 km2 a minute",
            _benchmark([*predict, "--single", *single], wanted),
        ),
        Figure(
            "satmap train on several GPUs against one",
            "as many times the crops",
            lambda log: _all_gpus(work, device, log, tiny=tiny),
        ),
    ]
    if not tiny:
        # Needs no GPU, but idle cores, which a GPU machine has.
        figures.append(
            Figure(
                "crops per second from the cache, against the reference's way of reading",
                "20 times",
                _benchmark(["preparing.py"], r"crops per second, (.*)"),
            )
        )
    return figures


def _benchmark(command: Sequence[str], wanted: str) -> Callable[[Path], str]:
    """Return a function that runs a script of this folder and finds ``wanted`` in its output."""

    def measure(log: Path) -> str:
        text = _run([str(_HERE / command[0]), *command[1:]], log)
        matches = [re.fullmatch(wanted, line) for line in text.splitlines()]
        found = [match for match in matches if match]
        if not found:
            raise BenchmarkError(f"no result in the output, see {log.name}")
        return "; ".join(match[match.lastindex or 0].strip() for match in found)

    return measure


def _all_gpus(work: Path, device: str, log: Path, *, tiny: bool) -> str:
    """Measure crops per second and the last loss of a training on all GPUs and on one."""
    processes = torch.cuda.device_count() if device.startswith("cuda") else 2
    if processes < 2:
        return "one GPU: nothing to compare"
    city, recipe = work / "city", work / "gpus.yaml"
    chips, side = (4, 160) if tiny else (64, 1300)
    if not city.exists():
        made = ["make-city", str(city), "--chips", str(chips), "--test-chips", "0"]
        _run(["-m", "satmap", *made, "--size", str(side)], log)
    values = (
        {"encoder": "resnet18", "crop": 64, "batch": 2, "passes": 4}
        if tiny
        else {"encoder": "dpn92", "crop": 384, "batch": 10, "passes": 40}
    )
    write_text(recipe, _RECIPE.format(**values))
    results = {}
    for count in (1, processes):
        weights = work / f"gpus-{count}"
        command = [
            "-m", "satmap", "train", str(city / "train"), "--recipe", str(recipe),
            "--weights", str(weights), "--cache", str(work / "cache"),
            "--device", device, "--processes", str(count), "--restart",
        ]  # fmt: skip
        _run(command, log)
        (path,) = weights.glob("*.log.csv")
        with path.open() as file:
            # The first epoch is the warm-up.
            results[count] = list(csv.DictReader(file))[-1]
    speeds = {count: float(row["crops_per_second"]) for count, row in results.items()}
    losses = ", ".join(f"{float(row['loss']):.3f}" for row in results.values())
    return (
        f"{speeds[1]:.1f} crops/s on one, {speeds[processes]:.1f} on {processes}, ratio "
        f"{speeds[processes] / speeds[1]:.2f}; losses {losses}"
    )


def _run(arguments: Sequence[str], log: Path) -> str:
    """Run Python, append its output to the log and return it.

    Raises:
        BenchmarkError: the process fails; the message has its last line of output.
    """
    done = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with log.open("a") as file:
        file.write(f"$ {' '.join(arguments)}\n{done.stdout}\n")
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no output"]
        raise BenchmarkError(f"{lines[-1][:120]} (status {done.returncode}, see {log.name})")
    return done.stdout


def _table(rows: Sequence[str], device: str) -> str:
    """Return the table with a heading that names the machine."""
    machine = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        machine = f"{len(names)} x {names[0]}, {machine}" if names else machine
    head = f"{machine}, torch {torch.__version__}\n\n| what | wanted | measured |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
