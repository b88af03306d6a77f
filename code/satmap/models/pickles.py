"""PyTorch's own files, read without running anything that they say.

``torch.load(weights_only=True)`` makes tensors and plain containers and calls nothing else. Files
of 2019 hold one thing more: scores that are numpy numbers. Their pickles name numpy's functions;
what those names reach here are two stand-ins that can make a number and nothing else.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from satmap.errors import SatmapError

# Floats, integers and truth values; no objects, no strings, no structures.
_NUMBER = re.compile(r"[fiu][1248]|b1")


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
        SatmapError: the file is damaged, is another format, or asks for anything to be called that
            weights have no need of. Nothing of it was run.
    """
    _refuse_tar(path)
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            # Of protocols and layouts that weights do not have; such files are refused below.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # Broken bytes end in whatever error the unpickler happens to meet.
    except Exception as error:
        asked_for = re.search(r"GLOBAL (\S+)", str(error))
        if asked_for:
            raise SatmapError(
                f"cannot read {path} as PyTorch weights: it asks for {asked_for[1]}, which a file "
                "of weights has no need of. It was refused and nothing of it was run. Expected are "
                "names, tensors and numbers; get the file from its authors again."
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SatmapError(
            f"cannot read {path} as PyTorch weights ({reason}). Expected is a whole file as "
            "torch.save writes it. Download it again."
        ) from error
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
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for name, value in content.items()
    ):
        raise SatmapError(f"{path} holds more than a state dict (names and tensors only).")
    return content


def _refuse_tar(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512)
    if start[257:262] == b"ustar":
        raise SatmapError(
            f"{path} is a tar archive, torch's format of before 2017, which cannot be read without "
            "running what it says. Take a later release of the same weights; torchvision and timm "
            "have one of each."
        )
