"""Write a map as one self-contained HTML page.

The page holds everything: MapLibre GL JS, satmap's own scripts, the data and a picture of the
imagery. Its content security policy lets it run only these scripts, by their checksums, and lets it
contact nobody, or only the local server that it came from.

The data are arrays behind a header of JSON, deflated. To make them small, coordinates are stored as
differences of successive ones, in whole numbers of 1e-7 degrees, and the bytes of all numbers are
sorted by significance.
"""

import base64
import hashlib
import html
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from satmap.io.files import write_text
from satmap.io.text import printable
from satmap.routing import Network
from satmap.vectors.georeference import metres_per_degree
from satmap.viewer.data import Comparison, MapData, Shapes, shown_value
from satmap.viewer.imagery import Imagery

_PACKAGE = resources.files("satmap.viewer")

# Scripts in the order in which they run.
_SCRIPTS = ("data.js", "style.js", "draw.js", "app.js")

_UNITS = 1e7

# More properties than this become one text.
_MOST_COLUMNS = 40

_MPS_TO_KMH = 3.6

# Wider roads and further levels are mistakes.
_WIDEST_M, _DEEPEST = 200.0, 5
_METRES = re.compile(r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*(?:m|;|$)", re.ASCII)

_AROUND = 5e-4


def write_page(path: Path, data: MapData, imagery: Imagery | None = None) -> None:
    """Write a map as one HTML file that opens offline, atomically.

    Args:
        path: the file.
        data: what the map shows.
        imagery: rasters; a reduced picture of those around the map is put into the file.

    Raises:
        SatmapError: the imagery cannot be read.
        CannotWriteError: the file cannot be written.
    """
    picture = None if imagery is None else imagery.picture(data.bounds)
    write_text(path, make_page(data, picture))


def make_page(
    data: MapData,
    picture: tuple[bytes, list[list[float]]] | None = None,
    tiles: Mapping[str, Any] | None = None,
) -> str:
    """Return the HTML of a map.

    Args:
        data: what the map shows.
        picture: imagery as an image file, and its corners in degrees.
        tiles: ``maxzoom`` and ``bounds`` of the tiles of a local server.
    """
    more: dict[str, Any] = {"tiles": tiles}
    if picture is not None:
        more["corners"] = picture[1]
    content = base64.b64encode(pack(data, more)).decode()
    image = base64.b64encode(picture[0]).decode() if picture is not None else ""
    scripts = [_text("vendor", "maplibre-gl.js").rpartition("//# sourceMappingURL")[0]]
    scripts += [_text("vendor", "earcut.js")]
    scripts += [_text("page", name) for name in _SCRIPTS]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'"
        for each in scripts
    )
    own = "'self' " if tiles is not None else ""
    policy = (
        f"default-src 'none'; script-src {hashes}; worker-src blob:; style-src 'unsafe-inline'; "
        f"img-src {own}data: blob:; connect-src {own}data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )
    replacements = {
        "{{policy}}": html.escape(policy, quote=True),
        "{{title}}": html.escape(f"{printable(data.name)} – satmap"),
        "{{styles}}": _text("vendor", "maplibre-gl.css") + _text("page", "page.css"),
        "{{data}}": content,
        "{{image}}": image,
        "{{routing}}": _text("page", "routing.js"),
        "{{scripts}}": "".join(f"<script>{each}</script>\n" for each in scripts),
    }
    parts = _split(_text("page", "page.html"), replacements)
    return "".join(replacements.get(part, part) for part in parts)


def _split(text: str, names: Mapping[str, str]) -> list[str]:
    """Split a text at placeholders, which become parts of their own."""
    parts = [text]
    for name in names:
        before, _, after = parts.pop().partition(name)
        parts += [before, name, after]
    return parts


def _text(*names: str) -> str:
    return _PACKAGE.joinpath(*names).read_text(encoding="utf-8")


def pack(data: MapData, more: Mapping[str, Any]) -> bytes:
    """Return the data of a map for the page: deflated arrays behind a header.

    ``more`` are further entries of the header.
    """
    arrays = _Arrays()
    header = {"name": data.name, "bounds": data.bounds, **_contents(arrays, data), **more}
    if data.comparison is not None:
        header["truth"] = _contents(arrays, data.comparison.truth)
        header["compare"] = _comparison(arrays, data.comparison)
    return arrays.packed(header)


def _contents(arrays: "_Arrays", data: MapData) -> dict[str, Any]:
    """Return roads, buildings and network of a map."""
    roads, buildings = _shapes(arrays, data.roads), _shapes(arrays, data.buildings)
    areas = [_area_m2(rings) for rings in data.buildings.parts]
    buildings["area"] = arrays.add(np.array(areas, np.float32))
    if data.network is None:
        return {"roads": roads, "buildings": buildings}
    roads |= _speeds(arrays, data.roads, data.network)
    roads |= _widths_and_decks(arrays, data.roads)
    return {"roads": roads, "buildings": buildings, "network": _network(arrays, data.network)}


def _comparison(arrays: "_Arrays", comparison: Comparison) -> dict[str, Any]:
    spots = []
    for spot in comparison.spots:
        low, high = spot.points.min(axis=0), spot.points.max(axis=0)
        # A place is shown with at least some 50 m around it.
        bounds = [*(low - _AROUND).tolist(), *(high + _AROUND).tolist()]
        lines = [np.round(line, 7).tolist() for line in spot.lines]
        spots.append({"text": spot.text, "detail": spot.detail, "bounds": bounds, "lines": lines})
    return {
        "score": comparison.score,
        "found": comparison.found,
        "missed": comparison.missed,
        "false": comparison.false,
        "missedRoads": _shapes(arrays, comparison.missed_roads),
        "falseRoads": _shapes(arrays, comparison.false_roads),
        "buildings": _shapes(arrays, comparison.buildings),
        "kinds": arrays.add(comparison.kinds),
        "spots": spots,
    }


class _Arrays:
    """Arrays that are written one after the other, each with its bytes sorted by significance."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._table: list[tuple[str, int]] = []

    def add(self, values: NDArray[Any]) -> int:
        """Add an array; return its number."""
        self._table.append((values.dtype.name, values.size))
        raw = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).view(np.uint8)
        self._parts.append(raw.reshape(-1, values.dtype.itemsize).T.tobytes())
        return len(self._table) - 1

    def packed(self, header: Mapping[str, Any]) -> bytes:
        """Return everything, deflated."""
        text = json.dumps({"arrays": self._table, **header}, allow_nan=False).encode()
        return zlib.compress(b"".join([len(text).to_bytes(4, "little"), text, *self._parts]))


def _differences(values: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the first value and the differences of the others; they may overflow."""
    return np.diff(values, prepend=0).astype(np.int32)


def _shapes(arrays: _Arrays, shapes: Shapes) -> dict[str, Any]:
    rings = [ring for parts in shapes.parts for ring in parts]
    degrees = np.rint(shapes.points * _UNITS).astype(np.int64)
    return {
        "count": len(shapes),
        "rings": arrays.add(np.array([len(parts) for parts in shapes.parts], np.int32)),
        "sizes": arrays.add(np.array([len(ring) for ring in rings], np.int32)),
        "x": arrays.add(_differences(degrees[:, 0])),
        "y": arrays.add(_differences(degrees[:, 1])),
        "confidence": arrays.add(shapes.rating[1].astype(np.float32)),
        "confidenceName": shapes.rating[0],
        "columns": _columns(arrays, shapes.properties),
    }


def _columns(arrays: _Arrays, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return properties as columns of numbers or of texts; rare ones share a column."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row:
            counts[name] = counts.get(name, 0) + 1
    common = sorted(counts, key=lambda name: -counts[name])[:_MOST_COLUMNS]
    names = [name for name in counts if name in set(common)]
    columns = [(name, [shown_value(row.get(name)) for row in rows]) for name in names]
    if len(names) < len(counts):
        kept = set(names)
        others = [{k: v for k, v in row.items() if k not in kept and v is not None} for row in rows]
        columns.append(("other properties", [shown_value(each) if each else None
                                             for each in others]))  # fmt: skip
    return [
        {"name": str(shown_value(name)), **_column(arrays, values)}
        for name, values in columns
        if any(value is not None for value in values)
    ]


def _column(arrays: _Arrays, values: Sequence[str | float | None]) -> dict[str, Any]:
    if not any(isinstance(value, str) for value in values):
        numbers = np.array([math.nan if value is None else value for value in values], np.float64)
        # Identifiers need all their digits; measured numbers are shown with six.
        exact = bool((np.abs(numbers[np.isfinite(numbers)]) >= 2**24).any())
        return {"numbers": arrays.add(numbers if exact else numbers.astype(np.float32))}
    texts: dict[str, int] = {}
    index = [
        -1 if value is None else texts.setdefault(_plain(value), len(texts)) for value in values
    ]
    return {"texts": list(texts), "index": arrays.add(np.array(index, np.int32))}


def _plain(value: str | float) -> str:
    # Lone surrogates cannot be written as UTF-8.
    return value.encode(errors="replace").decode() if isinstance(value, str) else f"{value:.10g}"


def _network(arrays: _Arrays, network: Network) -> dict[str, Any]:
    """Return the network; its edges are successive parts of the roads, cut at vertices."""
    sizes = shapely.get_num_coordinates(network.lines)
    return {
        "nodes": len(network.places),
        "scale": network.scale.tolist(),
        "assumed": network.assumed,
        "sizes": arrays.add(sizes.astype(np.int32)),
        "ends": arrays.add(_differences(network.ends.reshape(-1))),
        "lengths": arrays.add(network.lengths_m.astype(np.float32)),
        "times": arrays.add(network.times_s.astype(np.float32)),
        "directions": arrays.add(network.directions.astype(np.int8)),
    }


def _speeds(arrays: _Arrays, roads: Shapes, network: Network) -> dict[str, Any]:
    """Return length, time and speed of each road, from its edges."""
    inner = shapely.get_num_coordinates(network.lines) - 1
    of_road = np.array([len(xy) - 1 for (xy,) in roads.parts])
    road = np.searchsorted(np.cumsum(of_road), np.cumsum(inner))
    lengths, times = (
        np.bincount(road, values, len(roads)) for values in (network.lengths_m, network.times_s)
    )
    speeds = lengths / np.maximum(times, 1e-9) * _MPS_TO_KMH
    return {
        "length": arrays.add(lengths.astype(np.float32)),
        "time": arrays.add(times.astype(np.float32)),
        "speed": arrays.add(np.minimum(speeds, 1000).astype(np.float32)),
        "direction": arrays.add(network.directions[np.searchsorted(road, np.arange(len(roads)))]),
    }


def _widths_and_decks(arrays: _Arrays, roads: Shapes) -> dict[str, Any]:
    """Return the width of each road, and its level: 0 is the ground; where any is known."""
    widths = np.array([_width_m(each) for each in roads.properties], np.float32)
    decks = np.array([_deck(each) for each in roads.properties], np.int8)
    found = {}
    if np.isfinite(widths).any():
        found["width"] = arrays.add(widths)
    if decks.any():
        found["deck"] = arrays.add(decks)
    return found


def _width_m(properties: Mapping[str, Any]) -> float:
    for name in ("width_m", "width", "est_width"):
        if 0 < (width := _leading_number(properties.get(name))) < _WIDEST_M:
            return width
    return math.nan


def _deck(properties: Mapping[str, Any]) -> int:
    """Return the level of a road, as OpenStreetMap states it: 1 for bridges, -1 for tunnels."""
    level = _leading_number(properties.get("layer"))
    if math.isfinite(level):
        return int(max(-_DEEPEST, min(level, _DEEPEST)))
    bridge, tunnel = (
        str(properties.get(name) or "no").lower() not in ("no", "false", "0")
        for name in ("bridge", "tunnel")
    )
    return int(bridge) - int(tunnel)


def _leading_number(value: Any) -> float:
    """Return the number that a property is or begins with, such as ``7.5 m``; else NaN."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _METRES.match(value) if isinstance(value, str) else None
    return float(match[1]) if match else math.nan


def _area_m2(rings: Sequence[NDArray[np.float64]]) -> float:
    scale = np.array(metres_per_degree(float(rings[0][0, 1])))
    metres = [(ring - rings[0][0]) * scale for ring in rings]
    return float(shapely.Polygon(metres[0], metres[1:]).area)
