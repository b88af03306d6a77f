"""Read rasters over HTTP and from S3 by range requests, and only from the address the user typed.

GDAL follows redirects to any server and has no option against it. So GDAL reads such files through
this module, which refuses redirects and names their target.
"""

import io
import itertools
import os
import re
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import OrderedDict
from functools import lru_cache
from http.client import HTTPException
from typing import Any

from satmap.data import s3
from satmap.errors import SatmapError
from satmap.io.text import printable

# Longest silence of a server before a request fails, and how often a failed request is repeated.
TIMEOUT_S = 30.0
_TRIES = 3
# A request asks for whole blocks; the latest ones of all files together are kept. Bytes.
_BLOCK = 256 << 10
_KEPT = 128 << 20

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """Turns redirects into errors."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request to follow."""


_OPENER = urllib.request.build_opener(_RefuseRedirects())


class _Cache:
    """The latest blocks of all files, by file and number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[RemoteFile, int], bytes] = OrderedDict()

    def get(self, file: "RemoteFile", numbers: range) -> dict[int, bytes]:
        """Return those of the blocks that are kept."""
        with self._lock:
            return {n: self._blocks[file, n] for n in numbers if (file, n) in self._blocks}

    def put(self, file: "RemoteFile", blocks: dict[int, bytes]) -> None:
        """Keep blocks as the latest, and drop the oldest."""
        with self._lock:
            for number, block in blocks.items():
                self._blocks[file, number] = block
                self._blocks.move_to_end((file, number))
            while len(self._blocks) > max(_KEPT // _BLOCK, 1):
                self._blocks.popitem(last=False)


_CACHE = _Cache()


class RemoteFile:
    """A file on an HTTP server or in S3.

    Attributes:
        url: its address, http(s):// or s3://.
        size: bytes.
    """

    def __init__(self, url: str) -> None:
        """Ask for the first block.

        Raises:
            OSError: the server does not answer, refuses, redirects, or cannot send parts of files.
        """
        self.url = url
        self._lock = threading.Lock()
        self._version: str | None = None
        self.size = 0
        first, self.size = self._request(0, _BLOCK)
        _CACHE.put(self, {0: first})

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` to before ``stop``; raises as the constructor."""
        stop = min(stop, self.size)
        if start >= stop:
            return b""
        wanted = range(start // _BLOCK, (stop - 1) // _BLOCK + 1)
        with self._lock:
            found = _CACHE.get(self, wanted)
            missing = [number for number in wanted if number not in found]
            if missing:
                # One request for all, although some between may be known.
                first = missing[0]
                data, _ = self._request(first * _BLOCK, (missing[-1] + 1) * _BLOCK)
                for number in range(first, missing[-1] + 1):
                    found[number] = data[(number - first) * _BLOCK :][:_BLOCK]
            _CACHE.put(self, found)
        whole = b"".join(found[number] for number in wanted)
        return whole[start - wanted[0] * _BLOCK : stop - wanted[0] * _BLOCK]

    def _request(self, start: int, stop: int) -> tuple[bytes, int]:
        """Return bytes of the file and its size. Silent or failing servers are asked again."""
        for last in (*(False,) * (_TRIES - 1), True):
            try:
                return self._request_once(start, stop)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 or last:
                    raise OSError(_refusal(error)) from error
            except (TimeoutError, ConnectionError, HTTPException, urllib.error.URLError) as error:
                reason = getattr(error, "reason", error)
                is_final = isinstance(reason, ssl.SSLCertVerificationError)
                if last or is_final:
                    what = f"the server does not answer: {reason or type(error).__name__}"
                    raise OSError(what) from error
        raise AssertionError("the last try returns or raises")

    def _request_once(self, start: int, stop: int) -> tuple[bytes, int]:
        address, headers = self.url, dict[str, str]()
        if address.startswith(s3.PREFIX):
            address = s3.https_address(self.url)
            headers = s3.signed_headers(address)
        request = urllib.request.Request(
            urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]"),
            headers={"Range": f"bytes={start}-{stop - 1}", "User-Agent": "satmap", **headers},
        )
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            match = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if answer.status != 206 or not match:
                raise OSError(
                    "the server does not send parts of files (no range requests); download the "
                    "file first"
                )
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            first, last, size = map(int, match.groups())
            if first != start or (self.size and (size, version) != (self.size, self._version)):
                raise OSError("the file has changed on the server while it was read")
            data: bytes = answer.read(last - first + 1)
        if len(data) != last - first + 1 or last + 1 != min(stop, size):
            raise HTTPException("the answer is incomplete")
        self._version = version
        return data, size


_NUMBERS = itertools.count()


def _refusal(error: urllib.error.HTTPError) -> str:
    if region := error.headers.get("x-amz-bucket-region"):
        region = f"; the bucket is in {printable(region, 100)} (AWS_REGION)"
    if 300 <= error.code < 400 and not region:
        target = printable(error.headers.get("Location", "another address"), 500)
        return f"the server redirects to {target}; give that address if you trust it"
    return f"the server answers {error.code} {printable(error.reason, 100)}{region or ''}"


@lru_cache(maxsize=16)
def remote_file(url: str) -> RemoteFile:
    """Return the file at an address; its latest parts are kept between calls."""
    return RemoteFile(url)


class RemoteReader(io.RawIOBase):
    """File object for GDAL, which only sees that a read failed: the reason is in ``fault``."""

    def __init__(self, file: RemoteFile) -> None:
        """Start at the first byte."""
        self._file, self._place = file, 0
        self.fault: OSError | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._file.size}[whence]
        self._place = base + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes; none if the server fails."""
        stop = self._file.size if size < 0 else self._place + size
        try:
            data = self._file.read(self._place, stop)
        except OSError as error:
            self.fault = error
            return b""
        self._place += len(data)
        return data


class Opener:
    """Opens one address for GDAL, and nothing else: no overviews or metadata beside it.

    Attributes:
        path: the name by which GDAL opens it.
    """

    def __init__(self, url: str) -> None:
        """Ask the server for the beginning of the file.

        Raises:
            SatmapError: the server cannot be read.
        """
        # Rasterio looks for credentials if a name is an address of Amazon, so this name is none.
        self.path = f"remote-{next(_NUMBERS)}.tif"
        self._readers: list[RemoteReader] = []
        try:
            self._file = remote_file(url)
        except (OSError, ValueError) as error:
            raise SatmapError(f"{printable(url)}: {cannot_read(error)}") from error

    def __call__(self, path: str, mode: str = "rb", **_: Any) -> io.IOBase:
        """Return a reader. Rasterio tests openers with other names, which are empty here."""
        if path != self.path:
            return io.BytesIO()
        reader = RemoteReader(self._file)
        self._readers.append(reader)
        return reader

    @property
    def fault(self) -> OSError | None:
        """The first reason why the server could not be read; None if it could."""
        return next((reader.fault for reader in self._readers if reader.fault), None)


def cannot_read(error: object) -> str:
    """Return the end of a message about an address that cannot be read."""
    text = printable(str(error).strip().rstrip("."), 700)
    return f"cannot be read ({text}). Check the address, its permissions and the network."
