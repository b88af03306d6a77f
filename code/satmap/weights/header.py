"""Header of a weight file: the metadata that describe its network.

This module does not import torch, so that commands can reject a file before they import it.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    Json,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from safetensors import SafetensorError, safe_open

import satmap
from satmap.errors import SatmapError
from satmap.io.text import printable
from satmap.recipes.encoder_names import ENCODER_NAMES
from satmap.settings import Settings

#: Metadata key of the checksum.
CHECKSUM = "sha256"

#: Metadata key of the format number, and the number that this version reads and writes. Files of
#: earlier versions and of other publishers have none.
FORMAT_KEY, FORMAT = "format", "1"

#: Metadata key that distinguishes files of encoders, of whole networks and of tasks.
CONTENT_KEY = "content"

#: Value of ``CONTENT_KEY`` in files of networks that satmap's UNet does not cover; the task builds
#: these networks.
TASK_CONTENT = "task"

#: Metadata key of imported files: the checkpoint that a file counts as if its name has none.
CHECKPOINT_KEY = "checkpoint"

#: Remedy for a broken file.
COPY_AGAIN = "Copy it again, or make it again."

#: Size in bytes of the little-endian integer at the start of a file, the length of the header.
LENGTH_BYTES = 8

#: Kinds of decoders, the keys of ``satmap.networks.unet.DECODERS``.
DecoderKind = Literal["plain", "scse", "light"]


def _known(architecture: str) -> str:
    if architecture not in ENCODER_NAMES:
        raise ValueError("no such encoder")
    return architecture


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("a name repeats")
    return names


# No sensor has more bands and no decoder is wider, so a larger number means a broken file.
_Channels = Annotated[int, Field(ge=1, le=1024)]
_Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AfterValidator(_different)]

# Limit of means and standard deviations of values in 0..1; larger ones mean a broken file.
_MOST_SHIFT = 1e6


class DecoderHeader(Settings):
    """Kind of the decoder and its channels at strides 16, 8, 4 and 2, and optionally 1."""

    model_config = ConfigDict(strict=True)

    kind: DecoderKind
    widths: Annotated[tuple[_Channels, ...], Field(min_length=4, max_length=5)]


class Normalization(Settings):
    """Mean and standard deviation of each channel, for values in 0..1."""

    model_config = ConfigDict(strict=True)

    mean: tuple[Annotated[float, Field(gt=-_MOST_SHIFT, lt=_MOST_SHIFT)], ...]
    std: tuple[Annotated[float, Field(gt=0, lt=_MOST_SHIFT)], ...]


class NetworkHeader(Settings):
    """Description of the network in a weight file, validated but not compared with the tensors.

    The file's metadata are strings, most of them JSON. Other metadata are ignored.

    Attributes:
        architecture: key in ``satmap.networks.encoders.ENCODERS``.
        categories: names of the heads; empty for a network with one head.
        normalization: input normalisation; None for that of the encoder's ImageNet weights.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    architecture: Annotated[str, AfterValidator(_known)]
    in_channels: Json[_Channels]
    decoder: Json[DecoderHeader]
    maps: Json[Annotated[_Names, Field(min_length=1)]]
    categories: Json[Annotated[_Names, Field(min_length=2)]] = ()
    normalization: Json[Normalization] | None = None

    @field_validator("normalization")
    @classmethod
    def _of_every_channel(
        cls, value: Normalization | None, info: ValidationInfo
    ) -> Normalization | None:
        channels = info.data.get("in_channels")
        if value and not len(value.mean) == len(value.std) == channels:
            raise ValueError("not one value per channel")
        return value

    def as_metadata(self) -> dict[str, str]:
        """Return the header as metadata of a weight file."""
        metadata: dict[str, str] = self.model_dump(round_trip=True, exclude_defaults=True)
        return metadata


#: Metadata keys that describe the network.
HEADER_KEYS = tuple(NetworkHeader.model_fields)

_REQUIRED = [name for name, field in NetworkHeader.model_fields.items() if field.is_required()]

# Metadata keys that loading applies itself and does not pass on.
_APPLIED = ("normalization", CHECKSUM, FORMAT_KEY)


def parse_header(path: Path, metadata: Mapping[str, str]) -> NetworkHeader:
    """Parse the metadata of ``path`` that describe its network.

    Raises:
        SatmapError: the network has no probability maps, the metadata are broken, or they name an
            encoder or decoder that this version of satmap does not have.
    """
    if metadata.get(CONTENT_KEY) == TASK_CONTENT:
        raise SatmapError(
            f"{path} holds a network for {printable(metadata.get('architecture', 'a task'), 60)}, "
            "which has no probability maps. This command needs a network that has them."
        )
    try:
        return NetworkHeader.model_validate(dict(metadata))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if key == "architecture" or first["type"] == "literal_error":
            known = ENCODER_NAMES if key == "architecture" else get_args(DecoderKind)
            raise SatmapError(
                f"{path} is for the {key} {first['input']!r:.60}, which this version of satmap "
                f"does not have; it has {', '.join(known)}."
            ) from error
        place = ".".join(map(str, first["loc"]))
        fault = printable(first["msg"].removeprefix("Value error, "), 200)
        raise SatmapError(
            f"{path} has broken metadata: {place}: {fault}; {key} is "
            f"{printable(metadata[key], 80)}. Copy or train it again."
        ) from error


def read_weights_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a weight file without reading its tensors.

    The input normalisation, the checksum and the format number are left out; ``load_weights``
    applies them itself.

    Raises:
        SatmapError: the file does not exist, or is not a complete weight file of satmap.
    """
    require_weight_file(path, "Train one, or give another file.")
    metadata = read_metadata(path)
    if metadata.get(CONTENT_KEY) == "encoder":
        raise SatmapError(
            f"{path} holds ImageNet weights of an encoder, not a network. Move it to imagenet/ in "
            "the directory of weights, where trainings look for it."
        )
    required = ["recipe"] if metadata.get(CONTENT_KEY) == TASK_CONTENT else _REQUIRED
    missing = [key for key in required if key not in metadata]
    if missing:
        raise SatmapError(
            f"{path} is a safetensors file without satmap's metadata ({', '.join(missing)}); "
            "only files that satmap wrote say what network they belong to. Move it elsewhere."
        )
    return {key: value for key, value in metadata.items() if key not in _APPLIED}


def read_metadata(path: Path, remedy: str = COPY_AGAIN) -> dict[str, str]:
    """Read the metadata of a file without reading its tensors or verifying its checksum.

    Raises:
        SatmapError: the file does not exist, is not a complete safetensors file (the message ends
            with ``remedy``), or has a format number of another version of satmap.
    """
    require_weight_file(path, "Expected is a .safetensors file.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = dict(sorted((file.metadata() or {}).items()))
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error, remedy) from error
    number = metadata.get(FORMAT_KEY, FORMAT)
    # Other programs write the name of a framework under this key: "pt", "np", "tf".
    if number != FORMAT and not number.isalpha():
        raise SatmapError(
            f"{path} has the format number {printable(number, 20)}, but satmap "
            f"{satmap.__version__} reads weights of format {FORMAT}. Use the version of satmap "
            "that wrote the file, or train or import it again."
        )
    return metadata


def require_weight_file(path: Path, remedy: str) -> None:
    """Fail with ``remedy`` unless the path is a regular file that can be opened.

    Raises:
        SatmapError: the file is missing, not regular, or cannot be opened.
    """
    try:
        mode = path.stat().st_mode
        # Opening a pipe waits for a writer, and a device may never end.
        if not stat.S_ISREG(mode):
            what = "it is a directory" if stat.S_ISDIR(mode) else "it is a pipe or a device"
            raise SatmapError(f"cannot read {path}: {what}. {remedy}")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise SatmapError(f"no weight file {path}. {remedy}") from error
    except OSError as error:
        raise SatmapError(f"cannot read {path}: {error.strerror}. {remedy}") from error


def starts_like_safetensors(path: Path) -> bool:
    """Return whether a JSON header follows the first eight bytes, unlike in pickles and archives.

    The first eight bytes are the header's length and may look like the start of a pickle.
    """
    with path.open("rb") as file:
        return file.read(LENGTH_BYTES + 1)[LENGTH_BYTES:] == b"{"


def unreadable(path: Path, error: Exception, remedy: str) -> SatmapError:
    """Build the error for a file that safetensors could not open."""
    with path.open("rb") as file:
        start = file.read(4)
    # torch's format is a zip archive since version 1.6, and was a bare pickle before.
    if start.startswith((b"PK\x03\x04", b"\x80")) and not starts_like_safetensors(path):
        return SatmapError(
            f"{path} is a PyTorch pickle, not a safetensors file; satmap does not unpickle weights "
            "of networks. Use `satmap weights import` for published ones."
        )
    return SatmapError(
        f"{path} is not a whole safetensors file ({printable(error, 200)}). {remedy}"
    )
