"""Read PyTorch's pickle files without running code from them.

``torch.load(weights_only=True)`` creates only tensors and plain containers. Files of 2019 also hold
scores as numpy numbers, and their pickles name numpy functions. Here these names are mapped to two
stand-ins that can only create a number.

An archive (torch since 1.6) has a CRC-32 of every part, which is checked. The earlier format has no
checksums: there a flipped bit is found only if it breaks the structure, a name, a shape or the
plausibility of a value (``satmap.weights.tensor_file.require_weights``).
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from satmap.errors import SatmapError
from satmap.io.text import printable

# Type codes of floats, integers and booleans; no objects, strings or structures.
_NUMBER = re.compile(r"[fiu][1248]|b1")

_EXPECTED = (
    "Expected is a file by torch.save with names, tensors and numbers only. Use another release of "
    "the weights, preferably a .safetensors file."
)


class _NumberType:
    """Stand-in for ``numpy.dtype``."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise ValueError(f"{code!r} is not a number type")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # Only the byte order of dtype's state matters for a number.
        self.code = f"{'>' if state[1] == '>' else '<'}{self.code}"


def _number(kind: _NumberType, data: bytes) -> float | int:
    """Stand-in for ``numpy.core.multiarray.scalar``."""
    value: float | int = np.frombuffer(data, kind.code, count=1).item()
    return value


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a file by ``torch.save`` that holds a dictionary of tensors, numbers and strings.

    Both the archive format and the bare pickle from before version 1.6 are read, but not the tar
    archives from before 0.2. Tensors are loaded to the CPU; numpy numbers become Python numbers.

    Raises:
        SatmapError: the file is damaged, has another format, or holds code or objects that weights
            do not need. No code in it was executed.
    """
    _require_pickle(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            # torch warns about unusual protocols and layouts. Weights use none of these, and other
            # files fail below.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Broken bytes can raise any kind of error in the unpickler.
    except Exception as error:
        raise _refusal(path, error) from error
    if not isinstance(content, dict):
        raise SatmapError(
            f"{path} holds a {type(content).__name__}, but a dictionary of tensors by name is "
            "expected."
        )
    return content


def require_state_dict(path: Path, content: object) -> dict[str, Tensor]:
    """Return ``content``, read from ``path``; a SatmapError unless it is tensors by name."""
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise SatmapError(f"{path} holds more than a state dict (names and tensors only).")
    return content


def _require_pickle(path: Path) -> None:
    """Reject files that are not in a format of torch, and damaged archives."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK\x03\x04"):
        _require_whole_archive(path)
    elif start[257:262] == b"ustar":
        raise SatmapError(
            f"{path} is a tar archive, torch's format from before 2017, which cannot be read "
            "without running code from it. Use a later release of the same weights; torchvision "
            "and timm have them."
        )
    elif not start.startswith(b"\x80"):
        what = "is empty" if not start else "is not a PyTorch file"
        if start and not start.strip(b"\0"):
            what = "begins with zeros, like an incomplete download"
        raise SatmapError(
            f"cannot read {path} as PyTorch weights: it {what}. {_EXPECTED} If it was such a "
            "file, download it again."
        )


def _require_whole_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            broken = archive.testzip()
    # zipfile raises several kinds of errors for broken archives.
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError) as error:
        raise SatmapError(
            f"cannot read {path} as PyTorch weights: it is not a whole archive "
            f"({printable(error, 100)}). Download it again."
        ) from error
    if broken is not None:
        raise SatmapError(
            f"{path} is damaged: the CRC-32 of its part {printable(broken, 100)} is wrong. "
            "Download it again."
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise SatmapError(
            f"{path} is a TorchScript archive, which is a program and not a state dict. It was "
            f"not run. {_EXPECTED}"
        )


def _refusal(path: Path, error: Exception) -> SatmapError:
    # torch's own message advises users to switch off the restriction, so it is not shown.
    asked_for = re.search(r"GLOBAL (\S+)", str(error))
    what = f"it asks for {printable(asked_for[1], 100)}" if asked_for else "or is not a pickle"
    if asked_for or isinstance(error, pickle.UnpicklingError | TypeError):
        return SatmapError(
            f"cannot read {path} as PyTorch weights: it holds code or objects other than tensors "
            f"({what}). No code in it was run. {_EXPECTED}"
        )
    return SatmapError(
        f"cannot read {path} as PyTorch weights: it is incomplete or damaged "
        f"({type(error).__name__}). No code in it was run. Expected is a whole file by torch.save. "
        "Download it again."
    )
