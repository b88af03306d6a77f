"""Where networks run and in which precision."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from satmap.errors import SatmapError
from satmap.runtime.launched import local_processes

# Two workspaces of fixed sizes; read by cuBLAS when it starts.
_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def be_deterministic() -> None:
    """Let this process compute the same every time; call it before anything runs on a GPU.

    From then on torch raises RuntimeError where it cannot.
    """
    os.environ.setdefault(*_CUBLAS)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


#: What says that a device fails, and not a single image: torch before 2.8 has no name for it.
DEVICE_ERRORS: tuple[type[Exception], ...] = (
    getattr(torch, "AcceleratorError", RuntimeError),
    torch.OutOfMemoryError,
)

# Linux shows it in containers too, whether they were given GPUs or not.
_DRIVER = Path("/proc/driver/nvidia/version")

_REMEDIES = (
    "Use an image that was built with `--build-arg LOCK=requirements-cuda12.lock` (it serves older "
    "GPUs and drivers), or give `--device cpu`, which takes many times as long."
)


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
    """How many GPUs a device of that name leaves open: all for ``auto`` and ``cuda``, else 0.

    Where there is a driver but no GPU to be seen, as in a container without ``--gpus all``, stderr
    says so.

    Raises:
        SatmapError: there are GPUs, but this torch has no kernels for one of them or needs a newer
            driver.
    """
    if name not in ("auto", "cuda"):
        return 0
    gpus = torch.cuda.device_count()
    if gpus:
        _require_usable(gpus)
    elif name == "auto" and _DRIVER.exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        print(
            "satmap: this machine has a driver for NVIDIA GPUs, but none can be seen here, so the "
            "CPU does the work. In a container pass `--gpus all`.",
            file=sys.stderr,
        )
    return gpus


def _require_usable(gpus: int) -> None:
    """Fail before hours on a CPU that nobody wanted."""
    # The driver has counted them; whether torch can talk to it shows only now.
    if not torch.cuda.is_available():
        raise SatmapError(
            f"there are {gpus} GPUs, but torch {torch.__version__} cannot use them. Most likely "
            f"their driver is too old for CUDA {torch.version.cuda}. {_REMEDIES}"
        )
    compiled = torch.cuda.get_arch_list()
    for index in range(gpus):
        capability = torch.cuda.get_device_capability(index)
        if not has_kernels(capability, compiled):
            raise SatmapError(
                f"GPU {index} ({torch.cuda.get_device_name(index)}) has compute capability "
                f"{capability[0]}.{capability[1]}, and torch {torch.__version__} is compiled for "
                f"{' '.join(compiled)} only. {_REMEDIES} Or leave that GPU out by "
                "CUDA_VISIBLE_DEVICES."
            )


def has_kernels(capability: tuple[int, int], compiled: Sequence[str]) -> bool:
    """Whether something in a build of torch runs on a GPU, by NVIDIA's rules of compatibility.

    Args:
        capability: major and minor compute capability.
        compiled: as ``torch.cuda.get_arch_list`` gives it: machine code (``sm_75``) runs on GPUs
            of the same major and the same or a higher minor capability, PTX (``compute_90``) on all
            higher ones; with a letter behind (``sm_90a``) each runs on its own alone (``a``), or
            within its major (``f``).
    """
    for target in compiled:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", target)
        if match is None:
            continue
        kind, suffix = match[1], match[4]
        made_for = int(match[2]), int(match[3])
        if suffix == "a":
            runs = capability == made_for
        elif kind == "sm" or suffix == "f":
            runs = capability[0] == made_for[0] and capability[1] >= made_for[1]
        else:
            runs = capability >= made_for
        if runs:
            return True
    return False


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision in bfloat16 where the device is fast at it, else none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_fast_bfloat16(device))


def precision(device: torch.device) -> str:
    """What networks compute in on the device: ``bfloat16``, mixed with float32, or ``float32``."""
    return "bfloat16" if _fast_bfloat16(device) else "float32"


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # CPUs without the instructions emulate it, slower than float32. torch 2.7 does not tell.
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
