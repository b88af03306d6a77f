"""Whether ``torch.compile`` works here, found out before a training and not within it."""

import torch

from satmap.errors import SatmapError


def require_compiler(device: torch.device) -> None:
    """Compile something small, forwards and backwards, on the device.

    Raises:
        SatmapError: torch cannot; says why and what it needs.
    """
    values = torch.ones(64, device=device, requires_grad=True)
    try:
        compiled = torch.compile(_something)
        compiled(values).backward()  # type: ignore[no-untyped-call]
    # What compilers, linkers and torch's own layers raise has no common type.
    except Exception as error:
        needed = "triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++)"
        raise SatmapError(
            f"--compile: torch cannot compile for {device} here ({_reason(error)}). It needs "
            f"{needed} and Python's headers; $CXX names another compiler. Leave --compile out to "
            "train without."
        ) from error


def _something(values: torch.Tensor) -> torch.Tensor:
    return (values * 2).sigmoid().sum()


def _reason(error: Exception) -> str:
    """The first line that says more than that something went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
