"""Compare a training step of the reference with ours, on the same network and batch.

    .venv/bin/python benchmarks/training.py
    .venv/bin/python benchmarks/training.py --device cuda --encoder dpn92 --crop 384 --batch 10

The reference's step is float32, channels first and eager. Ours is bfloat16 where the device is fast
at it, channels last, and compiled by ``torch.compile`` with ``--compile``. Both take turns in one
process; the medians are printed. On a GPU with a known peak, the fraction of the peak is printed
too: a step counts three times the operations of the forward pass, and a multiply-add two.
"""

import argparse
import contextlib
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from networks import count_macs
from satmap.networks.unet import UNet, build_network
from satmap.recipes.task_settings import HeadLoss
from satmap.runtime.device import autocast, pick_device
from satmap.tasks.roads.losses import road_loss
from satmap.tasks.roads.settings import ROAD_MAPS, RoadHeadLoss
from satmap.tasks.roads.settings import RoadLosses as Losses

_LOSSES = Losses(
    road=RoadHeadLoss(dice=0.5, focal=2, bce=0.1),
    speed=HeadLoss(dice=0.1, focal=2, bce=1),
    junction=HeadLoss(dice=0.1, focal=1),
)

# Dense bfloat16 operations per second by a part of the GPU's name, from the maker's data sheets.
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12}

_WARM_UP = 2


def main() -> None:
    """Measure both steps and print their times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--decoder", default="plain")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    device = pick_device(options.device)
    torch.manual_seed(0)
    network = build_network(options.encoder, 3, ROAD_MAPS, decoder_kind=options.decoder)
    size = options.batch, options.crop, options.crop
    images = torch.randint(0, 256, (size[0], 3, *size[1:]), dtype=torch.uint8, device=device)
    targets = torch.randint(0, 11, size, dtype=torch.uint8, device=device)
    ways = {
        "reference": _step(copy.deepcopy(network), device, images, targets, ours=False),
        "satmap": _step(network, device, images, targets, ours=True, compiled=options.compile),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_WARM_UP + options.steps):
        for name, step in ways.items():
            seconds = _timed(step, device)
            if number >= _WARM_UP:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:10s}{1000 * seconds:9.1f} ms per step {options.batch / seconds:8.1f} crops/s")
    print(f"ratio {medians['reference'] / medians['satmap']:.2f}")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        operations = 6 * count_macs(network, options.crop) * options.batch
        peak = next((peak for part, peak in _PEAKS.items() if part in name), None)
        if peak is not None:
            print(f"{operations / medians['satmap'] / peak:.1%} of the peak of {name}")


def _step(
    network: UNet,
    device: torch.device,
    images: Tensor,
    targets: Tensor,
    *,
    ours: bool,
    compiled: bool = False,
) -> Callable[[], None]:
    """Return a function that runs one training step."""
    network.to(device).train()
    if ours:
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    run = torch.compile(network) if compiled else network

    def step() -> None:
        pixels = network.encoder.normalize(images)
        if ours:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with autocast(device) if ours else contextlib.nullcontext():
            logits = run(pixels)
        loss, _ = road_loss(logits, network.map_names, targets, _LOSSES)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def _timed(step: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
