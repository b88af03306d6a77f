"""The published reference: its tensors' names beside ours, and what its networks were shown.

The reference numbers what we name: ``encoder_stages.STAGE.INDEX`` is the module at that place in
the encoder's spec, ``decoder_stages`` counts from the shallowest and ``bottlenecks`` from the
deepest. Published files prefix each name with ``module.``, which is not handled here.

Source: selim_sef's third place in SpaceNet 5, code and configurations in
https://github.com/SpaceNetChallenge/SpaceNet_Optimized_Routing_Solutions.
"""

from collections.abc import Mapping

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from satmap.errors import SatmapError
from satmap.models.encoders import ENCODERS, child_name
from satmap.models.unet import DECODER_WIDTHS

#: Encoder and number of bands of the published networks -> mean and standard deviation of every
#: channel. Not those of the encoders' ImageNet weights: DPN92 was trained with others.
REFERENCE_NORMALIZATION: Mapping[tuple[str, int], tuple[tuple[float, ...], tuple[float, ...]]] = {
    ("dpn92", 3): (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ("dpn92", 8): ((0.5,) * 8, (0.5,) * 8),
    ("inception_resnet_v2", 3): ((0.5,) * 3, (0.5,) * 3),
    ("inception_resnet_v2", 8): ((0.5,) * 8, (0.5,) * 8),
}

#: Number of bands -> which of a PS-MS image's, counted from 1, in the order of the channels.
REFERENCE_BANDS: Mapping[int, tuple[int, ...]] = {3: (5, 3, 2), 8: (5, 3, 2, 1, 4, 6, 7, 8)}

#: Percentiles of every band that became 0 and 255.
REFERENCE_STRETCH = (2.0, 98.0)


def reference_to_ours(name: str, encoder: str) -> str:
    """Our name of the tensor that the reference's state dict calls ``name``.

    Args:
        name: such as ``bottlenecks.0.seq.0.weight``.
        encoder: key in ``ENCODERS``.

    Raises:
        SatmapError: the reference has no such name.
    """
    module, _, leaf = _rename(name, _modules(encoder)).rpartition(".")
    # timm's fused norm and activation are two modules here (see NormAct).
    return f"{module}.norm.{leaf}" if module.endswith(".bn") else f"{module}.{leaf}"


def ours_to_reference(name: str, encoder: str) -> str:
    """The reference's name of our tensor ``name``: the way back of ``reference_to_ours``.

    Raises:
        SatmapError: our network has no such name.
    """
    reference = {ours: theirs for theirs, ours in _modules(encoder).items()}
    return _rename(name.replace(".bn.norm.", ".bn."), reference)


def _modules(encoder: str) -> dict[str, str]:
    """Modules of the reference, each with our name of it."""
    names = {"final.0": "head"}
    for index in range(len(DECODER_WIDTHS)):
        names[f"bottlenecks.{index}.seq.0"] = f"decoder.{index}.skip_conv"
        from_shallowest = len(DECODER_WIDTHS) - 1 - index
        names[f"decoder_stages.{from_shallowest}.layer.1"] = f"decoder.{index}.up_conv"
    for stage, paths in enumerate(ENCODERS[encoder].stages):
        for index, path in enumerate(paths):
            names[f"encoder_stages.{stage}.{index}"] = f"encoder.stages.{stage}.{child_name(path)}"
    return names


def _rename(name: str, modules: dict[str, str]) -> str:
    for old, new in modules.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    raise SatmapError(f"no tensor {name!r} in this network; its modules are {', '.join(modules)}.")
