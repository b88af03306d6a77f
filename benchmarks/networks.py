"""Measure every encoder with every decoder: parameters, MACs, milliseconds and memory.

    .venv/bin/python benchmarks/networks.py
    .venv/bin/python benchmarks/networks.py --encoders dpn92 resnet34 --decoders plain light

The time is the median of three forward passes of one 512 x 512 image after a warm-up, in float32
and in bfloat16 as in ``satmap predict``. Each network and precision runs in its own process. Memory
is the peak of the process minus its memory before the network was built: weights, activations and
the libraries' workspace. On a GPU (``--device cuda``) it is the memory allocated by torch. The
script takes about 20 minutes on one core.
"""

import argparse
import copy
import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from satmap.networks.encoders import ENCODERS, Encoder
from satmap.networks.unet import DECODERS, UNet, build_network
from satmap.tasks.roads.settings import ROAD_MAPS

_RUNS = 3


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    # Workers fork from a process that has only done the imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["networks"])
    print(
        "| encoder | decoder | parameters, M | GMACs | of them decoder "
        "| float32, ms | float32, MB | bfloat16, ms | bfloat16, MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for encoder in options.encoders:
        for decoder in options.decoders:
            with torch.device("meta"):
                network = build_network(encoder, 3, ROAD_MAPS, decoder_kind=decoder)
            macs = count_macs(network, options.size)
            decoding = macs - count_macs(network.encoder, options.size)
            parameters = sum(parameter.numel() for parameter in network.parameters())
            cells = [
                encoder, decoder, f"{parameters / 1e6:.1f}", f"{macs / 1e9:.1f}",
                f"{decoding / 1e9:.1f}",
            ]  # fmt: skip
            for bfloat16 in (False, True):
                arguments = (
                    encoder, decoder, options.size, bfloat16, options.threads, options.device,
                )  # fmt: skip
                # A single-use pool of one process, which passes exceptions on.
                with context.Pool(1) as pool:
                    milliseconds, megabytes = pool.apply(measure, arguments)
                cells += [f"{milliseconds:.0f}", f"{megabytes:.0f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def count_macs(network: UNet | Encoder, size: int) -> int:
    """Count multiply-accumulates of convolutions and matrix products for one square image.

    Args:
        network: the network; it is not modified.
        size: side of the image, pixels, a multiple of 32.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    encoder = shadow.encoder if isinstance(shadow, UNet) else shadow
    image = torch.empty(1, encoder.in_channels, size, size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(image)
    return int(counter.get_total_flops()) // 2


def measure(
    encoder: str, decoder: str, size: int, bfloat16: bool, threads: int, device_name: str
) -> tuple[float, float]:
    """Return milliseconds and megabytes of one forward pass; run it in a fresh process."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    before = _peak_bytes(device)
    network = build_network(encoder, 3, ROAD_MAPS, decoder_kind=decoder).eval()
    network.to(device).to(memory_format=torch.channels_last)
    image = torch.rand(1, 3, size, size, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        for _ in range(1 + _RUNS):
            started = time.perf_counter()
            network(image).sum().item()
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:]), (_peak_bytes(device) - before) / 1e6


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
