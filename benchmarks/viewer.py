"""Speed of the map of ``satmap view``: the page in a browser, and the tiles of a large raster.

    .venv/bin/python benchmarks/viewer.py page --repeat 5        # needs chromium and chromedriver
    .venv/bin/python benchmarks/viewer.py tiles --side 20000

``page`` opens two files in turn in headless Chromium with software rendering: the map of a
synthetic town with 100,000 roads and 50,000 buildings, and a plain MapLibre page with the same
roads as inline GeoJSON, one line layer and the same view. The plain page has no buildings and only
the property that it colours by.
Printed are the seconds from the request to the first idle map with everything drawn, their ratio,
the time of routes, and the size of the file.

``tiles`` makes a GeoTIFF, once without and once with overviews, and pans over it at several zoom
levels, two tiles at a time, as a browser requests them. Printed are the time to prepare, the time
of each tile and the peak memory. Each raster is measured in a process of its own.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from PIL import Image
from rasterio.enums import Resampling
from rasterio.windows import Window

from satmap.data.sources import HALF_WORLD_M

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from browser import MISSING, Browser, browser
from satmap.routing import Network, find_route
from satmap.viewer.data import read_results
from satmap.viewer.imagery import Imagery
from satmap.viewer.page import write_page

_WEST, _NORTH, _STEP = 2.2, 49.0, 0.00125
_IMAGES = Path("../shared/data/roads_massachusetts/images")
_VENDOR = Path(__file__).resolve().parents[1] / "code/satmap/viewer/vendor"

# What users do on the map, until it is drawn again.
_TIMED = """const from = performance.now(); {}
  await new Promise((resolve) => {{
    satmap.map.once("idle", resolve); satmap.map.triggerRepaint(); }});
  return performance.now() - from;"""
_ACTIONS = {
    "slider of confidence": "const slider = document.getElementById('least'); slider.value = 60;"
    " slider.dispatchEvent(new Event('input'));",
    "other colours": "const colours = document.getElementById('road-colour');"
    " colours.value = 'confidence'; colours.dispatchEvent(new Event('change'));",
    "reach of 5, 10, 15 minutes": "await satmap.setMode('reach');"
    " await satmap.act(satmap.map.getCenter().toArray());",
    "closer": "satmap.map.jumpTo({ zoom: 15 });",
}

_PLAIN = """<!doctype html><html><head><meta charset="utf-8"><style>{css}
html, body, #map {{ margin: 0; height: 100%; }}</style></head><body><div id="map"></div>
<script>{library}</script><script>
const roads = {roads};
const map = new maplibregl.Map({{
  container: "map", bounds: {bounds}, fitBoundsOptions: {fit}, fadeDuration: 0,
  canvasContextAttributes: {{ preserveDrawingBuffer: true }},
  style: {{ version: 8, sources: {{ roads: {{ type: "geojson", data: roads }} }}, layers: [
    {{ id: "ground", type: "background", paint: {{ "background-color": "#eceae4" }} }},
    {{ id: "roads", type: "line", source: "roads", paint: {{ "line-width": 2, "line-color": [
      "step", ["get", "speed_kmh"], "#305adc", 30, "#1eaae6", 40, "#3cc85a", 50, "#e1cd32", 65,
      "#f57d1e", 85, "#d22814"] }} }}] }},
}});
const satmap = {{ map, ready: new Promise((resolve) => {{ map.once("idle", () => {{
  satmap.seconds = performance.now() / 1000; resolve(); }}); }}) }};
</script></body></html>
"""


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("page")
    page.add_argument("--edges", type=int, default=100_000)
    page.add_argument("--buildings", type=int, default=50_000)
    page.add_argument("--repeat", type=int, default=3)
    page.add_argument("--routes", type=int, default=50)
    page.add_argument("--keep", type=Path, help="directory for the pages and screenshots")
    tiles = commands.add_parser("tiles")
    tiles.add_argument("--side", type=int, default=20_000, help="pixels")
    tiles.add_argument("--tiles", type=int, default=60, help="tiles of each zoom level")
    tiles.add_argument("--images", type=Path, default=_IMAGES, help="pictures to fill the raster")
    tiles.add_argument("--raster", type=Path, help="measure this raster only")
    options = parser.parse_args()
    if options.command == "tiles":
        if options.raster:
            measure_tiles(options.raster, options.tiles)
            return
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "raster.tif"
            _raster(path, options.side, options.images)
            for name in ("without overviews", "with overviews"):
                if name == "with overviews":
                    with rasterio.open(path, "r+") as file:
                        file.build_overviews([2, 4, 8, 16, 32], Resampling.average)
                print(f"{name}, {path.stat().st_size / 1e9:.2f} GB", flush=True)
                command = [sys.executable, __file__, "tiles", "--raster", str(path)]
                subprocess.run([*command, "--tiles", str(options.tiles)], check=True)
        return
    with tempfile.TemporaryDirectory() as directory:
        measure_page(options.keep or Path(directory), options)


def measure_page(place: Path, options: argparse.Namespace) -> None:
    """Open the map and the plain page in turn."""
    if MISSING:
        raise SystemExit(f"needs {MISSING}")
    place.mkdir(exist_ok=True)
    roads, buildings = _roads(options.edges), _buildings(options.buildings, options.edges)
    for name, features in (("roads", roads), ("buildings", buildings)):
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (place / f"{name}.geojson").write_text(text)
    data = read_results([place / "roads.geojson", place / "buildings.geojson"])
    assert data.network is not None
    write_page(place / "map.html", data)
    west, south, east, north = data.bounds
    plain = _PLAIN.format(
        css=(_VENDOR / "maplibre-gl.css").read_text(),
        library=(_VENDOR / "maplibre-gl.js").read_text().rpartition("//# sourceMappingURL")[0],
        roads=json.dumps({"type": "FeatureCollection", "features": [*map(_lean, roads)]}),
        bounds=[[west, south], [east, north]],
        fit=json.dumps({"padding": {"top": 30, "bottom": 40, "left": 310, "right": 60}}),
    )
    (place / "plain.html").write_text(plain)
    times: dict[str, list[float]] = {"plain": [], "map": []}
    for turn in range(options.repeat):
        for name in times:
            with browser() as shown:
                shown.open((place / f"{name}.html").as_uri())
                times[name].append(shown.run("return satmap.seconds"))
                if turn == 0:
                    _report(shown, place, name, options, data.network)
        print(f"run {turn + 1}: plain {times['plain'][-1]:.2f} s, map {times['map'][-1]:.2f} s, "
              f"ratio {times['map'][-1] / times['plain'][-1]:.2f}", flush=True)  # fmt: skip
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"median: plain {medians['plain']:.2f} s, map {medians['map']:.2f} s, "
          f"ratio {medians['map'] / medians['plain']:.2f}")  # fmt: skip


def _lean(feature: dict[str, Any]) -> dict[str, Any]:
    """Return a feature with only the property that the plain page needs."""
    return {**feature, "properties": {"speed_kmh": feature["properties"]["speed_kmh"]}}


def _report(
    shown: Browser, place: Path, name: str, options: argparse.Namespace, network: Network
) -> None:
    """Print what is drawn, the size of the file, and the time of routes."""
    picture = shown.screenshot()[:, 320:].astype(int)
    drawn = (np.abs(picture - (0xEC, 0xEA, 0xE4)).max(axis=2) > 8).mean()
    size = (place / f"{name}.html").stat().st_size
    print(f"{name}: {size / 1e6:.1f} MB, {drawn:.0%} of the view is drawn", flush=True)
    if options.keep:
        from PIL import Image

        Image.fromarray(shown.screenshot()).save(place / f"{name}.png")
    if name == "plain":
        return
    rng = np.random.default_rng(1)
    bounds = np.array(shown.run("return satmap.header.bounds"))
    pairs = rng.uniform(bounds[:2], bounds[2:], (options.routes, 2, 2)).tolist()
    found = shown.run(
        "const all = []; await satmap.route(...args[0][0]);"
        " for (const [a, b] of args[0]) { const from = performance.now();"
        " const { time, length } = await satmap.route(a, b);"
        " all.push([performance.now() - from, time, length]); } return all;",
        pairs,
    )
    taken = [each[0] for each in found]
    middle, high, slowest = np.quantile(taken, [0.5, 0.99, 1])
    print(
        f"routes: median {middle:.0f} ms, 99 % {high:.0f} ms, slowest {slowest:.0f} ms of "
        f"{len(taken)}",
        flush=True,
    )
    worst, unreachable = np.zeros(2), 0
    for (start, end), (_, seconds, metres) in zip(pairs, found, strict=True):
        route = find_route(network, network.snap(*start), network.snap(*end))
        if route is None or seconds is None:
            assert route is seconds
            unreachable += 1
            continue
        apart = np.abs(np.subtract([seconds, metres], [route.time_s, route.length_m]))
        worst = np.maximum(worst, apart)
    print(
        f"against scipy: at most {worst[0]:.3f} s and {worst[1]:.3f} m apart, {unreachable} "
        "unreachable in both",
        flush=True,
    )
    for what, script in _ACTIONS.items():
        print(f"{what}: {shown.run(_TIMED.format(script)):.0f} ms", flush=True)


def measure_tiles(path: Path, count: int) -> None:
    """Print the time of tiles along rows at each zoom level, and the memory of the process."""
    started = time.perf_counter()
    imagery = Imagery([path])
    imagery.prepare()
    print(f"  prepared in {time.perf_counter() - started:.1f} s", flush=True)
    west, south, east, north = imagery.bounds_m
    for zoom in range(imagery.deepest_zoom, imagery.deepest_zoom - 8, -1):
        side = 2 * HALF_WORLD_M / 2**zoom
        columns = range(int((west + HALF_WORLD_M) / side), int((east + HALF_WORLD_M) / side) + 1)
        rows = range(int((HALF_WORLD_M - north) / side), int((HALF_WORLD_M - south) / side) + 1)
        # Panning shows successive tiles of a few rows, from the middle on.
        keys = [(zoom, x, y) for y in rows[len(rows) // 2 :] for x in columns][:count]
        with ThreadPoolExecutor(2) as pool:
            taken = np.array([*pool.map(partial(_timed, imagery), keys)]) * 1e3
        wall, cpu = taken.T
        print(
            f"  zoom {zoom}: {len(keys)} tiles, median {np.median(wall):.0f} ms, 95 % "
            f"{np.quantile(wall, 0.95):.0f} ms, slowest {wall.max():.0f} ms; "
            f"CPU: median {np.median(cpu):.0f} ms, slowest {cpu.max():.0f} ms",
            flush=True,
        )
    # Not ru_maxrss, which counts the parent's memory before the start of this program.
    status = Path("/proc/self/status").read_text()
    print(f"  peak memory {int(status.split('VmHWM:')[1].split()[0]) / 1e6:.2f} GB")


def _timed(imagery: Imagery, key: tuple[int, int, int]) -> tuple[float, float]:
    """Return the seconds of a tile, and those of the CPU."""
    started, before = time.perf_counter(), time.thread_time()
    imagery.tile(*key)
    return time.perf_counter() - started, time.thread_time() - before


def _raster(path: Path, side: int, images: Path) -> None:
    """Write a tiled and deflated GeoTIFF of real pictures in random order, half a metre a pixel."""
    rng = np.random.default_rng(0)
    pictures = []
    for file in sorted(images.glob("img-*"))[:60]:
        with Image.open(file) as picture:
            pictures.append(np.asarray(picture.convert("RGB").resize((512, 512))))
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8",
        "crs": "EPSG:32619", "transform": Affine(0.5, 0, 310_000, 0, -0.5, 4_690_000),
        "photometric": "RGB", "tiled": True, "blockxsize": 512, "blockysize": 512,
        "compress": "deflate", "zlevel": 1, "bigtiff": "yes", "interleave": "pixel",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        for top in range(0, side, 512):
            chosen = rng.integers(0, len(pictures), math.ceil(side / 512))
            row = np.concatenate([pictures[k] for k in chosen], axis=1)
            row = row[: min(512, side - top), :side]
            target.write(row.transpose(2, 0, 1), window=Window(0, top, *row.shape[1::-1]))


def _roads(count: int) -> list[dict[str, Any]]:
    """Return the streets of a town as `satmap map` exports them: a grid with curves."""
    side = int(np.ceil((1 + np.sqrt(1 + 2 * count)) / 2))
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1)
    nodes = (
        grid * [_STEP, -_STEP * 0.66] + [_WEST, _NORTH] + rng.normal(0, _STEP / 12, (side, side, 2))
    )
    ends = [((r, c), (r, c + 1)) for r in range(side) for c in range(side - 1)]
    ends += [((r, c), (r + 1, c)) for r in range(side - 1) for c in range(side)]
    features = []
    for number, k in enumerate(np.sort(rng.permutation(len(ends))[:count]).tolist()):
        (a, b), inner = ends[k], int(rng.integers(0, 5))
        shares = np.linspace(0, 1, inner + 2)[:, None]
        line = nodes[a] * (1 - shares) + nodes[b] * shares
        line[1:-1] += rng.normal(0, _STEP / 40, (inner, 2))
        line = np.round(line, 7)
        metres = float(np.hypot(*(np.diff(line, axis=0) * [73_000, 111_000]).T).sum())
        mph = float(rng.choice([15, 25, 35, 45, 55]))
        properties = {
            "image_id": "town", "u": a[0] * side + a[1], "v": b[0] * side + b[1],
            "highway": str(rng.choice(["residential", "tertiary", "secondary", "primary"])),
            "maxspeed": f"{mph:.0f} mph", "speed_kmh": round(mph * 1.609344, 1), "speed_mph": mph,
            "speed_source": "predicted", "length_m": metres,
            "travel_time_s": metres / (mph * 0.44704),
            "width_m": round(float(rng.uniform(4, 14)), 2),
            "mean_probability": round(float(rng.uniform(0.3, 1)), 4),
        }  # fmt: skip
        geometry = {"type": "LineString", "coordinates": line.tolist()}
        assert number >= 0
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return features


def _buildings(count: int, edges: int) -> list[dict[str, Any]]:
    """Return buildings of 5 to 9 corners within the blocks."""
    side = int(np.ceil((1 + np.sqrt(1 + 2 * edges)) / 2)) - 1
    rng = np.random.default_rng(1)
    features = []
    for k in rng.choice(side * side * 4, count, replace=False).tolist():
        block, quarter = divmod(k, 4)
        x = _WEST + _STEP * (block % side + 0.3 + 0.4 * (quarter % 2))
        y = _NORTH - 0.66 * _STEP * (block // side + 0.3 + 0.4 * (quarter // 2))
        w, h = rng.uniform(0.08, 0.15, 2) * [_STEP, _STEP * 0.66]
        corners = [[-w, -h], [w, -h], [w, h], [-w, h]]
        if rng.random() < 0.5:
            corners = [[-w, -h], [w, -h], [w, 0.2 * h], [0.1 * w, 0.2 * h], [0.1 * w, h], [-w, h]]
        angle = rng.uniform(0, 0.3)
        turned = np.array(corners) @ [
            [np.cos(angle), -np.sin(angle)],
            [np.sin(angle), np.cos(angle)],
        ]
        ring = np.round(turned + np.array([x, y]), 7).tolist()
        properties = {
            "image_id": "town", "mean_probability": round(float(rng.uniform(0.5, 1)), 4),
            "expected_iou": round(float(rng.uniform(0.2, 0.95)), 4),
            "area_m2": round(float(4 * w * h * 73_000 * 111_000), 2),
        }  # fmt: skip
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return features


if __name__ == "__main__":
    main()
