"""Local HTTP server with range requests, which can fail in several ways."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """A running server.

    Attributes:
        url: its address, without a final slash.
        files: content by path, such as ``/a.tif``.
        redirects: target by path.
        silent: paths that are never answered.
        requests: method, path and range of all requests.
        has_ranges: whether it sends parts of files.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    has_ranges: bool = True
    stopped: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def http_server() -> Iterator[Server]:
    """Run a server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            server.requests.append((self.command, self.path, wanted))
            content = server.files.get(self.path)
            if self.path in server.silent:
                server.stopped.wait(20)
            elif self.path in server.redirects:
                self._answer(302, b"", Location=server.redirects[self.path])
            elif content is None:
                self._answer(404, b"nothing here")
            elif wanted and server.has_ranges:
                first, last = wanted.removeprefix("bytes=").split("-")
                part = content[int(first) : int(last or len(content)) + 1]
                stop = int(first) + len(part) - 1
                self._answer(206, part, Content_Range=f"bytes {first}-{stop}/{len(content)}")
            else:
                self._answer(200, content)

        def _answer(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server = Server(f"http://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            running.shutdown()
            thread.join()
