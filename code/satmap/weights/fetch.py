"""Downloading encoders' ImageNet weights, once, on a machine that has a network.

Nothing else in satmap touches the network. A download is checked against the SHA-256 that its
publisher gives: Hugging Face in the pointer that stands for a large file in git, others by the
first digits in the file's name. What is kept is satmap's own file, which records that checksum, the
address, and a checksum of itself that every later load verifies.

No revision is pinned: timm names repositories without one, and the digits in its older addresses
are of other files (``.pth``) than those on Hugging Face. Whoever can change such a repository can
change what a first fetch gets; it is still never run, only read as tensors.

Sources: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md; for names with digits,
https://docs.pytorch.org/docs/stable/hub.html#torch.hub.load_state_dict_from_url.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

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

# A mirror of the hub; its own client reads the same variable.
_HUB_VARIABLE = "HF_ENDPOINT"

_FILE = "model.safetensors"

# A server that is silent for so long has gone away.
_TIMEOUT_S = 60.0

_CHUNK_BYTES = 1 << 20

_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\n")

# As in resnet18-f37072fd.pth: at least eight digits of the file's SHA-256.
_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


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
    _remove_left_over(path.parent)
    if path.exists():
        checksum = verify_encoder_file(path, name, "Remove it and fetch again.")
        return Fetched.UNVERIFIED if checksum is None else Fetched.INTACT
    require_writable(path)
    source = find_source(name)
    print(f"downloading {source.url}", flush=True)
    with _temporary(path) as file:
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
    url = f"{hub}/{config.hf_hub_id}/resolve/main/{_FILE}"
    pointer_url = f"{hub}/{config.hf_hub_id}/raw/main/{_FILE}"
    with _open(pointer_url, url) as answer:
        pointer = _POINTER.match(answer.read(1024))
    if not pointer:
        raise SatmapError(
            f"{pointer_url} does not say the weights' SHA-256 as git-lfs does, so a download could "
            f"not be checked. {_by_hand(url)}"
        )
    return Source(url, pointer[1].decode())


@contextmanager
def _temporary(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that is removed at the end, or by ``_remove_left_over`` if killed."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.stem}-", suffix=".part"
    ) as file:
        # The lock goes with the process: who can have it may remove the file.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file


def _remove_left_over(directory: Path) -> None:
    """Delete what killed processes left; what one that still runs writes stays."""
    for path in directory.glob(".*-????????.part"):
        # Where there are no locks, age has to tell.
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    remove_temporary_files(directory)


def _download(source: Source, file: IO[bytes]) -> str:
    """Write what is at the address; gives its SHA-256, which is the one expected."""
    digest = hashlib.sha256()
    with _open(source.url, source.url) as answer:
        length = answer.length
        received = 0
        with tqdm(total=length, desc="download", unit="B", unit_scale=True, disable=None) as bar:
            while chunk := answer.read(_CHUNK_BYTES):
                digest.update(chunk)
                received += len(chunk)
                bar.update(len(chunk))
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    raise CannotWriteError(
                        f"cannot write {file.name}: {error.strerror}. Check that there is space."
                    ) from error
    if length is not None and received < length:
        raise SatmapError(
            f"only {received} of {length} bytes came from {source.url}. {_by_hand(source.url)}"
        )
    if not digest.hexdigest().startswith(source.sha256):
        raise SatmapError(
            f"{source.url} has the SHA-256 {digest.hexdigest()}, but its publisher says "
            f"{source.sha256}. {_by_hand(source.url)}"
        )
    return digest.hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Lets go of an answer that sends readers on to what is no address."""

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
    ) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


@contextmanager
def _open(url: str, wanted: str) -> Iterator[http.client.HTTPResponse]:
    """Open an address; ``wanted`` is the file that a person would download instead."""
    if not re.match(r"https?://", url):
        raise SatmapError(f"{printable(url)} is no address of the web. Check ${_HUB_VARIABLE}.")
    headers = {"User-Agent": f"satmap/{satmap.__version__}", "Accept-Encoding": "identity"}
    try:
        request = urllib.request.Request(url, headers=headers)
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        error.close()
        raise SatmapError(
            f"{url} answers {error.code} {printable(error.reason, 200)}. {_by_hand(wanted)}"
        ) from error
    # ValueError: an address that is none, which a server may send readers on to as well.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = printable(getattr(error, "reason", None) or error, 200)
        raise SatmapError(
            f"cannot download {printable(url)} ({reason}). {_by_hand(wanted)}"
        ) from error


def _by_hand(url: str) -> str:
    return (
        f"Try again later, or download {printable(url)} on another machine and "
        "`satmap weights import` it. To train without ImageNet weights, use --from-scratch."
    )
