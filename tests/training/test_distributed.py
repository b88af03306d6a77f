"""Training with several real processes on the CPU: they learn as one and survive kills."""

import csv
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader

import satmap.runtime.device
from forked_ranks import (
    LIMIT_S,
    SERVER,
    all_alive,
    finish,
    kill_one,
    killed_at_last,
    limit_batch,
    start_ranks,
    wait_for_held,
    wait_until,
)
from satmap.cli import main
from satmap.data.cache import prepare_chips
from satmap.data.layouts.spacenet_roads import scan_roads
from satmap.errors import PeerError, SatmapError
from satmap.networks.unet import UNet, build_network
from satmap.recipes.schema import Member, Stage, parse_recipe
from satmap.runtime import launcher
from satmap.runtime.ranks import Ranks, joined
from satmap.tasks.base import task_of
from satmap.tasks.roads.settings import ROAD_MAPS, RoadLosses
from satmap.training.budget import allocate_time, assign_stages, plan_epoch
from satmap.training.distributed import SyncedBatchNorm, sum_over_ranks, synced_norms
from satmap.training.loading import CropDataset, epoch_order, split_between_ranks
from satmap.training.run_context import RunContext
from satmap.training.state import MovingAverage, Progress
from satmap.training.train_ensemble import TrainingOptions, _phases, train
from satmap.weights.average import average_weights
from satmap.weights.members import find_weights
from satmap.weights.network_files import load_weights, save_weights
from tiny_trainings import TWO_STAGE_RECIPE, tiny_commands

CPU = torch.device("cpu")

_LEFT_ALONE, _TRY_AGAIN, _TERMINATED = 70, 75, 143

# Number of kills (`make faults` does more), and of starts: some may end before they are killed.
KILLS, MOST_STARTS = 4, 15


pytestmark = pytest.mark.usefixtures("tiny_encoders")


def recipe_text(batch: int, encoder: str = "tiny", **optimizer: float) -> str:
    """Return a recipe of two members with an unshared and then a shared stage."""
    content = yaml.safe_load(TWO_STAGE_RECIPE)
    schedule = {"kind": "cosine", "peak": 2e-3}
    stages = [
        {"crop": 64, "batch": 2, "epochs": 1, "schedule": schedule},
        {
            "crop": 64, "batch": batch, "epochs": 2, "passes": 4, "sync_batch_norm": True,
            "schedule": schedule,
        },
    ]  # fmt: skip
    member = content["members"][0] | {
        "encoder": encoder, "decoder": [8, 8, 8, 8], "stages": stages,
    }  # fmt: skip
    content["members"] = [member, {**member, "fold": 1}]
    return yaml.safe_dump(content | {"optimizer": optimizer})


def command(city: Path, directory: Path, text: str) -> list[str]:
    directory.mkdir(exist_ok=True)
    recipe = directory / "recipe.yaml"
    recipe.write_text(text)
    return [
        "train", str(city / "train"), "--recipe", str(recipe),
        "--weights", str(directory / "weights"), "--cache", str(city.parent / "ranks-cache"),
        "--device", "cpu", "--workers", "0",
    ]  # fmt: skip


def weights_of(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        file.path.name: load_weights(file.path)[0].state_dict()
        for file in find_weights(directory / "weights")
    }


def same(first: Path, second: Path) -> bool:
    """Return whether two trainings left the same files, weights and logged losses."""
    one, other = weights_of(first), weights_of(second)
    return one.keys() == other.keys() and all(
        torch.equal(value, other[file][name])
        for file, tensors in one.items()
        for name, value in tensors.items()
    ) and losses(first) == losses(second)  # fmt: skip


def losses(directory: Path) -> dict[str, list[tuple[str, ...]]]:
    """Return the contents of the logs without times."""
    kept = ("stage", "epoch", "learning_rate", "loss", "road", "speed", "junction", "apls", "dice")
    return {
        log.name: [
            tuple(row[name] for name in kept)
            for row in csv.DictReader(log.read_text().splitlines())
        ]
        for log in sorted((directory / "weights").glob("*.log.csv"))
    }


@pytest.fixture(scope="module")
def unbroken(city: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with two ranks without interruption; a second run changes nothing."""
    directory = tmp_path_factory.mktemp("unbroken")
    arguments = [*command(city, directory, recipe_text(2)), "--restart"]
    assert finish(start_ranks(arguments, directory)) == [0, 0]
    return directory


def test_two_processes_learn_as_one(
    city: Path, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(satmap.runtime.device, "_fast_bfloat16", lambda device: False)
    context = RunContext(tmp_path / "weights", CPU)
    recipe = parse_recipe(recipe_text(4), "one")
    train([city / "train"], recipe, context, TrainingOptions(cache=city.parent / "ranks-cache"))
    one, two = losses(tmp_path), losses(unbroken)
    assert one.keys() == two.keys() and len(one) == 2
    for name in one:
        # A member alone on its rank learns exactly what it learns without any others.
        assert one[name][0] == two[name][0]
        assert len(one[name]) == len(two[name]) == 3
        # A shared member sums in another order, and its steps amplify the rounding.
        for ours, theirs in zip(one[name][1:], two[name][1:], strict=True):
            assert [float(v) for v in ours[:7]] == pytest.approx(
                [float(v) for v in theirs[:7]], rel=2e-3, abs=1e-5
            )
    printed = [(unbroken / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert printed[0].count("stage 2/2") == 4 and "stage 2/2" not in printed[1]
    assert "fold1-tiny-8band  stage 1/2" in printed[1]
    pictures = list((unbroken / "weights").glob("*.pictures/*.png"))
    assert len(pictures) == 6
    assert len(list((unbroken / "weights").glob("*.curves.png"))) == 2


def test_kills_lose_nothing(city: Path, tmp_path: Path, unbroken: Path) -> None:
    arguments = [*command(city, tmp_path, recipe_text(2)), "--save-minutes", "1e-9"]
    weights = tmp_path / "weights"
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)

    kills = 0
    for _ in range(MOST_STARTS):
        before = states(tmp_path)
        processes = start_ranks(arguments, tmp_path)
        # Usually wait for some progress before the kill, or the test would prove little.
        if moments.random() < 0.8:
            wait_for_new_state(tmp_path, before, processes)
        if kill_one(processes, moments, tmp_path):
            kills += 1
            if kills == KILLS:
                break
            continue
        # The training ended before the kill.
        assert same(tmp_path, unbroken)
        shutil.rmtree(weights)
    assert kills == KILLS, f"of {MOST_STARTS} trainings only {kills} could be killed in time"
    assert finish(start_ranks(arguments, tmp_path)) == [0, 0]
    assert same(tmp_path, unbroken)


def test_signals_save_the_step_and_training_resumes_from_it(
    city: Path, tmp_path: Path, unbroken: Path
) -> None:
    """Send SIGTERM (launcher), SIGINT (Ctrl-C) and SIGHUP (closed terminal) to one training."""
    arguments = [*command(city, tmp_path, recipe_text(2)), "--save-minutes", "1e-9"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Both ranks are held after a common step, so they cannot end before the signal arrives.
        processes = start_ranks(arguments, tmp_path, "hold")
        wait_for_held(tmp_path, processes)
        # Ctrl-C reaches all of them. A rank that learns it from another ends as if by SIGTERM.
        reached = processes if number == signal.SIGINT else processes[1:]
        for process in reached:
            os.kill(process.pid or 0, number)
        (tmp_path / "released").touch()
        assert finish(processes) == [
            128 + number if process in reached else _TERMINATED for process in processes
        ]
        text = "".join((tmp_path / f"rank{rank}.txt").read_text() for rank in range(2))
        assert text.count("the same command") == 1 and "Traceback" not in text
    processes = start_ranks(arguments, tmp_path, "nohup hold")
    wait_for_held(tmp_path, processes)
    for process in processes:
        os.kill(process.pid or 0, signal.SIGHUP)
    (tmp_path / "released").touch()
    assert finish(processes) == [0, 0]
    assert same(tmp_path, unbroken)


def wait_for_new_state(
    directory: Path, before: list[int], processes: Sequence[ForkServerProcess]
) -> None:
    wait_until(lambda: states(directory) != before, lambda: all_alive(processes))


def wait_for_text(output: Path, text: str, process: "subprocess.Popen[str]") -> None:
    is_there = wait_until(lambda: text in output.read_text(), lambda: process.poll() is None)
    assert is_there, f"ended by itself, without {text!r}"


def states(directory: Path) -> list[int]:
    """Return the modification times of the members' train states."""
    return [path.stat().st_mtime_ns for path in (directory / "weights").glob("*.state.pt")]


def test_errors_of_one_rank_are_reported_once_and_keep_the_checkpoints(
    city: Path, tmp_path: Path, unbroken: Path
) -> None:
    arguments = command(city, tmp_path, recipe_text(2))
    # A full disk on the rank that writes.
    assert finish(start_ranks(arguments, tmp_path, "disk")) == [1, _LEFT_ALONE]
    texts = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert texts[0].count("satmap: cannot write") == 1 and "Traceback" not in "".join(texts)
    assert "satmap:" not in texts[1]
    # Without images, only one rank reports it.
    (tmp_path / "empty").mkdir()
    nothing = [arguments[0], str(tmp_path / "empty"), *arguments[2:]]
    assert finish(start_ranks(nothing, tmp_path)) == [1, _LEFT_ALONE]
    texts = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert "".join(texts).count("satmap:") == 1 and "Traceback" not in "".join(texts)
    # With --debug, both ranks print a traceback, but only one prints the message.
    assert finish(start_ranks([*nothing, "--debug"], tmp_path)) == [1, _LEFT_ALONE]
    texts = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert all("Traceback" in text for text in texts) and "".join(texts).count("satmap:") == 1
    # Too little memory on one rank: the next start splits the batches.
    codes = finish(start_ranks(arguments, tmp_path, "memory"))
    assert codes[1] == _TRY_AGAIN and codes[0] in (_LEFT_ALONE, _TERMINATED)
    for _ in range(4):
        if codes == [0, 0]:
            break
        text = (tmp_path / "rank1.txt").read_text()
        assert text.count("satmap:") == 1 and "out of memory" in text
        # Only the user restarts it; torchrun does so only with --max-restarts.
        assert "the same command again, without --restart" in text and "--max-restarts" in text
        codes = finish(start_ranks(arguments, tmp_path, "memory"))
    assert codes == [0, 0]
    assert weights_of(tmp_path).keys() == weights_of(unbroken).keys()


def test_the_command_names_killed_processes_ends_cleanly_and_resumes(
    city: Path, tmp_path: Path, unbroken: Path
) -> None:
    arguments = command(city, tmp_path, recipe_text(2))
    environment = tiny_commands(tmp_path / "startup")
    for how, begun in (("kill", "stage 1/2"), ("group", "resuming after")):
        output = tmp_path / f"{how}.txt"
        with output.open("w") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-m", "satmap", *arguments, "--processes", "2", "--workers", "1"],
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )
        with killed_at_last(process):
            wait_for_text(output, begun, process)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == 2
            if how == "kill":
                os.kill(int(children[1]), signal.SIGKILL)
            else:
                os.killpg(process.pid, signal.SIGTERM)
            _, errors = process.communicate(timeout=LIMIT_S)
        assert not any(Path(f"/proc/{child}").exists() for child in children)
        # No word of torch's, nor of Python's about what it has to clear away.
        assert all(line.startswith("satmap: ") for line in errors.splitlines())
        if how == "kill":
            assert process.returncode == 1
            assert errors.count("process 1 was killed by SIGKILL") == 1
        else:
            assert process.returncode == _TERMINATED
            assert "finished work is kept, run the same command again to resume" in errors
    assert finish(start_ranks(arguments, tmp_path)) == [0, 0]
    assert same(tmp_path, unbroken)


def test_the_job_ends_with_the_status_of_the_failed_rank() -> None:
    # Torch ends the other ranks by SIGTERM, or by SIGKILL if they are slow.
    for others in (-signal.SIGTERM, -signal.SIGKILL, _LEFT_ALONE, _TERMINATED):
        assert launcher._status({0: others, 1: 1}) == 1
        assert launcher._status({0: _TRY_AGAIN, 1: others}) == _TRY_AGAIN
    assert launcher._status({0: -signal.SIGTERM, 1: _TERMINATED}) == _TERMINATED
    assert launcher._status({0: -signal.SIGTERM, 1: -signal.SIGTERM}) == _TERMINATED
    for other in (-signal.SIGTERM, _LEFT_ALONE, _TERMINATED):
        with pytest.raises(SatmapError, match="process 1 was killed by SIGKILL"):
            launcher._status({0: other, 1: -signal.SIGKILL})
    with pytest.raises(SatmapError, match="lost their connections"):
        launcher._status({0: _LEFT_ALONE, 1: -signal.SIGTERM})


def test_a_relaunched_job_does_not_restart_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses, seen = [_TRY_AGAIN, 0], []

    def launch_once(arguments: Sequence[str], processes: int, logs: str) -> int:
        seen.append(list(arguments))
        return statuses[len(seen) - 1]

    monkeypatch.setattr(launcher, "_launch_once", launch_once)
    assert launcher.launch(["train", "DIR", "--restart"], 2) == 0
    assert seen == [["train", "DIR", "--restart"], ["train", "DIR"]]
    logging.disable(logging.NOTSET)


def test_processes_cannot_share_a_numbered_gpu() -> None:
    with pytest.raises(SatmapError, match="is one GPU"):
        launcher.processes_for("cuda:0", 2)
    assert launcher.processes_for("cpu", 3) == 3


def check_collectives(rank: int, port: int, directory: Path) -> None:
    """Check collectives in one process of the test below; fail by the exit code."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    torch.set_num_threads(1)
    with joined(CPU) as ranks:
        assert ranks.gather(rank * 2) == [0, 2]
        assert ranks.agree(rank == 1, False) == [True, False]
        assert ranks.on_first(lambda: ranks.rank + 7) == 7
        with pytest.raises(SatmapError if rank == 1 else PeerError):
            ranks.raise_on_all(SatmapError("rank 1's") if rank == 1 else None)
        # Unequal parts of one batch, as in the last step of an epoch.
        whole = torch.load(directory / "batch.pt", weights_only=True)
        x = (whole[:3] if rank == 0 else whole[3:]).clone().requires_grad_()
        network = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
        network[0].load_state_dict(torch.load(directory / "norm.pt", weights_only=True))
        plain = network[0]
        with synced_norms(network, ranks, CPU):
            assert type(network[0]) is SyncedBatchNorm
            y = network(x)
            (y**3).sum().backward()
        assert network[0] is plain
        assert plain.weight.grad is not None
        gradient = sum_over_ranks(plain.weight.grad, ranks)
        torch.save((y, x.grad, gradient, network.state_dict()), directory / f"{rank}.pt")


def test_synchronised_statistics_equal_those_of_the_joint_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = torch.randn(5, 4, 6, 6) * 3 + 1
    norm = nn.BatchNorm2d(4)
    nn.init.uniform_(norm.weight)
    torch.save(whole, tmp_path / "batch.pt")
    torch.save(norm.state_dict(), tmp_path / "norm.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        SERVER.Process(target=check_collectives, args=(rank, port, tmp_path)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert finish(processes) == [0, 0]
    x = whole.clone().requires_grad_()
    network = nn.Sequential(norm, nn.ReLU())
    y = network(x)
    (y**3).sum().backward()
    shares = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert x.grad is not None and norm.weight.grad is not None
    torch.testing.assert_close(torch.cat([share[0] for share in shares]), y)
    torch.testing.assert_close(torch.cat([share[1] for share in shares]), x.grad)
    for share in shares:
        torch.testing.assert_close(share[2], norm.weight.grad)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(share[3][name], value)


@pytest.mark.parametrize(
    ("length", "share", "world"), [(37, 4, 3), (8, 4, 2), (5, 4, 2), (3, 4, 1)]
)
def test_every_item_belongs_to_one_rank(length: int, share: int, world: int) -> None:
    order = epoch_order(length, 3)
    assert sorted(order) == list(range(length))
    dealt = [split_between_ranks(order, share, rank, world) for rank in range(world)]
    assert len({len(steps) for steps in dealt}) == 1
    items = [item for steps in dealt for step in steps for item in step]
    assert len(set(items)) == len(items)
    size = min(share, length // world)
    assert len(items) == length // (size * world) * size * world
    # Together the ranks yield the same items per step as one process with the whole batch.
    alone = split_between_ranks(order, size * world, 0, 1)
    for step, whole in enumerate(alone):
        assert [item for steps in dealt for item in steps[step]] == whole


def test_too_little_memory_halves_the_batch_and_keeps_the_step(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(UNet, "forward", UNet.forward)
    original = limit_batch(2)
    options = TrainingOptions(cache=city.parent / "ranks-cache", folds=(0,))
    content = yaml.safe_load(recipe_text(2))
    content["members"][0]["stages"][0] |= {"batch": 8, "passes": 8}
    recipe = parse_recipe(yaml.safe_dump(content), "test")
    context = RunContext(tmp_path / "weights", CPU)
    train([city / "train"], recipe, context, options)
    warnings = capsys.readouterr().err.splitlines()
    assert ["out of memory" in line for line in warnings] == [True, True]
    assert "from now on 2 crops at a time instead of 4" in warnings[1]
    # Three steps of 8 crops as without splitting.
    with (tmp_path / "weights/fold0-tiny-8band.log.csv").open() as log:
        first = next(csv.DictReader(log))
    assert float(first["crops_per_second"]) * float(first["seconds"]) == pytest.approx(24, rel=1e-3)
    UNet.forward = original  # type: ignore[method-assign]
    limit_batch(0)
    context = replace(context, restart=True)
    with pytest.raises(SatmapError, match="does not suffice for a single crop"):
        train([city / "train"], recipe, context, options)


def test_too_little_memory_for_a_step_ends_the_training_before_it(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may be incomplete, so neither weights nor state are written after it."""
    recipe = parse_recipe(recipe_text(2), "test")
    options = TrainingOptions(cache=city.parent / "ranks-cache", folds=(0,))
    whole, context = (RunContext(tmp_path / name / "weights", CPU) for name in ("whole", "short"))
    train([city / "train"], recipe, whole, options)
    steps = 0
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            next(iter(self.param_groups[0]["params"])).data.fill_(1e9)
            raise torch.OutOfMemoryError("no room")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        with pytest.raises(SatmapError, match="does not suffice for the optimizer"):
            train([city / "train"], recipe, context, options)
    train([city / "train"], recipe, context, options)
    assert same(tmp_path / "short", tmp_path / "whole")


def test_accumulated_gradients_are_those_of_the_whole_batch(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without batch norm and dice the mean over parts is exact.
    monkeypatch.setattr(satmap.runtime.device, "_fast_bfloat16", lambda device: False)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x * 0.5)
    found = []
    for name, stage in (("whole", {"batch": 4}), ("parts", {"batch": 1, "accumulation": 4})):
        content = yaml.safe_load(recipe_text(2))
        member = content["members"][0]
        member["losses"] = {head: {"bce": 1} for head in ("road", "speed", "junction")}
        member["stages"] = [member["stages"][0] | {"passes": 4} | stage]
        recipe = parse_recipe(yaml.safe_dump(content), "test")
        options = TrainingOptions(cache=city.parent / "ranks-cache", folds=(0,))
        train([city / "train"], recipe, RunContext(tmp_path / name, CPU), options)
        (log,) = (tmp_path / name).glob("*.log.csv")
        with log.open() as rows:
            found.append([float(row["loss"]) for row in csv.DictReader(rows)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_the_average_is_the_mean_of_the_weights_so_far() -> None:
    network = build_network("tiny", 3, ROAD_MAPS, (8, 8, 8, 8))
    average = MovingAverage(network, 0.2)
    expected = network.head.bias.detach().clone()  # type: ignore[union-attr]
    statistics = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    statistics_name = next(n for n, m in network.named_modules() if m is statistics)
    assert statistics.running_mean is not None and statistics.num_batches_tracked is not None
    mean = statistics.running_mean.clone()
    for step in range(1, 4):
        with torch.no_grad():
            network.head.bias.fill_(float(step))  # type: ignore[union-attr]
            statistics.running_mean.fill_(2.0 * step)
            statistics.num_batches_tracked.fill_(step)
        average.update(network)
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        mean = decay * mean + (1 - decay) * 2 * step
    state = average.network.state_dict()
    torch.testing.assert_close(state["head.bias"], expected)
    torch.testing.assert_close(state[f"{statistics_name}.running_mean"], mean)
    assert state[f"{statistics_name}.num_batches_tracked"] == 3


def test_averages_are_saved_and_resumed(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from satmap.training import train as training

    recipe = parse_recipe(recipe_text(2, ema_decay=0.5), "test")
    options = TrainingOptions(cache=city.parent / "ranks-cache", folds=(0,))
    whole = RunContext(tmp_path / "whole" / "weights", CPU)
    train([city / "train"], recipe, whole, options)
    state = torch.load(whole.state_file(recipe.members[0]), weights_only=True)
    kept = weights_of(tmp_path / "whole")["fold0-tiny-8band.last.safetensors"]
    for name, value in state["average"]["network"].items():
        assert torch.equal(value, kept[name])
    assert not all(torch.equal(value, kept[name]) for name, value in state["network"].items())
    original, calls = training._train_epoch, 0

    def interrupted(*arguments):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    context = RunContext(tmp_path / "stopped" / "weights", CPU)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train([city / "train"], recipe, context, options)
    train([city / "train"], recipe, context, options)
    assert same(tmp_path / "stopped", tmp_path / "whole")


def test_areas_have_equal_numbers_of_crops(city: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_text(2), "test")
    found, task = scan_roads([city / "train"]).chips, task_of(recipe)
    cache = city.parent / "ranks-cache"
    chips = prepare_chips(found, 8, cache, recipe.stretch, task).chips
    small, large = "AOI_1_Small", "AOI_2_Large"
    chips = tuple(replace(c, aoi=small if i == 2 else large) for i, c in enumerate(chips))
    crops = CropDataset(chips, 64, 8, 2, None, 0, task, sampling="equal_areas")
    seen: Counter[int] = Counter()
    for epoch in range(5):
        crops.epoch = epoch
        numbers = [crops.chip_of(index) for index in range(len(crops))]
        assert Counter(chips[number].aoi for number in numbers) == {small: 6, large: 6}
        seen.update(numbers)
    # The chips of the large area take turns over the epochs: 30 turns for 5 chips.
    assert seen == {0: 6, 1: 6, 2: 30, 3: 6, 4: 6, 5: 6}
    items = next(iter(DataLoader(crops, len(crops))))
    assert Counter(items[1].tolist())[2] == 6


def test_scenes_are_drawn_equally_often(city: Path) -> None:
    recipe = parse_recipe(recipe_text(2), "test")
    found, task = scan_roads([city / "train"]).chips, task_of(recipe)
    cache = city.parent / "ranks-cache"
    chips = prepare_chips(found, 8, cache, recipe.stretch, task).chips
    # Two areas have scenes of one name: three classes with one, two and three chips.
    places = [("A", "1"), ("B", "1"), ("B", "1"), ("B", "2"), ("B", "2"), ("B", "2")]
    chips = tuple(
        replace(chip, aoi=aoi, scene=scene)
        for chip, (aoi, scene) in zip(chips, places, strict=True)
    )
    crops = CropDataset(chips, 64, 8, 500, None, 0, task, sampling="equal_scenes")
    assert len(crops) == 3000
    drawn = [crops.chip_of(index) for index in range(len(crops))]
    assert drawn == [crops.chip_of(index) for index in range(len(crops))]
    counts = Counter(drawn)
    for number, share in enumerate((1 / 3, 1 / 6, 1 / 6, 1 / 9, 1 / 9, 1 / 9)):
        assert counts[number] / 3000 == pytest.approx(share, abs=0.03)
    crops.epoch = 1
    assert drawn != [crops.chip_of(index) for index in range(len(crops))]


def test_unshared_stages_are_distributed_evenly() -> None:
    """Use five members with 1, 2, 3, 1 and 2 stages; the second stage of the last two is shared."""
    stage = yaml.safe_load(TWO_STAGE_RECIPE)["members"][0]["stages"][0]
    members = [
        Member[RoadLosses].model_validate(
            yaml.safe_load(TWO_STAGE_RECIPE)["members"][0]
            | {"fold": fold, "stages": [stage | {"sync_batch_norm": at in shared} for at in stages]}
        )
        for fold, stages, shared in (
            (0, (0,), ()), (1, (0, 1), ()), (2, (0, 1, 2), ()), (3, (0,), ()), (4, (0, 1), (1,)),
        )
    ]  # fmt: skip
    a, b, c, d, e = members
    assert assign_stages(members, 1) == [
        ([[a, b, c, d, e]], []),
        ([[b, c]], [e]),
        ([[c]], []),
    ]
    assert assign_stages(members, 2) == [
        ([[a, c, e], [b, d]], []),
        ([[b], [c]], [e]),
        ([[c], []], []),
    ]
    assert assign_stages(members, 3)[0] == ([[a, d], [b, e], [c]], [])
    # A rank without a member takes part in the turn, because the others wait for it.
    phases = [_phases(members, Ranks(rank, 2)) for rank in range(2)]
    assert [[turn.shared for turn in its] for its in phases] == [[False, True] * 3] * 2
    assert [[list(turn.members) for turn in its] for its in phases] == [
        [[a, c, e], [], [b], [e], [c], []],
        [[b, d], [], [c], [e], [], []],
    ]
    # Each member gets the time that it needs, or that the slowest rank leaves.
    seconds = allocate_time(members, 2, 55.0, dict.fromkeys((m.name for m in members), 12))
    assert [seconds[member.name] for member in (a, b, c, d, e)] == [
        pytest.approx(its) for its in ([10], [15, 10], [10, 10, 10], [15], [10, 5])
    ]


class TestTimeLimit:
    def stage(self, **changes: object) -> Stage:
        values = {"crop": 64, "batch": 4, "epochs": 40, "schedule": {"kind": "cosine", "peak": 1}}
        return Stage.model_validate(values | {"validate_every": 2} | changes)

    def simulate(
        self, seconds: float, steps: int, step_s: float, validation_s: float
    ) -> tuple[float, list[float], list[float]]:
        """Run a stage on a simulated clock; return its length, ends of validations and schedule."""
        stage, progress = self.stage(), Progress()
        validations: list[float] = []
        ends: list[float] = []
        while progress.schedule < stage.epochs:
            plan = plan_epoch(stage, steps, progress, seconds)
            assert plan.start == progress.schedule < plan.end and 1 <= plan.steps <= steps
            assert len(ends) < 100_000, "epochs without end"
            progress.step_seconds = step_s
            progress.stage_seconds += plan.steps * step_s
            if plan.validate:
                progress.validation_seconds = validation_s
                progress.stage_seconds += validation_s
                progress.validated_at = progress.stage_seconds
                validations.append(progress.stage_seconds)
            progress.schedule, progress.epoch = plan.end, progress.epoch + 1
            ends.append(plan.end)
        return progress.stage_seconds, validations, ends

    @pytest.mark.parametrize("seconds", [50.0, 1000.0, 100_000.0])
    @pytest.mark.parametrize(
        ("steps", "step_s", "validation_s"), [(100, 0.1, 1.0), (5000, 0.1, 2.0)]
    )
    def test_a_stage_uses_its_time(
        self, seconds: float, steps: int, step_s: float, validation_s: float
    ) -> None:
        taken, validations, ends = self.simulate(seconds, steps, step_s, validation_s)
        assert 0.75 * seconds < taken <= seconds
        assert ends[-1] == 40 and ends == sorted(ends)
        assert validations[-1] == taken
        pauses = [b - a for a, b in zip([0.0, *validations], validations, strict=False)]
        assert max(pauses) <= 0.2 * seconds + validation_s

    def test_without_a_limit_the_recipe_sets_the_length(self) -> None:
        stage, progress, plans = self.stage(epochs=3), Progress(), []
        while progress.schedule < 3:
            plans.append(plan_epoch(stage, 7, progress))
            assert len(plans) <= 3, "epochs without end"
            progress.schedule, progress.epoch = plans[-1].end, progress.epoch + 1
        assert [(p.steps, p.start, p.end) for p in plans] == [(7, 0, 1), (7, 1, 2), (7, 2, 3)]
        assert [p.validate for p in plans] == [False, True, True]

    def test_members_and_stages_share_the_limit(self) -> None:
        recipe = parse_recipe(recipe_text(2), "test")
        chips = {member.name: 12 for member in recipe.members}
        seconds = allocate_time(recipe.members, 1, 100.0, chips)
        # One epoch of one pass, then two of four.
        assert seconds == {
            member.name: [pytest.approx(50 / 9), pytest.approx(400 / 9)]
            for member in recipe.members
        }
        # On two ranks the first stages run side by side, and the shared ones twice as fast.
        seconds = allocate_time(recipe.members, 2, 90.0, chips)
        assert list(seconds.values()) == [[pytest.approx(10), pytest.approx(40)]] * 2

    def test_a_stage_of_few_chips_needs_little(self) -> None:
        text = yaml.safe_load(recipe_text(2))
        for member in text["members"]:
            # The first stage uses 3 of 12 chips; the second asks for more than exist.
            member["stages"][0]["chips"], member["stages"][1]["chips"] = 3, 50
        recipe = parse_recipe(yaml.safe_dump(text), "test")
        seconds = allocate_time(
            recipe.members, 1, 99.0, {member.name: 12 for member in recipe.members}
        )
        # A quarter of an epoch of one pass, then two of four.
        assert list(seconds.values()) == [[pytest.approx(1.5), pytest.approx(48)]] * 2
        # Members learn from different numbers of chips, because folds differ in size.
        counts = dict(zip(seconds, (12, 6), strict=True))
        seconds = allocate_time(recipe.members, 1, 99.0, counts)
        assert list(seconds.values()) == [
            [pytest.approx(99 * 3 / 150), pytest.approx(99 * 96 / 150)],
            [pytest.approx(99 * 3 / 150), pytest.approx(99 * 48 / 150)],
        ]

    def test_a_training_under_a_limit_ends_with_the_last_rate(
        self, city: Path, tmp_path: Path
    ) -> None:
        recipe = parse_recipe(recipe_text(2), "test")
        # Imports would take up much of the first limit.
        task_of(recipe)
        # On a busy machine few steps fit into a short limit; a step's rate is that of its start.
        for limit in (4.0, 16.0, 64.0):
            options = TrainingOptions(city.parent / "ranks-cache", folds=(0,), time_limit=limit)
            place = tmp_path / f"{limit}"
            train([city / "train"], recipe, RunContext(place / "weights", CPU), options)
            rows = losses(place)["fold0-tiny-8band.log.csv"]
            assert {row[0] for row in rows} == {"1", "2"}
            assert all(row[7] for row in (rows[0], rows[-1]))
            rates = [float(row[2]) for row in rows if row[0] == "2"]
            if len(rates) > 2 and rates[-1] < 0.2 * max(rates):
                return
        pytest.fail(f"the training does not end with a low rate: {rates}")


def test_a_weight_average_is_the_mean_and_held_out_by_all(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks = [build_network("tiny", 3, ROAD_MAPS, (8, 8, 8, 8)) for _ in range(3)]
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, (file, network) in enumerate(zip(files, networks, strict=True)):
        held_out = json.dumps(["a", "b", "c"][number:])
        metadata = {"member": "m", "epoch": str(number), "held_out": held_out, "scores": "{}"}
        save_weights(file, network, metadata)
    output = tmp_path / "soup.last.safetensors"
    with pytest.raises(SystemExit) as ended:
        main(["weights", "average", str(output), *map(str, files)])
    assert ended.value.code == 0
    soup, metadata = load_weights(output)
    for name, value in soup.state_dict().items():
        parts = torch.stack([network.state_dict()[name].double() for network in networks])
        torch.testing.assert_close(value.double(), parts.mean(0))
    assert metadata["member"] == "m" and json.loads(metadata["held_out"]) == ["c"]
    assert {"epoch", "scores"}.isdisjoint(metadata)
    other = build_network("tiny", 3, ROAD_MAPS, (8, 8, 8, 16))
    save_weights(files[0], other, {})
    with pytest.raises(SatmapError, match="only networks of the same architecture"):
        average_weights(output, files)
    with pytest.raises(SatmapError, match="two or more"):
        average_weights(output, files[:1])


def test_a_lost_chip_ends_the_training_with_its_name(city: Path, tmp_path: Path) -> None:
    from satmap.training import train as training

    recipe = parse_recipe(recipe_text(2), "test")
    cache = tmp_path / "cache"
    context = RunContext(tmp_path / "weights", CPU, workers=1)
    options = TrainingOptions(cache=cache, folds=(0,))

    original = training._train_epoch

    def losing(*arguments):  # type: ignore[no-untyped-def]
        for file in cache.glob("*.safetensors"):
            file.unlink(missing_ok=True)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_train_epoch", losing)
        with pytest.raises(
            SatmapError, match=r"prepared chip .*safetensors cannot be read"
        ) as lost:
            train([city / "train"], recipe, context, options)
    assert "Traceback" not in str(lost.value)
    # A second start rebuilds them.
    train([city / "train"], recipe, context, options)


def test_missing_tensorboard_is_reported_before_any_work(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = [*command(city, tmp_path, recipe_text(2)), "--tensorboard", str(tmp_path / "tb")]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()


def test_what_changes_a_training_changes_the_fingerprint_of_its_recipe() -> None:
    plain = parse_recipe(TWO_STAGE_RECIPE, "test").training_fingerprint
    # A setting of None does not count, as if it did not exist.
    nothing = yaml.safe_load(TWO_STAGE_RECIPE) | {
        "sampling": None,
        "optimizer": {"ema_decay": None},
    }
    assert parse_recipe(yaml.safe_dump(nothing), "test").training_fingerprint == plain
    for change in ({"sampling": "equal_areas"}, {"optimizer": {"ema_decay": 0.99}}):
        content = yaml.safe_load(TWO_STAGE_RECIPE) | change
        assert parse_recipe(yaml.safe_dump(content), "test").training_fingerprint != plain
