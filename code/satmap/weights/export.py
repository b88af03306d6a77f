"""Export networks as graphs that run without satmap: torch.export's ``.pt2`` and ONNX.

A graph maps the bytes of a stretched image to probabilities. It includes normalisation, padding to
the network's stride and cropping. It does not include the other steps of satmap's prediction: the
stretch, test-time augmentation, windows and the masking of pixels without data.
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

#: Smallest image side in pixels that a graph for any image size accepts.
LEAST_FREE_SIDE = STRIDE + 1

#: Names of the graph's inputs and its output. The second input exists only for networks with
#: categories.
INPUT, CATEGORY, OUTPUT = "image", "category", "probabilities"


class Deployable(nn.Module):
    """Module to export: a network that maps bytes to probabilities.

    With ``free_size`` it uses only operations that do not depend on the image size.
    """

    def __init__(self, network: UNet, free_size: bool) -> None:
        super().__init__()
        self.network = network
        self.free_size = free_size

    def forward(self, image: Tensor, category: Tensor | None = None) -> Tensor:
        """Predict probability maps, float32 (N, maps, H, W), 0..1.

        Args:
            image: uint8 (N, in_channels, H, W), stretched as in training.
            category: int64 (N,), index into the network's categories, if it has any.
        """
        normalize = self.network.encoder.normalize
        if not self.free_size:
            logits: Tensor = self.network(normalize(image), category)
            return logits.sigmoid()
        height, width = image.shape[2:]
        logits = self.network.forward_padded(normalize(pad_to_stride(image)), category)
        # Not slices: the exporter would have to prove for every size that they are in range.
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
        network: network on the CPU in evaluation mode, as ``load_weights`` returns it.
        path: ends in one of ``satmap.weights.export_file.EXPORT_SUFFIXES``.
        metadata: to store in the file, such as those of the weights: maps, recipe, categories.
        size: height and width in pixels, for a graph for single images of this size; None for
            batches of images with sides from ``LEAST_FREE_SIDE``.

    Raises:
        SatmapError: the suffix or the size is invalid, a package that ONNX needs is missing, the
            file cannot be written, or it exists and is not an export.
        ValueError: the network is in training mode.
    """
    require_exportable(path)
    if size and min(size) < 1:
        raise SatmapError(
            f"cannot export for images of {size[0]} x {size[1]} pixels; give sides from 1."
        )
    if network.training:
        raise ValueError("only a network in evaluation mode can be exported")
    program = _program(network, size)
    content = _pt2_bytes if path.suffix.lower() == ".pt2" else _onnx_bytes
    with atomic_path(path) as temporary:
        temporary.write_bytes(content(program, dict(sorted(metadata.items()))))


def _program(network: UNet, size: tuple[int, int] | None) -> ExportedProgram:
    # Use two images for a free batch size: torch.export specialises a graph traced with one image.
    batch, (height, width) = (1, size) if size else (2, (2 * STRIDE, 3 * STRIDE))
    inputs = [torch.zeros(batch, network.in_channels, height, width, dtype=torch.uint8)]
    sides = [Dim(name, min=LEAST_FREE_SIDE) for name in ("height", "width")]
    shapes = [{0: Dim("batch"), 2: sides[0], 3: sides[1]}]
    if network.categories:
        inputs.append(torch.zeros(batch, dtype=torch.int64))
        shapes.append({0: shapes[0][0]})
    deployable = Deployable(network, free_size=size is None).eval()
    program = torch.export.export(
        deployable, tuple(inputs), dynamic_shapes=None if size else tuple(shapes)
    )
    # Stack traces hold local file paths, which differ between machines and should stay private.
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _pt2_bytes(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    # Save to memory, because the archive would contain the name of the temporary file.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    return buffer.getvalue()


def _onnx_bytes(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    names = [INPUT, CATEGORY][: len(program.graph_signature.user_inputs)]
    onnx = torch.onnx.export(
        program, input_names=names, output_names=[OUTPUT], dynamo=True, verbose=False
    )
    assert onnx is not None, "only the old exporter returns None"
    onnx.optimize()
    model = onnx.model_proto
    # Remove the exporter's debug information, tens of kilobytes.
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
                dim.dim_param = ("batch", "maps", "height", "width")[index]
    return bytes(model.SerializeToString(deterministic=True))
