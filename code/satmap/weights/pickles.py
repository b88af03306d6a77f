"""PyTorch's own files, read without running anything that they say.

``torch.load(weights_only=True)`` makes tensors and plain containers and calls nothing else. Files
of 2019 hold one thing more: scores that are numpy numbers. Their pickles name numpy's functions;
what those names reach here are two stand-ins that can make a number and nothing else.

An archive (torch since 1.6) has a CRC-32 of every part, which is checked. The format before has no
sums: there a flipped bit shows only if it breaks the structure, a name, a shape or a value's
plausibility (``satmap.weights.tensor_file.require_weights``).
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

# Floats, integers and truth values; no objects, no strings, no structures.
_NUMBER = re.compile(r"[fiu][1248]|b1")

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"

_EXPECTED = (
    "Expected is what torch.save writes of names, tensors and numbers; take another release of the "
    "weights, best a .safetensors."
)


class _NumberType:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBER.fullmatch(code):
            raise ValueError(f"{code!r} is no type of a number")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # Of dtype's state only the byte order matters to a number.
        self.code = f"{'>' if state[1] == '>' else '<'}{self.code}"


def _number(kind: _NumberType, data: bytes) -> float | int:
    """Stands for ``numpy.core.multiarray.scalar``."""
    value: float | int = np.frombuffer(data, kind.code, count=1).item()
    return value


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_pickle(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, if it is a dictionary of tensors, numbers and texts.

    Both of torch's formats are read, the archive and the bare pickle before version 1.6; the tar
    archives of before 0.2 are not. Tensors come to the CPU; numpy's numbers become Python's.

    Raises:
        SatmapError: the file is damaged, is another format, or holds code or objects beyond what
            weights have need of. Nothing of it was run.
    """
    _require_pickle(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            # Of protocols and layouts that weights do not have; such files are refused below.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Broken bytes end in whatever error the unpickler happens to meet.
    except Exception as error:
        raise _refusal(path, error) from error
    if not isinstance(content, dict):
        raise SatmapError(
            f"{path} holds a {type(content).__name__}; expected is a dictionary of tensors by name."
        )
    return content


def require_state_dict(path: Path, content: object) -> dict[str, Tensor]:
    """``content`` itself, which came from ``path``, if it is names and tensors only.

    Raises:
        SatmapError: it is not.
    """
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise SatmapError(f"{path} holds more than a state dict (names and tensors only).")
    return content


def _require_pickle(path: Path) -> None:
    """Refuse what is none of torch's formats, and archives that are not as they were written."""
    with path.open("rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar":
        raise SatmapError(
            f"{path} is a tar archive, torch's format of before 2017, which cannot be read without "
            "running what it says. Take a later release of the same weights; torchvision and timm "
            "have one of each."
        )
    if not start.startswith((_ZIP, _PICKLE)):
        what = "is empty" if not start else "is no PyTorch file"
        if start and not start.strip(b"\0"):
            what = "begins with zeros, as files do whose download broke off"
        raise SatmapError(
            f"cannot read {path} as PyTorch weights: it {what}. {_EXPECTED} If it was one, "
            "download it again."
        )
    if start.startswith(_ZIP):
        _require_whole_archive(path)


def _require_whole_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            broken = archive.testzip()
    # zipfile has no one error for what is wrong with an archive.
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
            f"{path} is a TorchScript archive, a program and not a state dict. It was refused and "
            f"not run. {_EXPECTED}"
        )


def _refusal(path: Path, error: Exception) -> SatmapError:
    """What to say of a pickle that torch's restricted reader could not or would not read.

    Its own words tell users to switch the restriction off, so they are never passed on.
    """
    asked_for = re.search(r"GLOBAL (\S+)", str(error))
    what = f"it asks for {printable(asked_for[1], 100)}" if asked_for else "or is no pickle at all"
    if asked_for or isinstance(error, pickle.UnpicklingError | TypeError):
        return SatmapError(
            f"cannot read {path} as PyTorch weights: it holds code or objects other than tensors "
            f"({what}). It was refused and nothing of it was run. {_EXPECTED}"
        )
    return SatmapError(
        f"cannot read {path} as PyTorch weights: it breaks off or is damaged "
        f"({type(error).__name__}). Nothing of it was run. Expected is a whole file as torch.save "
        "writes it. Download it again."
    )
