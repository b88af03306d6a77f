"""The local server: what it answers and what it refuses, with imagery cut into tiles."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from forked_ranks import killed_at_last
from satmap.errors import SatmapError
from satmap.viewer.imagery import Imagery
from satmap.viewer.server import MapServer, served

WEST, NORTH, PIXEL = 260000.0, 6250000.0, 2.0
SIDE = 1500


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imagery") / "town.tif"
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pixels = np.stack([columns * 254 // SIDE + 1, rows * 254 // SIDE + 1, np.full_like(rows, 9)])
    profile = {
        "driver": "GTiff", "width": SIDE, "height": SIDE, "count": 3, "dtype": "uint8",
        "crs": "EPSG:3857", "transform": Affine(PIXEL, 0, WEST, 0, -PIXEL, NORTH),
        "photometric": "RGB", "tiled": True,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels.astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def imagery(raster: Path) -> Imagery:
    return Imagery([raster])


@pytest.fixture(scope="module")
def server(imagery: Imagery) -> Iterator[MapServer]:
    with served(b"<p>the page</p>", imagery) as started:
        yield started


def ask(
    server: MapServer, path: str, host: str | None = "", method: str = "GET"
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host or f"127.0.0.1:{server.port}")
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def raw(server: MapServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def tile_of(imagery: Imagery, zoom: int) -> tuple[int, int]:
    """Return x and y of the tile in the middle of the imagery."""
    side = 2 * 20037508.342789244 / 2**zoom
    west, south, east, north = imagery.bounds_m
    x, y = (west + east) / 2 + 20037508.342789244, 20037508.342789244 - (south + north) / 2
    return int(x // side), int(y // side)


def test_the_page_and_nothing_else_is_served(server: MapServer) -> None:
    assert ask(server, "/") == (200, b"<p>the page</p>")
    assert ask(server, "/", method="HEAD") == (200, b"")
    for path in (
        "/../../etc/passwd", "/tiles/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd", "/etc/passwd", "/index.html", "/?x", "/tiles/1/2/3.png",
        "/tiles/99/0/0.webp", "/tiles/3/8/0.webp", "/tiles/3/-1/0.webp", "/tiles/3/0/0.webp/..",
    ):  # fmt: skip
        assert ask(server, path)[0] == 404, path


def test_a_foreign_host_is_refused(server: MapServer) -> None:
    assert ask(server, "/", f"localhost:{server.port}")[0] == 200
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", "", None):
        if host != "":
            assert ask(server, "/", host)[0] == 421, host


def test_malformed_requests_do_no_harm(server: MapServer) -> None:
    own = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    assert b"501" in raw(server, b"DELETE / HTTP/1.1\r\n" + own + b"\r\n").split(b"\r\n")[0]
    assert b"400" in raw(server, b"\xff\xfe nonsense\r\n\r\n")
    assert b"431" in raw(server, b"GET / HTTP/1.1\r\n" + own + b"X: 1\r\n" * 200 + b"\r\n")
    assert b"414" in raw(server, b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n")
    assert b"421" in raw(server, b"GET / HTTP/1.1\r\n" + own + own + b"\r\n")
    assert raw(server, b"") == b""
    assert ask(server, "/")[0] == 200


def test_tiles_show_the_imagery_at_all_scales(server: MapServer, imagery: Imagery) -> None:
    imagery.prepare()
    for zoom in (6, 10, imagery.deepest_zoom):
        x, y = tile_of(imagery, zoom)
        status, content = ask(server, f"/tiles/{zoom}/{x}/{y}.webp")
        assert status == 200
        tile = np.asarray(Image.open(BytesIO(content)).convert("RGBA")).astype(float)
        assert tile.shape == (256, 256, 4)
        # The colours tell the place in the raster.
        rows, columns = np.nonzero(tile[..., 3] > 250)
        side = 2 * 20037508.342789244 / 2**zoom
        east_of = (x * side - 20037508.342789244 + (columns + 0.5) * side / 256 - WEST) / PIXEL
        south_of = (NORTH - 20037508.342789244 + y * side + (rows + 0.5) * side / 256) / PIXEL
        inside = (east_of > 0) & (east_of < SIDE) & (south_of > 0) & (south_of < SIDE)
        assert inside.mean() > 0.5
        red, green = tile[rows, columns, 0][inside], tile[rows, columns, 1][inside]
        tolerance = 6 + 254 / SIDE * side / 256 / PIXEL
        assert np.abs(np.median(red - east_of[inside] * 254 / SIDE)) < tolerance
        assert np.abs(np.median(green - south_of[inside] * 254 / SIDE)) < tolerance
    assert ask(server, f"/tiles/{zoom}/0/0.webp") == (204, b"")


def test_reduced_copies_give_the_same_tiles(
    raster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An odd size, and a part without data.
    path = tmp_path / "odd.tif"
    with rasterio.open(raster) as file:
        pixels, profile = file.read()[:, :1401, :1333], file.profile
    pixels[:, 300:700, :500] = 0
    with rasterio.open(path, "w", **{**profile, "height": 1401, "width": 1333}) as file:
        file.write(pixels)
    plain = Imagery([path])
    monkeypatch.setattr("satmap.viewer.imagery._REDUCED_PX", 400 * 400)
    reduced = Imagery([path])
    reduced.prepare()
    west, _, _, north = plain.bounds_m
    for metres in (2.0, 4.5, 9.0, 17.0):
        side = min(int(2600 / metres), 500)
        one, other = (
            each.read(west - 3, north + 5, metres, side, side).astype(int)
            for each in (plain, reduced)
        )
        both = (one[..., 3] > 0) & (other[..., 3] > 0)
        assert ((one[..., 3] > 0) == (other[..., 3] > 0)).mean() > 0.98
        assert np.quantile(np.abs(one - other)[both], 0.99) <= 3
        assert 0.3 < both.mean() < 0.95


def test_many_requests_at_once_are_answered(server: MapServer, imagery: Imagery) -> None:
    x, y = tile_of(imagery, imagery.deepest_zoom)
    found: list[int] = []
    paths = [f"/tiles/{imagery.deepest_zoom}/{x + k % 6}/{y + k // 6}.webp" for k in range(60)]
    threads = [threading.Thread(target=lambda p=path: found.append(ask(server, p)[0]))
               for path in paths]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == len(paths)
    assert set(found) <= {200, 204}


def test_a_port_in_use_is_reported(server: MapServer) -> None:
    with pytest.raises(SatmapError, match=f"port {server.port} cannot be used"):
        MapServer(b"", None, server.port)


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    roads = tmp_path / "roads.geojson"
    roads.write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {},'
        ' "geometry": {"type": "LineString", "coordinates": [[2, 48], [2.001, 48]]}}]}'
    )
    command = [sys.executable, "-m", "satmap", "view", str(roads), "--no-browser"]
    # Shells start background jobs, such as these tests, with Ctrl-C ignored.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with killed_at_last(process):
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        port = int(address.rsplit(":", 1)[1].strip("/"))
        # An open connection does not keep the server from ending.
        with socket.create_connection(("127.0.0.1", port)):
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        assert time.monotonic() - started < 5
        assert process.stderr is not None
        assert process.stderr.read() == "satmap: stopped\n"
