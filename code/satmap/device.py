"""Where networks run and in which precision."""

import os

import torch

from satmap.errors import SatmapError
from satmap.launched import local_processes


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is the first GPU, else the CPU.

    Of several processes that torch's launcher has started here each has a GPU of its own, unless
    the name has a number.

    Raises:
        SatmapError: there is no such device, or it does not run this torch.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_processes() > 1 and torch.cuda.is_available():
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        # A real kernel: a GPU too old for this torch is listed all the same.
        (torch.ones(8, device=device) * 2).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise SatmapError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}). "
            f"Give `auto`, `cpu` or `cuda`; in a container pass `--gpus all`. torch "
            f"{torch.__version__} runs on {' '.join(torch.cuda.get_arch_list()) or 'no GPU'}."
        ) from error
    return device


def visible_gpus(name: str) -> int:
    """How many GPUs a device of that name leaves open: all for ``auto`` and ``cuda``, else 0."""
    # Asks the driver alone: this process is to take no memory of theirs.
    return torch.cuda.device_count() if name in ("auto", "cuda") else 0


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision in bfloat16 where the device is fast at it, else none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_fast_bfloat16(device))


def precision(device: torch.device) -> str:
    """What networks compute in on the device: ``bfloat16``, mixed with float32, or ``float32``."""
    return "bfloat16" if _fast_bfloat16(device) else "float32"


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # CPUs without the instructions emulate it, slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
