"""Download ImageNet weights of encoders, once, on a machine with network access.

No other module of satmap uses the network. A download is checked against the SHA-256 given by its
publisher: by Hugging Face in the response headers, by others as the first digits in the file name.
The result is satmap's own file, which records that checksum, the URL, and a checksum of itself that
every later load verifies.

No revision is pinned: timm names repositories without one, and the digits in its older URLs belong
to other files (``.pth``) than those on Hugging Face. Anyone who can change such a repository can
change what a first fetch downloads. The download is never executed, only read as tensors.

The client is huggingface_hub: it resumes interrupted downloads and supports mirrors, proxies and
the offline mode. Its telemetry is off, as are tokens and its second protocol, Xet.

Source of the file names with digits:
https://docs.pytorch.org/docs/stable/hub.html#torch.hub.load_state_dict_from_url.
"""

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    installed_file,
    save_encoder,
    verify_encoder_file,
)
from satmap.weights.published import read_published

_HUB = "https://huggingface.co"

# Variable that names a mirror of the hub; huggingface_hub reads it, too, but only once.
_HUB_VARIABLE = "HF_ENDPOINT"

# Longest silence of a server before the download fails.
_TIMEOUT_S = 60.0

# As in resnet18-f37072fd.pth: at least eight digits of the file's SHA-256.
_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.\w+$")

# timm imports huggingface_hub earlier, so environment variables would be read too late.
constants.HF_HUB_DISABLE_TELEMETRY = True


class Fetched(StrEnum):
    """Outcome of fetching an encoder's file; the values are messages for users."""

    NOW = "fetched"
    INSTALLED = "not needed, the weights are an installed Python package"
    INTACT = "there already, intact"
    UNVERIFIED = "there already; it records no checksum, so only names and values were checked"


def fetch_encoder(weights: Path, name: str) -> Fetched:
    """Download an encoder's ImageNet weights to ``encoder_file``, unless they are there already.

    Raises:
        SatmapError: the encoder is unknown, an existing file is damaged or of another network, or
            the file cannot be downloaded or does not match the publisher's checksum.
        CannotWriteError: the directory cannot be written to.
    """
    require_encoder(name)
    if installed_file(name):
        return Fetched.INSTALLED
    path = encoder_file(weights, name)
    remove_temporary_files(path.parent)
    if path.exists():
        checksum = verify_encoder_file(path, name, "Remove it and fetch again.")
        return Fetched.UNVERIFIED if checksum is None else Fetched.INTACT
    require_writable(path)
    url, digits = find_source(name)
    print(f"downloading {url}", flush=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.stem}-", suffix=".part"
    ) as file:
        digest = _download(url, digits, file)
        try:
            imported = read_published(Path(file.name))
        except SatmapError as error:
            raise SatmapError(f"{url} cannot be used: {error}") from error
    if not isinstance(imported, PretrainedEncoder) or imported.name != name:
        raise SatmapError(f"{url} does not hold ImageNet weights of {name}.")
    save_encoder(path, imported, {"source": url, "source_sha256": digest})
    return Fetched.NOW


def find_source(name: str) -> tuple[str, str]:
    """Return the URL of an encoder's ImageNet weights, and their SHA-256 or its first digits.

    Files on Hugging Face are taken from the mirror ``$HF_ENDPOINT``, if it is set.

    Raises:
        SatmapError: Hugging Face cannot be reached or gives no checksum.
    """
    config = pretrained_config(name)
    if not config.hf_hub_id:
        # timm also allows a pair of URL and file name, which none of our encoders uses.
        digits = _DIGITS.search(config.url) if isinstance(config.url, str) else None
        if not digits:
            raise ValueError(f"timm gives no checksum of the weights of {name}")
        return digits.string, digits[1]
    hub = os.environ.get(_HUB_VARIABLE, _HUB).rstrip("/")
    if not re.match(r"https?://", hub):
        raise SatmapError(f"{printable(hub)} is not a web address. Check ${_HUB_VARIABLE}.")
    url = hf_hub_url(config.hf_hub_id, "model.safetensors", endpoint=hub)
    with _explained(url):
        found = get_hf_file_metadata(
            url,
            token=False,
            timeout=_TIMEOUT_S,
            library_name="satmap",
            library_version=satmap.__version__,
        )
    # The hub's ETag of a large file is its SHA-256.
    if not re.fullmatch(r"[0-9a-f]{64}", found.etag or ""):
        raise SatmapError(
            f"{url} does not give the weights' SHA-256, so the download could not be checked. "
            f"{_by_hand(url)}"
        )
    return url, str(found.etag)


def _download(url: str, digits: str, file: IO[bytes]) -> str:
    """Download to the file, verify the checksum and return the SHA-256."""
    constants.HF_HUB_DOWNLOAD_TIMEOUT = _TIMEOUT_S  # type: ignore[assignment]
    # The client would log a warning with the server's own text for every attempt.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    headers = {"User-Agent": f"satmap/{satmap.__version__}", "Accept-Encoding": "identity"}
    with _explained(url):
        try:
            http_get(url, file, headers=headers, displayed_filename="download")  # type: ignore[arg-type]
            file.flush()
        except OSError as error:
            # Errors of the client have no errno; errors of the file system have one.
            if error.errno is None:
                raise
            raise CannotWriteError(
                f"cannot write {file.name}: {error.strerror}. Check that the disk has space."
            ) from error
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if not digest.startswith(digits):
        raise SatmapError(
            f"{url} has the SHA-256 {digest}, but its publisher says {digits}. {_by_hand(url)}"
        )
    return digest


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn errors of huggingface_hub and its HTTP client into messages for users."""
    try:
        yield
    except SatmapError:
        raise
    except HfHubHTTPError as error:
        answer = f"{error.response.status_code} {printable(error.response.reason_phrase, 200)}"
        raise SatmapError(f"{url} answers {answer}. {_by_hand(url)}") from error
    # The HTTP client and its errors differ between versions of huggingface_hub.
    except Exception as error:
        reason = printable(error, 200) or type(error).__name__
        raise SatmapError(f"cannot download {url} ({reason}). {_by_hand(url)}") from error


def _by_hand(url: str) -> str:
    return (
        f"Try again later, or download {url} on another machine and "
        "`satmap weights import` it. To train without ImageNet weights, use --from-scratch."
    )
