"""Safetensors files that are the same bytes every time and carry their own checksum.

safetensors writes its metadata in a random order and has no checksum, so that a flipped bit loads
without a word. Here the library still lays out the tensors, but the header is written with sorted
keys and holds the SHA-256 of all the rest. Files without one, which anybody else wrote, load too.

Format: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from satmap.errors import SatmapError
from satmap.files import atomic_path

#: Metadata key of the checksum.
CHECKSUM = "sha256"

_METADATA = "__metadata__"

# The file begins with the header's length, a little-endian integer of so many bytes.
_LENGTH_BYTES = 8

_CHUNK_BYTES = 1 << 20


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, atomically; the same tensors and metadata make the same bytes.

    Args:
        path: the ``.safetensors`` file.
        tensors: on any device, in any memory format.
        metadata: texts; ``CHECKSUM`` is added.

    Raises:
        SatmapError: the file cannot be written.
    """
    # safetensors refuses other strides, such as those of channels-last networks.
    plain = memoryview(save({name: value.cpu().contiguous() for name, value in tensors.items()}))
    data_start = _LENGTH_BYTES + int.from_bytes(plain[:_LENGTH_BYTES], "little")
    header = json.loads(bytes(plain[_LENGTH_BYTES:data_start]))
    data = plain[data_start:]
    header[_METADATA] = dict(metadata)
    digest = hashlib.sha256(_canonical(header))
    digest.update(data)
    header[_METADATA][CHECKSUM] = digest.hexdigest()
    text = _canonical(header)
    # Readers that map the file want the tensors aligned.
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
        file.write(text)
        file.write(data)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file, without reading its tensors or checking its checksum.

    Raises:
        SatmapError: there is no such file, or it is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = dict(sorted((file.metadata() or {}).items()))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return metadata


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; where it records a checksum, only if that is right.

    Raises:
        SatmapError: there is no such file, it is not a whole safetensors file, or was changed
            after it was written.
    """
    recorded = read_metadata(path).get(CHECKSUM)
    try:
        tensors: dict[str, Tensor] = load_file(path)
        found = _checksum(path) if recorded is not None else None
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if found != recorded:
        raise SatmapError(
            f"{path} is damaged: its content has the SHA-256 {found}, but {recorded} was recorded "
            "when it was written. Copy it again, or make it again."
        )
    return tensors


def require_file(path: Path, remedy: str) -> None:
    """Fail with ``remedy`` unless the file can be opened.

    Raises:
        SatmapError: it cannot.
    """
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise SatmapError(f"no weight file {path}. {remedy}") from error
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror}. {remedy}") from error


def starts_like_safetensors(path: Path) -> bool:
    """Whether a header in JSON follows the first eight bytes; no pickle or archive has one there.

    The header's length itself may begin with any byte, a pickle's first among them.
    """
    with path.open("rb") as file:
        return file.read(_LENGTH_BYTES + 1)[_LENGTH_BYTES:] == b"{"


def mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """How the names and shapes of ``found`` differ from ``expected``; empty where they agree."""
    faults = []
    for what, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has the unknown", sorted(found.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            faults.append(f"it {what} {names[0]}{more}")
    for name, value in expected.items():
        if name in found and found[name].shape != value.shape:
            shapes = f"{list(found[name].shape)} instead of {list(value.shape)}"
            faults.append(f"{name} has the shape {shapes}")
            break
    return ", ".join(faults)


def _canonical(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _checksum(path: Path) -> str:
    """SHA-256 of the header without the checksum, in its canonical form, and of the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        del header[_METADATA][CHECKSUM]
        digest = hashlib.sha256(_canonical(header))
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> SatmapError:
    """What to say of a file that safetensors could not open."""
    require_file(path, "Expected is a .safetensors file.")
    with path.open("rb") as file:
        start = file.read(4)
    # A zip archive is torch's format since 1.6, a bare pickle the one before.
    if start.startswith((b"PK\x03\x04", b"\x80")) and not starts_like_safetensors(path):
        return SatmapError(
            f"{path} is a PyTorch pickle, not a safetensors file, whatever its name; satmap does "
            "not unpickle weights of networks. `satmap weights import` reads published ones."
        )
    return SatmapError(
        f"{path} is not a whole safetensors file ({error}). Copy it again, or train it again."
    )
