"""Kill a training of two processes at random moments, again and again, and compare what is left.

    python benchmarks/kills.py DIR [--kills 10] [--seed 0]

Makes a city and a small recipe in DIR, trains it once undisturbed and once with so many kills, by
turns of one rank (SIGKILL), of the launcher (SIGKILL) and of the job (SIGTERM), each followed by
the same command. Ends with status 0 if both trainings left the same weights to the last bit.
Processors only; about half a minute a kill on two cores.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from satmap.data.city import make_city
from satmap.inference.weights import find_weights
from satmap.models.weights import load_weights

_RECIPE = """
name: kills
description: two folds; a stage that each rank has for itself, and one that they share
task: roads
folds: 2
x-losses: &losses
  road: {dice: 0.5, focal: 2, bce: 0.1}
  speed: {dice: 0.1, focal: 2, bce: 1}
  junction: {dice: 0.1, focal: 1}
x-stages: &stages
  - {crop: 64, batch: 2, epochs: 3, passes: 2, schedule: {kind: cosine, peak: 2.0e-3}}
  - crop: 64
    batch: 2
    epochs: 6
    passes: 4
    sync_batch_norm: true
    schedule: {kind: cosine, peak: 1.0e-3}
members:
  - &member
    fold: 0
    encoder: resnet18
    pretrained: false
    decoder: [16, 16, 16, 16]
    losses: *losses
    stages: *stages
  - {<<: *member, fold: 1}
"""


def main() -> None:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    directory: Path = options.directory
    city = directory / "city"
    if not city.exists():
        make_city(city, chips=6, test_chips=2, size=160, seed=3)
    recipe = directory / "kills.yaml"
    recipe.write_text(_RECIPE)

    def command(weights: Path) -> list[str]:
        return [
            sys.executable, "-m", "satmap", "train", str(city / "train"),
            "--recipe", str(recipe), "--weights", str(weights), "--device", "cpu",
            "--cache", str(directory / "cache"), "--processes", "2", "--save-minutes", "0.01",
        ]  # fmt: skip

    whole, killed = directory / "whole", directory / "killed"
    started = time.monotonic()
    subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    moments = random.Random(options.seed)
    for number in range(options.kills):
        how = ("rank 0", "rank 1", "launcher", "SIGTERM")[number % 4]
        after = moments.uniform(0.2, 0.9) * seconds
        print(f"kill {number + 1}: {_kill(command(killed), how, after)}", flush=True)
    subprocess.run(command(killed), check=True, stdout=subprocess.DEVNULL)
    files = {file.path.name: load_weights(file.path)[0] for file in find_weights(whole)}
    for file in find_weights(killed):
        expected = files.pop(file.path.name).state_dict()
        for name, value in load_weights(file.path)[0].state_dict().items():
            if not torch.equal(value, expected[name]):
                sys.exit(f"{file.path.name}: {name} differs")
    if files:
        sys.exit(f"missing: {', '.join(files)}")
    print(f"the same weights after {options.kills} kills")


def _kill(command: list[str], how: str, after: float) -> str:
    """Start the training, end it after so many seconds; says how it took it."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        pass
    else:
        return f"{how}: it had ended before {after:.0f} s"
    started = time.monotonic()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    elif how == "launcher" or len(children) < 2:
        process.kill()
    else:
        os.kill(int(children[int(how[-1])]), signal.SIGKILL)
    _, errors = process.communicate()
    return (
        f"{how} after {after:.0f} s, ended {time.monotonic() - started:.1f} s later with status "
        f"{process.returncode}: {errors.strip().splitlines()[-1] if errors.strip() else 'no word'}"
    )


if __name__ == "__main__":
    main()
