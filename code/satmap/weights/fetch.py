"""Downloading encoders' ImageNet weights, once, on a machine that has a network.

Nothing else in satmap touches the network. A download is checked against the SHA-256 that its
publisher gives: Hugging Face in the answer's headers, others by the first digits in the file's
name. What is kept is satmap's own file, which records that checksum, the address, and a checksum
of itself that every later load verifies.

No revision is pinned: timm names repositories without one, and the digits in its older addresses
are of other files (``.pth``) than those on Hugging Face. Whoever can change such a repository can
change what a first fetch gets; it is still never run, only read as tensors.

The client is huggingface_hub's: it resumes downloads that break off and knows mirrors, proxies and
the offline mode. Its telemetry is off, as are tokens and its second protocol, Xet.

Source, for names with digits:
https://docs.pytorch.org/docs/stable/hub.html#torch.hub.load_state_dict_from_url.
"""

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

import satmap
from satmap.errors import CannotWriteError, SatmapError
from satmap.io.files import remove_temporary_files, require_writable
from satmap.io.text import printable
from satmap.networks.encoders import pretrained_config, require_encoder
from satmap.weights.pretrained import (
    PretrainedEncoder,
    encoder_file,
    save_encoder,
    verify_encoder_file,
)
from satmap.weights.published import read_published

_HUB = "https://huggingface.co"

# A mirror of the hub; huggingface_hub reads the same variable, but only once.
_HUB_VARIABLE = "HF_ENDPOINT"

_FILE = "model.safetensors"

# A server that is silent for so long has gone away.
_TIMEOUT_S = 60.0

_SHA256 = re.compile(r"[0-9a-f]{64}")

# As in resnet18-f37072fd.pth: at least eight digits of the file's SHA-256.
_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.\w+$")

# timm imports huggingface_hub first, so that environment variables would come too late.
constants.HF_HUB_DISABLE_TELEMETRY = True


@dataclass(frozen=True)
class Source:
    """Where an encoder's weights are published.

    Attributes:
        url: address of the file.
        sha256: the file's, or how it begins.
    """

    url: str
    sha256: str


class Fetched(StrEnum):
    """What became of an encoder's file, in words for people."""

    NOW = "fetched"
    INTACT = "there already, intact"
    UNVERIFIED = "there already; it records no checksum, so only names and values were looked at"


def fetch_encoder(weights: Path, name: str) -> Fetched:
    """Download an encoder's ImageNet weights unless they are there already.

    Args:
        weights: directory of weights; the file goes to ``encoder_file(weights, name)``.
        name: key in ``ENCODERS``.

    Returns:
        What was done.

    Raises:
        SatmapError: no such encoder, what is there already is damaged or something else, or the
            file cannot be downloaded or is not what its publisher says.
        CannotWriteError: the directory cannot be written to.
    """
    require_encoder(name)
    path = encoder_file(weights, name)
    remove_temporary_files(path.parent)
    if path.exists():
        checksum = verify_encoder_file(path, name, "Remove it and fetch again.")
        return Fetched.UNVERIFIED if checksum is None else Fetched.INTACT
    require_writable(path)
    source = find_source(name)
    print(f"downloading {source.url}", flush=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.stem}-", suffix=".part"
    ) as file:
        digest = _download(source, file)
        try:
            imported = read_published(Path(file.name))
        except SatmapError as error:
            raise SatmapError(f"{source.url} is of no use: {error}") from error
    if not isinstance(imported, PretrainedEncoder) or imported.name != name:
        raise SatmapError(f"{source.url} does not hold ImageNet weights of {name}.")
    save_encoder(path, imported, {"source": source.url, "source_sha256": digest})
    return Fetched.NOW


def find_source(name: str) -> Source:
    """Where to download an encoder's ImageNet weights, and what their checksum is.

    What lies on Hugging Face is taken from the mirror that ``$HF_ENDPOINT`` names, if it is set.

    Raises:
        SatmapError: Hugging Face cannot be reached or does not say.
    """
    config = pretrained_config(name)
    if not config.hf_hub_id:
        # timm's second form is a pair of address and file name; none of our encoders has it.
        digits = _DIGITS.search(config.url) if isinstance(config.url, str) else None
        if not digits:
            raise ValueError(f"timm knows no checksum of the weights of {name}")
        return Source(digits.string, digits[1])
    hub = os.environ.get(_HUB_VARIABLE, _HUB).rstrip("/")
    if not re.match(r"https?://", hub):
        raise SatmapError(f"{printable(hub)} is no address of the web. Check ${_HUB_VARIABLE}.")
    url = hf_hub_url(config.hf_hub_id, _FILE, endpoint=hub)
    with _explained(url):
        found = get_hf_file_metadata(
            url,
            token=False,
            timeout=_TIMEOUT_S,
            library_name="satmap",
            library_version=satmap.__version__,
        )
    # Of large files the hub's ETag is the checksum.
    if not found.etag or not _SHA256.fullmatch(found.etag):
        raise SatmapError(
            f"{url} does not say the weights' SHA-256, so a download could not be checked. "
            f"{_by_hand(url)}"
        )
    return Source(url, found.etag)


def _download(source: Source, file: IO[bytes]) -> str:
    """Write what is at the address; gives its SHA-256, which is the one expected."""
    constants.HF_HUB_DOWNLOAD_TIMEOUT = _TIMEOUT_S  # type: ignore[assignment]
    # It warns of every attempt, in words of the server's.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    headers = {"User-Agent": f"satmap/{satmap.__version__}", "Accept-Encoding": "identity"}
    with _explained(source.url):
        try:
            http_get(source.url, file, headers=headers, displayed_filename="download")  # type: ignore[arg-type]
            file.flush()
        except OSError as error:
            # The client's errors have no number, or are none of the system's.
            if error.errno is None:
                raise
            raise CannotWriteError(
                f"cannot write {file.name}: {error.strerror}. Check that there is space."
            ) from error
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if not digest.startswith(source.sha256):
        raise SatmapError(
            f"{source.url} has the SHA-256 {digest}, but its publisher says "
            f"{source.sha256}. {_by_hand(source.url)}"
        )
    return digest


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Errors of huggingface_hub and of the client behind it, in words for users."""
    try:
        yield
    except SatmapError:
        raise
    except HfHubHTTPError as error:
        answer = error.response
        raise SatmapError(
            f"{url} answers {answer.status_code} {printable(answer.reason_phrase, 200)}. "
            f"{_by_hand(url)}"
        ) from error
    # The client changes with huggingface_hub's versions, and its errors with it.
    except Exception as error:
        raise SatmapError(
            f"cannot download {url} ({printable(error, 200) or type(error).__name__}). "
            f"{_by_hand(url)}"
        ) from error


def _by_hand(url: str) -> str:
    return (
        f"Try again later, or download {url} on another machine and "
        "`satmap weights import` it. To train without ImageNet weights, use --from-scratch."
    )
