"""Networks as graphs that run without satmap: torch.export's ``.pt2`` and ONNX.

A graph takes what a deployer has and gives what he wants: bytes of the stretched image in,
probabilities out. Normalisation, padding to the network's stride and cropping are inside. What
satmap does around a network (stretch, views, windows, black where there is no data) is not.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from satmap.errors import SatmapError
from satmap.io.files import atomic_path
from satmap.networks.unet import STRIDE, UNet, pad_to_stride
from satmap.weights.export_file import METADATA_FILE, PRODUCER, require_exportable

#: Shortest side, in pixels, of the images that a graph for a free size takes.
LEAST_FREE_SIDE = STRIDE + 1

#: Names of the graph's inputs, the second only where the network has categories, and its output.
INPUT, CATEGORY, OUTPUT = "image", "category", "planes"


class Deployable(nn.Module):
    """What is exported: a network from bytes to probabilities.

    Attributes:
        network: in evaluation mode.
        free_size: compute with operations that are the same for every image size.
    """

    def __init__(self, network: UNet, free_size: bool) -> None:
        super().__init__()
        self.network = network
        self.free_size = free_size

    def forward(self, image: Tensor, category: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            image: uint8 (N, in_channels, H, W), stretched as in training.
            category: int64 (N,), index into the network's categories, if it has any.

        Returns:
            float32 (N, planes, H, W), 0..1.
        """
        normalize = self.network.encoder.normalize
        if not self.free_size:
            logits: Tensor = self.network(normalize(image), category)
            return logits.sigmoid()
        height, width = image.shape[2:]
        logits = self.network.forward_padded(normalize(pad_to_stride(image)), category)
        # A slice would have to prove for every size that it is not longer than what it cuts.
        logits = logits.index_select(2, torch.arange(height, device=image.device))
        return logits.index_select(3, torch.arange(width, device=image.device)).sigmoid()


def export_network(
    network: UNet,
    path: Path,
    metadata: Mapping[str, str],
    size: tuple[int, int] | None = None,
) -> None:
    """Write the network as a graph, atomically; the same network gives the same bytes.

    Args:
        network: on the CPU and in evaluation mode, as ``load_weights`` gives it.
        path: ends in one of ``satmap.weights.export_file.EXPORT_SUFFIXES``.
        metadata: to be kept in the file, such as that of the weights: planes, recipe, categories.
        size: height and width in pixels, for one image at a time; None for batches of images of
            any size from ``LEAST_FREE_SIDE``.

    Raises:
        SatmapError: another ending, no size, a package that ONNX needs is missing, the file cannot
            be written, or there is one of that name that is no export.
        ValueError: the network is in training mode.
    """
    require_exportable(path)
    if size and min(size) < 1:
        raise SatmapError(f"an image of {size[0]} x {size[1]} pixels cannot be.")
    if network.training:
        raise ValueError("only a network in evaluation mode can be exported")
    program = _program(network, size)
    content = _pt2_bytes if path.suffix.lower() == ".pt2" else _onnx_bytes
    with atomic_path(path) as temporary:
        temporary.write_bytes(content(program, dict(sorted(metadata.items()))))


def _program(network: UNet, size: tuple[int, int] | None) -> ExportedProgram:
    # Two images: what is traced with one is taken to hold for one only.
    batch, (height, width) = (1, size) if size else (2, (2 * STRIDE, 3 * STRIDE))
    image = torch.zeros(batch, network.encoder.in_channels, height, width, dtype=torch.uint8)
    inputs: tuple[Tensor, ...] = (image,)
    free = {
        0: Dim("batch"),
        2: Dim("height", min=LEAST_FREE_SIDE),
        3: Dim("width", min=LEAST_FREE_SIDE),
    }
    shapes: tuple[dict[int, Dim], ...] = (free,)
    if network.categories:
        inputs = (*inputs, torch.zeros(batch, dtype=torch.int64))
        shapes = (*shapes, {0: free[0]})
    deployable = Deployable(network, free_size=size is None).eval()
    program = torch.export.export(deployable, inputs, dynamic_shapes=None if size else shapes)
    # Where on this machine each line of code lies is nobody's business, and differs from place
    # to place.
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _pt2_bytes(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    # Not to the file: the archive would hold its name, which is a temporary one.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    return buffer.getvalue()


def _onnx_bytes(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    names = [INPUT, CATEGORY][: len(program.graph_signature.user_inputs)]
    onnx = torch.onnx.export(
        program, input_names=names, output_names=[OUTPUT], dynamo=True, verbose=False
    )
    assert onnx is not None, "only the old exporter gives nothing"
    onnx.optimize()
    model = onnx.model_proto
    # Traces of the exporter, tens of kilobytes.
    del model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input):
        del part.metadata_props[:]
    del model.metadata_props[:]
    model.producer_name = PRODUCER
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    for tensor in (*model.graph.input, *model.graph.output):
        for index, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = ("batch", "planes", "height", "width")[index]
    return bytes(model.SerializeToString(deterministic=True))
