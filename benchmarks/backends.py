"""Compare ways to run a network on one CPU thread: torch, torch.compile, ONNX Runtime, OpenVINO.

    .venv/bin/python benchmarks/backends.py WORK

Measured are both starter networks and a DPN92 of ``sn5-roads`` on one image of 512 pixels. All ways
take turns in every round, so that other programs slow all of them alike; the table gives the median
CPU time, its ratio to eager torch in float32, the share of the machine's arithmetic peak (a
product of two matrices of 2,048 in the same precision, for int8 in float32), and the largest and
mean difference of the probabilities to eager float32. The image is a real one: a window of the
demo's picture; other windows calibrate int8. DPN92 has random weights, so it has no int8.

OpenVINO is measured if it can be imported; it is not in the lock. Its telemetry stays off, because
only its runtime is used.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import rasterio
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch.utils.flop_counter import FlopCounterMode

from satmap.demo import PLACES
from satmap.networks.unet import UNet, build_network
from satmap.recipes.schema import load_recipe
from satmap.runtime.device import precision
from satmap.tasks.roads.settings import ROAD_MAPS
from satmap.weights.export import INPUT, Deployable, export_network
from satmap.weights.members import find_weights
from satmap.weights.network_files import load_weights
from satmap.weights.starters import starter_weights

_SIDE = 512
_MATRIX = 2048

Run = Callable[[], NDArray[np.float32]]


def main() -> None:
    """Measure every network in every way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bfloat16 = precision(torch.device("cpu")) == "bfloat16"
    # MKL is slow on AMD's CPUs, so ONNX Runtime's product counts if it is faster.
    peaks = {"float32": max(_peak(torch.float32), _onnx_peak())}
    if bfloat16:
        peaks["bfloat16"] = _peak(torch.bfloat16)
    print(", ".join(f"peak in {name}: {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()))
    print("| network | way | CPU ms | ratio | of the peak | largest, mean difference |")
    print("|---|---|---|---|---|---|")
    for name, network, image in _networks():
        operations = _operations(network, image)
        ways = _ways(network, image, options.work / name, bfloat16)
        results = {way: run() for way, run in ways.items()}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, run in ways.items():
                started = time.process_time()
                run()
                seconds[way].append(time.process_time() - started)
        medians = {way: statistics.median(each) for way, each in seconds.items()}
        base = "torch float32"
        for way, median in medians.items():
            peak = peaks["bfloat16" if "bfloat16" in way else "float32"]
            share = operations / median / peak
            gap = np.abs(results[way] - results[base])
            print(
                f"| {name} | {way} | {median * 1000:.0f} | {medians[base] / median:.2f} | "
                f"{share:.0%} | {gap.max():.1e}, {gap.mean():.1e} |",
                flush=True,
            )


def _networks() -> Iterator[tuple[str, UNet, NDArray[np.uint8]]]:
    """Yield name, network and image, uint8 (1, bands, side, side)."""
    for task in PLACES:
        (file,) = find_weights(starter_weights(task))
        network, _ = load_weights(file.path)
        yield f"starter-{task}", network.eval(), _windows(task)[:1]
    member = next(m for m in load_recipe("sn5-roads").members if m.encoder == "dpn92")
    torch.manual_seed(0)
    network = build_network(
        member.encoder, member.bands, ROAD_MAPS, member.decoder.widths, member.decoder.kind
    )
    image = np.tile(_windows("roads")[:1], (1, -(-member.bands // 3), 1, 1))[:, : member.bands]
    yield "dpn92", network.eval(), image


def _windows(task: str) -> NDArray[np.uint8]:
    """Return windows of the demo's picture of a task, uint8 (n, 3, side, side)."""
    with rasterio.open(PLACES[task]) as file:
        pixels: NDArray[np.uint8] = file.read([1, 2, 3])
    height, width = pixels.shape[1:]
    corners = [
        (row, column)
        for row in np.linspace(0, max(height - _SIDE, 0), 4).astype(int)
        for column in np.linspace(0, max(width - _SIDE, 0), 3).astype(int)
    ]
    return np.stack(
        [
            np.pad(cut, ((0, 0), (0, _SIDE - cut.shape[1]), (0, _SIDE - cut.shape[2])), "reflect")
            for row, column in corners
            for cut in [pixels[:, row : row + _SIDE, column : column + _SIDE]]
        ]
    )


def _ways(network: UNet, image: NDArray[np.uint8], stem: Path, bfloat16: bool) -> dict[str, Run]:
    """Return functions that predict the image, float32 (1, maps, side, side), by name."""
    module = Deployable(network.to(memory_format=torch.channels_last), free_size=False).eval()
    tensor = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)

    def eager(call: Callable[[torch.Tensor], torch.Tensor], reduced: bool) -> Run:
        def run() -> NDArray[np.float32]:
            with (
                torch.inference_mode(),
                torch.autocast("cpu", torch.bfloat16, enabled=reduced),
            ):
                found: NDArray[np.float32] = call(tensor).float().numpy()
            return found

        return run

    ways = {"torch float32": eager(module, False)}
    if bfloat16:
        ways["torch bfloat16"] = eager(module, True)
    ways["torch.compile float32"] = eager(torch.compile(module), False)
    if bfloat16:
        ways["torch.compile bfloat16"] = eager(torch.compile(module), True)
    path = stem.with_suffix(".onnx")
    path.unlink(missing_ok=True)
    export_network(network, path, {}, (_SIDE, _SIDE))
    ways["ONNX Runtime float32"] = _session(path, image)
    if image.shape[1] == 3:
        small = stem.with_suffix(".int8.onnx")
        task = "buildings" if "buildings" in stem.name else "roads"
        quantize_static(path, small, _Reader(_windows(task)), QuantFormat.QDQ, per_channel=True)
        ways["ONNX Runtime int8"] = _session(small, image)
    if importlib.util.find_spec("openvino"):
        for precision in ("f32", "bf16") if bfloat16 else ("f32",):
            name = f"OpenVINO {'bfloat16' if precision == 'bf16' else 'float32'}"
            ways[name] = _openvino(path, image, precision)
    return ways


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images that calibrate int8."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._left = iter(images[1:, None])

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._left, None)
        return None if image is None else {INPUT: image}


def _open(model: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _session(path: Path, image: NDArray[np.uint8]) -> Run:
    session = _open(path)
    return lambda: session.run(None, {INPUT: image})[0]


def _openvino(path: Path, image: NDArray[np.uint8], precision: str) -> Run:
    import openvino  # type: ignore[import-not-found]

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda: np.array(compiled(image)[0], np.float32)


def _peak(dtype: torch.dtype) -> float:
    """Return operations per second of CPU time of a matrix product by torch."""
    a, b = (torch.rand(_MATRIX, _MATRIX).to(dtype) for _ in range(2))
    return _rate(lambda: a @ b)


def _onnx_peak() -> float:
    """Return operations per second of CPU time of a matrix product by ONNX Runtime."""
    shape = (_MATRIX, _MATRIX)
    a, b, c = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "abc"
    )
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "product", [a, b], [c])
    model = onnx.helper.make_model(
        graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    session = _open(model.SerializeToString())
    values = {name: np.random.default_rng(0).random(shape, np.float32) for name in "ab"}
    return _rate(lambda: session.run(None, values))


def _rate(product: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        product()
        best = min(best, time.process_time() - started)
    return float(2 * _MATRIX**3 / best)


def _operations(network: UNet, image: NDArray[np.uint8]) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(network.encoder.normalize(torch.from_numpy(image)))
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
