"""Names of the published reference's tensors, and ours.

The reference numbers what we name: ``encoder_stages.STAGE.INDEX`` is the module at that place in
the encoder's spec, ``decoder_stages`` counts from the shallowest and ``bottlenecks`` from the
deepest. Published files prefix each name with ``module.``, which is not handled here.
"""

from satmap.errors import SatmapError
from satmap.models.encoders import ENCODERS, child_name
from satmap.models.unet import DECODER_WIDTHS


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
