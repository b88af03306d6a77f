"""Read and write reproducible safetensors files with a checksum.

safetensors writes its metadata in a random order and has no checksum, so a flipped bit would go
unnoticed. Here the library still lays out the tensors, but the header has sorted keys and holds the
SHA-256 of everything else. Files of other programs without this checksum can be loaded, too.

Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from satmap.errors import SatmapError
from satmap.io.files import atomic_path
from satmap.io.text import printable
from satmap.weights.header import (
    CHECKSUM,
    COPY_AGAIN,
    FORMAT,
    FORMAT_KEY,
    LENGTH_BYTES,
    read_metadata,
    unreadable,
)

_METADATA = "__metadata__"

# Number of characters of a tensor's name in messages.
_LONGEST_NAME = 120

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, atomically; the same tensors and metadata give the same bytes.

    Args:
        path: the ``.safetensors`` file.
        tensors: tensors by name, on any device and in any memory format.
        metadata: strings by key; the format number and the checksum are added.

    Raises:
        SatmapError: the file cannot be written.
    """
    # safetensors rejects tensors that are not contiguous, such as those of channels-last networks.
    plain = memoryview(save({name: value.cpu().contiguous() for name, value in tensors.items()}))
    data_start = LENGTH_BYTES + int.from_bytes(plain[:LENGTH_BYTES], "little")
    header = json.loads(bytes(plain[LENGTH_BYTES:data_start]))
    data = plain[data_start:]
    header[_METADATA] = {**metadata, FORMAT_KEY: FORMAT}
    digest = hashlib.sha256(_canonical(header))
    digest.update(data)
    header[_METADATA][CHECKSUM] = digest.hexdigest()
    text = _canonical(header)
    # Align the tensors for readers that map the file into memory.
    text += b" " * (-len(text) % LENGTH_BYTES)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH_BYTES, "little"))
        file.write(text)
        file.write(data)


def read_tensors(path: Path, remedy: str = COPY_AGAIN) -> dict[str, Tensor]:
    """Read the tensors of a file to the CPU and verify the checksum, if the file has one.

    Raises:
        SatmapError: the file does not exist, is not a complete safetensors file, or was changed
            after it was written. The message ends with ``remedy``.
    """
    recorded = read_metadata(path, remedy).get(CHECKSUM)
    try:
        tensors: dict[str, Tensor] = load_file(path)
        found = _checksum(path) if recorded is not None else None
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error, remedy) from error
    if found != recorded:
        raise SatmapError(
            f"{path} is damaged: its content has the SHA-256 {found}, but "
            f"{printable(recorded, 64)} was recorded when it was written. {remedy}"
        )
    return tensors


def require_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fail unless the tensors of ``path`` can be weights: dense tensors of finite numbers.

    A flipped bit in an exponent often leads to one of these faults. Formats without a checksum have
    no other protection.

    Raises:
        SatmapError: a tensor is not floating-point (batch counters may be int64), dense, on the CPU
            or finite as float32, or a variance is negative.
    """
    for name, value in tensors.items():
        fault = _weight_fault(name, value)
        if fault:
            raise SatmapError(
                f"{path}: its tensor {printable(name, _LONGEST_NAME)} {fault}. Expected are dense "
                "floating-point tensors of finite numbers. Download or copy the file again."
            )


def _weight_fault(name: str, value: Tensor) -> str:
    if value.is_quantized:
        return "is quantised"
    if value.layout != torch.strided or value.device.type != "cpu":
        return f"is {value.layout} on {value.device.type}"
    counter = name.endswith("num_batches_tracked") and value.dtype == torch.int64
    if value.dtype not in _FLOATS and not counter:
        return f"is of type {value.dtype}"
    if not value.float().isfinite().all():
        return "has values that are not finite"
    if name.endswith("running_var") and bool((value < 0).any()):
        return "is a variance but has negative values"
    return ""


def mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe how names and shapes of ``found`` differ from ``expected``; "" if they agree."""
    faults = []
    differing = {"lacks": expected.keys() - found.keys()}
    differing["has the unknown"] = found.keys() - expected.keys()
    for what, names in differing.items():
        if names:
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            faults.append(f"it {what} {printable(min(names), _LONGEST_NAME)}{more}")
    for name, value in expected.items():
        if name in found and found[name].shape != value.shape:
            shapes = f"{list(found[name].shape)} instead of {list(value.shape)}"
            faults.append(f"{name} has the shape {shapes}")
            break
    return ", ".join(faults)


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _checksum(path: Path) -> str:
    """Compute the SHA-256 of the canonical header without the checksum, and of the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        del header[_METADATA][CHECKSUM]
        digest = hashlib.sha256(_canonical(header))
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
