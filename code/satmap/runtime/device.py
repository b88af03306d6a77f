"""Choice of the device and of the numerical precision that networks run in."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from satmap.errors import SatmapError
from satmap.runtime.launched import local_processes


def be_deterministic() -> None:
    """Make torch use deterministic algorithms only. Call this before anything runs on a GPU.

    Afterwards torch raises RuntimeError for operations without a deterministic implementation.
    """
    # cuBLAS is deterministic only with workspaces of fixed sizes. It reads this when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


#: Errors of the device itself, not of a single image. torch before 2.8 has no AcceleratorError.
DEVICE_ERRORS: tuple[type[Exception], ...] = (
    getattr(torch, "AcceleratorError", RuntimeError),
    torch.OutOfMemoryError,
)

# Containers see this file too, even without access to a GPU.
_DRIVER = Path("/proc/driver/nvidia/version")

_REMEDIES = (
    "Use an image that was built with `--build-arg LOCK=requirements-cuda12.lock` (it supports "
    "older GPUs and drivers), or give `--device cpu`, which takes many times as long."
)


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name. ``auto`` is the first GPU if there is one, else the CPU.

    If torch's launcher started several processes on this machine, ``cuda`` is a different GPU in
    each of them. A name with a number (``cuda:1``) is always that GPU.

    Raises:
        SatmapError: the device does not exist, or this build of torch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_processes() > 1 and torch.cuda.is_available():
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        # Run a kernel: torch also lists GPUs that are too old for it.
        (torch.ones(8, device=device) * 2).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise SatmapError(
            f"device {name!r} cannot be used ({str(error).splitlines()[0]}). "
            f"Give `auto`, `cpu` or `cuda`; in a container pass `--gpus all`. torch "
            f"{torch.__version__} runs on {' '.join(torch.cuda.get_arch_list()) or 'no GPU'}."
        ) from error
    return device


def visible_gpus(name: str) -> int:
    """Return how many GPUs a device name allows: all for ``auto`` and ``cuda``, else 0.

    Prints a warning on stderr if there is a driver but no visible GPU, as in a container without
    ``--gpus all``.

    Raises:
        SatmapError: there are GPUs, but this build of torch has no kernels for one of them or needs
            a newer driver.
    """
    if name not in ("auto", "cuda"):
        return 0
    gpus = torch.cuda.device_count()
    if gpus:
        _require_usable(gpus)
    elif name == "auto" and _DRIVER.exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        print(
            "satmap: this machine has a driver for NVIDIA GPUs, but none can be seen here, so "
            "satmap runs on the CPU. In a container pass `--gpus all`.",
            file=sys.stderr,
        )
    return gpus


def _require_usable(gpus: int) -> None:
    """Raise SatmapError if torch cannot use all GPUs, instead of falling back to the CPU."""
    # Counting GPUs needs only the driver. This call also initialises CUDA.
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
                f"{' '.join(compiled)} only. {_REMEDIES} Or hide that GPU with "
                "CUDA_VISIBLE_DEVICES."
            )


def has_kernels(capability: tuple[int, int], compiled: Sequence[str]) -> bool:
    """Return whether a build of torch has kernels for a GPU, by NVIDIA's compatibility rules.

    Compiled machine code (``sm_75``) runs on GPUs of the same major and the same or a higher minor
    capability. PTX (``compute_90``) runs on the same and all higher capabilities. Targets with the
    suffix ``a`` (``sm_90a``) run on exactly their own capability, with ``f`` on the same major.
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
    """Return a context for mixed precision: bfloat16 if the device is fast at it, else disabled."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_fast_bfloat16(device))


def precision(device: torch.device) -> str:
    """Return the precision on a device: ``bfloat16`` (mixed with float32) or ``float32``."""
    return "bfloat16" if _fast_bfloat16(device) else "float32"


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # CPUs without these instructions emulate bfloat16, slower than float32. torch 2.7 cannot say
    # which instructions a CPU has.
    if not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
