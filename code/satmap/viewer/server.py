"""A small local server for a map and its imagery.

It listens on 127.0.0.1 only and answers two kinds of requests: for the page, and for tiles of
imagery by their numbers. It serves no files, so no path leads to one. Requests with a foreign
``Host`` are refused, because other web pages could send them (DNS rebinding).
"""

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from satmap.errors import SatmapError
from satmap.viewer.imagery import DEEPEST_ZOOM, Imagery

_HOST = "127.0.0.1"
_TILE = re.compile(r"/tiles/(\d{1,2})/(\d{1,8})/(\d{1,8})\.webp", re.ASCII)

# Connections at a time, and seconds after which a silent one is closed.
_MOST_CONNECTIONS = 64
_TIMEOUT_S = 20


class MapServer(ThreadingHTTPServer):
    """Serves one page and the tiles of its imagery."""

    daemon_threads = True
    # Ctrl-C must not wait for open connections.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, page: bytes, imagery: Imagery | None, port: int = 0) -> None:
        """Listen on a port of this machine; 0 for any free one.

        Raises:
            SatmapError: the port is in use or not allowed.
        """
        self.page, self.imagery = page, imagery
        self._free = threading.Semaphore(_MOST_CONNECTIONS)
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            raise SatmapError(
                f"port {port} cannot be used ({error.strerror}). Choose another with --port, or "
                "leave --port out to use any free one."
            ) from error

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{_HOST}:{self.port}/"

    def process_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Answer in a thread of its own, once fewer than the most connections are open."""
        self._free.acquire()
        super().process_request(request, client_address)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Answer the requests of one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections that browsers cut off, as they do when the map moves on."""


class _Handler(BaseHTTPRequestHandler):
    server: MapServer
    server_version = "satmap"
    sys_version = ""
    timeout = _TIMEOUT_S
    # Each connection carries one request, so that idle ones do not use up the connections.
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        """Send the page or a tile."""
        names = {f"{_HOST}:{self.server.port}", f"localhost:{self.server.port}"}
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].strip().lower() not in names:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
        elif self.path == "/":
            self._send(self.server.page, "text/html; charset=utf-8")
        elif match := _TILE.fullmatch(self.path):
            self._send_tile(*map(int, match.groups()))
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_HEAD(self) -> None:
        """Send the headers only."""
        self.do_GET()

    def _send_tile(self, zoom: int, x: int, y: int) -> None:
        imagery = self.server.imagery
        if imagery is None or zoom > DEEPEST_ZOOM or max(x, y) >= 2**zoom:
            return self._refuse(HTTPStatus.NOT_FOUND)
        try:
            tile = imagery.tile(zoom, x, y)
        except (SatmapError, ValueError, MemoryError):
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)
        if tile is None:
            return self._refuse(HTTPStatus.NO_CONTENT)
        return self._send(tile, "image/webp")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self._send_headers(len(content), kind)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus) -> None:
        text = b"" if status == HTTPStatus.NO_CONTENT else f"{status.phrase}\n".encode()
        self.send_response(status)
        self._send_headers(len(text), "text/plain")
        if self.command != "HEAD":
            self.wfile.write(text)

    def _send_headers(self, length: int, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing."""


@contextlib.contextmanager
def served(page: bytes, imagery: Imagery | None, port: int = 0) -> Iterator[MapServer]:
    """Serve a map in a thread, until the block ends."""
    with MapServer(page, imagery, port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
